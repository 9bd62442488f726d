"""Virtual machine for pickles of data and tensors, which cannot import or call.

A pickle is a program for a stack machine. This one has the opcodes that plain data need; a global is a name in a closed
table, whose constructors make numbers, dicts and tensors from data. Every length is checked against the file before
memory is allocated, and the opcodes and the bytes of a file have a budget.

pickle.Unpickler with a table of globals in `find_class` would not do: it hashes tuples as keys of dicts, and a tuple of
tuples, 900 000 deep, ends the process with a segmentation fault.
"""

import io
import math
import pickletools
import re
import struct
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

# Limits of one file. NVIDIA's largest, three networks for 1024 x 1024, take 59 000 opcodes.
OPCODES = 1_000_000
MAX_NAME = 256  # characters of a global's or a tensor's name

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before version 1.6
LEGACY_PROTOCOL = 1001


class Refusal(Exception):
    """Reason for refusing a file: "what is wrong; how to fix"."""


class Hostile(Refusal):
    """Reason for refusing a file that no program which saves weights writes."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; get it again from its authors")


def _printable(name):
    """Escape and shorten a name from the file for a one-line message."""
    text = str(name)
    return ascii(text[:77] + "..." if len(text) > 80 else text)[1:-1]


def checked_name(name):
    if type(name) is not str or not re.fullmatch(r"\w+", name, re.ASCII):
        raise ValueError
    return limited_name(name)


def limited_name(name):
    if len(name) > MAX_NAME:
        raise Hostile(f"a name of {len(name)} characters, which no file of weights needs")
    return name


class Budget:
    """Remaining opcodes and bytes of memory for a file of `size` bytes; data may be copied, not multiplied."""

    def __init__(self, size):
        self.opcodes, self.bytes = OPCODES, 4 * size

    def step(self):
        self.opcodes -= 1
        if self.opcodes < 0:
            raise Refusal(f"more than {OPCODES} opcodes, which no file of weights needs; get it from its authors")

    def take(self, count):
        self.bytes -= count
        if count < 0 or self.bytes < 0:
            raise Refusal("asks for more memory than it has data; copy or download it again, from its authors")


class FileSlice:
    """A byte range of a file, read in order; lengths are checked before memory is allocated."""

    def __init__(self, stream, start, stop):
        self._stream, self._at, self._stop = stream, start, stop

    def __len__(self):
        return self._stop - self._at

    def peek(self, count):
        self._stream.seek(self._at)
        return self._stream.read(min(count, len(self)))

    def copy(self):
        return FileSlice(self._stream, self._at, self._stop)

    def skip(self, count):
        """Skip the next `count` bytes, and return them as a FileSlice."""
        if count > len(self):
            raise EOFError
        start, self._at = self._at, self._at + count
        return FileSlice(self._stream, start, self._at)

    def read(self, count):
        if count > self._stop - self._at:
            raise EOFError
        self._stream.seek(self._at)
        self._at += count
        return self._stream.read(count)

    def readinto(self, memory):
        self._stream.seek(self.skip(len(memory))._at)
        if self._stream.readinto(memory) != len(memory):
            raise EOFError

    def readline(self):
        line = self.peek(MAX_NAME + 1).partition(b"\n")[0]
        return self.read(len(line) + 1)[:-1].decode()


# The virtual machine --------------------------------------------------------------------------------------------------

_CONSTANTS = {
    b"N": lambda: None,
    b"\x88": lambda: True,
    b"\x89": lambda: False,
    b")": tuple,
    b"]": list,
    b"}": dict,
    b"\x8f": set,
}
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}
_TEXTS = {b"\x8c": "<B", b"X": "<I", b"\x8d": "<Q"}  # struct format of the length
_BYTES = {b"C": "<B", b"B": "<I", b"\x8e": "<Q", b"\x96": "<Q"}
_LONGS = {b"\x8a": "<B", b"\x8b": "<I"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_GETS = {b"h": "<B", b"j": "<I"}
_PUTS = {b"q": "<B", b"r": "<I"}
# Hashing a nested tuple could overflow the C stack; hashes of floats can be made to collide.
_KEYS = (str, bytes, int, bool, type(None))


class PickleVM:
    """Virtual machine that runs a pickle's opcodes on plain data.

    source      FileSlice; bytes after the pickle stay unread
    persistent  function of a persistent id, by which torch's files refer to storages, or None
    inner       True within another pickle
    """

    def __init__(self, source, budget, persistent=None, inner=False):
        self.source, self.budget, self.inner = source, budget, inner
        self._persistent = persistent
        self._count = 0

    def load(self):
        self._stack, self._marks, self._memo = [], [], {}
        while (code := self.source.read(1)) != b".":
            self.budget.step()
            self._count += 1
            self._step(code)
        return self._stack.pop()

    def _step(self, code):
        stack = self._stack
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code]())
        elif code in _NUMBERS:
            stack.append(self._number(_NUMBERS[code]))
        elif code in _TEXTS:
            stack.append(str(self.source.read(self._number(_TEXTS[code])), "utf-8", "surrogatepass"))
        elif code in _BYTES:  # mostly a tensor: read only when it is used
            stack.append(self.source.skip(self._number(_BYTES[code])))
        elif code in _LONGS:
            stack.append(self._long(self._number(_LONGS[code])))
        elif code in _TUPLES:
            count = _TUPLES[code]
            stack[-count:] = [tuple(self._top(count))]
        elif code in _GETS:
            stack.append(self._memo[self._number(_GETS[code])])
        elif code in _PUTS:
            self._put(self._number(_PUTS[code]))
        elif code in _STEPS:
            _STEPS[code](self)
        else:
            names = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
            raise Hostile(
                f"uses pickle opcode {names.get(code, code.hex())}, which no file of weights needs, or is damaged"
            )

    def _number(self, form):
        return struct.unpack(form, self.source.read(struct.calcsize(form)))[0]

    def _long(self, count):
        if count > 16:
            raise Hostile(f"an integer of {count} bytes, which no file of weights needs")
        return int.from_bytes(self.source.read(count), "little", signed=True)

    def _top(self, count):
        if len(self._stack) < count:
            raise IndexError
        return self._stack[-count:]

    def _put(self, index):
        if index >= self._count:  # each entry needs an opcode
            raise Hostile(f"memo index {index} out of range, which no pickler writes")
        self._memo[index] = self._stack[-1]

    def _items(self):
        """Pop the items above the last mark."""
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _protocol(self):
        if not 2 <= self._number("<B") <= 5:
            raise ValueError

    def _frame(self):
        """Check that a frame's bytes are there; framing is not used otherwise."""
        self.source.copy().skip(self._number("<Q"))

    def _mark(self):
        self._marks.append(self._stack)
        self._stack = []

    def _tuple(self):
        items = self._items()  # first: it changes the stack
        self._stack.append(tuple(items))

    def _append(self, items):
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError
        target.extend(items)

    def _set(self, items):
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2]):
            target[_key(key)] = value

    def _add(self):
        items = self._items()
        if type(self._stack[-1]) is not set:
            raise TypeError
        self._stack[-1].update(map(_key, items))

    def _pair(self):
        pair = self._top(2)
        del self._stack[-2:]
        return pair

    def _global(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise TypeError
        if (name := f"{module}.{name}") not in _GLOBALS:
            raise Refusal(_unknown(name))
        self._stack.append(_GLOBALS[name])

    def _reduce(self):
        maker, arguments = self._pair()
        if type(maker) is not _Constructor or type(arguments) is not tuple:
            raise Hostile(f"calls {type_name(maker)}, and nothing was run")
        self._stack.append(maker.make(self, *arguments))

    def _build(self):
        target, state = self._pair()
        self._stack.append(target)
        if type(target) is dict and type(state) is dict:
            self.budget.take(len(state))  # a shared state counts for each use
            target.update(state)  # Namespace
        elif type(target) in (_Dtype, Array):
            target.build(self, state)
        elif type(target) is not OrderedDict:  # an OrderedDict's state is a state_dict's _metadata
            raise Hostile(f"gives a state to {type_name(target)}")

    def _refer(self):
        reference = self._stack.pop()
        if self._persistent is None:
            raise Hostile("uses pickle opcode BINPERSID outside of torch's own formats")
        self._stack.append(self._persistent(reference))


_STEPS = {
    b"\x80": PickleVM._protocol,
    b"\x95": PickleVM._frame,
    b"(": PickleVM._mark,
    b"t": PickleVM._tuple,
    b"a": lambda machine: machine._append([machine._stack.pop()]),
    b"e": lambda machine: machine._append(machine._items()),
    b"s": lambda machine: machine._set(machine._pair()),
    b"u": lambda machine: machine._set(machine._items()),
    b"\x90": PickleVM._add,
    b"\x94": lambda machine: machine._put(len(machine._memo)),
    b"c": lambda machine: machine._global(machine.source.readline(), machine.source.readline()),
    b"\x93": lambda machine: machine._global(*machine._pair()),
    b"R": PickleVM._reduce,
    b"\x81": PickleVM._reduce,  # NEWOBJ: the same table
    b"b": PickleVM._build,
    b"Q": PickleVM._refer,
}


def _key(key):
    if type(key) is FileSlice and len(key) <= MAX_NAME:
        key = key.peek(MAX_NAME)
    if type(key) not in _KEYS or type(key) is int and not -(2**63) <= key < 2**63:
        raise Hostile(f"has {type_name(key)} as a key, which no file of weights needs")
    return key


def type_name(value):
    """Describe a value in an error by its type: its contents may be huge."""
    kind = type(value).__name__.strip("_").lower()
    return _printable(value.name) if type(value) is _Constructor else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _unknown(name):
    if name.startswith("dnnlib.tflib."):
        return (
            f"a TensorFlow network ({_printable(name)}); convert it with legacy.py of NVIDIA's stylegan3 repository, "
            "and pass the result"
        )
    return (
        f"refers to {_printable(name)}, which is code, not weights, and nothing was run; "
        "ask its authors for plain weights (a state_dict)"
    )


# Constructors of the table --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Constructor:
    name: str
    make: object  # function of the machine and the arguments in the file


class Network:
    """A persistent module with its pickled state, before sanitizing."""

    def __init__(self, machine, meta):
        self.name, self.state = checked_name(meta["class_name"]), meta["state"]
        if type(self.state) is not dict:
            raise TypeError


class _Dtype:
    """A numeric numpy dtype; BUILD sets its byte order later."""

    def __init__(self, machine, code, *_):
        if not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise Refusal(
                f"holds numpy values of type {_printable(code)}, not numbers; ask its authors for plain weights (a "
                "state_dict)"
            )
        self._code, self._order = code, "="

    def build(self, machine, state):
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError
        self._order = state[1]

    def numbers(self, machine, data, count):
        """Decode `data` to a one-dimensional array of exactly `count` numbers."""
        dtype = np.dtype(self._order + self._code)
        data = _data(machine, data)
        if type(count) is not int or len(data) != count * dtype.itemsize:
            raise ValueError
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))


