"""Other projects' pickles come back as data, equal to what Python's own unpickler and torch would make, and nothing in
them runs.

The networks pickled here stand for NVIDIA's: their modules reduce as those do, to a function that runs the source code
that they carry. The source code says to write a file, the canary, which must never appear.
"""

import argparse
import os
import pickle
import pickletools
import struct
import sys
import time
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from talkhead import pickle_vm, safe_pickle
from talkhead.errors import TalkheadError

PROTOCOLS = (2, 3, 4, 5)


# Stand-ins for NVIDIA's modules ---------------------------------------------------------------------------------------


@contextmanager
def nvidia():
    """NVIDIA's modules, as far as a pickle names them: importable while it is written, and gone when it is read."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    modules = {
        "torch_utils": types.ModuleType("torch_utils"),
        persistence.__name__: persistence,
        "dnnlib": types.ModuleType("dnnlib"),
        util.__name__: util,
    }

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("ran what the file names")

    class EasyDict(dict):
        def __getattr__(self, name):
            try:
                return self[name]
            except KeyError:  # as pickle asks for, before Python 3.11
                raise AttributeError(name) from None

    for function, home in ((_reconstruct_persistent_obj, persistence), (EasyDict, util)):
        function.__module__, function.__qualname__ = home.__name__, function.__name__
        setattr(home, function.__name__, function)
    assert not modules.keys() & sys.modules.keys()
    sys.modules.update(modules)
    try:
        yield persistence, util
    finally:
        for name in modules:
            del sys.modules[name]


class Persistent(torch.nn.Module):
    """Pickled as NVIDIA's decorated classes are."""

    source = ""
    parts = dict  # as torch keeps them now; before 2.1 an OrderedDict

    def __init__(self, *args, **kwargs):
        super().__init__()
        self._init_args, self._init_kwargs = args, kwargs

    def __reduce__(self):
        state = {
            **self.__dict__,
            **{name: self.parts(self.__dict__[name]) for name in ("_parameters", "_buffers", "_modules")},
        }
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.source,
            "class_name": type(self).__name__,
            "state": state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


class Layer(Persistent):
    def __init__(self, width, dtype=torch.float32):
        super().__init__(width, activation="lrelu")
        self.width, self.gain = width, np.float64(1) / np.sqrt(width)
        self.weight = torch.nn.Parameter(torch.randn(width, width, 3, 3).to(dtype))
        self.bias = torch.nn.Parameter(torch.randn(width), requires_grad=False)
        self.noise = None
        self.register_parameter("skip", None)
        self.register_buffer("noise_const", torch.randn(4, 4).t())
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("passing", torch.zeros(3), persistent=False)


class Generator(Persistent):
    def __init__(self, width=3):
        super().__init__(z_dim=width, img_resolution=8)
        self.z_dim, self.img_resolution, self.sizes = width, 8, [4, 8]
        self.out_size = np.array([[36, 36]])
        self.b4, self.b8 = Layer(width), Layer(width + 1, torch.float16)
        self.b8.inner = Layer(1, torch.float64)
        self.register_buffer("w_avg", torch.randn(width))


@pytest.fixture
def canary(tmp_path):
    """A file that must not appear; modules pickled meanwhile carry code that would write it."""
    path = tmp_path / "canary"
    Persistent.source = f"open({str(path)!r}, 'w').close()\n" + "# torch_utils\n" * 20
    yield path
    assert not path.exists()


def snapshot(util):
    torch.manual_seed(0)
    return {
        "G": Generator(),
        "D": Layer(2),
        "G_ema": Generator(),
        "augment_pipe": None,
        "training_set_kwargs": util.EasyDict(
            class_name="training.dataset.ImageFolderDataset", resolution=8, xflip=True
        ),
    }


