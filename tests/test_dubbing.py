"""A filmed clip gets new lips and keeps the rest."""

from itertools import islice

import numpy as np
import pytest

import talkhead
from talkhead import dubbing, keypoints
from talkhead.detail import Frame, draw
from talkhead.dubbing import Film
from talkhead.keypoints import places
from test_detail import Read, gap_of, opened


@pytest.fixture(scope="module")
def face():
    return talkhead.read_image("examples/face.png")


@pytest.fixture(scope="module")
def points(face):
    shut = talkhead.load_keypoints().read(face[None])[0].astype(np.float64)
    shut[places(*keypoints.LOWER_INNER[1:-1])] = shut[places(*keypoints.UPPER_INNER[1:-1])]
    return shut


def film(face, poses):
    frames = [draw(face, Frame(*face.shape[:2]), poses[0], pose) for pose in poses]
    return Film(((frame, None, index) for index, frame in enumerate(frames)), Read(*poses)), frames


def test_frames_run_back_and_forth():
    assert list(islice(dubbing.back_and_forth(4), 9)) == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert list(islice(dubbing.back_and_forth(1), 3)) == [0, 0, 0]


def test_a_film_gives_its_frames_back(face, points):
    poses = [opened(points, gap) for gap in (0, 0.05, 0.02)]
    clip, frames = film(face, poses)
    assert len(clip) == 3
    for index in (2, 0, 1):
        np.testing.assert_array_equal(clip.image(index), frames[index])


def test_the_mouth_at_rest_is_shut_in_every_pose(points):
    turn = np.array([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]])
    poses = np.stack(
        [
            opened(points, gap) @ way.T + shift
            for gap, way, shift in (
                (0, np.eye(2), 0),
                (0.05, turn, 0.02),
                (0.03, 1.1 * np.eye(2), -0.03),
                (0, turn, 0.01),
                (0.06, np.eye(2), 0),
            )
        ]
    )
    rest = dubbing.rest_keypoints(poses, Read())
    for start, (way, shift) in zip(
        rest, ((np.eye(2), 0), (turn, 0.02), (1.1 * np.eye(2), -0.03), (turn, 0.01), (np.eye(2), 0))
    ):
        np.testing.assert_allclose(start, points @ way.T + shift, atol=1e-9)


def test_a_film_that_speaks_what_it_spoke_stays_as_it_is(face, points):
    poses = [opened(points, gap) for gap in (0, 0.04, 0.02, 0.05)]
    clip, frames = film(face, poses)
    clip.network.readings = [points, *poses]
    dubbed = list(dubbing.dub(clip, [face] * 4, face))
    for frame, wanted in zip(dubbed, frames):
        assert talkhead.psnr(frame, wanted) > 38


def test_other_lips_take_the_place_of_those_of_the_film(face, points):
    poses = [opened(points, gap) for gap in (0, 0.05, 0.05, 0)]
    clip, _ = film(face, poses)
    spoken = [opened(points, gap) for gap in (0.05, 0, 0, 0.05)]
    network = talkhead.load_keypoints()
    clip.network.readings = [points, *spoken]
    dubbed = np.stack(list(dubbing.dub(clip, [face] * 4, face)))
    read = [gap_of(points) for points in network.read(dubbed)]
    assert min(read[0], read[3]) > 0.02 > max(read[1], read[2]) + 0.005


def test_the_speaker_s_own_range_is_kept(points):
    clip = Film.__new__(Film)
    clip.points = np.stack([opened(points, gap) for gap in np.tile((0, 0.02, 0.04), 10)])
    half = [opened(points, gap / 2) for gap in np.tile((0, 0.02, 0.04), 10)]
    clip.network = Read(*half)
    assert dubbing.own_gain(clip, [np.zeros((8, 8, 3), np.uint8)] * 30) == pytest.approx(
        2 / dubbing.OPENING_BIAS, rel=0.05
    )
    clip.network = Read(*[points] * 30)
    assert dubbing.own_gain(clip, [np.zeros((8, 8, 3), np.uint8)] * 30) == 1


def test_no_frames_are_no_identity():
    with pytest.raises(talkhead.TalkheadError, match="in.mp4: no frames"):
        talkhead.identity_of([], None, name="in.mp4")


def test_a_clip_without_frames_is_refused():
    with pytest.raises(talkhead.TalkheadError, match="no frames"):
        Film(iter(()), Read())