class Array:
    """A numpy array; BUILD fills it."""

    def __init__(self, machine, *_):
        self.values = None

    def build(self, machine, state):
        _, shape, dtype, by_columns, data = state
        self.fill(machine, data, dtype, shape, "F" if by_columns is True else "C")

    def fill(self, machine, data, dtype, shape, order):
        if type(dtype) is not _Dtype or order not in ("C", "F"):
            raise TypeError
        self.values = dtype.numbers(machine, data, math.prod(_sizes(shape))).reshape(shape, order=order)


def _from_buffer(machine, data, dtype, shape, order):
    array = Array(machine)
    array.fill(machine, data, dtype, shape, order)
    return array


class Storage:
    """A torch storage, of which tensors are views."""

    def __init__(self, budget, dtype, count):
        if type(dtype) is not torch.dtype or type(count) is not int:
            raise TypeError
        size = count * dtype.itemsize
        budget.take(size)
        self.bytes = torch.empty(size, dtype=torch.uint8, device="cpu")
        self.values = self.bytes.view(dtype)

    @property
    def memory(self):
        return memoryview(self.bytes.numpy())


def _data(machine, value):
    """Read a bytes value from the file."""
    if type(value) is FileSlice:
        machine.budget.take(len(value))
        return value.peek(len(value))
    if type(value) is not bytes:
        raise TypeError
    return value


