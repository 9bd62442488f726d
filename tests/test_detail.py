"""The photo moves as the generator's frames do."""

import cv2
import numpy as np
import pytest

import talkhead
from conftest import example
from talkhead import detail, faces, keypoints
from talkhead.detail import Detail, Frame, Inside, Photo
from talkhead.keypoints import places

INNER = [places(*line[3:8]) for line in (keypoints.UPPER_INNER, keypoints.LOWER_INNER)]


Read = example("detail_study").Given  # stands for the network: reads what it is told, in turn


@pytest.fixture(scope="module")
def face():
    return talkhead.read_image("examples/face.png")


@pytest.fixture(scope="module")
def points(face):
    return talkhead.load_keypoints().read(face[None])[0].astype(np.float64)


def opened(points, gap):
    """Keypoints with the lower lip further down, most in the middle."""
    result = points.copy()
    arch = np.sin(np.linspace(0, np.pi, 11))[:, None] * (0, gap)
    for line in (keypoints.LOWER_INNER, keypoints.LOWER_OUTER):
        result[places(*line[1:-1])] += arch[1:-1]
    result[places(*keypoints.JAW)] += (0, 0.6 * gap)
    return result


def gap_of(points):
    return np.linalg.norm(points[INNER[0]] - points[INNER[1]], axis=-1).mean()


def test_a_warp_brings_keypoints_to_their_targets(points):
    target = opened(points, 0.06)
    fields = detail.warp(points, target)
    moved = target - points
    for field, lip in zip(fields, (places(*keypoints.UPPER_INNER[1:-1]), places(*keypoints.LOWER_INNER[1:-1]))):
        at = np.float32(target[lip] * detail.GRID - 0.5)
        back = cv2.remap(field, at[:, 0], at[:, 1], cv2.INTER_LINEAR).reshape(-1, 2)
        np.testing.assert_allclose(back, -moved[lip], atol=0.002)


def test_a_warp_leaves_the_border_and_the_forehead_where_they_are(points):
    fields = detail.warp(points, opened(points, 0.06))
    assert not fields[:, [0, -1]].any() and not fields[:, :, [0, -1]].any()
    brow = int(points[places(105)][1] * detail.GRID)
    assert not fields[:, :brow].any()


def test_nothing_moves_where_the_render_is_at_rest(face, points):
    result = Detail(Photo(face, Read(points)), face, Read(points, points))(face)
    np.testing.assert_array_equal(result, face)


def test_the_photo_opens_its_mouth_as_far_as_the_render(face, points):
    render = np.asarray(face)
    wide = opened(points, 0.05)
    frame = Detail(Photo(face, Read(points)), render, Read(points, wide))(render)
    target, lids = detail.transfer(points, points, wide)
    assert gap_of(target) == pytest.approx(gap_of(wide), abs=1e-3)
    assert not lids.any()
    upper = frame[: int(points[places(105)][1] * len(face))]
    np.testing.assert_array_equal(upper, face[: len(upper)])


def test_shut_lips_of_a_render_shut_a_smile_with_teeth(points):
    smile = opened(points, 0.04)
    rest = points.copy()
    rest[INNER[1]] = rest[INNER[0]] + (0, 0.02)
    shut = points.copy()
    shut[places(*keypoints.LOWER_INNER)] = shut[places(*keypoints.UPPER_INNER)]
    target, _ = detail.transfer(smile, rest, shut)
    assert gap_of(target) < 0.001


