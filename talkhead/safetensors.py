"""Reader of .safetensors files, written from the format's description; no code of the file is run.

    8 bytes     length of the header, little-endian
    header      JSON: {name: {"dtype", "shape", "data_offsets": [start, end]}, …}, and perhaps "__metadata__": {str:
                str}
    data        of all tensors, little-endian, in C order, contiguous

Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
import os
import struct
from typing import TYPE_CHECKING, BinaryIO

from talkhead.errors import TalkheadError

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000  # bytes, by the format's description
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def is_safetensors(start: bytes) -> bool:
    """True if the first bytes of a file, 9 or more, are those of a .safetensors."""
    return len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= MAX_HEADER


def read(stream: BinaryIO, name: str | os.PathLike) -> "dict[str, torch.Tensor]":
    """Read the tensors of a .safetensors file.

    stream   seekable binary stream
    name     name of the file in messages
    returns  {name: torch tensor on the CPU}
    raises   TalkheadError if it is damaged, cut short, or has a dtype that is not in DTYPES
    """
    import torch

    size = stream.seek(0, 2)
    stream.seek(0)
    (length,) = struct.unpack("<Q", stream.read(8))
    tensors, at = {}, 0
    try:
        if length > min(MAX_HEADER, size - 8):
            raise ValueError
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for key, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (start, end), shape = about["data_offsets"], about["shape"]
            if about["dtype"] not in DTYPES:
                raise TalkheadError(
                    f"{name}: holds {key} as {str(about['dtype'])[:20]}, which is not supported; save it in float16 or "
                    "float32"
                )
            dtype = getattr(torch, DTYPES[about["dtype"]])
            if not all(type(side) is int and side >= 0 for side in shape) or (start, end) != (
                at,
                at + math.prod(shape) * dtype.itemsize,
            ):
                raise ValueError
            at = end
            if end > size - 8 - length:  # before memory is allocated for it
                raise ValueError
            data = stream.read(end - start)
            tensors[key] = (
                torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            ).reshape(shape)
        if at != size - 8 - length:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TalkheadError(f"{name}: damaged or cut short; copy or download it again") from error
    return tensors
