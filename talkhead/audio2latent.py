"""Audio2latent models: windows of audio features → displacements in W+, one per video frame.

Source: thesis §4.2 (first model), §4.3 (second model).
"""

import inspect
import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from talkhead import audio_features
from talkhead.errors import TalkheadError
from talkhead.latents import W_DIM, Basis, extend_layers

SLOPE = 0.02  # of the first model's leaky ReLUs
MAX_CHANNELS = 32  # feature channels of the second model's convolutions; wider features are first projected


class _SpeechModel(nn.Module):
    """Base class of audio2latent models: feature windows and an identity to displacements, frame by frame.

    num_ws        L, the generator's latent layers
    layers        latent layers of an extended generator (more than num_ws) that it is used with; None: num_ws
    window_shape  (C, S) of the feature windows
    feature_id    `identity` of the features that it was trained on
    config        plain values from which `build` rebuilds it
    noise_width   width of the noise vector of each frame; 0: no noise
    components    number of principal components that `init_from_pca` takes
    defaults      defaults of `train` for this model

    "Motion" means the model's coordinates of a displacement: `project` goes from W+ to motion, `expand` back.
    """

    feature_id = audio_features.Mfcc.identity
    noise_width = 0
    layers: int | None = None

    def forward(self, windows, identity, state=None, noise=None):
        """Displacements (B, T, L, 512) of feature windows (B, T, C, S) and identities (B, L, 512).

        state    state of the LSTMs that the call on the preceding frames returned; None at the beginning
        noise    (B, T, noise_width), normal; None: its mean, zeros
        returns  displacements and the state after the last frame
        """
        motion, state = self.predict_coords(windows, self.project_identity(identity), state, noise)
        return self.expand(motion), state

    def _initialise(self, slope=0.0):
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                # torch's default shrinks the signal at each of the ten layers: training stalls for hundreds of steps.
                nn.init.kaiming_normal_(module.weight, a=slope, nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)


