"""What a face does that no word tells: it keeps its mouth shut where nobody speaks, and blinks.

Everything here comes as the sound comes, and knows no later sound than the speech model itself.
"""

from functools import cache
from pathlib import Path

import numpy as np

from talkhead import files, speech

WEIGHTS = Path(__file__).parent / "weights"

BANDS = 13  # two of the 26 mel filters in each
NOW, PAST = 28, 96  # feature steps: the window of the frame, and the second before it
NOW_POOL, PAST_POOL = 2, 8  # of them averaged: what is long ago need not be known finely
REFRACTORY = 0.5  # seconds from the end of a blink in which no other begins
CLOSE = (0.10, 0.3)  # median seconds that lids take to shut, and the spread of its logarithm
OPEN = (0.16, 0.4)  # the same to open
TRUST = 4.0  # odds of speech count so many times: a mouth that is shut in speech looks worse than one that moves in noise
OPENING, CLOSING = 0.7, 0.5  # share of the way that a mouth goes in a frame


# Whether anybody speaks -------------------------------------------------------------------------------------------------

class Voice:
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


def hearing(audio):
    """What a Voice takes: float32 (T, F), of a recording float (N,) at 16 kHz."""
    return np.stack(list(_hear([audio])))


def _hear(blocks):
    heard = speech.Heard(blocks)
    bands = (levels.reshape(-1, BANDS, levels.shape[1] // BANDS).mean(-1) for levels in speech.mel_levels(heard))
    before = PAST + NOW // 2 - speech.STEPS_PER_FRAME // 2
    for window in speech.slide(bands, heard.frames, PAST + NOW, before):
        past, now = window[:, :PAST].reshape(BANDS, -1, PAST_POOL).mean(-1), window[:, PAST:].reshape(BANDS, -1, NOW_POOL).mean(-1)
        yield np.concatenate([past, now], 1).ravel()


@cache
def _bundled(name):
    return files.read_array(WEIGHTS / f"{name}.npy")


def shut(displacements, speaking, rest):
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

def blinks(rate, seed=0):
    """How far the lids are shut, 0 to 1, frame after frame at 25 a second, without end.

    rate   blinks a minute, on average; 0 for none
    seed   same seed, same blinks

    Each comes a random time after the last: no sooner than REFRACTORY, then as a coin thrown every frame says. Closing and opening last
    as real blinks were measured to, independently.
    """
    rng = np.random.default_rng([seed, 0xB11D])
    frame, start = 0, 0.0
    lasts = sum(median * np.exp(spread ** 2 / 2) for median, spread in (CLOSE, OPEN))  # on average
    mean = max(60 / rate - lasts - REFRACTORY, 0) if rate > 0 else 0.0
    shape = None
    while True:
        if rate <= 0:
            yield 0.0
            continue
        if shape is None:
            start += REFRACTORY + rng.exponential(mean) if frame else rng.exponential(60 / rate)
            shape = rng.lognormal(np.log(CLOSE[0]), CLOSE[1]), rng.lognormal(np.log(OPEN[0]), OPEN[1])
        time = frame / speech.FPS - start  # of the frame's beginning, from that of the blink
        close, reopen = shape
        yield float(_smooth(time / close) if time < close else _smooth(1 - (time - close) / reopen))
        frame += 1
        if frame / speech.FPS >= start + close + reopen:
            start, shape = start + close + reopen, None


def _smooth(part):
    part = min(max(part, 0.0), 1.0)
    return part * part * (3 - 2 * part)
