"""Batch jobs: process every line of a list, sharded over independent processes, resumable.

Result names depend on the whole list alone, so that every process and every rerun gives a clip the same name. A process
takes every n-th line: its shard. Existing results are skipped. Each process writes a manifest beside the results, with
one JSON record a line for each item done, skipped or failed:

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from talkhead import files
from talkhead.errors import TalkheadError

if TYPE_CHECKING:
    import torch

# Shards
# -----------------------------------------------------------------------------------------------------------------


class Shard(NamedTuple):
    """Shard of a list: every `of`-th item from `index` (0-based) on; `why` names who chose it, or is ""."""

    index: int = 0  # type: ignore[assignment]  # hides tuple.index
    of: int = 1
    why: str = ""

    def __call__(self, items: Sequence) -> Sequence:
        return items[self.index :: self.of]

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


def shard(text: str | None = None, environment: Mapping[str, str] = os.environ) -> Shard:
    """Shard of this process.

    text         "i/n", i from 0 to n - 1; None: by the environment
    environment  variables; the first of these counts: RANK and WORLD_SIZE (torchrun); those of a Slurm array, of a
                 Slurm step, or of both, if srun starts several processes in each task of an array
    returns      Shard; by default the whole list
    raises       TalkheadError if it is no valid shard
    """
    if text is not None:
        index, _, of = text.partition("/")
        return _checked_shard(index, of, "--shard", f"--shard {text}")
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        index, of = environment["RANK"], environment["WORLD_SIZE"]
        return _checked_shard(index, of, "RANK and WORLD_SIZE", f"RANK={index}, WORLD_SIZE={of}")
    array, step = _array(environment), _step(environment)
    if array and step:
        return Shard(array.index * step.of + step.index, array.of * step.of, f"{array.why} and {step.why}")
    return array or step or Shard()


def _checked_shard(index, of, why, setting):
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise TalkheadError(f"{setting}: not a valid shard; shards count from 0, as 0/4, 1/4, 2/4 and 3/4")
    return Shard(int(index), int(of), why)


def _array(environment):
    """Shard of a Slurm array task; the task numbers may begin anywhere and have a stride."""
    given = [environment.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "MAX", "STEP")]
    if given[0] is None:
        return None
    if None in given:
        raise TalkheadError(
            f"SLURM_ARRAY_TASK_ID={given[0]}: without SLURM_ARRAY_TASK_COUNT, _MIN, _MAX and _STEP, which Slurm "
            "sets too; pass --shard i/n"
        )
    try:
        number, count, least, most, stride = map(int, given)
        tasks = range(least, most + 1, stride)
        if len(tasks) != count:
            raise ValueError
        return Shard(tasks.index(number), count, "the Slurm array")
    except ValueError as error:
        raise TalkheadError(
            f"SLURM_ARRAY_TASK_ID={given[0]}: the numbers of this array are not evenly spaced; pass --shard i/n"
        ) from error


def _step(environment):
    """Shard of a process started by srun. SLURM_NTASKS would not do: a batch script has it too, but runs once."""
    if not {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environment.keys():
        return None
    index, of = environment["SLURM_PROCID"], environment["SLURM_STEP_NUM_TASKS"]
    return _checked_shard(index, of, "the Slurm step", f"SLURM_PROCID={index}, SLURM_STEP_NUM_TASKS={of}")


def own_device(device: "torch.device", environment: Mapping[str, str] = os.environ) -> "torch.device":
    """Device of this process: processes of one machine get CUDA devices round-robin; other devices are shared."""
    import torch

    local = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID")
    if device.type != "cuda" or device.index is not None or local is None:
        return device
    return torch.device("cuda", int(local) % torch.cuda.device_count())


def barrier(environment: Mapping[str, str] = os.environ) -> None:
    """Wait for the other processes of torchrun, which stops them all as soon as one fails."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return
    from torch import distributed

    try:
        store, rank, size = next(distributed.rendezvous("env://"))
        marks = [f"talkhead/jobs/{environment['TORCHELASTIC_RESTART_COUNT']}/{other}" for other in range(size)]
        store.set(marks[rank], "")
        while not store.check(marks):  # not store.wait, which blocks signals
            time.sleep(0.2)
    except distributed.DistError:
        return  # the process that hosts the store has ended, which it does last


