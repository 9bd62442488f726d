"""dlib's face descriptor in torch: its file, its chips, and whom it tells apart."""

import json
import sys

import numpy as np
import pytest

import toys
from conftest import example
from puppets import puppet
from talkhead import TalkheadError, files, image_files, landmarks


@pytest.fixture(scope="module")
def face_descriptor():
    return example("face_descriptor")


@pytest.fixture(scope="module")
def weights(shared_data):
    return shared_data / "weights" / "face_descriptor"


def write_model(folder, *entries):
    data = b"".join(np.asarray(values).tobytes() for _, values, _ in entries)
    (folder / "a.bin").write_bytes(data[:5])
    (folder / "b.bin").write_bytes(data[5:])  # arrays may run over from one file to the next
    described = [
        {"name": name, "shape": list(np.shape(values)), "dtype": "float32"} | more for name, values, more in entries
    ]
    (folder / "face_recognition_model-weights_manifest.json").write_text(
        json.dumps([{"weights": described, "paths": ["a.bin", "b.bin"]}])
    )


def test_bytes_become_numbers_by_scale_and_least(face_descriptor, tmp_path):
    filters = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)  # rows, columns, in, out
    write_model(
        tmp_path,
        ("filters", filters, {"quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}}),
        ("fc", np.float32([[1.25, -2.0]]), {}),
    )
    found = face_descriptor.read_weights(tmp_path)
    assert found["fc"].tolist() == [[1.25, -2.0]]
    assert found["filters"].shape == (2, 2, 2, 3) and found["filters"][1, 0, 0, 2] == 0.5 * filters[0, 2, 0, 1] - 1
    with pytest.raises(TalkheadError, match="not dlib's face descriptor"):
        face_descriptor.Descriptor(tmp_path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(TalkheadError, match="cannot be read"):
        face_descriptor.read_weights(tmp_path)


def test_a_similarity_is_that_of_scikit_image(face_descriptor):
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(20, 2)), rng.normal(size=(20, 2)) + (3, 4)
    theirs = transform.SimilarityTransform()
    if hasattr(theirs, "from_estimate"):
        theirs = theirs.from_estimate(start, end)
    else:  # before scikit-image 0.26, which wants Python 3.11
        assert theirs.estimate(start, end)
    turn, shift = face_descriptor.similarity(start, end)
    np.testing.assert_allclose(np.column_stack([turn, shift]), theirs.params[:2], atol=1e-9)


def test_a_chip_is_cut_where_the_mean_face_lies(face_descriptor):
    """A picture whose landmarks are the mean face, turned by a quarter and enlarged fourfold, with a cross of one
    colour a side."""
    mean = (0.25 + face_descriptor.MEAN_FACE) / 1.5 * 150
    landmarks = np.concatenate([np.zeros((17, 2)), mean])
    picture = np.zeros((150, 150, 3), np.uint8)
    picture[:75, :75], picture[75:, 75:] = (200, 40, 0), (0, 90, 250)
    same = face_descriptor.chip(picture, landmarks)
    np.testing.assert_array_equal(same, picture)
    large = np.rot90(picture.repeat(4, 0).repeat(4, 1))  # counterclockwise: (x, y) -> (y, side - x)
    x, y = 4 * landmarks.T + 1.5
    turned = face_descriptor.chip(large, np.stack([y, 599 - x], 1))
    assert (
        np.abs(turned.astype(int) - picture)[5:70, 5:70].max() <= 1
        and np.abs(turned.astype(int) - picture)[80:145, 80:145].max() <= 1
    )


def test_chips_of_another_size_are_refused(face_descriptor, weights):
    with pytest.raises(TalkheadError, match="cut them by chip"):
        face_descriptor.descriptors(np.zeros((1, 128, 128, 3), np.uint8), weights)


def test_two_photos_of_one_person_are_near_and_of_two_are_not(face_descriptor, weights, shared_data):
    pytest.importorskip("mediapipe")
    detector = landmarks.detector(
        "mediapipe", shared_data / "weights" / "mediapipe" / "face_landmarker_v2_with_blendshapes.task"
    )
    chips = []
    for person in ("001", "012", "033", "044", "063"):
        for mouth in ("neutral", "smiling"):
            image = image_files.read_image(shared_data / "images" / "faces" / "london_set" / f"{person}_{mouth}.jpg")
            chips.append(face_descriptor.chip(image, detector(image)[0]))
    found = face_descriptor.descriptors(np.stack(chips), weights)
    assert found.shape == (10, 128) and found.dtype == np.float32
    np.testing.assert_allclose(face_descriptor.descriptors(np.stack(chips[:1]), weights)[0], found[0], atol=1e-5)
    away = face_descriptor.distances(found, found)
    person = np.arange(10) // 2
    same = person[:, None] == person
    assert away[same].max() < face_descriptor.SAME_PERSON < away[~same].min()
    assert away[~same].mean() > 0.75


def test_clips_of_somebody_are_moved_away(face_descriptor, weights, shared_data, tmp_path, monkeypatch, capsys):
    """One clip shows a face that is among the portraits, the other a drawn one."""
    import too_near

    photo = shared_data / "images" / "faces" / "london_set" / "044_neutral.jpg"
    pytest.importorskip("mediapipe")
    (still,) = puppet.portraits(
        _folder_of(photo, tmp_path / "photos"),
        shared_data / "weights" / "mediapipe" / "face_landmarker_v2_with_blendshapes.task",
    )
    for name, face in (("000000", still), ("000001", puppet.drawn(3, 256))):
        frames, landmarks = zip(*puppet.perform(face, np.zeros((2, 3)), 256, 0, independent=True))
        (tmp_path / "clips").mkdir(exist_ok=True)
        toys.write_frames(tmp_path / "clips" / f"{name}.mp4", frames)
        files.write_array(tmp_path / "clips" / f"{name}.landmarks.npy", np.stack(landmarks))
        files.write_json(tmp_path / "clips" / f"{name}.json", {})
    monkeypatch.setattr(puppet, "portraits", lambda *_, **__: [still])
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "too_near.py",
            str(tmp_path / "clips"),
            "--portraits",
            str(tmp_path / "photos"),
            "--weights",
            str(weights),
            "--away",
            str(tmp_path / "away"),
        ],
    )
    too_near.main()
    near, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert near["clip"] == "000000.mp4" and near["nearest"] == "044_neutral" and near["distance"] < 0.3
    assert summary["clips"] == 2 and summary["nearer"] == 1
    assert {path.name for path in (tmp_path / "away").iterdir()} == {
        "000000.mp4",
        "000000.landmarks.npy",
        "000000.json",
    }
    assert {path.stem.split(".")[0] for path in (tmp_path / "clips").iterdir()} == {"000001"}


def _folder_of(photo, folder):
    folder.mkdir()
    (folder / photo.name).symlink_to(photo)
    return folder
