"""SyncNet against what the public code found with the same weights, frames and sound, all made by formulas."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from talkhead import downloads, syncnet
from talkhead.errors import TalkheadError

ROOT = Path(__file__).parents[1]
PEER = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "peer_syncnet.py"))
FROZEN = json.loads((ROOT / "tests" / "data" / "syncnet.json").read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the layout of syncnet_v2.model, full size."""
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(PEER["weights"](), path)
    return path


@pytest.fixture
def toy(tmp_path):
    """A sixteenth as wide."""
    path = tmp_path / "toy.model"
    torch.save(PEER["weights"](16), path)
    return path


def test_what_is_seen_and_heard_is_that_of_the_public_code(weights):
    network = syncnet.load(weights)
    features, frames = syncnet.sound_features(PEER["sound"]()), PEER["frames"]()
    moments = len(FROZEN["seen"])
    with torch.no_grad():
        heard = network.hear(
            torch.from_numpy(np.stack([features[t * 4 : t * 4 + 20].T for t in range(moments)])[:, None])
        )
        seen = network.see(torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float())[:moments]
    for found, wanted in ((seen, FROZEN["seen"]), (heard, FROZEN["heard"])):
        assert np.abs(found[:, :8].numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    evaluator = syncnet.SyncNetEvaluator(network)
    for frame in frames:
        evaluator.add(frame)
    sync = evaluator.score(PEER["sound"]())
    assert sync.distance == pytest.approx(FROZEN["clip"]["lse_d"], rel=1e-4)


def test_agreement_is_that_of_the_public_code():
    sync, wanted = syncnet.sync_scores(*PEER["moments"]()), FROZEN["moments"]
    assert sync.distance == pytest.approx(wanted["lse_d"], rel=1e-5) and sync.confidence == pytest.approx(
        wanted["lse_c"], rel=1e-4
    )
    assert sync.offset == wanted["offset"] == -3 and wanted["lse_c"] > 1


def test_features_of_sound_are_those_of_python_speech_features():
    reference = pytest.importorskip("python_speech_features")
    audio = np.concatenate([PEER["sound"](9), np.zeros(3000), PEER["sound"](2)])
    wanted = reference.mfcc((audio * 32768).astype(np.int16), 16000)
    found = syncnet.sound_features(audio)
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-3


def test_agreement_finds_a_shift():
    """What is heard at moment t is what was seen at t − 3: the sound is three frames late."""
    seen = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
    heard = np.roll(seen, 3, axis=0)
    sync = syncnet.sync_scores(seen, heard)
    assert sync.offset == -3 and sync.confidence > 5 * sync.distance
    assert syncnet.sync_scores(seen, seen).offset == 0 and syncnet.sync_scores(seen, seen).distance < 1e-3


def test_frames_that_come_one_by_one_are_seen_as_all_at_once(toy):
    network, frames = syncnet.load(toy), PEER["frames"](23)
    evaluator = syncnet.SyncNetEvaluator(network)
    for frame in frames:
        evaluator.add(frame)
    assert evaluator.score(PEER["sound"](23)) is not None
    with torch.no_grad():
        wanted = network.see(torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(
        np.concatenate(evaluator._embeddings), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())
    )


def test_too_short_a_clip_has_no_agreement(toy):
    evaluator = syncnet.SyncNetEvaluator(syncnet.load(toy))
    for frame in PEER["frames"](5):
        evaluator.add(frame)
    assert evaluator.score(PEER["sound"](5)) is None


def test_the_crop_leaves_room_at_the_sides_and_below():
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[100:180, 160:240] = 200  # the face's box
    seen = syncnet.crop(frame, (200, 140, 40))
    assert seen.shape == (224, 224, 3)
    # Of 112 pixels, 80 are the face: 16 more on either side, 32 below, none above.
    rows, columns = (np.flatnonzero(seen[..., 0].max(axis) > 100) for axis in (1, 0))
    assert (rows[0], rows[-1] + 1) == (0, 160) and (columns[0], columns[-1] + 1) == (32, 192)
    assert (syncnet.crop(frame, (0, 0, 40))[0, 0] == syncnet.OUTSIDE).all()
    assert syncnet.crop(frame, None).shape == (224, 224, 3)


def test_the_box_is_held_still(toy, monkeypatch):
    boxes = []
    monkeypatch.setattr(syncnet, "crop", lambda frame, box: boxes.append(box) or np.zeros((224, 224, 3), np.uint8))
    evaluator = syncnet.SyncNetEvaluator(syncnet.load(toy))
    points = np.zeros((68, 2))
    points[1] = 40, 50
    for index in range(20):
        evaluator.add(np.zeros((90, 90, 3), np.uint8), None if index in (3, 4) else points + (30 if index == 9 else 0))
    evaluator.score(np.zeros(16000))
    assert len(boxes) == 20 and all(np.allclose(box, syncnet.face_box(points)) for box in boxes)


def test_other_files_are_refused_in_one_line(toy, tmp_path):
    state = torch.load(toy)
    for name, contents in {
        "short": {key: value for key, value in state.items() if "netfclip.3" not in key},
        "more": state | {"x": torch.zeros(1)},
        "list": [1],
        "empty": {},
    }.items():
        torch.save(contents, tmp_path / name)
        with pytest.raises(TalkheadError, match="not SyncNet's weights; .*weights fetch syncnet") as caught:
            syncnet.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert downloads.REGISTRY["syncnet"].file == "syncnet_v2.model"
