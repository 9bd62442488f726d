"""What a voice is: MFCC features, cut into one window per video frame.

Nothing here looks further ahead than a window does: the features of a recording's first minute do not depend on its
second, so sound can be fed in pieces and long recordings cost no more memory than their twelve numbers every 10 ms.
"""

import math
from functools import cache

import numpy as np

from talkhead.errors import TalkheadError

SAMPLE_RATE = 16000  # Hz
FPS = 25  # video frames a second
STEPS_PER_FRAME = 4  # feature steps in one video frame
WINDOW = 28  # feature steps in one window: 280 ms, seven video frames
COEFFICIENTS = 12  # the 2nd to the 13th
SPEECH_LEVEL = -20.0  # dB, mean mel energy of ordinary speech: assumed until the recording shows its own
LEAST_LEVEL = -60.0  # dB; a recording that never gets louder than this is treated as silence
LEVEL_DECAY = 2.0  # dB a second
FLOOR = -40.0  # dB, relative to the level of the speech

_FRAME = 400  # samples, 25 ms
_HOP = 160  # samples, 10 ms
_FFT = 512
_FILTERS = 26
_PRE_EMPHASIS = 0.97
_LIFTER = 22
_SMOOTHING = 5  # steps: a click is shorter, a vowel is longer
_BLOCK = 1000  # steps transformed at a time


