"""Files of version 0.1: what they called by other names is found by the present ones."""

from collections import OrderedDict

import pytest
import torch

from talkhead import checkpoints, files, legacy

OLD = {new: old for old, new in (legacy.TENSORS | legacy.SETTINGS).items()}


def old_names(tree):
    """What version 0.1 would have written: its names, and dicts of tensors as `state_dict` gives them."""
    if not isinstance(tree, dict):
        return tree
    kind = OrderedDict if tree and all(isinstance(value, torch.Tensor) for value in tree.values()) else dict
    names = OLD | ({"embedding": "features"} if type(tree.get("embedding")) is int else {})
    return kind((names.get(key, key), old_names(value)) for key, value in tree.items())


@pytest.mark.parametrize("kind, load", [("audio2latent", "load_audio2latent"), ("video_gan", "load_video_gan")])
def test_networks_of_version_0_1_open(kind, load, toy_weights, tmp_path):
    weights = files.load_weights(toy_weights / f"{kind}.pt")
    former = old_names(weights)
    assert {"motion_spread", "reach"} & former["model"].keys() and isinstance(former["model"], OrderedDict)
    files.save_weights(tmp_path / "old.pt", former)
    assert files.load_weights(tmp_path / "old.pt")["config"] == weights["config"]
    one, other = (
        getattr(checkpoints, load)(folder, None) for folder in (toy_weights / f"{kind}.pt", tmp_path / "old.pt")
    )
    assert one.config == other.config
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_training_run_of_version_0_1_is_renamed_to_its_depths():
    former = {
        "config": {"training": {"average": 0.9, "critic": {"width": 2}}},
        "training": {"critics": OrderedDict({"0.weight": torch.ones(2)}), "scalars": {"path_mean": 0.5}},
        "at_rest": True,
    }
    present = legacy.renamed(former)
    assert present["config"]["training"] == {"ema_decay": 0.9, "discriminator": {"width": 2}}
    assert present["training"]["scalars"] == {"pl_mean": 0.5} and present["converged"] is True
    assert present["training"]["discriminators"]["0.weight"].tolist() == [1, 1]
