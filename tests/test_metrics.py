"""Every number against something that is not talkhead: scikit-image, a slow loop, a value worked by hand."""

import json
import runpy
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from talkhead import fid, metrics
from talkhead.errors import TalkheadError

ROOT = Path(__file__).parents[1]


def pictures(seed=0, shape=(40, 52, 3), strength=20):
    """A blotchy picture and a noisy copy of it, as a generator's output is to the truth."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (*[-(-n // 8) for n in shape[:2]], 3))
    real = coarse.repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]].astype(np.uint8)
    fake = np.clip(real + random.normal(0, strength, shape), 0, 255).astype(np.uint8)
    return real, fake


def clip(frames=4, **options):
    pairs = [pictures(seed, **options) for seed in range(frames)]
    return np.stack([real for real, _ in pairs]), np.stack([fake for _, fake in pairs])


def mouth(opening, frames=1):
    """Landmarks with eyes 100 pixels apart and the inner lips open by `opening` of that."""
    points = np.zeros((frames, 68, 2))
    points[:, 36:42, 0], points[:, 42:48, 0] = 50, 150
    points[:, 65:68, 1] = 100 * opening
    return points


class Pointing:
    """A detector that reads where the mouth is from the top left pixel, and sees no face if that is black."""

    name = "pointing"

    def __call__(self, image):
        return [np.full((68, 2), image[0, 0, 0], np.float32)] if image[0, 0].any() else []


# Pictures


def test_psnr_of_a_worked_value():
    real = np.full((5, 7, 3), 100, np.uint8)
    fake = real.copy()
    fake[..., 1] += 30  # one channel of three: MSE = 900 / 3
    assert metrics.psnr(real, fake) == pytest.approx(10 * np.log10(255**2 / 300))
    assert metrics.psnr(fake, real) == metrics.psnr(real, fake)  # uint8 does not wrap


def test_psnr_of_equal_pictures_is_infinite():
    real, _ = pictures()
    assert metrics.psnr(real, real) == np.inf


@pytest.mark.parametrize("strength", [2, 20, 80])
def test_psnr_and_ssim_equal_scikit_image(strength):
    reference = pytest.importorskip("skimage.metrics")
    real, fake = pictures(strength=strength)
    assert metrics.psnr(real, fake) == pytest.approx(
        reference.peak_signal_noise_ratio(real, fake, data_range=255), abs=1e-9
    )
    wanted = reference.structural_similarity(
        real, fake, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=255
    )
    assert metrics.ssim(real, fake) == pytest.approx(wanted, abs=1e-6)


def test_ssim_equals_wang_by_the_book():
    """Equation 5.3 patch by patch, with weighted variances taken about the patch's own mean."""
    real, fake = pictures(shape=(13, 12, 3))
    ramp = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(ramp, ramp) / ramp.sum() ** 2
    values = []
    for channel in range(3):
        for row in range(3):
            for column in range(2):
                x, y = (
                    picture[row : row + 11, column : column + 11, channel].astype(float) for picture in (real, fake)
                )
                mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
                covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
                variances = (weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum()
                c1, c2 = 0.0001 * 255**2, 0.0009 * 255**2
                values.append(
                    (2 * mean_x * mean_y + c1)
                    * (2 * covariance + c2)
                    / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
                )
    assert metrics.ssim(real, fake) == pytest.approx(np.mean(values), abs=1e-6)


def test_ssim_of_equal_pictures_is_one():
    real, fake = pictures()
    assert metrics.ssim(real, real) == pytest.approx(1)
    assert metrics.ssim(real, fake) < 1


def test_a_clip_is_the_mean_of_its_frames():
    real, fake = clip()
    for measure in (metrics.psnr, metrics.ssim):
        assert measure(real, fake) == pytest.approx(np.mean([measure(a, b) for a, b in zip(real, fake)]))


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim])
@pytest.mark.parametrize("shapes", [((20, 20, 3), (20, 22, 3)), ((20, 20), (20, 20)), ((0, 20, 20, 3), (0, 20, 20, 3))])
def test_pictures_that_cannot_be_compared(measure, shapes):
    with pytest.raises(TalkheadError):
        measure(*(np.zeros(shape, np.uint8) for shape in shapes))


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(TalkheadError, match="11 pixels.*10x16"):
        metrics.ssim(np.zeros((16, 10, 3), np.uint8), np.zeros((16, 10, 3), np.uint8))


