"""How every command talks: errors and warnings in a line, progress on stderr, records on stdout."""

import errno
import json
import os
import signal
import sys
import warnings
from contextlib import contextmanager

import click

from talkhead.errors import TalkheadError


class Script(click.Command):
    """A command that turns what the caller can mend into one line on stderr and an exit status, and a warning into one line.

    Everything else keeps its traceback: it is our bug. click itself ends silently with 1 when the reader of stdout has left.
    """

    def main(self, *arguments, **options):
        _open_streams()
        try:
            return super().main(*arguments, **options)
        except OSError as problem:
            # Errors about files are turned into TalkheadError where they occur: what is left without a name is stdout.
            if problem.filename is not None or problem.errno not in _OF_A_STREAM:
                raise
            _stdout_failed()
            sys.exit(1)

    def invoke(self, ctx):
        try:
            with _stoppable(), warnings.catch_warnings(), memory():
                warnings.showwarning = lambda message, *_: log(" ".join(str(message).split()))
                return super().invoke(ctx)
        except TalkheadError as problem:
            _tell(f"{_who()}: {problem}")
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)


class Group(Script, click.Group):
    """A group of commands that does so for all of them."""

    def list_commands(self, ctx):
        return list(self.commands)  # in the order of the work, not of the alphabet


_OF_A_STREAM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _open_streams():
    """Give the descriptors 0 to 2 to nobody else where the caller closed them: what C code says there would end in a file of ours."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def _stdout_failed():
    """Say why stdout could not be written, and drop what Python still holds for it."""
    from talkhead import files

    try:
        with files.os_errors_in_one_line("-"):
            raise
    except TalkheadError as problem:
        _tell(f"{_who()}: {problem}")
    sys.stdout = open(os.devnull, "w")


def _tell(line):
    """Write a line to stderr; where that fails, the work goes on in silence."""
    try:
        click.echo(line, err=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")


@contextmanager
def _stoppable():
    """SIGTERM, and the SIGHUP of a terminal that closes, end like an exit, so that half-written outputs are removed on the way."""

    def stop(number, _):
        raise SystemExit(128 + number)

    stops = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    heeded = [number for number in stops if signal.getsignal(number) is not signal.SIG_IGN]  # nohup has it ignored
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def memory():
    """Turn running out of memory into one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        # torch's OutOfMemoryError is a RuntimeError, named here because torch may not be loaded.
        if not isinstance(problem, MemoryError) and type(problem).__name__ != "OutOfMemoryError":
            raise
        raise TalkheadError("out of memory; lower --batch, or pass --device cpu") from problem


def log(text):
    if _batch("notes") is not None:
        _batch("notes").append(text)
    elif not _rank():
        _tell(f"{_who()}: {text}")


def _batch(key):
    """What is known of the batch job at work: its "shard", and the "notes" on the item in hand; None outside one."""
    context = click.get_current_context(silent=True)
    return context and context.meta.get(f"talkhead.{key}")


def _rank():
    """Which process of a run that torchrun started this is; only the first one, 0, tells how it goes. Shards each tell."""
    return int(os.environ.get("RANK", 0)) if "WORLD_SIZE" in os.environ and not _batch("shard") else 0


def _who():
    """How the lines on stderr begin."""
    shard = _batch("shard")
    if shard and shard.of > 1:
        return f"talkhead, shard {shard}"
    return f"talkhead, process {_rank()}" if _rank() else "talkhead"


def init_process_group(device):
    """Train together with the other processes that torchrun started, until the command ends; the device of this one."""
    from talkhead import distributed

    return click.get_current_context().with_resource(distributed.init_process_group(distributed.pick_device(device)))


def shard_of(shard):
    """The share of this process: as told, else by the environment. From now on it speaks for itself."""
    from talkhead import jobs

    shard = click.get_current_context().meta["talkhead.shard"] = shard or jobs.shard()
    return shard


def progress(items, total=None, unit="frame"):
    from tqdm import tqdm

    # Within a list, the list's own is enough.
    hidden = _rank() or _batch("notes") is not None
    return tqdm(items, total=total, unit=unit, desc=_who().partition(", ")[2] or None, disable=True if hidden else None)


class InversionLog:
    """Shows how far the descents of `inversion.invert` are, a step at a time, and logs every so many of their steps.

    total   steps of all frames together, None if that is not known
    log     path of a JSON-lines file or None
    resumed whether frames found before come first: they leave no records, and the log keeps theirs
    """

    def __init__(self, total, log, log_every, resumed):
        self.bar, self.every, self.taken, self.early = progress(None, total, "step"), log_every, {}, 0
        self.log = log and self._open(log, "r+" if resumed and os.path.exists(log) else "w+")

    @staticmethod
    def _open(log, mode):
        from talkhead import files

        with files.os_errors_in_one_line(log):
            return open(log, mode, encoding="utf-8")

    def record(self, record):
        frame, step = record["frame"], record["step"]
        if not self.taken and self.log is not None:
            self._forget(frame)
        if self.log is not None and (step % self.every == 0 or step + 1 == record["steps"]):
            self.log.write(json.dumps(record) + "\n")
            self.log.flush()
        self.taken[frame] = step + 1
        self.bar.set_postfix_str(f"frame {frame + 1}, loss {record['loss']:.4f}", refresh=False)
        self.bar.update()

    def _forget(self, frame):
        """Drop what a run that was killed had logged of frames that it did not finish."""
        kept = [line for line in self.log if line.endswith("\n") and json.loads(line)["frame"] < frame]
        self.log.seek(0)
        self.log.truncate()
        self.log.writelines(kept)

    def path(self, latents, planned):
        """Hand on latents, and let the bar know of those that cost no steps, or fewer than planned."""
        for frame, latent in enumerate(latents):
            saved = planned(frame) - self.taken.get(frame, 0)
            self.early += 0 < saved < planned(frame)
            if self.bar.total is not None:
                self.bar.total -= saved
            yield latent

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.log is not None:
            self.log.close()


def print_records(records):
    for record in records:
        click.echo(json.dumps(record))


def follow_training(records, steps, tensorboard):
    """A trainer's records on stdout, how far it is on stderr, and its curves in TensorBoard's folder, if one is named."""
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
            "--tensorboard: its package is not installed; pip install 'talkhead[tensorboard]'"
        ) from problem
    writer = SummaryWriter(folder)

    def draw(record):
        for name, value in record.items():
            if not isinstance(value, str):
                writer.add_scalar(name, value, record["step"])
        writer.flush()

    return draw
