"""Blinks: when they come, and how far lids are closed in each frame."""

import numpy as np

from talkhead import mfcc

# How eyes blink: medians in seconds, and the spread of their logarithm, by examples/measure_blinks.py on GRID. Its speaker s1 (390 blinks, 47 a
# minute) and eleven others (10 blinks, 18 a minute) take 0.08 s from a tenth of the way down, and 0.18 s up to a tenth, as `_lid` does with
# these lengths. How many are followed by another: the others' share; of those of s1, 0.4.
CLOSE = (0.09, 0.31)
OPEN = (0.27, 0.31)
AGAIN = 0.2
AGAIN_AFTER = (0.32, 0.38)  # from one to the other


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
