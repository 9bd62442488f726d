"""Training loop shared by all trainers: seeding, logging, validation, checkpoints, exact resume, early stopping.

A trainer builds its networks, a `distributed.Distributed` and a function that takes one optimiser step; `fit` does the
rest. torch's random state is reseeded from (seed, step index) in every step, so a resumed run repeats the uninterrupted
one bit for bit without a saved random state.
"""

import copy
import math
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from talkhead import files, image_files
from talkhead.distributed import Distributed
from talkhead.errors import TalkheadError

WINDOW = 50  # steps over which `has_converged` averages losses
Result = TypeVar("Result")
SLOW = 2.0  # seconds; a slower first step may be due to other programs


class Prefetcher:
    """Prefetcher of training batches: a thread makes the next batch during the current step.

    make   function of the step index; its randomness must depend on the index alone, because it is called ahead of time

    `seconds` is the total time that steps waited for data.
    """

    _ahead: dict[int, Future]

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.seconds = 0.0
        self._make, self._thread, self._ahead = make, ThreadPoolExecutor(1), {}

    def __call__(self, index: int) -> Any:
        began = time.monotonic()
        made = (self._ahead.pop(index, None) or self._thread.submit(self._make, index)).result()
        self.seconds += time.monotonic() - began
        self._ahead = {index + 1: self._thread.submit(self._make, index + 1)}
        return made


@torch.no_grad()
def update_ema(ema: torch.nn.Module, network: torch.nn.Module, decay: float, step: int | None = None) -> None:
    """Move the parameters of an exponential moving average towards a network's: keep `decay` of them.

    step   index of the optimiser step: the first ones keep less, (1 + step) / (10 + step); None keeps `decay` always
    """
    keep = decay if step is None else min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - keep)


def has_converged(history: Sequence[float], min_delta: float) -> bool:
    """True if the mean loss of the last WINDOW (50) steps improved on the 50 before by at most `min_delta`, relative.

    history     losses, one per step
    min_delta   minimum relative decrease to go on; 0: never converged
    """
    if not min_delta or len(history) < 2 * WINDOW:
        return False
    before, now = sum(history[-2 * WINDOW : -WINDOW]), sum(history[-WINDOW:])
    return before - now <= min_delta * before


class EarlyStopping:
    """Early stopping by `has_converged`, called with each step's record; its losses are part of the run's state."""

    losses: list[float]

    def __init__(self, min_delta: float) -> None:
        self.min_delta, self.losses = min_delta, []

    def __call__(self, record: dict) -> bool:
        self.losses = [*self.losses, record["loss"]][-2 * WINDOW :]
        return has_converged(self.losses, self.min_delta)

    def state_dict(self) -> dict:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict) -> None:
        self.losses = list(state["losses"])


