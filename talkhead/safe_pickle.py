"""Safe reader of other projects' pickles, which runs no code of the file.

A pickle is a program: Python's unpickler imports and calls whatever the file names. The virtual machine of `pickle_vm`
cannot import or call; what it leaves is checked and made plain here. NVIDIA's networks carry their source code, which
is ignored; each module is reduced to its name, tensors and attributes.

Formats: pickle protocols 2 to 5 (NVIDIA's .pkl); torch.save's zip archive, and its older format, a stream of pickles.
torch's own reader is not used, so its version and settings do not matter.
"""

import io
import os
import re
import struct
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from talkhead import files, pickle_vm
from talkhead.errors import TalkheadError

# Limits of a file's contents. NVIDIA's largest, three networks for 1024 x 1024, take 7 levels and 4 600 nodes.
MAX_DEPTH = 50  # nested containers
MAX_NODES = 1_000_000  # shared objects count once for each reference
CHUNK = 1 << 24  # bytes read from an archive at once

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_START = re.compile(
    rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0a" + re.escape(pickle_vm.LEGACY_MAGIC.to_bytes(10, "little")), re.DOTALL
)


@dataclass(frozen=True, eq=False)
class Module:
    """A pickled network module of another project.

    name        class name: "Generator", "SynthesisLayer"
    state       {dotted name: tensor}, parameters and buffers of it and of its children, as in its state_dict()
    attributes  its own plain attributes, with "init_args" and "init_kwargs" if they were recorded
    children    {name: Module}
    """

    name: str
    state: dict = field(repr=False)
    attributes: dict = field(repr=False)
    children: dict = field(repr=False)


def read(path: str | os.PathLike) -> Any:
    """Read the contents of a pickle, or of a file that torch.save wrote.

    path     NVIDIA's .pkl, the tuned generator of PTI, or any .pt of plain containers and tensors
    returns  dict, list, tuple, set, str, bytes, numbers, None, numpy arrays, torch tensors on the CPU; Module for each
             persistent module. OrderedDict, EasyDict and Namespace become dicts, numpy scalars Python numbers
    raises   TalkheadError if the file is missing, damaged, not of these formats, or needs a global that is not in the
             table
    """
    with files.reading(path) as stream, _refusals(path):
        size = stream.seek(0, io.SEEK_END)  # type: ignore[union-attr]  # a path is seekable
        budget = pickle_vm.Budget(size)
        source = pickle_vm.FileSlice(stream, 0, size)
        form = _form(source)
        if form == "zip":
            value = _read_zip(stream, budget)
        elif form == "legacy":
            value = pickle_vm.read_legacy(source, budget)
        else:
            value = pickle_vm.PickleVM(source, budget).load()
        return _Sanitizer(size).of(value)[0]


def sniff(path: str | os.PathLike) -> str:
    """Detect the format of a file: "zip" or "legacy" (torch.save's formats) or "pickle".

    raises   TalkheadError if it is missing or none of these
    """
    with files.reading(path) as stream, _refusals(path):
        size = stream.seek(0, io.SEEK_END)  # type: ignore[union-attr]  # a path is seekable
        return _form(pickle_vm.FileSlice(stream, 0, size))


