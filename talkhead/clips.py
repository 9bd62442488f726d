"""Clips from file to file: aligned, put back into their frames, inverted, and drawn."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from tqdm import tqdm

from talkhead import audio_files, faces, files, inversion, synthesis, video_files
from talkhead.detail import Photo, native_side
from talkhead.dubbing import Film
from talkhead.encoders import Encoder
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images
from talkhead.landmarks import Detector
from talkhead.losses import Perceptual
from talkhead.stylegan import Generator

if TYPE_CHECKING:
    import torch

log = logging.getLogger("talkhead")


def silent(items: Iterable | None = None, total: int | None = None, unit: str = "frame") -> tqdm:
    """A progress bar that shows nothing: the default of `progress` below, which takes any function like it."""
    return tqdm(items, total=total, unit=unit, disable=True)


def track(
    reader: video_files.FrameReader,
    find: Callable[[], Detector],
    aligned: bool = False,
    face: str | int = "largest",
    on_missing: str = "fail",
) -> Iterator[tuple[np.ndarray, np.ndarray | None, int]]:
    """The frames of a clip, each with the quad of the face in it.

    reader      video_files.FrameReader
    find        function without arguments that returns a landmark detector; not called where the clip is aligned
    aligned     the frames are aligned; so are those whose metadata says it
    face, on_missing   as `faces.follow` takes them
    returns     iterator of (frame uint8 (H, W, 3), quad float (4, 2) or None if aligned, index)
    raises      TalkheadError if an aligned frame is not square
    """
    if aligned or reader.aligned:
        height, width = reader.size
        if height != width:
            raise TalkheadError(f"{reader.name}: {width}x{height}, but an aligned face is square; leave --aligned out")
        log.info(f"{reader.name}: {'its metadata says it is aligned' if reader.aligned else 'taken as aligned'}")
        return ((frame, None, index) for index, frame in enumerate(reader))
    detector = find()
    log.info(f"{reader.name}: aligning the face that {detector.name} finds")
    return faces.follow(reader, detector, on_missing=on_missing, face=face)


def crop(frame: np.ndarray, quad: np.ndarray | None, size: int | None) -> np.ndarray:
    """The face in a tracked frame, uint8 (size, size, 3); an aligned frame is returned as it is."""
    return frame if quad is None else faces.crop(frame, quad, size)  # type: ignore[arg-type]  # it has a size then


def align_clip(
    source: str | os.PathLike | BinaryIO,
    output: str | os.PathLike | BinaryIO,
    find: Callable[[], Detector],
    size: int = 256,
    smoothing: float = 2.0,
    on_missing: str = "fail",
    face: str | int = "largest",
    quads: str | os.PathLike | None = None,
    side_smoothing: float | None = None,
    progress: Callable[..., tqdm] = silent,
) -> int:
    """Crop a clip or image to its face, as FFHQ does, from file to file.

    source, output   as `read_frames` and `FrameWriter` take them
    find             function without arguments that returns a landmark detector
    size … face, side_smoothing   as `faces.align_frames` takes them
    quads            .npy to write, float64 (T, 4, 2): the corners of each crop, NaN where a frame was skipped; or None
    returns          the number of frames written

    Source: thesis §3.3.1.1.
    """
    with video_files.read_frames(source) as reader:
        # An image that is reduced before it is cropped is at other pixels than its quad alone says.
        about = {"size": size, "frame": list(reader.size), "fps": reader.fps, "smoothing": smoothing}
        if reader.aligned:
            log.info(f"{reader.name}: aligned already, only resized")
            about |= {"size": reader.size[0], "smoothing": 0.0}
            crops: Iterator = (
                (resize(frame, size), faces.whole_quad(frame), index) for index, frame in enumerate(reader)
            )
        else:
            detector = find()
            log.info(f"{reader.name}: landmarks by {detector.name}")
            crops = faces.align_frames(
                reader, detector, size, smoothing, on_missing, face=face, side_smoothing=side_smoothing
            )
        corners: list[np.ndarray] = []
        metadata = reader.metadata | {files.ALIGNED_TAG: str(size)}
        with video_files.FrameWriter(output, sound=reader.sound, metadata=metadata) as writer:
            for image, quad, index in progress(crops):
                writer.write(image)
                corners += [np.full((4, 2), np.nan)] * (index - len(corners)) + [quad]
    if quads:
        files.write_array(quads, np.stack(corners))
        if os.path.isfile(quads):  # and no pipe
            files.write_json(os.path.splitext(quads)[0] + ".json", about)
    return writer.count


def paste_clip(
    source: str | os.PathLike | BinaryIO,
    into: str | os.PathLike | BinaryIO,
    quads: str | os.PathLike,
    output: str | os.PathLike | BinaryIO,
    feather: float = 0.15,
    match_colour: bool = True,
    progress: Callable[..., tqdm] = silent,
) -> None:
    """Put a talking head back into the frames that it was cut from, from file to file.

    source          the head: clip of aligned frames
    into            the clip that was aligned, or a photo; its sound is taken where the head has none
    quads           .npy that `align_clip` wrote
    feather, match_colour   as `faces.paste` takes them
    raises          TalkheadError if the quads are of frames of another size
    """
    corners, about = files.read_array(quads), files.read_about(quads)
    with video_files.read_frames(source) as head, video_files.read_frames(into) as clip:
        if about.get("frame") not in (None, list(clip.size)):
            height, width = about["frame"]
            raise TalkheadError(
                f"{into}: {clip.size[1]}x{clip.size[0]}, but the quads are of frames of {width}x{height}; "
                "pass the clip that was aligned"
            )
        tags = {key: value for key, value in (clip.metadata | head.metadata).items() if key != files.ALIGNED_TAG}
        frames = faces.paste(clip, head, corners, about.get("size"), feather, match_colour)
        with video_files.FrameWriter(output, sound=head.sound or clip.sound, metadata=tags) as writer:
            for frame in progress(frames, head.count):
                writer.write(frame)


def invert_clip(
    source: str | os.PathLike | BinaryIO,
    output: str,
    generator: Generator,
    encoder: Encoder | None = None,
    method: str = "encoder",
    perceptual: Perceptual | None = None,
    log_file: str | os.PathLike | None = None,
    log_every: int = 10,
    progress: Callable[..., tqdm] = silent,
    **options: Any,
) -> int:
    """The latents of a clip or image, from file to file.

    source, output  clip; .npy to write, float32 (T, L, 512). An optimisation into a named file keeps what is done in
                    OUTPUT.part and goes on from there
    perceptual      losses.Perceptual, for all methods but "encoder"
    log_file        JSON lines to write, the loss of every `log_every`-th step of each frame; or None
    options         of `inversion.invert`
    returns         the number of latents written
    """
    about = {
        "generator": generator.fingerprint,
        "fps": files.FPS,
        "method": method,
        "space": options.get("space", "w+"),
    }
    with video_files.read_frames(source) as reader:
        if not reader.aligned:
            log.info(f"{reader.name}: not marked as aligned; taken as it is")
        if method == "encoder":
            frames = progress(reader, reader.count)
            return files.write_latents(output, inversion.invert(frames, generator, method, encoder, **options), about)
        steps = {name: options[name] for name in ("steps", "next_steps", "hybrid_steps") if name in options}
        planned = inversion.planned_steps(method, **steps)
        total = None if reader.count is None else sum(map(planned, range(reader.count)))
        partial = output + ".part" if output != "-" and (os.path.isfile(output) or not os.path.exists(output)) else None
        resumed = partial is not None and os.path.exists(partial)
        if resumed:
            log.info(f"{partial}: going on from what was done")
        with InversionLog(progress(None, total, "step"), log_file, log_every, resumed) as progressed:
            options |= {"perceptual": perceptual, "partial": partial, "on_record": progressed.record}
            latents = inversion.invert(reader, generator, method, encoder, **options)
            about["perceptual"] = perceptual.name  # type: ignore[union-attr]  # all methods but "encoder" have one
            count = files.write_latents(output, progressed.follow(latents, planned), about)
    if options.get("tolerance"):
        log.info(
            f"{progressed.early} of {len(progressed.taken)} frames converged early; {sum(progressed.taken.values())} "
            "steps in all"
        )
    if partial is not None and os.path.exists(partial):
        os.remove(partial)
    return count


class InversionLog:
    """Progress of `inversion.invert`, one step at a time, and its log.

    bar      progress bar with the steps of all frames as its total, None if that is not known
    path     of a JSON-lines file, or None
    resumed  frames found before come first: they leave no records, and the log keeps theirs
    """

    taken: dict[int, int]
    log: Any

    def __init__(self, bar: tqdm, path: str | os.PathLike | None, log_every: int, resumed: bool) -> None:
        self.bar, self.every, self.taken, self.early = bar, log_every, {}, 0
        self.log = path and self._open(path, "r+" if resumed and os.path.exists(path) else "w+")

    @staticmethod
    def _open(path, mode):
        with files.os_errors_in_one_line(path):
            return open(path, mode, encoding="utf-8")

    def record(self, record: dict) -> None:
        frame, step = record["frame"], record["step"]
        if not self.taken and self.log is not None:
            self._forget(frame)
        if self.log is not None and (step % self.every == 0 or step + 1 == record["steps"]):
            self.log.write(json.dumps(record) + "\n")
            self.log.flush()
        self.taken[frame] = step + 1
        self.bar.set_postfix_str(f"frame {frame + 1}, loss {record['loss']:.4f}", refresh=False)
        self.bar.update()

    def _forget(self, frame):
        """Drop records of frames that a killed run did not finish."""
        kept = [line for line in self.log if line.endswith("\n") and json.loads(line)["frame"] < frame]
        self.log.seek(0)
        self.log.truncate()
        self.log.writelines(kept)

    def follow(self, latents: Iterable[np.ndarray], planned: Callable[[int], int]) -> Iterator[np.ndarray]:
        """Pass latents on; the bar's total shrinks by the steps that they did not take."""
        for frame, latent in enumerate(latents):
            saved = planned(frame) - self.taken.get(frame, 0)
            self.early += 0 < saved < planned(frame)
            if self.bar.total is not None:
                self.bar.total -= saved
            yield latent

    def __enter__(self) -> "InversionLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.log is not None:
            self.log.close()