# Lists
# ------------------------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """Item of a list: the input paths by field name, and the name of the result in the output folder."""

    sources: dict
    name: str


def read_list(  # type: ignore[return]  # it ends by raising
    listing: str | os.PathLike | BinaryIO, fields: Sequence[str] = ("source",), suffix: str = ".mp4"
) -> list[Item]:
    """Read the items of a job list.

    listing  path, "-" or binary stream of text (UTF-8, or UTF-16 with a byte-order mark): an item per line, its
             `fields` separated by tabs, and optionally the name of its result after another tab. Blank lines and lines
             that begin with # are skipped; a repeated line counts once
    fields   names of the fields of a line
    suffix   suffix of results without a given name
    returns  list of Item, with distinct names
    raises   TalkheadError if it cannot be read or is empty, a line has other fields, two results would have one name,
             or one would be hidden or lie outside of the output folder

    A result is named after its source: a/b/clip.mpg becomes clip.mp4. If two names are equal, every result keeps one
    more folder of its source, b/clip.mp4, and so on, until all differ. Several sources are joined with dashes where
    they differ: anna.png and hello.wav become anna-hello.mp4.
    """
    label = "-" if listing == "-" else str(listing)
    lines = _lines(listing, label)
    if not lines:
        raise TalkheadError(f"{label}: holds no items; write {_form(fields)} on each")
    parsed = [(number, *_fields(line, fields, f"{label}, line {number}")) for number, line in lines.items()]
    deepest = max(len(_parts(source)) for _, sources, _ in parsed for source in sources)
    for folders in range(deepest):
        names = [own or _name(sources, folders) + suffix for _, sources, own in parsed]
        if len(set(names)) == len(names):
            for (number, _, _), name in zip(parsed, names):
                if files.is_hidden(name):
                    raise TalkheadError(
                        f"{label}, line {number}: the result {name} would be hidden; give a name without the dot, "
                        "after a tab"
                    )
            return [Item(dict(zip(fields, sources)), name) for (_, sources, _), name in zip(parsed, names)]
    first: dict[str, int] = {}
    for (number, _, _), name in zip(parsed, names):
        if first.setdefault(name, number) != number:
            raise TalkheadError(
                f"{label}, lines {first[name]} and {number}: both would be written to {name}; give one another name, "
                "after a tab"
            )


def _lines(listing, label):
    """Lines with an item, {number from 1: line}."""
    with files.reading(listing) as stream:
        data = b"".join(iter(lambda: stream.read(1 << 16), b""))  # one read of a pipe returns only the available bytes
    try:
        # File names need not be valid text; surrogateescape restores their bytes.
        text = files.decoded(data, "surrogateescape")
    except UnicodeDecodeError as error:
        raise TalkheadError(f"{label}: not a text file ({error.reason}); write it as UTF-8") from error
    lines = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if "\0" in line:
            raise TalkheadError(
                f"{label}, line {number}: holds a zero byte, which no file name has; write the list as UTF-8 text"
            )
        if line.strip() and not line.startswith("#"):
            lines.setdefault(line, number)
    return {number: line for line, number in lines.items()}