def test_a_lower_lip_does_not_pass_a_chin_that_is_read_as_still(points):
    """Or the skin between them would fold: the warp keeps the order of what lies on the line from lip to chin."""
    wide = points.copy()
    wide[places(*keypoints.LOWER_INNER[1:-1], *keypoints.LOWER_OUTER[1:-1])] += (0, 0.06)
    target, _ = detail.transfer(points, points, wide)
    heights = target[places(17, 18, 200, 199, 152)][:, 1]
    assert np.diff(heights).min() > 0.25 * np.diff(points[places(17, 18, 200, 199, 152)][:, 1]).min()
    assert target[places(17)][1] == pytest.approx(wide[places(17)][1], abs=0.02)
    below = detail.warp(points, target)[1]
    at = np.float32([(target[places(17)][0], y) for y in np.linspace(heights[0], heights[-1], 40)]) * detail.GRID - 0.5
    source = (
        np.linspace(heights[0], heights[-1], 40)
        + cv2.remap(below, at[:, 0], at[:, 1], cv2.INTER_LINEAR).reshape(-1, 2)[:, 1]
    )
    assert np.diff(source).min() > 0


def test_a_small_motion_of_the_head_is_noise_and_a_large_one_is_followed_where_it_may_move(points):
    upper = keypoints.NOT_MOVED_BY_SPEECH
    for shift, head, wanted in ((0.001, True, 0.0), (0.02, True, 0.02), (0.02, False, 0.0)):
        moved = points + (shift, 0)
        target, _ = detail.transfer(points, points, moved, head)
        np.testing.assert_allclose(
            target[upper] - points[upper], np.broadcast_to((wanted, 0), (len(upper), 2)), atol=1e-9
        )


def test_frames_drawn_together_are_those_drawn_one_by_one_in_order(face, points):
    wide = [opened(points, gap) for gap in (0, 0.05, 0.02, 0.04, 0.01)]
    renders = [np.full((8, 8, 3), 50 * index, np.uint8) for index in range(5)]
    alone = list(map(Detail(Photo(face, Read(points)), face, Read(points, *wide)), renders, (0, 0, 1, 0, 0)))
    together = list(
        Detail(Photo(face, Read(points)), face, Read(points, *wide)).stream(iter(renders), (0, 0, 1, 0, 0), batch=3)
    )
    np.testing.assert_array_equal(together, alone)


def test_a_frame_comes_before_the_next_is_asked_for(face, points):
    asked = []

    def renders():
        for index in range(4):
            asked.append(index)
            yield face

    for batch, wanted in ((1, 1), (3, 3)):
        asked.clear()
        next(Detail(Photo(face, Read(points)), face, Read(*[points] * 4)).stream(renders(), batch=batch))
        assert len(asked) == wanted


def test_a_warp_of_a_tilted_head_is_torn_between_the_lips_alone(points):
    """The line between the lips, worked out only where it runs, beside the same for each pixel of the box."""
    place = Frame(300, 300, np.array([(60, 20), (20, 240), (240, 280), (280, 60)]))
    mouth = detail.Lines(place.pixels(points))
    across, down = np.arange(10, 290, dtype=np.float32), np.arange(5, 295, dtype=np.float32)
    seam, share, low = detail._seam(mouth, across, down)
    x, y = mouth.local(across, down)
    wanted = np.clip(
        0.5 + (y - mouth.height(mouth.middle, x)) / (1 + 0.5 * mouth.half * np.clip(np.abs(x) - 1, 0, None)), 0, 1
    )
    found = np.repeat(low[:, None].astype(np.float32), len(across), 1)
    found[seam] = share
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert 0 < seam.start < seam.stop < len(down) or not low.any()


def test_lids_shut_by_the_part_that_the_render_s_do(points):
    blink = points.copy()
    for upper, lower in zip(keypoints.UPPER_LIDS, keypoints.LOWER_LIDS):
        blink[places(*upper[1:-1])] = points[places(*lower[1:-1])]
    _, lids = detail.transfer(points, points, blink)
    np.testing.assert_allclose(lids, 1, atol=0.02)


def test_shut_lids_hide_the_eyes_and_change_nothing_else(face, points):
    frame = detail.draw(face, Frame(*face.shape[:2]), points, points, lids=(1, 1))
    changed = np.abs(frame.astype(int) - face).max(-1) > 8
    rows, columns = np.nonzero(changed)
    eyes = points[np.concatenate([places(*lid) for lid in keypoints.UPPER_LIDS])] * len(face)
    assert changed.any()
    assert rows.min() > eyes[:, 1].min() - 0.12 * len(face) and rows.max() < eyes[:, 1].max() + 0.06 * len(face)
    pupil = points[places(159, 145)].mean(0) * len(face)
    column, row = np.rint(pupil).astype(int)
    skin = face[int(row - 0.09 * len(face)), column].astype(int)
    assert np.abs(frame[row, column] - skin).mean() < np.abs(face[row, column] - skin).mean()


