"""What speech models hear: features of the sound, cut into one window per video frame.

To add features, subclass AudioFeatures and name them in FEATURES.

Source: thesis §4.2.3, §4.3.3.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from talkhead import fingerprints, mfcc, speech_models
from talkhead.errors import TalkheadError

BUNDLED = Path(__file__).parent / "weights" / "speech.pt"


class AudioFeatures:
    """Features of a kind, in windows. A subclass has `steps`, and says of them:

    name       of the features
    identity   dict of plain values, kept with the weights of a network that hears them: a network knows no others
    shape      (C, S) of a window: C features, S steps
    before     how many of its steps lie before the frame's first; None centres the window on the frame
    per_frame  steps in one video frame
    """

    before, per_frame = None, mfcc.STEPS_PER_FRAME

    def steps(self, blocks):
        """Blocks of sound, float (n,) at 16 kHz, to the next steps, float32 (m, C), as soon as each can be known; zero in silence."""
        raise NotImplementedError

    def windows(self, audio):
        """Sound float (N,) at 16 kHz to windows float32 (T, C, S), T = speech.num_frames(audio); what lies beyond its ends is silence.

        raises   TalkheadError unless audio is one row of samples
        """
        samples = np.asarray(audio)
        if samples.ndim != 1 or not len(samples):
            raise TalkheadError(
                f"audio: has shape {samples.shape}, wanted one row of samples; mix the channels to mono"
            )
        return mfcc.windows(
            np.concatenate(list(self.steps([samples]))),
            mfcc.num_frames(samples),
            self.shape[1],
            self.before,
            self.per_frame,
        )

    def stream(self, blocks):
        """The same windows, float32 (C, S), from an iterator of blocks of the sound, each as soon as it can be known."""
        heard = mfcc.FrameCounter(blocks)
        return mfcc.slide(self.steps(heard), heard.frames, self.shape[1], self.before, self.per_frame)


class Mfcc(AudioFeatures):
    """MFCC, what the second model hears: a window can be known 135 ms after its frame has ended.

    Source: thesis §4.3.3.
    """

    name = "mfcc"
    identity = {"name": "mfcc"}
    shape = (mfcc.COEFFICIENTS, mfcc.WINDOW)

    def steps(self, blocks):
        return mfcc.stream_mfcc(blocks)


class LogitWindows(AudioFeatures):
    """What the first model hears: the steps of an acoustic model, fifty a second.

    model     acoustics.CharacterModel, DeepSpeech or Hidden. The identity holds a fingerprint of its weights, which an export in half
              precision keeps

    Of 16 steps, eight frames, the frame itself is the fourth. For a CharacterModel of a delay of seven steps a window can be known 315 ms after its
    frame has ended; DeepSpeech and Hidden, which hear a recording as a whole, give the first one after the last block.

    Source: thesis §4.2.3.
    Departure: from the logits their value in silence is subtracted, which the network's own bias can put back.
    """

    WINDOW = 16  # steps: 320 ms
    before, per_frame = 6, speech_models.RATE // mfcc.FPS

    def __init__(self, model):
        self.model, self.name, self.shape = model, model.name, (model.width, self.WINDOW)

    @cached_property
    def identity(self):
        rounded = {
            name: value.half() if value.is_floating_point() else value
            for name, value in self.model.state_dict().items()
        }
        return {"name": self.name, "fingerprint": fingerprints.digest(rounded)}

    @cached_property
    def silence(self):
        """What the model says in the middle of two seconds of digital silence: float32 (C,)."""
        steps = np.concatenate(list(self.model.steps([np.zeros(2 * mfcc.SAMPLE_RATE, np.float32)])))
        return steps[len(steps) // 2]

    def steps(self, blocks):
        return (steps - self.silence for steps in self.model.steps(blocks))


def _bundled(path, device):
    if path is None and not BUNDLED.exists():
        raise TalkheadError(f"{BUNDLED}: the bundled character model is not installed; pass --features-model FILE")
    return LogitWindows(speech_models.load(path or BUNDLED, device))


class Kind(NamedTuple):
    """How features are made: a function of the path of their weights and the device, and what those weights are.

    weights   "" if they are none; None if they come with the package, and others may be named
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
}


def features(name, path=None, device="cpu"):
    """The AudioFeatures of a name.

    name     "mfcc"; "bundled", our own character model; "deepspeech"; "wav2vec2" or "hubert"
    path     of the weights: another character model than the one that comes with the package; DeepSpeech's output_graph.pb; folder or
             hub name of a network of transformers
    device   where to compute; torch.device or its name
    raises   TalkheadError if the name is unknown, or weights are missing, not wanted, damaged or of another kind
    """
    if name not in FEATURES:
        raise TalkheadError(f"features {name!r}: unknown; take {', '.join(FEATURES)}")
    kind = FEATURES[name]
    if kind.weights == "" and path is not None:
        raise TalkheadError(f"features {name}: are computed, and take no weights; leave {path} out")
    if kind.weights and path is None:
        raise TalkheadError(
            f"features {name}: their weights do not come with the package; pass {kind.weights} as --features-model"
        )
    return kind.make(path, device)