def tuning_set(
    name: str, generator: Generator, encoder: Encoder, frames: list[np.ndarray], device: "str | torch.device" = "cpu"
) -> "tuple[torch.Tensor, np.ndarray]":
    """Images and pivots for pivotal tuning.

    frames    list of uint8 (S, S, 3), aligned
    returns   float32 images (N, 3, R, R) of the generator's size, and pivots float32 (N, L, 512) by the encoder
    """
    side = len(frames[0])
    if side < generator.resolution:
        log.info(
            f"{name}: {side}x{side}, enlarged to the generator's {generator.resolution}: it learns the blur too; "
            f"pass the photo as it was, or align it with --size {generator.resolution}"
        )
    pivots = np.stack(list(inversion.encode(encoder, frames, device=device)))
    return to_images(np.stack([resize(frame, generator.resolution) for frame in frames])), pivots


def read_tuning_set(
    source: str | os.PathLike | BinaryIO,
    generator: Generator,
    encoder: Encoder,
    find: Callable[[], Detector],
    aligned: bool = False,
    face: str | int = "largest",
    limit: int = 125,
    device: "str | torch.device" = "cpu",
) -> "tuple[torch.Tensor, np.ndarray, np.ndarray]":
    """Images, pivots and the photo for `pti.train`, from an image or clip.

    find, aligned, face   as `track` takes them
    limit                 frames of a clip to tune on
    returns               images and pivots as `tuning_set` gives them, and the first crop at its own size,
                          uint8 (S, S, 3)
    """
    with video_files.read_frames(source, limit=limit) as reader:
        tracked = track(reader, find, aligned, face)
        frame, quad, _ = next(tracked)
        photo = crop(frame, quad, None if quad is None else native_side(quad))
        side = synthesis.aligned_side(generator)
        frames = [crop(frame, quad, side), *(crop(frame, quad, side) for frame, quad, _ in tracked)]
    return *tuning_set(reader.name, generator, encoder, frames, device), photo


