"""Pivotal tuning inversion (PTI): fine-tuning the generator on images of one person at fixed latents.

Source: thesis §4.3.2.2; Roich et al. 2021.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError
from talkhead.fingerprints import digest
from talkhead.images import sheet
from talkhead.losses import Perceptual
from talkhead.stylegan import Generator
from talkhead.training import EarlyStopping, fit, seeded

SHEET_IMAGES = 8  # at most, in a sample sheet


def tune(
    generator: Generator,
    images: torch.Tensor,
    pivots: torch.Tensor | np.ndarray,
    steps: int = 350,
    lr: float = 3e-4,
    perceptual: str | Perceptual = "auto",
    batch: int = 4,
    locality: float = 0.0,
    locality_radius: float = 30.0,
    min_delta: float = 0.02,
    seed: int = 0,
    on_record: Callable[[dict], None] | None = None,
) -> Generator:
    """Tune a copy of the generator to reproduce the images at the pivots.

    generator        stylegan.Generator; not changed
    images           float (N, 3, R, R) in [-1, 1], R the generator's resolution: one image, or frames of a clip
    pivots           float (N, L, 512), tensor or numpy: the encoder's latent of each image
    steps            maximum number of optimiser steps
    lr               Adam's learning rate
    perceptual       name of a losses.Perceptual, or such a loss
    batch            images per step, at most all
    locality         weight of the locality regularisation: images `locality_radius` away from the pivots stay as they
                     were; 0: none
    min_delta        tuning ends when 50 steps lower their mean loss by less than this fraction; 0: all steps
    on_record        called with {"step", "loss", "perceptual", "pixel"…} after every step
    returns          a stylegan.Generator, frozen, in evaluation mode. `lineage` holds the fingerprints of its parents,
                     so that networks trained for the parent still accept it
    raises           TalkheadError if the shapes do not fit each other or the generator, or a loss is not finite

    All but the mapping network is tuned. Images far from the pivots change little, so other expressions keep their
    motion and gain likeness to the person.

    Source: thesis §4.3.2.2, eqs 4.7 and 4.8; locality: Roich et al. 2021, §3.3.
    Departure: the pixel term is the mean absolute difference, as the text's name L1 says, where eq. 4.8 prints a norm;
    the steps end early, because a small generator converges in a few dozen.
    """
    tuner = _Tuner(images, generator, pivots, perceptual, lr, locality, locality_radius, seed, batch=batch)
    converged = EarlyStopping(min_delta)
    for index in range(steps):
        record = {name: float(value) for name, value in seeded(tuner.step, index, seed, tuner.team.device).items()}
        if not math.isfinite(record["loss"]):
            raise TalkheadError(f"tuning, step {index + 1}: the loss is {record['loss']}; lower --lr")
        if on_record is not None:
            on_record({"step": index + 1} | record)
        if converged(record):
            break
    return tuner.child.requires_grad_(False)


def train(
    images: torch.Tensor,
    generator: Generator,
    pivots: torch.Tensor | np.ndarray,
    out: str | os.PathLike,
    *,
    photo: np.ndarray | None = None,
    steps: int = 350,
    batch: int = 4,
    lr: float = 3e-4,
    perceptual: str | Perceptual = "auto",
    locality: float = 0.0,
    locality_radius: float = 30.0,
    min_delta: float = 0.02,
    accumulate: int = 1,
    precision: str = "float32",
    seed: int = 0,
    **run: Any,
) -> Iterator[dict]:
    """Tune a generator as `tune` does, into a resumable file; yield log records.

    images, generator, pivots   as in `tune`
    out          path of the .pt; resumed if it exists. It holds the tuned generator and "identity", the mean of the
                 pivots, float32 (L, 512), from which the tuned face speaks
    photo        uint8 (S, S, 3), the aligned face at its own resolution, stored in the file too: `generate` transfers
                 its detail to the frames
    steps … min_delta          as in `tune`
    accumulate   micro-batches of a batch, to fit into memory; the result is the same
    precision    "float32", or "bfloat16" or "float16" for the networks' passes under autocast
    run          logging and saving options of training.fit; its `samples` are some images over those of their pivots
    yields       {"step", "seconds", "loss", "perceptual", "pixel"…}
    raises       TalkheadError as `tune` and training.fit do; also if the file is of another face, generator or recipe

    Source and departure as in `tune`.
    """
    tuner = _Tuner(
        images,
        generator,
        pivots,
        perceptual,
        lr,
        locality,
        locality_radius,
        seed,
        batch=batch,
        accumulate=accumulate,
        precision=precision,
    )
    converged, child = EarlyStopping(min_delta), tuner.child
    about = {
        "generator": digest(generator),
        "images": digest({"images": images}),
        "pivots": _simhash(tuner.pivots),
        "batch": tuner.team.batch,
        "lr": lr,
        "locality": locality,
        "locality_radius": locality_radius,
        "min_delta": min_delta,
        "seed": seed,
    }
    header = {
        "kind": "generator",
        "config": child.config | {"lineage": sorted(child.lineage)},
        "perceptual": tuner.perceptual.name,
        "tuning": about,
        "identity": tuner.pivots.mean(0).cpu(),
    } | ({} if photo is None else {"photo": torch.from_numpy(np.ascontiguousarray(photo))})
    yield from fit(
        tuner.step,
        {"model": child, "optimizer": tuner.adam, "rest": converged},
        steps=steps,
        out=out,
        header=header,
        team=tuner.team,
        seed=seed,
        converged=converged,
        draw=tuner.draw,
        **run,
    )


def _check(generator, images, pivots):
    size, layers = generator.resolution, generator.num_ws
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise TalkheadError(
            f"images of shape {tuple(images.shape)}: this generator takes (N, 3, {size}, {size}); resize them"
        )
    if len(images) == 0 or len(pivots) != len(images):
        raise TalkheadError(
            f"{len(images)} images and {len(pivots)} pivots: give one pivot for each image, and at least one"
        )
    if pivots.ndim != 3 or pivots.shape[1] != layers:
        raise TalkheadError(
            f"pivots of shape {tuple(pivots.shape)}: this generator takes (N, {layers}, 512); use its own encoder"
        )


def _child(generator):
    """Copy a generator for tuning: synthesis trainable, mapping frozen, and a fingerprint of its own."""
    child = copy.deepcopy(generator).eval()
    for name, parameter in child.named_parameters():
        parameter.requires_grad_(not name.startswith("mapping"))
    child.lineage = set(getattr(generator, "lineage", ()))
    child.fingerprint = f"{getattr(generator, 'fingerprint', 'unnamed')}-tuned"
    return child


def _team(count, batch, **options):
    """Distributed for a batch of at most all images."""
    try:
        return Distributed(min(batch, count), **options)
    except TalkheadError as problem:
        raise (
            problem if batch <= count else TalkheadError(f"{count} images, the batch of every step: {problem}")
        ) from problem


def _picks(index, batch, count, seed):
    """Image indices of a step: each image once per epoch, in an order that depends on the seed only."""
    positions = range(index * batch, (index + 1) * batch)
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(count)
        for epoch in {position // count for position in positions}
    }
    return [int(orders[position // count][position % count]) for position in positions]


def _simhash(latents):
    """SimHash of latents, 16 hex digits: each bit is the side of a random hyperplane. Insensitive to rounding, which
    changes an encoder's latents with the number of threads.
    """
    random, flat = torch.Generator().manual_seed(0), latents.detach().cpu().double().flatten()
    sides = [torch.randn(len(flat), generator=random).double() @ flat > 0 for _ in range(64)]
    return f"{sum(int(side) << k for k, side in enumerate(sides)):016x}"


class _Tuner:
    """Tuned copy of the generator, and its optimiser step."""

    def __init__(self, images, generator, pivots, perceptual, lr, locality, radius, seed, batch, **team):
        pivots = torch.as_tensor(pivots)
        _check(generator, images, pivots)
        device = next(generator.parameters()).device
        self.team = _team(len(images), batch, device=device, **team)
        perceptual = Perceptual(perceptual) if isinstance(perceptual, str) else perceptual
        self.images, self.pivots, self.perceptual = images.to(device), pivots.to(device), perceptual.to(device)
        self.parent, self.child = generator, _child(generator)
        self.locality, self.radius, self.seed = locality, radius, seed
        self.adam = torch.optim.Adam([p for p in self.child.parameters() if p.requires_grad], lr=lr)

    def step(self, index):
        picks = _picks(index, self.team.batch, len(self.images), self.seed)
        return self.team.optimizer_step(lambda share: self._loss(share, share(picks)), self.adam)

    def _loss(self, share, picks):
        images, pivots = self.images[picks], self.pivots[picks]
        near = self._near(share, pivots) if self.locality else None
        with torch.enable_grad(), self.team.autocast():
            parts = self._distance(pivots, images)
            loss = sum(parts.values())
            if self.locality:
                with torch.no_grad():
                    wanted = self.parent.synthesis(near).float()
                parts["locality"] = sum(self._distance(near, wanted).values())
                loss = loss + self.locality * parts["locality"]
        return loss, {"loss": loss.detach()} | {name: value.detach() for name, value in parts.items()}

    def _distance(self, latents, images):
        """Two terms of eq. 4.7."""
        drawn = self.child.synthesis(latents).float()
        return {"perceptual": self.perceptual(drawn, images).mean(), "pixel": (drawn - images).abs().mean()}

    @torch.no_grad()
    def _near(self, share, pivots):
        """Latents at the locality radius from each pivot, towards a random face."""
        z = share.randn(self.team.batch, self.parent.z_dim).to(pivots.device)
        direction = self.parent.mapping(z) - pivots
        return pivots + self.radius * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1)

    @torch.no_grad()
    def draw(self):
        some = slice(None, None, math.ceil(len(self.images) / SHEET_IMAGES))
        return sheet(self.images[some], self.child.synthesis(self.pivots[some]))
