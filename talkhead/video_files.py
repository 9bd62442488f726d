"""Video files: reading and writing frames of clips, images, folders of images and pipes."""

import os
from collections import deque
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from talkhead import image_files
from talkhead.audio_files import SampleBlocks, SoundReader
from talkhead.containers import Media, Sound, open_source
from talkhead.errors import TalkheadError
from talkhead.files import (
    ALIGNED_TAG,
    FPS,
    STREAM_TAG,
    SYNTHETIC_TYPE,
    Sink,
    Source,
    find,
    is_path,
    name_of,
    os_errors_in_one_line,
    placed,
    reading,
)
from talkhead.image_files import (
    IMAGE_FORMATS,
    PICTURES,
    SCALER,
    image_errors,
    image_tags,
    open_picture,
    read_image,
    read_with_tags,
    rgb_of_frame,
    save_image,
    text_tags,
    to_rgb,
)

VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # written
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # Hz
MAX_SIDE = 16384  # pixels, x264's limit
KEYFRAME_INTERVAL = 10  # frames, on a pipe


def _is_picture(opened):
    """True if an input from `open_source` is an image for Pillow."""
    if isinstance(opened, Source):
        return image_files.is_picture(opened.look)
    with open(opened, "rb") as stream:

        def look(position, count):
            stream.seek(position)
            return stream.read(count)

        return image_files.is_picture(look)


def _deinterlaced(timed, warn):
    """Deinterlace the frames flagged as interlaced with FFmpeg's filter yadif; pass the others through.

    timed   iterable of (time, duration, frame)
    warn    called with a message at the first interlaced frame
    """
    graph, setup, waiting = None, None, deque()

    def filtered(frame):
        graph.push(frame)
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                progressive = graph.pull()
                yield *waiting.popleft(), progressive

    for time, lasts, frame in timed:
        found = frame.width, frame.height, frame.format.name
        if graph is not None and found != setup:
            yield from filtered(None)
            graph = None
        if graph is None and (not frame.interlaced_frame or min(found[:2]) < 3):  # yadif needs three rows
            yield time, lasts, frame
            continue
        if graph is None:
            warn("interlaced; deinterlaced by yadif")
            graph, setup = av.filter.Graph(), found
            graph.link_nodes(
                graph.add_buffer(template=frame, time_base=frame.time_base),
                graph.add("yadif", "deint=interlaced"),
                graph.add("buffersink"),
            ).configure()
        waiting.append((time, lasts))
        yield from filtered(frame)
    if graph is not None:
        yield from filtered(None)


def _resample(timed, fps):
    """Drop and repeat frames to a constant rate, like FFmpeg's filter "fps".

    timed   iterable of (time, duration, frame), Fraction seconds from the first frame
    fps     Fraction
    yields  frames: the n-th is the last whose time, rounded to whole output frames, is not after n
    """
    held, count, end = None, 0, Fraction(0)
    for time, duration, frame in timed:
        due = _round(time * fps)
        while held is not None and count < due:
            yield held
            count += 1
        held, end = frame, time + duration
    while held is not None and count < max(_round(end * fps), 1):
        yield held
        count += 1


def _round(value):
    return int(value + Fraction(1, 2)) if value >= 0 else -int(Fraction(1, 2) - value)  # half away from zero, as FFmpeg


