"""Voice activity detection (VAD), and gating of the mouth where nobody speaks.

Both are streaming, with no more look-ahead than the speech model.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from talkhead import files, mfcc

WEIGHTS = Path(__file__).parent / "weights"

BANDS = 13  # each the mean of two of the 26 mel filters
WINDOW, CONTEXT = 28, 96  # feature steps: the window of the frame, and about a second before it
WINDOW_POOL, CONTEXT_POOL = 2, 8  # steps averaged: the context needs less time resolution
# Factor on the odds of speech, since a mouth shut during speech looks worse than one that moves in noise.
TRUST = 10.0
OPENING, CLOSING = 0.7, 0.5  # fraction of the remaining distance that the gate moves per frame


class VoiceActivityDetector:
    """Voice activity detector: separates speech from silence, noise and music, frame by frame.

    weights   (F + 3, H): first layer of a network (F, H), its biases, the second layer, and the latter's bias, repeated
              H times; None: the bundled weights

    Departure: ours; trained and evaluated by `examples/learn_voice.py`.
    """

    def __init__(self, weights: np.ndarray | None = None) -> None:
        weights = (_bundled("voice") if weights is None else weights).astype(np.float32)
        self._first, (self._bias, self._second, (self._last, *_)) = weights[:-3], weights[-3:]

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[float]:
        """Stream the probability of speech, one float in [0, 1] per video frame, with the delay of MFCC windows.

        blocks   iterator of audio blocks, float (n,) at 16 kHz
        """
        for features in _stream_features(blocks):
            hidden = np.maximum(features @ self._first + self._bias, 0)
            yield float(1 / (1 + np.exp(-(hidden @ self._second + self._last).clip(-50, 50))))


def vad_features(audio: np.ndarray) -> np.ndarray:
    """Input features of VoiceActivityDetector, float32 (T, F), of a recording, float (N,) at 16 kHz."""
    return np.stack(list(_stream_features([audio])))


def _stream_features(blocks):
    counter = mfcc.FrameCounter(blocks)
    bands = (levels.reshape(-1, BANDS, levels.shape[1] // BANDS).mean(-1) for levels in mfcc.log_mel(counter))
    before = CONTEXT + WINDOW // 2 - mfcc.STEPS_PER_FRAME // 2
    for steps in mfcc.slide(bands, counter.frames, CONTEXT + WINDOW, before):
        context = steps[:, :CONTEXT].reshape(BANDS, -1, CONTEXT_POOL).mean(-1)
        window = steps[:, CONTEXT:].reshape(BANDS, -1, WINDOW_POOL).mean(-1)
        yield np.concatenate([context, window], 1).ravel()


@cache
def _bundled(name):
    return files.read_array(WEIGHTS / f"{name}.npy")


def gate_mouth(
    displacements: Iterable[np.ndarray], speaking: Iterable[float], rest: np.ndarray
) -> Iterator[np.ndarray]:
    """Gate displacements by voice activity: blend them to a rest displacement where nobody speaks.

    displacements   iterator of float32 (L, 512)
    speaking        iterator of floats, one for each: probability of speech
    rest            float32 (L, 512): the displacement of a shut mouth, such as the model's own for silence
    yields          float32 (L, 512) between `rest` and the displacement; the gate opens in time for the onset of
                    speech, since the features look 120 ms ahead
    """
    gate = 0.0
    for displacement, probability in zip(displacements, speaking):
        target = probability / (probability + (1 - probability) / TRUST)
        gate += (OPENING if target > gate else CLOSING) * (target - gate)
        yield rest + np.float32(gate) * (displacement - rest)
