"""Batch jobs: one kind of work for every line of a list, spread over processes that know nothing of each other.

The names of the results hang on the whole list alone, so that every process, and every rerun, gives a clip the same one.
A process takes every n-th line: its shard. A result that is there is left alone. What was done, and what failed and why,
is told in a manifest beside the results, a line of JSON each; processes write a manifest each:

    manifest.jsonl             of the whole list
    manifest-<i>-of-<n>.jsonl  of shard i of n
"""

import json
import os
import re
import shutil
import time
import traceback
import zlib
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import NamedTuple

from talkhead import files
from talkhead.errors import TalkheadError

# Shards -----------------------------------------------------------------------------------------------------------------


class Shard(NamedTuple):
    """Every `of`-th line of a list from the `index`-th on, counted from 0; `why` says who chose it, "" if nobody did."""

    index: int = 0
    of: int = 1
    why: str = ""

    def __call__(self, items):
        return items[self.index :: self.of]

    def __str__(self):
        return f"{self.index}/{self.of}"


def shard(text=None, environment=os.environ):
    """The share of this process.

    text         "i/n", i from 0 to n - 1; None leaves it to the environment
    environment  variables, of which the first of these counts: RANK and WORLD_SIZE (torchrun); those of a Slurm array, of a
                 Slurm step, or of both, where srun starts several processes in each task of an array
    returns      Shard; the whole list where nothing says otherwise
    raises       TalkheadError if it is no such share
    """
    if text is not None:
        index, _, of = text.partition("/")
        return _share(index, of, "--shard", f"--shard {text}")
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        index, of = environment["RANK"], environment["WORLD_SIZE"]
        return _share(index, of, "RANK and WORLD_SIZE", f"RANK={index}, WORLD_SIZE={of}")
    array, step = _array(environment), _step(environment)
    if array and step:
        return Shard(array.index * step.of + step.index, array.of * step.of, f"{array.why} and {step.why}")
    return array or step or Shard()


def _share(index, of, why, told):
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise TalkheadError(f"{told}: no share of a list; shards count from 0, as 0/4, 1/4, 2/4 and 3/4")
    return Shard(int(index), int(of), why)


