"""Acoustic models: character logits, or hidden states of wav2vec 2.0, HuBERT or Whisper, at 50 Hz.

Two networks have logits of the same 29 labels: Mozilla's DeepSpeech 0.1.0 and CharacterModel, a small one of our own
with a short look-ahead. The interface of an acoustic model: `name`, `width` and `steps`, which maps blocks of audio to
rows.

Source: thesis §4.2.3; Hannun et al. 2014; Graves et al. 2006 (CTC).
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import files, mfcc
from talkhead.errors import TalkheadError

LABELS = " abcdefghijklmnopqrstuvwxyz'"  # followed by the CTC blank
BLANK = len(LABELS)
RATE = 50  # steps per second


class CharacterModel(nn.Module):
    """Streaming network from log-mel energies to character logits, with a fixed look-ahead.

    channels   of the three convolutions
    hidden     width of the two LSTM layers
    delay      look-ahead in steps of 20 ms
    embedding  width of a second output, an embedding of the sound that is taught by a larger network; 0: none

    `steps` yields the embedding if there is one, else the logits; `width` is the width of that. All layers are causal.
    The outputs of a step are read `delay` steps later; with 7 steps the look-ahead is 155 ms. So the result of live
    audio equals that of the whole recording.
    """

    name = "bundled"

    def __init__(self, channels: int = 192, hidden: int = 320, delay: int = 7, embedding: int = 0) -> None:
        super().__init__()
        self.config = {"channels": channels, "hidden": hidden, "delay": delay}
        self.config |= {"embedding": embedding} if embedding else {}
        self.delay, self.width = delay, embedding or BLANK + 1
        self.convolutions = nn.ModuleList(
            [
                nn.Conv1d(mfcc.FILTERS, channels, 6, stride=2),
                nn.Conv1d(channels, channels, 5),
                nn.Conv1d(channels, channels, 5),
            ]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in self.convolutions)
        self.lstm = nn.LSTM(channels, hidden, 2, batch_first=True)
        self.spell = nn.Linear(hidden, BLANK + 1)
        self.embed = nn.Linear(hidden, embedding) if embedding else None

    def forward(self, features: torch.Tensor, state: dict | None = None) -> tuple[torch.Tensor, dict]:
        """Logits (B, K, 29), not delayed, of log-mel energies (B, 2 K, 26).

        state    state that the call on the preceding features returned; None at the beginning
        returns  logits and the state after the last step
        """
        hidden, state = self.encode(features, state)
        return self.spell(hidden), state

    def encode(self, features: torch.Tensor, state: dict | None = None) -> tuple[torch.Tensor, dict]:
        """Hidden states (B, K, hidden), the input of the logits' layer; otherwise as `forward`."""
        x, tails, state = features / 4, [], state or {}  # scaled so that ordinary speech is about 1
        for k, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            past: Any = convolution.kernel_size[0] - convolution.stride[0]  # type: ignore[index]  # of a Conv1d
            before = state["tails"][k] if state else x.new_zeros(len(x), past, x.shape[2])
            padded = torch.cat([before, x], 1)
            tails.append(padded[:, padded.shape[1] - past :])
            new = F.relu(norm(convolution(padded.transpose(1, 2)).transpose(1, 2)))
            x = x + new if k else new
        x, memory = self.lstm(x, state.get("memory"))
        return x, {"tails": tails, "memory": memory}

    def steps(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Stream the embedding of a recording, or without one the logits.

        blocks   iterator of float (n,), the next samples at 16 kHz
        yields   float32 (m, width), the next steps, in total one per complete 20 ms. m is even, since a video frame
                 needs two steps, and two at once cost hardly more than one
        """
        return self._stream(blocks, self.embed or self.spell)

    def logits(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Stream the logits, float32 (m, 29), of a recording; otherwise as `steps`."""
        return self._stream(blocks, self.spell)

    @torch.no_grad()
    def _stream(self, blocks, output):
        device = next(self.parameters()).device
        held, state, done = np.empty((0, mfcc.FILTERS), np.float32), None, 0
        for piece in chain(mfcc.log_mel(blocks), [None]):
            if piece is None:  # the end: pad with silence for the look-ahead
                held = np.pad(held, ((0, len(held) % 2 + 2 * self.delay), (0, 0)))
            else:
                held = np.concatenate([held, piece])
            count = len(held) // 2
            if piece is not None:
                count -= (done + count - self.delay) % 2
            if count > 0:
                hidden, state = self.encode(torch.from_numpy(held[None, : 2 * count]).to(device), state)
                held, early = held[2 * count :], max(self.delay - done, 0)
                done += count
                if count > early:
                    yield output(hidden)[0, early:].cpu().numpy()


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> CharacterModel:
    """Load a CharacterModel from a weights file, frozen and in evaluation mode.

    raises   TalkheadError if the file is missing, damaged or of another kind
    """
    weights = files.load_weights(path, kind="speech")
    try:
        model = CharacterModel(**weights["config"]["network"])
        model.load_state_dict({name: value.float() for name, value in weights["model"].items()})
    except (TypeError, RuntimeError, KeyError) as problem:
        reason = str(problem).splitlines()[0]
        raise TalkheadError(
            f"{path}: config and weights do not make a CharacterModel ({reason}); train or export it again"
        ) from problem
    return model.to(device).eval().requires_grad_(False)


# DeepSpeech -----------------------------------------------------------------------------------------------------------

CEPSTRA = 26
CONTEXT = 9  # steps of DeepSpeech's input window on either side


class DeepSpeech(nn.Module):
    """Mozilla's DeepSpeech 0.1.0: network from MFCC to character logits.

    widths     of the five layers: three dense layers, the LSTM of each direction, and a dense layer
    labels     number of output labels

    It needs the whole recording: features are normalised by their mean and std over all of it, and one LSTM runs
    backwards. An hour needs memory only for its 26 coefficients every 10 ms, because all layers work on blocks of 40 s:
    a first pass, backwards, keeps only the states of the backward LSTM between blocks, and a second pass, forwards,
    starts each block from them. So the first four layers are computed twice.

    Source: Hannun et al. 2014; DeepSpeech.py and util/audio.py of Mozilla's v0.1.0.
    """

    name, width = "deepspeech", BLANK + 1
    block = 2000  # steps

    def __init__(
        self, widths: list[int] | tuple[int, ...] = (2048, 2048, 4096, 2048, 2048), labels: int = BLANK + 1
    ) -> None:
        super().__init__()
        first, second, third, cells, fifth = widths
        self.config = {"widths": list(widths), "labels": labels}
        self.dense = nn.ModuleList(
            nn.Linear(*sizes) for sizes in (((2 * CONTEXT + 1) * CEPSTRA, first), (first, second), (second, third))
        )
        self.forwards, self.backwards = nn.LSTM(third, cells), nn.LSTM(third, cells)
        self.after, self.spell = nn.Linear(2 * cells, fifth), nn.Linear(fifth, labels)

    def forward(self, features: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield logits (k, 29) of MFCC (K, 26) at 50 Hz."""
        padded = F.pad(features, (0, 0, CONTEXT, CONTEXT))  # zeros, before the normalisation, as in Mozilla's code
        windows = padded.unfold(0, 2 * CONTEXT + 1, 1)  # (K, 26, 19), a view
        mean, std = self._statistics(features)
        starts = range(0, len(features), self.block)
        states: dict[int, tuple | None] = {}
        state = None
        for first in reversed(starts):
            states[first] = state
            if first:
                _, state = self.backwards(self._dense(windows[first : first + self.block], mean, std).flip(0), state)
        state = None
        for first in starts:
            x = self._dense(windows[first : first + self.block], mean, std)
            past, state = self.forwards(x, state)
            future, _ = self.backwards(x.flip(0), states.pop(first))
            yield self.spell(_clipped_relu(self.after(torch.cat([past, future.flip(0)], 1))))

    def _dense(self, windows, mean, std):
        x = (windows.transpose(1, 2).flatten(1) - mean) / std  # (k, 494)
        for layer in self.dense:
            x = _clipped_relu(layer(x))
        return x

    @staticmethod
    def _statistics(features):
        """Mean and std of all entries of all windows, including the zero padding."""
        count = len(features)
        index = torch.arange(count, device=features.device)
        # Number of windows that contain each step.
        times = (index.clamp(max=CONTEXT) + (count - 1 - index).clamp(max=CONTEXT) + 1).double()[:, None]
        total = count * (2 * CONTEXT + 1) * CEPSTRA
        features = features.double()
        mean = (features * times).sum() / total
        zeros = total - times.sum() * CEPSTRA
        std = (((features - mean).square() * times).sum() + zeros * mean.square()).div(total).sqrt()
        return mean.float(), std.float().clamp(min=1e-6)

    @torch.no_grad()
    def steps(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Logits of a recording, computed after its last block.

        blocks   iterator of float (n,), the next samples at 16 kHz
        yields   float32 (m, 29), the next steps
        """
        pieces = list(mfcc.mfcc_26(blocks))
        if pieces:
            features = torch.from_numpy(np.concatenate(pieces)[::2].copy()).to(next(self.parameters()).device)
            yield from (logits.cpu().numpy() for logits in self(features))


def _clipped_relu(values):
    return values.clamp(0, 20)


def read_deepspeech(path: str | os.PathLike, device: str | torch.device = "cpu") -> DeepSpeech:
    """Load Mozilla's DeepSpeech 0.1.0 from its output_graph.pb without TensorFlow; widths are those of the file.

    raises   TalkheadError if the file is missing, damaged, or another version; or if protobuf is not installed

    Reads the constants h1, b1 … h6, b6, and the kernel and bias of the LSTM of each direction.
    """
    constants, inputs = _read_graph(path)
    kernels, biases = (
        [name for name in constants if re.search(pattern, name)]
        for pattern in (r"lstm.*/(kernel|weights)$", r"lstm.*/bias(es)?$")
    )
    dense = [f"{kind}{layer}" for layer in (1, 2, 3, 5, 6) for kind in "hb"]
    if inputs is not None and len(inputs) == 4:
        raise TalkheadError(
            f"{path}: DeepSpeech 0.2 or later, by its input {_sizes(inputs)}; "
            "wanted version 0.1.0, whose input is 1x?x494"
        )
    if not all(name in constants for name in dense) or not kernels:
        raise TalkheadError(
            f"{path}: a TensorFlow graph, but not of DeepSpeech; pass output_graph.pb of deepspeech-0.1.0-models.tar.gz"
        )
    ways = [[name for name in [*kernels, *biases] if f"/{way}/" in name] for way in ("fw", "bw")]
    if [len(way) for way in ways] != [2, 2]:
        raise TalkheadError(
            f"{path}: DeepSpeech 0.2 or later, by its one-way LSTM; wanted version 0.1.0, whose LSTM is bidirectional"
        )
    size, labels = constants["h1"].shape[0], constants["h6"].shape[-1]
    if (size, labels) != ((2 * CONTEXT + 1) * CEPSTRA, BLANK + 1):
        raise TalkheadError(
            f"{path}: {size} inputs and {labels} labels; wanted the English DeepSpeech 0.1.0, 494 and {BLANK + 1}"
        )
    model = DeepSpeech(
        [constants[name].shape[-1] for name in ("b1", "b2", "b3")]
        + [constants[ways[0][1]].shape[-1] // 4, constants["b5"].shape[-1]]
    )
    layers = zip((1, 2, 3, 5, 6), ("dense.0", "dense.1", "dense.2", "after", "spell"))
    state: dict[str, torch.Tensor] = {}
    for theirs, ours in layers:
        state |= {f"{ours}.weight": constants[f"h{theirs}"].mT, f"{ours}.bias": constants[f"b{theirs}"]}
    for ours, way in zip(("forwards", "backwards"), ways):
        state |= {
            f"{ours}.{name}": value for name, value in _from_basic_cell(*(constants[name] for name in way)).items()
        }
    try:
        model.load_state_dict(state)
    except RuntimeError as problem:
        raise TalkheadError(
            f"{path}: layers of inconsistent sizes ({str(problem).splitlines()[-1].strip()}); the file is damaged"
        ) from problem
    return model.to(device).eval().requires_grad_(False)


def _from_basic_cell(kernel, bias):
    """Convert a TensorFlow BasicLSTMCell's weights to torch's: gates i, j, f, o become i, f, g, o; f's bias gains 1."""
    cells = bias.shape[-1] // 4
    i, j, f, o = kernel.T.split(cells)
    weights = torch.cat([i, f, j, o])
    i, j, f, o = bias.split(cells)
    inputs = weights.shape[1] - cells
    return {
        "weight_ih_l0": weights[:, :inputs],
        "weight_hh_l0": weights[:, inputs:],
        "bias_ih_l0": torch.cat([i, f + 1, j, o]),
        "bias_hh_l0": torch.zeros_like(bias),
    }


def _read_graph(path):
    """Read the float constants of a TensorFlow graph, {name: tensor}, and the sizes of its input_node, or None."""
    from google.protobuf.message import DecodeError

    graph = graph_messages(f"{path}: cannot be read")["GraphDef"]()
    with files.os_errors_in_one_line(path):
        contents = Path(path).read_bytes()
    try:
        graph.ParseFromString(contents)
    except DecodeError as problem:
        raise TalkheadError(
            f"{path}: no TensorFlow graph; pass output_graph.pb of DeepSpeech 0.1.0, "
            "not the .pbmm or .tflite of later versions"
        ) from problem
    inputs = [node.attr["shape"].shape.dim for node in graph.node if node.name == "input_node" and "shape" in node.attr]
    constants = {
        node.name: _tensor(path, node) for node in graph.node if node.op == "Const" and node.attr["dtype"].type == 1
    }
    return constants, [dim.size for dim in inputs[0]] if inputs else None


def _tensor(path, node):
    held = node.attr["value"].tensor
    shape = [dim.size for dim in held.tensor_shape.dim]
    values = np.frombuffer(held.tensor_content, "<f4") if held.tensor_content else np.array(held.float_val, np.float32)
    try:
        return torch.from_numpy(np.array(np.broadcast_to(values, shape) if values.size == 1 else values.reshape(shape)))
    except ValueError:
        raise TalkheadError(
            f"{path}: {node.name} holds {values.size} numbers for {_sizes(shape)}; the file is damaged"
        ) from None


def _sizes(shape):
    return "x".join("?" if size < 0 else str(size) for size in shape)


# The parts of TensorFlow's graph.proto, node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto that hold
# constants: {message: {field: (number, type, repeated)}}. Other fields are skipped by protobuf.
_MESSAGES = {
    "TensorShapeProto": {"dim": (2, "Dim", True)},
    "Dim": {"size": (1, "int64", False)},
    "TensorProto": {
        "dtype": (1, "int32", False),
        "tensor_shape": (2, "TensorShapeProto", False),
        "tensor_content": (4, "bytes", False),
        "float_val": (5, "float", True),
    },
    "AttrValue": {
        "type": (6, "int32", False),
        "shape": (7, "TensorShapeProto", False),
        "tensor": (8, "TensorProto", False),
    },
    "NodeDef": {"name": (1, "string", False), "op": (2, "string", False), "attr": (5, "AttrEntry", True)},
    "AttrEntry": {"key": (1, "string", False), "value": (2, "AttrValue", False)},
    "GraphDef": {"node": (1, "NodeDef", True)},
}


def graph_messages(where: str = "graph") -> dict[str, type]:
    """Protobuf classes of a TensorFlow graph's messages, by name.

    raises   TalkheadError if protobuf is not installed
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise TalkheadError(f"{where}: protobuf is not installed; pip install 'talkhead[deepspeech]'") from None
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="talkhead/graph.proto", package="talkhead", syntax="proto3")
    for name, fields in _MESSAGES.items():
        holder = file.message_type
        if name == "AttrEntry":  # a map's entry is nested in the message with the map
            holder = next(message for message in file.message_type if message.name == "NodeDef").nested_type
        message = holder.add(name=name)
        message.options.map_entry = name == "AttrEntry"
        for field_name, (number, kind, repeated) in fields.items():
            plain = getattr(kinds, f"TYPE_{kind.upper()}", None)
            within = "NodeDef." if kind == "AttrEntry" else ""
            message.field.add(
                name=field_name,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=plain or kinds.TYPE_MESSAGE,
                type_name=None if plain else f".talkhead.{within}{kind}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"talkhead.{name}"))
        for name in _MESSAGES
        if name != "AttrEntry"
    }


# wav2vec 2.0, HuBERT, Whisper -----------------------------------------------------------------------------------------


class TransformersFeatures:
    """Acoustic model of the last hidden states of a wav2vec 2.0 or HuBERT network of `transformers`.

    name     "wav2vec2" or "hubert"; "whisper" in WhisperFeatures
    path     folder, or hub name of a network in the local cache; nothing is downloaded
    device   torch.device or its name
    raises   TalkheadError if transformers is not installed, there is no such network, or it is of another kind

    States are resampled to 50 Hz from the network's own rate. It needs the whole recording; one longer than 20 s is
    processed in blocks of 20 s with 2 s of context on either side, because attention costs the square of the length.
    """

    BLOCK, MARGIN = 20, 2  # seconds

    def __init__(self, name: str, path: str | os.PathLike, device: str | torch.device = "cpu") -> None:
        try:
            from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
        except ImportError:
            raise TalkheadError(
                f"features {name}: transformers is not installed; pip install 'talkhead[transformers]'"
            ) from None
        try:
            kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
            if kind != name:
                raise TalkheadError(f"{path}: a network of type {kind}; pass one of type {name}")
            with _no_progress_bar():
                network = AutoModel.from_pretrained(path, local_files_only=True)
            self.network = network.to(device).eval().requires_grad_(False)
            self.prepare = AutoFeatureExtractor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as problem:
            reason = str(problem).splitlines()[0]
            raise TalkheadError(
                f"{path}: no network of transformers ({reason}); "
                "pass its folder, or download it to the hub's cache first"
            ) from problem
        self.name, self.width = name, self.network.config.hidden_size
        self._set_up()

    def _set_up(self):
        self.stride = int(np.prod(self.network.config.conv_stride))  # samples
        self.receptive_field = 1  # samples of one state
        for kernel, stride in zip(reversed(self.network.config.conv_kernel), reversed(self.network.config.conv_stride)):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.network.state_dict()

    @torch.no_grad()
    def steps(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Hidden states, float32 (m, width), of a recording, computed after its last block."""
        audio = _whole(blocks)
        if len(audio):
            audio = self.prepare(audio, sampling_rate=mfcc.SAMPLE_RATE, return_tensors="np")["input_values"][0]
            states = np.concatenate(list(self._states(np.pad(audio, (0, max(self.receptive_field - len(audio), 0))))))
            count = -(-len(states) * self.stride * RATE // mfcc.SAMPLE_RATE)
            yield interpolated(states, np.arange(count) * mfcc.SAMPLE_RATE / (RATE * self.stride))

    def _states(self, audio):
        """Yield hidden states of blocks, float32 (m, width), each computed with its context."""
        stride, total = self.stride, (len(audio) - self.receptive_field) // self.stride + 1
        size, margin = (int(seconds * mfcc.SAMPLE_RATE) // stride for seconds in (self.BLOCK, self.MARGIN))
        for first in range(0, total, size):
            begin, end = max(first - margin, 0), min(first + size + margin, total)
            block = torch.from_numpy(audio[begin * stride : (end - 1) * stride + self.receptive_field])[None]
            states = self.network(block.to(self.network.device)).last_hidden_state
            yield states[0, first - begin :][:size].float().cpu().numpy()


class WhisperFeatures(TransformersFeatures):
    """Acoustic model of the encoder's last hidden states of a Whisper network of `transformers` (Radford et al. 2023).

    Arguments as in TransformersFeatures, with the name "whisper". It needs the whole recording, which is processed in
    blocks of 28 s with 1 s of context on either side, since the encoder takes 30 s.
    """

    BLOCK, MARGIN = 28, 1

    def _set_up(self):
        self.network = self.network.encoder
        self.stride = mfcc.SAMPLE_RATE // RATE

    @torch.no_grad()
    def steps(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Stream hidden states, float32 (m, width), one per started 20 ms, of a recording, after its last block."""
        audio = _whole(blocks)
        size, margin = (seconds * mfcc.SAMPLE_RATE for seconds in (self.BLOCK, self.MARGIN))
        for first in range(0, len(audio), size):
            begin, end = max(first - margin, 0), min(first + size, len(audio))
            inputs = self.prepare(audio[begin : end + margin], sampling_rate=mfcc.SAMPLE_RATE, return_tensors="pt")
            states = self.network(inputs["input_features"].to(self.network.device)).last_hidden_state[0]
            wanted = slice((first - begin) // self.stride, -(-(end - begin) // self.stride))
            yield states[wanted].float().cpu().numpy()


def _whole(blocks):
    """Join blocks of audio, float32 (N,), with finite samples."""
    blocks = [np.asarray(block, np.float32) for block in blocks]
    return np.nan_to_num(np.concatenate([np.empty(0, np.float32), *blocks]), posinf=1.0, neginf=-1.0)


@contextmanager
def _no_progress_bar():
    """Context in which transformers shows no progress bar."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def interpolated(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Linear interpolation of rows (N, C) at times (n,) in rows, clamped to the ends: float32 (n, C)."""
    times = times.clip(0, len(rows) - 1)
    before = np.minimum(times.astype(int), max(len(rows) - 2, 0))
    part = (times - before).astype(np.float32)[:, None]
    return rows[before] * (1 - part) + rows[np.minimum(before + 1, len(rows) - 1)] * part


# CTC decoding ---------------------------------------------------------------------------------------------------------


def greedy_decode(logits: torch.Tensor | np.ndarray) -> str:
    """Greedy CTC decoding: the text of the most likely label of each step.

    logits   (K, 29), tensor or array
    returns  str
    """
    best = np.asarray(logits).argmax(-1)
    kept = best[np.concatenate([[True], best[1:] != best[:-1]])]
    return "".join(LABELS[label] for label in kept if label != BLANK)


def transcribe(model: CharacterModel | DeepSpeech, audio: np.ndarray) -> str:
    """Transcribe a recording, float (N,) at 16 kHz, with a CharacterModel or DeepSpeech: str."""
    logits = model.logits if isinstance(model, CharacterModel) else model.steps
    return greedy_decode(np.concatenate(list(logits([audio]))))
