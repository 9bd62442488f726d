"""Output and shared steps of the commands: one-line errors, progress, records, lists, and the loading of networks."""

import errno
import functools
import json
import logging
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from talkhead.cli_options import Command
from talkhead.errors import TalkheadError

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from talkhead.jobs import Shard


class Script(Command):
    """A command that reports a TalkheadError as one line on stderr and an exit status, and a warning as one line.

    Any other exception keeps its traceback. click itself exits silently with 1 when the reader of stdout has closed it.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        _open_streams()
        try:
            return super().main(*arguments, **options)
        except OSError as problem:
            # Errors about files are turned into TalkheadError where they occur: what is left without a name is stdout.
            if problem.filename is None and sys.platform == "win32" and problem.errno == errno.EINVAL:
                sys.stdout = _nowhere()  # its reader closed it, as click itself knows by EPIPE
            elif problem.filename is not None or problem.errno not in _OF_A_STREAM:
                raise
            else:
                _stdout_failed()
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _stoppable(), _logged(), warnings.catch_warnings(), memory():
                warnings.showwarning = lambda message, *_: log(" ".join(str(message).split()))
                return super().invoke(ctx)
        except TalkheadError as problem:
            _tell(f"{_who()}: {problem}")
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)


class _Lines(logging.Handler):
    """Log records of the library as lines on stderr, or as notes on the item of a list."""

    def emit(self, record):
        log(record.getMessage())


@contextmanager
def _logged():
    logger, handler = logging.getLogger("talkhead"), _Lines()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class Group(Script, click.Group):
    """A group of such commands."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet


_OF_A_STREAM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _open_streams():
    """Give the descriptors 0 to 2 to nobody else where the caller closed them.

    C code writes there, and would write into a file of ours.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = _nowhere()


def _nowhere():
    return open(os.devnull, "w", encoding="utf-8")


def _stdout_failed():
    """Report why stdout could not be written, and drop its buffer."""
    from talkhead import files

    try:
        with files.os_errors_in_one_line("-"):
            raise
    except TalkheadError as problem:
        _tell(f"{_who()}: {problem}")
    sys.stdout = _nowhere()


def _tell(line):
    """Write a line to stderr; where that fails, the work goes on in silence."""
    try:
        click.echo(line, err=True)
    except OSError:
        sys.stderr = _nowhere()


@contextmanager
def _stoppable():
    """End on SIGTERM, and on SIGHUP or SIGBREAK of a terminal that closes, like an exit.

    Half-written outputs are then removed on the way.
    """

    def stop(number, _):
        raise SystemExit(128 + number)

    names = ("SIGTERM", "SIGHUP", "SIGBREAK")  # the last is Windows's, which has no SIGHUP
    stops = [getattr(signal, name) for name in names if hasattr(signal, name)]
    heeded = [number for number in stops if signal.getsignal(number) is not signal.SIG_IGN]  # nohup has it ignored
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def memory() -> Iterator[None]:
    """Turn running out of memory into one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        # torch's OutOfMemoryError is a RuntimeError, named here because torch may not be loaded.
        if not isinstance(problem, MemoryError) and type(problem).__name__ != "OutOfMemoryError":
            raise
        raise TalkheadError("out of memory; lower --batch, or pass --device cpu") from problem


def log(text: str) -> None:
    if _batch("notes") is not None:
        _batch("notes").append(text)
    elif not _rank():
        _tell(f"{_who()}: {text}")


def _batch(key):
    """The "shard" of the running batch job, or the "notes" on its current item; None outside one."""
    context = click.get_current_context(silent=True)
    return context and context.meta.get(f"talkhead.{key}")


def _rank():
    """Rank of this process in a run that torchrun started; only the first one, 0, reports. Shards each report."""
    return int(os.environ.get("RANK", 0)) if "WORLD_SIZE" in os.environ and not _batch("shard") else 0


def _who():
    """Prefix of the lines on stderr."""
    shard = _batch("shard")
    if shard and shard.of > 1:
        return f"talkhead, shard {shard}"
    return f"talkhead, process {_rank()}" if _rank() else "talkhead"


def init_process_group(device: str) -> "torch.device":
    """Train together with the other processes that torchrun started, until the command ends; the device of this one."""
    from talkhead import distributed

    return click.get_current_context().with_resource(distributed.init_process_group(distributed.pick_device(device)))


def shard_of(shard: "Shard | None") -> "Shard":
    """The shard of this process: as given, else by the environment. Its lines on stderr then carry its prefix."""
    from talkhead import jobs

    shard = click.get_current_context().meta["talkhead.shard"] = shard or jobs.shard()
    return shard


