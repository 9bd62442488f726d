"""Directions in W+ along which one attribute of a face changes, such as a smile: found, loaded and added up.

Found without labels: principal components of latents, or the closed-form factorisation of a generator's weights. With
labels: the regression of codes on a score. A file holds one direction (1, L, 512) in .npy; its length is the change for
an amount of 1, and the JSON beside it names the generator.

Source: thesis §2.6.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from talkhead import checkpoints, files
from talkhead.errors import TalkheadError
from talkhead.latents import W_DIM, Basis, extend_layers
from talkhead.stylegan import Generator

METHODS = ("pca", "sefa")


class Directions(NamedTuple):
    """Directions float32 (K, L, 512), and what each explains of the whole variance (or of the weights' power), (K,)."""

    latents: np.ndarray
    shares: np.ndarray


def find(
    generator: Generator,
    latents: np.ndarray,
    components: int = 5,
    method: str = "pca",
    layers: tuple[int, int] | None = None,
) -> Directions:
    """Find directions without labels.

    generator   stylegan.Generator
    latents     float32 (N, L, 512) of faces; an amount of 1 is their standard deviation along a direction
    components  K, number of directions
    method      "pca": principal components of the latents, by variance; "sefa": `factorise`
    layers      (first, last), counted from 0: the directions move these alone; None is all
    raises      TalkheadError if the method is unknown, or there are too few latents or layers

    Source: Härkönen et al. 2020 (pca, moving some layers); Shen and Zhou 2021 (sefa).
    """
    if method not in METHODS:
        raise TalkheadError(f"method {method!r}: unknown; take {' or '.join(METHODS)}")
    chosen = np.zeros((generator.num_ws, 1), np.float32)
    chosen[_span(generator, layers)] = 1
    if method == "sefa":
        unit, shares = factorise(generator, components, layers)
        deviations = (latents - latents.mean(0)).reshape(len(latents), -1)
        stdevs = np.std(deviations @ unit.reshape(components, -1).T, 0)
        return Directions(unit * stdevs[:, None, None], shares)
    basis = Basis.fit(latents, components)
    variance = (latents - latents.mean(0, dtype=np.float64)).var(0, ddof=1).sum()
    found = (basis.components * basis.stdev[:, None]).unflatten(1, (-1, W_DIM)).numpy()
    return Directions(chosen * found, basis.stdev.double().numpy() ** 2 / variance)


def factorise(generator: Generator, components: int, layers: tuple[int, int] | None = None) -> Directions:
    """Closed-form factorisation of a generator: the unit vectors n of W with the largest |A n|.

    components  K, number of directions
    layers      (first, last), counted from 0: A stacks the affine layers of these latents, and the directions move them
                alone; None is all
    returns     Directions of length 1, the eigenvectors of AᵀA with the largest eigenvalues
    raises      TalkheadError if there are no such layers, or fewer than K eigenvectors

    Source: Shen and Zhou 2021, eq. 5. Their A holds convolutions alone; here also the one ToRGB that is the only layer
    of its latent.
    """
    span = _span(generator, layers)
    weights = torch.cat(generator.affine_weights()[span]).double().cpu()  # (styles, w_dim)
    if not 1 <= components <= weights.shape[1]:
        raise TalkheadError(f"{components} directions: W allows 1 to {weights.shape[1]}; lower components")
    values, vectors = torch.linalg.eigh(weights.T @ weights)  # ascending
    vectors = vectors.T.flip(0)[:components]
    vectors = vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()  # the sign is arbitrary
    count = span.stop - span.start
    found = np.zeros((components, generator.num_ws, generator.w_dim), np.float32)
    found[:, span] = vectors.numpy()[:, None] / np.sqrt(count)
    return Directions(found, (values.flip(0)[:components] / values.sum()).numpy())


def _span(generator, layers):
    first, last = layers or (0, generator.num_ws - 1)
    if not 0 <= first <= last < generator.num_ws:
        raise TalkheadError(f"layers {first}-{last}: this generator has 0-{generator.num_ws - 1}")
    return slice(first, last + 1)


def regress(codes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Direction of a score: by how much the codes change, in the mean, where it is 1 higher.

    codes    float32 (N, L, 512) of faces
    scores   float (N,), such as 1 for faces that smile and 0 for others
    returns  float32 (L, 512), the least-squares slope; of two scores 0 and 1, the difference of their mean codes
    raises   TalkheadError if all scores are equal
    """
    centred = np.asarray(scores, np.float64) - np.mean(scores)
    power = (centred**2).sum()
    if power == 0:
        raise TalkheadError("scores: all are equal; give faces with and without the attribute")
    slope: np.ndarray = np.tensordot(centred, codes - codes.mean(0, dtype=np.float64), 1) / power
    return slope.astype(np.float32)


def write(folder: str | os.PathLike, directions: np.ndarray, generator: Generator) -> None:
    """Write directions, float32 (K, L, 512), as component-1.npy, component-2.npy … into a folder, made if missing."""
    with files.os_errors_in_one_line(folder):
        Path(folder).mkdir(exist_ok=True)
    for index, direction in enumerate(directions, 1):
        files.write_latents(
            Path(folder) / f"component-{index}.npy", direction[None], {"generator": generator.fingerprint}
        )


def bundled() -> list[str]:
    """Names of the bundled directions."""
    return sorted(path.stem for path in checkpoints.WEIGHTS.glob("*.npy") if path.with_suffix(".json").exists())


def load_direction(source: str | os.PathLike, generator: Generator) -> np.ndarray:
    """Read a direction, float32 (L, 512).

    source   .npy, or the name of a bundled one
    raises   TalkheadError if there is none, it holds several, or it belongs to another generator
    """
    if str(source) in bundled():
        source = checkpoints.WEIGHTS / f"{source}.npy"
    elif not Path(source).suffix:
        raise TalkheadError(
            f"{source}: no such direction; bundled are {', '.join(bundled()) or 'none'}, or pass a .npy"
        )
    owner = files.read_about(source).get("generator")
    if owner is not None and owner not in generator.lineage:  # type: ignore[operator]  # set by `load_generator`
        raise TalkheadError(
            f"{source}: a direction of generator {owner}, not of {generator.fingerprint}; learn its own with "
            "examples/learn_directions.py, or one that shuts the eyes with examples/learn_blink.py"
        )
    latents = files.read_latents(source)
    if latents.shape[1] != generator.num_ws and (owner is None or latents.shape[1] > generator.num_ws):
        raise TalkheadError(
            f"{source}: has {latents.shape[1]} layers, the generator {generator.num_ws}; pass a direction of its own"
        )
    if len(latents) != 1:
        raise TalkheadError(f"{source}: holds {len(latents)} latents, wanted one direction; pass one alone")
    return extend_layers(latents[0], generator.num_ws)


def edit(amounts: Mapping[str, float], generator: Generator) -> np.ndarray:
    """Displacement of an edit: the sum of directions, each by its amount.

    amounts   {file or bundled name: amount}, such as {"smile": 0.5}
    returns   float32 (L, 512), for `edit` of `speech_to_latents`
    raises    as `load_direction`
    """
    total = np.zeros((generator.num_ws, W_DIM), np.float32)
    for source, amount in amounts.items():
        total += np.float32(amount) * load_direction(source, generator)
    return total
