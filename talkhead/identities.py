"""The identity of a talking head, from a photo, a clip, latents, or a tuned generator."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from talkhead import audio_files, checkpoints, directions, faces, files, pti, synthesis, video_files
from talkhead.clips import crop, silent, track, tuning_set
from talkhead.detail import Photo, native_side
from talkhead.dubbing import Film
from talkhead.encoders import Encoder
from talkhead.errors import TalkheadError
from talkhead.landmarks import Detector
from talkhead.losses import Perceptual
from talkhead.stylegan import Generator

if TYPE_CHECKING:
    import torch

log = logging.getLogger("talkhead")


class Identity(NamedTuple):
    """A face that can speak: its code float32 (L, 512), the generator that draws it, and a Photo, a Film or None."""

    code: np.ndarray
    generator: Generator
    look: Photo | Film | None


def load_identity(
    source: str | os.PathLike | BinaryIO,
    generator: Generator,
    encoder: Encoder | None = None,
    find: Callable[[], Detector] | None = None,
    dubbed: bool = False,
    detail: bool = True,
    whole: bool = False,
    size: int | None = None,
    neutral: bool = True,
    tune: bool = False,
    tuning_steps: int = 350,
    tuning_frames: int = 125,
    perceptual: Perceptual | None = None,
    seed: int = 0,
    aligned: bool = False,
    face: str | int = "largest",
    on_missing: str = "fail",
    device: "str | torch.device" = "cpu",
    progress: Callable[..., tqdm] = silent,
) -> Identity:
    """The identity in an image or clip.

    source         as `read_frames` takes it
    generator, encoder   networks that fit each other
    find           function without arguments that returns a landmark detector; called if the source is not aligned
    dubbed         a clip becomes a Film, whose frames get new lips; else its first frame is the photo
    detail         keep the photo's detail; False: look is None
    whole, size, neutral   as `synthesis.identity_of` takes them
    tune           tune the generator on the identity, in `tuning_steps` steps on at most `tuning_frames` frames, with
                   the losses.Perceptual `perceptual`
    aligned, face, on_missing   as `clips.track` takes them
    """
    frames = None if detail and dubbed else tuning_frames if tune else 1
    with video_files.read_frames(source, limit=frames) as reader:
        # Aligned sources need no `find`.
        tracked = track(reader, find, aligned, face, on_missing)  # type: ignore[arg-type]
        side = synthesis.aligned_side(generator)
        if detail:
            look = _look(reader, tracked, generator, dubbed, aligned, whole, size, neutral)
            crops = [look.face(side)]
            if tune and isinstance(look, Film):
                step = -(-len(look) // max(tuning_frames - 1, 1))
                crops += [look.crop(index, len(crops[0])) for index in range(0, len(look), step)]
        else:
            look = None
            crops = [crop(frame, quad, side) for frame, quad, _ in islice(tracked, tuning_frames if tune else 1)]
    if tune:
        images, pivots = tuning_set(reader.name, generator, encoder, crops, device)  # type: ignore[arg-type]
        with progress(None, tuning_steps, "step") as bar:
            generator = pti.tune(
                generator,
                images,
                pivots,
                tuning_steps,
                perceptual=perceptual or "auto",
                seed=seed,
                on_record=lambda _: bar.update(),
            )
    return Identity(synthesis.encode_identity(encoder, crops[0]), generator, look)  # type: ignore[arg-type]


def _look(reader, tracked, generator, dubbed, aligned, whole, size, neutral):
    """The Photo of a clip's first frame, or the Film of all, with its sound if it has any."""
    if whole and (aligned or reader.aligned):
        raise TalkheadError(f"{reader.name}: aligned already; --whole wants the photo that it was cut from")
    frame, quad, _ = first = next(tracked)
    own = native_side(faces.whole_quad(frame) if quad is None else quad)
    if own < generator.resolution:
        log.info(
            f"{reader.name}: the face is {own} pixels wide there, fewer than the {generator.resolution} of the "
            "generator; a larger photo is drawn better"
        )
    tracked = islice(chain([first], tracked), None if dubbed else 1)
    look = synthesis.identity_of(tracked, generator, whole, size, neutral, name=reader.name)
    if isinstance(look, Film):
        with suppress(TalkheadError):  # no sound track, or a pipe that has been read
            look.sound = audio_files.read_audio(reader.name)
    return look


def latent_identity(source: str | os.PathLike, generator: Generator) -> Identity:
    """The identity in a file of latents: their mean. Raises TalkheadError if they are of another generator."""
    codes = files.read_latents(source)
    check_owner(source, files.read_about(source), generator)
    return Identity(codes.mean(0), generator, None)


def tuned_identity(
    source: str | os.PathLike,
    generator: Generator | None = None,
    detail: bool = True,
    neutral: bool = True,
    device: "str | torch.device" = "cpu",
) -> Identity:
    """The identity in a file of pivotal tuning, with its tuned generator.

    generator   the one that was asked for, which must be the tuned one; None takes any
    raises      TalkheadError if the file holds no face, or belongs to another generator
    """
    tuned = checkpoints.load_generator(source, device)
    if tuned.identity is None:
        raise TalkheadError(
            f"{source}: holds no face beside the generator; tune again with talkhead pti, "
            "or pass it as --generator and an image as --identity"
        )
    if generator is not None and tuned.fingerprint != generator.fingerprint:
        raise TalkheadError(
            f"{source}: a face of generator {tuned.fingerprint}, not of {generator.fingerprint}; leave --generator out"
        )
    look = (
        Photo(np.asarray(tuned.photo), checkpoints.load_keypoints(), neutral=neutral)
        if detail and tuned.photo is not None
        else None
    )
    return Identity(tuned.identity, tuned, look)  # type: ignore[arg-type]  # set by `load_generator`


def blink_latent(generator: Generator, source: str | os.PathLike | None = None) -> np.ndarray:
    """The latent displacement that closes the eyes, float32 (L, 512).

    source   .npy; None is the bundled one
    raises   TalkheadError if it belongs to another generator
    """
    return directions.load_direction(source or "blink", generator)


def check_owner(name: str | os.PathLike, about: dict, generator: Generator) -> None:
    """Raise TalkheadError if latents belong to a generator that is neither this one nor an ancestor of it."""
    owner = about.get("generator")
    if owner is not None and owner not in generator.lineage:  # type: ignore[operator]  # set by `load_generator`
        raise TalkheadError(
            f"{name}: latents of generator {owner}, not of {generator.fingerprint}; pass theirs as --generator"
        )


def check_fit(name: str | os.PathLike, latent: np.ndarray, generator: Generator) -> None:
    """Raise TalkheadError if a latent (L, 512) out of a file is not of this generator, and of its layers."""
    check_owner(name, files.read_about(name), generator)
    if len(latent) != generator.num_ws:
        raise TalkheadError(
            f"{name}: latents of {len(latent)} layers, this generator has {generator.num_ws}; pass theirs as "
            "--generator"
        )