class FrameReader:
    """Iterator over the frames of a clip; iterate once, and close it (or use `with`).

    name        name of the source in messages
    fps         float, frames per second of this iterator
    source_fps  float, frames per second of the source
    codec       video codec or image format: "h264", "mpeg1video", "png"
    size        (H, W) of every frame
    count       number of frames by the file's header; None if unknown
    metadata    dict[str, str]: the container's tags, or a PNG's text
    aligned     bool: the frames are crops by talkhead, which need no alignment
    synthetic   bool: it carries the IPTC mark of media made by a trained model
    sound       Sound or None; must be accessed before the first frame is read, else the audio is not kept
    yields      uint8 (H, W, 3) RGB
    """

    count: int | None

    def __init__(self, source: str | os.PathLike | BinaryIO, fps: float = FPS, limit: int | None = None) -> None:
        self.fps = float(fps)
        self.name = name_of(source)
        self._left = limit
        self._media = None
        self._stack = ExitStack()
        self._wants_sound = self._begun = False
        path = Path(source) if is_path(source) else None
        if path is not None and path.is_dir():
            names = sorted(find(path, PICTURES), key=_order)
            if not names:
                raise TalkheadError(f"{path}: a folder without images; pass one with PNG or JPEG files")
            self._open_folder(names)
        else:
            with ExitStack() as undo:
                undo.push(self._stack)
                opened = self._stack.enter_context(open_source(source))
                if path is not None and path.suffix.lower() in PICTURES or _is_picture(opened):
                    self._open_image(opened)
                else:
                    self._open_media(opened)
                undo.pop_all()
        self.aligned = ALIGNED_TAG in self.metadata
        self.synthetic = SYNTHETIC_TYPE in self.metadata.values()
        if limit is not None and self.count is not None:
            self.count = min(self.count, limit)

    def _open_folder(self, names):
        self.source_fps, self.count, self.codec = self.fps, len(names), names[0].suffix.lower()[1:]
        first, self.metadata = read_with_tags(names[0])
        self.size = first.shape[:2]
        self._frames = self._folder(names, first)

    def _open_image(self, opened):
        with image_errors(self.name):
            image = open_picture(
                self._stack.enter_context(reading(opened)) if isinstance(opened, Path) else opened, self.name
            )
            timed = image_files.moving(image)
            first = next(timed)
            self.metadata, self.size = text_tags(image), to_rgb(image).shape[:2]
        self.codec = (image.format or "heic").lower()
        lasts = first[1]
        self.count, self.source_fps = (None, float(1 / lasts)) if lasts else (1, self.fps)
        self._frames = self._animation(to_rgb(image), timed, lasts)

    def _animation(self, first, timed, lasts):
        def as_rgb():
            yield Fraction(0), lasts, first
            for time, duration, image in timed:
                yield time, duration, to_rgb(image)

        with image_errors(self.name):
            for frame in _resample(as_rgb(), Fraction(self.fps).limit_denominator(1001)):
                yield frame.copy()  # it may be repeated, and the caller may change it

    def _folder(self, names, first):
        yield first
        for name in names[1:]:
            image = read_image(name)
            if image.shape[:2] != self.size:
                raise TalkheadError(f"{name}: is {_size(image)}, the first image is {_size(first)}; make them equal")
            yield image

    def _open_media(self, opened):
        media = self._media = self._stack.enter_context(Media(opened, self.name))
        if media.video is None:
            raise TalkheadError(f"{self.name}: has no video track; pass a video")
        media.begin()
        timed = _deinterlaced(media.frames(), media.warn)
        first = next(timed, None)
        if first is None:
            raise TalkheadError(f"{self.name}: holds no readable frame; pass a complete video")
        self.metadata, self.codec = media.metadata, media.video.codec_context.name
        self.source_fps = float(media.video.average_rate or media.video.guessed_rate or self.fps)
        seconds = media.video.duration and media.video.duration * media.video.time_base
        self.count = round(seconds * self.fps) if seconds else None
        self._aspect = media.video.sample_aspect_ratio
        self._scaler = VideoReformatter()
        self.size = rgb_of_frame(first[2], self._aspect, self._scaler).shape[:2]
        self._frames = self._decoded(first, timed)

    def _decoded(self, first, timed):
        for frame in _resample(chain([first], timed), Fraction(self.fps).limit_denominator(1001)):
            # Converted anew for a repeated frame too: the caller may change it.
            image = rgb_of_frame(frame, self._aspect, self._scaler)
            if image.shape[:2] != self.size:
                raise TalkheadError(f"{self.name}: its frames change size; cut it where they do")
            yield image

    @property
    def sound(self) -> Sound | None:
        if self._media is None:
            return None
        assert self._wants_sound or not self._begun, "ask for the sound before the first frame"
        self._wants_sound = True
        return self._media.sound

    def __iter__(self) -> "FrameReader":
        return self

    def __next__(self) -> np.ndarray:
        self._begun = True
        if self._media is not None and not self._wants_sound:
            self._media.sound = None  # not wanted: do not keep it
        if self._left is not None:
            if self._left <= 0:
                raise StopIteration
            self._left -= 1
        return next(self._frames)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _order(path):
    """Sort key of frame files: by number, so that 10.png follows 9.png; others by name."""
    return (0, int(path.stem), "") if path.stem.isdecimal() else (1, 0, path.name)