def progress(items: Iterable | None, total: int | None = None, unit: str = "frame") -> "tqdm":
    from tqdm import tqdm

    # Within a list, the list's own is enough.
    hidden = _rank() or _batch("notes") is not None
    return tqdm(items, total=total, unit=unit, desc=_who().partition(", ")[2] or None, disable=True if hidden else None)


def print_records(records: Iterable[dict]) -> None:
    for record in records:
        click.echo(json.dumps(record))


def follow_training(records: Iterable[dict], steps: int | None, tensorboard: str | None = None) -> None:
    """A trainer's records on stdout, its progress on stderr, and its curves in a TensorBoard folder, if any."""
    draw = _curves(tensorboard) if tensorboard and not _rank() else lambda record: None
    with progress(None, steps, "step") as bar:
        for record in records:
            bar.clear()
            print_records([record])
            bar.update(record["step"] - bar.n)
            draw(record)


def _curves(folder):
    """A function that adds a record to TensorBoard's curves."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as problem:
        raise TalkheadError(
            "--set tensorboard: its package is not installed; pip install 'talkhead[tensorboard]'"
        ) from problem
    writer = SummaryWriter(folder)

    def draw(record):
        for name, value in record.items():
            if not isinstance(value, str):
                writer.add_scalar(name, value, record["step"])
        writer.flush()

    return draw


def run_list(
    work: Callable,
    listing: str,
    folder: str,
    shard: "Shard | None",
    overwrite: bool,
    fields: Sequence[str] = ("source",),
    suffix: str = ".mp4",
    beside: Sequence[str] = (),
) -> None:
    """Do this process's shard of a list; one line sums it up, the manifest has the rest."""
    from talkhead import jobs

    shard = shard_of(shard)
    if listing == "-" and shard.of > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise click.UsageError("--list -: processes of torchrun cannot each read stdin; name a file")
    items = jobs.read_list(listing, fields, suffix)
    if shard.why:
        log(f"{len(shard(items))} of {len(items)} lines of {listing}, by {shard.why}")
    records = jobs.run(items, functools.partial(_noted, work), folder, shard, beside, overwrite)
    counts: Counter[str] = Counter()
    manifest = jobs.manifest_path(folder, shard)
    try:
        _watch_list(records, fields, len(shard(items)), counts)
    except (KeyboardInterrupt, SystemExit):
        log(f"stopped: {_counts(counts)} of {len(shard(items))}; see {manifest}")
        raise
    log(f"{_counts(counts)}; see {manifest}")
    jobs.barrier()
    click.get_current_context().exit(int(counts["failed"] > 0))


def _counts(counts):
    return ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed"))


def _noted(work, *arguments):
    """Do one item; its log lines are recorded with the number of frames."""
    meta = click.get_current_context().meta
    notes = meta["talkhead.notes"] = []
    try:
        with memory():
            return {"frames": work(*arguments)} | ({"notes": notes} if notes else {})
    finally:
        del meta["talkhead.notes"]


def _watch_list(records, fields, total, counts):
    """Count records by status; failures are logged at once."""
    with progress(None, total, "clip") as bar:
        for record in records:
            bar.update()
            counts[record["status"]] += 1
            if record["status"] == "failed":
                bar.clear()
                sources, reason = [record[field] for field in fields], " ".join(record["reason"].split())
                named = any(source in reason for source in sources)
                log("failed: " + ("" if named else f"{', '.join(sources)}: ") + reason)


def load(device, **paths):
    """The device, and the networks at `paths` (None: the bundled ones), which fit each other."""
    from talkhead import checkpoints, distributed

    device = distributed.pick_device(device)
    return device, *checkpoints.load_networks(device, **paths).values()


def finder(device, detector_model=None, detector: str = "auto"):
    """A function that returns the face detector, loaded on its first call: aligned input needs none."""

    @functools.cache
    def find():
        from talkhead import landmarks

        return landmarks.detector(detector, detector_model, device)

    return find


def perceptual(name, device):
    """A perceptual distance by name; the choice of "auto" is logged."""
    from talkhead.losses import Perceptual

    distance = Perceptual(name).to(device)
    if name == "auto":
        log(
            f"perceptual loss: {distance.name}"
            + ("" if distance.name == "lpips" else ", because torch's cache holds no VGG weights for lpips")
        )
    return distance


def left_out(problems, frames):
    for problem in problems:
        log(f"left out: {problem}")
    if problems:
        log(
            f"{len(problems)} {'file was' if len(problems) == 1 else 'files were'} left out; {frames} frames of the "
            "others were taken"
        )
