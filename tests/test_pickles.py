"""Other projects' pickles come back as data, equal to what Python's own unpickler and torch would make, and nothing in them runs.

The networks pickled here stand for NVIDIA's: their modules reduce as those do, to a function that runs the source code that
they carry. The source code says to write a file, the canary, which must never appear.
"""

import pickle
import sys
import types
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from talkhead import pickles
from talkhead.errors import TalkheadError

PROTOCOLS = (2, 3, 4, 5)


# Stand-ins for NVIDIA's modules ---------------------------------------------------------------------------------------

@contextmanager
def nvidia():
    """NVIDIA's modules, as far as a pickle names them: importable while it is written, and gone when it is read."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    modules = {"torch_utils": types.ModuleType("torch_utils"), persistence.__name__: persistence,
               "dnnlib": types.ModuleType("dnnlib"), util.__name__: util}

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("ran what the file names")

    class EasyDict(dict):
        __getattr__ = dict.__getitem__

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

    def __init__(self, *args, **kwargs):
        super().__init__()
        self._init_args, self._init_kwargs = args, kwargs

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": type(self).__name__, "state": self.__dict__}
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
    return {"G": Generator(), "D": Layer(2), "G_ema": Generator(), "augment_pipe": None,
            "training_set_kwargs": util.EasyDict(class_name="training.dataset.ImageFolderDataset", resolution=8, xflip=True)}


def check_generator(module, network):
    expected = network.state_dict()
    assert list(module.state) == list(expected)
    assert all(torch.equal(module.state[name], value) and module.state[name].dtype == value.dtype for name, value in expected.items())
    assert not any(value.requires_grad for value in module.state.values())
    assert module.name == "Generator" and list(module.children) == ["b4", "b8"] and list(module.children["b8"].children) == ["inner"]
    assert list(module.children["b4"].state) == list(network.b4.state_dict())
    attributes = {**module.attributes}
    assert np.array_equal(attributes.pop("out_size"), network.out_size)
    assert attributes == {"training": True, "z_dim": 3, "img_resolution": 8, "sizes": [4, 8], "init_args": (),
                          "init_kwargs": {"z_dim": 3, "img_resolution": 8}}
    layer = module.children["b4"].attributes
    assert layer["gain"] == float(network.b4.gain) and type(layer["gain"]) is float and layer["init_args"] == (3,)


# What comes back ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_snapshot_of_training_comes_back_as_data(tmp_path, canary, protocol):
    with nvidia() as (_, util):
        networks = snapshot(util)
        (tmp_path / "net.pkl").write_bytes(pickle.dumps(networks, protocol))
    found = pickles.read(tmp_path / "net.pkl")
    assert list(found) == list(networks) and found["augment_pipe"] is None
    assert found["training_set_kwargs"] == dict(networks["training_set_kwargs"]) and type(found["training_set_kwargs"]) is dict
    for name in ("G", "G_ema"):
        check_generator(found[name], networks[name])
    assert found["D"].name == "Layer" and torch.equal(found["D"].state["weight"], networks["D"].weight)
    assert pickles.sniff(tmp_path / "net.pkl") == "pickle" and "torch_utils" not in sys.modules


@pytest.mark.parametrize("form, zipped", [("zip", True), ("legacy", False)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_tuned_generator_saved_whole_by_torch_comes_back(tmp_path, canary, form, zipped, protocol):
    with nvidia():
        network = Generator()
        torch.save(network, tmp_path / "model.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    check_generator(pickles.read(tmp_path / "model.pt"), network)
    assert pickles.sniff(tmp_path / "model.pt") == form