def _size(image):
    return f"{image.shape[1]}x{image.shape[0]}"


def read_frames(source: str | os.PathLike | BinaryIO, fps: float = FPS, limit: int | None = None) -> FrameReader:
    """Open a clip for reading frames.

    source   any video file, folder of images in the order of their names, still or animated image, "-" or a binary
             stream
    fps      frames per second wanted: frames are dropped or repeated by their time stamps
    limit    number of frames after which to stop
    returns  FrameReader
    warns    if it was repaired (a damaged frame is replaced by the one before, parts whose clock starts again are
             joined, interlaced frames are deinterlaced), and of HDR
    raises   TalkheadError if it is missing, empty, has no frames or cannot be read; while reading, if it was cut short

    Source: thesis §3.3.1.1 (25 fps by dropping frames).
    """
    return FrameReader(source, fps, limit)


def describe(source: str | os.PathLike | BinaryIO) -> dict:
    """Size, rate, sound and marks of an image or a clip, which is not decoded whole.

    source   as `read_frames` takes it
    returns  dict: file, codec, width and height in pixels, fps of the source, seconds (both None for one image, seconds
             where the header does not tell), sound (bool), aligned (bool: cropped by talkhead), synthetic (bool: it
             carries the IPTC mark of media made by a trained model), software (None if it does not tell)
    """
    with read_frames(source) as reader:
        is_clip = reader.count != 1
        return {
            "file": reader.name,
            "codec": reader.codec,
            "width": reader.size[1],
            "height": reader.size[0],
            "fps": round(reader.source_fps, 3) if is_clip else None,
            "seconds": round(reader.count / reader.fps, 2) if is_clip and reader.count else None,
            "sound": reader.sound is not None,
            "aligned": reader.aligned,
            "synthetic": reader.synthetic,
            "software": reader.metadata.get("software"),
        }


class FrameWriter:
    """Writer of frames with an audio track; use `with`. The file is complete when the block ends, removed if it raises.

    destination  "-" (or a binary stream): fragmented MP4, lossless RGB H.264 and FLAC. x.mp4 .mov .mkv: H.264 yuv420p
                 and AAC, odd sizes padded by a row or column. x.png .jpg: one frame. Other names: a new folder of PNGs,
                 000000.png, …
    fps          frames per second
    sound        None, (samples float32 (N,), (N, 1) or (N, 2) in [-1, 1], rate), the Sound of a FrameReader, or a
                 SoundReader with keep=True. Cut, or padded with silence, to end with the frames
    metadata     dict[str, str], tags of the container or text of the PNGs
    synthetic    add the IPTC mark of media made by a trained model
    lossless     None: on a pipe only
    raises       TalkheadError if it cannot be written, gets no frame, or frames of different size; BrokenPipeError if
                 the reader of a pipe has closed it
    """

    def __init__(
        self,
        destination: str | os.PathLike | BinaryIO,
        fps: float = FPS,
        sound: tuple[np.ndarray, int] | Sound | SoundReader | None = None,
        metadata: dict[str, str] | None = None,
        synthetic: bool = False,
        lossless: bool | None = None,
    ) -> None:
        self.name = name_of(destination)
        self._destination = destination
        tags = image_tags(metadata, synthetic)
        self._output: _VideoOutput | _ImageOutput | _FolderOutput
        suffix = Path(destination).suffix.lower() if is_path(destination) else None
        if not is_path(destination):
            self._output = _VideoOutput(
                self.name, "mp4", fps, sound, {**tags, STREAM_TAG: "1"}, lossless is not False, piped=True
            )
        elif suffix in VIDEO_FORMATS:
            self._output = _VideoOutput(self.name, VIDEO_FORMATS[suffix], fps, sound, tags, bool(lossless))
        elif suffix in IMAGE_FORMATS:
            self._output = _ImageOutput(self.name, IMAGE_FORMATS[suffix], tags)
        elif suffix == "" or str(destination)[-1:] in (os.sep, os.altsep) or Path(destination).is_dir():
            self._output = _FolderOutput(tags)
        else:
            raise TalkheadError(
                f"{self.name}: cannot write {suffix}; end the name in .mp4, .png or .jpg, or name a folder"
            )
        self.count = 0
        self._size: tuple[int, ...] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "FrameWriter":
        with ExitStack() as stack, os_errors_in_one_line(self.name):
            place: Path | Sink
            if is_path(self._destination):
                place = stack.enter_context(placed(self._destination, self._output.folder))
            else:
                place = Sink(self._destination)  # type: ignore[arg-type]  # no path
            self._output.open(place)
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Add one frame, uint8 (H, W, 3) RGB, of the first frame's size."""
        frame = np.asarray(frame)
        assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3, (frame.dtype, frame.shape)
        self._size = self._size or frame.shape
        if frame.shape != self._size:
            raise TalkheadError(
                f"{self.name}, frame {self.count}: the size changes to {_size(frame)}; make all frames equal"
            )
        with os_errors_in_one_line(self.name):
            self._output.write(frame)
        self.count += 1

    def _finish(self, kind, error, trace):
        whole = kind is None and self.count > 0
        with os_errors_in_one_line(self.name):
            self._output.close(whole)
        if kind is None and not whole:
            raise TalkheadError(f"{self.name}: no frames to write; check the input")

    def __exit__(self, *error):
        return self._stack.__exit__(*error)


