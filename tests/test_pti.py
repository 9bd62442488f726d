"""Pivotal tuning at toy size: the copy learns the picture, the parent and the mapping do not move."""

import copy

import numpy as np
import pytest
import torch

from talkhead import pti, training
from talkhead.errors import TalkheadError
from talkhead.losses import pyramid_distance
from talkhead.pti import tune
from talkhead.stylegan import Generator


@pytest.fixture
def generator():
    torch.manual_seed(0)
    generator = Generator(8, [8, 8])
    generator.fingerprint, generator.lineage = "child", {"child", "parent"}
    return generator.eval().requires_grad_(False)


@pytest.fixture
def pivots():
    return 0.5 * torch.randn(6, 4, 512, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images():
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def tuned(generator, images, pivots, **options):
    records = []
    child = tune(generator, images, pivots, **{"steps": 20, "perceptual": "pyramid", "on_record": records.append} | options)
    return child, records


def changed(before, after):
    """Names of what differs between two state dicts."""
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_one_image_is_learnt(generator, images, pivots):
    child, records = tuned(generator, images[:1], pivots[:1], lr=1e-2)
    before = (generator.synthesis(pivots[:1]) - images[:1]).abs().mean()
    after = (child.synthesis(pivots[:1]) - images[:1]).abs().mean()
    assert after < 0.7 * before
    assert [record["step"] for record in records] == list(range(1, 21))


def test_only_the_synthesis_of_the_copy_moves(generator, images, pivots):
    before = copy.deepcopy(generator.state_dict())
    child, _ = tuned(generator, images, pivots, steps=2)
    assert not changed(before, generator.state_dict())
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    moved = changed(before, child.state_dict())
    assert {"const", "convs.0.conv.weight", "convs.0.conv.affine.weight", "rgbs.0.bias"} <= moved
    assert not any(name.startswith("mapping") or name == "w_avg" or "noise_const" in name for name in moved)


def test_the_child_is_ready_for_use_and_knows_its_parents(generator, images, pivots):
    generator.train()
    child, _ = tuned(generator, images, pivots, steps=1)
    assert not child.training and not any(parameter.requires_grad for parameter in child.parameters())
    assert child.config == generator.config
    assert child.lineage == {"child", "parent"} and child.fingerprint not in child.lineage


def test_the_loss_is_perceptual_plus_l1(generator, images, pivots):
    _, (record,) = tuned(generator, images[:2], pivots[:2], steps=1)
    drawn = generator.synthesis(pivots[:2])
    assert record["perceptual"] == pytest.approx(pyramid_distance(drawn, images[:2]).mean().item(), rel=1e-5)
    assert record["pixel"] == pytest.approx((drawn - images[:2]).abs().mean().item(), rel=1e-5)
    assert record["loss"] == pytest.approx(record["perceptual"] + record["pixel"], rel=1e-5)


def test_same_seed_same_generator(generator, images, pivots):
    states = [tuned(generator, images, pivots, steps=4, batch=2, seed=seed)[0].state_dict() for seed in (1, 1, 2)]
    assert not changed(states[0], states[1])
    assert changed(states[0], states[2])


def test_numpy_pivots_and_tensors_agree(generator, images, pivots):
    first, _ = tuned(generator, images, pivots, steps=1)
    second, _ = tuned(generator, images, pivots.numpy(), steps=1)
    assert not changed(first.state_dict(), second.state_dict())


def test_every_frame_is_used_once_a_round(generator, images, pivots):
    seen = []

    def perceptual(drawn, targets):
        seen.extend(int(index) for target in targets for index in range(6) if torch.equal(target, images[index]))
        return pyramid_distance(drawn, targets)

    perceptual.to = lambda device: perceptual
    tuned(generator, images, pivots, steps=6, batch=2, perceptual=perceptual)
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_tuning_ends_when_nothing_is_gained(generator, images, pivots, monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 5)
    for wanted in (images[:1], generator.synthesis(pivots[:1])):  # nothing learnt, and nothing to learn
        _, records = tuned(generator, wanted, pivots[:1], lr=1e-12)
        assert len(records) == 10  # two windows of five are the least to tell
        _, records = tuned(generator, wanted, pivots[:1], lr=1e-12, least_gain=0)
        assert len(records) == 20


def test_locality_keeps_other_faces(generator, images, pivots):
    def drift(child):
        z = torch.randn(8, 512, generator=torch.Generator().manual_seed(5))
        way = generator.mapping(z) - pivots[:1]
        near = pivots[:1] + 10 * way / way.flatten(1).norm(dim=1).view(-1, 1, 1)
        return (child.synthesis(near) - generator.synthesis(near)).square().mean().item()

    free, _ = tuned(generator, images[:1], pivots[:1], lr=3e-3, steps=10)
    held, records = tuned(generator, images[:1], pivots[:1], lr=3e-3, steps=10, locality=1.0, locality_radius=10.0)
    assert drift(held) < drift(free)
    assert "locality" in records[0] and records[0]["locality"] == 0  # the child begins as its parent


def test_what_does_not_fit_is_refused(generator, images, pivots):
    for message, arguments in {
        "wants \\(N, 3, 8, 8\\)": (torch.zeros(1, 3, 16, 16), pivots[:1]),
        "wants \\(N, 4, 512\\)": (images[:1], torch.zeros(1, 6, 512)),
        "6 images and 2 pivots": (images, pivots[:2]),
        "0 images": (images[:0], pivots[:0]),
    }.items():
        with pytest.raises(TalkheadError, match=message):
            tune(generator, *arguments, perceptual="pyramid")


def test_a_loss_that_is_not_finite_is_refused(generator, images, pivots):
    with pytest.raises(TalkheadError, match="step 1: the loss is nan; lower --lr"):
        tuned(generator, images[:1], torch.full((1, 4, 512), np.nan))