def _fields(line, fields, where):
    """Sources of a line, and the given name of its result or None."""
    *sources, own = [*line.split("\t"), ""][: len(fields) + 1]
    if len(sources) != len(fields) or line.count("\t") > len(fields) or not all(sources):
        raise TalkheadError(f"{where}: wanted {_form(fields)}, separated by tabs")
    for source in sources:
        if source == "-" or not _parts(source):
            raise TalkheadError(f"{where}: {source} has no name for the result; name a file or folder")
    own = os.path.normpath(own) if own else None
    # An anchor is a root, or on Windows a drive: "C:x" and "\\x" are relative, and leave the folder.
    if own is not None and (PurePath(own).anchor or PurePath(own).parts[:1] in ((), (os.pardir,))):
        raise TalkheadError(f"{where}: the result {own} would lie outside of the output folder; name a file within it")
    return sources, own


def _form(fields):
    return " ".join(field.upper() for field in fields) + " [RESULT]"


def _parts(path):
    """Folders of a path, and its last part without suffix."""
    path = PurePath(os.path.normpath(path))
    parts = [part for part in path.parts if part not in ("..", path.anchor)]
    return [*parts[:-1], path.stem] if parts and path.name != ".." else []


def _name(sources, folders):
    """Name of the result of sources with a number of folders kept: level by level, joined where they differ."""
    kept = [reversed(_parts(source)[-1 - folders :]) for source in sources]
    levels = [dict.fromkeys(part for part in level if part is not None) for level in zip_longest(*kept)]
    return os.path.join(*("-".join(level) for level in reversed(levels)))


# Work
# -------------------------------------------------------------------------------------------------------------------


def manifest_path(folder: str | os.PathLike, shard: Shard = Shard()) -> Path:
    """Path of the manifest of a shard."""
    return Path(folder) / ("manifest.jsonl" if shard.of == 1 else f"manifest-{shard.index}-of-{shard.of}.jsonl")


def run(
    items: list[Item],
    work: Callable[..., dict],
    folder: str | os.PathLike,
    shard: Shard = Shard(),
    beside: Sequence[str] = (),
    overwrite: bool = False,
) -> Iterator[dict]:
    """Process the items of a shard one by one; a failure is recorded, and the next item follows.

    items      list of all Items
    work       function of an item's sources and the path of its result, with its final name but in a hidden folder of
               its own, where it may leave files from which it can resume; returns a dict to add to the record
    folder     output folder; it and the folders of the results are created
    shard      Shard of this process
    beside     suffixes of further files beside a result, without which it is not done
    overwrite  process existing results again
    yields     a record for each item, in order: its sources by field name, "output" (name of the result in the folder)
               and "status" ("done", "skipped" or "failed"); "seconds" unless skipped; the dict of `work` if done;
               "reason" if failed, and "traceback" if it is our bug
    raises     TalkheadError if the folder or the manifest cannot be written, or another process works on the same shard

    The manifest holds the newest record of each result; a skipped result keeps the record of when it was made. A result
    is recorded first and moved to its final place afterwards: if a process is killed between the two, the record
    without a result does not count.
    """
    folder, items = Path(folder), list(shard(items))

    if folder.exists() and not folder.is_dir():
        raise TalkheadError(f"{folder}: is a file; name a folder for the results")

    def is_done(item):
        place = folder / item.name
        # False for a name that is too long, which the work will report
        return all(map(os.path.exists, (place, *map(place.with_suffix, beside))))

    done = {item.name for item in items if not overwrite and is_done(item)}
    place = manifest_path(folder, shard)
    with files.os_errors_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with Ledger(place, f"{place}: another process works on this shard; give each its own --shard i/n") as manifest:
        known = _kept(manifest, {item.name for item in items}, done)
        manifest.keep(list(known.values()))
        for item in items:
            record = item.sources | {"output": item.name}
            if not overwrite and is_done(item):
                record["status"] = "skipped"
                if item.name not in known:
                    manifest.add(record)
            else:
                place = folder / item.name
                work_folder = place.with_name(f".{place.stem[:32]}.{zlib.crc32(os.fsencode(place.name)):08x}")
                record |= _worked(work, item, place, work_folder)
                manifest.add(record)
                if record["status"] == "done":
                    _publish(work_folder, place)
            yield record