def _array(environment):
    """The share of a task of a Slurm array, whose numbers may begin anywhere and go in steps."""
    told = {name: environment.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "MAX", "STEP")}
    if None in (told["ID"], told["COUNT"]):
        return None
    try:
        number, count = int(told["ID"]), int(told["COUNT"])
        least, stride = int(told["MIN"] or 0), int(told["STEP"] or 1)
        most = int(told["MAX"] or least + stride * (count - 1))
    except ValueError:
        number = None
    if number is None or number not in range(least, most + 1, stride) or len(range(least, most + 1, stride)) != count:
        raise TalkheadError(
            f"SLURM_ARRAY_TASK_ID={told['ID']}: the numbers of this array are not evenly spaced; pass --shard i/n"
        )
    return Shard((number - least) // stride, count, "the Slurm array")


def _step(environment):
    """The share of a process that srun started. SLURM_NTASKS will not do: a batch script has it too, and runs once."""
    if not {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environment.keys():
        return None
    index, of = environment["SLURM_PROCID"], environment["SLURM_STEP_NUM_TASKS"]
    return _share(index, of, "the Slurm step", f"SLURM_PROCID={index}, SLURM_STEP_NUM_TASKS={of}")


def own_device(device, environment=os.environ):
    """Where a process computes that has neighbours on its machine: each takes a CUDA device in turn; others are shared."""
    import torch

    local = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID")
    if device.type != "cuda" or device.index is not None or local is None:
        return device
    return torch.device("cuda", int(local) % torch.cuda.device_count())


def barrier(environment=os.environ):
    """Wait for the other processes that torchrun started: it stops them all as soon as one ends with a failure."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return
    from torch import distributed

    try:
        store, rank, size = next(distributed.rendezvous("env://"))
        marks = [f"talkhead/jobs/{environment['TORCHELASTIC_RESTART_COUNT']}/{other}" for other in range(size)]
        store.set(marks[rank], "")
        while not store.check(marks):  # not store.wait, in which no signal is heard
            time.sleep(0.2)
    except distributed.DistError:
        return  # who keeps the store has left, and does so last


# Lists ------------------------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A line of a list: what is read, by the name of its field, and the name of the result in the folder of all."""

    sources: dict
    name: str


def read_list(listing, fields=("source",), suffix=".mp4"):
    """Read a list of work.

    listing  path, "-" or binary stream of text (UTF-8, or UTF-16 with its mark): a line each, its `fields` with tabs between, and the name of its result after another
             tab, if it is to have its own. Blank lines, and those that begin with #, are passed over; a line that comes again
             counts once
    fields   names of what a line must hold
    suffix   of results that are not named
    returns  list of Item, with different names
    raises   TalkheadError if it cannot be read, is empty, a line has other fields, two results would have one name, or one would
             lie outside of their folder or be hidden

    A result is named after its source: a/b/clip.mpg becomes clip.mp4. Where that would make two the same, every result keeps
    one folder more of its source, b/clip.mp4, and so on, until all differ. Several sources are joined with dashes,
    where they differ: anna.png and hello.wav become anna-hello.mp4.
    """
    told = "-" if listing == "-" else str(listing)
    lines = _lines(listing, told)
    if not lines:
        raise TalkheadError(f"{told}: holds no line of work; write {_form(fields)} on each")
    parsed = [(number, *_fields(line, fields, f"{told}, line {number}")) for number, line in lines.items()]
    deepest = max(len(_parts(source)) for _, sources, _ in parsed for source in sources)
    for folders in range(deepest):
        names = [own or _name(sources, folders) + suffix for _, sources, own in parsed]
        if len(set(names)) == len(names):
            for (number, _, _), name in zip(parsed, names):
                if files.is_hidden(name):
                    raise TalkheadError(
                        f"{told}, line {number}: the result {name} would be hidden; give it a name without the dot, after a tab"
                    )
            return [Item(dict(zip(fields, sources)), name) for (_, sources, _), name in zip(parsed, names)]
    first = {}
    for (number, _, _), name in zip(parsed, names):
        if first.setdefault(name, number) != number:
            raise TalkheadError(
                f"{told}, lines {first[name]} and {number}: both would be written to {name}; name one otherwise, after a tab"
            )


def _lines(listing, told):
    """The lines that count, by number from 1."""
    with files.reading(listing) as stream:
        data = b"".join(iter(lambda: stream.read(1 << 16), b""))  # one read of a pipe gives what has come
    try:
        text = files.decoded(
            data, "surrogateescape"
        )  # names of files may be no text; the system gets them back as they were
    except UnicodeDecodeError as problem:
        raise TalkheadError(f"{told}: not a text file ({problem.reason}); write it as UTF-8") from problem
    lines = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if "\0" in line:
            raise TalkheadError(
                f"{told}, line {number}: holds a zero byte, which no name has; write the list as UTF-8 text"
            )
        if line.strip() and not line.startswith("#"):
            lines.setdefault(line, number)
    return {number: line for line, number in lines.items()}


def _fields(line, fields, where):
    """The sources that a line names, and the name of its result or None."""
    *sources, own = [*line.split("\t"), ""][: len(fields) + 1]
    if len(sources) != len(fields) or line.count("\t") > len(fields) or not all(sources):
        raise TalkheadError(f"{where}: wanted {_form(fields)}, with tabs between")
    for source in sources:
        if source == "-" or not _parts(source):
            raise TalkheadError(f"{where}: {source} has no name to go by; name a file or folder")
    own = os.path.normpath(own) if own else None
    if own is not None and (os.path.isabs(own) or own in (os.curdir, os.pardir) or own.startswith(os.pardir + os.sep)):
        raise TalkheadError(f"{where}: the result {own} would lie outside of the output folder; name a file within it")
    return sources, own


def _form(fields):
    return " ".join(field.upper() for field in fields) + " [RESULT]"


def _parts(path):
    """The folders of a path, and its last part without suffix."""
    path = PurePath(os.path.normpath(path))
    parts = [part for part in path.parts if part not in ("..", path.anchor)]
    return [*parts[:-1], path.stem] if parts and path.name != ".." else []


def _name(sources, folders):
    """What results of these sources are called when so many folders are kept: level by level, joined where they differ."""
    kept = [reversed(_parts(source)[-1 - folders :]) for source in sources]
    levels = [dict.fromkeys(part for part in level if part is not None) for level in zip_longest(*kept)]
    return os.path.join(*("-".join(level) for level in reversed(levels)))


# Work -------------------------------------------------------------------------------------------------------------------


def manifest_path(folder, shard=Shard()):
    """Where the manifest of a shard lies."""
    return Path(folder) / ("manifest.jsonl" if shard.of == 1 else f"manifest-{shard.index}-of-{shard.of}.jsonl")


def run(items, work, folder, shard=Shard(), beside=(), overwrite=False):
    """Do the work of a shard, item by item; whatever fails is recorded, and the next is done.

    items      list of Item, the whole of it
    work       called with an item's sources and the path of its result, by the right name but in a hidden folder of its own, where it may leave
               what it needs to go on; returns what else there is to record: a dict
    folder     where results go; it and its folders are made
    shard      which of the items are this process's
    beside     suffixes of what is written beside a result; it is done when these are there too
    overwrite  also do what is done
    yields     a record for each item, in order: its sources by name, "output", the name of the result in the folder, "status",
               "done", "skipped" or "failed"; what was worked on has "seconds", what was done what `work` returns, and what
               failed "reason", and "traceback" if it is our bug
    raises     TalkheadError if the folder or the manifest cannot be written, or another process is at work on the same shard

    The manifest holds the newest record of each result. A result that is there keeps the record of when it was made. What was made is recorded
    first, and moved to its place then: a process may be killed between the two, and a record without a result does not count.
    """
    folder, items = Path(folder), shard(items)

    if folder.exists() and not folder.is_dir():
        raise TalkheadError(f"{folder}: is a file; name a folder for the results")

    def is_done(item):
        place = folder / item.name
        return all(
            map(os.path.exists, (place, *map(place.with_suffix, beside)))
        )  # False of a name that is too long, which the work will tell

    done = {item.name for item in items if not overwrite and is_done(item)}
    with _Manifest(manifest_path(folder, shard)) as manifest:
        manifest.forget({item.name for item in items}, but=done)
        for item in items:
            record = item.sources | {"output": item.name}
            if not overwrite and is_done(item):
                record["status"] = "skipped"
                if item.name not in manifest.known:
                    manifest.add(record)
            else:
                place = folder / item.name
                desk = place.with_name(f".{place.stem[:32]}.{zlib.crc32(os.fsencode(place.name)):08x}")
                record |= _worked(work, item, place, desk)
                manifest.add(record)
                if record["status"] == "done":
                    _publish(desk, place)
            yield record


def _publish(desk, place):
    """Move a result, and what belongs beside it, to its place; the result last, for with it the work is done."""
    with files.os_errors_in_one_line(place):
        for made in sorted(desk.iterdir(), key=lambda made: made.name == place.name):
            if not files.is_hidden(made.name):  # as what was half written when a process was killed is
                os.replace(made, place.with_name(made.name))
        shutil.rmtree(desk)


def _worked(work, item, place, desk):
    """Do the work on one item at a desk, a folder; what there is to record."""
    began = time.monotonic()

    def record(status, **more):
        return {"status": status, "seconds": round(time.monotonic() - began, 3)} | more

    try:
        with files.os_errors_in_one_line(place):
            if place.is_dir():
                place.rmdir()  # a folder takes the place of an empty one alone
            desk.mkdir(parents=True, exist_ok=True)
            for folder in filter(
                Path.is_dir, desk.iterdir()
            ):  # a whole or half result of a process that was killed; files are written over
                shutil.rmtree(folder)
        return record("done", **work(*item.sources.values(), str(desk / place.name)))
    except TalkheadError as problem:
        return record(
            "failed",
            reason=re.sub(re.escape(str(desk / place.name)) + r"(?![\w.])", lambda _: str(place), str(problem)),
        )
    except Exception as problem:  # a bug of ours must not keep the other clips waiting
        return record("failed", reason=f"{type(problem).__name__}: {problem}", traceback=traceback.format_exc())
    finally:
        with suppress(OSError):
            desk.rmdir()  # if there is nothing to go on from


class _Manifest:
    """A file of records, a line each, that grows as work is done; held against other processes while it is open.

    path   made if absent, and its folder
    known  the results of which it tells
    """

    def __init__(self, path):
        self.path, self.known = Path(path), set()

    def __enter__(self):
        with files.os_errors_in_one_line(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(
                self.path,
                "r+",
                encoding="utf-8",
                errors="replace",
                opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666),
            )
        try:
            self._hold()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_):
        with files.os_errors_in_one_line(self.path):
            self._stream.close()

    def _hold(self):
        """Refuse what another process has in hand. The lock goes with its process, however that ends."""
        if os.name == "nt":  # Windows has no such locks
            return
        import fcntl

        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise TalkheadError(
                f"{self.path}: another process is at work on this shard; give each its own --shard i/n"
            ) from problem
        except OSError:
            pass  # a file system without locks

    def forget(self, names, but):
        """Drop the records of these results, but not where they tell how one was made that is there: so they come once."""
        with files.os_errors_in_one_line(self.path):
            lines = [
                (line, _told(line)) for line in self._stream if line.endswith("\n")
            ]  # a killed process may not have ended its last
            if lines and lines[0][1] is None:
                raise TalkheadError(f"{self.path}: not a manifest of talkhead; move it away, or name another folder")
            kept = [line for line, told in lines if told is not None and self._keeps(*told, names, but)]
            # Written over what was there, then cut: killed in between, it has lines too many, which the next run drops.
            self._stream.seek(0)
            self._stream.writelines(kept)
            self._stream.truncate()

    def _keeps(self, name, status, names, but):
        if name in self.known or (name in names and (name not in but or status == "failed")):
            return False
        self.known.add(name)
        return True

    def add(self, record):
        with files.os_errors_in_one_line(self.path):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()
        self.known.add(record["output"])


def _told(line):
    """The result that a line of a manifest tells of, and its status; None if the line is something else."""
    try:
        record = json.loads(line)
        return record["output"], record["status"]
    except (ValueError, TypeError, KeyError):
        return None
