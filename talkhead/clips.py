"""Clips from file to file: aligned, put back into their frames, inverted, and drawn."""

import json
import logging
import os
from contextlib import ExitStack

import numpy as np
from tqdm import tqdm

from talkhead import audio_files, faces, files, inversion, synthesis, video_files
from talkhead.detail import native_side
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images

log = logging.getLogger("talkhead")


def silent(items=None, total=None, unit="frame"):
    """A progress bar that shows nothing: the default of `progress` below, which takes any function like it."""
    return tqdm(items, total=total, unit=unit, disable=True)


def track(reader, find, aligned=False, face="largest", on_missing="fail"):
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


def crop(frame, quad, size):
    """The face in a tracked frame, uint8 (size, size, 3); an aligned frame is returned as it is."""
    return frame if quad is None else faces.crop(frame, quad, size)


def align_clip(
    source, output, find, size=256, smoothing=2.0, on_missing="fail", face="largest", quads=None, progress=silent
):
    """Crop a clip or image to its face, as FFHQ does, from file to file.

    source, output   as `read_frames` and `FrameWriter` take them
    find             function without arguments that returns a landmark detector
    size … face      as `faces.align_frames` takes them
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
            crops = ((resize(frame, size), faces.whole_quad(frame), index) for index, frame in enumerate(reader))
        else:
            detector = find()
            log.info(f"{reader.name}: landmarks by {detector.name}")
            crops = faces.align_frames(reader, detector, size, smoothing=smoothing, on_missing=on_missing, face=face)
        corners = []
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


def paste_clip(source, into, quads, output, feather=0.15, match_colour=True, progress=silent):
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
    source,
    output,
    generator,
    encoder=None,
    method="encoder",
    perceptual=None,
    log_file=None,
    log_every=10,
    progress=silent,
    **options,
):
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
        planned = inversion.planned_steps(
            method, options.get("steps", 5000), options.get("next_steps"), options.get("hybrid_steps", 500)
        )
        total = None if reader.count is None else sum(map(planned, range(reader.count)))
        partial = output + ".part" if output != "-" and (os.path.isfile(output) or not os.path.exists(output)) else None
        resumed = partial is not None and os.path.exists(partial)
        if resumed:
            log.info(f"{partial}: going on from what was done")
        with InversionLog(progress(None, total, "step"), log_file, log_every, resumed) as steps:
            options |= {"perceptual": perceptual, "partial": partial, "on_record": steps.record}
            latents = inversion.invert(reader, generator, method, encoder, **options)
            count = files.write_latents(output, steps.follow(latents, planned), about | {"perceptual": perceptual.name})
    if options.get("tolerance"):
        log.info(
            f"{steps.early} of {len(steps.taken)} frames converged early; {sum(steps.taken.values())} steps in all"
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

    def __init__(self, bar, path, log_every, resumed):
        self.bar, self.every, self.taken, self.early = bar, log_every, {}, 0
        self.log = path and self._open(path, "r+" if resumed and os.path.exists(path) else "w+")

    @staticmethod
    def _open(path, mode):
        with files.os_errors_in_one_line(path):
            return open(path, mode, encoding="utf-8")

    def record(self, record):
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

    def follow(self, latents, planned):
        """Pass latents on; the bar's total shrinks by the steps that they did not take."""
        for frame, latent in enumerate(latents):
            saved = planned(frame) - self.taken.get(frame, 0)
            self.early += 0 < saved < planned(frame)
            if self.bar.total is not None:
                self.bar.total -= saved
            yield latent

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.log is not None:
            self.log.close()


def tuning_set(name, generator, encoder, frames, device="cpu"):
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


def read_tuning_set(source, generator, encoder, find, aligned=False, face="largest", limit=125, device="cpu"):
    """Images, pivots and the photo for `pti.train`, from an image or clip.

    find, aligned, face   as `track` takes them
    limit                 frames of a clip to tune on
    returns               images and pivots as `tuning_set` gives them, and the first crop at its own size, uint8 (S, S, 3)
    """
    with video_files.read_frames(source, limit=limit) as reader:
        tracked = track(reader, find, aligned, face)
        frame, quad, _ = next(tracked)
        photo = crop(frame, quad, None if quad is None else native_side(quad))
        side = synthesis.aligned_side(generator)
        frames = [crop(frame, quad, side), *(crop(frame, quad, side) for frame, quad, _ in tracked)]
    return *tuning_set(reader.name, generator, encoder, frames, device), photo


def draw_clip(
    generator,
    latents,
    output,
    sound=None,
    latents_out=None,
    look=None,
    code=None,
    batch=8,
    precision="float32",
    labelled=False,
    blink=0.0,
    seed=0,
    head=False,
    frames=None,
    progress=silent,
):
    """Draw latents as a video file, with the detail of a photo or film.

    latents      iterator of float32 (L, 512)
    output       as `FrameWriter` takes it; marked as synthetic
    sound        audio_files.SoundReader that goes along, or None
    latents_out  .npy to write the latents to as well, or None
    look, code   detail.Photo or dubbing.Film, and the identity's code; None for the generator's own frames
    labelled     write "synthetic" into every frame
    blink … head as `synthesis.with_detail` takes them
    frames       their number, for the progress bar
    returns      the number of frames written
    """
    with ExitStack() as stack:
        if latents_out:
            about = {"generator": generator.fingerprint, "fps": files.FPS}
            latents = stack.enter_context(files.tee_latents(latents_out, latents, about))
        images = synthesis.synthesize(generator, latents, batch, precision=precision)
        metadata = {files.ALIGNED_TAG: str(generator.resolution)}
        if look is not None:
            images = synthesis.with_detail(
                images, look, generator, code, precision=precision, blink=blink, seed=seed, head=head, batch=batch
            )
            metadata = {files.ALIGNED_TAG: str(look.frame.height)} if look.frame.quad is None else {}
        if labelled:
            images = synthesis.label(images)
        writer = stack.enter_context(video_files.FrameWriter(output, sound=sound, synthetic=True, metadata=metadata))
        for image in progress(images, frames):
            writer.write(image)
    return writer.count


def live_sound(source):
    """Sound read as it comes, which goes along with the frames: an audio_files.SoundReader."""
    waiting = f"{source}: nothing has come for {files.PATIENCE:.0f} s; waiting"
    return audio_files.read_sound(source, keep=True, on_wait=lambda: log.info(waiting))