class FirstModel(_SpeechModel):
    """First model: windows of character logits, an identity and noise to displacements.

    num_ws          L, the generator's latent layers
    window_shape    (C, S) of the windows; thesis: 29 characters, 16 steps
    channels        of the four convolutions over time
    lstm            width of the three LSTM layers
    identity_width  width of the identity embedding
    noise_width     width of each frame's noise vector, for motion independent of speech; 0: no noise generator
    decoder         width of the decoder's three hidden layers

    The identity embedding spans the training speakers only; an unseen face is represented by similar ones.

    Source: thesis §4.2.1, Tables 4.1 and 4.2.
    Departure: no activation after the last layer; the table's would forbid negative displacements. Features, identity
    coordinates and the input of the last layer are divided or multiplied by their std over the training data, kept with
    the weights, as in the second model. The mean latent is subtracted, and the two layers next to latents hold
    components scaled to length √(L·512), which the forward pass divides out: Adam moves every weight equally far per
    step, too far for rows of thousands of small weights. Windows longer than 16 steps leave the convolutions more than
    one step; these are concatenated for the LSTM.
    """

    defaults = {"features": "bundled", "latent_weight": 0.0, "identity_noise": 0.0, "patience": 10}

    feature_std: torch.Tensor
    identity_mean: torch.Tensor
    identity_std: torch.Tensor
    motion_std: torch.Tensor

    def __init__(
        self,
        num_ws: int,
        window_shape: list[int] | tuple[int, ...] = (29, 16),
        channels: list[int] | tuple[int, ...] = (32, 32, 64, 64),
        lstm: int = 64,
        identity_width: int = 128,
        noise_width: int = 10,
        decoder: int = 256,
    ) -> None:
        super().__init__()
        self.config: dict = {
            "model": "first",
            "num_ws": num_ws,
            "window_shape": list(window_shape),
            "channels": list(channels),
            "lstm": lstm,
            "identity_width": identity_width,
            "noise_width": noise_width,
            "decoder": decoder,
        }
        self.num_ws, self.window_shape, self.noise_width = num_ws, tuple(window_shape), noise_width
        self.components = max(identity_width, decoder)
        self.length = math.sqrt(num_ws * W_DIM)
        layers, before, steps = [], window_shape[0], window_shape[1]
        for width in channels:
            layers += [nn.Conv1d(before, width, 3, 2, 1), nn.LeakyReLU(SLOPE)]
            before, steps = width, (steps + 1) // 2
        self.audio = nn.Sequential(*layers, nn.Flatten())  # (N, 64 · 1)
        self.lstm = nn.LSTM(before * steps, lstm, 3, batch_first=True)
        self.identity = nn.Linear(num_ws * W_DIM, identity_width)
        self.noise = nn.LSTM(noise_width, noise_width, batch_first=True) if noise_width else None
        self.decoder = nn.Sequential(
            nn.Linear(lstm + identity_width + noise_width, decoder),
            nn.LeakyReLU(SLOPE),
            nn.Linear(decoder, decoder),
            nn.LeakyReLU(SLOPE),
            nn.Linear(decoder, decoder),
            nn.LeakyReLU(SLOPE),
        )
        self.out = nn.Linear(decoder, num_ws * W_DIM)
        self.register_buffer("feature_std", torch.ones(window_shape[0]))
        self.register_buffer("identity_mean", torch.zeros(num_ws * W_DIM))
        self.register_buffer("identity_std", torch.ones(identity_width))
        self.register_buffer("motion_std", torch.ones(decoder))
        self._initialise(SLOPE)
        nn.init.normal_(self.decoder[-2].weight, std=0.3 / math.sqrt(decoder))  # type: ignore[arg-type]  # of a Linear

    def init_from_pca(self, basis: Basis, motion_std: torch.Tensor, feature_std: torch.Tensor) -> None:
        """Initialise from the principal components of the training latents and the stds along them."""
        width, decoder = self.config["identity_width"], self.config["decoder"]
        with torch.no_grad():
            self.identity.weight.copy_(basis.components[:width] * self.length)
            self.identity.bias.zero_()
            self.out.weight.copy_(basis.components[:decoder].T * self.length)
            self.out.bias.zero_()
        self.identity_mean.copy_(basis.mean)
        self.identity_std.copy_(_safe_std(basis)[:width])
        self.motion_std.copy_(motion_std[:decoder])
        self.feature_std.copy_(feature_std)

    def project_identity(self, identity: torch.Tensor) -> torch.Tensor:
        """Identity embeddings (B, identity_width), in standard deviations, of identities (B, L, 512)."""
        return self.identity((identity.flatten(-2) - self.identity_mean) / self.length) / self.identity_std

    def predict_coords(
        self,
        windows: torch.Tensor,
        identity_coords: torch.Tensor,
        state: tuple | None = None,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple]:
        """Motion (B, T, L·512) from the result of `project_identity`; otherwise as `forward`."""
        batch, frames = windows.shape[:2]
        audio_state, noise_state = state or (None, None)
        audio = self.audio((windows / self.feature_std[:, None]).flatten(0, 1))
        audio, audio_state = self.lstm(audio.unflatten(0, (batch, frames)), audio_state)  # (B, T, 64)
        parts = [audio, identity_coords[:, None].expand(-1, frames, -1)]
        if self.noise is not None:
            noise = audio.new_zeros(batch, frames, self.noise_width) if noise is None else noise.to(audio.dtype)
            noise_out, noise_state = self.noise(noise, noise_state)
            parts.append(noise_out)
        hidden = self.decoder(torch.cat(parts, -1))  # thesis: 202 → 256
        return self.out(hidden * self.motion_std) / self.length, (audio_state, noise_state)

    def expand(self, motion: torch.Tensor) -> torch.Tensor:
        return motion.unflatten(-1, (self.num_ws, W_DIM))

    def project(self, displacement: torch.Tensor) -> torch.Tensor:
        return displacement.flatten(-2)


