"""Video metrics: PSNR, SSIM, landmark distance (LMD), sharpness, mouth lag, bilabial closure and pause opening."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import zip_longest
from typing import NamedTuple, Protocol

import numpy as np

from talkhead.errors import TalkheadError
from talkhead.fid import FeatureAccumulator, FeatureNetwork, compare_features, warn_of_few
from talkhead.landmarks import Detector, mouth_opening

PEAK = 255.0  # the largest pixel value
MOUTH = slice(48, 68)  # the 20 mouth points among the 68 landmarks: outer lips, then inner
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
SSIM_K1, SSIM_K2 = 0.01, 0.03
SUM_OFFSET = 256.0  # subtracted from the sum of two pixels, so that its square is accurate in float32
MAX_LAG = 5  # frames
CLOSED_SHARE = 0.25  # lips are closed below this share of the range from the 5th to the 95th percentile of opening
CLOSURE_TOLERANCE = 1  # frames by which lips may close too early or too late
CHANCE_SHIFTS = (*range(-10, -3), *range(4, 11))  # frames; shifts of the mouth for the chance level of closures

_OFFSETS = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
_GAUSSIAN = np.exp(-0.5 * (_OFFSETS / SSIM_SIGMA) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_ROWS, _COLUMNS = 24, 16  # blurred in one matrix product; small, to stay in the cache and in one thread


class LagCorrelation(NamedTuple):
    """Correlation of two signals and the lag of the second one, from `correlation_and_lag`."""

    correlation: float  # Pearson's r without a shift
    lag: int  # frames, the shift of the highest correlation; positive if the second signal is late
    best: float  # Pearson's r at that lag


def psnr(real: np.ndarray, fake: np.ndarray) -> float:
    """PSNR in dB, averaged over frames.

    real, fake  uint8 (H, W, 3) or (T, H, W, 3) RGB, of one shape
    returns     float, dB; infinite if two frames are identical
    raises      TalkheadError if the shapes differ

    Source: thesis §5.2.1, eqs 5.1 and 5.2: 10·log10(255²/MSE) of each frame, MSE over all channels.
    """
    real, fake = _as_clips(real, fake)
    return float(np.mean([_psnr(a, b) for a, b in zip(real, fake)]))


def _psnr(real, fake):
    difference = np.subtract(real, fake, dtype=np.float32).ravel()
    # The sum of 256 squares fits float32's 24 bits, so it is exact.
    whole = difference.size // 256 * 256
    rows, rest = difference[:whole].reshape(-1, 256), difference[whole:]
    error = (np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64) + float(rest @ rest)) / difference.size
    return float(10.0 * np.log10(PEAK**2 / error)) if error else np.inf


def ssim(real: np.ndarray, fake: np.ndarray) -> float:
    """SSIM, averaged over windows, channels and frames.

    real, fake  uint8 (H, W, 3) or (T, H, W, 3) RGB, of one shape, 11 pixels a side or more
    returns     float, at most 1 (identical images)
    raises      TalkheadError if the shapes differ or a side is shorter than the window

    Source: thesis §5.2.1, eqs 5.3 and 5.4; Wang et al. 2004. Windows have 11×11 Gaussian weights of σ 1.5 and lie
    inside the image, as in scikit-image.
    Departure: C2 is (0.03)² = 0.0009 of the squared range; the printed 0.0003 seems to be a misprint.
    """
    real, fake = _as_clips(real, fake)
    return float(np.mean([_ssim(a, b) for a, b in zip(real, fake)]))


def _ssim(real, fake):
    if min(real.shape[:2]) < SSIM_WINDOW:
        raise TalkheadError(
            f"metrics: SSIM has a window of {SSIM_WINDOW} pixels, the frames are "
            f"{real.shape[1]}x{real.shape[0]}; compare larger frames"
        )
    height, width = (side - SSIM_WINDOW + 1 for side in real.shape[:2])
    # In stripes of rows, so that intermediate values stay in the cache.
    total = sum(
        _ssim_sum(real[top : top + _ROWS + SSIM_WINDOW - 1], fake[top : top + _ROWS + SSIM_WINDOW - 1])
        for top in range(0, height, _ROWS)
    )
    return float(total / (height * width * real.shape[2]))


def _ssim_sum(real, fake):
    """Sum of SSIM over the windows and channels of two images.

    Computed from u = x + y − 256 and v = x − y, because 2(x² + y²) = (x + y)² + v² and 4xy = (x + y)² − v², and
    likewise for variances and covariance: only four planes are blurred, all accurate in float32.
    """
    x, y = (np.moveaxis(image, -1, 0).astype(np.float32, order="C") for image in (real, fake))
    planes = np.empty((4, *x.shape), np.float32)
    np.add(x, y, out=planes[0])
    np.subtract(x, y, out=planes[1])
    planes[0] -= SUM_OFFSET
    np.multiply(planes[:2], planes[:2], out=planes[2:])
    u, v, var_u, var_v = _blur(planes)
    c1, c2 = 2 * (SSIM_K1 * PEAK) ** 2, 2 * (SSIM_K2 * PEAK) ** 2
    means = u + SUM_OFFSET  # the offset matters to means, not to variances
    means *= means
    means += c1
    var_u -= np.square(u, out=u)
    var_u += c2
    var_v -= np.square(v, out=v)
    ssim = (means - v) * np.subtract(var_u, var_v, out=u)
    means += v
    var_u += var_v
    ssim /= np.multiply(means, var_u, out=means)
    return ssim.sum(dtype=np.float64)


def _blur(planes):
    """Gaussian mean of each window inside the image: float32 (4, C, H, W) → (4, C · (H − 10) · (W − 10)).

    Computed as products with narrow band matrices, faster than a sum of shifted copies.
    """
    edge = SSIM_WINDOW - 1
    height, width = planes.shape[-2] - edge, planes.shape[-1] - edge
    down = np.matmul(_band(height).T, planes).reshape(-1, width + edge)
    across = np.empty((len(down), width), np.float32)
    for left in range(0, width, _COLUMNS):
        count = min(_COLUMNS, width - left)
        np.matmul(down[:, left : left + count + edge], _band(count), out=across[:, left : left + count])
    return across.reshape(len(planes), -1)


@cache
def _band(count):
    """Band matrix (count + 10, count) of the Gaussian means of `count` windows."""
    band = np.zeros((count + SSIM_WINDOW - 1, count), np.float32)
    for column in range(count):
        band[column : column + SSIM_WINDOW, column] = _GAUSSIAN
    return band


def lmd(real_landmarks: np.ndarray, fake_landmarks: np.ndarray) -> float:
    """Landmark distance (LMD): mean distance of the 20 mouth landmarks, over points and frames.

    real_landmarks, fake_landmarks  (68, 2) or (T, 68, 2), pixels
    returns                         float, pixels; proportional to the frame size, so report it together with that
    raises                          TalkheadError if the shapes differ or are not of 68 points

    Source: thesis §5.2.1, eq. 5.6; Chen et al. 2018.
    Departure: mouths are compared at their positions in the frame; Chen et al. align their centres first.
    """
    real, fake = np.asarray(real_landmarks, np.float64), np.asarray(fake_landmarks, np.float64)
    if real.shape != fake.shape or real.shape[-2:] != (68, 2):
        raise TalkheadError(
            f"metrics: landmarks of shape {real.shape} and {fake.shape}; give both as (T, 68, 2) over the same frames"
        )
    return float(np.linalg.norm(real[..., MOUTH, :] - fake[..., MOUTH, :], axis=-1).mean())


def sharpness(frame: np.ndarray, landmarks: np.ndarray) -> float | None:
    """Sharpness of the mouth: variance of the Laplacian of its grey values.

    frame      uint8 (H, W, 3) RGB
    landmarks  (68, 2), pixels
    returns    float; None if fewer than 3 x 3 pixels of the mouth are in the frame. The mouth is the box around its 20
               points, with a margin of a quarter of its width. It grows with contrast and falls with the frame size:
               compare it only with the true clip's
    """
    points = np.asarray(landmarks, np.float64)[MOUTH]
    margin = np.ptp(points[:, 0]) / 4
    left, top = np.maximum(np.floor(points.min(0) - margin), 0).astype(int)
    right, bottom = np.maximum(np.ceil(points.max(0) + margin), 0).astype(int) + 1
    grey = np.asarray(frame)[top:bottom, left:right] @ np.array([0.299, 0.587, 0.114], np.float32)
    if min(grey.shape) < 3:
        return None
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(edges.var(dtype=np.float64))


def _as_clips(real, fake):
    """Both as (T, H, W, 3) of one shape; TalkheadError if the shapes do not fit."""
    real, fake = np.asarray(real), np.asarray(fake)
    if real.shape != fake.shape:
        raise TalkheadError(f"metrics: images of shape {real.shape} and {fake.shape}; compare images of one size")
    if real.ndim not in (3, 4) or real.shape[-1] != 3 or not real.size:
        raise TalkheadError(f"metrics: images of shape {real.shape}; give uint8 (H, W, 3) or (T, H, W, 3) RGB")
    return (real[None], fake[None]) if real.ndim == 3 else (real, fake)


class Pair(NamedTuple):
    """A real and a fake frame, and their 68 landmarks; None if no face was found, or without a detector."""

    real: np.ndarray  # uint8 (H, W, 3)
    fake: np.ndarray
    real_points: np.ndarray | None = None  # (68, 2), pixels
    fake_points: np.ndarray | None = None


class Measure(Protocol):
    """Measure of two clips, frame by frame."""

    def add(self, pair: Pair) -> None: ...

    def report(self) -> dict: ...


def compare(
    real: Iterable[np.ndarray],
    fake: Iterable[np.ndarray],
    detector: Detector | None = None,
    real_landmarks: Iterable[np.ndarray] | None = None,
    features: FeatureNetwork | Sequence[FeatureAccumulator] | None = None,
    measures: Sequence[Measure] = (),
    max_lag: int = MAX_LAG,
) -> dict:
    """Compare a generated clip with the true one, frame by frame, in constant memory.

    real, fake      arrays (T, H, W, 3) or iterators of uint8 (H, W, 3), of one frame size; the longer is cut to the
                    shorter
    detector        landmarks.Detector; None leaves out measures of landmarks
    real_landmarks  (T, 68, 2) pixels, or an iterator of (68, 2), if known: then detection runs on `fake` alone
    features        feature network as in fid.py, for FID and KID of the clips; None leaves them out. Or two
                    `fid.FeatureAccumulator`, which are filled for the caller's own distances
    measures        further measures: objects with `add(Pair)` and `report()`, which returns a dict
    max_lag         frames, largest lag of the mouth that is tried
    returns         dict for JSON:
                      frames       number of compared frames
                      real_frames, fake_frames    frames of each clip
                      size         [height, width], pixels
                      psnr         dB, mean over frames that differ; null if all are identical
                      identical    number of identical frames, which `psnr` leaves out
                      ssim         mean over frames
                      lmd, detector, …            as in `LandmarkMeasures`, with a detector
                      fid, kid, fid_features      as in `compare_features`, over all frames of either clip
                    and the reports of `measures`
    raises          TalkheadError if a clip is empty or the frame sizes differ
    warns           as `warn_of_few`

    Source: thesis §5.2.1.
    """
    totals = {"psnr": _Mean(), "ssim": _Mean()}
    mouths = None if detector is None else LandmarkMeasures(detector.name, max_lag)
    truth = None if real_landmarks is None else iter(real_landmarks)
    accumulators = [FeatureAccumulator(features) for _ in range(2)] if callable(features) else features or []
    counts, identical, size = [0, 0], 0, None
    for a, b in zip_longest(real, fake):
        for accumulator, frame in zip(accumulators, (a, b)):
            if frame is not None:
                accumulator.add(frame)
        counts[0] += a is not None
        counts[1] += b is not None
        if a is None or b is None:
            continue
        if np.shape(a) != np.shape(b):
            raise TalkheadError(
                f"metrics, frame {counts[0] - 1}: the real frame is {np.shape(a)[1]}x{np.shape(a)[0]}, the fake one "
                f"{np.shape(b)[1]}x{np.shape(b)[0]}; bring both clips to one size, as metrics --set size=N does"
            )
        size = size or list(np.shape(a)[:2])
        value = psnr(a, b)
        identical += not np.isfinite(value)
        totals["psnr"].add(value if np.isfinite(value) else None)
        totals["ssim"].add(ssim(a, b))
        pair = (
            Pair(a, b)
            if detector is None
            else Pair(a, b, _face(a, detector) if truth is None else next(truth, None), _face(b, detector))
        )
        for measure in [*([mouths] if mouths else []), *measures]:
            measure.add(pair)
    frames = min(counts)
    if not frames:
        raise TalkheadError(
            f"metrics: the {'fake' if counts[0] else 'real'} clip has no frames; give two clips of one frame or more"
        )
    report = {
        "frames": frames,
        "real_frames": counts[0],
        "fake_frames": counts[1],
        "size": size,
        "psnr": totals["psnr"].value(),
        "identical": identical,
        "ssim": totals["ssim"].value(),
    }
    for measure in [*([mouths] if mouths else []), *measures]:
        report |= measure.report()
    if callable(features):
        warn_of_few(min(counts), features)
        report |= compare_features(accumulators[0].features(), accumulators[1].features(), features)
    return report


def _face(frame, detector):
    """Landmarks of the largest face, or None."""
    return next(iter(detector(frame)), None)


class LandmarkMeasures:
    """Landmark measures of two clips, frame by frame.

    detector   name of the detector
    max_lag    as in `correlation_and_lag`

    `report()` is a dict:
      lmd, lmd_frames             pixels, mean over frames with a face in both clips (the largest one); null if there
                                  are none
      detector                    name of the detector
      real_no_face, fake_no_face  frames without a face
      velocity_error, velocity_frames     pixels per frame: distance between the mouth points' velocities, mean over
                                  points and over pairs of neighbouring frames with a face in both clips
      opening_correlation, opening_lag, opening_best   of the mouth openings, as `LagCorrelation`; null if the clips are
                                  too short or a mouth was never found
      real_jitter, fake_jitter    pixels: mean norm of the second time difference of the landmarks outside the mouth
      real_sharpness, fake_sharpness      `sharpness`, mean over frames

    `openings` holds the two mouth openings so far, one value per frame, NaN without a face.
    """

    openings: tuple[list[float], list[float]]
    _before: tuple[list, list]

    def __init__(self, detector: str, max_lag: int = MAX_LAG) -> None:
        self.detector, self.max_lag, self.openings, self._no_face = detector, max_lag, ([], []), [0, 0]
        self._lmd, self._velocity = _Mean(), _Mean()
        self._jitter, self._sharpness, self._before = (_Mean(), _Mean()), (_Mean(), _Mean()), ([], [])

    def add(self, pair: Pair) -> None:
        points = [None if face is None else np.asarray(face, np.float64) for face in pair[2:]]
        both = all(face is not None for face in points)
        previous = [before[-1] if before else None for before in self._before]
        if both:
            self._lmd.add(lmd(*points))  # type: ignore[arg-type]  # `both`: neither is None
        if both and all(face is not None for face in previous):
            self._velocity.add(lmd(points[0] - previous[0], points[1] - previous[1]))  # type: ignore[operator]
        for side, (frame, face) in enumerate(zip(pair[:2], points)):
            self._no_face[side] += face is None
            self.openings[side].append(_opening(face))
            # The second difference needs three neighbouring frames with a face.
            last = [*self._before[side], face]
            if len(last) == 3 and all(each is not None for each in last):
                self._jitter[side].add(np.linalg.norm((last[0] - 2 * last[1] + last[2])[: MOUTH.start], axis=-1).mean())
            self._before[side][:] = last[-2:]
            self._sharpness[side].add(None if face is None else sharpness(frame, face))

    def report(self) -> dict:
        found = {"lmd": self._lmd.value(), "lmd_frames": self._lmd.count, "detector": self.detector}
        found |= {"real_no_face": self._no_face[0], "fake_no_face": self._no_face[1]}
        found |= {"velocity_error": self._velocity.value(), "velocity_frames": self._velocity.count}
        known = np.isfinite(self.openings).all(0).any() and len(self.openings[0]) >= self.max_lag + 3
        result = correlation_and_lag(*self.openings, self.max_lag) if known else (None, None, None)
        found |= dict(zip(("opening_correlation", "opening_lag", "opening_best"), result))
        for name, values in (("jitter", self._jitter), ("sharpness", self._sharpness)):
            found |= {f"{side}_{name}": value.value() for side, value in zip(("real", "fake"), values)}
        return found


class BilabialClosure:
    """Bilabial closure: the share of /p b m/ at which the lips of two clips are closed, frame by frame.

    times      list of (start, end), seconds, of the /p b m/
    source     origin of the times, for the report
    share      lips are closed below this share of the true mouth's range, as in `closed_threshold`
    fps        frames per second
    tolerance  frames by which lips may close too early or too late

    `report()` is a dict: closures, their number in the clip; closures_from, the source; closure_rate and
    real_closure_rate, the shares of closures made; closure_luck, the chance level of the fake mouth
    (`chance_closures`). Shares are null without closures.

    Source: thesis §5.3 (there by eye).
    """

    openings: tuple[list[float], list[float]]

    def __init__(
        self,
        times: Sequence[tuple[float, float]],
        source: str = "phonemes",
        share: float = CLOSED_SHARE,
        fps: float = 25.0,
        tolerance: int = CLOSURE_TOLERANCE,
    ) -> None:
        self.times, self.source, self.share, self.timing = times, source, share, (fps, tolerance)
        self.openings = ([], [])

    def add(self, pair: Pair) -> None:
        for opening, face in zip(self.openings, pair[2:]):
            opening.append(_opening(face))

    def report(self) -> dict:
        real, fake = self.openings
        threshold = closed_threshold(real, self.share)
        count = len(met_closures(real, self.times, threshold, *self.timing))
        chance = chance_closures(fake, self.times, threshold, *self.timing)
        return {
            "closures": count,
            "closures_from": self.source,
            "closure_rate": closure_rate(fake, self.times, threshold, *self.timing),
            "real_closure_rate": closure_rate(real, self.times, threshold, *self.timing),
            "closure_luck": chance / count if count else None,
        }


def _opening(face):
    """Mouth opening; NaN without a face, or if the eyes coincide."""
    if face is None:
        return np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        opening = float(mouth_opening(face))
    return opening if np.isfinite(opening) else np.nan


class _Mean:
    """Running mean that skips None."""

    def __init__(self):
        self.count, self.sum = 0, 0.0

    def add(self, value):
        if value is not None:
            self.count += 1
            self.sum += value

    def value(self):
        return float(self.sum / self.count) if self.count else None


def correlation_and_lag(
    real: Sequence[float] | np.ndarray, fake: Sequence[float] | np.ndarray, max_lag: int = MAX_LAG
) -> LagCorrelation:
    """Pearson correlation of two signals, and the lag of the second one.

    real, fake  (T,), one value per frame, such as mouth openings; NaN if unknown; the longer is cut to the shorter
    max_lag     frames; shifts from −max_lag to max_lag are tried
    returns     LagCorrelation(correlation, lag, best). A positive lag means that `fake` is late: fake[t] corresponds to
                real[t − lag]. Of equal correlations the smallest shift wins. A constant signal has correlation 0
    raises      TalkheadError if there are fewer than max_lag + 3 frames
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    frames = min(len(real), len(fake))
    if frames < max_lag + 3:
        raise TalkheadError(
            f"metrics: {frames} frames are too few for lags of {max_lag}; give a longer clip or a smaller max_lag"
        )
    real, fake = real[:frames], fake[:frames]
    shifts = sorted(range(-max_lag, max_lag + 1), key=abs)
    found = {
        shift: _correlation(
            real[max(0, -shift) : frames - max(0, shift)], fake[max(0, shift) : frames - max(0, -shift)]
        )
        for shift in shifts
    }
    lag = max(shifts, key=lambda shift: round(found[shift], 9))  # ties within rounding errors
    return LagCorrelation(found[0], lag, found[lag])