def _sizes(shape):
    """Check sizes or strides of a tensor: at most 8, each in [0, 2**40)."""
    if type(shape) is not tuple or len(shape) > 8 or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise ValueError
    return shape


def _encoded(machine, text, encoding="utf-8"):
    """Encode bytes that protocol 2 writes as text."""
    if type(text) is not str or encoding != "latin1":
        raise TypeError
    machine.budget.take(len(text))
    return text.encode("latin-1")


def _made_set(machine, items):
    machine.budget.take(len(items))
    return set(map(_key, items))


def _device(machine, kind, index=None):
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise TypeError
    return kind if index is None else f"{kind}:{index}"


def _scalar(machine, dtype, data):
    if type(dtype) is not _Dtype:
        raise TypeError
    return dtype.numbers(machine, data, 1)[0].item()


def _tensor(machine, storage, offset, sizes, strides, *_):
    if type(storage) is not Storage or type(offset) is not int or offset < 0:
        raise TypeError
    values = storage.values
    count = math.prod(_sizes(sizes))
    last = sum((size - 1) * stride for size, stride in zip(sizes, _sizes(strides), strict=True))
    if count > len(values) or count and offset + last >= len(values):
        raise Hostile(f"a tensor of shape {sizes} does not fit its storage of {len(values)} numbers")
    return values.as_strided(sizes, strides, offset) if count else values.new_empty(sizes)