class SecondModel(_SpeechModel):
    """Second model: windows of MFCC and an identity to displacements within a PCA basis.

    num_ws        L, the generator's latent layers
    components    K, number of principal components of the basis
    channels      of the five convolutions
    hidden, embedding  widths of the two linear layers after them
    lstm          width of the three LSTM layers
    decoder       width of the decoder's two hidden layers
    basis         latents.Basis of K components; None: zeros, to be loaded or trained
    window_shape  (C, S) of the windows; thesis: 12 coefficients, 28 steps

    Source: thesis §4.3.1, Tables 4.3 and 4.4.
    Departure: features, identity coordinates and predicted coordinates are divided or multiplied by their std over the
    training data, kept with the weights: this changes the scale of the computation, not the functions that it can
    represent. Identity coordinates are clamped to ±5 standard deviations, to bound the input for unusual faces. Windows
    of another shape use the same layers; only the first linear layer has other inputs: 29x16 characters become 27x7 and
    13x3 cells, where 12x28 become 10x13 and 4x6. Features wider than 32 (such as wav2vec 2.0) are first mapped to 32 by
    a linear layer; otherwise the convolutions would dominate the cost.
    At the thesis's sizes there are 32.37 million parameters; its Table 5.2 reports 29.68. In Table 4.4 as printed, the
    difference is in the two linear layers of the decoder beside the basis: 2756 -> 512 and 512 -> 2500 have 2.69
    million, and all other layers 29.67.
    """

    defaults = {"features": "mfcc", "latent_weight": 250.0, "identity_noise": 0.3, "patience": 0}

    feature_std: torch.Tensor
    motion_std: torch.Tensor

    def __init__(
        self,
        num_ws: int,
        components: int = 2500,
        channels: list[int] | tuple[int, ...] = (64, 128, 256, 256, 512),
        hidden: int = 2048,
        embedding: int = 256,
        lstm: int = 256,
        decoder: int = 512,
        basis: Basis | None = None,
        window_shape: list[int] | tuple[int, ...] = audio_features.Mfcc.shape,
    ) -> None:
        super().__init__()
        self.config: dict = {
            "model": "second",
            "num_ws": num_ws,
            "components": components,
            "channels": list(channels),
            "hidden": hidden,
            "embedding": embedding,
            "lstm": lstm,
            "decoder": decoder,
            "window_shape": list(window_shape),
        }
        self.num_ws, self.window_shape, self.components = num_ws, tuple(window_shape), components
        first, second, third, fourth, fifth = channels
        self.narrow = nn.Conv1d(window_shape[0], MAX_CHANNELS, 1) if window_shape[0] > MAX_CHANNELS else nn.Identity()
        rows, columns = min(window_shape[0], MAX_CHANNELS) - 2, (window_shape[1] - 3) // 2 + 1
        cells = ((rows - 3) // 2 + 1) * ((columns - 3) // 2 + 1)
        self.audio = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),  # (N, 128, 12, 28)
            nn.MaxPool2d(3, (1, 2)),  # (N, 128, 10, 13)
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(third, fourth, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(fourth, fifth, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Flatten(),  # (N, 512 · 4 · 6)
            nn.Linear(cells * fifth, hidden),
            nn.ReLU(),
            nn.Linear(hidden, embedding),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(embedding, lstm, 3, batch_first=True)
        self.decoder = nn.Sequential(
            nn.Linear(components + lstm, decoder),
            nn.ReLU(),
            nn.Linear(decoder, decoder),
            nn.ReLU(),
            nn.Linear(decoder, components),
        )
        zeros = torch.zeros
        self.basis = basis or Basis(zeros(num_ws * W_DIM), zeros(components, num_ws * W_DIM), zeros(components))
        self.register_buffer("feature_std", torch.ones(window_shape[0]))
        self.register_buffer("motion_std", torch.ones(components))
        self._initialise()
        nn.init.normal_(self.decoder[-1].weight, std=0.3 / math.sqrt(decoder))  # type: ignore[arg-type]  # of a Linear
        self.audio.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def init_from_pca(self, basis: Basis, motion_std: torch.Tensor, feature_std: torch.Tensor) -> None:
        """Set the PCA basis of the training latents, and the stds of motion and features."""
        self.basis = basis
        self.motion_std.copy_(motion_std)
        self.feature_std.copy_(feature_std)

    def project_identity(self, identity: torch.Tensor) -> torch.Tensor:
        """Basis coordinates (B, K), in standard deviations, of identities (B, L, 512)."""
        return (self.basis.project(identity) / _safe_std(self.basis)).clamp(-5, 5)

    def predict_coords(
        self,
        windows: torch.Tensor,
        identity_coords: torch.Tensor,
        state: tuple | None = None,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple]:
        """Motion (B, T, K), h_t of eq. 4.3, from the result of `project_identity`; otherwise as `forward`."""
        batch, frames = windows.shape[:2]
        audio = self.narrow((windows / self.feature_std[:, None]).flatten(0, 1))[:, None]  # (B·T, 1, 12, 28)
        audio = self.audio(audio.contiguous(memory_format=torch.channels_last)).unflatten(0, (batch, frames))
        audio, state = self.lstm(audio, state)
        inputs = torch.cat([identity_coords[:, None].expand(-1, frames, -1), audio], -1)
        return self.decoder(inputs) * self.motion_std, state

    def expand(self, motion: torch.Tensor) -> torch.Tensor:
        return self.basis.expand(motion)

    def project(self, displacement: torch.Tensor) -> torch.Tensor:
        return self.basis.project(displacement, centre=False)


MODELS = {"first": FirstModel, "second": SecondModel}


def build(model: str = "second", **config: Any) -> FirstModel | SecondModel:
    """Build a model from its `config`; one without "model", from the earliest files, is a SecondModel."""
    return MODELS[model](**config)


def check_sizes(model: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes that were asked of a speech model, if it has such parts.

    model    "first" or "second"
    sizes    {name: size} as the networks take them; None values are left out
    raises   TalkheadError on a part of the other model, or a wrong number of convolutions
    """
    sizes = {name: value for name, value in sizes.items() if value is not None}
    parts = inspect.signature(MODELS[model]).parameters
    if unknown := sorted(sizes.keys() - parts.keys()):
        raise TalkheadError(f"{unknown[0]}: the {model} model has no such part; leave it out")
    count = len(parts["channels"].default)
    if len(sizes.get("channels", range(count))) != count:
        raise TalkheadError(f"channels: the {model} model has {count} convolutions; give as many widths")
    return sizes


def _safe_std(basis):
    """Stds (K,) of a basis, with a floor of 1 % of the largest, so that dividing does not amplify rounding errors."""
    return basis.stdev.clamp(min=max(0.01 * basis.stdev.max().item(), 1e-6))


def load_features_for(
    model: FirstModel | SecondModel,
    name: str | None = None,
    path: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
) -> audio_features.AudioFeatures:
    """Load the audio features that a speech model was trained on; arguments as in `audio_features.features`.

    raises  TalkheadError if other features are named, or the file holds another network
    """
    found = audio_features.features(name or model.feature_id["name"], path, device)
    if found.identity != model.feature_id:
        raise TalkheadError(
            f"features: this speech model takes {_format_id(model.feature_id)}, not {_format_id(found.identity)}; "
            "pass the --features and --features-model of its training"
        )
    return found


def _format_id(identity):
    """{"name": "a", "of": "b"} -> a (of b)"""
    rest = ", ".join(f"{key} {value}" for key, value in identity.items() if key != "name")
    return identity["name"] + (f" ({rest})" if rest else "")


def displacements(
    model: FirstModel | SecondModel,
    windows: np.ndarray | Iterable[np.ndarray],
    identity: torch.Tensor | np.ndarray,
    chunk: int = 25,
    gain: float = 1.0,
    seed: int | None = 0,
) -> Iterator[np.ndarray]:
    """Predict displacements from a stream of feature windows.

    model     FirstModel or SecondModel
    windows   float32 (T, C, S) or an iterator of (C, S), of the model's features
    identity  float32 (L, 512), tensor or array
    chunk     windows computed together; changes speed and memory, not the result
    gain      factor on the displacements: above 1 the face moves more
    seed      of the noise, if the model takes any; None: no noise
    yields    float32 numpy (L, 512), one per window
    raises    TalkheadError if the shape of identity or windows does not fit the model

    Source: thesis §4.2.1, §4.3.1, eq. 4.3.
    """
    device = next(model.parameters()).device
    identity = torch.as_tensor(identity, dtype=torch.float32, device=device)
    layers = model.layers or model.num_ws
    if identity.shape != (layers, W_DIM):
        raise TalkheadError(
            f"identity: has shape {tuple(identity.shape)}, this speech model takes ({layers}, {W_DIM}); "
            "use the encoder of its training"
        )
    windows, state, noise = iter(windows), None, None
    rng = np.random.default_rng(seed) if model.noise_width and seed is not None else None
    while block := list(islice(windows, chunk)):
        if block[0].shape != model.window_shape:
            raise TalkheadError(
                f"windows: have shape {block[0].shape}, this speech model takes {model.window_shape} of "
                f"{_format_id(model.feature_id)}; pass the features of its training"
            )
        block_windows = torch.as_tensor(np.stack(block), dtype=torch.float32, device=device)
        if rng is not None:
            noise = torch.as_tensor(
                rng.standard_normal((1, len(block), model.noise_width)), dtype=torch.float32, device=device
            )
        with torch.no_grad():
            # (1, chunk, num_ws, 512)
            offsets, state = model(block_windows[None], identity[None, : model.num_ws], state, noise)
        yield from extend_layers(gain * offsets[0], layers).cpu().numpy()
