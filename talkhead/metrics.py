"""Numbers that compare videos: how alike the pictures are, and whether the mouth follows the speech."""

from functools import cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from talkhead.errors import TalkheadError
from talkhead.fid import FeatureAccumulator, compare_features, warn_of_few
from talkhead.landmarks import mouth_opening

PEAK = 255.0  # the largest pixel value
MOUTH = slice(48, 68)  # the 20 mouth points among the 68 landmarks: outer lips, then inner
SSIM_WINDOW = 11  # pixels; the sides of a frame may not be shorter
SSIM_SIGMA = 1.5  # pixels
SSIM_K1, SSIM_K2 = 0.01, 0.03
MIDDLE = 256.0  # of the sum of two pixels: from here, squares are small enough for float32
MAX_LAG = 5  # frames
SHUT = 0.25  # lips count as shut below this share of the way from the true clip's 5th to its 95th percentile of opening
TOLERANCE = 1  # frames by which lips may shut too early or too late
OUT_OF_STEP = (*range(-10, -3), *range(4, 11))  # frames: shifts at which a mouth meets closures by luck alone

_OFFSETS = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
_GAUSSIAN = np.exp(-0.5 * (_OFFSETS / SSIM_SIGMA) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_ROWS, _COLUMNS = 24, 16  # blurred in one product of matrices: so few that all stays in the cache, and in one thread


class LagCorrelation(NamedTuple):
    """How one signal follows another, as `correlation_and_lag` found it."""

    correlation: float  # Pearson's r of the two as they stand, without any shift
    lag: int  # the shift in frames at which they agree best; positive: the second one is late
    best: float  # Pearson's r at that shift


def psnr(real, fake):
    """Say how far two pictures, or two clips, are apart: the peak signal-to-noise ratio, mean over frames.

    real, fake  uint8 (H, W, 3) or (T, H, W, 3) RGB, of one shape
    returns     float, decibels; infinite where a frame equals its partner in every pixel
    raises      TalkheadError if the shapes differ

    Source: thesis §5.2.1, eqs 5.1 and 5.2: 10·log10(255²/MSE) of each frame, MSE over all channels.
    """
    real, fake = _pictures(real, fake)
    values = [_psnr(a, b) for a, b in zip(real, fake)]
    return float(np.mean(values))


def _psnr(real, fake):
    apart = np.subtract(real, fake, dtype=np.float32).ravel()
    # Of up to 256 values the sum of squares is exact in float32, which has 24 bits.
    rows, rest = apart[: apart.size // 256 * 256].reshape(-1, 256), apart[apart.size // 256 * 256 :]
    error = (np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64) + float(rest @ rest)) / apart.size
    return float(10.0 * np.log10(PEAK**2 / error)) if error else np.inf


def ssim(real, fake):
    """Say how alike two pictures, or two clips, are in structure: mean over patches, channels and frames.

    real, fake  uint8 (H, W, 3) or (T, H, W, 3) RGB, of one shape, 11 pixels a side or more
    returns     float, at most 1 (equal pictures)
    raises      TalkheadError if the shapes differ or a side is shorter than the window

    Source: thesis §5.2.1, eqs 5.3 and 5.4; Wang et al. 2004. Patches are weighted by an 11×11 Gaussian of
    σ 1.5; those that would leave the picture are not counted, as in scikit-image.
    Departure: C2 is (0.03)² = 0.0009 of the squared range; the printed 0.0003 is taken for a slip.
    """
    real, fake = _pictures(real, fake)
    return float(np.mean([_ssim(a, b) for a, b in zip(real, fake)]))


def _ssim(real, fake):
    if min(real.shape[:2]) < SSIM_WINDOW:
        raise TalkheadError(
            f"metrics: SSIM looks through a window of {SSIM_WINDOW} pixels, the frames are "
            f"{real.shape[1]}x{real.shape[0]}; compare larger frames"
        )
    height, width = (side - SSIM_WINDOW + 1 for side in real.shape[:2])
    # In stripes of rows, whose many intermediate values never leave the cache.
    total = sum(
        _alike(real[top : top + _ROWS + SSIM_WINDOW - 1], fake[top : top + _ROWS + SSIM_WINDOW - 1])
        for top in range(0, height, _ROWS)
    )
    return float(total / (height * width * real.shape[2]))


def _alike(real, fake):
    """The sum of SSIM over the patches of two pictures.

    Worked out by u = x + y − 256 and v = x − y, because 2(x² + y²) = (x + y)² + v² and 4xy = (x + y)² − v², and so it is with variances and
    covariance: there are four planes to blur, all of them small enough for float32.
    """
    x, y = (np.moveaxis(picture, -1, 0).astype(np.float32, order="C") for picture in (real, fake))
    planes = np.empty((4, *x.shape), np.float32)
    np.add(x, y, out=planes[0])
    np.subtract(x, y, out=planes[1])
    planes[0] -= MIDDLE
    np.multiply(planes[:2], planes[:2], out=planes[2:])
    u, v, spread_u, spread_v = _blur(planes)
    c1, c2 = 2 * (SSIM_K1 * PEAK) ** 2, 2 * (SSIM_K2 * PEAK) ** 2
    means = u + MIDDLE  # variances do not know where zero is; means do
    means *= means
    means += c1
    spread_u -= np.square(u, out=u)
    spread_u += c2
    spread_v -= np.square(v, out=v)
    alike = (means - v) * np.subtract(spread_u, spread_v, out=u)
    means += v
    spread_u += spread_v
    alike /= np.multiply(means, spread_u, out=means)
    return alike.sum(dtype=np.float64)


def _blur(planes):
    """Gaussian mean around each pixel whose window lies inside: float32 (4, C, H, W) → (4, C · (H − 10) · (W − 10)).

    A product with a narrow band matrix, which a machine does faster than any sum of shifted copies.
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
    """The matrix that takes `count` Gaussian means out of as many values and ten more: (count + 10, count)."""
    band = np.zeros((count + SSIM_WINDOW - 1, count), np.float32)
    for column in range(count):
        band[column : column + SSIM_WINDOW, column] = _GAUSSIAN
    return band


def lmd(real_landmarks, fake_landmarks):
    """Say how far apart two mouths are: mean distance of the 20 mouth landmarks, over points and frames.

    real_landmarks, fake_landmarks  (68, 2) or (T, 68, 2), pixels
    returns                         float, pixels: tell it together with the frame size, it grows with it
    raises                          TalkheadError if the shapes differ or are not of 68 points

    Source: thesis §5.2.1, eq. 5.6; Chen et al. 2018.
    Departure: both mouths are compared where they are in the picture; Chen et al. shift their centres together first.
    """
    real, fake = np.asarray(real_landmarks, np.float64), np.asarray(fake_landmarks, np.float64)
    if real.shape != fake.shape or real.shape[-2:] != (68, 2):
        raise TalkheadError(
            f"metrics: landmarks of shape {real.shape} and {fake.shape}; give both as (T, 68, 2) over the same frames"
        )
    return float(np.linalg.norm(real[..., MOUTH, :] - fake[..., MOUTH, :], axis=-1).mean())


def sharpness(frame, landmarks):
    """Say how sharp the mouth is: the variance of the Laplacian of its grey values.

    frame      uint8 (H, W, 3) RGB
    landmarks  (68, 2), pixels
    returns    float; None if fewer than 3 x 3 pixels of the mouth are in the picture. The mouth is the box around its 20 points and a quarter
               of its width more on each side. It grows with contrast and shrinks with the frame's size: compare it with the true clip's alone
    """
    points = np.asarray(landmarks, np.float64)[MOUTH]
    margin = np.ptp(points[:, 0]) / 4
    left, top = np.maximum(np.floor(points.min(0) - margin), 0).astype(int)
    right, bottom = np.maximum(np.ceil(points.max(0) + margin), 0).astype(int) + 1
    grey = np.asarray(frame)[top:bottom, left:right] @ np.float32([0.299, 0.587, 0.114])
    if min(grey.shape) < 3:
        return None
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(edges.var(dtype=np.float64))


def _pictures(real, fake):
    """Both as (T, H, W, 3) of one shape."""
    real, fake = np.asarray(real), np.asarray(fake)
    if real.shape != fake.shape:
        raise TalkheadError(f"metrics: pictures of shape {real.shape} and {fake.shape}; compare pictures of one size")
    if real.ndim not in (3, 4) or real.shape[-1] != 3 or not real.size:
        raise TalkheadError(f"metrics: pictures of shape {real.shape}; give uint8 (H, W, 3) or (T, H, W, 3) RGB")
    return (real[None], fake[None]) if real.ndim == 3 else (real, fake)


class Pair(NamedTuple):
    """A frame of either clip, and the 68 landmarks found in it: None where no face was, or nobody looked."""

    real: np.ndarray  # uint8 (H, W, 3)
    fake: np.ndarray
    real_points: np.ndarray = None  # (68, 2), pixels
    fake_points: np.ndarray = None


def compare(real, fake, detector=None, real_landmarks=None, features=None, measures=(), max_lag=MAX_LAG):
    """Compare a generated clip with the true one, frame by frame, holding few frames of each at a time.

    real, fake      arrays (T, H, W, 3) or iterators of uint8 (H, W, 3), of one frame size; the longer is cut to the shorter
    detector        landmarks.Detector, called on frames for landmarks; None leaves out what needs them
    real_landmarks  (T, 68, 2) pixels, or an iterator of (68, 2), where the truth is known: then only `fake` is searched
    features        feature network as in fid.py, for distances of all frames of the clips; None leaves them out. Or two
                    `Seen`, which are filled: then the distances are left to the caller
    measures        what else to measure: objects whose `add` takes each `Pair` and whose `report` gives a dict
    max_lag         frames by which the mouth may be early or late
    returns         dict that JSON can hold:
                      frames       how many were compared
                      real_frames, fake_frames    how many each clip has
                      size         [height, width], pixels
                      psnr         decibels, mean over the frames that differ; null if none does (it would be infinite)
                      identical    how many frames are equal in every pixel: those that `psnr` leaves out
                      ssim         mean over frames
                      lmd, detector, …            as `LandmarkMeasures` has them, with a detector
                      fid, kid, fid_features      as `compare_features` has them, over all frames, also those of no partner
                    and what `measures` report
    raises          TalkheadError if a clip is empty or the frame sizes differ
    warns           as `warn_of_few`

    Source: thesis §5.2.1.
    """
    totals = {"psnr": _Mean(), "ssim": _Mean()}
    mouths = None if detector is None else LandmarkMeasures(detector.name, max_lag)
    truth = None if real_landmarks is None else iter(real_landmarks)
    seen = [FeatureAccumulator(features), FeatureAccumulator(features)] if callable(features) else features or []
    counts, identical, size = [0, 0], 0, None
    for a, b in zip_longest(real, fake):
        for cloud, frame in zip(seen, (a, b)):
            if frame is not None:
                cloud.add(frame)
        counts[0] += a is not None
        counts[1] += b is not None
        if a is None or b is None:
            continue
        if np.shape(a) != np.shape(b):
            raise TalkheadError(
                f"metrics, frame {counts[0] - 1}: the real frame is {np.shape(a)[1]}x{np.shape(a)[0]}, the fake one "
                f"{np.shape(b)[1]}x{np.shape(b)[0]}; bring both clips to one size, as metrics --size does"
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
        report |= compare_features(*(cloud.features() for cloud in seen), features)
    return report


def _face(frame, detector):
    """The landmarks of the largest face, or None."""
    return next(iter(detector(frame)), None)


class LandmarkMeasures:
    """What the landmarks of two clips tell, as the frames come.

    detector   the name of who finds them
    max_lag    as for `correlation_and_lag`

    `report()` is a dict:
      lmd, lmd_frames             pixels, mean over the frames with a face in both clips (the largest is taken); null if there are none
      detector                    who found them
      real_no_face, fake_no_face  frames in which nobody was seen
      velocity_error, velocity_frames     pixels a frame: how far apart the mouth points' movements from frame to frame are, mean over
                                  points and over the pairs of neighbouring frames with a face in both clips
      opening_correlation, opening_lag, opening_best   of the mouths' openings, as `LagCorrelation`; null where the clips are too short for
                                  it or a mouth was never seen
      real_jitter, fake_jitter    pixels: mean size of the second difference in time of the landmarks that are not the mouth's
      real_sharpness, fake_sharpness      mean over frames of `sharpness`

    `openings` holds the two mouths' openings so far, a number a frame, NaN where no face was.
    """

    def __init__(self, detector, max_lag=MAX_LAG):
        self.detector, self.max_lag, self.openings, self._unseen = detector, max_lag, ([], []), [0, 0]
        self._lmd, self._velocity = _Mean(), _Mean()
        self._jitter, self._sharpness, self._before = (_Mean(), _Mean()), (_Mean(), _Mean()), ([], [])

    def add(self, pair):
        points = [None if face is None else np.asarray(face, np.float64) for face in pair[2:]]
        both = all(face is not None for face in points)
        last = [before[-1] if before else None for before in self._before]
        if both:
            self._lmd.add(lmd(*points))
        if both and all(face is not None for face in last):
            self._velocity.add(lmd(points[0] - last[0], points[1] - last[1]))
        for side, (frame, face) in enumerate(zip(pair[:2], points)):
            self._unseen[side] += face is None
            self.openings[side].append(_opening(face))
            # Three neighbours, all with a face: their second difference.
            near = [*self._before[side], face]
            if len(near) == 3 and all(each is not None for each in near):
                self._jitter[side].add(np.linalg.norm((near[0] - 2 * near[1] + near[2])[: MOUTH.start], axis=-1).mean())
            self._before[side][:] = near[-2:]
            self._sharpness[side].add(None if face is None else sharpness(frame, face))

    def report(self):
        found = {"lmd": self._lmd.value(), "lmd_frames": self._lmd.count, "detector": self.detector}
        found |= {"real_no_face": self._unseen[0], "fake_no_face": self._unseen[1]}
        found |= {"velocity_error": self._velocity.value(), "velocity_frames": self._velocity.count}
        known = np.isfinite(self.openings).all(0).any() and len(self.openings[0]) >= self.max_lag + 3
        following = correlation_and_lag(*self.openings, self.max_lag) if known else (None, None, None)
        found |= dict(zip(("opening_correlation", "opening_lag", "opening_best"), following))
        for name, values in (("jitter", self._jitter), ("sharpness", self._sharpness)):
            found |= {f"{side}_{name}": value.value() for side, value in zip(("real", "fake"), values)}
        return found


class BilabialClosure:
    """Whether two mouths shut for the /p b m/, as the frames come.

    times      list of (start, end), seconds: when lips must be shut
    source     how that is known, for the report
    share      lips count as shut below this share of the true mouth's way, as `closed_threshold`
    fps        frames a second
    tolerance  frames by which they may shut too early or too late

    `report()` is a dict: closures, how many there are in the clip; closures_from, the source; closure_rate and real_closure_rate, the share
    met by either mouth; closure_luck, the share that the fake mouth would meet out of step. Shares are null where there are no closures.

    Source: thesis §5.3 (there judged by eye).
    """

    def __init__(self, times, source="phonemes", share=SHUT, fps=25.0, tolerance=TOLERANCE):
        self.times, self.source, self.share, self.timing = times, source, share, (fps, tolerance)
        self.openings = ([], [])

    def add(self, pair):
        for opening, face in zip(self.openings, pair[2:]):
            opening.append(_opening(face))

    def report(self):
        real, fake = self.openings
        shut = closed_threshold(real, self.share)
        asked = len(met_closures(real, self.times, shut, *self.timing))
        luck = chance_closures(fake, self.times, shut, *self.timing)
        return {
            "closures": asked,
            "closures_from": self.source,
            "closure_rate": closure_rate(fake, self.times, shut, *self.timing),
            "real_closure_rate": closure_rate(real, self.times, shut, *self.timing),
            "closure_luck": luck / asked if asked else None,
        }


def _opening(face):
    """How far a mouth is open; NaN where there is no face, or one without a distance between its eyes."""
    if face is None:
        return np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        opening = float(mouth_opening(face))
    return opening if np.isfinite(opening) else np.nan


class _Mean:
    """A running mean; None is not counted."""

    def __init__(self):
        self.count, self.sum = 0, 0.0

    def add(self, value):
        if value is not None:
            self.count += 1
            self.sum += value

    def value(self):
        return float(self.sum / self.count) if self.count else None


def correlation_and_lag(real, fake, max_lag=MAX_LAG):
    """Say how well one signal follows another, and how late it is.

    real, fake  (T,), one value a frame, e.g. mouth openings; NaN where a value is not known; the longer is cut to the shorter
    max_lag     frames; shifts from −max_lag to max_lag are tried
    returns     Following(correlation, lag, best). A positive lag says that `fake` is late: fake[t] goes with real[t − lag].
                Of equal correlations the smallest shift wins. A signal that never changes follows nothing: 0.0
    raises      TalkheadError if fewer than max_lag + 3 frames are left to compare
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    frames = min(len(real), len(fake))
    if frames < max_lag + 3:
        raise TalkheadError(
            f"metrics: {frames} frames are too few to look for lags of {max_lag}; give a longer clip or a smaller max_lag"
        )
    real, fake = real[:frames], fake[:frames]
    shifts = sorted(range(-max_lag, max_lag + 1), key=abs)
    found = {
        shift: _correlation(
            real[max(0, -shift) : frames - max(0, shift)], fake[max(0, shift) : frames - max(0, -shift)]
        )
        for shift in shifts
    }
    lag = max(shifts, key=lambda shift: round(found[shift], 9))  # rounding errors decide nothing
    return LagCorrelation(found[0], lag, found[lag])


def _correlation(a, b):
    """Pearson's r over the places where both are known."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 3:
        return 0.0
    a, b = a[known] - a[known].mean(), b[known] - b[known].mean()
    norm = np.sqrt((a @ a) * (b @ b))
    # Signals constant up to rounding have no direction to compare.
    return float(a @ b / norm) if norm > 1e-12 * max(1.0, len(a)) else 0.0


def met_closures(opening, closures, threshold, fps=25.0, tolerance=TOLERANCE):
    """Say for each sound made with shut lips whether the lips did shut.

    opening    (T,), mouth opening of each frame; NaN where it is not known
    closures   list of (start, end), seconds: the /p b m/ of the speech
    threshold  the mouth counts as shut below it
    fps        frames a second
    tolerance  frames by which the lips may shut too early or too late
    returns    bool (C',): one for each closure that begins within the clip

    Source: thesis §5.3 (bilabial closure, there judged by eye).
    """
    opening = np.asarray(opening, np.float64)
    met = []
    for start, end in closures:
        # Frame t shows the time from t / fps to (t + 1) / fps. The rounding keeps an end that falls on a frame's edge out of the next frame.
        first, last = int(np.floor(round(start * fps, 6))), int(np.ceil(round(end * fps, 6)))
        if first < len(opening):
            met.append(bool((opening[max(0, first - tolerance) : max(last, first + 1) + tolerance] < threshold).any()))
    return np.array(met, bool)


def closure_rate(opening, closures, threshold, fps=25.0, tolerance=TOLERANCE):
    """Say what share of the /p b m/ was made with shut lips; arguments as `met_closures`.

    returns  float in [0, 1], or None if the clip has no closure

    Source: thesis §5.3.
    """
    met = met_closures(opening, closures, threshold, fps, tolerance)
    return float(met.mean()) if len(met) else None


def closed_threshold(opening, share=SHUT):
    """The opening below which a clip's lips count as shut.

    opening  (T,), the true clip's; NaN where it is not known
    share    of the way from its 5th to its 95th percentile: detectors never see a shut mouth as 0, each in its own way
    returns  float; NaN if the mouth was never seen, and below that nothing is
    """
    known = np.asarray(opening, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return np.nan
    rest, wide = np.percentile(known, [5, 95])
    return float(rest + share * (wide - rest))


def chance_closures(opening, closures, threshold, fps=25.0, tolerance=TOLERANCE):
    """How many closures the same mouth would meet if it were out of step: mean over shifts of 4 to 10 frames; arguments as `met_closures`.

    A mouth that hardly opens meets them all, and one that moves at random meets some.
    """
    return float(
        np.mean(
            [met_closures(np.roll(opening, shift), closures, threshold, fps, tolerance).sum() for shift in OUT_OF_STEP]
        )
    )


def envelope(audio, frames, sample_rate=16000, fps=25.0):
    """Say how loud the speech is at each video frame.

    audio    float32 (N,) in [-1, 1]
    frames   how many values to give
    returns  float64 (frames,): root mean square under a Hann window two frames long, centred on the frame
    """
    hop = sample_rate / fps
    window = np.hanning(int(2 * hop))
    padded = np.pad(np.asarray(audio, np.float64) ** 2, (len(window), len(window) + int(frames * hop)))
    middles = (np.arange(frames) + 0.5) * hop + len(window)
    starts = np.round(middles - len(window) / 2).astype(int)
    return np.sqrt([padded[start : start + len(window)] @ window / window.sum() for start in starts])


def pauses(loudness, fps=25.0, quiet=0.1, shortest=0.24, margin=2):
    """Say which frames lie in a pause of the speech.

    loudness  (T,), from `envelope`
    quiet     share of the loudness' 95th percentile under which a frame is silent (0.1 is −20 dB)
    shortest  seconds; a shorter silence is a stop consonant, not a pause
    margin    frames left out at either end, where a mouth is still closing or already opening
    returns   bool (T,)
    """
    silent = np.asarray(loudness) < quiet * np.percentile(loudness, 95)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]]).astype(int)))
    inside = np.zeros(len(silent), bool)
    for start, end in edges.reshape(-1, 2):
        if end - start >= shortest * fps:
            # The clip's own ends are not edges of speech.
            inside[start + margin * (start > 0) : end - margin * (end < len(silent))] = True
    return inside


def pause_opening(opening, inside):
    """Say how far the mouth stands open while nothing is said.

    opening  (T,), NaN where it is not known
    inside   bool (T,), from `pauses`
    returns  float: mean opening in the pauses as a share of the clip's 95th percentile; None if there is no pause, or the mouth never opens
    """
    opening = np.asarray(opening, np.float64)
    quiet = opening[np.asarray(inside) & np.isfinite(opening)]
    widest = np.nanpercentile(opening, 95) if len(quiet) else 0.0
    return float(quiet.mean() / widest) if widest > 0 else None
