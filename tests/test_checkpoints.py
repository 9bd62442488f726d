"""Weights that find their network again, and the guard against files that do not belong together."""

import pytest
import torch

from talkhead import checkpoints, files
from talkhead.errors import TalkheadError
from talkhead.encoders import ResNetEncoder
from talkhead.stylegan import Generator


@pytest.fixture
def generator_file(tmp_path):
    torch.manual_seed(0)
    generator = Generator(8, [4, 4], z_dim=8, w_dim=8, mapping_layers=1)
    path = tmp_path / "g.pt"
    files.save_weights(path, {"kind": "generator", "config": generator.config, "step": 7, "model": generator.state_dict(),
                              "training": {"optimizer": {"lr": 1.0}}})
    return path, generator


def save_encoder(path, trained_on):
    encoder = ResNetEncoder(4, width=2, input_size=32, w_dim=8)
    files.save_weights(path, {"kind": "encoder", "config": {**encoder.config, "generator": trained_on}, "step": 1,
                              "model": encoder.state_dict()})
    return encoder


def test_a_generator_comes_back_as_it_was(generator_file):
    path, generator = generator_file
    loaded = checkpoints.load_generator(path)
    w_plus = torch.randn(2, 4, 8)
    assert torch.equal(loaded.synthesis(w_plus), generator.synthesis(w_plus))
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    assert loaded.lineage == {loaded.fingerprint} and len(loaded.fingerprint) == 16


def test_export_drops_training_and_keeps_the_fingerprint(generator_file, tmp_path):
    path, _ = generator_file
    small = tmp_path / "small.pt"
    checkpoints.export(path, small)
    weights = files.load_weights(small)
    assert set(weights) == {"kind", "config", "step", "model"} and weights["step"] == 7
    assert all(value.dtype == torch.float16 for value in weights["model"].values())
    one, two = checkpoints.load_generator(path), checkpoints.load_generator(small)
    assert one.fingerprint == two.fingerprint and next(two.parameters()).dtype == torch.float32
    about = checkpoints.describe(small)
    assert about["kind"] == "generator" and about["precision"] == "float16" and not about["training_state"]
    assert about["parameters"] == sum(value.numel() for value in one.state_dict().values())


def test_encoder_of_another_generator_is_refused_and_of_a_parent_taken(generator_file, tmp_path):
    path, generator = generator_file
    parent = checkpoints.load_generator(path)
    encoder = save_encoder(tmp_path / "e.pt", parent.fingerprint)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(checkpoints.load_encoder(tmp_path / "e.pt", parent)(images), encoder.eval()(images))
    tuned = tmp_path / "tuned.pt"
    with torch.no_grad():
        generator.const.add_(1)
    files.save_weights(tuned, {"kind": "generator", "config": {**generator.config, "lineage": sorted(parent.lineage)},
                               "step": 1, "model": generator.state_dict()})
    child = checkpoints.load_generator(tuned)
    assert child.fingerprint != parent.fingerprint and checkpoints.load_encoder(tmp_path / "e.pt", child).trained_on == parent.fingerprint
    save_encoder(tmp_path / "stranger.pt", "0123456789abcdef")
    with pytest.raises(TalkheadError, match="trained against generator 0123456789abcdef") as caught:
        checkpoints.load_encoder(tmp_path / "stranger.pt", parent)
    assert "\n" not in str(caught.value)


def test_wrong_kind_and_damaged_config(generator_file, tmp_path):
    path, generator = generator_file
    with pytest.raises(TalkheadError, match="holds a generator, wanted an encoder"):
        checkpoints.load_encoder(path)
    files.save_weights(tmp_path / "bad.pt", {"kind": "generator", "config": {**generator.config, "channels": [4, 8]},
                                             "step": 0, "model": generator.state_dict()})
    with pytest.raises(TalkheadError, match="bad.pt: config and weights do not make a Generator") as caught:
        checkpoints.load_generator(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)
