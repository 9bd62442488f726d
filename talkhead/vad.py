"""What a face does that no word tells: it keeps its mouth shut where nobody speaks, and blinks.

Everything here comes as the sound comes, and knows no later sound than the speech model itself.
"""

from functools import cache
from pathlib import Path

import numpy as np

from talkhead import files, mfcc

WEIGHTS = Path(__file__).parent / "weights"

BANDS = 13  # two of the 26 mel filters in each
NOW, PAST = 28, 96  # feature steps: the window of the frame, and the second before it
NOW_POOL, PAST_POOL = 2, 8  # of them averaged: what is long ago need not be known finely
TRUST = (
    10.0  # odds of speech count so many times: a mouth that is shut in speech looks worse than one that moves in noise
)
OPENING, CLOSING = 0.7, 0.5  # share of the way that a mouth goes in a frame


# Whether anybody speaks -------------------------------------------------------------------------------------------------


class VoiceActivityDetector:
    """Tells speech from silence, noise and music, frame by frame.

    weights   (F + 3, H): the first layer of a network (F, H), its biases, the second layer, and that one's bias, H times;
              None are those that came with the package

    Departure: ours; `examples/learn_voice.py` made it, and says how often it errs.
    """

    def __init__(self, weights=None):
        weights = (_bundled("voice") if weights is None else weights).astype(np.float32)
        self._first, (self._bias, self._second, (self._last, *_)) = weights[:-3], weights[-3:]

    def stream(self, blocks):
        """How likely somebody speaks: one float in [0, 1] for each video frame, as soon as its window of MFCC is there.

        blocks   iterator of blocks of the sound, float (n,) at 16 kHz
        """
        for heard in _hear(blocks):
            hidden = np.maximum(heard @ self._first + self._bias, 0)
            yield float(1 / (1 + np.exp(-(hidden @ self._second + self._last).clip(-50, 50))))


def vad_features(audio):
    """What a Voice takes: float32 (T, F), of a recording float (N,) at 16 kHz."""
    return np.stack(list(_hear([audio])))


def _hear(blocks):
    heard = mfcc.FrameCounter(blocks)
    bands = (levels.reshape(-1, BANDS, levels.shape[1] // BANDS).mean(-1) for levels in mfcc.log_mel(heard))
    before = PAST + NOW // 2 - mfcc.STEPS_PER_FRAME // 2
    for window in mfcc.slide(bands, heard.frames, PAST + NOW, before):
        past, now = (
            window[:, :PAST].reshape(BANDS, -1, PAST_POOL).mean(-1),
            window[:, PAST:].reshape(BANDS, -1, NOW_POOL).mean(-1),
        )
        yield np.concatenate([past, now], 1).ravel()


@cache
def _bundled(name):
    return files.read_array(WEIGHTS / f"{name}.npy")


def gate_mouth(displacements, speaking, rest):
    """Let a face come to rest where nobody speaks.

    displacements   iterator of float32 (L, 512)
    speaking        iterator of floats, one for each: how likely somebody speaks
    rest            float32 (L, 512): the displacement of a mouth that is shut, such as the model's own answer to silence
    yields          float32 (L, 512), on the way from `rest` to the displacement: soon there when speech begins, for what is heard reaches
                    120 ms ahead, and back with its end
    """
    part = 0.0
    for moved, likely in zip(displacements, speaking):
        wanted = likely / (likely + (1 - likely) / TRUST)
        part += (OPENING if wanted > part else CLOSING) * (wanted - part)
        yield rest + np.float32(part) * (moved - rest)


# Eyes -------------------------------------------------------------------------------------------------------------------
