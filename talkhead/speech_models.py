"""What a voice says: character logits, fifty times a second.

Two networks spell speech with the same 29 labels: DeepSpeech 0.1.0, as Mozilla trained it, and a small one of our own that
hears only a moment ahead. Where they are there, hidden states of wav2vec 2.0 or HuBERT do as well. All of them are acoustic
models: `name`, `width` and `steps`, which turns blocks of sound into rows.

Source: thesis §4.2.3; Hannun et al. 2014; Graves et al. 2006 (CTC).
"""

import re
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from talkhead import files, mfcc
from talkhead.errors import TalkheadError

LABELS = " abcdefghijklmnopqrstuvwxyz'"  # and then blank
BLANK = len(LABELS)
RATE = 50  # steps a second


class CharacterModel(nn.Module):
    """Speech to character logits, a moment after it is heard.

    channels   of the three convolutions
    hidden     width of the two LSTM layers
    delay      steps of 20 ms that a step's answer waits, to hear what follows

    Everything in it looks back alone. What it says of a step is read `delay` steps later, so with 7 of them it has heard
    155 ms more than the step itself, which is how it can be fed with live sound and give what it would give for the whole.
    """

    name, width = "bundled", BLANK + 1

    def __init__(self, channels=192, hidden=320, delay=7):
        super().__init__()
        self.config = {"channels": channels, "hidden": hidden, "delay": delay}
        self.delay = delay
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

    def forward(self, features, state=None):
        """Loudness in mel filters (B, 2 K, 26) to logits (B, K, 29), undelayed.

        state    what a call on the features just before returned; None at the beginning
        returns  the logits, and the state after the last step
        """
        heard, state = self.encode(features, state)
        return self.spell(heard), state

    def encode(self, features, state=None):
        """As calling the model, but what the logits are made of: (B, K, hidden)."""
        heard, tails, state = features / 4, [], state or {}  # so that ordinary speech is about one
        for k, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            past = convolution.kernel_size[0] - convolution.stride[0]
            before = state["tails"][k] if state else heard.new_zeros(len(heard), past, heard.shape[2])
            padded = torch.cat([before, heard], 1)
            tails.append(padded[:, padded.shape[1] - past :])
            new = F.relu(norm(convolution(padded.transpose(1, 2)).transpose(1, 2)))
            heard = heard + new if k else new
        heard, memory = self.lstm(heard, state.get("memory"))
        return heard, {"tails": tails, "memory": memory}

    @torch.no_grad()
    def steps(self, blocks):
        """The logits of a recording, as it comes.

        blocks   iterator of float (n,), the next samples at 16 kHz
        yields   float32 (m, 29), the next steps, in all one for each 20 ms that have been heard whole. An even number of them, as soon as they
                 can be known: a video frame waits for two, and two at once cost hardly more than one
        """
        device = next(self.parameters()).device
        held, state, heard = np.empty((0, mfcc.FILTERS), np.float32), None, 0
        for piece in chain(mfcc.log_mel(blocks), [None]):
            # After the end it hears the silence that it has waited for.
            held = (
                np.pad(held, ((0, len(held) % 2 + 2 * self.delay), (0, 0)))
                if piece is None
                else np.concatenate([held, piece])
            )
            count = len(held) // 2
            if piece is not None:
                count -= (heard + count - self.delay) % 2
            if count > 0:
                logits, state = self(torch.from_numpy(held[None, : 2 * count]).to(device), state)
                held, early = held[2 * count :], max(self.delay - heard, 0)
                heard += count
                if count > early:
                    yield logits[0, early:].cpu().numpy()


