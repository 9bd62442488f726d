"""MFCC features, in one window per video frame, and audio augmentation.

Features are causal up to the look-ahead of a window: those of the first minute do not depend on the second. So audio
can be streamed, and a long recording needs memory only for its twelve coefficients every 10 ms.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np
from python_speech_features import get_filterbanks, lifter
from python_speech_features.sigproc import powspec
from scipy.fft import dct

from talkhead.errors import TalkheadError

SAMPLE_RATE = 16000  # Hz
FPS = 25  # video frames per second
STEPS_PER_FRAME = 4  # feature steps per video frame
WINDOW = 28  # feature steps per window: 280 ms, seven video frames
COEFFICIENTS = 12  # the 2nd to the 13th
SPEECH_LEVEL = -20.0  # dB, mean mel energy of ordinary speech: the initial estimate of a recording's level
MIN_LEVEL = -60.0  # dB; a recording that is never louder counts as silence
LEVEL_DECAY = 2.0  # dB per second
FLOOR = -40.0  # dB, relative to the speech level
FILTERS = 26  # mel filters, from 0 Hz to 8 kHz

_FRAME = 400  # samples, 25 ms
_HOP = 160  # samples, 10 ms
_FFT = 512
_PRE_EMPHASIS = 0.97
_LIFTER = 22
_SMOOTHING = 5  # steps, longer than a click and shorter than a vowel
_BLOCK = 1000  # steps per FFT call


def num_frames(audio: np.ndarray) -> int:
    """Number of video frames at 25 fps of a recording, the last possibly incomplete: ceil(25 · N / 16000).

    audio    float (N,) at 16 kHz
    """
    return -(-len(audio) * FPS // SAMPLE_RATE)


def mfcc(audio: np.ndarray, floor: float | None = FLOOR) -> np.ndarray:
    """Mel-frequency cepstral coefficients at 100 Hz.

    audio    float (N,) at 16 kHz, mono, in [-1, 1]; NaN counts as silence
    floor    dB relative to the speech level below which audio counts as silence. None: plain features, as those of
             python_speech_features
    returns  float32 (M, 12), M = 1 + ceil((N - 400) / 160); step m covers 25 ms from 10·m ms. All zero in silence
    raises   TalkheadError unless audio is one row of samples

    Source: thesis §4.3.3: 13 coefficients at 100 Hz, of which the last 12 are used.
    Departure: because of the logarithm, plain features of digital silence and of the empty half of a telephone's
    spectrum are rounding noise. Here the mean of every 25 ms is subtracted, and a floor is added to the mel energies,
    40 dB below the loudest speech so far (which decays by 2 dB per second). So pauses have the same features in loud
    and in soft recordings; above the floor the features are the plain ones.
    """
    samples = np.asarray(audio)
    if samples.ndim != 1 or not len(samples):
        raise TalkheadError(f"audio: has shape {samples.shape}, wanted one row of samples; mix the channels to mono")
    return np.concatenate(list(stream_mfcc([samples], floor)))


def log_mel(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Stream log-mel energies at 100 Hz, relative to the floor of `mfcc`.

    blocks   iterator of float (n,), the next samples at 16 kHz, mono, in [-1, 1]; NaN counts as silence
    yields   float32 (m, 26), the next steps, in total as many as of `mfcc`: 0 in silence, about 9 where a filter is as
             loud as the loudest speech so far (natural logarithm of energy)
    """
    level = _Level()
    for energies in _mel_energies(blocks, centre=True):
        yield np.log1p(energies / 10 ** ((level(energies) + FLOOR) / 10)[:, None]).astype(np.float32)


