"""Speech to displacements: which way in latent space the voice pulls a face, frame by frame.

Source: thesis §4.2 (the first model), §4.3 (the second).
"""

import inspect
import math
from itertools import islice

import numpy as np
import torch
from torch import nn

from talkhead import audio_features
from talkhead.errors import TalkheadError
from talkhead.latents import W_DIM, Basis, extend_layers

SLOPE = 0.02  # of the first model's leaky ReLUs
WIDEST = 32  # features that the second model's convolutions take as they are


class _SpeechModel(nn.Module):
    """What both models are to those identity_coords use them: speech and an identity to displacements of that identity, frame by frame.

    num_ws      L, the generator's latent layers
    layers      of the generator that it is used with, if that grew out of its own and has more; None: num_ws
    window_shape      (C, S), the windows of features that it takes
    feature_id     `identity` of the features that it was trained on
    config      plain values to rebuild it from, by `build`
    noise_width numbers of noise that it is given for each frame; 0: it takes none
    components  principal components of latents that `init_from_pca` asks for
    defaults    what `train` does for this model where nothing is said

    A model's own coordinates of a displacement are called motion; `expand` and `project` lead there and back.
    """

    feature_id = audio_features.Mfcc.identity
    noise_width = 0
    layers = None

    def forward(self, windows, identity, state=None, noise=None):
        """Windows of speech (B, T, C, S) and identities (B, L, 512) to displacements (B, T, L, 512).

        state    what a call on the frames just before returned: of the LSTMs; None at the beginning
        noise    (B, T, noise_width), normal; None is the mean: zeros
        returns  the displacements, and the state after the last frame
        """
        motion, state = self.predict_coords(windows, self.project_identity(identity), state, noise)
        return self.expand(motion), state

    def _initialise(self, slope=0.0):
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                # torch's default shrinks the signal at each of the ten layers: training would idle for hundreds of steps.
                nn.init.kaiming_normal_(module.weight, a=slope, nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)


class FirstModel(_SpeechModel):
    """The first model: characters that are spoken, an identity and noise to displacements.

    num_ws          L, the generator's latent layers
    window_shape          (C, S) of the windows: the thesis's are 29 characters in 16 steps
    channels        of the four convolutions over time
    lstm            width of the three LSTM layers
    identity_width  numbers that say whose face it is
    noise_width     numbers of noise for each frame, of whatever speech does not tell; 0 leaves the noise generator out
    decoder         width of the decoder's three hidden layers

    An identity is mapped to what tells the training faces apart: of a face like none of them, the model knows no more
    than whom it resembles.

    Source: thesis §4.2.1, Tables 4.1 and 4.2.
    Departure: no activation after the last layer, where the table's would forbid displacements below zero. Features,
    identity coordinates and the input of the last layer are divided or multiplied by their spread over the training
    data, kept with the weights, as in the second model; the mean code is taken off, and the two layers at latents hold
    components of length √(L·512), which is taken out again: Adam moves every weight as far in a step, and rows of
    thousands of small ones would run away with it. Windows longer than 16 steps leave the convolutions more than one step,
    which go side by side into the LSTM.
    """

    defaults = {"features": "bundled", "latent_weight": 0.0, "identity_noise": 0.0, "patience": 10}

    def __init__(
        self,
        num_ws,
        window_shape=(29, 16),
        channels=(32, 32, 64, 64),
        lstm=64,
        identity_width=128,
        noise_width=10,
        decoder=256,
    ):
        super().__init__()
        self.config = {
            "model": "first",
            "num_ws": num_ws,
            "window_shape": list(window_shape),
            "channels": list(channels),
            "lstm": lstm,
            "identity_width": identity_width,
            "noise_width": noise_width,
            "decoder": decoder,
        }
        self.num_ws, self.window_shape, self.noise_width, self.components = (
            num_ws,
            tuple(window_shape),
            noise_width,
            max(identity_width, decoder),
        )
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
        nn.init.normal_(self.decoder[-2].weight, std=0.3 / math.sqrt(decoder))

    def init_from_pca(self, basis, motion_std, feature_std):
        """Start from the principal components of the training codes, and what is spread along them."""
        width, decoder = self.config["identity_width"], self.config["decoder"]
        with torch.no_grad():
            self.identity.weight.copy_(basis.components[:width] * self.length)
            self.identity.bias.zero_()
            self.out.weight.copy_(basis.components[:decoder].T * self.length)
            self.out.bias.zero_()
        self.identity_mean.copy_(basis.mean)
        self.identity_std.copy_(_spreads(basis)[:width])
        self.motion_std.copy_(motion_std[:decoder])
        self.feature_std.copy_(feature_std)

    def project_identity(self, identity):
        """Identities (B, L, 512) to the numbers that say whose face it is (B, identity_width), in spreads."""
        return self.identity((identity.flatten(-2) - self.identity_mean) / self.length) / self.identity_std

    def predict_coords(self, windows, identity_coords, state=None, noise=None):
        """As calling the model, but from `project_identity`, and to motion (B, T, L·512)."""
        batch, frames = windows.shape[:2]
        sound_state, noise_state = state or (None, None)
        sound = self.audio((windows / self.feature_std[:, None]).flatten(0, 1)).unflatten(
            0, (batch, frames)
        )  # (B, T, 64)
        sound, sound_state = self.lstm(sound, sound_state)
        parts = [sound, identity_coords[:, None].expand(-1, frames, -1)]
        if self.noise is not None:
            noise = sound.new_zeros(batch, frames, self.noise_width) if noise is None else noise.to(sound.dtype)
            noise_out, noise_state = self.noise(noise, noise_state)
            parts.append(noise_out)
        hidden = self.decoder(torch.cat(parts, -1))  # from 202 numbers to 256 in the thesis
        return self.out(hidden * self.motion_std) / self.length, (sound_state, noise_state)

    def expand(self, motion):
        return motion.unflatten(-1, (self.num_ws, W_DIM))

    def project(self, displacement):
        return displacement.flatten(-2)


