"""A talking head from files to file: speech, motion from noise, or latents, drawn as a video."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from talkhead import checkpoints, directions, faces, files, identities, mfcc, synthesis
from talkhead.audio2latent import load_features_for
from talkhead.audio_files import SoundReader
from talkhead.clips import draw_clip, live_sound, silent
from talkhead.dubbing import Film
from talkhead.errors import TalkheadError
from talkhead.latents import displace

if TYPE_CHECKING:
    import torch


class TalkingHead:
    """Networks that draw an identity speaking or moving. Files are named as in the commands; "-" is a pipe.

    generator, encoder   weight files; None: the bundled ones, or the tuned generator of `identity`
    audio2latent         speech model, a file; None: the bundled second one
    video_gan            motion model, a file, for `move`
    identity             the identity of the first call, so that a prepared one needs no encoder; None: images will come
    drives               "audio2latent", "video_gan" or None: what moves the face
    features, features_model   as `audio_features.features` takes them; None: those that the speech model was trained on
    device               torch.device
    identity_options     of `identities.load_identity`: find, detail, whole, size, neutral, tune, …
    motion               of `synthesis.speech_to_latents`: gain, gate, layers, blink, seed, deterministic
    blink_latent         .npy; None: the bundled one
    edits                {direction: amount}, as `directions.edit` takes them, such as {"smile": 0.5}: the code of every
                         identity is moved so before it speaks. A photo shows the movement of mouth, jaw and cheeks
                         against its unedited render, no more; without detail all is seen
    batch                frames drawn together; None: 8, or 1 for live sound, so that each frame is there soon
    precision, labelled  as `clips.draw_clip` takes them
    """

    driver: Any

    def __init__(
        self,
        generator: str | os.PathLike | None = None,
        encoder: str | os.PathLike | None = None,
        audio2latent: str | os.PathLike | None = None,
        video_gan: str | os.PathLike | None = None,
        identity: str | os.PathLike | None = None,
        drives: str | None = "audio2latent",
        features: str | None = None,
        features_model: str | os.PathLike | None = None,
        device: "str | torch.device" = "cpu",
        identity_options: dict | None = None,
        motion: dict | None = None,
        blink_latent: str | os.PathLike | None = None,
        edits: Mapping[str, float] | None = None,
        batch: int | None = None,
        precision: str = "float32",
        labelled: bool = False,
        progress: Callable[..., tqdm] = silent,
    ) -> None:
        prepared = identity is not None and files.is_prepared(identity)
        tuned = identity if prepared and not files.is_latents(identity) else None  # type: ignore[arg-type]
        self.drivers = {
            None: {},
            "audio2latent": {"audio2latent": audio2latent},
            "video_gan": {"video_gan": video_gan},
        }[drives]
        wanted = {} if prepared or (drives is None and identity is None) else {"encoder": encoder}
        found = checkpoints.load_networks(device, generator=generator or tuned, **wanted, **self.drivers)
        self.named = None if generator is None else found["generator"]
        self.generator, self.encoder = found["generator"], found.get("encoder")
        self.driver, self.device = found.get(drives), device
        self.identity_options, self.motion = dict(identity_options or {}), dict(motion or {})
        if self.motion.get("blink"):
            self.motion["blink_latent"] = identities.blink_latent(self.generator, blink_latent)
        self.edit = directions.edit(edits, self.generator) if edits else None
        self.features = None
        if drives == "audio2latent":
            self.features = load_features_for(self.driver, features, features_model, device)
        self.batch, self.progress = batch, progress
        self.drawing: dict[str, Any] = {"precision": precision, "labelled": labelled, "progress": progress}

    def identity(self, source: str | os.PathLike, dubbed: bool = False) -> identities.Identity:
        """The `identities.Identity` in a file."""
        options = self.identity_options
        if not files.is_prepared(source):
            options = options | {"device": self.device, "progress": self.progress}
            return identities.load_identity(source, self.generator, self.encoder, dubbed=dubbed, **options)
        if files.is_latents(source):
            return identities.latent_identity(source, self.generator)
        detail = {name: options[name] for name in ("detail", "neutral") if name in options}
        found = identities.tuned_identity(source, self.named, device=self.device, **detail)
        for kind, path in self.drivers.items():
            checkpoints.load_driver(kind, path, found.generator, device=self.device)  # raises if it does not fit
        return found

    def speak(
        self,
        identity: str | os.PathLike,
        audio: str | os.PathLike | SoundReader,
        output: str | os.PathLike | BinaryIO,
        latents_out: str | os.PathLike | BinaryIO | None = None,
    ) -> int:
        """An identity says a recording; returns the number of frames.

        identity, output   files
        audio              a file with sound, or a SoundReader
        latents_out        .npy for the latents, or None
        """
        with nullcontext(audio) if isinstance(audio, SoundReader) else live_sound(audio) as sound:
            code, generator, look = self.identity(identity, dubbed=True)
            batch = self.batch or (1 if sound.live else 8)
            if isinstance(look, Film):
                synthesis.match_range(look, generator, self.driver, code, self.features)
            path = synthesis.speech_to_latents(
                None, self.driver, code, sound, batch, features=self.features, edit=self.edit, **self.motion
            )
            moments = {name: self.motion[name] for name in ("blink", "seed") if name in self.motion}
            frames = None if sound.count is None else -(-sound.count * mfcc.FPS // sound.rate)
            options = {"look": look, "code": code, "batch": batch, "frames": frames} | moments | self.drawing
            return draw_clip(generator, path, output, sound, latents_out, **options)

    def move(
        self,
        identity: str | os.PathLike,
        output: str | os.PathLike | BinaryIO,
        latents_out: str | os.PathLike | BinaryIO | None = None,
        segments: Sequence[tuple[int, int]] = ((0, 100),),
    ) -> int:
        """An identity moves by noise; returns the number of frames.

        segments   [(seed, frames), …]
        """
        code, generator, look = self.identity(identity)
        batch = self.batch or 8
        path = synthesis.noise_to_latents(
            None, self.driver, code, list(segments), batch=batch, gain=self.motion.get("gain", 1.0), edit=self.edit
        )
        frames = sum(count for _, count in segments)
        options = {"look": look, "code": code, "head": True, "batch": batch, "frames": frames} | self.drawing
        return draw_clip(generator, path, output, None, latents_out, **options)

    def render(
        self,
        latents: str | os.PathLike,
        output: str | os.PathLike | BinaryIO,
        latents_out: str | os.PathLike | BinaryIO | None = None,
        identity: str | os.PathLike | None = None,
        audio: str | os.PathLike | BinaryIO | None = None,
        quads: str | os.PathLike | BinaryIO | None = None,
    ) -> int:
        """Latents out of a file as a video, with the detail of a photo and a sound if they are named.

        quads    .npy that `align_clip` wrote with the frames of the latents: a StyleGAN3 then draws the head where it
                 was in the film, seen by a camera at rest (`faces.quad_transforms`); or None
        returns  the number of frames
        raises   TalkheadError if there are other than one quad a latent, quads and an identity, or quads and a
                 generator that is no StyleGAN3
        """
        path = files.read_latents(latents)
        identities.check_owner(latents, files.read_about(latents), self.generator)
        path = path if self.edit is None else displace(path, self.edit)
        transforms = None if quads is None else faces.quad_transforms(files.read_array(quads))
        if transforms is not None and identity is not None:
            raise TalkheadError("quads move the generator's own face; leave the identity out")
        if transforms is not None and len(transforms) != len(path):
            raise TalkheadError(
                f"{quads}: quads of {len(transforms)} frames, but {latents} has {len(path)}; pass the quads that align "
                "wrote with the frames that were inverted"
            )
        code, _, look = (None, None, None) if identity is None else self.identity(identity)
        with nullcontext() if audio is None else live_sound(audio) as sound:
            options = {
                "look": look,
                "code": code,
                "head": True,
                "batch": self.batch or 8,
                "frames": len(path),
                "transforms": transforms,
            } | self.drawing
            return draw_clip(self.generator, path, output, sound, latents_out, **options)


def noise_segments(seeds: Sequence[int], seconds: float = 4.0) -> list[tuple[int, int]]:
    """[(seed, frames), …]: a time at 25 fps divided among seeds as equally as possible."""
    frames = max(len(seeds), round(seconds * files.FPS))
    ends = [frames * k // len(seeds) for k in range(len(seeds) + 1)]
    return [(seed, end - start) for seed, start, end in zip(seeds, ends, ends[1:])]