def check_generator(module, network):
    expected = network.state_dict()
    assert list(module.state) == list(expected)
    assert all(
        torch.equal(module.state[name], value) and module.state[name].dtype == value.dtype
        for name, value in expected.items()
    )
    assert not any(value.requires_grad for value in module.state.values())
    assert (
        module.name == "Generator"
        and list(module.children) == ["b4", "b8"]
        and list(module.children["b8"].children) == ["inner"]
    )
    assert list(module.children["b4"].state) == list(network.b4.state_dict())
    attributes = {**module.attributes}
    assert np.array_equal(attributes.pop("out_size"), network.out_size)
    assert attributes == {
        "training": True,
        "z_dim": 3,
        "img_resolution": 8,
        "sizes": [4, 8],
        "init_args": (),
        "init_kwargs": {"z_dim": 3, "img_resolution": 8},
    }
    layer = module.children["b4"].attributes
    assert layer["gain"] == float(network.b4.gain) and type(layer["gain"]) is float and layer["init_args"] == (3,)


# What comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_snapshot_of_training_comes_back_as_data(tmp_path, canary, monkeypatch, protocol):
    if protocol == 3:  # Python 3.7's own, and so of torch 1.7
        monkeypatch.setattr(Persistent, "parts", OrderedDict)
    with nvidia() as (_, util):
        networks = snapshot(util)
        contents = pickle.dumps(networks, protocol)
    if protocol == 3:
        contents = contents.replace(b"cnumpy._core.", b"cnumpy.core.")  # its name before numpy 2
    (tmp_path / "net.pkl").write_bytes(contents)
    found = safe_pickle.read(tmp_path / "net.pkl")
    assert list(found) == list(networks) and found["augment_pipe"] is None
    assert (
        found["training_set_kwargs"] == dict(networks["training_set_kwargs"])
        and type(found["training_set_kwargs"]) is dict
    )
    for name in ("G", "G_ema"):
        check_generator(found[name], networks[name])
    assert found["D"].name == "Layer" and torch.equal(found["D"].state["weight"], networks["D"].weight)
    assert safe_pickle.sniff(tmp_path / "net.pkl") == "pickle" and "torch_utils" not in sys.modules