def _publish(work_folder, place):
    """Move a result and the files beside it to their final place; the result last, since it marks the item as done."""
    with files.os_errors_in_one_line(place):
        for made in sorted(work_folder.iterdir(), key=lambda made: made.name == place.name):
            if not files.is_hidden(made.name):  # hidden: a partial file of a killed process
                os.replace(made, place.with_name(made.name))
        shutil.rmtree(work_folder)


def _worked(work, item, place, work_folder):
    """Process one item in its working folder; returns the status, duration and further values of its record."""
    began = time.monotonic()

    def record(status, **more):
        return {"status": status, "seconds": round(time.monotonic() - began, 3)} | more

    try:
        with files.os_errors_in_one_line(place):
            if place.is_dir():
                place.rmdir()  # a folder can replace only an empty one
            work_folder.mkdir(parents=True, exist_ok=True)
            # Remove result folders of a killed process; files are overwritten.
            for folder in filter(Path.is_dir, work_folder.iterdir()):
                shutil.rmtree(folder)
        return record("done", **work(*item.sources.values(), str(work_folder / place.name)))
    except TalkheadError as error:
        return record(
            "failed",
            reason=re.sub(re.escape(str(work_folder / place.name)) + r"(?![\w.])", lambda _: str(place), str(error)),
        )
    except Exception as error:  # a bug of ours must not stop the other items
        return record("failed", reason=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    finally:
        with suppress(OSError):
            work_folder.rmdir()  # only if it is empty: it may hold files to resume from


def _kept(manifest, names, done):
    """Records of a manifest to keep, {result: record}: one of each, and of `names` only those that exist: `done`."""
    kept: dict[str, dict] = {}
    for number, record in enumerate(manifest.records):
        try:
            name, status = record["output"], record["status"]
        except (TypeError, KeyError):
            if number == 0:
                raise TalkheadError(
                    f"{manifest.path}: not a manifest of talkhead; move it away, or name another folder"
                ) from None
            continue  # garbled by a killed process
        if name not in names or name in done and status != "failed":
            kept.setdefault(name, record)
    return kept


# Ledgers --------------------------------------------------------------------------------------------------------------


def read_ledger(path: str | os.PathLike) -> list:
    """Values of a file of JSON lines; None for a line that is not JSON. An incomplete last line does not count.

    raises   TalkheadError if the file cannot be read
    """
    with files.os_errors_in_one_line(path), open(path, encoding="utf-8", errors="replace") as stream:
        return _values(stream)


def _values(stream):
    def parsed(line):
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return None

    # A killed process may leave an incomplete last line.
    return [parsed(line) for line in stream if line.endswith("\n")]


class Ledger:
    """Growing file of JSON records, one per line, which survives a kill; locked while open.

    path      created if missing, in an existing folder
    message   error if another process has it locked
    records   as `read_ledger` returns them, of the time when it was opened
    """

    def __init__(self, path: str | os.PathLike, message: str) -> None:
        self.path = Path(path)
        with files.os_errors_in_one_line(path):
            self.path.touch()
            self._stream = open(path, "r+", encoding="utf-8", errors="replace")
            try:
                files.lock(self._stream, message)
                self.records = _values(self._stream)
            except BaseException:
                self._stream.close()
                raise

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        with files.os_errors_in_one_line(self.path):
            self._stream.close()

    def keep(self, records: list[dict]) -> None:
        """Replace all records; of a device such as /dev/stdout, which holds none, do nothing."""
        if not self.path.is_file():
            return
        with files.os_errors_in_one_line(self.path):
            # Overwritten, then truncated: if killed in between, the next run drops the surplus lines.
            self._stream.seek(0)
            self._stream.writelines(json.dumps(record) + "\n" for record in records)
            self._stream.truncate()

    def add(self, record: dict) -> None:
        with files.os_errors_in_one_line(self.path):
            self._stream.write(json.dumps(record, allow_nan=False) + "\n")
            self._stream.flush()
