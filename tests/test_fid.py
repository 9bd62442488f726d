"""Features against pytorch-fid's own network, sixteen times narrower, on weights and frames that a formula makes."""

import json
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from talkhead import downloads, fid
from talkhead.encoders import PSPEncoder, ResNetEncoder
from talkhead.errors import TalkheadError
from talkhead.fid import FaceFeatures, Inception

ROOT = Path(__file__).parents[1]
PEER = runpy.run_path(ROOT / "examples" / "benchmarks" / "peer_fid.py")
FROZEN = json.loads((ROOT / "tests" / "data" / "inception.jsonl").read_text().splitlines()[0])


def test_features_are_those_of_pytorch_fid(toy_inception):
    network, frames = Inception(), PEER["frames"]()
    features, wanted = network(frames), np.array(FROZEN["features"])
    assert features.shape == wanted.shape == (2, network.width) and features.dtype == np.float32
    assert np.abs(features - wanted).max() < 1e-4 * wanted.max()
    np.testing.assert_allclose(features[1:], network(frames[1:]), rtol=1e-4, atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 0.1 * wanted.max()  # they do see something


def test_the_weights_are_those_that_can_be_fetched(toy_inception):
    assert downloads.REGISTRY["inception-fid"].path == toy_inception


def test_weights_of_the_old_file_format_are_read(toy_inception, tmp_path):
    torch.save(torch.load(toy_inception), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert np.array_equal(Inception(tmp_path / "old.pth")(PEER["frames"]()), Inception()(PEER["frames"]()))


class Trap:
    def __reduce__(self):
        return open, ("sprung", "w")


def test_other_files_are_refused_in_one_line(toy_inception, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.load(toy_inception)
    bad = {
        "torchvision's": state | {"fc.bias": torch.zeros(1000)},
        "short": {name: value for name, value in state.items() if not name.startswith("Mixed_7c.branch_pool.bn")},
        "bare": {name: value for name, value in state.items() if not name.startswith("Mixed_6a")},
        "shapeless": state | {"Mixed_7a.branch3x3_1.conv.weight": torch.zeros(12, 7, 1, 1)},
        "list": [1, 2],
        "number": {"fc.bias": 3},
        "empty": {},
    }
    for name, contents in bad.items():
        torch.save(contents, tmp_path / name)
    (tmp_path / "trap").write_bytes(pickle.dumps(Trap(), protocol=2))
    (tmp_path / "cut").write_bytes(toy_inception.read_bytes()[:5000])
    for name in [*bad, "trap", "cut"]:
        with pytest.raises(
            TalkheadError, match="not the Inception weights of FID, or damaged; .*fetch inception-fid"
        ) as caught:
            Inception(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_missing_weights_and_unknown_networks_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        TalkheadError,
        match=r"hub.checkpoints.pt_inception-2015-12-05-6726825d.pth: file not found.*"
        "talkhead weights fetch inception-fid",
    ):
        fid.named("inception")
    with pytest.raises(TalkheadError, match="features 'vgg': unknown"):
        fid.named("vgg")
    assert fid.named(np.mean) is np.mean


def test_face_features_are_the_last_map_averaged():
    torch.manual_seed(0)
    encoder = ResNetEncoder(4, width=4, input_size=32, pool_size=2, stem_stride=1, w_dim=8).eval()
    maps = []
    encoder.layer4.register_forward_hook(lambda *call: maps.append(call[2]))
    network, frames = FaceFeatures(encoder), np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    features = network(frames)
    assert features.shape == (3, 32) and features.dtype == np.float32 and network.width == 32
    np.testing.assert_allclose(features, maps[0].numpy().mean((2, 3)), rtol=1e-5, atol=1e-6)
    before = network.name
    encoder.fc.bias.data += 1
    assert before.startswith("encoder-") and FaceFeatures(encoder).name != before
    with pytest.raises(TalkheadError, match="of architecture resnet"):
        FaceFeatures(PSPEncoder(8, width=4, input_size=32, w_dim=16))