def load(path, device="cpu"):
    """The CharacterModel in a weights file, frozen and in evaluation mode.

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
CONTEXT = 9  # steps that DeepSpeech sees on either side


class DeepSpeech(nn.Module):
    """Mozilla's DeepSpeech 0.1.0: speech to character logits.

    widths     of the five layers: three dense ones, one LSTM each way, and a dense one
    labels     that it tells apart

    It hears a recording as a whole: its features are whitened by their mean and spread over all of it, and one LSTM runs from
    the end to the start. An hour needs no more memory than its 26 numbers every 10 ms, because all layers work on 40 s
    at a time: a first pass from the end keeps only what the backward LSTM knew between two such blocks, and a second pass
    from the start takes it up again there. That costs the first four layers twice.

    Source: Hannun et al. 2014; DeepSpeech.py and util/audio.py of Mozilla's v0.1.0.
    """

    name, width = "deepspeech", BLANK + 1
    block = 2000  # steps

    def __init__(self, widths=(2048, 2048, 4096, 2048, 2048), labels=BLANK + 1):
        super().__init__()
        first, second, third, cells, fifth = widths
        self.config = {"widths": list(widths), "labels": labels}
        self.dense = nn.ModuleList(
            nn.Linear(*sizes) for sizes in (((2 * CONTEXT + 1) * CEPSTRA, first), (first, second), (second, third))
        )
        self.forwards, self.backwards = nn.LSTM(third, cells), nn.LSTM(third, cells)
        self.after, self.spell = nn.Linear(2 * cells, fifth), nn.Linear(fifth, labels)

    def forward(self, features):
        """Cepstra (K, 26) at 50 Hz to logits, as an iterator of (k, 29)."""
        padded = F.pad(features, (0, 0, CONTEXT, CONTEXT))  # with zeros, before the whitening, as Mozilla did
        windows = padded.unfold(0, 2 * CONTEXT + 1, 1)  # (K, 26, 19), a view
        mean, spread = self._whitening(features)
        starts = range(0, len(features), self.block)
        known, state = {}, None
        for first in reversed(starts):
            known[first] = state
            if first:
                _, state = self.backwards(self._enter(windows[first : first + self.block], mean, spread).flip(0), state)
        state = None
        for first in starts:
            heard = self._enter(windows[first : first + self.block], mean, spread)
            past, state = self.forwards(heard, state)
            future, _ = self.backwards(heard.flip(0), known.pop(first))
            yield self.spell(_clipped(self.after(torch.cat([past, future.flip(0)], 1))))

    def _enter(self, windows, mean, spread):
        heard = (windows.transpose(1, 2).flatten(1) - mean) / spread  # (k, 494)
        for layer in self.dense:
            heard = _clipped(layer(heard))
        return heard

    @staticmethod
    def _whitening(features):
        """Mean and spread of all numbers in all windows, the zeros around the recording among them."""
        count = len(features)
        place = torch.arange(count, device=features.device)
        times = (place.clamp(max=CONTEXT) + (count - 1 - place).clamp(max=CONTEXT) + 1).double()[
            :, None
        ]  # in how many windows
        total = count * (2 * CONTEXT + 1) * CEPSTRA
        features = features.double()
        mean = (features * times).sum() / total
        around = total - times.sum() * CEPSTRA
        spread = (((features - mean).square() * times).sum() + around * mean.square()).div(total).sqrt()
        return mean.float(), spread.float().clamp(min=1e-6)

    @torch.no_grad()
    def steps(self, blocks):
        """The logits of a recording, when all of it has been heard.

        blocks   iterator of float (n,), the next samples at 16 kHz
        yields   float32 (m, 29), the next steps
        """
        pieces = list(mfcc.mfcc_26(blocks))
        if pieces:
            features = torch.from_numpy(np.concatenate(pieces)[::2].copy()).to(next(self.parameters()).device)
            yield from (logits.cpu().numpy() for logits in self(features))


def _clipped(values):
    return values.clamp(0, 20)


def read_deepspeech(path, device="cpu"):
    """Mozilla's DeepSpeech 0.1.0 out of its output_graph.pb, without TensorFlow; widths as in the file.

    raises   TalkheadError if the file is missing, damaged, or another version; or if protobuf is not installed

    The nodes that matter are the constants h1, b1 … h6, b6, and the kernel and bias of the LSTM each way.
    """
    constants, inputs = _read_graph(path)
    kernels, biases = (
        [name for name in constants if re.search(pattern, name)]
        for pattern in (r"lstm.*/(kernel|weights)$", r"lstm.*/bias(es)?$")
    )
    dense = [f"{kind}{layer}" for layer in (1, 2, 3, 5, 6) for kind in "hb"]
    if inputs is not None and len(inputs) == 4:
        raise TalkheadError(
            f"{path}: DeepSpeech 0.2 or later, by its input {_sizes(inputs)}; wanted version 0.1.0, whose input is 1x?x494"
        )
    if not all(name in constants for name in dense) or not kernels:
        raise TalkheadError(
            f"{path}: a TensorFlow graph, but not of DeepSpeech; pass output_graph.pb of deepspeech-0.1.0-models.tar.gz"
        )
    ways = [[name for name in [*kernels, *biases] if f"/{way}/" in name] for way in ("fw", "bw")]
    if [len(way) for way in ways] != [2, 2]:
        raise TalkheadError(
            f"{path}: DeepSpeech 0.2 or later, by its one-way LSTM; wanted version 0.1.0, which hears both ways"
        )
    seen, labels = constants["h1"].shape[0], constants["h6"].shape[-1]
    if (seen, labels) != ((2 * CONTEXT + 1) * CEPSTRA, BLANK + 1):
        raise TalkheadError(
            f"{path}: takes {seen} numbers to {labels} labels; wanted the English DeepSpeech 0.1.0, 494 to {BLANK + 1}"
        )
    model = DeepSpeech(
        [constants[name].shape[-1] for name in ("b1", "b2", "b3")]
        + [constants[ways[0][1]].shape[-1] // 4, constants["b5"].shape[-1]]
    )
    layers = zip((1, 2, 3, 5, 6), ("dense.0", "dense.1", "dense.2", "after", "spell"))
    state = {}
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
            f"{path}: its layers do not fit each other ({str(problem).splitlines()[-1].strip()}); the file is damaged"
        ) from problem
    return model.to(device).eval().requires_grad_(False)


def _from_basic_cell(kernel, bias):
    """The weights of a TensorFlow BasicLSTMCell as those of torch's: gates i, j, f, o become i, f, g, o, and f's bias counts one more."""
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
    """The float constants of a TensorFlow graph, {name: tensor}, and the sizes of its input_node, or None."""
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


# TensorFlow's graph.proto, node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto, as far as constants need them:
# {message: {field: (number, type, whether repeated)}}. A field that is not named here is passed over by its reader.
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


def graph_messages(where="graph"):
    """Classes that read and write the parts of a TensorFlow graph, by message name; raises TalkheadError if protobuf is not installed."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise TalkheadError(f"{where}: protobuf is not installed; pip install 'talkhead[deepspeech]'") from None
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="talkhead/graph.proto", package="talkhead", syntax="proto3")
    for name, fields in _MESSAGES.items():
        holder = file.message_type
        if name == "AttrEntry":  # a map's entry is a message within the one that has the map
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