def mfcc_26(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Stream all 26 coefficients of python_speech_features for 16-bit samples, at 100 Hz.

    blocks   as in `log_mel`
    yields   float32 (m, 26), the next steps; the first coefficient is the log of the total energy
    """
    for power in _spectra(blocks, centre=False):
        power = power * 2.0**30  # samples between -32768 and 32767
        energies = np.column_stack([power @ _mel_filters().T, power.sum(1)])
        logs = np.log(np.where(energies == 0, np.finfo(float).eps, energies))
        yield np.column_stack([logs[:, -1], logs[:, :-1] @ _cepstral_matrix(FILTERS)]).astype(np.float32)


def windows(
    features: np.ndarray, frames: int, size: int = WINDOW, before: int | None = None, per_frame: int = STEPS_PER_FRAME
) -> np.ndarray:
    """Cut features into one window per video frame, padded with silence.

    features   float32 (M, C), zero in silence
    frames     number of video frames, T
    size       feature steps per window
    before     steps of the window before the frame's first step; None centres the window on the frame
    per_frame  feature steps per video frame
    returns    float32 (T, C, size), a read-only view of one copy of the features: column i of window t is step
               per_frame·t - before + i

    Source: thesis §4.3.3, figure 4.8: the target is the middle frame of the window's seven.
    """
    before = size // 2 - per_frame // 2 if before is None else before
    length = per_frame * (frames - 1) + size
    inside = features[: max(length - before, 0)]
    padded = np.zeros((max(length, size), features.shape[1]), np.float32)
    padded[before : before + len(inside)] = inside
    view = np.lib.stride_tricks.sliding_window_view(padded, size, axis=0)  # (steps, C, size)
    return view[::per_frame][:frames]


def slide(
    features: Iterable[np.ndarray],
    frames: Callable[[], int],
    size: int = WINDOW,
    before: int | None = None,
    per_frame: int = STEPS_PER_FRAME,
) -> Iterator[np.ndarray]:
    """Stream the windows of streamed features, each as soon as its last step arrives.

    features   iterator of float32 (m, C), the next steps
    frames     function that returns the number of video frames begun in the audio so far
    size, before, per_frame   as in `windows`
    yields     float32 (C, size), in total the windows that `windows` returns
    """
    before = size // 2 - per_frame // 2 if before is None else before
    held, done = None, 0  # steps from per_frame * done - before on; windows yielded
    for piece in features:
        held = np.concatenate([np.zeros((before, piece.shape[1]), np.float32) if held is None else held, piece])
        ready = min((len(held) - size) // per_frame + 1, frames() - done)
        yield from _cut(held, size, per_frame, ready)
        held, done = held[per_frame * max(ready, 0) :], done + max(ready, 0)
    left = frames() - done
    if left > 0:
        assert held is not None  # audio that begins a frame has steps
        missing = per_frame * (left - 1) + size - len(held)
        yield from _cut(np.pad(held, ((0, max(missing, 0)), (0, 0))), size, per_frame, left)


def _cut(steps, size, per_frame, count):
    for index in range(count):
        yield np.ascontiguousarray(steps[per_frame * index :][:size].T)


class FrameCounter:
    """Iterator that passes blocks of samples through and counts the video frames begun in them."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self.blocks, self.samples = blocks, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.blocks:
            self.samples += len(block)
            yield block

    def frames(self) -> int:
        return -(-self.samples * FPS // SAMPLE_RATE)


def mfcc_windows(audio: np.ndarray) -> np.ndarray:
    """MFCC windows of a recording, input of the second model: float32 (T, 12, 28), T = num_frames(audio)."""
    return windows(mfcc(audio), num_frames(audio))


def augment_audio(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Augment a recording for training: random microphone, transmission band, gain and noise.

    audio    float (N,) at 16 kHz
    rng      numpy random Generator
    returns  float64 (N,) with random gain, spectral tilt, sometimes a telephone's band limits, and noise 10 to 50 dB
             below the speech

    Departure: the thesis does not augment; trained on one microphone per data set, its models do not generalise to
    others.
    """
    length = -(-len(audio) // 1024) * 1024  # a fast FFT length
    spectrum = np.fft.rfft(audio, length)
    hertz = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 50.0)
    octaves = np.log2(hertz / 1000)
    response = 10 ** (rng.uniform(-6, 6) * octaves.clip(-3, 3) / 20)
    if rng.random() < 0.3:
        response /= 1 + (hertz / rng.uniform(2800, 8000)) ** 16
    if rng.random() < 0.3:
        response /= 1 + (rng.uniform(50, 300) / hertz) ** 8
    noise = rng.standard_normal((2, len(hertz)))
    noise = (noise[0] + 1j * noise[1]) * hertz ** -rng.uniform(0, 1)
    speech = spectrum * response
    ratio = np.linalg.norm(speech) / max(float(np.linalg.norm(noise)), 1e-12)
    noisy = speech + noise * ratio * 10 ** (-rng.uniform(10, 50) / 20)
    return np.fft.irfft(noisy * 10 ** (rng.uniform(-20, 6) / 20), length)[: len(audio)]


def change_speed(audio: np.ndarray, factor: float) -> np.ndarray:
    """Resample a recording, float (N,), to `factor` times its speed and pitch, float64 (N / factor,), for training."""
    times = np.arange(int(len(audio) / factor)) * factor
    return np.interp(times, np.arange(len(audio)), audio)


def stream_mfcc(blocks: Iterable[np.ndarray], floor: float | None = FLOOR) -> Iterator[np.ndarray]:
    """Stream the features of `mfcc`: blocks of float (n,), the next samples, to float32 (m, 12), the next steps."""
    level = _Level()
    for energies in _mel_energies(blocks, centre=floor is not None):
        if floor is None:
            energies = np.where(energies == 0, np.finfo(float).eps, energies)
        else:
            energies = energies + 10 ** ((level(energies) + floor) / 10)[:, None]
        yield (np.log(energies) @ _cepstral_matrix(COEFFICIENTS + 1)).astype(np.float32)


def _mel_energies(blocks, centre):
    """Energies in 26 triangular mel filters, float64 (m, 26), of the next steps; equal to python_speech_features'."""
    return (power @ _mel_filters().T for power in _spectra(blocks, centre))


def _spectra(blocks, centre):
    """Power spectra, float64 (m, 257), of the next steps; equal to python_speech_features'."""
    held, last, done = np.empty(0), None, 0  # pre-emphasised samples of later steps, last sample, steps yielded
    for block in _split(blocks):
        block = np.nan_to_num(np.asarray(block, float), nan=0.0, posinf=1.0, neginf=-1.0)
        before = (block[0] if centre else 0.0) if last is None else last
        held = np.concatenate([held, block - _PRE_EMPHASIS * np.concatenate([[before], block[:-1]])])
        last, ready = block[-1], (len(held) - _FRAME) // _HOP + 1
        if ready > 0:
            yield _power(held[: (ready - 1) * _HOP + _FRAME], centre)
            held, done = held[ready * _HOP :], done + ready
    if last is not None and (not done or len(held) > _FRAME - _HOP):
        yield _power(np.pad(held, (0, _FRAME - len(held))), centre)  # padded after the pre-emphasis


def _split(blocks):
    """Split blocks of samples, to bound the memory of the FFT."""
    for block in blocks:
        for first in range(0, len(block), _BLOCK * _HOP):
            yield block[first : first + _BLOCK * _HOP]


def _power(emphasised, centre):
    chunks = np.lib.stride_tricks.sliding_window_view(emphasised, _FRAME)[::_HOP]
    if centre:
        chunks = chunks - chunks.mean(axis=1, keepdims=True)
    return powspec(chunks, _FFT)


class _Level:
    """Speech level in dB at each step, causal: a peak hold with decay."""

    def __init__(self):
        self.before, self.level = np.zeros(_SMOOTHING - 1), SPEECH_LEVEL + LEVEL_DECAY / 100

    def __call__(self, energies):
        """Energies (m, 26) of the next steps to levels (m,)."""
        padded = np.concatenate([self.before, energies.mean(axis=1)])
        smooth = np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHING).mean(axis=1)
        decibels = np.concatenate([[self.level], 10 * np.log10(np.maximum(smooth, 1e-12))])
        decay = LEVEL_DECAY / 100 * np.arange(len(decibels))
        levels = np.maximum(np.maximum.accumulate(decibels + decay) - decay, MIN_LEVEL)[1:]
        self.before, self.level = padded[len(energies) :], levels[-1]
        return levels


@cache
def _mel_filters():
    """Triangular filters (26, 257), evenly spaced in mels from 0 Hz to 8 kHz."""
    return get_filterbanks(FILTERS, _FFT, SAMPLE_RATE)


@cache
def _cepstral_matrix(count):
    """Matrix (26, count - 1) of the orthonormal DCT-II and the lifter, for coefficients 1 to `count` - 1."""
    return lifter(dct(np.eye(FILTERS), norm="ortho")[:, :count], _LIFTER)[:, 1:]