def draw_clip(
    generator: Generator,
    latents: Iterable[np.ndarray],
    output: str | os.PathLike | BinaryIO,
    sound: audio_files.SoundReader | None = None,
    latents_out: str | os.PathLike | BinaryIO | None = None,
    look: Photo | Film | None = None,
    code: np.ndarray | None = None,
    batch: int = 8,
    precision: str = "float32",
    labelled: bool = False,
    blink: float = 0.0,
    seed: int = 0,
    head: bool = False,
    frames: int | None = None,
    transforms: np.ndarray | None = None,
    progress: Callable[..., tqdm] = silent,
) -> int:
    """Draw latents as a video file, with the detail of a photo or film.

    latents      iterator of float32 (L, 512)
    output       as `FrameWriter` takes it; marked as synthetic
    sound        audio_files.SoundReader that goes along, or None
    latents_out  .npy to write the latents to as well, or None
    look, code   detail.Photo or dubbing.Film, and the identity's code; None for the generator's own frames
    labelled     write "synthetic" into every frame
    blink … head as `synthesis.with_detail` takes them
    frames       their number, for the progress bar
    transforms   as `synthesize` takes them, for the generator's own frames; or None
    returns      the number of frames written
    """
    with ExitStack() as stack:
        if latents_out:
            about = {"generator": generator.fingerprint, "fps": files.FPS}
            latents = stack.enter_context(files.tee_latents(latents_out, latents, about))
        if look is None:
            images = synthesis.synthesize(generator, latents, batch, precision=precision, transforms=transforms)
            metadata = {files.ALIGNED_TAG: str(generator.resolution)} if transforms is None else {}
        else:
            images = synthesis.with_detail(
                latents,
                look,
                generator,
                code,  # type: ignore[arg-type]  # a look comes with a code
                precision=precision,
                blink=blink,
                seed=seed,
                head=head,
                batch=batch,
            )
            metadata = {files.ALIGNED_TAG: str(look.frame.height)} if look.frame.quad is None else {}
        if labelled:
            images = synthesis.label(images)
        writer = stack.enter_context(video_files.FrameWriter(output, sound=sound, synthetic=True, metadata=metadata))
        for image in progress(images, frames):
            writer.write(image)
    return writer.count


def live_sound(source: str | os.PathLike | BinaryIO) -> audio_files.SoundReader:
    """Sound read as it comes, which goes along with the frames: an audio_files.SoundReader."""
    waiting = f"{source}: nothing has come for {files.PATIENCE:.0f} s; waiting"
    return audio_files.read_sound(source, keep=True, on_wait=lambda: log.info(waiting))