def _parameter(machine, tensor, *_):
    if type(tensor) is not torch.Tensor:
        raise TypeError
    return tensor


def _inner(machine, data):
    """Read the storage in bytes that torch.save wrote, which is how a plain pickle holds a tensor."""
    if machine.inner:
        raise Hostile("holds torch files within torch files")
    source = data.copy() if type(data) is FileSlice else FileSlice(io.BytesIO(_data(machine, data)), 0, len(data))
    storage = read_legacy(source, machine.budget, inner=True)
    if type(storage) is not Storage:
        raise Hostile(f"holds {type_name(storage)} where a storage should be")
    return storage


_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}

_MAKERS = {
    "torch_utils.persistence._reconstruct_persistent_obj": Network,
    "collections.OrderedDict": lambda machine: OrderedDict(),
    "dnnlib.util.EasyDict": lambda machine: {},
    "dnnlib.EasyDict": lambda machine: {},
    "argparse.Namespace": lambda machine: {},
    "builtins.set": _made_set,
    "__builtin__.set": _made_set,  # Python 2's name, which protocol 2 writes
    "builtins.bytes": lambda machine: b"",
    "__builtin__.bytes": lambda machine: b"",
    "_codecs.encode": _encoded,
    "torch.Size": lambda machine, sizes: _sizes(sizes),
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.storage._load_from_bytes": _inner,
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}

# A storage class stands for its dtype; numpy.ndarray is only an argument of _reconstruct, which makes nothing else
# here.
_GLOBALS = {
    **{name: _Constructor(name, make) for name, make in _MAKERS.items()},
    **{f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()},
    **{str(dtype): dtype for dtype in _DTYPES.values()},
    "numpy.ndarray": "numpy.ndarray",
}


# torch.save's format before 1.6 ---------------------------------------------------------------------------------------


class Storages:
    """Storages that a pickle of torch.save refers to, created on demand and filled by `fill(key, storage)`."""

    def __init__(self, budget, fill=lambda key, storage: None):
        self.budget, self.all, self._fill = budget, {}, fill

    def __call__(self, reference):
        kind, dtype, key, _, count, *view = reference
        if kind != "storage" or type(key) is not str or any(part is not None for part in view):
            raise Hostile("refers to something other than a storage")
        if key not in self.all:
            self.all[key] = Storage(self.budget, dtype, count)
            self._fill(key, self.all[key])
        storage = self.all[key]
        if (storage.values.dtype, len(storage.values)) != (dtype, count):
            raise ValueError
        return storage


def read_legacy(source, budget, inner=False):
    """Read torch.save's format before 1.6, also used for a tensor in a plain pickle: pickles, then the data."""
    storages = Storages(budget)
    machine = PickleVM(source, budget, storages, inner)
    if (machine.load(), machine.load(), machine.load()["little_endian"]) != (LEGACY_MAGIC, LEGACY_PROTOCOL, True):
        raise ValueError
    value = machine.load()
    keys = machine.load()
    if type(keys) is not list or {*map(_key, keys)} != storages.all.keys() or len(keys) != len(storages.all):
        raise ValueError
    for key in keys:
        if struct.unpack("<q", source.read(8))[0] != len(storages.all[key].values):
            raise ValueError
        source.readinto(storages.all[key].memory)
    return value
