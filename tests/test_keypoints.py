"""Keypoints read from aligned faces, and the mouth at rest."""

import numpy as np
import pytest
import torch
from PIL import Image

import talkhead
import toys
from talkhead import keypoints
from talkhead.keypoints import KeypointNetwork, places


@pytest.fixture(scope="module")
def network():
    return talkhead.load_keypoints()


@pytest.fixture(scope="module")
def face():
    return talkhead.read_image("examples/face.png")


def test_every_vertex_is_there_once():
    assert len(set(keypoints.VERTICES)) == len(keypoints.VERTICES)
    assert keypoints.VERTICES[: len(keypoints.LIPS)] == keypoints.LIPS


def test_places_are_indices_of_vertices():
    assert keypoints.VERTICES[places(291)] == 291
    assert [keypoints.VERTICES[place] for place in places(13, 14)] == [13, 14]


def test_window_is_what_pillow_cuts_out():
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((128, 128), Image.BICUBIC))
    cut = keypoints.window(smooth, (0.5, 0.25), 0.25, 32)  # 32 pixels, one to one
    np.testing.assert_array_equal(cut, smooth[16:48, 48:80])
    halved = keypoints.window(smooth, (0.5, 0.5), 1.0, 64)
    np.testing.assert_allclose(halved, np.asarray(Image.fromarray(smooth).resize((64, 64), Image.BOX)), atol=2)


def test_one_picture_reads_as_in_a_batch(network, face):
    other = face[:, ::-1]
    together = network.read(np.stack([face, other]))
    np.testing.assert_allclose(together[1], network.read(other[None])[0], atol=1e-5)


def test_reading_hardly_depends_on_the_size_of_the_picture(network, face):
    small = np.asarray(Image.fromarray(face).resize((128, 128), Image.LANCZOS))
    apart = np.linalg.norm(network.read(face[None]) - network.read(small[None]), axis=-1)
    assert apart.mean() < 0.005


def test_keypoints_lie_where_mediapipe_finds_them(network, shared_data):
    pytest.importorskip("mediapipe", reason="mediapipe is not installed")
    from talkhead import faces, landmarks

    detector = landmarks.detector(
        "mediapipe", shared_data / "weights/mediapipe/face_landmarker_v2_with_blendshapes.task"
    )
    apart, gaps = [], []
    for path in sorted((shared_data / "images/faces/faker_ai").glob("*.jpg"))[:8]:
        photo = talkhead.read_image(str(path))
        square = faces.quad(detector(photo)[0])
        crop = faces.crop(photo, square, 256)
        mesh = max(detector.meshes(crop), key=lambda points: np.ptp(points, 0).prod())
        wanted, found = (mesh[list(keypoints.VERTICES)] + 0.5) / 256, network.read(crop[None])[0]
        lips = slice(len(keypoints.LIPS))
        apart.append(np.linalg.norm(found[lips] - wanted[lips], axis=-1).mean())
        gaps.append([np.linalg.norm(points[places(13)] - points[places(14)]) for points in (found, wanted)])
    assert np.mean(apart) < 0.012  # of the side: 3 pixels of 256
    assert np.abs(np.subtract(*np.transpose(gaps))).mean() < 0.01


def test_shut_lips_are_at_rest_and_a_smile_with_teeth_is_brought_there(network):
    points = network.read(talkhead.read_image("examples/face.png")[None])[0].astype(np.float64)
    inner = [places(*line[1:-1]) for line in (keypoints.UPPER_INNER, keypoints.LOWER_INNER)]
    points[inner[1]] = points[inner[0]]
    np.testing.assert_array_equal(network.neutral(points), points)
    points[inner[1]] += (0, 0.03)
    rest = network.neutral(points)
    gap = np.linalg.norm(rest[inner[0]] - rest[inner[1]], axis=-1)
    assert gap.mean() < 0.015
    still = np.setdiff1d(np.arange(len(points)), keypoints.MOVED_BY_SPEECH)
    np.testing.assert_array_equal(rest[still], points[still])


@pytest.mark.parametrize("hanging", [-0.1, 0.1])
def test_a_mouth_at_rest_from_a_smile_is_not_grim(hanging):
    """Corners that the map pulls down hang no lower than those of most mouths, or than in the photo, where they hung
    lower there."""
    network, spots = (
        KeypointNetwork(),
        {vertex: index for index, vertex in enumerate(np.array(keypoints.VERTICES)[keypoints.MOVED_BY_SPEECH])},
    )
    for vertex in (61, 291):
        network.neutral_weights[0, 2 * spots[vertex] + 1] = 0.08
    points = talkhead.load_keypoints().read(talkhead.read_image("examples/face.png")[None])[0].astype(np.float64)
    points[places(*keypoints.LOWER_INNER[1:-1], *keypoints.LOWER_OUTER[1:-1])] += (0, 0.05)
    width = np.linalg.norm(points[places(61)] - points[places(291)])
    points[places(61, 291)] += (0, (hanging - keypoints.hang(points)) * width)
    rest = network.neutral(points)
    assert keypoints.hang(rest) == pytest.approx(max(hanging, keypoints.REST_HANG), abs=0.005)
    gap = rest[places(*keypoints.LOWER_INNER[1:-1])] - rest[places(*keypoints.UPPER_INNER[1:-1])]
    assert np.linalg.norm(gap, axis=-1).max() < 0.01


def test_a_file_is_read_back_as_the_same_network(tmp_path):

    torch.manual_seed(0)
    network = KeypointNetwork(widths=(4, 4), mouth_widths=(4, 4), size=16, mouth_size=16, hidden=4).eval()
    path = tmp_path / "k.pt"
    toys.save_network(path, "keypoints", network)
    picture = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(talkhead.load_keypoints(path).read(picture), network.read(picture))


def test_other_weights_are_refused_by_name():
    with pytest.raises(talkhead.TalkheadError, match="generator.pt: holds"):
        talkhead.load_keypoints(talkhead.bundled("generator"))