@pytest.mark.parametrize("form, zipped", [("zip", True), ("legacy", False)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_tuned_generator_saved_whole_by_torch_comes_back(tmp_path, canary, form, zipped, protocol):
    with nvidia():
        network = Generator()
        torch.save(network, tmp_path / "model.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    check_generator(safe_pickle.read(tmp_path / "model.pt"), network)
    assert safe_pickle.sniff(tmp_path / "model.pt") == form


def test_what_python_pickles_of_plain_data_comes_back_equal(tmp_path):
    values = np.random.default_rng(0)

    def plain(depth):
        kind = int(values.integers(10 if depth else 7))
        if kind < 7:
            return [
                None,
                True,
                int(values.integers(-(2**62), 2**62)) >> int(values.integers(64)),
                float(values.normal()),
                "é\ud800\n" * int(values.integers(100)),
                values.bytes(int(values.integers(400))),
                2**63,
            ][kind]
        parts = [plain(depth - 1) for _ in range(int(values.integers(5)))]
        return [parts, tuple(parts), {f"k{index}": part for index, part in enumerate(parts)}][kind - 7]

    for protocol in PROTOCOLS:
        value = [plain(4) for _ in range(100)] + [
            {"a", 1, None, False, b"b"},
            set(),
            {3: b"", -1: ()},
            list(range(3000)),
        ]
        assert value == pickle.loads(pickle.dumps(value, protocol))
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps(value, protocol))
        assert safe_pickle.read(tmp_path / "plain.pkl") == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_becomes_numbers_and_arrays(tmp_path, protocol):
    types = ("?", "i1", "u2", ">i4", "<i8", "f2", ">f4", "f8")
    arrays = [np.arange(6).reshape(2, 3).astype(code) for code in types]
    arrays += [arrays[4].T, np.asfortranarray(arrays[5]), np.zeros((0, 2)), np.array(5.0), np.broadcast_to(3, (2,))]
    path = tmp_path / "numpy.pkl"
    path.write_bytes(
        pickle.dumps({"arrays": arrays, "scalars": [array.flat[-1] for array in arrays if array.size]}, protocol)
    )
    found = safe_pickle.read(path)
    for array, expected in zip(found["arrays"], arrays, strict=True):
        assert np.array_equal(array, expected) and array.dtype == expected.dtype.newbyteorder("=")
    assert found["scalars"] == [array.flat[-1].item() for array in arrays if array.size]
    assert {type(number) for number in found["scalars"]} == {bool, int, float}
    path.write_bytes(pickle.dumps(np.array([None], object), protocol))
    check_refused(path, "numpy values of type O8")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_share_a_storage_still_share_it(tmp_path, zipped):
    numbers = torch.arange(24.0)
    dtypes = (
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    )
    value = {
        "all": numbers.view(4, 6),
        "part": numbers.view(4, 6)[1:3, ::2],
        "turned": numbers.view(4, 6).t(),
        "empty": torch.zeros(0, 5),
        "one": torch.tensor(True),
        "types": [torch.ones(3, dtype=dtype) for dtype in dtypes],
        "dtype": torch.float16,
        "size": torch.Size([3, 4]),
        "device": torch.device("cpu"),
        "state": torch.nn.Linear(2, 2).state_dict(),
    }
    torch.save(value, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    found, expected = safe_pickle.read(tmp_path / "t.pt"), torch.load(tmp_path / "t.pt", weights_only=True)
    for name in ("all", "part", "turned", "empty", "one"):
        assert torch.equal(found[name], expected[name]) and found[name].stride() == expected[name].stride()
    assert found["all"].data_ptr() + 24 == found["part"].data_ptr()
    assert [(tensor.dtype, tensor.tolist()) for tensor in found["types"]] == [
        (tensor.dtype, tensor.tolist()) for tensor in value["types"]
    ]
    assert (found["dtype"], found["size"], found["device"]) == (torch.float16, (3, 4), "cpu")
    assert type(found["state"]) is dict and all(
        torch.equal(found["state"][name], value["state"][name]) for name in value["state"]
    )


def test_one_tensor_in_a_plain_pickle_and_a_namespace(tmp_path):
    value = {
        "args": argparse.Namespace(size=256, lr=0.002),
        "tensor": torch.randn(3, 4).t(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(value))
    found = safe_pickle.read(tmp_path / "t.pkl")
    assert found["args"] == {"size": 256, "lr": 0.002} and torch.equal(found["tensor"], value["tensor"])
    assert torch.equal(found["parameter"], torch.ones(2)) and type(found["parameter"]) is torch.Tensor


# What is refused ------------------------------------------------------------------------------------------------------


def check_refused(path, reason):
    """One line that names the file and says the reason: soon, and without taking memory."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(TalkheadError, match=reason) as caught:
        safe_pickle.read(path)
    took, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "; " in line and line.isprintable() and len(line) < len(str(path)) + 250
    assert took < 10 and peak < 2**25 + 100 * path.stat().st_size


# A little assembler of pickles: `data` is plain, the others take and give opcodes.


def data(value):
    return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def name(module, name):
    return data(module) + data(name) + b"\x93"


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def mapping(**values):
    return b"}(" + b"".join(data(key) + value for key, value in values.items()) + b"u"


RECONSTRUCT = name("torch_utils.persistence", "_reconstruct_persistent_obj")


def network(**state):
    return call(
        RECONSTRUCT, mapping(type=data("class"), version=data(6), class_name=data("Generator"), state=mapping(**state))
    )


def storage(count, key="0", kind="storage", dtype=name("torch", "FloatStorage")):
    return b"(" + data(kind) + dtype + data(key) + data("cpu") + data(count) + b"tQ"


def tensor(sizes, strides, offset=0, store=storage(4)):
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        store,
        data(offset),
        data(sizes),
        data(strides),
        data(False),
        data({}),
    )


def program(opcodes):
    return b"\x80\x04" + opcodes + b"."


def write_pickle(path, opcodes, numbers=b""):
    path.write_bytes(program(opcodes))


def write_zip(path, opcodes, numbers=bytes(16), **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", program(opcodes))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", numbers)


def legacy(opcodes, numbers=None):
    head = [
        pickle.dumps(part, 2)
        for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    ]
    tail = (
        [pickle.dumps([], 2)]
        if numbers is None
        else [pickle.dumps(["0"], 2), struct.pack("<q", len(numbers) // 4), numbers]
    )
    return b"".join([*head, program(opcodes), *tail])


def write_legacy(path, opcodes, numbers=None):
    path.write_bytes(legacy(opcodes, numbers))


def write_inner(path, opcodes, numbers=None):
    inner = legacy(opcodes, numbers)
    write_pickle(path, call(name("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(inner)) + inner))


WRITERS = {"pickle": write_pickle, "zip": write_zip, "legacy": write_legacy, "inner": write_inner}


def attacks(canary):
    """Of each (opcodes, what the refusal says), by name.

    Run by Python's unpickler it would write the canary, or take the machine down.
    """
    return {label: (opcodes, reason) for label, opcodes, reason in (*_calls(canary), *_bombs())}


def _calls(canary):
    touch, code = data(f"touch {canary}"), data(f"open({str(canary)!r}, 'w')")
    yield "os.system", call(name("os", "system"), touch), "refers to os.system"
    yield "posix.system", call(name("posix", "system"), touch), "refers to posix.system"
    yield "eval", call(name("builtins", "eval"), code), "refers to builtins.eval"
    yield "exec", call(name("builtins", "exec"), code), "refers to builtins.exec"
    yield "Python 2's eval", b"c__builtin__\neval\n" + code + b"\x85R", "refers to __builtin__.eval"
    yield "import", call(name("builtins", "__import__"), data("os")), "refers to builtins.__import__"
    yield (
        "getattr",
        call(name("builtins", "getattr"), name("torch", "Size"), data("__init__")),
        "refers to builtins.getattr",
    )
    yield "torch.load", call(name("torch", "load"), data(str(canary))), "refers to torch.load"
    yield "torch.jit", call(name("torch.jit", "load"), data(str(canary))), "refers to torch.jit.load"
    yield "a class", name("subprocess", "Popen") + touch + b"\x85\x81", "refers to subprocess.Popen"
    yield (
        "copyreg",
        call(name("copyreg", "_reconstructor"), name("os", "_wrap_close")),
        "refers to copyreg._reconstructor",
    )
    yield (
        "dots in a name",
        call(name("torch", "serialization.os.system"), touch),
        "refers to torch.serialization.os.system",
    )
    yield "dots after a name", call(name("torch", "Size.__init__"), touch), "refers to torch.Size.__init__"
    yield "lines in a name", name("os\nsystem", "\x1b[2J"), r"refers to os\\nsystem.\\x1b\[2J"
    yield "an endless name", name("os" * 50_000, "system"), r"refers to osos.*\.\.\."
    yield "an endless line", b"c" + b"os" * 50_000 + b"\nsystem\n", r"refers to osos.*\.\.\."
    yield "a list for a name", b"]" + data("system") + b"\x93", "damaged"
    yield "call of a result", call(call(name("collections", "OrderedDict")), touch), "calls an? ordereddict"
    yield "call of a network", call(network(), touch), "calls a network"
    yield "call of a text", call(data("os.system"), touch), "calls a str"
    yield "network of a function", call(RECONSTRUCT, name("torch", "Size")), "damaged"
    yield "function as attribute", network(hook=name("torch", "Size")), "holds torch.Size where data should be"
    yield (
        "function as tensor",
        network(_parameters=mapping(weight=name("torch", "Size"))),
        "torch.Size among a module's _parameters",
    )
    yield "function as state", name("torch", "Size") + mapping(make=touch) + b"b", "gives a state to torch.Size"
    yield "state of a network", network() + mapping(__class__=touch) + b"b", "gives a state to a network"
    yield "state of a tuple", b")" + mapping(__dict__=touch) + b"b", "gives a state to a tuple"
    yield "state of numpy's type", call(name("numpy", "dtype"), data("O8")), "numpy values of type O8"
    yield "many arguments", call(name("torch", "device"), *[touch] * 9), "damaged"
    yield "TensorFlow", name("dnnlib.tflib.network", "Network") + b")\x81", "TensorFlow .*; convert it with legacy.py"
    for opcodes, opcode in [
        (b"\x82\1", "EXT1"),
        (b"\x84\1\0\0\0", "EXT4"),
        (b"(iposix\nsystem\n", "INST"),
        (b"(No", "OBJ"),
        (b"Pposix\n", "PERSID"),
        (b")}\x92", "NEWOBJ_EX"),
        (b"\x97", "NEXT_BUFFER"),
        (b"N0", "POP"),
        (b"I1\n", "INT"),
        (b"\xff", "ff"),
    ]:
        yield opcode, opcodes, f"uses pickle opcode {opcode},"


def _bombs():
    for opcode, form, count in [
        ("BINBYTES", "<I", 2**32 - 1),
        ("BINBYTES8", "<Q", 2**40),
        ("BYTEARRAY8", "<Q", 2**63),
        ("BINUNICODE", "<I", 2**32 - 1),
        ("BINUNICODE8", "<Q", 2**40),
        ("FRAME", "<Q", 2**62),
        ("LONG_BINGET", "<I", 2**31),
    ]:
        yield opcode, getattr(pickle, opcode) + struct.pack(form, count) + b"N", "damaged"
    yield "LONG4", b"\x8b" + struct.pack("<I", 30_000) + b"\1" * 30_000, "an integer of 30000 bytes"
    yield "LONG_BINPUT", b"Nr" + struct.pack("<I", 2**31), "memo index 2147483648"
    yield "empty stack", b"R", "damaged"
    yield "no mark", b"t", "damaged"
    yield "odd dict", b"}(NNNu", "damaged"
    yield "list as a dict", b"](NNu", "damaged"
    yield "protocol", b"\x80\x63N", "damaged"
    yield "a deep list", b"]" * 30_000 + b"a" * (30_000 - 1), "nested too deep"
    yield "a deep tuple", b")" + b"\x85" * 30_000, "nested too deep"
    yield "a deep key", b"})" + b"\x85" * 30_000 + b"Ns", "a tuple as a key"
    yield "a key deeper than C's stack", b"})" + b"\x85" * 900_000 + b"Ns", "a tuple as a key"
    yield "a deep member", b"\x8f()" + b"\x85" * 30_000 + b"\x90", "a tuple as a key"
    yield "an endless key", mapping(**{"k": b"N"}) + data(2**64) + b"Ns", "an int as a key"
    yield "list in itself", b"]q\0h\0a", "within itself"
    yield "dict in itself", b"}q\0" + data("a") + b"h\0s", "within itself"
    yield "network in itself", b"}q\0(" + data("a") + network(part=b"h\0") + b"u", "within itself"
    endless = b"(]q\0" + b"".join(b"(" + b"h%c" % n * 10 + b"tq%c" % (n + 1) for n in range(30)) + b"t"
    yield "ten to the thirtieth", endless, "unfolds to more"
    yield "endless name", endless + data("system") + b"\x93", "damaged"
    yield "endless key", b"}" + endless + b"Ns", "a tuple as a key"
    yield "endless device", call(name("torch", "device"), endless), "damaged"
    yield "endless function", endless + b")R", "calls a tuple"
    yield "endless class", call(RECONSTRUCT, mapping(class_name=endless, state=b"}")), "damaged"
    yield "endless type", call(name("numpy", "dtype"), endless), "damaged"
    yield "endless sizes", call(name("torch", "Size"), endless), "damaged"
    parts = [(b"h%c" % (n - 1) if n else b"]") + b"\x85" * 40 + b"q%c" % n for n in range(9)]
    yield "deep by parts", b"(" + b"".join(parts) + b"t", "unfolds to more"
    pairs = [b"q%c" % n + network(_modules=mapping(a=b"h%c" % n, b=b"h%c" % n)) for n in range(40)]
    yield "two to the fortieth", network() + b"".join(pairs), "unfolds to more"
    items = b"(" + b"".join(data(n) + b"N" for n in range(3000))
    for label, start, copy in [
        ("text", data("a" * 3000), call(name("_codecs", "encode"), b"h\0", data("latin1"))),
        ("dict", b"}" + items + b"u", b"}h\0b"),
        ("set", b"]" + items + b"e", call(name("builtins", "set"), b"h\0")),
    ]:
        yield f"copies of a {label}", start + b"q\0" + copy * 999, "more memory than it has data"


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("label", attacks("canary"))
def test_hostile_opcodes_are_refused_and_nothing_runs(tmp_path, canary, form, label):
    opcodes, reason = attacks(canary)[label]
    WRITERS[form](tmp_path / "evil", opcodes)
    check_refused(tmp_path / "evil", f"{reason}|where a storage should be" if form == "inner" else reason)


@pytest.mark.parametrize("label", ["os.system", "eval", "exec", "a class"])
def test_the_attacks_would_work_on_python(tmp_path, label):
    opcodes, _ = attacks(tmp_path / "canary")[label]
    if label == "a class":  # Popen takes a list of words, or a shell
        opcodes = call(name("subprocess", "call"), data(["touch", str(tmp_path / "canary")]))
    pickle.loads(program(opcodes))
    assert (tmp_path / "canary").exists()


def test_objects_that_reduce_to_calls_are_refused(tmp_path, canary):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    evil = Evil()
    for value in (evil, {"G_ema": [evil]}, {"a": torch.zeros(2), "b": (1, evil)}):
        for protocol in PROTOCOLS:
            (tmp_path / "evil").write_bytes(pickle.dumps(value, protocol))
            check_refused(tmp_path / "evil", "refers to posix.system")
        for zipped in (True, False):
            torch.save(value, tmp_path / "evil", _use_new_zipfile_serialization=zipped)
            check_refused(tmp_path / "evil", "refers to posix.system")
    with nvidia():
        network = Generator()
        network.hook = evil
        (tmp_path / "evil").write_bytes(pickle.dumps(network))
    check_refused(tmp_path / "evil", "refers to posix.system")


def test_more_opcodes_than_any_network_has(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_vm, "OPCODES", 1000)
    write_pickle(tmp_path / "evil", b"N" * 1001)
    check_refused(tmp_path / "evil", "more than 1000 opcodes")


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "label, opcodes, reason",
    [
        ("stride 0", tensor((10**6, 10**6), (0, 0)), "does not fit its storage of 4 numbers"),
        ("a little more", tensor((5,), (0,)), "does not fit its storage of 4 numbers"),
        ("beyond", tensor((2,), (4,)), "does not fit its storage of 4 numbers"),
        ("offset", tensor((1,), (1,), offset=4), "does not fit its storage of 4 numbers"),
        ("before", tensor((1,), (1,), offset=-1), "damaged"),
        ("backwards", tensor((2,), (-1,), offset=1), "damaged"),
        ("negative", tensor((-1,), (1,)), "damaged"),
        ("no integer", tensor((2.0,), (1,)), "damaged"),
        ("two sizes, one stride", tensor((2, 2), (1,)), "damaged"),
        ("thirty axes", tensor((1,) * 30, (1,) * 30), "damaged"),
        ("empty of everything", tensor((0, 2**39, 2**39), (1, 1, 1)), "damaged"),
        ("of a text", tensor((1,), (1,), store=data("abcd")), "damaged"),
        ("of a tensor", tensor((1,), (1,), store=tensor((4,), (1,))), "damaged"),
        ("storage lies", tensor((1,), (1,), store=storage(10**12)), "more memory than it has data"),
        ("storage lies a little", tensor((1,), (1,), store=storage(5)), "damaged"),
        ("storage of less than nothing", storage(-1), "more memory than it has data"),
        ("storage of a text", storage(data("4")), "damaged"),
        ("storage of no type", storage(4, dtype=name("torch", "Size")), "damaged"),
        ("another storage", storage(4, key="1"), "damaged"),
        ("two types", b"(" + storage(4) + storage(4, dtype=name("torch", "IntStorage")) + b"t", "damaged"),
        ("a folder up", storage(4, key="../../0"), "damaged"),
        ("a list as the key", storage(4, key=[]), "refers to something other than a storage"),
        ("a class", storage(4, kind="module"), "refers to something other than a storage"),
        ("no storage", data("0") + b"Q", "damaged"),
    ],
)
def test_tensors_that_lie_are_refused(tmp_path, form, label, opcodes, reason):
    WRITERS[form](tmp_path / "evil", opcodes, bytes(16))
    check_refused(tmp_path / "evil", reason)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_one_tensor_under_a_thousand_names_is_refused(tmp_path, form):
    """Or a small file would become a large network."""
    one = tensor((4096,), (1,), store=storage(4096))
    names = b"".join(data(f"b{n}") + b"h\0" for n in range(1000))
    WRITERS[form](tmp_path / "evil", network(first=one + b"q\0", _buffers=b"}(" + names + b"u"), bytes(4 * 4096))
    check_refused(tmp_path / "evil", "share the same few numbers")


def test_storages_of_plain_pickles_only_are_made_of_bytes(tmp_path):
    load = name("torch.storage", "_load_from_bytes")
    blob = legacy(data("a" * 1000))
    write_pickle(tmp_path / "evil", call(load, b"B" + struct.pack("<I", len(blob)) + blob))
    check_refused(tmp_path / "evil", "holds a str where a storage should be")
    write_inner(tmp_path / "evil", call(load, b"C\0"))
    check_refused(tmp_path / "evil", "torch files within torch files")
    write_pickle(tmp_path / "evil", storage(4))
    check_refused(tmp_path / "evil", "BINPERSID")


def test_what_is_no_pickle_says_so(tmp_path):
    path = tmp_path / "net.pkl"
    with pytest.raises(TalkheadError, match="net.pkl: no such file"):
        safe_pickle.read(path)
    for contents, reason in [
        (b"", "empty; copy or download"),
        (b"\n<!DOCTYPE html><html>Quota exceeded", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"cos\nsystem\n(S'true'\ntR.", "neither a pickle"),
        (b"\x80\x04", "damaged or cut short"),
        (np.random.default_rng(0).bytes(1000), "neither a pickle"),
        (b"PK\3\4" + bytes(1000), "damaged or cut short"),
    ]:
        path.write_bytes(contents)
        check_refused(path, reason)
        if not contents.startswith((b"\x80", b"PK")):
            with pytest.raises(TalkheadError, match=reason):
                safe_pickle.sniff(path)


def test_a_pipe_and_a_folder_are_told_apart_from_damage(tmp_path):
    reader, writer = os.pipe()
    for path, reason in [(f"/dev/fd/{reader}", "name another file"), (tmp_path, "is a folder; name a file")]:
        with pytest.raises(TalkheadError, match=reason):
            safe_pickle.read(path)
    os.close(reader), os.close(writer)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_archives_that_torch_save_did_not_write(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    check_refused(path, "a TorchScript program, not weights")
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    check_refused(path.with_suffix(".npz"), "torch.save did not write")
    write_zip(path, tensor((4,), (1,)), np.arange(4, dtype=np.float32).tobytes())
    assert safe_pickle.read(path).tolist() == [0, 1, 2, 3]
    write_zip(path, tensor((4,), (1,)), compression=zipfile.ZIP_DEFLATED)
    check_refused(path, "damaged")
    write_zip(path, storage(10**8), bytes(4 * 10**8), compression=zipfile.ZIP_DEFLATED)  # a bomb
    check_refused(path, "damaged|more memory than it has data")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program(b"N"))
        archive.writestr("a/byteorder", "big")
    check_refused(path, "big-endian")
    write_zip(path, tensor((4,), (1,)))
    contents = bytearray(path.read_bytes())
    contents[contents.index(b"archive/data/0") + 14] ^= 1  # the first byte of the numbers
    path.write_bytes(contents)
    check_refused(path, "damaged")


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
def test_cut_short_or_damaged_anywhere_is_one_line_at_most(tmp_path, canary, form):
    path = tmp_path / "net"
    with nvidia():
        if form == "pickle":
            path.write_bytes(pickle.dumps({"G_ema": Generator(2), "scale": np.float32(2)}))
        else:
            torch.save(Generator(2), path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    chance = np.random.default_rng(0)
    for length in chance.integers(1, len(whole), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(TalkheadError) as caught:
            safe_pickle.read(path)
        assert str(caught.value).isprintable()
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for place in chance.integers(0, len(whole), chance.integers(1, 9)):
            damaged[place] = chance.integers(256)
        path.write_bytes(damaged)
        try:
            safe_pickle.read(path)
        except TalkheadError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 30


def test_torch_is_left_as_it_was(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "t.pt")
    before = torch.serialization.get_safe_globals(), torch.get_default_dtype(), torch.random.get_rng_state()
    with torch.device("meta"):
        assert safe_pickle.read(tmp_path / "t.pt")["a"].device.type == "cpu"
    assert before[:2] == (torch.serialization.get_safe_globals(), torch.get_default_dtype())
    assert torch.equal(before[2], torch.random.get_rng_state())