def num_frames(audio):
    """How many video frames at 25 fps the recording lasts: every frame that has begun counts.

    audio    float (N,) at 16 kHz
    returns  int, ceil(25 · N / 16000)
    """
    return -(-len(audio) * FPS // SAMPLE_RATE)


def mfcc(audio, floor=FLOOR):
    """Mel-frequency cepstral coefficients, a hundred times a second.

    audio    float (N,) at 16 kHz, mono, in [-1, 1]; NaN counts as silence
    floor    dB below the level of the speech under which sound counts as silence. None gives the plain features of
             python_speech_features
    returns  float32 (M, 12), M = 1 + ceil((N - 400) / 160); step m covers 25 ms from 10·m ms. All zero in silence
    raises   TalkheadError unless audio is one row of samples

    Source: thesis §4.3.3: 13 coefficients at 100 Hz, of which the last 12 are used.
    Departure: the logarithm makes plain features of digital silence and of the empty half of a telephone's spectrum
    depend on rounding noise alone. Here a constant offset is taken out of every 25 ms, and a floor is added to the
    mel energies, 40 dB below the loudest speech heard so far (which fades by 2 dB a second). So a pause sounds the
    same in every recording, loud or soft; above the floor the features are the plain ones.
    """
    samples = np.asarray(audio)
    if samples.ndim != 1 or not len(samples):
        raise TalkheadError(f"audio: has shape {samples.shape}, wanted one row of samples; mix the channels to mono")
    energies = _mel_energies(samples, centre=floor is not None)  # (M, 26)
    if floor is None:
        energies = np.where(energies == 0, np.finfo(float).eps, energies)
    else:
        energies = energies + 10 ** ((_levels(energies) + floor) / 10)[:, None]
    return (np.log(energies) @ _cepstral_matrix()).astype(np.float32)


def windows(features, frames, size=WINDOW):
    """Cut features into one window per video frame, centred on it and padded with silence.

    features  float32 (M, C) at 100 Hz, zero in silence
    frames    how many video frames T
    size      feature steps in a window, even
    returns   float32 (T, C, size), a read-only view of one copy of the features: column i of window t is step
              4·t + 2 - size/2 + i

    Source: thesis §4.3.3, figure 4.8: the target is the middle one of the window's seven frames.
    """
    before = size // 2 - STEPS_PER_FRAME // 2
    length = STEPS_PER_FRAME * (frames - 1) + size
    inside = features[: max(length - before, 0)]
    padded = np.zeros((max(length, size), features.shape[1]), np.float32)
    padded[before : before + len(inside)] = inside
    view = np.lib.stride_tricks.sliding_window_view(padded, size, axis=0)  # (steps, C, size)
    return view[::STEPS_PER_FRAME][:frames]


def mfcc_windows(audio):
    """The windows of a recording, as the second model hears it: float32 (T, 12, 28), T = num_frames(audio)."""
    return windows(mfcc(audio), num_frames(audio))


def disturb(audio, rng):
    """Make a recording sound as if another microphone, line and room had taken it. For training.

    audio    float (N,) at 16 kHz
    rng      numpy random Generator
    returns  float64 (N,): louder or softer, tilted towards bass or treble, perhaps cut to a telephone's band, in noise
             10 to 50 dB under the speech

    Departure: the thesis trains on one microphone per data set, and hears only that one well.
    """
    length = -(-len(audio) // 1024) * 1024  # a quick length to transform
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
    ratio = np.linalg.norm(speech) / max(np.linalg.norm(noise), 1e-12)
    heard = speech + noise * ratio * 10 ** (-rng.uniform(10, 50) / 20)
    return np.fft.irfft(heard * 10 ** (rng.uniform(-20, 6) / 20), length)[: len(audio)]


def hasten(audio, factor):
    """Play a recording `factor` times as fast, pitch and all: float (N,) to float64 (N / factor,). For training."""
    times = np.arange(int(len(audio) / factor)) * factor
    return np.interp(times, np.arange(len(audio)), audio)


def _mel_energies(samples, centre):
    """Energy in 26 triangular mel filters, float64 (M, 26), exactly as python_speech_features computes it."""
    steps = 1 + max(0, math.ceil((len(samples) - _FRAME) / _HOP))
    filters = _mel_filters().T
    energies = np.empty((steps, _FILTERS))
    for first in range(0, steps, _BLOCK):
        count = min(_BLOCK, steps - first)
        start, length = first * _HOP, (count - 1) * _HOP + _FRAME
        piece = np.zeros(length + 1)  # and the sample before, for the pre-emphasis
        source = samples[max(start - 1, 0) : start + length]
        piece[int(start == 0) :][: len(source)] = source
        piece[0] = samples[0] if centre and start == 0 else piece[0]
        piece = np.nan_to_num(piece, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
        emphasised = piece[1:] - _PRE_EMPHASIS * piece[:-1]
        emphasised[max(len(samples) - start, 0) :] = 0  # the end is padded after the pre-emphasis
        chunks = np.lib.stride_tricks.sliding_window_view(emphasised, _FRAME)[::_HOP]
        if centre:
            chunks = chunks - chunks.mean(axis=1, keepdims=True)
        energies[first : first + count] = (np.abs(np.fft.rfft(chunks, _FFT)) ** 2 / _FFT) @ filters
    return energies


def _levels(energies):
    """Level of the speech in dB at each step, from what was heard until then: a peak that fades. (M,)"""
    mean = energies.mean(axis=1)
    padded = np.concatenate([np.zeros(_SMOOTHING - 1), mean])
    smooth = np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHING).mean(axis=1)
    heard = 10 * np.log10(np.maximum(smooth, 1e-12))
    heard[0] = max(heard[0], SPEECH_LEVEL)
    fade = LEVEL_DECAY / 100 * np.arange(len(heard))
    return np.maximum(np.maximum.accumulate(heard + fade) - fade, LEAST_LEVEL)


@cache
def _mel_filters():
    """Triangles evenly spaced in mels from 0 Hz to 8 kHz, corners rounded down to FFT bins. (26, 257)"""
    mels = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), _FILTERS + 2)
    corners = np.floor((_FFT + 1) * 700 * (10 ** (mels / 2595) - 1) / SAMPLE_RATE)
    bins = np.arange(_FFT // 2 + 1)
    left, peak, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rise, fall = (bins - left) / (peak - left), (right - bins) / (right - peak)
    return np.where(bins < peak, np.maximum(rise, 0), np.maximum(fall, 0))


@cache
def _cepstral_matrix():
    """Orthonormal DCT-II and lifter of coefficients 1 to 12, as one matrix. (26, 12)"""
    order = np.arange(1, COEFFICIENTS + 1)
    phase = np.pi * (np.arange(_FILTERS)[:, None] + 0.5) * order / _FILTERS
    return math.sqrt(2 / _FILTERS) * np.cos(phase) * (1 + _LIFTER / 2 * np.sin(np.pi * order / _LIFTER))
