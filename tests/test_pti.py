"""Pivotal tuning at toy size: the copy learns the picture, the parent and the mapping do not move."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from talkhead import checkpoints, conversion, files, image_files, pti, training
from talkhead.errors import TalkheadError
from talkhead.images import sheet
from talkhead.losses import pyramid_distance
from talkhead.pti import tune
from talkhead.stylegan import Generator


def scene():
    """A generator, six images and six pivots."""
    torch.manual_seed(0)
    generator = Generator(8, [8, 8])
    generator.fingerprint, generator.lineage = "child", {"child", "parent"}
    return (
        generator.eval().requires_grad_(False),
        torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1,
        0.5 * torch.randn(6, 4, 512, generator=torch.Generator().manual_seed(1)),
    )


@pytest.fixture
def generator():
    return scene()[0]


@pytest.fixture
def images():
    return scene()[1]


@pytest.fixture
def pivots():
    return scene()[2]


def tuned(generator, images, pivots, **options):
    records = []
    child = tune(
        generator, images, pivots, **{"steps": 20, "perceptual": "pyramid", "on_record": records.append} | options
    )
    return child, records


def trained(out, images, generator, pivots, **options):
    """The records of a tuning in a file."""
    options = {"steps": 4, "batch": 2, "perceptual": "pyramid", "locality": 0.5, "log_every": 1} | options
    return list(pti.train(images, generator, pivots, out, **options))


def losses(records):
    return [(record["step"], record["loss"], record["perceptual"], record["pixel"]) for record in records]


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
        _, records = tuned(generator, wanted, pivots[:1], lr=1e-12, min_delta=0)
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
    assert (
        records[0]["locality"] < 1e-6
    )  # the child begins as its parent; with gradients and without, a picture rounds differently


def test_what_does_not_fit_is_refused(generator, images, pivots):
    for message, arguments in {
        "takes \\(N, 3, 8, 8\\)": (torch.zeros(1, 3, 16, 16), pivots[:1]),
        "takes \\(N, 4, 512\\)": (images[:1], torch.zeros(1, 6, 512)),
        "6 images and 2 pivots": (images, pivots[:2]),
        "0 images": (images[:0], pivots[:0]),
    }.items():
        with pytest.raises(TalkheadError, match=message):
            tune(generator, *arguments, perceptual="pyramid")


def test_a_loss_that_is_not_finite_is_refused(generator, images, pivots):
    with pytest.raises(TalkheadError, match="step 1: the loss is nan; lower --lr"):
        tuned(generator, images[:1], torch.full((1, 4, 512), np.nan))


# In a file ------------------------------------------------------------------------------------------------------------


def test_a_file_learns_what_is_learnt_in_memory(generator, images, pivots, tmp_path):
    child, said = tuned(generator, images, pivots, steps=4, batch=2, locality=0.5)
    records = trained(tmp_path / "a.pt", images, generator, pivots)
    assert losses(records) == losses(said) and all(record["locality"] > 0 for record in records[1:])
    assert not changed(child.state_dict(), files.load_weights(tmp_path / "a.pt")["model"])


def test_a_killed_tuning_resumes_to_the_same_bits(generator, images, pivots, tmp_path, monkeypatch):
    """Two steps, kill -9, and the rest, where it comes to rest by losses from before the kill and after."""
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); from test_pti import pti, scene, trained, training\n"
        "training.WINDOW = 2\n"
        "step = pti._Tuner.step\n"
        "def slow(self, index):\n"
        "    if index == 2: print('at two', flush=True); time.sleep(60)\n"
        "    return step(self, index)\n"
        "pti._Tuner.step = slow\n"
        "generator, images, pivots = scene()\n"
        "trained(sys.argv[1], images, generator, pivots, steps=9, min_delta=9.0, save_minutes=0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "killed.pt"), os.path.dirname(__file__)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"at two\n"
        process.kill()
    monkeypatch.setattr(training, "WINDOW", 2)
    options = {"steps": 9, "min_delta": 9.0}
    kept = files.load_weights(tmp_path / "killed.pt")
    assert kept["step"] == 2 and set(kept["training"]) == {"optimizer", "rest"}
    rest = trained(tmp_path / "killed.pt", images, generator, pivots, **options)
    whole = trained(tmp_path / "whole.pt", images, generator, pivots, **options)
    assert losses(rest) == losses(whole)[2:] and [record["step"] for record in rest] == [3, 4] and rest[-1]["converged"]
    one, two = (files.load_weights(tmp_path / name) for name in ("whole.pt", "killed.pt"))
    assert not changed(one.pop("model"), two.pop("model")) and torch.equal(one.pop("identity"), two.pop("identity"))
    assert one == two and "training" not in one
    assert sorted(os.listdir(tmp_path)) == ["killed.pt", "whole.pt"]


@pytest.mark.parametrize("ended", [False, True])
def test_the_file_is_a_generator_while_it_is_tuned_and_after(ended, generator, images, pivots, tmp_path, monkeypatch):
    def stop(self, count, *_):
        save(self, count, *_)
        if count == 2:
            raise KeyboardInterrupt

    save = training._CheckpointFile.save
    if not ended:
        monkeypatch.setattr(training._CheckpointFile, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "a.pt", images, generator, pivots, save_minutes=0)
    else:
        trained(tmp_path / "a.pt", images, generator, pivots, steps=2)
    told = checkpoints.describe(tmp_path / "a.pt")
    assert (told["kind"], told["step"], told["perceptual"], told["training_state"], told["optimizer"]) == (
        "generator",
        2,
        "pyramid",
        not ended,
        not ended,
    )
    child = checkpoints.load_generator(tmp_path / "a.pt")
    assert (
        child.config == generator.config
        and child.lineage == {"child", "parent", child.fingerprint}
        and told["fingerprint"] == child.fingerprint
    )
    expected, _ = tuned(generator, images, pivots, steps=2, batch=2, locality=0.5)
    assert not changed(expected.state_dict(), child.state_dict())
    conversion.export(tmp_path / "a.pt", tmp_path / "small.pt", half=False)
    assert not changed(child.state_dict(), files.load_weights(tmp_path / "small.pt")["model"])
    assert checkpoints.load_generator(tmp_path / "small.pt").lineage == child.lineage
    moments = (
        2 * 4 * sum(value.numel() for name, value in child.named_parameters() if not name.startswith("mapping"))
    )  # Adam's, in bytes
    one, small = ((tmp_path / name).stat().st_size for name in ("a.pt", "small.pt"))
    assert one - small == pytest.approx(0 if ended else moments, rel=0.2, abs=5000) and moments > 50_000


def test_another_tuning_is_refused_in_one_line(generator, images, pivots, tmp_path):
    trained(tmp_path / "a.pt", images, generator, pivots, steps=2)
    given = {"images": images, "generator": generator, "pivots": pivots, "steps": 2}
    other = copy.deepcopy(generator)
    other.const.data[0, 0, 0, 0] += 1
    for change, name in (
        ({"images": images.flip(-1)}, "images"),
        ({"pivots": pivots.flip(0)}, "pivots"),
        ({"generator": other}, "generator"),
        ({"batch": 3}, "batch"),
        ({"seed": 1}, "seed"),
        ({"locality": 0.0}, "locality"),
        ({"min_delta": 0.1}, "min_delta"),
    ):
        with pytest.raises(
            TalkheadError,
            match=rf"a.pt: was trained with tuning.{name}=[\w.]+, now [\w.]+; resume with the same options",
        ):
            trained(tmp_path / "a.pt", **given | change)
    # What an encoder says on another machine is the same face.
    with pytest.warns(UserWarning, match="a.pt: is done, at step 2"):
        assert (
            trained(tmp_path / "a.pt", **given | {"pivots": pivots + 1e-6 * torch.randn(pivots.shape), "lr": 0.1}) == []
        )


def test_the_order_of_pictures_hangs_on_seed_and_step_alone():
    picks = [pti._picks(step, 4, 6, seed=1) for step in range(6)]
    rounds = np.reshape(picks, (4, 6))
    assert all(sorted(once) == list(range(6)) for once in rounds) and len(set(map(tuple, rounds))) > 1
    assert pti._picks(3, 4, 6, seed=1) == picks[3] and [pti._picks(step, 4, 6, seed=2) for step in range(6)] != picks
    assert sorted(pti._picks(7, 3, 3, seed=0)) == [0, 1, 2]


def test_few_images_are_cut_into_equal_turns_or_refused(generator, images, pivots, tmp_path):
    whole = trained(tmp_path / "whole.pt", images, generator, pivots, batch=6, lr=1e-6)
    turns = trained(tmp_path / "turns.pt", images, generator, pivots, batch=9, accumulate=3, lr=1e-6)
    for one, other in zip(whole, turns, strict=True):
        assert all(
            one[name] == pytest.approx(other[name], rel=1e-5, abs=3e-6)  # Adam makes whole steps of what rounding left
            for name in ("loss", "perceptual", "pixel", "locality")
        )
    with pytest.raises(TalkheadError, match="3 images, the batch of every step: a batch of 3 .*multiple of 2"):
        trained(tmp_path / "three.pt", images[:3], generator, pivots[:3], batch=4, accumulate=2)


def test_a_sheet_shows_images_over_what_is_drawn(generator, images, pivots, tmp_path):
    trained(
        tmp_path / "a.pt",
        images.repeat(3, 1, 1, 1),
        generator,
        pivots.repeat(3, 1, 1),
        steps=1,
        samples=tmp_path / "sheets",
    )
    drawn = image_files.read_image(tmp_path / "sheets" / "00000001.png")
    assert drawn.shape == (16, 6 * 8, 3)  # every third of eighteen
    assert np.array_equal(drawn[:8, :16], sheet(images[[0, 3]]))
