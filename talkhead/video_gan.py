"""Motion model: an LSTM from noise to displacements of an identity in W+, and the discriminators that train it.

Source: thesis §3.4; Tian et al. 2021 (MoCoGAN-HD), which it extends.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from talkhead.errors import TalkheadError
from talkhead.latents import W_DIM, Basis, extend_layers

FORGET_BIAS, INPUT_GAIN = 2.5, 0.7  # LSTM initialisation: forget-gate bias, gain of the input weights
DIFFERENCE_GAIN = 10.0  # scales pixel differences from the identity's image to about one


class LatentGenerator(nn.Module):
    """LSTM from noise and an identity to PCA coordinates of displacements.

    num_ws      L, the generator's latent layers
    components  K, principal components of the basis V
    noise       width of a frame's noise vector
    hidden      width H of the LSTM. None: K, and its outputs are the coordinates (eq. 3.5); else a linear layer and
                tanh map outputs to coordinates, as in MoCoGAN-HD
    space       "w_plus": displacements differ between the L layers; "w": all layers share one
    displace    "identity": LSTM outputs are displacements from the identity; "previous": from the frame before
    basis       latents.Basis of K components; None is a basis of zeros, to be loaded or fitted

    `layers`: the generator's latent layers if it was extended beyond num_ws, else None.

    Source: thesis §3.4.2, eqs 3.4 and 3.5.
    Departure: the axes of V are rotated, within their span, to the principal axes of motion, and each coordinate is
    multiplied by `motion_scale`, three standard deviations of the motion along its axis: LSTM outputs are below one, so
    independent outputs give independent motions of the right size from the first step. The linear layer that computes
    h_0 and c_0 takes w_I as coordinates in V, clipped to five standard deviations. A forget bias and small input
    weights make a new LSTM move about as fast as the clips.
    """

    config: dict[str, Any]
    layers: int | None = None
    motion_scale: torch.Tensor

    def __init__(
        self,
        num_ws: int,
        components: int = 384,
        noise: int = 512,
        hidden: int | None = None,
        space: str = "w_plus",
        displace: str = "identity",
        basis: Basis | None = None,
    ) -> None:
        super().__init__()
        _check_choice("space", space, ("w_plus", "w"))
        _check_choice("displace", displace, ("identity", "previous"))
        self.config = {
            "num_ws": num_ws,
            "components": components,
            "noise": noise,
            "hidden": hidden,
            "space": space,
            "displace": displace,
        }
        self.num_ws, self.noise, self.space, self.displace = num_ws, noise, space, displace
        size, width = (num_ws if space == "w_plus" else 1) * W_DIM, hidden or components
        self.initial = nn.Linear(components, 2 * width)
        self.lstm = nn.LSTM(noise, width, batch_first=True)
        self.output = nn.Sequential(nn.Linear(width, components), nn.Tanh()) if hidden else nn.Identity()
        self.basis = basis or Basis(torch.zeros(size), torch.zeros(components, size), torch.zeros(components))
        self.register_buffer("motion_scale", torch.ones(components))
        for weight, gain in ((self.lstm.weight_ih_l0, INPUT_GAIN), (self.lstm.weight_hh_l0, 1.0)):
            for gate in weight.data.chunk(4):  # type: ignore[operator]  # torch does not type an LSTM's weights
                nn.init.orthogonal_(gate, gain)
        for bias in (self.lstm.bias_ih_l0, self.lstm.bias_hh_l0):
            nn.init.zeros_(bias)  # type: ignore[arg-type]  # nor its biases
        self.lstm.bias_ih_l0.data[width : 2 * width] = FORGET_BIAS  # type: ignore[operator]

    def forward(
        self, noise: torch.Tensor, identity: torch.Tensor, state: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Displacements (B, T, L, 512) of noise (B, T, noise) and identities (B, L, 512).

        state    state returned for the frames before; None at the beginning
        returns  the displacements, and the state after the last frame
        """
        coordinates, _, state = self.coordinates(noise, identity, state)
        return self.expand(coordinates), state

    def coordinates(
        self, noise: torch.Tensor, identity: torch.Tensor, state: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Coordinates (B, T, K), LSTM outputs (B, T, H), h_t of eq. 3.4, and state; arguments as `forward`."""
        *memory, last = self._initial_state(identity) if state is None else state
        hidden, memory = self.lstm(noise, tuple(memory))
        coordinates = self.output(hidden) * self.motion_scale
        if self.displace == "previous":
            coordinates = last[:, None] + coordinates.cumsum(1)
        return coordinates, hidden, (*memory, coordinates[:, -1])

    def _initial_state(self, identity):
        stdev = self.basis.stdev.clamp(min=max(0.01 * self.basis.stdev.max().item(), 1e-6))
        identity_coords = (self.basis.project(self._basis_layers(identity)) / stdev).clamp(-5, 5)
        h, c = self.initial(identity_coords)[None].chunk(2, -1)  # (1, B, H)
        return h.contiguous(), c.contiguous(), torch.zeros_like(identity_coords)

    def _basis_layers(self, w_plus):
        """Latents with the layers of the basis: all L, or in space "w" one, their mean."""
        return w_plus if self.space == "w_plus" else w_plus.mean(-2, keepdim=True)

    def project(self, displacement: torch.Tensor) -> torch.Tensor:
        """Coordinates (..., K) of displacements (..., L, 512)."""
        return self.basis.project(self._basis_layers(displacement), centre=False)

    def expand(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Displacements (..., L, 512) of coordinates (..., K)."""
        return self.basis.expand(coordinates).expand(*coordinates.shape[:-1], self.num_ws, W_DIM)


def motion(
    model: LatentGenerator,
    identity: np.ndarray | torch.Tensor,
    seed: int | Iterable[tuple[int, int | None]] = 0,
    frames: int | None = None,
    gain: float = 1.0,
    chunk: int = 25,
) -> Iterator[np.ndarray]:
    """Stream of random displacements, in constant memory.

    model     LatentGenerator
    identity  float32 (L, 512), tensor or array
    seed      seed of the noise; or segments [(seed, frames), …], which join without a jump
    frames    number of frames; None is endless. Ignored with segments
    chunk     frames computed together; changes speed and memory, not the result
    gain      factor on the displacements
    yields    float32 numpy (L, 512), the displacement of each frame from the identity
    raises    TalkheadError if the identity is not (L, 512) of this model

    Source: thesis §3.4.2, eq. 3.5.
    """
    device = next(model.parameters()).device
    identity = torch.as_tensor(identity, dtype=torch.float32, device=device)
    layers = model.layers or model.num_ws
    if identity.shape != (layers, W_DIM):
        raise TalkheadError(
            f"identity: has shape {tuple(identity.shape)}, this motion model takes ({layers}, {W_DIM}); "
            "pass the encoder that it was trained with"
        )
    segments = [(seed, frames)] if isinstance(seed, int) else seed
    rows, state = itertools.chain.from_iterable(_noise(model.noise, *segment) for segment in segments), None
    while block := list(islice(rows, chunk)):
        with torch.no_grad():
            displacement, state = model(
                torch.as_tensor(np.stack(block), device=device)[None], identity[None, : model.num_ws], state
            )  # (1, chunk, num_ws, 512)
        yield from extend_layers(gain * displacement[0], layers).cpu().numpy()


def _noise(width, seed, frames):
    random = np.random.default_rng(seed)
    for _ in itertools.count() if frames is None else range(frames):
        yield random.standard_normal(width, np.float32)


# Discriminators -------------------------------------------------------------------------------------------------------


class VideoDiscriminator(nn.Module):
    """Multi-scale PatchGAN of 3-D convolutions, conditioned on the identity's image.

    width        channels of the first layer; the next have 2, 4 and 8 times as many
    scales       number of PatchGANs; each takes the video at half the side of the one before
    norm         "none", or "instance" normalisation of the three middle layers, as in MoCoGAN-HD
    conditional  concatenate the identity's image to every frame

    Source: thesis §3.4.3, Table 3.2; the scales after Tian et al. 2021.
    Departure: beside the identity, the input is each frame's difference from it, scaled by DIFFERENCE_GAIN. A first
    layer could learn that from raw frames; but with scaled differences the discriminator detects jerky motion within
    50 steps, while with raw frames appearance dominates.
    """

    config: dict[str, Any]

    def __init__(self, width: int = 64, scales: int = 2, norm: str = "none", conditional: bool = True) -> None:
        super().__init__()
        _check_choice("norm", norm, ("none", "instance"))
        self.config = {"width": width, "scales": scales, "norm": norm, "conditional": conditional}
        self.conditional, self.norm = conditional, norm
        channels = [6 if conditional else 3, width, 2 * width, 4 * width, 8 * width, 1]
        self.scales = nn.ModuleList(
            nn.ModuleList(
                nn.Conv3d(*pair, 4, stride, 2)  # type: ignore[call-arg, arg-type]  # a pair is two
                for *pair, stride in zip(channels, channels[1:], (2, 2, 2, 1, 1))
            )
            for _ in range(scales)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, 0.2)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # all layers have one
        self.to(memory_format=torch.channels_last_3d)  # trains a third faster on a CPU

    def forward(self, video: torch.Tensor, identity: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Patch logits of video (B, T, 3, S, S) and identities (B, 3, S, S): (B, 1, t, s, s) for each scale."""
        x = video.transpose(1, 2)
        if self.conditional:
            identity = identity[:, :, None].expand_as(x)  # type: ignore[index]  # given where it is a condition
            x = torch.cat([identity, DIFFERENCE_GAIN * (x - identity)], 1)  # (B, 6, T, S, S)
        logits: list[torch.Tensor] = []
        time_stride = 1 if video.shape[1] <= 16 else 2
        # On a CPU, torch 2.14 leaves the gradients of 3-D convolutions in bfloat16 uninitialised.
        with torch.autocast("cpu", enabled=False):
            for layers in self.scales:
                if logits:
                    x = F.avg_pool3d(x, 3, (time_stride, 2, 2), 1, count_include_pad=False)
                logits.append(self._patch_logits(layers, x.contiguous(memory_format=torch.channels_last_3d)))
        return logits

    def _patch_logits(self, layers, x):
        for k, layer in enumerate(layers):
            x = layer(x)
            if k in (1, 2, 3) and self.norm == "instance":
                x = F.instance_norm(x)
            if k < len(layers) - 1:
                x = F.leaky_relu(x, 0.2)
        return x


class ImageDiscriminator(nn.Module):
    """Image discriminator with a feature head for the contrastive loss; keeps the identity, as in MoCoGAN-HD.

    size      side S of the images
    width     channels of the first layer
    features  F, width of the features

    Departure from MoCoGAN-HD: strided convolutions with spectral normalisation replace BigGAN's residual discriminator.
    """

    def __init__(self, size: int, width: int = 64, features: int = 256) -> None:
        super().__init__()
        channels = [3, *(width * min(2**k, 8) for k in range(max(1, round(math.log2(size)) - 2)))]
        self.trunk = nn.Sequential(
            *(
                part
                for pair in zip(channels, channels[1:])
                for part in (spectral_norm(nn.Conv2d(*pair, 4, 2, 1)), nn.LeakyReLU(0.2))
            )
        )
        self.logit = spectral_norm(nn.Linear(channels[-1], 1))
        self.features = nn.Sequential(
            spectral_norm(nn.Linear(channels[-1], features)), nn.ReLU(), spectral_norm(nn.Linear(features, features))
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N,) and unit-length features (N, F) of images (N, 3, S, S)."""
        pooled = self.trunk(images).sum((2, 3))
        return self.logit(pooled)[:, 0], F.normalize(self.features(pooled), dim=1)


def _check_choice(name, value, choices):
    if value not in choices:
        raise TalkheadError(f"{name} {value!r}: unknown; take {', '.join(choices[:-1])} or {choices[-1]}")