# Landmarks


def test_lmd_looks_at_the_mouth_alone():
    real = np.random.default_rng(0).uniform(0, 64, (3, 68, 2))
    fake = real.copy()
    fake[:, :48] += 10
    assert metrics.lmd(real, fake) == 0
    fake[:, 48:] += (3, 4)
    assert metrics.lmd(real, fake) == pytest.approx(5)
    fake[:, 58:] = real[:, 58:]  # half of the twenty points
    assert metrics.lmd(real, fake) == pytest.approx(2.5)
    assert metrics.lmd(real[0], fake[0]) == pytest.approx(2.5)


@pytest.mark.parametrize("shapes", [((3, 68, 2), (4, 68, 2)), ((3, 20, 2), (3, 20, 2))])
def test_lmd_refuses_other_landmarks(shapes):
    with pytest.raises(TalkheadError, match="68"):
        metrics.lmd(*(np.zeros(shape) for shape in shapes))


def test_sharpness_is_the_variance_of_the_laplacian():
    frame = np.zeros((60, 60, 3), np.uint8)
    frame[30:34, 30:34] = 100
    points = np.zeros((68, 2))
    points[48:] = (28, 24)
    points[54], points[57] = (40, 34), (34, 40)  # the mouth is 12 wide: 3 pixels more on each side
    box = frame[21:44, 25:44, 0].astype(float)
    wanted = [
        box[y - 1, x] + box[y + 1, x] + box[y, x - 1] + box[y, x + 1] - 4 * box[y, x]
        for y in range(1, 22)
        for x in range(1, 18)
    ]
    assert metrics.sharpness(frame, points) == pytest.approx(np.var(wanted), rel=1e-5)
    assert metrics.sharpness(np.full_like(frame, 90), points) == pytest.approx(0, abs=1e-6)
    assert metrics.sharpness(frame, points + 100) is None


class Scripted:
    """A detector that reads its landmarks from a list, by the frame's top left pixel; a black one has no face."""

    name = "scripted"

    def __init__(self, points):
        self.points = points

    def __call__(self, image):
        return [self.points[image[0, 0, 0]]] if image[0, 0, 0] else []


def numbered(numbers):
    """Frames that the scripted detector can tell apart."""
    return np.array(numbers, np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)


def test_velocity_and_jitter_by_hand():
    points = {n: np.zeros((68, 2)) for n in range(1, 7)}
    points[2][48:] = (3, 4)  # the true mouth jumps by 5 and stays
    points[3][48:] = (3, 4)
    points[4][:] = (0, 0)
    points[5][48:] = (3, 0)
    points[6][:48, 0] = 2  # all but the mouth jumps
    report = metrics.compare(numbered([1, 2, 3]), numbered([4, 5, 6]), Scripted(points))
    # Steps of the mouth: real (3, 4), (0, 0); fake (3, 0), (-3, 0). They differ by 4, then 3.
    assert report["velocity_error"] == pytest.approx(3.5) and report["velocity_frames"] == 2
    assert report["real_jitter"] == 0 and report["fake_jitter"] == pytest.approx(2)
    assert report["lmd"] == pytest.approx((0 + 4 + 5) / 3)
    gap = metrics.compare(numbered([1, 0, 2]), numbered([4, 5, 6]), Scripted(points))
    assert (gap["velocity_error"], gap["velocity_frames"], gap["real_jitter"]) == (None, 0, None)
    assert (gap["real_no_face"], gap["fake_no_face"], gap["lmd_frames"]) == (1, 0, 2)
    json.dumps(gap, allow_nan=False)


