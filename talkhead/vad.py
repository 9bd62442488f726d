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

# How eyes blink: medians in seconds, and the spread of their logarithm, by examples/measure_blinks.py on GRID. Its speaker s1 (390 blinks, 47 a
# minute) and eleven others (10 blinks, 18 a minute) take 0.08 s from a tenth of the way down, and 0.18 s up to a tenth, as `_lid` does with
# these lengths. How many are followed by another: the others' share; of those of s1, 0.4.
CLOSE = (0.09, 0.31)
OPEN = (0.27, 0.31)
AGAIN = 0.2
AGAIN_AFTER = (0.32, 0.38)  # from one to the other


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
    heard = mfcc.Heard(blocks)
    bands = (levels.reshape(-1, BANDS, levels.shape[1] // BANDS).mean(-1) for levels in mfcc.loudness(heard))
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

    AGAIN of them are followed by another at once, the others by one that may come at any moment. Lids fall fast, and rise ever slower.
    """
    rng = np.random.default_rng([seed, 0xB11D])
    start, under_way, frame = _wait(rng, rate), [], 0
    while True:
        time = frame / mfcc.FPS
        while start <= time:
            under_way.append((start, _draw(rng, CLOSE), _draw(rng, OPEN)))
            start += _wait(rng, rate)
        under_way = [blink for blink in under_way if time < sum(blink)]
        yield max((_lid(time - begun, close, reopen) for begun, close, reopen in under_way), default=0.0)
        frame += 1


def _wait(rng, rate):
    """Seconds from one blink to the next."""
    if rate <= 0:
        return np.inf
    if rng.random() < AGAIN:
        return _draw(rng, AGAIN_AFTER)
    median, spread = AGAIN_AFTER
    others = (60 / rate - AGAIN * median * np.exp(spread**2 / 2)) / (1 - AGAIN)  # so that the mean of all is 60 / rate
    return rng.exponential(max(others, 0.1))


def _draw(rng, told):
    median, spread = told
    return float(rng.lognormal(np.log(median), spread))


def _lid(time, close, reopen):
    """How far a lid is shut so many seconds after it began to fall."""
    if time < close:
        part = time / close
        return part * part * (3 - 2 * part)
    return max(1 - (time - close) / reopen, 0.0) ** 2