class _ImageOutput:
    """Output of one image file."""

    folder = False

    def __init__(self, name, format, tags):
        self._name, self._format, self._tags = name, format, tags
        self._place, self._count = None, 0

    def open(self, place):
        self._place = place
        place.touch()  # an unwritable path fails before the work is done

    def write(self, frame):
        if self._count:
            raise TalkheadError(f"{self._name}: more than one frame for one image; name an .mp4 or a folder")
        with open(self._place, "wb") as stream:
            save_image(stream, frame, self._format, self._tags)
        self._count += 1

    def close(self, whole):
        pass


class _FolderOutput:
    """Output of a folder of numbered PNGs."""

    folder = True

    def __init__(self, tags):
        self._tags = tags
        self._place, self._count = None, 0

    def open(self, place):
        self._place = place
        place.mkdir()

    def write(self, frame):
        with open(self._place / f"{self._count:06}.png", "wb") as stream:
            save_image(stream, frame, "PNG", self._tags)
        self._count += 1

    def close(self, whole):
        pass


class _VideoOutput:
    """Output of a container with H.264 video and, interleaved with it, audio."""

    folder = False

    def __init__(self, name, format, fps, sound, tags, lossless, piped=False):
        self._name = name
        self._format, self._tags, self._lossless, self._piped = format, tags, lossless, piped
        self._fps = Fraction(fps).limit_denominator(1001)
        self._sound = SampleBlocks(*sound) if isinstance(sound, tuple) else sound
        self._count = self._samples = 0  # frames and samples written
        self._video = self._audio = None
        self._scaler = VideoReformatter()

    def open(self, place):
        # use_metadata_tags keeps tags that MP4 has no box for. On a pipe, each frame is a fragment that is written as
        # soon as its audio is there, and no header is rewritten at the end.
        flags = "empty_moov+default_base_moof" if self._piped else "faststart"
        options = {"movflags": f"{flags}+use_metadata_tags"} if self._format != "matroska" else {}
        options |= {"frag_duration": "1", "flush_packets": "1", "max_interleave_delta": "1"} if self._piped else {}
        self._sink = place if isinstance(place, Sink) else None
        self._container = av.open(self._sink or f"file:{place}", "w", format=self._format, options=options)
        self._container.metadata.update(self._tags)

    def _start(self, height, width):
        if max(height, width) > MAX_SIDE:
            raise TalkheadError(
                f"{self._name}: frames of {width}x{height} are too large for a video, at most {MAX_SIDE} pixels a "
                "side; make them smaller"
            )
        if self._lossless:
            # On a pipe, no frame may wait for the next; lossless files use the same settings.
            options = {"qp": "0", "preset": "ultrafast", "tune": "zerolatency"}
            video = self._container.add_stream("libx264rgb", rate=self._fps, options=options)
            video.pix_fmt = "rgb24"
            video.codec_context.gop_size = KEYFRAME_INTERVAL
        else:
            width, height = width + width % 2, height + height % 2
            video = self._container.add_stream("libx264", rate=self._fps, options={"crf": "16"})
            video.pix_fmt = "yuv420p"
            context = video.codec_context
            # 1: BT.709, set explicitly because players guess by size
            context.colorspace = context.color_primaries = context.color_trc = 1
            context.color_range = 1  # 16-235
        video.width, video.height = width, height
        video.codec_context.time_base = 1 / self._fps
        self._video = video
        if self._sound is not None:
            self._audio = self._add_sound(self._sound.rate, "mono" if self._sound.channels == 1 else "stereo")

    def _add_sound(self, rate, layout):
        codec = "flac" if self._lossless else "aac"
        if not self._lossless and rate not in AAC_RATES:
            rate = min((r for r in AAC_RATES if r > rate), default=max(AAC_RATES))
        # FLAC's level 0 has short blocks, so that a frame's audio can be written with it.
        audio = self._container.add_stream(
            codec, rate=rate, options={"compression_level": "0"} if self._lossless else {}
        )
        audio.codec_context.layout = layout
        audio.codec_context.time_base = Fraction(1, rate)
        if self._lossless:
            audio.codec_context.format = "s16"
        else:
            audio.codec_context.bit_rate = (64_000 if rate <= 24_000 else 96_000) * self._sound.channels
        return audio

    def write(self, frame):
        if self._video is None:
            self._start(*frame.shape[:2])
        if self._lossless:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        else:
            odd = [(0, self._video.height - frame.shape[0]), (0, self._video.width - frame.shape[1]), (0, 0)]
            image = av.VideoFrame.from_ndarray(np.pad(frame, odd, mode="edge"), format="rgb24")
            image = self._scaler.reformat(
                image, format="yuv420p", dst_colorspace="itu709", dst_color_range=1, interpolation=SCALER, threads=1
            )
        image.pts, image.time_base = self._count, 1 / self._fps
        image.duration = 1
        self._mux(self._video.encode(image))
        self._count += 1
        self._write_audio(wait=False)

    def _write_audio(self, wait):
        """Write the audio of the frames written so far, if already available; with `wait`, to the last sample."""
        if self._audio is None:
            return
        rate = self._sound.rate
        wanted = round(self._count / self._fps * rate) - self._samples
        samples = self._sound.take(wanted, wait)
        if wait and len(samples) < wanted:
            silence = np.zeros((wanted - len(samples), self._sound.channels), np.int16)
            samples = np.concatenate([samples, silence])
        if len(samples) == 0:
            return
        interleaved = np.ascontiguousarray(samples).reshape(1, -1)
        block = av.AudioFrame.from_ndarray(
            interleaved, format="s16", layout="mono" if self._sound.channels == 1 else "stereo"
        )
        block.sample_rate, block.time_base, block.pts = rate, Fraction(1, rate), self._samples
        self._samples += len(samples)
        self._mux(self._audio.encode(block))

    def _mux(self, packets):
        for packet in packets:
            self._container.mux(packet)
        if self._sink is not None:
            self._sink.check()

    def close(self, whole):
        if not whole:
            if self._sink is not None:
                self._sink.cut = True  # the reader must see that the end is missing
            with suppress(av.error.FFmpegError, OSError):
                self._container.close()
            return
        try:
            self._write_audio(wait=True)
            self._mux(self._video.encode(None))
            if self._audio is not None:
                self._mux(self._audio.encode(None))
            self._container.close()
        except BaseException:
            self.close(False)  # Windows removes no open file
            raise
        if self._sink is not None:
            self._sink.check()
