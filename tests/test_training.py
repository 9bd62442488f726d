"""The loop: resume, best weights, refusals."""

import errno
import functools
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from talkhead import distributed, files, training
from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError
from talkhead.images import sheet, to_frames


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


def test_a_loss_computed_now_and_then_is_logged_whatever_the_logged_steps(tmp_path):
    run = Descent()

    def step(index):
        return (
            run.step(index)
            | ({"r1": float(index)} if index % 4 == 0 else {})
            | ({"path_length": -float(index)} if index % 2 == 0 else {})
        )

    records = list(
        training.fit(
            step,
            {"model": run.model, "optimizer": run.optimizer},
            steps=10,
            out=tmp_path / "a.pt",
            header={"kind": "encoder", "config": {}},
            log_every=3,
        )
    )
    # By hand: steps 0, 4 and 8 have r1; records end with the steps of index 2, 5, 8 and 9.
    assert [record.get("r1") for record in records] == [0.0, 4.0, 8.0, None]
    assert [record.get("path_length") for record in records] == [-2.0, -4.0, -8.0, None]


@pytest.mark.parametrize(
    "threads, load, slow, warned",
    [(2, 9.0, 0.0, True), (1, 9.0, 0.0, False), (2, 0.5, 0.0, False), (2, 9.0, 99.0, False)],
)
def test_a_slow_first_step_on_a_busy_machine_names_the_threads(tmp_path, monkeypatch, threads, load, slow, warned):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(training, "SLOW", slow)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Descent().fit(tmp_path / "a.pt", 3)
    told = [str(warning.message) for warning in said]
    assert [
        ("2 threads, and the load of this machine is 9 for 4 processors" in line, "OMP_NUM_THREADS=1" in line)
        for line in told
    ] == [(True, True)] * warned


def resting(out, steps=9, min_delta=2.0, **options):
    """A run that ends as soon as it can tell; the losses that it can tell from are two."""
    run, rest = Descent(), training.EarlyStopping(min_delta)
    state = {"model": run.model, "optimizer": run.optimizer, "rest": rest}
    header = {"kind": "encoder", "config": {"width": 1}, "data": {"faces": "a"}} | options.pop("header", {})
    return run, list(
        training.fit(run.step, state, steps=steps, out=out, header=header, log_every=4, converged=rest, **options)
    )


def test_a_run_at_rest_ends_and_keeps_the_model_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 3)
    wanted = losses(Descent().fit(tmp_path / "whole.pt", 6))
    saved = []
    run, records = resting(
        tmp_path / "a.pt",
        on_save=lambda weights: saved.append(1),
        draw=lambda: np.zeros((2, 2, 3), np.uint8),
        samples=tmp_path / "s",
    )
    assert losses(records) == [wanted[3], wanted[5]] and [record.get("converged") for record in records] == [None, True]
    kept = files.load_weights(tmp_path / "a.pt")
    assert (
        kept["step"] == 6
        and kept["converged"] is True
        and "training" not in kept
        and torch.equal(kept["model"]["weight"], run.model.weight)
    )
    assert os.listdir(tmp_path / "s") == ["00000006.png"]
    for steps in (9, 99, 2):
        with pytest.warns(UserWarning, match="a.pt: is done, at step 6; there is nothing left to do"):
            again, records = resting(tmp_path / "a.pt", steps, on_save=lambda weights: saved.append(2))
        assert records == [] and torch.equal(again.model.weight, run.model.weight)
    assert saved == [1, 2, 2, 2] and files.load_weights(tmp_path / "a.pt")["step"] == 6


def test_rest_is_found_at_the_same_step_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 3)
    run = Descent()
    step = run.step

    def fit(out, step=None):
        rest = training.EarlyStopping(2.0)
        state = {"model": run.model, "optimizer": run.optimizer, "rest": rest}
        return list(
            training.fit(
                step or run.step,
                state,
                steps=9,
                out=out,
                header={"kind": "encoder", "config": {}},
                log_every=1,
                converged=rest,
            )
        )

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
    run, records = resting(tmp_path / "a.pt", 3, min_delta=0)
    assert [record["step"] for record in records] == [3] and "converged" not in records[0]
    assert files.load_weights(tmp_path / "a.pt")["converged"] is False
    with pytest.warns(UserWarning, match="is done, at step 3"):
        assert resting(tmp_path / "a.pt", 2, min_delta=0)[1] == []
    with pytest.raises(
        TalkheadError,
        match="a.pt: ended at step 3 and cannot be continued; pass another --output for 4 steps",
    ):
        resting(tmp_path / "a.pt", 4, min_delta=0)
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
        "run.fit(sys.argv[1], 8, save_minutes=0)\n"
    )
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


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_stop_writes_a_checkpoint(tmp_path, sent, request):
    request.addfinalizer(
        functools.partial(signal.signal, sent, signal.signal(sent, signal.SIG_DFL))
    )  # under nohup it is ignored
    run = Descent()
    step = run.step

    def stopping(index):
        if index == 2:
            os.kill(os.getpid(), sent)
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
    with pytest.raises(
        TalkheadError, match="c.pt: is a converted file without optimisers; pass it as --init, and another --output$"
    ):
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
    running = training.fit(
        first.step, {"model": first.model}, steps=2, out=tmp_path / "a.pt", header=header, log_every=1
    )
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


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
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
        list(
            training.fit(
                run.step,
                state,
                steps=2,
                out=tmp_path / "a.pt",
                header={"kind": "encoder", "config": {"sizes": {"a": 1, "b": 2}}},
            )
        )


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

    feed = training.Prefetcher(make)
    run = Descent()
    run.step = lambda index: {"fed": float(feed(index))} | ({} if time.sleep(0.06) else {})
    records = run.fit(tmp_path / "a.pt", 4, feed=feed, team=Distributed(batch=5), unit="faces")
    assert [record["fed"] for record in records] == [0, 1, 2, 3] and made[:4] == [0, 1, 2, 3]
    assert 0.02 <= records[0]["data_seconds"] <= records[-1]["data_seconds"] < 0.5 * records[-1]["seconds"]
    assert records[-1]["faces_per_second"] == pytest.approx(20 / records[-1]["seconds"], rel=0.01)


def test_a_sheet_is_rows_of_images():
    images = torch.linspace(-1, 1, 4 * 3 * 2 * 2).view(4, 3, 2, 2)
    drawn = sheet(images[:2], images[2:])
    assert drawn.shape == (4, 4, 3) and np.array_equal(drawn[2:, :2], to_frames(images[2:3])[0])


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


def test_devices():
    assert distributed.pick_device("cpu").type == "cpu"
    assert distributed.pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(TalkheadError, match="--device abacus"):
        distributed.pick_device("abacus")