# Other people's networks ----------------------------------------------------------------------------------------------


class TransformersFeatures:
    """The hidden states of a wav2vec 2.0 or HuBERT network of `transformers`: an acoustic model.

    name     "wav2vec2" or "hubert"
    path     folder, or name on the hub of a network that is in its cache: nothing is downloaded
    device   torch.device or its name
    raises   TalkheadError if transformers is not installed, there is no such network, or it is of another kind

    The last layer's states, fifty a second whatever the network's own rate is. It hears a recording as a whole; of one
    longer than 20 s, it hears 20 s at a time with 2 s on either side, because its attention costs the square of that.
    """

    BLOCK, MARGIN = 20, 2  # seconds

    def __init__(self, name, path, device="cpu"):
        try:
            from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
        except ImportError:
            raise TalkheadError(
                f"features {name}: transformers is not installed; pip install 'talkhead[transformers]'"
            ) from None
        try:
            kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
            if kind != name:
                raise TalkheadError(f"{path}: a network of the kind {kind}, wanted {name}")
            with _no_progress_bar():
                self.network = (
                    AutoModel.from_pretrained(path, local_files_only=True).to(device).eval().requires_grad_(False)
                )
            self.prepare = AutoFeatureExtractor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as problem:
            reason = str(problem).splitlines()[0]
            raise TalkheadError(
                f"{path}: no network of transformers here ({reason}); pass its folder, "
                "or fetch it into the hub's cache first"
            ) from problem
        self.name, self.width = name, self.network.config.hidden_size
        self.stride = int(np.prod(self.network.config.conv_stride))  # samples
        self.least = 1  # samples that make one state
        for kernel, stride in zip(reversed(self.network.config.conv_kernel), reversed(self.network.config.conv_stride)):
            self.least = (self.least - 1) * stride + kernel

    def state_dict(self):
        return self.network.state_dict()

    @torch.no_grad()
    def steps(self, blocks):
        """The states of a recording, when all of it has been heard: float32 (m, width) at a time."""
        blocks = [np.asarray(block, np.float32) for block in blocks if len(block)]
        if blocks:
            audio = np.nan_to_num(np.concatenate(blocks), posinf=1.0, neginf=-1.0)
            audio = self.prepare(audio, sampling_rate=mfcc.SAMPLE_RATE, return_tensors="np")["input_values"][0]
            states = np.concatenate(list(self._states(np.pad(audio, (0, max(self.least - len(audio), 0))))))
            count = -(-len(states) * self.stride * RATE // mfcc.SAMPLE_RATE)
            yield _between(states, np.arange(count) * mfcc.SAMPLE_RATE / (RATE * self.stride))

    def _states(self, audio):
        """The states of blocks, float32 (m, width), each heard with what is around it."""
        stride, total = self.stride, (len(audio) - self.least) // self.stride + 1
        size, margin = (int(seconds * mfcc.SAMPLE_RATE) // stride for seconds in (self.BLOCK, self.MARGIN))
        for first in range(0, total, size):
            begin, end = max(first - margin, 0), min(first + size + margin, total)
            heard = torch.from_numpy(audio[begin * stride : (end - 1) * stride + self.least])[None].to(
                self.network.device
            )
            yield self.network(heard).last_hidden_state[0, first - begin :][:size].float().cpu().numpy()


@contextmanager
def _no_progress_bar():
    """Let transformers load without drawing how far it is."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _between(rows, places):
    """Rows (N, C) at places (n,) between them, linearly, held at the end."""
    places = places.clip(0, len(rows) - 1)
    before = np.minimum(places.astype(int), max(len(rows) - 2, 0))
    part = (places - before).astype(np.float32)[:, None]
    return rows[before] * (1 - part) + rows[np.minimum(before + 1, len(rows) - 1)] * part


# Words ----------------------------------------------------------------------------------------------------------------


def greedy_decode(logits):
    """The text that logits spell, taking the likeliest label of every step.

    logits   (K, 29), tensor or array
    returns  str
    """
    best = np.asarray(logits).argmax(-1)
    kept = best[np.concatenate([[True], best[1:] != best[:-1]])]
    return "".join(LABELS[label] for label in kept if label != BLANK)


def transcribe(model, audio):
    """What a CharacterModel or DeepSpeech reads in a recording, float (N,) at 16 kHz: str."""
    return greedy_decode(np.concatenate(list(model.steps([audio]))))