def _correlation(a, b):
    """Pearson's r over the values that are known in both."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 3:
        return 0.0
    a, b = a[known] - a[known].mean(), b[known] - b[known].mean()
    norm = np.sqrt((a @ a) * (b @ b))
    # Signals that are constant up to rounding have no correlation.
    return float(a @ b / norm) if norm > 1e-12 * max(1.0, len(a)) else 0.0


def met_closures(
    opening: Sequence[float] | np.ndarray,
    closures: Iterable[tuple[float, float]],
    threshold: float,
    fps: float = 25.0,
    tolerance: int = CLOSURE_TOLERANCE,
) -> np.ndarray:
    """Bilabial closures at which the lips are closed.

    opening    (T,), mouth opening of each frame; NaN if unknown
    closures   list of (start, end), seconds: the /p b m/ of the speech
    threshold  opening below which the mouth is closed
    fps        frames per second
    tolerance  frames by which the lips may close too early or too late
    returns    bool (C',), one for each closure that begins within the clip

    Source: thesis §5.3 (there by eye).
    """
    opening = np.asarray(opening, np.float64)
    met = []
    for start, end in closures:
        # Frame t lasts from t / fps to (t + 1) / fps. Rounding keeps an end on a frame's edge out of the next frame.
        first, last = int(np.floor(round(start * fps, 6))), int(np.ceil(round(end * fps, 6)))
        if first < len(opening):
            met.append(bool((opening[max(0, first - tolerance) : max(last, first + 1) + tolerance] < threshold).any()))
    return np.array(met, bool)


def closure_rate(
    opening: Sequence[float] | np.ndarray,
    closures: Iterable[tuple[float, float]],
    threshold: float,
    fps: float = 25.0,
    tolerance: int = CLOSURE_TOLERANCE,
) -> float | None:
    """Share of bilabial closures with closed lips; arguments as `met_closures`.

    returns  float in [0, 1], or None if the clip has no closure

    Source: thesis §5.3.
    """
    met = met_closures(opening, closures, threshold, fps, tolerance)
    return float(met.mean()) if len(met) else None


def closed_threshold(opening: Sequence[float] | np.ndarray, share: float = CLOSED_SHARE) -> float:
    """Threshold of the mouth opening below which lips are closed.

    opening  (T,), the true clip's; NaN if unknown
    share    of the range from its 5th to its 95th percentile: detectors read closed mouths as different small openings
    returns  float; NaN if the mouth was never found, so that no opening is below it
    """
    known = np.asarray(opening, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return np.nan
    low, high = np.percentile(known, [5, 95])
    return float(low + share * (high - low))


def chance_closures(
    opening: Sequence[float] | np.ndarray,
    closures: Sequence[tuple[float, float]],
    threshold: float,
    fps: float = 25.0,
    tolerance: int = CLOSURE_TOLERANCE,
) -> float:
    """Chance level of the number of closures: mean over shifts of 4 to 10 frames; arguments as `met_closures`.

    A nearly closed mouth makes all closures at any shift, random motion some.
    """
    return float(
        np.mean(
            [
                met_closures(np.roll(opening, shift), closures, threshold, fps, tolerance).sum()
                for shift in CHANCE_SHIFTS
            ]
        )
    )


def envelope(audio: np.ndarray, frames: int, sample_rate: int = 16000, fps: float = 25.0) -> np.ndarray:
    """RMS envelope of speech, one value per video frame.

    audio    float32 (N,) in [-1, 1]
    frames   number of values
    returns  float64 (frames,): root mean square under a Hann window of two frames, centred on the frame
    """
    hop = sample_rate / fps
    window = np.hanning(int(2 * hop))
    padded = np.pad(np.asarray(audio, np.float64) ** 2, (len(window), len(window) + int(frames * hop)))
    middles = (np.arange(frames) + 0.5) * hop + len(window)
    starts = np.round(middles - len(window) / 2).astype(int)
    return np.sqrt([padded[start : start + len(window)] @ window / window.sum() for start in starts])


def pauses(
    loudness: np.ndarray, fps: float = 25.0, quiet: float = 0.1, shortest: float = 0.24, margin: int = 2
) -> np.ndarray:
    """Frames within pauses of the speech.

    loudness  (T,), from `envelope`
    quiet     share of the loudness' 95th percentile below which a frame is silent (0.1 is −20 dB)
    shortest  seconds; a shorter silence is a stop consonant, not a pause
    margin    frames left out at either end of a pause, where the mouth is still closing or already opening
    returns   bool (T,)
    """
    silent = np.asarray(loudness) < quiet * np.percentile(loudness, 95)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]]).astype(int)))
    inside = np.zeros(len(silent), bool)
    for start, end in edges.reshape(-1, 2):
        if end - start >= shortest * fps:
            # No margin at the clip's own ends.
            inside[start + margin * (start > 0) : end - margin * (end < len(silent))] = True
    return inside


def pause_opening(opening: Sequence[float] | np.ndarray, inside: np.ndarray) -> float | None:
    """Mean mouth opening in pauses of the speech.

    opening  (T,), NaN if unknown
    inside   bool (T,), from `pauses`
    returns  float, as a share of the clip's 95th percentile; None if there is no pause, or the mouth never opens
    """
    opening = np.asarray(opening, np.float64)
    quiet = opening[np.asarray(inside) & np.isfinite(opening)]
    widest = np.nanpercentile(opening, 95) if len(quiet) else 0.0
    return float(quiet.mean() / widest) if widest > 0 else None