@pytest.mark.parametrize("shift", [-3, 0, 2])
def test_compare_finds_a_shifted_mouth(shift):
    values = np.abs(wander(80)) * 0.2
    points = {n + 1: mouth(value)[0] for n, value in enumerate(values)}
    numbers = np.arange(10, 70)
    report = metrics.compare(numbered(numbers), numbered(numbers - shift), Scripted(points))
    assert report["opening_lag"] == shift and report["opening_best"] == pytest.approx(1)
    short = metrics.compare(numbered(numbers[:7]), numbered(numbers[:7]), Scripted(points))
    assert short["opening_correlation"] is None and short["opening_lag"] is None


def test_lips_that_stay_open_are_caught():
    opening = 0.1 + 0.1 * np.sin(np.arange(60) / 3)
    shut = [10, 25, 40, 52]
    opening[shut] = 0.0
    held = np.maximum(opening, 0.09)
    times = [(frame / 25, (frame + 1) / 25) for frame in shut]
    reports = []
    for fake in (opening, held):
        lips = metrics.BilabialClosure(times, tolerance=0)
        for a, b in zip(opening, fake):
            lips.add(metrics.Pair(None, None, mouth(a)[0], mouth(b)[0]))
        reports.append(lips.report())
    assert [report["closure_rate"] for report in reports] == [1, 0]
    assert all(report["real_closure_rate"] == 1 and report["closures"] == 4 for report in reports)
    assert reports[0]["closure_luck"] < 0.6 and reports[1]["closure_luck"] == 0
    none = metrics.BilabialClosure([], "words")
    none.add(metrics.Pair(None, None, mouth(0.1)[0], None))
    assert none.report() == {
        "closures": 0,
        "closures_from": "words",
        "closure_rate": None,
        "real_closure_rate": None,
        "closure_luck": None,
    }


def test_lips_count_as_shut_below_a_share_of_their_way():
    opening = np.linspace(0.1, 0.3, 101)
    assert metrics.closed_threshold(opening, 0.25) == pytest.approx(0.11 + 0.25 * 0.18)
    assert metrics.closed_threshold(np.append(opening, [np.nan] * 9), 0.25) == pytest.approx(0.155)
    assert np.isnan(metrics.closed_threshold([np.nan, np.nan]))


# Clips


def test_compare_agrees_with_the_single_measures():
    real, fake = clip()
    report = metrics.compare(iter(real), iter(fake))
    assert report == {
        "frames": 4,
        "real_frames": 4,
        "fake_frames": 4,
        "size": [40, 52],
        "psnr": pytest.approx(metrics.psnr(real, fake)),
        "identical": 0,
        "ssim": pytest.approx(metrics.ssim(real, fake)),
    }


def test_compare_cuts_the_longer_clip_and_says_so():
    real, fake = clip()
    short = metrics.compare(real, fake[:3])
    assert (short["frames"], short["real_frames"], short["fake_frames"]) == (3, 4, 3)
    assert short["psnr"] == pytest.approx(metrics.psnr(real[:3], fake[:3]))
    assert metrics.compare(real[:1], fake)["fake_frames"] == 4


def test_compare_of_equal_clips_is_json():
    real, fake = clip()
    report = json.loads(json.dumps(metrics.compare(real, real), allow_nan=False))
    assert report["psnr"] is None and report["identical"] == 4 and report["ssim"] == pytest.approx(1)
    fake[0] = real[0]
    report = metrics.compare(real, fake)
    assert report["identical"] == 1 and report["psnr"] == pytest.approx(metrics.psnr(real[1:], fake[1:]))


def test_compare_refuses_other_sizes_and_names_the_cure():
    with pytest.raises(TalkheadError, match=r"frame 0: the real frame is 52x40, the fake one 48x40; .*--set size=N"):
        metrics.compare(*(np.zeros((2, 40, width, 3), np.uint8) for width in (52, 48)))


@pytest.mark.parametrize("real, fake, empty", [(0, 2, "real"), (2, 0, "fake"), (0, 0, "real")])
def test_compare_refuses_an_empty_clip(real, fake, empty):
    with pytest.raises(TalkheadError, match=f"the {empty} clip has no frames"):
        metrics.compare(np.zeros((real, 16, 16, 3), np.uint8), np.zeros((fake, 16, 16, 3), np.uint8))