def fit(
    step: Callable[[int], dict],
    state: dict[str, Any],
    *,
    steps: int,
    out: str | os.PathLike,
    header: dict,
    team: Distributed | None = None,
    seed: int = 0,
    unit: str = "images",
    feed: Prefetcher | None = None,
    save_minutes: float = 5.0,
    log_every: int = 10,
    keep: int = 0,
    converged: Callable[[dict], bool] | None = None,
    validate: Callable[[], dict] | None = None,
    validate_every: None | int = None,  # None first: not for `--set`, as `samples` below
    keep_best: None | str = None,
    draw: Callable[[], np.ndarray] | None = None,
    samples: None | str | os.PathLike = None,
    samples_every: int = 1000,
    on_save: Callable[[dict], None] | None = None,
) -> Iterator[dict]:
    """Train for `steps` steps, or until convergence, resuming from `out` if it exists; yield log records.

    step            function of the step index that takes one optimiser step and returns a dict of floats; a loss that
                    is not computed in every step is logged with its last value since the previous record
    state           {"model": ..., name: ...} objects with state_dict and load_state_dict; "model" is what inference
                    loads, the others are kept in the file under "training"
    out             path of the .pt to write, and to resume from
    header          {"kind": str, "config": dict, …}; a resumed file must have the same config, and the same values of
                    the other keys that it has
    team            Distributed; only its main process writes and yields. None: this process alone
    unit            unit of a batch in the log, as in "images_per_second"
    feed            Prefetcher that `step` uses, for the log
    save_minutes    minutes between checkpoints; one is always written at the end, and on SIGTERM or SIGHUP. Failing to
                    write one (full disk) is a warning, and the previous one is kept; only for the last it is an error
    keep            number of newest checkpoints to keep beside `out`, as NAME-STEP.pt
    converged       function of a step's record that returns True to stop, called after every step in all processes; its
                    own state belongs into `state`. Such a run cannot be continued after its end: the file then has
                    "converged" (bool: stopped before all steps) instead of "training"
    validate        function without arguments that returns a dict of floats, run every `validate_every` steps
    keep_best       name of the validation metric to minimise; the file's "model" is then the best one
    draw            function without arguments that returns a sample image, uint8 (H, W, 3)
    samples         folder for these images, one every `samples_every` steps and at the end; None: no images
    on_save         called after each checkpoint with its inference part: {"kind", "config", "step", "model", …}
    yields          {"step": int, "seconds" and "data_seconds": float, time in steps, and part of it waiting for data,
                    "images_per_second": float, ...}: one record every `log_every` steps, at each validation and at the
                    end; the last record of a converged run has "converged": True
    raises          TalkheadError if the config differs, another run writes `out`, a loss is not finite, memory is too
                    small, or on SIGTERM or SIGHUP
    warns           if the run in the file is already complete
    """
    team = team or Distributed()
    file = _CheckpointFile(Path(out), header, state, team, keep, on_save, converged is not None)
    folder = draw and samples and team.is_main and _folder(samples)
    with file.locked(), _StopSignal() as stop:
        done, ended = file.resume(steps)
        saved, seconds, waited = time.monotonic(), 0.0, feed.seconds if feed else 0.0
        complete = ended
        since: dict = {}  # values since the last record
        for index in range(done, steps):
            if ended:
                break
            count, began = index + 1, time.monotonic()
            with _enough_memory(f"{out}, step {index}"):
                record, stopped = team.reduce_record(seeded(step, index, seed, team.device), stop.raised)
            file.refuse_nan(index, record)
            seconds += time.monotonic() - began
            if index == done and team.device.type == "cpu" and team.is_main:
                _warn_of_load(seconds)
            early = converged is not None and converged(record)
            ended = early or count == steps
            if stopped and not ended and not team.is_main:
                raise TalkheadError(f"{out}: stopped at step {count} of {steps}")
            if not team.is_main:
                continue
            since |= record
            checked = validate is not None and (count % validate_every == 0 or ended)  # type: ignore[operator]
            if checked:
                record |= seeded(lambda _: validate(), index, seed, team.device)  # type: ignore[misc]  # not None here
                file.consider(count, record.get(keep_best))
            if checked or count % log_every == 0 or ended:
                speed = {f"{unit}_per_second": round(team.batch * (count - done) / seconds, 3)}
                wait = {"data_seconds": round(feed.seconds - waited, 3)} if feed else {}
                yield (
                    {"step": count, "seconds": round(seconds, 3)}
                    | wait
                    | speed
                    | since
                    | record
                    | ({"converged": True} if early else {})
                )
                since = {}
            if folder and (count % samples_every == 0 or ended):
                with _survived(f"{folder}, step {count}: no image written"):
                    image_files.write_image(
                        folder / f"{count:08}.png",
                        seeded(lambda _: draw(), 0, seed, team.device),  # type: ignore[misc]  # not None here
                        synthetic=True,
                    )
            last = stopped or ended
            if last or time.monotonic() - saved > 60 * save_minutes:
                if not file.is_finite():  # the loss would show it only in the next step
                    file.refuse_nan(index, {"a weight": math.nan})
                with nullcontext() if last else _survived(f"step {count}: the checkpoint before this one is kept"):
                    file.save(count, ended, early)
                saved = time.monotonic()
            if stopped and not ended:
                raise TalkheadError(
                    f"{out}: stopped at step {count} of {steps}, checkpoint written; run the same command to resume"
                )
    if complete and team.is_main:
        warnings.warn(f"{out}: is done, at step {done}; there is nothing left to do", stacklevel=1)
        if on_save is not None:
            on_save(file.weights(done))


