"""Sound from recordings, clips and pipes, and to WAV."""

import wave
from contextlib import ExitStack

import numpy as np

from talkhead.containers import Decoder, Media, PushQueue, open_source
from talkhead.errors import TalkheadError
from talkhead.files import Source, atomic, name_of

CANCELLED = 0.1  # of the louder channel's amplitude: a mix of two voices, or of one and silence, is louder
AUDIBLE = 0.1  # sum of squares of samples: what speech has after a hundredth of a second, and hiss after hours


class _Mix:
    """One channel out of blocks of one or two: their mean, or the louder one where they cancel each other (one cable was crossed).

    tell  called with a message when the first such block comes
    """

    def __init__(self, tell):
        self._tell, self._taken, self._energy = tell, None, np.zeros(3)  # of left, right and their mean, up to now

    def __call__(self, block):
        mean = block.mean(axis=0)
        if len(block) == 1 or self._taken is not None:
            return mean if len(block) == 1 else block[self._taken]
        self._energy += (np.vstack([block, mean]) ** 2).sum(axis=1)
        if self._energy[2] < CANCELLED**2 * self._energy[:2].max() > AUDIBLE:
            self._taken = int(self._energy[1] > self._energy[0])
            self._tell(f"left and right cancel each other; the {('left', 'right')[self._taken]} channel is taken")
            return block[self._taken]
        return mean


class SoundReader:
    """The sound of a file or a pipe, block after block as it comes: iterate once, and close it (or use `with`). Memory stays flat.

    name      what the source is called in messages
    rate      int, samples per second of the blocks
    live      bool: it comes through a pipe, whose writer may be slow
    count     how many samples there are to be, by what the source says of itself; None where it does not
    yields    float32 (n,) in [-1, 1]: all channels mixed to one

    A FrameWriter may take it as its sound: then pass keep=True, and it gets what was read.
    """

    channels = 1

    def __init__(self, source, sample_rate=16000, keep=False, on_wait=None):
        self.name, self.rate, self.count = name_of(source), int(sample_rate), None
        self._kept = PushQueue(1) if keep else None
        self._stack = ExitStack()
        self._media = self._decoder = None
        self._input = self._stack.enter_context(open_source(source, on_wait))
        self.live = isinstance(self._input, Source) and self._input.live
        if self.live:
            self._input.widen()  # and it is opened when it is first read: until its head has come, there is other work to do
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
        # As 32-bit integers: for them FFmpeg scales a mix so that it cannot clip, for floats it does not.
        layout = "stereo" if media.audio.codec_context.channels == 2 else "mono"
        self._decoder = Decoder(media, start, end, self.rate, layout, "s32p")
        self._mix = _Mix(media.tell)
        if end is not None:
            self.count = max(round((end - (media.origin if start is None else start)) * self.rate), 0)

    def _decoded(self):
        if self._media is None:
            self._open()
        heard = False
        for packet in self._media.packets(pictures=False):
            for block in self._decoder.decode(packet):
                heard = True
                yield self._mix(block / np.float64(2**31)).astype(np.float32)
        if not heard:
            raise TalkheadError(f"{self.name}: its sound track is empty; pass a recording")

    def __iter__(self):
        return self

    def __next__(self):
        block = next(self._blocks)
        if self._kept is not None:
            self._kept.push(_to_int16(block)[None])
        return block

    def take(self, count, wait=False):
        """The next samples, int16 (n, 1): `count`, or fewer if it ends before. What has not been read by then is read."""
        assert self._kept is not None, "pass keep=True"
        while self._kept.size < count and next(self, None) is not None:
            pass
        return self._kept.take(count)

    def close(self):
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_sound(source, sample_rate=16000, keep=False, on_wait=None):
    """Open a sound for reading as it comes.

    source       path, "-" or binary stream: any sound or video file. A path may be that of a pipe or a device
    sample_rate  samples per second of the blocks
    keep         keep what was read, for a FrameWriter to take
    on_wait      called without arguments when a pipe has brought nothing for 5 seconds
    returns      SoundReader
    raises       TalkheadError if it is missing, has no sound track or an empty one, or is cut short: at once for a file,
                 else while reading
    """
    return SoundReader(source, sample_rate, keep, on_wait)


def read_audio(source, sample_rate=16000):
    """Read speech from any sound or video file, all of it.

    source       path, "-" or binary stream
    sample_rate  samples per second of the result
    returns      float32 (N,) in [-1, 1]: all channels mixed to one. In a file with pictures, sample 0 is heard when the
                 first picture is shown
    warns        where it was mended: damaged parts become silence, a clock that starts again goes on, of two channels that cancel
                 each other one is taken
    raises       TalkheadError if it is missing, has no sound track or an empty one, or is cut short
    """
    with read_sound(source, sample_rate) as sound:
        return np.concatenate(list(sound))


def _to_int16(samples):
    return np.rint(samples * 32768.0).clip(-32768, 32767).astype(np.int16)


def write_audio(path, audio, sample_rate=16000):
    """Write speech as a .wav of 16-bit samples.

    audio    float (N,) in [-1, 1]; louder samples are clipped
    raises   TalkheadError if the file cannot be written
    """
    samples = np.rint(np.asarray(audio) * 32768.0).clip(-32768, 32767).astype("<i2")
    with atomic(path) as temporary, wave.open(str(temporary), "wb") as stream:
        stream.setparams((1, 2, sample_rate, len(samples), "NONE", ""))
        stream.writeframes(samples.tobytes())


class SampleBlocks:
    """Samples in memory, taken as a Sound's are."""

    def __init__(self, samples, rate):
        samples = np.asarray(samples)
        samples = samples[:, None] if samples.ndim == 1 else samples  # (N, channels)
        assert samples.shape[1] in (1, 2), samples.shape
        if samples.dtype != np.int16:
            samples = _to_int16(samples)
        self._samples, self._position = samples, 0
        self.rate, self.channels = int(rate), samples.shape[1]

    def take(self, count, wait=False):
        start, self._position = self._position, self._position + count
        return self._samples[start : start + count]
