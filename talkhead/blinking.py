"""Random blinks: closure of the lids in each frame."""

from collections.abc import Iterator

import numpy as np

from talkhead import mfcc

# Log-normal durations: (median in seconds, std of the logarithm), measured by examples/measure_blinks.py on GRID. Its
# speaker s1 (390 blinks, 47 per minute) and eleven others (10 blinks, 18 per minute) close in 0.08 s from 10 % closure
# on, and reopen in 0.18 s down to 10 %, as `_closure` does with these durations.
CLOSE = (0.09, 0.31)
OPEN = (0.27, 0.31)
DOUBLE_PROBABILITY = 0.2  # that a second blink follows at once; s1: 0.4, the others: 0.2
DOUBLE_INTERVAL = (0.32, 0.38)  # from the first to the second


def blinks(rate: float, seed: int = 0) -> Iterator[float]:
    """Yield the closure of the lids, 0 (open) to 1 (shut), at 25 frames per second, endlessly.

    rate   blinks per minute, on average; 0: none
    seed   same seed, same blinks

    A fraction DOUBLE_PROBABILITY is followed by a second blink at once; other intervals are exponentially distributed.
    """
    rng = np.random.default_rng([seed, 0xB11D])
    start, active, frame = _interval(rng, rate), [], 0
    while True:
        time = frame / mfcc.FPS
        while start <= time:
            active.append((start, _lognormal(rng, CLOSE), _lognormal(rng, OPEN)))
            start += _interval(rng, rate)
        active = [blink for blink in active if time < sum(blink)]
        yield max((_closure(time - begun, close, reopen) for begun, close, reopen in active), default=0.0)
        frame += 1


def _interval(rng, rate):
    """Random interval between the starts of two blinks, seconds."""
    if rate <= 0:
        return np.inf
    if rng.random() < DOUBLE_PROBABILITY:
        return _lognormal(rng, DOUBLE_INTERVAL)
    median, std = DOUBLE_INTERVAL
    # Mean of the other intervals for which the mean of all is 60 / rate.
    mean = (60 / rate - DOUBLE_PROBABILITY * median * np.exp(std**2 / 2)) / (1 - DOUBLE_PROBABILITY)
    return rng.exponential(max(mean, 0.1))


def _lognormal(rng, parameters):
    median, std = parameters
    return float(rng.lognormal(np.log(median), std))


def _closure(time, close, reopen):
    """Closure of the lids `time` seconds after the start of a blink: smooth closing, quadratic reopening."""
    if time < close:
        part = time / close
        return part * part * (3 - 2 * part)
    return max(1 - (time - close) / reopen, 0.0) ** 2