@contextmanager
def _refusals(path):
    try:
        yield
    except pickle_vm.Refusal as refusal:
        raise TalkheadError(f"{path}: {refusal}") from refusal
    except OSError:
        raise  # before ValueError: io.UnsupportedOperation, of a pipe, is both
    # Errors of misplaced opcodes; RuntimeError is torch's and zipfile's
    except (
        struct.error,
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise TalkheadError(f"{path}: damaged or cut short; copy or download it again") from error


def _form(source):
    start = source.peek(64)
    if not start:
        raise pickle_vm.Refusal("empty; copy or download it again")
    if start.startswith(ZIP_MAGIC):
        return "zip"
    if LEGACY_START.match(start):
        return "legacy"
    if re.match(rb"\x80[\x02-\x05]", start):
        return "pickle"
    if start.startswith(b"version https://git-lfs"):
        raise pickle_vm.Refusal("only the pointer of a file in git-lfs; run `git lfs pull` in its repository")
    if re.match(rb"\s*<", start):
        raise pickle_vm.Refusal("a web page, not weights; download the file itself")
    raise pickle_vm.Refusal(
        "neither a pickle (protocol 2 to 5) nor written by torch.save; pass a .pkl or .pt of weights"
    )


# torch.save's archive -------------------------------------------------------------------------------------------------


class _LimitedReads:
    """File for zipfile that limits reads: zipfile would trust any length that an archive claims for its directory."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def read(self, count=-1):
        if count > CHUNK:
            raise zipfile.BadZipFile
        return self._stream.read(count)


def _read_zip(stream, budget):
    """Read torch.save's format since 1.6: an archive of data.pkl, byteorder and data/KEY, none of them compressed."""
    with zipfile.ZipFile(_LimitedReads(stream)) as archive:
        # Without the top folder, which torch.save names after its file.
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "constants.pkl" in entries:
            raise pickle_vm.Refusal(
                "a TorchScript program, not weights; pass a file that torch.save wrote from its networks"
            )
        if "data.pkl" not in entries:
            raise pickle_vm.Refusal(
                "a zip archive that torch.save did not write; unpack it and pass the weights inside"
            )

        def fill(name, memory):
            entry = entries[name]
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != len(memory):
                raise ValueError
            with archive.open(entry) as data:
                for start in range(0, len(memory), CHUNK):
                    piece = memory[start : start + CHUNK]
                    if data.readinto(piece) != len(piece):
                        raise EOFError

        def load(name):
            budget.take(entries[name].file_size)
            memory = bytearray(entries[name].file_size)
            fill(name, memoryview(memory))
            return memory

        if "byteorder" in entries and load("byteorder") != b"little":
            raise pickle_vm.Refusal("written on a big-endian machine; save it again on a little-endian one")
        program = load("data.pkl")
        storages = pickle_vm.Storages(budget, lambda key, storage: fill(f"data/{key}", storage.memory))
        return pickle_vm.PickleVM(pickle_vm.FileSlice(io.BytesIO(program), 0, len(program)), budget, storages).load()


# Sanitizing the result ------------------------------------------------------------------------------------------------


class _Sanitizer:
    """Convert the machine's result to plain values that are safe to traverse: no cycles, limited depth and node count.

    size    bytes of the file: no module may hold more
    """

    def __init__(self, size):
        self._size = size
        self._done = {}  # by id: the machine's objects live as long as the root does

    def of(self, value, depth=0):
        """Return the plain value, its height, and its number of nodes, counted once for each reference."""
        if type(value) in (str, bytes, int, float, bool, type(None), torch.dtype, torch.Tensor):
            return value, 0, 1
        if depth > MAX_DEPTH or self._done.get(id(value), True) is None:
            raise pickle_vm.Hostile("nested too deep, or within itself")
        if id(value) not in self._done:
            self._done[id(value)] = None  # in progress
            self._done[id(value)] = made = self._made(value, depth + 1)
            _check(*made[1:])
        return self._done[id(value)]

    def _made(self, value, depth):
        kind = type(value)
        if kind is pickle_vm.Network:
            return self._module(value, depth)
        if kind in (dict, OrderedDict):
            return self._dict(value, depth)
        if kind in (list, tuple):
            parts = [self.of(part, depth) for part in value]
            return kind(part[0] for part in parts), *_extent(parts)
        if kind is set:
            return set(value), 1, 1 + len(value)
        if kind is pickle_vm.FileSlice:
            return value.peek(len(value)), 1, 1
        if kind in (pickle_vm.Array, pickle_vm.Storage) and value.values is not None:
            return value.values, 1, 1
        raise pickle_vm.Refusal(
            f"holds {pickle_vm.type_name(value)} where data should be; ask its authors for plain weights (a state_dict)"
        )

    def _dict(self, value, depth):
        parts = [self.of(part, depth) for part in value.values()]
        return dict(zip(value, (part[0] for part in parts))), *_extent(parts)

    def _module(self, recorded, depth):
        own = recorded.state
        children, height, nodes = self._dict(_named(own, "_modules", pickle_vm.Network), depth)
        public = {name: value for name, value in own.items() if type(name) is str and not name.startswith("_")}
        public.update((name[1:], own[name]) for name in ("_init_args", "_init_kwargs") if name in own)
        attributes, *more = self._dict(public, depth)
        transient = own.get("_non_persistent_buffers_set")
        state = _named(own, "_parameters", torch.Tensor)
        state.update(
            (name, tensor)
            for name, tensor in _named(own, "_buffers", torch.Tensor).items()
            if type(transient) is not set or name not in transient
        )
        extent = (
            max(height, more[0]),
            nodes + more[1] + len(state) + sum(len(child.state) for child in children.values()),
        )
        _check(*extent)  # before that many names are made
        for name, child in children.items():
            state.update((pickle_vm.limited_name(f"{name}.{part}"), tensor) for part, tensor in child.state.items())
        if sum(tensor.nbytes for tensor in state.values()) > self._size:
            raise pickle_vm.Hostile("a network whose tensors share the same few numbers")
        return Module(recorded.name, state, attributes, children), *extent


def _extent(parts):
    return 1 + max((part[1] for part in parts), default=0), 1 + sum(part[2] for part in parts)


def _check(height, nodes):
    if height > MAX_DEPTH or nodes > MAX_NODES:
        raise pickle_vm.Hostile("unfolds to more than any file of weights holds")


def _named(own, key, kind):
    """Entries, other than None, of one of the dicts in which torch keeps a module's parts."""
    entries = own.get(key, {})
    if type(entries) not in (dict, OrderedDict):
        raise TypeError
    entries = {pickle_vm.checked_name(name): value for name, value in entries.items() if value is not None}
    for value in entries.values():
        if type(value) is not kind:
            raise pickle_vm.Refusal(
                f"{pickle_vm.type_name(value)} among a module's {key}; ask its authors for plain weights (a state_dict)"
            )
    return entries
