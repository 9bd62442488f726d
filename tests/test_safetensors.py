"""Files of tensors: written here by hand and by the format's own library, whole and damaged."""

import json
import struct

import pytest
import torch

from talkhead import files
from talkhead.errors import TalkheadError


def pack(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_a_file_written_by_hand(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "b.weight": {"dtype": "F16", "shape": [2], "data_offsets": [12, 16]},
        "a": {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]},
        "none": {"dtype": "F32", "shape": [0, 2], "data_offsets": [12, 12]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [16, 24]},
    }
    (tmp_path / "x.safetensors").write_bytes(pack(header, struct.pack("<fffeeq", 1, -2.5, 3, 0.5, -4, 2**40)))
    tensors = files.load_weights(tmp_path / "x.safetensors")
    assert tensors.keys() == {"a", "b.weight", "none", "scalar"}
    assert (
        tensors["a"].tolist() == [[1, -2.5, 3]]
        and tensors["b.weight"].tolist() == [0.5, -4]
        and tensors["b.weight"].dtype == torch.float16
    )
    assert tensors["none"].shape == (0, 2) and tensors["scalar"].shape == () and tensors["scalar"].item() == 2**40


def test_files_of_the_formats_own_library(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    state = {
        f"{dtype}".removeprefix("torch."): (100 * torch.randn(3, 5)).to(dtype)
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
        )
    }
    safetensors.save_file(state, tmp_path / "x.safetensors", metadata={"made": "by hand"})
    (tmp_path / "x.safetensors").rename(tmp_path / "x.pt")  # its contents count, not its name
    tensors = files.load_weights(tmp_path / "x.pt")
    assert tensors.keys() == state.keys()
    assert all(tensors[name].dtype == state[name].dtype and torch.equal(tensors[name], state[name]) for name in state)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        pack({"a": ONE}, bytes(7)),
        pack({"a": ONE}, bytes(9)),
        pack({"a": ONE}, bytes(8))[:20],
        pack({"a": ONE}, bytes(8), length=10**8),
        pack({"a": ONE | {"shape": [3]}}, bytes(8)),
        pack({"a": ONE | {"shape": [-2]}}, bytes(8)),
        pack({"a": ONE | {"shape": [2.0]}}, bytes(8)),
        pack({"a": ONE | {"shape": 2}}, bytes(8)),
        pack({"a": ONE | {"data_offsets": [8, 0]}}, bytes(8)),
        pack({"a": ONE, "b": ONE}, bytes(8)),
        pack({"a": ONE | {"data_offsets": [0, 2**62], "shape": [2**60]}}, bytes(8)),
        pack({"a": ONE | {"data_offsets": ["0", 8]}}, bytes(8)),
        pack({"a": {"dtype": "F32"}}, bytes(8)),
        pack({"a": 3}, b""),
        pack({"a": ONE | {"dtype": ["F32"]}}, bytes(8)),
        pack(b"{[]}", b""),
        pack(b'{"a":' + b"[" * 100_000, b""),
        pack(b"{\xff}", b""),
    ],
)
def test_damage_is_said_in_one_line(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(TalkheadError, match="x.safetensors: damaged or cut short; copy or download it again$"):
        files.load_weights(tmp_path / "x.safetensors")


def test_numbers_of_other_kinds_are_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(
        pack({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, bytes(2))
    )
    with pytest.raises(
        TalkheadError, match="holds a as F8_E4M3, which is not supported; save it in float16 or float32"
    ):
        files.load_weights(tmp_path / "x.safetensors")
