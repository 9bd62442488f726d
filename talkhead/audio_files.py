"""Audio files: reading from recordings, video clips and pipes, writing WAV."""

import io
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np
import soundfile

from talkhead.containers import Decoder, Media, PushQueue, open_source
from talkhead.errors import TalkheadError
from talkhead.files import Source, atomic, name_of

# Stereo channels cancel if the amplitude of their mean is below this part of the louder channel's; a mix of two voices,
# or of one voice and silence, is louder.
CANCELLED_RATIO = 0.1
AUDIBLE_ENERGY = 0.1  # sum of squared samples; speech reaches it in 0.01 s, noise only after hours


class _Mix:
    """Mono mix of one or two channels: their mean, or the louder one if they cancel (inverted polarity).

    warn  called with a message at the first block that cancels
    """

    def __init__(self, warn):
        self._warn, self._taken, self._energy = warn, None, np.zeros(3)  # energy so far of left, right and mean

    def __call__(self, block):
        mean = block.mean(axis=0)
        if len(block) == 1 or self._taken is not None:
            return mean if len(block) == 1 else block[self._taken]
        self._energy += (np.vstack([block, mean]) ** 2).sum(axis=1)
        if self._energy[2] < CANCELLED_RATIO**2 * self._energy[:2].max() > AUDIBLE_ENERGY:
            self._taken = int(self._energy[1] > self._energy[0])
            self._warn(f"left and right cancel each other; the {('left', 'right')[self._taken]} channel is taken")
            return block[self._taken]
        return mean


class SoundReader:
    """Iterator over blocks of audio from a file or pipe, in constant memory. Iterate once; close it or use `with`.

    name      name of the source in messages
    rate      int, samples per second of the blocks
    live      bool: the source is a pipe, whose writer may be slow
    count     number of samples by the file's header; None if it has none
    yields    float32 (n,) in [-1, 1]: all channels mixed to one

    With keep=True it can be the `sound` of a FrameWriter, which takes the samples read.
    """

    channels = 1

    def __init__(
        self,
        source: str | os.PathLike | BinaryIO,
        sample_rate: int = 16000,
        keep: bool = False,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.rate, self.count = name_of(source), int(sample_rate), None
        self._kept = PushQueue(1) if keep else None
        self._stack = ExitStack()
        self._media = self._decoder = None
        self._input = self._stack.enter_context(open_source(source, on_wait))
        self.live = isinstance(self._input, Source) and self._input.live
        if isinstance(self._input, Source) and self.live:
            self._input.widen()  # opened at the first read, because opening waits for the header
        else:
            with ExitStack() as undo:
                undo.push(self._stack)
                self._open()
                undo.pop_all()
        self._blocks = self._decoded()

    def _open(self):
        media = self._media = self._stack.enter_context(Media(self._input, self.name))
        if media.audio is None:
            raise TalkheadError(f"{self.name}: has no sound track; pass a recording")
        start, end = media.origin if media.video else None, media.end(media.audio)
        # FFmpeg scales a mix of 32-bit integers so that it cannot clip; a mix of floats it does not scale.
        layout = "stereo" if media.audio.codec_context.channels == 2 else "mono"
        self._decoder = Decoder(media, start, end, self.rate, layout, "s32p")
        self._mix = _Mix(media.warn)
        if end is not None:
            self.count = max(round((end - (media.origin if start is None else start)) * self.rate), 0)

    def _decoded(self):
        if self._media is None:
            self._open()
        empty = True
        for packet in self._media.packets(video=False):
            for block in self._decoder.decode(packet):
                empty = False
                yield self._mix(block / np.float64(2**31)).astype(np.float32)
        if empty:
            raise TalkheadError(f"{self.name}: its sound track is empty; pass a recording")

    def __iter__(self) -> "SoundReader":
        return self

    def __next__(self) -> np.ndarray:
        block = next(self._blocks)
        if self._kept is not None:
            self._kept.push(_to_int16(block)[None])
        return block

    def take(self, count: int, wait: bool = False) -> np.ndarray:
        """Take the next `count` samples, int16 (n, 1), reading on if needed; fewer at the end."""
        assert self._kept is not None, "pass keep=True"
        while self._kept.size < count and next(self, None) is not None:
            pass
        return self._kept.take(count)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_sound(
    source: str | os.PathLike | BinaryIO,
    sample_rate: int = 16000,
    keep: bool = False,
    on_wait: Callable[[], None] | None = None,
) -> SoundReader:
    """Open audio for reading block by block.

    source       path, "-" or binary stream of any audio or video file. The path may be that of a pipe or a device
    sample_rate  samples per second of the blocks
    keep         keep the samples read, for a FrameWriter to take
    on_wait      called without arguments each time that a pipe brings no data for 5 seconds
    returns      SoundReader
    raises       TalkheadError if it is missing, has no audio track or an empty one, or is cut short; for a file at
                 once, else while reading
    """
    return SoundReader(source, sample_rate, keep, on_wait)


def read_audio(source: str | os.PathLike | BinaryIO, sample_rate: int = 16000) -> np.ndarray:
    """Read all audio of any audio or video file.

    source       path, "-" or binary stream
    sample_rate  samples per second of the result
    returns      float32 (N,) in [-1, 1]: all channels mixed to one. In a video file, sample 0 is at the time of the
                 first frame
    warns        if it was repaired: damaged parts become silence, parts whose clock starts again are joined, of two
                 channels that cancel each other one is used
    raises       TalkheadError if it is missing, has no audio track or an empty one, or is cut short
    """
    with read_sound(source, sample_rate) as sound:
        return np.concatenate(list(sound))


def _to_int16(samples):
    return np.rint(samples * 32768.0).clip(-32768, 32767).astype(np.int16)


def write_audio(path: str | os.PathLike, audio: np.ndarray, sample_rate: int = 16000) -> None:
    """Write mono audio as a 16-bit .wav.

    audio    float (N,) in [-1, 1]; louder samples are clipped
    raises   TalkheadError if the file cannot be written
    """
    samples = np.rint(np.asarray(audio) * 32768.0).clip(-32768, 32767).astype(np.int16)
    wav = io.BytesIO()
    soundfile.write(wav, samples, sample_rate, "PCM_16", format="WAV")
    with atomic(path) as temporary:
        temporary.write_bytes(wav.getbuffer())


class SampleBlocks:
    """Audio samples in memory, with the interface of `Sound`."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        samples = np.asarray(samples)
        samples = samples[:, None] if samples.ndim == 1 else samples  # (N, channels)
        assert samples.shape[1] in (1, 2), samples.shape
        if samples.dtype != np.int16:
            samples = _to_int16(samples)
        self._samples, self._position = samples, 0
        self.rate, self.channels = int(rate), samples.shape[1]

    def take(self, count: int, wait: bool = False) -> np.ndarray:
        start, self._position = self._position, self._position + count
        return self._samples[start : start + count]