def test_compare_measures_mouths_where_both_are_seen():
    real, fake = np.full((3, 16, 16, 3), 40, np.uint8), np.full((3, 16, 16, 3), 43, np.uint8)
    fake[1] = 0
    report = metrics.compare(real, fake, Pointing())
    assert report["lmd"] == pytest.approx(3 * np.sqrt(2))
    assert (report["lmd_frames"], report["detector"]) == (2, "pointing")
    assert metrics.compare(real, np.zeros_like(real), Pointing())["lmd"] is None


def test_compare_takes_known_landmarks():
    real = fake = np.full((3, 16, 16, 3), 40, np.uint8)
    truth = np.full((2, 68, 2), 40.0)  # one frame short: the third is not counted
    truth[..., 0] += 6
    report = metrics.compare(real, fake, Pointing(), real_landmarks=truth)
    assert report["lmd"] == pytest.approx(6) and report["lmd_frames"] == 2


def test_compare_holds_one_pair_of_frames():
    def peak(frames):
        real, fake = pictures(shape=(64, 64, 3))
        tracemalloc.start()
        metrics.compare((real.copy() for _ in range(frames)), (fake.copy() for _ in range(frames)))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(60) < peak(3) + 200_000  # 57 pairs more would be 1.4 MB


class Colours:
    """A feature network: each picture's mean colour."""

    name, width = "colours", 3

    def __init__(self):
        self.most = 0

    def __call__(self, frames):
        self.most = max(self.most, len(frames))
        return frames.mean((1, 2), dtype=np.float32)


def test_compare_measures_distributions_of_all_frames():
    real, fake = clip(21)
    network = Colours()
    report = metrics.compare(iter(real), iter(fake[:19]), features=network)
    means = real.mean((1, 2)), fake[:19].mean((1, 2))
    assert report["fid"] == pytest.approx(fid.frechet_distance(*means), rel=1e-4)
    assert report["kid"] == pytest.approx(fid.kernel_distance(*means), rel=1e-4)
    assert (report["frames"], report["fid_features"], network.most) == (19, "colours", fid.TOGETHER)
    json.dumps(report, allow_nan=False)
    assert "fid" not in metrics.compare(real, fake)


