"""The audio study: its numbers against values worked by hand, and the whole script on toy weights."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import toys
from conftest import example
from talkhead import files
from toys import EXAMPLES


@pytest.fixture(scope="module")
def study():
    return example("audio_study")


@pytest.fixture
def eye(study):
    """One that knows two people and reads the first number of a code."""
    eye = object.__new__(study.Eye)
    eye.people = {"a": np.zeros((6, 512)), "b": np.full((6, 512), 2.0)}
    eye.weights = np.eye(1, 6 * 512)[0]
    return eye


def path(*values):
    """A path of as many frames, whose first number is told and whose others are all the mean of those."""
    codes = np.full((len(values), 6, 512), np.mean(values))
    codes[:, 0, 0] = values
    return codes


def test_a_reading_finds_what_opens_a_mouth(study):
    rng = np.random.default_rng(0)
    openings = rng.random((3, 40))
    wide, narrow = rng.standard_normal((2, 6, 512))
    drift = rng.standard_normal((3, 40)) * 0.1
    paths = [
        who + o[:, None, None] * wide + d[:, None, None] * narrow
        for who, o, d in zip(rng.standard_normal((3, 6, 512)), openings, drift)
    ]
    weights = study.Eye.reading(paths, list(openings))
    assert weights @ wide.ravel() == pytest.approx(1, abs=0.02) and abs(weights @ narrow.ravel()) < 0.1


def test_straying_by_hand(eye):
    """From somebody at 1.5 it is a quarter of the way back to b, and three quarters to a."""
    assert eye.stray(path(1.5, 1.5), path(1.5, 1.5)) == (0, "b")
    stray, nearest = eye.stray(path(0.5, 0.5), path(1.5, 1.5))
    assert nearest == "a" and stray == pytest.approx(1 / 0.5)
    assert eye.stray(path(1.25, 1.25), path(1.5, 1.5))[0] == pytest.approx(0.25 / 0.75)


def test_motion_by_hand(study, eye):
    true = path(*[0.0, 1.0, 1.0, 0.0] * 4)
    clip = study.Clip(None, "a", [], None, true[:, 0, 0], [(0.0, 0.04), (0.4, 0.44), (0.5, 0.52)])
    same = study.motion(eye, clip, true, true)
    assert same == {"correlation": pytest.approx(1), "lag": 0, "range": pytest.approx(1), "closures": 3, "asked": 3}
    late = study.motion(eye, clip, np.roll(true, 1, 0) * 2, true)
    assert late["lag"] == 1 and late["range"] == pytest.approx(2)
    still = study.motion(eye, clip, true * 0, true)
    assert still["correlation"] == 0 and still["range"] == 0


def test_means_share_closures_over_all_clips(study):
    records = [
        {"correlation": 0.5, "closures": 1, "asked": 4, "stray": 0.5, "nearest": "a"},
        {"correlation": 0.7, "closures": 0, "asked": 0, "stray": 1.5, "nearest": "b"},
    ]
    assert study.mean(records) == {
        "correlation": pytest.approx(0.6),
        "closures": 0.25,
        "asked": 4,
        "stray": 1.0,
        "kept": 0.5,
        "clips": 2,
    }
    assert study.mean(records[1:])["closures"] is None


def test_models_that_are_not_there_are_named(study, tmp_path, puppet, toy_weights):
    networks = {"generator": toy_weights / "generator.pt", "encoder": toy_weights / "encoder.pt"}
    with pytest.raises(study.TalkheadError, match="out: holds no first-mfcc.pt; train it"):
        (tmp_path / "out").mkdir()
        study.study(puppet / "clips", puppet / "clips", puppet / "clips", tmp_path / "out", ["mfcc"], **networks)


@pytest.mark.slow
def test_the_script_on_toy_weights(tmp_path, puppet, toy_weights):
    for name, speakers in {"clips": 4, "seen": 2, "unseen": 1}.items():
        (tmp_path / name).mkdir()
        for index in range(speakers):
            for suffix in (".mp4", ".track.npy"):
                shutil.copy(puppet / f"clips/{index:06d}{suffix}", tmp_path / name / f"{index:06d}{suffix}")
            files.write_json(
                tmp_path / name / f"{index:06d}.json",
                {"speaker": f"s{index}", "donors": [name[:2], str(index % 2)], "phonemes": [[0.0, 0.1, "P"]]},
            )
    environment = toys.environment(tmp_path / "bin") | {
        "FEATURES": "mfcc",
        "STEPS": "2",
        "TRAIN": "--batch 2 --frames 4 --latent-weight 250 --image-frames 0 --hold-out 1",
        "FIRST": "--channels 4,4,4,4 --lstm 4 --decoder 8 --identity-width 4",
        "LIMIT": "2",
        "TUNE_FRAMES": "3",
        "TUNE_STEPS": "2",
        "SECOND": "--components 4 --channels 4,4,4,4,4 --hidden 8 --embedding 8 --lstm 8 --decoder 8",
        "GENERATOR": str(toy_weights / "generator.pt"),
        "ENCODER": str(toy_weights / "encoder.pt"),
    }
    line = [EXAMPLES / "audio_study.sh", *(tmp_path / name for name in ("clips", "seen", "unseen", "out"))]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/study.json").read_text())
    assert (
        found["people"] == 2
        and set(found["seen"]) == {"first, mfcc", "second, mfcc"}
        and found["seen"]["first, mfcc"]["asked"] == 2
    )
    assert found["unseen"]["second, mfcc"]["stray"] >= 0 and set(found["tuning"]) == {
        "not tuned",
        "one frame",
        "several frames",
    }
    assert found["seeds"]["first, mfcc"]["whole"] > 0 and len(found["claims"]) == 6
    said = (tmp_path / "out/study.md").read_text()
    assert "| model, features | correlation of the opening |" in said and "## People never seen" in said
    for name, rows in {"seen": 2 * 3, "cross": 2 * 3, "unseen": 3, "tuning": 4}.items():
        with Image.open(tmp_path / f"out/{name}.png") as picture:
            assert picture.size == (12 * 130 + 2, rows * 130 + 2), name