def test_the_inside_of_the_mouth_comes_from_the_render_in_the_photo_s_light(face, points):
    wide = opened(points, 0.08)
    render = np.zeros((64, 64, 3), np.uint8) + np.uint8((200, 0, 0))  # 59.8 bright
    inside = Inside(render, wide, np.float32((100, 100, 100)), np.float32((50, 50, 50)))  # twice the light of the photo
    frame = detail.draw(face, Frame(*face.shape[:2]), points, wide, inside=inside)
    column, row = np.rint(wide[places(13, 14)].mean(0) * len(face)).astype(int)
    np.testing.assert_allclose(frame[row, column], 20 + detail.CONTRAST * (29.9 - 20), atol=2)


def test_the_inside_of_the_mouth_has_the_skin_s_hue_and_is_redder_where_it_is_dark():
    skin = np.float32((160, 120, 80))
    bright, dark = (
        Inside(None, None, skin, skin).coloured(np.full((1, 1, 3), level, np.float32))[0, 0] for level in (200, 0)
    )
    assert skin[0] / skin[2] < dark[0] / dark[2] and 1 < bright[0] / bright[2] < skin[0] / skin[2]
    assert dark @ detail.LUMA < bright @ detail.LUMA


def test_a_whole_picture_moves_as_its_crop_does(face, points):
    """Drawn into a larger picture, turned by a quarter, the face is the one that is drawn by itself."""
    side = len(face)
    whole = np.full((side + 60, side + 100, 3), 90, np.uint8)
    turned = np.rot90(face)
    whole[20 : 20 + side, 50 : 50 + side] = turned
    corners = (
        np.array([(0, side), (side, side), (side, 0), (0, 0)]) + (50, 20) - 0.5
    )  # top left, bottom left, bottom right, top right of the face
    target = opened(points, 0.05)
    alone = detail.draw(face, Frame(side, side), points, target)
    within = detail.draw(whole, Frame(*whole.shape[:2], corners), points, target)
    np.testing.assert_allclose(within[20 : 20 + side, 50 : 50 + side].astype(int), np.rot90(alone).astype(int), atol=6)
    outside = np.ones(whole.shape[:2], bool)
    outside[20 : 20 + side, 50 : 50 + side] = False
    np.testing.assert_array_equal(within[outside], whole[outside])


def test_blur_is_measured():
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft2(rng.standard_normal((512, 512))) / np.maximum(
        np.hypot(*np.meshgrid(np.fft.rfftfreq(512), np.fft.fftfreq(512))), 1e-3
    )
    picture = np.fft.irfft2(spectrum)
    picture = np.clip(128 + 40 * (picture - picture.mean()) / picture.std(), 0, 255).astype(np.float32)
    for sigma in (1.0, 2.0):
        blurred = np.rint(cv2.GaussianBlur(picture, (0, 0), sigma))
        grey = np.repeat(blurred[..., None], 3, 2).astype(np.uint8)
        assert detail._blur(grey, Frame(512, 512)) == pytest.approx(sigma, rel=0.35)


def test_a_mouth_outside_the_picture_is_refused(face, points):
    with pytest.raises(talkhead.TalkheadError, match="mouth lies outside"):
        Photo(face[: int(points[places(13)][1] * len(face)) - 20], Read(points), quad=faces.whole_quad(face))


def test_native_side_is_even_and_bounded():
    def square(side):
        return np.array([(0, 0), (0, side), (side, side), (side, 0)])

    assert [detail.native_side(square(side)) for side in (301, 640.4, 5000)] == [300, 640, 1024]
