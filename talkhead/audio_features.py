"""Audio features, in one window per video frame: base class, registry, MFCC and acoustic models.

To add features, subclass AudioFeatures and register them in FEATURES.

Source: thesis §4.2.3, §4.3.3.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from talkhead import fingerprints, mfcc, speech_models
from talkhead.errors import TalkheadError

if TYPE_CHECKING:
    import torch

BUNDLED = Path(__file__).parent / "weights" / "speech.pt"


class AudioFeatures:
    """Base class of windowed audio features. A subclass defines `steps` and:

    name       of the features
    identity   dict of plain values, stored with a network that takes these features; it accepts no others
    shape      (C, S) of a window: C features, S steps
    before     steps of the window before the frame's first step; None centres the window on the frame
    per_frame  steps per video frame
    """

    name: str
    identity: dict[str, str]
    shape: tuple[int, int]
    before: int | None = None
    per_frame: int = mfcc.STEPS_PER_FRAME

    def steps(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Stream features, float32 (m, C), zero in silence, of blocks of audio, float (n,) at 16 kHz."""
        raise NotImplementedError

    def windows(self, audio: np.ndarray) -> np.ndarray:
        """Windows float32 (T, C, S), T = mfcc.num_frames(audio), of audio float (N,) at 16 kHz, padded with silence.

        raises   TalkheadError unless audio is one row of samples
        """
        samples = np.asarray(audio)
        if samples.ndim != 1 or not len(samples):
            raise TalkheadError(
                f"audio: has shape {samples.shape}, wanted one row of samples; mix the channels to mono"
            )
        steps = np.concatenate(list(self.steps([samples])))
        return mfcc.windows(steps, mfcc.num_frames(samples), self.shape[1], self.before, self.per_frame)

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Stream the same windows, float32 (C, S), from an iterator of audio blocks, with the least delay."""
        counter = mfcc.FrameCounter(blocks)
        return mfcc.slide(self.steps(counter), counter.frames, self.shape[1], self.before, self.per_frame)


class Mfcc(AudioFeatures):
    """MFCC features, of the second model. A window has a look-ahead of 135 ms after the end of its frame.

    Source: thesis §4.3.3.
    """

    name = "mfcc"
    identity = {"name": "mfcc"}
    shape = (mfcc.COEFFICIENTS, mfcc.WINDOW)

    def steps(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return mfcc.stream_mfcc(blocks)


class LogitWindows(AudioFeatures):
    """Features of an acoustic model at 50 Hz, of the first model.

    model     speech_models.CharacterModel, DeepSpeech or TransformersFeatures. The identity holds a fingerprint of its
              weights, which an export in half precision keeps

    A window has 16 steps, eight frames, of which the frame itself is the fourth. With a CharacterModel of delay 7 the
    look-ahead is 315 ms after the end of the frame; DeepSpeech and TransformersFeatures need the whole recording.

    Source: thesis §4.2.3.
    Departure: the logits of silence are subtracted; a bias of the first model can add them again.
    """

    WINDOW = 16  # steps: 320 ms
    before, per_frame = 6, speech_models.RATE // mfcc.FPS

    def __init__(
        self, model: speech_models.CharacterModel | speech_models.DeepSpeech | speech_models.TransformersFeatures
    ) -> None:
        self.model, self.name, self.shape = model, model.name, (model.width, self.WINDOW)

    @cached_property
    def identity(self) -> dict[str, str]:  # type: ignore[override]  # nothing sets it
        rounded = {
            name: value.half() if value.is_floating_point() else value
            for name, value in self.model.state_dict().items()
        }
        return {"name": self.name, "fingerprint": fingerprints.digest(rounded)}

    @cached_property
    def silence(self) -> np.ndarray:
        """Features of digital silence, float32 (C,): those in the middle of two seconds."""
        steps = np.concatenate(list(self.model.steps([np.zeros(2 * mfcc.SAMPLE_RATE, np.float32)])))
        return steps[len(steps) // 2]

    def steps(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return (steps - self.silence for steps in self.model.steps(blocks))


def _bundled(path, device):
    if path is None and not BUNDLED.exists():
        raise TalkheadError(f"{BUNDLED}: the bundled character model is not installed; pass --features-model FILE")
    return LogitWindows(speech_models.load(path or BUNDLED, device))


class Kind(NamedTuple):
    """Registry entry of audio features.

    make      function of the path of the weights and the device; returns AudioFeatures
    weights   description of the weights; "" if there are none; None if they are bundled and replaceable
    """

    make: Callable
    weights: str | None


FEATURES = {
    "mfcc": Kind(lambda path, device: Mfcc(), ""),
    "bundled": Kind(_bundled, None),
    "deepspeech": Kind(
        lambda path, device: LogitWindows(speech_models.read_deepspeech(path, device)),
        "output_graph.pb of DeepSpeech 0.1.0",
    ),
    "wav2vec2": Kind(
        lambda path, device: LogitWindows(speech_models.TransformersFeatures("wav2vec2", path, device)),
        "a network of transformers",
    ),
    "hubert": Kind(
        lambda path, device: LogitWindows(speech_models.TransformersFeatures("hubert", path, device)),
        "a network of transformers",
    ),
    "whisper": Kind(
        lambda path, device: LogitWindows(speech_models.WhisperFeatures("whisper", path, device)),
        "a network of transformers",
    ),
}


def features(name: str, path: str | os.PathLike | None = None, device: "str | torch.device" = "cpu") -> AudioFeatures:
    """Create AudioFeatures by name.

    name     "mfcc"; "bundled", our own character model; "deepspeech"; "wav2vec2", "hubert" or "whisper"
    path     weights: a character model instead of the bundled one; DeepSpeech's output_graph.pb; folder or hub name of
             a network of transformers
    device   torch.device or its name
    raises   TalkheadError if the name is unknown, or weights are missing, superfluous, damaged or of another kind
    """
    if name not in FEATURES:
        raise TalkheadError(f"features {name!r}: unknown; take {', '.join(FEATURES)}")
    kind = FEATURES[name]
    if kind.weights == "" and path is not None:
        raise TalkheadError(f"features {name}: take no weights; drop {path}")
    if kind.weights and path is None:
        raise TalkheadError(f"features {name}: their weights are not bundled; pass {kind.weights} as --features-model")
    return kind.make(path, device)