def test_compare_warns_where_frames_are_fewer_than_features():
    real, fake = clip(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.compare(real, fake, features=Colours())
        with pytest.raises(UserWarning, match="FID of 2 images by 3 features: its covariances are singular"):
            metrics.compare(real, fake[:2], features=Colours())
    with pytest.raises(TalkheadError, match="fewer than two"), pytest.warns(UserWarning):
        metrics.compare(real[:1], fake, features=Colours())


def test_what_was_seen_can_be_asked_for_on_the_way():
    frames, _ = clip(20)
    seen = fid.FeatureAccumulator(Colours())
    for count, frame in enumerate(frames, 1):
        seen.add(frame)
        if count in (3, 20):
            np.testing.assert_allclose(seen.features(), frames[:count].mean((1, 2)), rtol=1e-5)
    assert seen.features().dtype == np.float32


def test_features_are_kept_and_frames_are_not():
    def peak(frames):
        real, fake = pictures(shape=(64, 64, 3))
        tracemalloc.start()
        metrics.compare((real.copy() for _ in range(frames)), (fake.copy() for _ in range(frames)), features=Colours())
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(40)
    assert peak(200) < peak(40) + 1_000_000  # 160 frames more of each would be 4 MB


# Mouths and voices


def wander(frames=80, seed=0):
    return np.convolve(np.random.default_rng(seed).normal(size=frames + 4), np.ones(5) / 5, "valid")


@pytest.mark.parametrize("shift", [-5, -2, -1, 0, 1, 3])
def test_lag_finds_an_injected_shift(shift):
    """The fake mouth does at frame t what the real one did at t − shift."""
    long = wander(100)
    real, fake = long[10:90], long[10 - shift : 90 - shift]
    found = metrics.correlation_and_lag(real, 3 * fake + 1)
    assert found.lag == shift and found.best == pytest.approx(1)
    assert found.correlation == pytest.approx(np.corrcoef(real, fake)[0, 1])


def test_correlation_has_a_sign_and_survives_gaps():
    real = wander()
    assert metrics.correlation_and_lag(real, -real).correlation == pytest.approx(-1)
    gaps = real.copy()
    gaps[[3, 40, 41]] = np.nan
    assert metrics.correlation_and_lag(gaps, real) == (pytest.approx(1), 0, pytest.approx(1))


def test_a_still_mouth_follows_nothing():
    assert metrics.correlation_and_lag(wander(), np.full(80, 0.1)) == (0.0, 0, 0.0)
    assert metrics.correlation_and_lag(wander(), np.full(80, np.nan)) == (0.0, 0, 0.0)


def test_correlation_cuts_the_longer_and_refuses_the_too_short():
    real = wander()
    assert metrics.correlation_and_lag(real, real[:50]).correlation == pytest.approx(1)
    with pytest.raises(TalkheadError, match="7 frames are too few"):
        metrics.correlation_and_lag(real, real[:7])


def test_closures_are_met_within_the_tolerance():
    opening = np.full(50, 0.2)
    opening[[10, 30]] = 0.01

    def at(frame):
        return frame / 25, (frame + 2) / 25  # two frames long

    closures = [at(10), at(9), at(8), at(11), at(12)]
    assert metrics.met_closures(opening, closures, 0.05, tolerance=0).tolist() == [True, True, False, False, False]
    assert metrics.met_closures(opening, closures, 0.05, tolerance=1).tolist() == [True, True, True, True, False]
    assert metrics.closure_rate(opening, [at(10), at(20), at(30), at(40)], 0.05) == 0.5
    assert metrics.closure_rate(opening, [at(10)], 0.01) == 0.0  # at the threshold is not below it


def test_closures_of_another_frame_rate_unknown_frames_and_the_clips_ends():
    opening = np.full(60, 0.2)
    opening[0], opening[30] = 0.0, np.nan
    assert metrics.met_closures(
        opening, [(0.0, 0.01), (0.5, 0.52), (0.9, 0.92), (9.0, 9.1)], 0.05, fps=60
    ).tolist() == [True, False, False]
    assert metrics.closure_rate(opening, [], 0.05) is None


def test_envelope_is_the_root_mean_square_of_a_tone():
    time = np.arange(16000) / 16000
    loud = metrics.envelope(0.5 * np.sin(2 * np.pi * 200 * time) * (time < 0.5), 25)
    assert loud.shape == (25,)
    assert np.allclose(loud[1:11], 0.5 / np.sqrt(2), rtol=0.01)
    assert loud[14:].max() < 1e-6


def test_envelope_is_centred_on_its_frame():
    audio = np.zeros(16000)
    audio[10 * 640 + 320] = 1  # a click in the middle of frame 10
    loud = metrics.envelope(audio, 25)
    assert loud.argmax() == 10 and loud[9] == pytest.approx(loud[11], rel=0.01)


def test_pauses_are_long_silences_without_their_edges():
    loudness = np.ones(60)
    loudness[:8] = loudness[20:32] = loudness[40:44] = 0.02  # the last is too short
    assert np.flatnonzero(metrics.pauses(loudness)).tolist() == [*range(6), *range(22, 30)]
    assert not metrics.pauses(np.ones(20)).any()


def test_pause_opening_is_a_share_of_the_widest():
    opening = np.concatenate([np.full(20, 0.02), np.full(20, 0.2), [np.nan]])
    inside = np.arange(41) < 10
    assert metrics.pause_opening(opening, inside) == pytest.approx(0.1)
    assert metrics.pause_opening(opening, np.zeros(41, bool)) is None
    assert metrics.pause_opening(np.zeros(41), inside) is None


def test_a_generated_mouth_is_measured_end_to_end():
    """Landmarks → opening → correlation, lag and closures, with the truth one frame earlier."""
    from talkhead.landmarks import mouth_opening

    true = np.abs(wander(60)) * 0.2
    real, fake = (np.concatenate([mouth(value) for value in values]) for values in (true, np.roll(true, 1)))
    found = metrics.correlation_and_lag(mouth_opening(real), mouth_opening(fake))
    assert found.lag == 1 and found.best == pytest.approx(1)
    closed = int(true.argmin())
    assert metrics.closure_rate(mouth_opening(fake), [(closed / 25, (closed + 1) / 25)], true.min() + 1e-6) == 1.0


# Distributions of features --------------------------------------------------------------------------------------------


def clouds(count, width, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width))
    return rng.normal(size=(count, width)), rng.normal(size=(count + 7, width)) @ mix + 0.3


