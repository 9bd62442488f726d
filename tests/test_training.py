"""The loop: resume, best weights, refusals; and the images it is fed."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from talkhead import files, training
from talkhead.errors import TalkheadError
from talkhead.team import Team


class Descent:
    """A one-parameter model that walks towards noise: enough to see order, seeds and state."""

    def __init__(self):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)

    def step(self, index):
        loss = (self.model.weight - torch.randn(())).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def fit(self, out, steps, config=None, **options):
        state = {"model": self.model, "optimizer": self.optimizer}
        header = {"kind": "encoder", "config": config or {"width": 1}}
        return list(training.fit(self.step, state, steps=steps, out=out, header=header, log_every=1, **options))


def losses(records):
    return [(record["step"], record["loss"]) for record in records]


def test_resumed_run_equals_the_whole_one(tmp_path):
    whole = Descent().fit(tmp_path / "whole.pt", 6)
    first = Descent().fit(tmp_path / "parts.pt", 2)
    rest = Descent().fit(tmp_path / "parts.pt", 6)
    assert losses(first + rest) == losses(whole)
    one, two = (files.load_weights(tmp_path / name) for name in ("whole.pt", "parts.pt"))
    assert torch.equal(one["model"]["weight"], two["model"]["weight"])
    assert losses(Descent().fit(tmp_path / "other.pt", 6, seed=1)) != losses(whole)


def resting(out, steps=9, least_gain=2.0, **options):
    """A run that ends as soon as it can tell; the losses that it can tell from are two."""
    run, rest = Descent(), training.Rest(least_gain)
    state = {"model": run.model, "optimizer": run.optimizer, "rest": rest}
    header = {"kind": "encoder", "config": {"width": 1}, "data": {"faces": "a"}} | options.pop("header", {})
    return run, list(training.fit(run.step, state, steps=steps, out=out, header=header, log_every=4, at_rest=rest, **options))


def test_a_run_at_rest_ends_and_keeps_the_model_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 3)
    wanted = losses(Descent().fit(tmp_path / "whole.pt", 6))
    saved = []
    run, records = resting(tmp_path / "a.pt", on_save=lambda: saved.append(1), draw=lambda: np.zeros((2, 2, 3), np.uint8), samples=tmp_path / "s")
    assert losses(records) == [wanted[3], wanted[5]] and [record.get("at_rest") for record in records] == [None, True]
    kept = files.load_weights(tmp_path / "a.pt")
    assert kept["step"] == 6 and kept["at_rest"] is True and "training" not in kept and torch.equal(kept["model"]["weight"], run.model.weight)
    assert os.listdir(tmp_path / "s") == ["00000006.png"]
    for steps in (9, 99, 2):
        with pytest.warns(UserWarning, match="a.pt: is done, at step 6; there is nothing left to do"):
            again, records = resting(tmp_path / "a.pt", steps, on_save=lambda: saved.append(2))
        assert records == [] and torch.equal(again.model.weight, run.model.weight)
    assert saved == [1, 2, 2, 2] and files.load_weights(tmp_path / "a.pt")["step"] == 6


def test_rest_is_found_at_the_same_step_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 3)
    run = Descent()
    step = run.step

    def fit(out, step=None):
        rest = training.Rest(2.0)
        state = {"model": run.model, "optimizer": run.optimizer, "rest": rest}
        return list(training.fit(step or run.step, state, steps=9, out=out, header={"kind": "encoder", "config": {}}, log_every=1, at_rest=rest))

    def stopping(index):
        if index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(index)

    with pytest.raises(TalkheadError, match="stopped at step 4 of 9"):
        fit(tmp_path / "a.pt", stopping)
    assert len(files.load_weights(tmp_path / "a.pt")["training"]["rest"]["losses"]) == 4
    run = Descent()
    assert [record["step"] for record in fit(tmp_path / "a.pt")] == [5, 6]


def test_all_steps_taken_is_an_end_too(tmp_path):
    run, records = resting(tmp_path / "a.pt", 3, least_gain=0)
    assert [record["step"] for record in records] == [3] and "at_rest" not in records[0]
    assert files.load_weights(tmp_path / "a.pt")["at_rest"] is False
    with pytest.warns(UserWarning, match="is done, at step 3"):
        assert resting(tmp_path / "a.pt", 2, least_gain=0)[1] == []
    with pytest.raises(TalkheadError, match="a.pt: ended at step 3 and kept nothing to go on with; pass another --output to take 4 steps"):
        resting(tmp_path / "a.pt", 4, least_gain=0)
    with pytest.raises(TalkheadError, match="a.pt: was trained with data.faces=a, now b; resume"):
        resting(tmp_path / "a.pt", 3, header={"data": {"faces": "b"}})
    with pytest.raises(TalkheadError, match="finished weights"):  # to a trainer that goes on for ever
        Descent().fit(tmp_path / "a.pt", 9)


def test_the_callers_random_state_is_left_alone(tmp_path):
    run = Descent()
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    run.fit(tmp_path / "a.pt", 2)
    assert torch.equal(torch.rand(1), wanted)


def test_killed_run_resumes_to_the_same_weights(tmp_path):
    """SIGKILL in mid-run, then resume: the same weights as the run that was left alone."""
    script = (
        "import sys, os, time; sys.path.insert(0, sys.argv[2]); from test_training import Descent\n"
        "run = Descent(); step = run.step\n"
        "def slow(index):\n"
        "    if index == 5 and len(sys.argv) > 3: print('at five', flush=True); time.sleep(60)\n"
        "    return step(index)\n"
        "run.step = slow\n"
        "run.fit(sys.argv[1], 8, save_minutes=0)\n")
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", script, str(tmp_path / "killed.pt"), here]
    with subprocess.Popen([*command, "wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"at five\n"
        process.kill()
    assert files.load_weights(tmp_path / "killed.pt")["step"] == 5
    subprocess.run(command, check=True)
    Descent().fit(tmp_path / "whole.pt", 8)
    one, two = (files.load_weights(tmp_path / name) for name in ("whole.pt", "killed.pt"))
    assert two["step"] == 8 and torch.equal(one["model"]["weight"], two["model"]["weight"])
    assert sorted(os.listdir(tmp_path)) == ["killed.pt", "whole.pt"]


def test_sigterm_writes_a_checkpoint(tmp_path):
    run = Descent()
    step = run.step

    def stopping(index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(index)

    run.step = stopping
    with pytest.raises(TalkheadError, match="stopped at step 3 of 9"):
        run.fit(tmp_path / "a.pt", 9)
    assert files.load_weights(tmp_path / "a.pt")["step"] == 3


def test_another_config_and_a_finished_file_are_refused(tmp_path):
    Descent().fit(tmp_path / "a.pt", 1)
    with pytest.warns(UserWarning, match="a.pt: is done, at step 1; there is nothing left to do"):
        assert Descent().fit(tmp_path / "a.pt", 1) == []
    with pytest.raises(TalkheadError, match="width=1, now 2"):
        Descent().fit(tmp_path / "a.pt", 2, config={"width": 2})
    files.save_weights(tmp_path / "b.pt", {"kind": "encoder", "config": {"width": 1}, "step": 1, "model": {}})
    with pytest.raises(TalkheadError, match="finished weights"):
        Descent().fit(tmp_path / "b.pt", 2)


def test_a_converted_file_is_no_run_to_go_on_with(tmp_path):
    Descent().fit(tmp_path / "a.pt", 1)
    weights = files.load_weights(tmp_path / "a.pt")
    files.save_weights(tmp_path / "c.pt", weights | {"training": {"generator": {}}})
    with pytest.raises(TalkheadError, match="c.pt: was converted, without its optimisers; pass it as --init, and another --output$"):
        Descent().fit(tmp_path / "c.pt", 2)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    run = Descent()
    step = run.step
    run.step = lambda index: {"loss": float("nan")} if index == 3 else step(index)
    with pytest.raises(TalkheadError, match="step 3: loss is not finite"):
        run.fit(tmp_path / "a.pt", 9, save_minutes=0)
    weights = files.load_weights(tmp_path / "a.pt")
    assert weights["step"] == 3 and torch.isfinite(weights["model"]["weight"]).all()


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    run = Descent()
    step = run.step

    def broken(index):
        record = step(index)
        if index == 3:
            run.model.weight.data.fill_(float("inf"))
        return record

    run.step = broken
    with pytest.raises(TalkheadError, match="step 3: a weight is not finite"):
        run.fit(tmp_path / "a.pt", 9, save_minutes=0)
    assert files.load_weights(tmp_path / "a.pt")["step"] == 3


def test_two_runs_in_one_file_are_refused(tmp_path):
    first, second = Descent(), Descent()
    header = {"kind": "encoder", "config": {"width": 1}}
    running = training.fit(first.step, {"model": first.model}, steps=2, out=tmp_path / "a.pt", header=header, log_every=1)
    next(running)
    with pytest.raises(TalkheadError, match="a.pt: another run writes it"):
        second.fit(tmp_path / "a.pt", 2)
    second.fit(tmp_path / "b.pt", 2)
    list(running)
    Descent().fit(tmp_path / "c.pt", 2)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "b.pt", "c.pt"]


def test_a_full_disk_is_survived(tmp_path, monkeypatch):
    """Checkpoints 2 and 3 fail in the writing; the run goes on, and only the last one must be written."""
    full, sync = [], os.fsync

    def fsync(file):
        if len(full) in (1, 2):
            full.append(errno.ENOSPC)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        full.append(0)
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.warns(UserWarning, match="step 2: the checkpoint before this one is kept .*disk is full"):
        Descent().fit(tmp_path / "a.pt", 4, save_minutes=0)
    assert len(full) == 4 and files.load_weights(tmp_path / "a.pt")["step"] == 4 and os.listdir(tmp_path) == ["a.pt"]
    full[:] = [0]
    with pytest.warns(UserWarning), pytest.raises(TalkheadError, match="disk is full"):
        Descent().fit(tmp_path / "a.pt", 6, save_minutes=0)
    assert files.load_weights(tmp_path / "a.pt")["step"] == 4


def test_the_newest_checkpoints_are_kept(tmp_path):
    Descent().fit(tmp_path / "a.pt", 4, save_minutes=0, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["a-00000003.pt", "a-00000004.pt", "a.pt"]
    assert [files.load_weights(tmp_path / name)["step"] for name in ("a-00000003.pt", "a-00000004.pt")] == [3, 4]


@pytest.mark.parametrize("problem", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
                                     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")])
def test_too_little_memory_is_said_with_what_to_lower(tmp_path, problem):
    def hungry(index):
        raise problem

    run = Descent()
    run.step = hungry
    with pytest.raises(TalkheadError, match="a.pt, step 0: out of memory; raise --accumulate, or lower --batch"):
        run.fit(tmp_path / "a.pt", 1)


def test_a_resumed_run_may_change_its_rate(tmp_path):
    Descent().fit(tmp_path / "a.pt", 1)
    run = Descent()
    run.optimizer.param_groups[0]["lr"] = 0.01
    run.fit(tmp_path / "a.pt", 2)
    assert run.optimizer.param_groups[0]["lr"] == 0.01


def test_what_a_run_was_trained_without_is_named(tmp_path):
    Descent().fit(tmp_path / "a.pt", 1, config={"sizes": {"a": 1, "b": 2}})
    with pytest.raises(TalkheadError, match="trained with sizes.b=2, now 3; resume"):
        Descent().fit(tmp_path / "a.pt", 2, config={"sizes": {"a": 1, "b": 3}})
    run = Descent()
    state = {"model": run.model, "optimizer": run.optimizer, "second_optimizer": run.optimizer}
    with pytest.raises(TalkheadError, match="trained without second optimizer"):
        list(training.fit(run.step, state, steps=2, out=tmp_path / "a.pt", header={"kind": "encoder", "config": {"sizes": {"a": 1, "b": 2}}}))


def test_pictures_are_drawn_on_schedule_and_at_the_end(tmp_path):
    drawn = []

    def draw():
        drawn.append(torch.rand(1).item())
        return np.zeros((2, 3, 3), np.uint8)

    Descent().fit(tmp_path / "a.pt", 5, draw=draw, samples=tmp_path / "new" / "sheets", samples_every=2)
    assert sorted(os.listdir(tmp_path / "new" / "sheets")) == ["00000002.png", "00000004.png", "00000005.png"]
    assert len(set(drawn)) == 1  # the same draw each time
    (tmp_path / "file").touch()
    with pytest.raises(TalkheadError, match="name another folder"):
        Descent().fit(tmp_path / "b.pt", 1, draw=draw, samples=tmp_path / "file" / "sheets")


def test_a_feed_works_ahead_and_counts_what_steps_wait(tmp_path):
    made = []

    def make(index):
        made.append(index)
        time.sleep(0.02)
        return index

    feed = training.Feed(make)
    run = Descent()
    run.step = lambda index: {"fed": float(feed(index))} | ({} if time.sleep(0.06) else {})
    records = run.fit(tmp_path / "a.pt", 4, feed=feed, team=Team(batch=5), unit="faces")
    assert [record["fed"] for record in records] == [0, 1, 2, 3] and made[:4] == [0, 1, 2, 3]
    assert 0.02 <= records[0]["data_seconds"] <= records[-1]["data_seconds"] < 0.5 * records[-1]["seconds"]
    assert records[-1]["faces_per_second"] == pytest.approx(20 / records[-1]["seconds"], rel=0.01)


def test_a_sheet_is_rows_of_images():
    images = torch.linspace(-1, 1, 4 * 3 * 2 * 2).view(4, 3, 2, 2)
    drawn = training.sheet(images[:2], images[2:])
    assert drawn.shape == (4, 4, 3) and np.array_equal(drawn[2:, :2], training.to_frames(images[2:3])[0])


def test_best_by_validation_is_what_the_file_holds(tmp_path):
    def fit(out, steps):
        run = Descent()
        seen = []

        def validate():
            seen.append(run.model.weight.item())
            return {"distance": abs(run.model.weight.item() - 0.05)}

        records = run.fit(out, steps, validate=validate, validate_every=1, keep_best="distance")
        return records, seen, run

    records, seen, run = fit(tmp_path / "a.pt", 6)
    best = min(seen, key=lambda value: abs(value - 0.05))
    assert files.load_weights(tmp_path / "a.pt")["model"]["weight"].item() == best
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    fit(tmp_path / "b.pt", 3)
    _, _, resumed = fit(tmp_path / "b.pt", 6)
    assert resumed.model.weight.item() == run.model.weight.item()
    assert files.load_weights(tmp_path / "b.pt")["model"]["weight"].item() == best


def pictures(folder, count=5, size=8):
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        files.write_image(folder / f"{index:02}.png", frame)
    return frames


def test_images_hold_every_frame_and_show_each_once_an_epoch(tmp_path):
    frames = pictures(tmp_path / "faces")
    images = training.Images([tmp_path / "faces"], 8)
    assert len(images) == 5 and np.array_equal(images.frames, frames)
    batches = [images.batch(step, 2, seed=3) for step in range(5)]
    shown = training.to_frames(torch.cat(batches))
    for epoch in (shown[:5], shown[5:]):
        assert sorted(frame.tobytes() for frame in epoch) == sorted(frame.tobytes() for frame in frames)
    assert torch.equal(images.batch(4, 2, seed=3), batches[4])
    assert training.Images([tmp_path / "faces"], 4, every=2, limit=2).frames.shape == (2, 4, 4, 3)


def test_images_refuse_what_cannot_be_trained_on(tmp_path):
    with pytest.raises(TalkheadError, match="not found"):
        training.Images([tmp_path / "nothing"], 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TalkheadError, match="no frames"):
        training.Images([tmp_path / "empty"], 8)
    files.write_image(tmp_path / "wide.png", np.zeros((4, 8, 3), np.uint8))
    with pytest.raises(TalkheadError, match="8x4, wanted square"):
        training.Images([tmp_path / "wide.png"], 8)


def test_one_bad_clip_is_skipped_and_named(tmp_path):
    pictures(tmp_path / "faces")
    (tmp_path / "faces" / "zz.mp4").write_bytes(b"not a film")
    images = training.Images([tmp_path / "faces"], 8)
    assert len(images) == 5 and len(images.skipped) == 1 and "zz.mp4" in images.skipped[0]


def clip(path, count=6, size=16, seed=0):
    """A lossless film of noise, slowly changing; what it shows."""
    rng = np.random.default_rng(seed)
    first = rng.integers(20, 230, (size, size, 3))
    frames = [(first + rng.integers(-3, 4, first.shape)).astype(np.uint8) for _ in range(count)]
    path.parent.mkdir(exist_ok=True)
    with files.FrameWriter(path, lossless=True) as writer:
        for frame in frames:
            writer.write(frame)
    return frames


def packed(sources, output, *arguments):
    list(training.pack(sources, output, *arguments))
    return output


@pytest.fixture
def films(tmp_path):
    """Two films of 6 and 5 frames, one between them that breaks off, and a text that is no film."""
    clip(tmp_path / "films" / "a.mp4")
    clip(tmp_path / "films" / "c.mp4", 5, seed=1)
    clip(tmp_path / "films" / "b.mp4", 60, seed=2)
    whole = (tmp_path / "films" / "b.mp4").read_bytes()
    (tmp_path / "films" / "b.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "films" / "d.mp4").write_text("not a film")
    return tmp_path / "films"


def same(one, two):
    """Whether two sets of images give the same batches, over more than an epoch, to the bit."""
    assert len(one) == len(two) and one.names == two.names
    return all(torch.equal(one.batch(step, 4, seed=5, flip=True), two.batch(step, 4, seed=5, flip=True)) for step in range(5))


@pytest.mark.parametrize("size", [16, 8])
def test_packed_frames_give_the_batches_of_their_clips(films, tmp_path, size):
    whole = packed([films], tmp_path / "p.npy", size)
    frames = np.load(whole)
    assert frames.shape == (11, size, size, 3) and frames.dtype == np.uint8
    direct, mapped = training.Images([films], size), training.Images([whole], size)
    assert np.array_equal(direct.frames[:], frames) and same(direct, mapped)
    for every, limit in [(2, None), (1, 4), (2, 5), (5, 3), (1, 6), (1, 7), (3, 100)]:
        direct = training.Images([films], size, every, limit)
        assert same(direct, training.Images([whole], size, every, limit))
        assert same(direct, training.Images([packed([films], tmp_path / "q.npy", size, every, limit)], size))


def test_packed_frames_among_clips_and_packed_again(films, tmp_path):
    clip(tmp_path / "other" / "e.mp4", seed=3)
    (tmp_path / "faces").mkdir()
    files.write_image(tmp_path / "faces" / "f.png", np.full((16, 16, 3), 7, np.uint8))
    whole = packed([films], tmp_path / "p.npy", 16)
    clips = training.Images([tmp_path / "other", films, tmp_path / "faces"], 16)
    sources = [tmp_path / "other", whole, tmp_path / "faces"]
    assert same(clips, training.Images(sources, 16)) and len(clips) == 18
    assert same(clips, training.Images([packed(sources, tmp_path / "q.npy", 16)], 16))
    assert same(training.Images(sources, 16, 2, 7), training.Images([packed(sources, tmp_path / "q.npy", 16, 2, 7)], 16))
    assert {Path(name).name for name in clips.names} == {"a.mp4", "c.mp4", "e.mp4", "f.png"}


def test_packed_frames_of_another_size_are_resized(tmp_path):
    frames = clip(tmp_path / "films" / "a.mp4")
    images = training.Images([packed([tmp_path / "films"], tmp_path / "p.npy", 16)], 8)
    assert images.frames.shape == (6, 8, 8, 3) and np.array_equal(images.frames[-1], training.resize(frames[-1], 8))
    assert np.array_equal(images.frames[[3, 0]], [training.resize(frames[3], 8), training.resize(frames[0], 8)])
    with pytest.raises(IndexError):
        images.frames[6]


def test_beside_packed_frames_it_is_told_where_they_came_from(films, tmp_path):
    records = list(training.pack([films], tmp_path / "p.npy", 8))
    assert [Path(record["file"]).name for record in records] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert [record.get("frames") for record in records] == [6, None, 5, None]
    about = files.read_json(tmp_path / "p.json")
    assert about["frames"] == 11 and about["size"] == 8
    assert about["sources"] == [{"file": str(films / "a.mp4"), "frames": 6, "side": 16, "kind": "film"},
                                {"file": str(films / "c.mp4"), "frames": 5, "side": 16, "kind": "film"}]
    assert about["left_out"] == [records[1]["left_out"], records[3]["left_out"]]
    assert "b.mp4: cut short" in about["left_out"][0] or "b.mp4: damaged" in about["left_out"][0]
    assert training.Images([films], 8).skipped == about["left_out"]


def test_packed_frames_need_nothing_beside_them(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "p.npy", frames)
    images = training.Images([tmp_path / "p.npy"], 8, every=2)
    assert np.array_equal(images.frames[:], frames[::2]) and images.names == [str(tmp_path / "p.npy")] * 3
    assert warned(images) == []  # what nobody knows is nothing to warn of


@pytest.mark.parametrize("array, beside, message", [
    (np.zeros((5, 8, 8, 3)), None, r"p.npy: holds float64 \(5, 8, 8, 3\), wanted uint8"),
    (np.zeros((5, 8, 9, 3), np.uint8), None, r"holds uint8 \(5, 8, 9, 3\), wanted uint8 \(frames, size, size, 3\)"),
    (np.zeros((5, 8, 8), np.uint8), None, r"holds uint8 \(5, 8, 8\), wanted"),
    (np.zeros((0, 8, 8, 3), np.uint8), None, r"holds uint8 \(0, 8, 8, 3\), wanted|damaged or cut short"),
    (np.array([{}]), None, "p.npy: holds objects"),
    (b"", None, "p.npy: empty"),
    (b"\x93NUMPY\x01\x00v\x00{'descr'", None, "p.npy: damaged or cut short"),
    (b"text", None, "p.npy: not a .npy array"),
    (np.zeros((5, 8, 8, 3), np.uint8), "{", "p.json: not JSON"),
    (np.zeros((5, 8, 8, 3), np.uint8), '{"speaker": "s1"}', "p.json: does not tell of packed frames"),
    (np.zeros((5, 8, 8, 3), np.uint8), "[1]", "p.json: does not tell of packed frames"),
    (np.zeros((5, 8, 8, 3), np.uint8), '{"sources": [{"file": "a", "frames": 4, "side": 8, "kind": "film"}]}', "holds 5 frames, but the .json .* of 4"),
])
def test_packed_files_that_are_none_are_refused_in_one_line(tmp_path, array, beside, message):
    pictures(tmp_path / "faces")
    if isinstance(array, bytes):
        (tmp_path / "p.npy").write_bytes(array)
    else:
        np.save(tmp_path / "p.npy", array)
    if beside:
        (tmp_path / "p.json").write_text(beside)
    with pytest.raises(TalkheadError, match=message) as error:
        training.Images([tmp_path / "faces", tmp_path / "p.npy"], 8)
    assert "\n" not in str(error.value)


def test_packed_file_that_was_cut_is_refused(films, tmp_path):
    path = packed([films], tmp_path / "p.npy", 8)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TalkheadError, match="p.npy: damaged or cut short; write it again"):
        training.Images([path], 8)


def test_nothing_is_packed_of_nothing(films, tmp_path):
    for sources, output, message in [([films / "d.mp4"], "p.npy", "no frames to train on .*d.mp4: not a video"), ([films], "p.mp4", "end the name in .npy"),
                                     ([films], "no/p.npy", "its folder does not exist")]:
        with pytest.raises(TalkheadError, match=message):
            packed(sources, tmp_path / output, 8)
    assert os.listdir(tmp_path) == ["films"]


def test_memory_is_flat_while_frames_are_packed(tmp_path):
    """Ten times the frames, 12 MB more of them, take no more memory."""
    for count in (50, 500):
        clip(tmp_path / f"{count}.mp4", count, 96)
    script = ("import resource, sys; from talkhead import training\n"
              "for count in (50, 500):\n"
              "    list(training.pack([f'{sys.argv[1]}/{count}.mp4'], sys.argv[1] + '/p.npy', 96))\n"
              "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    short, long = map(float, done.stdout.split())
    assert long < short + 4  # MiB


def test_frames_of_several_sizes_are_counted_and_said(tmp_path, recwarn):
    clip(tmp_path / "films" / "a.mp4", 6, 16)
    clip(tmp_path / "films" / "b.mp4", 5, 16, seed=1)
    training.Images([tmp_path / "films"], 32)
    assert not recwarn
    clip(tmp_path / "films" / "c.mp4", 3, 64)
    wanted = "frames of 2 sizes, 16x16 to 64x64, are all resized to 32x32; smaller ones (11 of 14) get blurred when enlarged"
    with pytest.warns(UserWarning) as said:
        training.Images([tmp_path / "films"], 32)
    assert [str(warning.message) for warning in said] == [wanted]
    with pytest.warns(UserWarning, match=re.escape(wanted)):
        packed([tmp_path / "films"], tmp_path / "p.npy", 32)
    with pytest.warns(UserWarning, match="are all resized to 16x16$"):
        training.Images([tmp_path / "films"], 16)
    recwarn.clear()
    training.Images([tmp_path / "p.npy"], 32)  # they are of one size now
    assert not recwarn


def stills(folder, count=4):
    """Pictures of nothing in common."""
    folder.mkdir()
    for index in range(count):
        files.write_image(folder / f"{index}.png", np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return folder


def moments(folder):
    """A film as `talkhead synth --frames` makes it."""
    clip(folder / "m.mp4", seed=9)
    files.write_json(folder / "m.json", {"source": "moments"})
    return folder


def extracted(folder):
    """A film as a folder of pictures."""
    clip(folder.with_suffix(".mp4"), seed=8)
    with files.read_frames(folder.with_suffix(".mp4")) as reader, files.FrameWriter(folder) as writer:
        for frame in reader:
            writer.write(frame)
    return folder


def warned(images):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images.warn_of_mixture()
    return [str(warning.message) for warning in said]


def test_films_and_still_pictures_are_not_to_be_mixed(tmp_path):
    film = tmp_path / "film.mp4"
    clip(film)
    kinds = {"film": film, "stills": stills(tmp_path / "stills"), "moments": moments(tmp_path / "moments"), "extracted": extracted(tmp_path / "extracted"),
             "one": tmp_path / "stills" / "0.png"}
    for names, counts in {("film",): None, ("stills",): None, ("moments",): None, ("extracted",): None, ("one",): None, ("stills", "moments"): None,
                          ("film", "moments", "extracted"): None, ("film", "stills"): (6, 4), ("stills", "extracted"): (6, 4),
                          ("film", "one", "extracted", "moments"): (12, 1)}.items():
        sources = [kinds[name] for name in names]
        for images in (training.Images(sources, 16), training.Images([packed(sources, tmp_path / "p.npy", 16)], 16)):
            said = warned(images)
            assert len(said) == (counts is not None), (names, said)
            if counts:
                assert f"films ({counts[0]} frames) and still pictures ({counts[1]}) are mixed" in said[0] and "\n" not in said[0]


def test_frames_that_do_not_fit_into_memory_are_refused_before_they_fill_it(films, tmp_path, monkeypatch):
    whole = packed([films], tmp_path / "p.npy", 16)
    pictures(tmp_path / "faces", 9)
    frame = 16 * 16 * 3  # bytes

    def refused(sources, room, *arguments):
        monkeypatch.setattr(training, "memory_left", lambda: room * frame)
        with pytest.raises(TalkheadError, match="talkhead pack .*--every or --limit") as error:
            training.Images(sources, 16, *arguments)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "about 9 frames" in refused([tmp_path / "faces"], 8)
    assert "about 11 frames of 16x16, and memory has room for 10" in refused([films / "a.mp4", films / "c.mp4"], 10)
    for arguments in [(2,), (1, 10)]:
        assert len(training.Images([films / "a.mp4", films / "c.mp4"], 16, *arguments)) <= 10
    assert len(training.Images([whole], 16)) == 11  # it need not fit
    assert len(training.Images([whole, films / "a.mp4"], 16)) == 17
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "room for 7" in refused([films / "a.mp4", films / "c.mp4"], 15)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(training, "_told", lambda path: 0)  # clips that say nothing of their length
    assert "more than 10 frames" in refused([films / "a.mp4", films / "c.mp4"], 10)
    monkeypatch.setattr(training, "memory_left", lambda: None)
    assert len(training.Images([films], 16)) == 11


def test_images_take_no_more_memory_than_their_bytes(tmp_path):
    """Frames that are made smaller leave no holes behind, and packed ones take none."""
    clip(tmp_path / "a.mp4", 800, 96)
    packed([tmp_path / "a.mp4"], tmp_path / "p.npy", 64)
    clip(tmp_path / "b.mp4", 20, 96)
    script = ("import sys; from talkhead import training\n"
              "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
              "first = training.Images([sys.argv[1] + '/b.mp4'], 64)\n"
              "for name in ('p.npy', 'a.mp4'):\n"
              "    before = resident(); images = training.Images([f'{sys.argv[1]}/{name}'], 64); print(resident() - before)\n")
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc on this system")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    mapped, held = map(float, done.stdout.split())
    assert mapped < 2 and 9 < held < 9.4 + 15  # MiB; 800 frames are 9.4, and 75 before they are shrunk and as float32


def test_memory_left_is_what_the_machine_tells():
    room = training.memory_left()
    assert room is None or 2**24 < room <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_devices():
    assert training.pick_device("cpu").type == "cpu"
    assert training.pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(TalkheadError, match="--device abacus"):
        training.pick_device("abacus")