def _warn_of_load(seconds):
    """Warn if a first step is slow, probably because its threads compete with other programs for the processors."""
    threads, processors = torch.get_num_threads(), os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if seconds > SLOW and threads > 1 and load > processors:
        warnings.warn(
            f"the first step took {seconds:.1f} s with {threads} threads, and the load of this machine is {load:.0f} "
            f"for {processors} processors; on busy processors, OMP_NUM_THREADS=1 can be many times as fast",
            stacklevel=1,
        )


def seeded(function: Callable[[int], Result], index: int, seed: int, device: torch.device) -> Result:
    """Call a function of the step index with torch's random state seeded by (seed, index), and restore the state."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + index) % 2**63)
        return function(index)


def _folder(path):
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TalkheadError(f"{path}: {error.strerror}; name another folder") from error
    return Path(path)


@contextmanager
def _survived(consequence):
    """Turn the error of a file that cannot be written into a warning, so that training continues."""
    try:
        yield
    except TalkheadError as error:
        warnings.warn(f"{consequence} ({error})", stacklevel=1)


@contextmanager
def _enough_memory(where):
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no exception class for it on a CPU.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise TalkheadError(f"{where}: out of memory; raise --accumulate, or lower --batch") from error


class _CheckpointFile:
    """Checkpoint file of a run: lock, resume, save."""

    def __init__(self, path, header, state, team, keep, on_save, ends):
        self.path, self.header, self.team, self.keep, self.on_save, self.ends = path, header, team, keep, on_save, ends
        self.state = state | ({"scaler": team.scaler} if team.scaler.is_enabled() else {})
        self.best = None  # {"value", "step", "model"} by validation

    @contextmanager
    def locked(self):
        """Lock the file, or raise if another run writes it. The lock ends with its process, however that ends."""
        if self.team.is_main and not self.path.parent.is_dir():
            raise TalkheadError(f"{self.path}: its folder does not exist; make it first")
        if not self.team.is_main or os.name == "nt":  # Windows has no such locks
            yield
            return
        lock = self.path.with_name(f".{self.path.name}.lock")
        with open(lock, "w", encoding="utf-8") as stream:
            files.lock(stream, f"{self.path}: another run writes it; wait for that, or pass another --output")
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)

    def refuse_nan(self, index, record):
        bad = [name for name, value in record.items() if not math.isfinite(value)]
        if bad:
            raise TalkheadError(
                f"{self.path}, step {index}: {bad[0]} is not finite; lower --lr and resume: the file holds the last "
                "good checkpoint"
            )

    def consider(self, count, value):
        """Keep a copy of the model if its validation value is the best so far."""
        if value is not None and (self.best is None or value < self.best["value"]):
            self.best = {"value": value, "step": count, "model": _cpu(self.state["model"].state_dict())}

    def is_finite(self):
        """True if all tensors to save are finite."""
        return all(tensor.isfinite().all() for tensor in _tensors([part.state_dict() for part in self.state.values()]))

    def weights(self, count):
        """Part of the checkpoint that inference loads."""
        model = self.state["model"].state_dict() if self.best is None else self.best["model"]
        return {**self.header, "step": count, "model": model}

    def save(self, count, ended, early):
        weights = self.weights(count)
        training = {name: part.state_dict() for name, part in self.state.items() if name != "model"}
        if self.best is not None:
            training |= {
                "last": self.state["model"].state_dict(),
                "best_value": self.best["value"],
                "best_step": self.best["step"],
            }
        files.save_weights(
            self.path, weights | ({"converged": early} if self.ends and ended else {"training": training})
        )
        if self.keep:
            self._snapshot(count)
        if self.on_save is not None:
            self.on_save(weights)

    def _snapshot(self, count):
        """Keep the checkpoint under a second name, by a hard link: the next one is a new file."""
        name = self.path.with_name(f"{self.path.stem}-{count:08}{self.path.suffix}")
        name.unlink(missing_ok=True)
        try:
            os.link(self.path, name)
        except OSError:  # a file system without links
            shutil.copy(self.path, name)
        pattern = f"{self.path.stem}-{'[0-9]' * 8}{self.path.suffix}"
        for old in sorted(self.path.parent.glob(pattern))[: -self.keep]:
            old.unlink()

    def resume(self, steps):
        """Load the file if it exists, and broadcast the state; returns the steps done, and True if complete."""
        done, ended = self._read(steps) if self.team.is_main else (0, False)
        if self.team.size > 1:
            done, ended, held = self.team.copy(
                (done, ended, {name: _cpu(part.state_dict()) for name, part in self.state.items()})
            )
            for name, part in self.state.items():
                _load(part, held[name])
        return done, ended

    def _read(self, steps):
        if not self.path.exists():
            return 0, False
        weights = files.load_weights(self.path, kind=self.header["kind"])
        over = self.ends and "converged" in weights
        if "training" not in weights and not over:
            raise TalkheadError(f"{self.path}: holds finished weights, not a training run; pass another --output")
        self._compare(_flat(weights["config"]), _flat(self.header["config"]))
        # Files of older versions lack the further keys of the header.
        shared = {
            key
            for key in self.header.keys() & weights.keys() - {"kind", "config"}
            if not isinstance(self.header[key], torch.Tensor)
        }
        self._compare(_flat({key: weights[key] for key in shared}), _flat({key: self.header[key] for key in shared}))
        if over:
            return self._last(weights, steps), True
        training = weights["training"]
        optimizers = {name for name, part in self.state.items() if hasattr(part, "param_groups")}
        if optimizers and not optimizers & training.keys():
            raise TalkheadError(
                f"{self.path}: is a converted file without optimisers; pass it as --init, and another --output"
            )
        for name in sorted(self.state.keys() - training.keys() - {"model", "scaler"}):
            raise TalkheadError(
                f"{self.path}: was trained without {name.replace('_', ' ')}; resume with the same options or pass "
                "another --output"
            )
        if "last" in training:
            self.best = {"value": training["best_value"], "step": training["best_step"], "model": weights["model"]}
        held = training | {"model": training.get("last", weights["model"])}
        for name, part in self.state.items():
            if name in held:
                _load(part, held[name])
        return weights["step"], weights["step"] >= steps

    def _last(self, weights, steps):
        """Load the model of a finished run; returns its last step."""
        if not weights["converged"] and weights["step"] < steps:
            raise TalkheadError(
                f"{self.path}: ended at step {weights['step']} and cannot be continued; pass another --output for "
                f"{steps} steps"
            )
        _load(self.state["model"], weights["model"])
        return weights["step"]

    def _compare(self, before, now):
        changed = [
            key
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.endswith(".lr")
        ]
        if changed:
            differences = ", ".join(f"{key}={before.get(key)}, now {now.get(key)}" for key in changed)
            raise TalkheadError(
                f"{self.path}: was trained with {differences}; resume with the same options or pass another --output"
            )


def _flat(config, prefix=""):
    """Flatten nested dicts: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _load(part, state):
    """Load a state dict, except an optimiser's learning rates, so that a resumed run may change them."""
    rates = [group["lr"] for group in getattr(part, "param_groups", ())]
    part.load_state_dict(state)
    for group, rate in zip(getattr(part, "param_groups", ()), rates):
        group["lr"] = rate


def _tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(part)


def _cpu(tree):
    """Copy a state dict to the CPU, independent of later steps."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, dict):
        return {key: _cpu(value) for key, value in tree.items()}
    return copy.deepcopy(tree)


class _StopSignal:
    """Flag set by SIGTERM, or by SIGHUP or SIGBREAK of a closed terminal, so that a checkpoint is written last."""

    raised = False

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            names = ("SIGTERM", "SIGHUP", "SIGBREAK")  # the last is Windows's, which has no SIGHUP
            stops = [getattr(signal, name) for name in names if hasattr(signal, name)]
            # nohup makes SIGHUP ignored
            handled = [number for number in stops if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._remember) for number in handled}
        return self

    def _remember(self, *_):
        self.raised = True

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