class SecondModel(_SpeechModel):
    """The second model: sound and an identity to displacements within a basis.

    num_ws      L, the generator's latent layers
    components  K, how many principal components of the basis a displacement is made of
    channels    of the five convolutions
    hidden, embedding  widths of the two linear layers after them
    lstm        width of the three LSTM layers
    decoder     width of the decoder's two hidden layers
    basis       latents.Basis of K components; one of zeros if not given, to be loaded or trained
    window_shape      (C, S) of the windows: the thesis's are 12 coefficients in 28 steps

    Source: thesis §4.3.1, Tables 4.3 and 4.4.
    Departure: features, identity coordinates and predicted coordinates are divided or multiplied by their spread over
    the training data, kept with the weights: it changes what the network computes with, not what it can compute. The
    identity's coordinates are limited to five spreads, so that a face like none in training is no stranger than that.
    Windows of another shape go through the same layers, and only the first linear layer has other inputs: 29x16
    characters become 27x7 and 13x3 cells, where 12x28 become 10x13 and 4x6. Features wider than 32 (of wav2vec 2.0 and
    its like) are first mapped to 32 by a linear layer, or the convolutions would cost more than all else.
    At the thesis's sizes there are 32.37 million parameters, where its Table 5.2 reports 29.68. Table 4.4 as printed has
    the difference in the two linear layers of the decoder beside the basis: 2756 -> 512 and 512 -> 2500 have 2.69 million,
    and all other layers 29.67.
    """

    defaults = {"features": "mfcc", "latent_weight": 250.0, "identity_noise": 0.3, "patience": 0}

    def __init__(
        self,
        num_ws,
        components=2500,
        channels=(64, 128, 256, 256, 512),
        hidden=2048,
        embedding=256,
        lstm=256,
        decoder=512,
        basis=None,
        window_shape=audio_features.Mfcc.shape,
    ):
        super().__init__()
        self.config = {
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
        self.narrow = nn.Conv1d(window_shape[0], WIDEST, 1) if window_shape[0] > WIDEST else nn.Identity()
        rows, columns = min(window_shape[0], WIDEST) - 2, (window_shape[1] - 3) // 2 + 1
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
        nn.init.normal_(self.decoder[-1].weight, std=0.3 / math.sqrt(decoder))
        self.audio.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def init_from_pca(self, basis, motion_std, feature_std):
        """Move along the principal components of the training codes, by what is spread along them."""
        self.basis = basis
        self.motion_std.copy_(motion_std)
        self.feature_std.copy_(feature_std)

    def project_identity(self, identity):
        """Identities (B, L, 512) to their coordinates in the basis (B, K), in spreads."""
        return (self.basis.project(identity) / _spreads(self.basis)).clamp(-5, 5)

    def predict_coords(self, windows, identity_coords, state=None, noise=None):
        """As calling the model, but from `project_identity`, and to motion, the displacements' coordinates in the basis: (B, T, K), h_t of eq. 4.3."""
        batch, frames = windows.shape[:2]
        heard = self.narrow((windows / self.feature_std[:, None]).flatten(0, 1))[:, None]  # (B·T, 1, 12, 28)
        heard = self.audio(heard.contiguous(memory_format=torch.channels_last)).unflatten(0, (batch, frames))
        heard, state = self.lstm(heard, state)
        return self.decoder(
            torch.cat([identity_coords[:, None].expand(-1, frames, -1), heard], -1)
        ) * self.motion_std, state

    def expand(self, motion):
        return self.basis.expand(motion)

    def project(self, displacement):
        return self.basis.project(displacement, centre=False)


MODELS = {"first": FirstModel, "second": SecondModel}


def build(model="second", **config):
    """A speech model from its `config`. A file from before there were two holds a second one."""
    return MODELS[model](**config)


def check_sizes(model, sizes):
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


def _spreads(basis):
    """What to divide coordinates by: their spreads, but none so small that it would blow up rounding."""
    return basis.stdev.clamp(min=max(0.01 * basis.stdev.max().item(), 1e-6))


def load_features_for(model, name=None, path=None, device="cpu"):
    """The features that a speech model was trained on; arguments as `audio_features.features` takes them.

    raises  TalkheadError if others are named, or the file holds another network
    """
    found = audio_features.features(name or model.feature_id["name"], path, device)
    if found.identity != model.feature_id:
        raise TalkheadError(
            f"features: this speech model hears {_told(model.feature_id)}, not {_told(found.identity)}; "
            "pass --features and --features-model as it was trained"
        )
    return found


def _told(identity):
    """{"name": "a", "of": "b"} -> a (of b)"""
    rest = ", ".join(f"{key} {value}" for key, value in identity.items() if key != "name")
    return identity["name"] + (f" ({rest})" if rest else "")


def displacements(model, windows, identity, chunk=25, gain=1.0, seed=0):
    """What the speech does to a face, as it comes.

    model     FirstModel or SecondModel
    windows   float32 (T, C, S) or an iterator of (C, S), of the features that the model hears
    identity  float32 (L, 512), tensor or array
    chunk     windows computed together; changes speed and memory, not the result
    gain      factor on the displacements: above 1 the face moves more
    seed      of the noise, if the model takes any; None gives it none
    yields    float32 numpy (L, 512), one for each window
    raises    TalkheadError if identity or windows do not have the shapes that this model takes

    Source: thesis §4.2.1, §4.3.1, eq. 4.3.
    """
    device = next(model.parameters()).device
    identity = torch.as_tensor(identity, dtype=torch.float32, device=device)
    layers = model.layers or model.num_ws
    if identity.shape != (layers, W_DIM):
        raise TalkheadError(
            f"identity: has shape {tuple(identity.shape)}, this speech model takes ({layers}, {W_DIM}); "
            "pass the encoder that it was trained with"
        )
    windows, state, noise = iter(windows), None, None
    rng = np.random.default_rng(seed) if model.noise_width and seed is not None else None
    while block := list(islice(windows, chunk)):
        if block[0].shape != model.window_shape:
            raise TalkheadError(
                f"windows: have shape {block[0].shape}, this speech model takes {model.window_shape} of {_told(model.feature_id)}; "
                "pass the features that it was trained on"
            )
        block_windows = torch.as_tensor(np.stack(block), dtype=torch.float32, device=device)
        if rng is not None:
            noise = torch.as_tensor(
                rng.standard_normal((1, len(block), model.noise_width)), dtype=torch.float32, device=device
            )
        with torch.no_grad():
            moved, state = model(
                block_windows[None], identity[None, : model.num_ws], state, noise
            )  # (1, chunk, num_ws, 512)
        yield from extend_layers(gain * moved[0], layers).cpu().numpy()