def test_frechet_distance_equals_the_matrix_root():
    """As pytorch-fid writes it down, with scipy's matrix root."""
    real, fake = clouds(400, 24)
    covariances = [np.cov(cloud, rowvar=False) for cloud in (real, fake)]
    gap = real.mean(0) - fake.mean(0)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = gap @ gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    assert fid.frechet_distance(real, fake) == pytest.approx(wanted, rel=1e-6)


def test_frechet_distance_is_that_of_pytorch_fid():
    frozen = json.loads((ROOT / "tests" / "data" / "inception.jsonl").read_text().splitlines()[1])
    clouds = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "peer_fid.py"))["clouds"]()
    assert fid.frechet_distance(*clouds) == pytest.approx(frozen["frechet_distance"], rel=1e-6)


def test_frechet_distance_of_known_distributions():
    """Along one axis it is (m1 − m2)² + (s1 − s2)²; axes add up, and a shift alone is its square."""
    real = np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1]]) * np.sqrt(1.5)  # covariance: one, both ways
    assert fid.frechet_distance(real, real * [3, 0.5] + [2, 0]) == pytest.approx(4 + 4 + 0.25)
    few, _ = clouds(5, 50)  # fewer pictures than features
    assert fid.frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert fid.frechet_distance(few, few + 1) == pytest.approx(50)


@pytest.mark.parametrize("count, width", [(400, 24), (15, 24)])  # more pictures than features, and fewer
def test_a_cloud_in_pieces_is_the_cloud(count, width):
    real, fake = clouds(count, width)
    spreads = [fid.FeatureStatistics(width), fid.FeatureStatistics(width)]
    for spread, cloud in zip(spreads, (real, fake)):
        for piece in np.split(cloud, [1, 5, len(cloud) // 2]):
            spread.add(piece)
        np.testing.assert_allclose(
            spread.root.T @ spread.root / (len(cloud) - 1), np.cov(cloud, rowvar=False), atol=1e-9
        )
        assert len(spread.root) <= max(width, len(cloud) + 3)
    assert fid.statistics_distance(*spreads) == pytest.approx(fid.frechet_distance(real, fake), rel=1e-9)


def test_kernel_distance_equals_a_slow_loop():
    real, fake = clouds(6, 3)
    kernel = lambda a, b: (float(a @ b) / 3 + 1) ** 3
    within = lambda cloud: np.mean([kernel(a, b) for i, a in enumerate(cloud) for j, b in enumerate(cloud) if i != j])
    wanted = within(real) + within(fake[:6]) - 2 * np.mean([kernel(a, b) for a in real for b in fake[:6]])
    assert fid.kernel_distance(real, fake[:6], subsets=1) == pytest.approx(wanted)


def test_kernel_distance_of_one_distribution_is_about_nothing():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 2000, 8))
    assert abs(fid.kernel_distance(one, other, 20, 500)) < 0.01 < fid.kernel_distance(one, other + 0.5, 20, 500)
    assert fid.kernel_distance(one, other, 5, 100) == fid.kernel_distance(one, other, 5, 100)


@pytest.mark.parametrize("distance", [fid.frechet_distance, fid.kernel_distance])
def test_features_that_cannot_be_compared_are_refused(distance):
    with pytest.raises(TalkheadError, match="of one network"):
        distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(TalkheadError, match="fewer than two"):
        distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(TalkheadError, match="not finite"):
        distance(np.zeros((4, 3)), np.full((4, 3), np.nan))
