"""The study of motion from noise: its numbers against values worked by hand, and the whole script on toy weights."""

import json
import subprocess

import numpy as np
import pytest
import torch

import toys
from conftest import example
from puppets import puppet
from talkhead import image_files, landmarks
from toys import EXAMPLES


@pytest.fixture(scope="module")
def study():
    return example("video_gan_study")


def test_features_of_a_face_by_hand(study):
    marks = np.zeros((3, 68, 2))
    marks[:, 36:42], marks[:, 42:48], marks[:, 30] = (0, 0), (10, 0), (6, 4)
    marks[:, [37, 38], 1], marks[:, [41, 40], 1], marks[:, [43, 44], 1], marks[:, [47, 46], 1] = (
        -1,
        1,
        -1,
        1,
    )  # lids two apart
    marks[1:] = marks[1:] @ np.array([[0, 2], [-2, 0]]) + 3  # twice the size, turned by a quarter
    marks[2, 30] += (0, 4)  # the nose goes along the eyes
    found = study.described(marks)
    np.testing.assert_allclose(found[:, 0], landmarks.mouth_opening(marks))
    np.testing.assert_allclose(found[:, 1:4], [[0.2, 0.1, 0.4], [0.2, 0.1, 0.4], [0.2, 0.3, 0.4]], atol=1e-9)
    np.testing.assert_allclose(found[:, 4], [0, np.pi / 2, np.pi / 2])


def test_the_reader_finds_a_linear_feature(study):
    random = np.random.default_rng(0)
    mixing = random.normal(size=(5, 2, 512))

    def clip():
        features = random.normal(size=(40, 5))
        return (np.tensordot(features, mixing, 1) + 10 * random.normal(size=(2, 512))).astype(np.float32), features

    reader, (path, features) = study.Reader([clip() for _ in range(6)], 8), clip()
    wanted = (features - features.mean(0)) / reader.spread
    np.testing.assert_allclose(reader(path), wanted, atol=0.4)  # the ridge shrinks it a little
    assert min(reader.judged([(path, features)]).values()) > 0.99


def test_movements_are_counted_once(study):
    assert study.movements(np.array([0, 0, -3, 0, 0, -3, -1.9, -3, 0, 0, 0]), 2) == 2
    assert study.movements(np.zeros(5), 2) == 0
    mouth = np.array([0, 0, 2, 0, 0, 2, 0, 0, 0, 0.0])
    motions = [np.stack([mouth, -mouth, *np.zeros((3, 10))], 1)]
    assert study.rates(motions) == pytest.approx({"blinks": 0, "mouth": 2 / (10 / 25 / 60)})


def test_distances_and_windows_by_hand(study):
    a, b = np.zeros((40, 5)), np.ones((32, 5))
    assert study.apart([a, b]) == 1 and study.apart([a, b, a]) == pytest.approx(2 / 3)
    ramp = np.arange(40.0)[:, None] * np.ones(5)
    cut = study.windows(ramp).reshape(-1, 8, 5)
    assert cut.shape == (4, 8, 5) and cut[:, 0, 0].tolist() == [0, 8, 16, 24] and cut[0, -1, 0] == 15
    assert len(study.windows(ramp[:10])) == 0
    seen = np.array([[1.0, 0], [0, 2], [1, 1]])
    assert study.away(seen, np.array([3.0, 0])) == pytest.approx((0 + 1 + 1 - 0.5**0.5) / 3)


def test_correlations_within_groups(study):
    random = np.random.default_rng(1)
    one, other = random.normal(size=(2, 30, 5))
    same = study.transfer([[one, 2 * one], [other, other + 1]])
    assert same == pytest.approx({"mouth": 1, "head": 1})
    mixed = study.transfer([[one, other]])
    assert mixed["mouth"] == pytest.approx(np.corrcoef(one[:, 0], other[:, 0])[0, 1])
    assert mixed["head"] == pytest.approx(np.mean([np.corrcoef(one[:, k], other[:, k])[0, 1] for k in (2, 3, 4)]))


def write_clips(folder, seeds):
    folder.mkdir()
    track = np.tile(np.float32([[0.0, 0.0, 0.0], [0.15, 0.0, 0.1]]), (12, 1))
    for seed in seeds:
        made = list(puppet.perform(puppet.drawn(seed=seed, size=32), track, size=32, seed=seed))
        toys.write_frames(folder / f"{seed:06d}.mp4", (frame for frame, _ in made))
        np.save(folder / f"{seed:06d}.landmarks.npy", np.stack([marks for _, marks in made]))


@pytest.mark.slow
def test_the_script_measures_and_draws(tmp_path, toy_weights):
    write_clips(tmp_path / "train", (1, 2))
    write_clips(tmp_path / "held", (3, 4))
    small = {
        "RUNS": "w",
        "STEPS": 1,
        "COMPONENTS": 4,
        "NOISE": 3,
        "WIDTH": 2,
        "CRITIC_SIZE": 16,
        "SEEDS": 2,
        "IDENTITIES": 2,
        "SECONDS_EACH": 1,
        "LONG": 4,
    }
    networks = {name.upper(): toy_weights / f"{name}.pt" for name in ("generator", "encoder", "video_gan")}
    environment = toys.environment(tmp_path / "bin", **small, **networks)
    done = subprocess.run(
        [EXAMPLES / "video_gan_study.sh", tmp_path / "out", tmp_path / "train", tmp_path / "held"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert list(found["runs"]) == ["thesis", "w", "given"] and found["clips"] == {"training": 2, "held_out": 2}
    for figures in found["runs"].values():
        assert (
            figures["diversity"] > 0 and figures["motion"] > 0 and figures["drift"]["minutes"] == pytest.approx(4 / 60)
        )
    assert "| thesis |" in (tmp_path / "out" / "study.md").read_text()
    assert image_files.read_image(tmp_path / "out" / "given.png").shape == (4 * 16, 10 * 16, 3)
    assert torch.load(tmp_path / "out" / "w.pt", weights_only=True)["config"]["network"]["space"] == "w"
