"""StyleGAN2 config-F: generator and discriminator.

Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN"; thesis §2.4.1, §3.3.1.
Plain torch operations only, with optimisations that do not change the image:

- Without gradients on a CPU, large images are synthesized in strips of rows, so that activations stay in the cache.
- On a CPU, limited by arithmetic, the resampling filter of an up- or downsampling convolution is a separate cheap
  operation. Elsewhere, limited by memory, it is folded into the weights: a 3x3 kernel and the 4x4 filter [1, 3, 3, 1]
  make one 6x6 kernel, four times the arithmetic but one pass over the image.
- Without gradients on a CPU, wide layers use Winograd convolution (stylegan_ops.conv3x3).
"""

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from talkhead.errors import TalkheadError
from talkhead.stylegan_ops import (
    GAIN,
    at_least_float32,
    bias_act,
    clamped,
    conv_down,
    conv_same,
    conv_up,
    crop_rows,
    resample_filter,
)

# Bytes of a strip's activations. Malloc maps blocks of 32 MB and more anew each time, page by page.
STRIP_BYTES = 2**23


def channel_widths(resolution: int, base: int = 32768, largest: int = 512) -> list[int]:
    """Channels at 4², 8² … R² in config-F: `min(base / resolution, largest)`."""
    return [min(base // 2**k, largest) for k in range(2, int(math.log2(resolution)) + 1)]


def extend_widths(channels: Sequence[int], resolution: int) -> list[int]:
    """Channels for another resolution, the same at the levels that both have.

    channels     channels at 4², 8² …
    resolution   a power of two
    returns      list of int. Each further level has half the channels of the one before, down to 16; config-F's
                 channels are continued as in config-F
    """
    wanted = int(math.log2(resolution)) - 1
    if list(channels) == channel_widths(2 ** (len(channels) + 1)):
        return channel_widths(resolution)
    widths = list(channels[:wanted])
    while len(widths) < wanted:
        widths.append(max(widths[-1] // 2, min(widths[-1], 16)))
    return widths


def _check(resolution, channels):
    levels = int(math.log2(resolution)) if resolution > 0 else 0
    if resolution < 8 or 2**levels != resolution:
        raise TalkheadError(f"resolution {resolution}: must be a power of two from 8 upwards")
    channels = list(channels or channel_widths(resolution))
    if len(channels) != levels - 1 or min(channels) < 1:
        raise TalkheadError(
            f"channels {channels}: wanted {levels - 1} positive widths, one for each of 4², 8² … {resolution}²"
        )
    return channels


def _config(clamp, **config):
    """Config dict without an unused `clamp`, which older files do not have."""
    return config if clamp is None else config | {"clamp": clamp}


class Linear(nn.Module):
    """Linear layer with equalised learning rate: weights are N(0, 1) and scaled on use."""

    def __init__(self, inputs, outputs, bias=0.0, lr_multiplier=1.0, activate=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.scale, self.lr_multiplier, self.activate = lr_multiplier / math.sqrt(inputs), lr_multiplier, activate

    def forward(self, x):
        if self.activate:
            return bias_act(F.linear(x, self.weight * (GAIN * self.scale)), self.bias * self.lr_multiplier)
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_multiplier)


class _ModulatedConv(nn.Module):
    """Modulated and demodulated convolution.

    Input and output of one shared convolution are scaled, instead of the kernel of each sample: the same result without
    grouped convolution.
    """

    def __init__(self, inputs, outputs, kernel, w_dim, up=False, demodulate=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = Linear(w_dim, inputs, bias=1)
        self.scale, self.demodulate = 1 / math.sqrt(inputs * kernel**2), demodulate
        self.convolve = conv_up if up else conv_same

    def forward(self, x, w, pad_rows=True, gain=1.0, noise=None):
        """Convolve x (N, I, H, W) by the style of w (N, w_dim) to (N, O, H, W), or to twice the size if `up`.

        gain       standard deviation of the output, if demodulated
        noise      (N, 1, H', W') added to the output
        pad_rows   as in `conv_same`
        """
        style = self.affine(w) * self.scale  # (N, I)
        scale = self._gain(style, gain) if self.demodulate else None  # (N, O)
        if self._folds(x):
            folded = style if scale is None else scale.T * style  # (1 or O, I)
            y = self.convolve(x, self.weight * folded[..., None, None].to(x.dtype), pad_rows)
            return y if noise is None else y.add_(noise.to(y.dtype))
        y = self.convolve(x * style.to(x.dtype)[:, :, None, None], self.weight, pad_rows)
        if scale is None:
            return y
        scale = scale.to(y.dtype)[:, :, None, None]
        return y * scale if noise is None else torch.addcmul(noise.to(y.dtype), y, scale)

    def _folds(self, x):
        """True if scaling the weights is cheaper than scaling x: one image, larger than the weights."""
        return len(x) == 1 and not torch.is_grad_enabled() and x.numel() > self.weight.numel()

    def _gain(self, style, gain):
        """Demodulation factors (N, O), which bring the variance of each output channel to gain²."""
        with torch.autocast(style.device.type, enabled=False):
            power = F.linear(at_least_float32(style).square(), at_least_float32(self.weight).square().sum((2, 3)))
            return (power + 1e-8).rsqrt() * gain


class _StyledConv(nn.Module):
    """Modulated convolution, noise, bias and activation."""

    def __init__(self, inputs, outputs, resolution, w_dim, up=False, clamp=None):
        super().__init__()
        self.clamp = clamp
        self.conv = _ModulatedConv(inputs, outputs, 3, w_dim, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def noise(self, mode, count):
        """Noise (N, 1, R, R) times its strength and the activation's gain; `mode` as in `Generator.synthesis`."""
        noise = self.noise_const * (mode == "const")
        if mode == "random":
            noise = noise.new_empty(count, 1, *noise.shape).normal_()
        elif callable(mode):
            noise = mode(len(noise))
        return (noise * (GAIN * self.noise_strength)).expand(count, 1, -1, -1)

    def forward(self, x, w, noise, pad_rows=True):
        return bias_act(self.conv(x, w, pad_rows, GAIN, noise), self.bias, self.clamp)


class _ToRGB(nn.Module):
    """Modulated 1x1 convolution from features to RGB, without demodulation."""

    def __init__(self, inputs, w_dim, clamp=None):
        super().__init__()
        self.clamp = clamp
        self.conv = _ModulatedConv(inputs, 3, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x, w):
        return clamped(at_least_float32(self.conv(x, w)).add_(self.bias.view(1, 3, 1, 1)), self.clamp)


def _synthesize_level(layers, x, styles, noises, last, window):
    """One level of the synthesis network, in strips of rows if large.

    x        features (N, C, H, H)
    window   (top, left, bottom, right), pixels of 2H, multiples of 4; no more is needed at the last level
    returns  features (N, C', 2H, 2H), None at the last level, and the level's RGB (N, 3, 2H, 2H), zero outside `window`
    """
    up, conv, to_rgb = layers
    size = 2 * x.shape[-1]
    first, left, height, right = window if last else (0, 0, size, size)
    row_bytes = size * len(up.bias) * x.element_size()
    whole = (first, left, height, right) == (0, 0, size, size) and len(x) * size * row_bytes <= STRIP_BYTES
    if torch.is_grad_enabled() or x.device.type != "cpu" or whole:
        x = conv(up(x, styles[0], noises[0]), styles[1], noises[1])
        return x, to_rgb(x, styles[2])
    features = None if last else x.new_empty(len(x), size, size, len(up.bias)).permute(0, 3, 1, 2)
    rgb = at_least_float32(x.new_zeros(len(x), 3, size, size))
    rows = min(size, max(16, STRIP_BYTES // row_bytes // 4 * 4))
    # The columns beyond a window that its own depend on, and some that a wrong border reaches.
    outer = slice(max(0, left - 8), min(size, right + 8))
    x = x[..., outer.start // 2 : outer.stop // 2]
    for n, top in itertools.product(range(len(x)), range(first, height, rows)):
        # The second convolution needs one row beyond its strip, and the first makes rows in pairs.
        bottom, start, end = min(height, top + rows), max(0, top - 2), min(size, top + rows + 2)
        w, noise = [style[n : n + 1] for style in styles], [each[n : n + 1, ..., outer] for each in noises]
        y = up(crop_rows(x[n : n + 1], start // 2 - 1, end // 2 + 1), w[0], noise[0][:, :, start:end], pad_rows=False)
        y = conv(crop_rows(y, top - 1 - start, bottom + 1 - start), w[1], noise[1][:, :, top:bottom], pad_rows=False)
        y = y[..., left - outer.start : right - outer.start]
        rgb[n, :, top:bottom, left:right] = to_rgb(y, w[2])[0]
        if not last:
            features[n, :, top:bottom] = y[0]
    return features, rgb


class Generator(nn.Module):
    """StyleGAN2's generator.

    resolution       side R of the image, a power of two from 8
    channels         channels at 4², 8² … R²; None is config-F's
    z_dim, w_dim     widths of Z and W
    mapping_layers   fully connected layers from Z to W
    clamp            limit of the absolute value of activations and of each level's RGB; None is no limit. NVIDIA trains
                     with 256, for half precision

    `num_ws` is L = 2·log2(R) − 2; `w_avg` (w_dim,) is the mean of W; `config` rebuilds the network.

    Source: thesis §2.4.1, §3.3.1; Karras et al. 2020, appendix B.
    """

    config: dict[str, Any]
    w_avg: torch.Tensor

    def __init__(
        self,
        resolution: int,
        channels: list[int] | None = None,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        channels = _check(resolution, channels)
        self.config = _config(
            clamp, resolution=resolution, channels=channels, z_dim=z_dim, w_dim=w_dim, mapping_layers=mapping_layers
        )
        self.resolution, self.z_dim, self.w_dim = resolution, z_dim, w_dim
        self.num_ws = 2 * len(channels)
        self.mapping_net = nn.Sequential(
            *(
                Linear(z_dim if k == 0 else w_dim, w_dim, lr_multiplier=0.01, activate=True)
                for k in range(mapping_layers)
            )
        )
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.const = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        convs, rgbs = (
            [_StyledConv(channels[0], channels[0], 4, w_dim, clamp=clamp)],
            [_ToRGB(channels[0], w_dim, clamp)],
        )
        for k, (narrow, wide) in enumerate(zip(channels, channels[1:])):
            side = 8 * 2**k
            convs += [
                _StyledConv(narrow, wide, side, w_dim, up=True, clamp=clamp),
                _StyledConv(wide, wide, side, w_dim, clamp=clamp),
            ]
            rgbs.append(_ToRGB(wide, w_dim, clamp))
        self.convs, self.rgbs = nn.ModuleList(convs), nn.ModuleList(rgbs)

    def mapping(self, z: torch.Tensor, psi: float = 1.0) -> torch.Tensor:
        """Map z (N, z_dim) to w_plus (N, L, w_dim), truncated towards `w_avg` by psi (1 is no truncation)."""
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        w = self.mapping_net(z)
        if psi != 1.0:
            w = self.w_avg.lerp(w, psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def synthesis(
        self,
        w_plus: torch.Tensor,
        noise: str | Callable[[int], torch.Tensor] = "const",
        window: tuple[int, int, int, int] | None = None,
    ) -> torch.Tensor:
        """Synthesize images (N, 3, R, R), about [-1, 1], of w_plus (N, L, w_dim).

        noise    "const" (stored with the weights), "random" (new in each call), "none", or a function of a side R that
                 returns noise (N, 1, R, R)
        window   (top, left, bottom, right), pixels of R: where the detail of the last level is wanted. Elsewhere it may
                 be left out, which is faster on a CPU without gradients; None is everywhere
        raises   TalkheadError if L, the width or noise does not fit
        """
        if w_plus.dim() != 3 or tuple(w_plus.shape[1:]) != (self.num_ws, self.w_dim):
            raise TalkheadError(
                f"latents of shape {tuple(w_plus.shape)}: this {self.resolution}² generator wants "
                f"(N, {self.num_ws}, {self.w_dim}); use latents made with it"
            )
        if noise not in ("const", "random", "none") and not callable(noise):
            raise TalkheadError(f"noise {noise!r}: must be const, random or none")
        side = 2 << len(self.rgbs)
        top, left, bottom, right = window or (0, 0, side, side)
        window = top // 4 * 4, left // 4 * 4, -(-bottom // 4) * 4, -(-right // 4) * 4
        x = self.const.expand(len(w_plus), -1, -1, -1)
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        noises = [conv.noise(noise, len(x)) for conv in self.convs]  # type: ignore[operator]  # a list's are any Module
        x = self.convs[0](x, w_plus[:, 0], noises[0])
        rgb = self.rgbs[0](x, w_plus[:, 1])
        for k in range(1, len(self.rgbs)):
            layers = self.convs[2 * k - 1], self.convs[2 * k], self.rgbs[k]
            styles = w_plus[:, 2 * k - 1 : 2 * k + 2].unbind(1)
            last = k == len(self.rgbs) - 1
            x, delta = _synthesize_level(
                layers, x, (*styles, styles[-1])[:3], noises[2 * k - 1 : 2 * k + 1], last, window
            )
            rgb = delta.add_(F.conv_transpose2d(rgb, resample_filter(rgb, gain=4), stride=2, padding=1, groups=3))
        return rgb

    def forward(
        self, z: torch.Tensor, psi: float = 1.0, noise: str | Callable[[int], torch.Tensor] = "const"
    ) -> torch.Tensor:
        return self.synthesis(self.mapping(z, psi), noise)

    def affine_weights(self) -> list[torch.Tensor]:
        """Weights (styles, w_dim) of the affine layer of each latent, L in all.

        It is the convolution's, and of the last latent ToRGB's: a ToRGB beside a convolution is left out.
        """
        return [layer.conv.affine.weight.detach() for layer in (*self.convs, self.rgbs[-1])]  # type: ignore[union-attr]

    def shallow(self, side: int) -> "Generator":
        """Generator of the levels up to a side, sharing weights and latents with this one; faster.

        Its images are the sum of the RGB outputs of these levels.
        raises   TalkheadError if there is no level of that side
        """
        levels = 1 + (side // 4).bit_length() - 1
        if not (1 < levels <= len(self.rgbs) and 4 << levels - 1 == side):
            raise TalkheadError(
                f"side {side}: this generator has levels of 8, 16 … {self.resolution}; take one of these"
            )
        lower = copy.copy(self)
        lower._modules = self._modules | {
            "convs": nn.ModuleList(self.convs[: 2 * levels - 1]),
            "rgbs": nn.ModuleList(self.rgbs[:levels]),
        }
        return lower


class _DownBlock(nn.Module):
    """Residual block of the discriminator: two 3x3 convolutions, the second of stride 2, and a strided 1x1 skip."""

    def __init__(self, inputs, outputs, clamp=None):
        super().__init__()
        self.clamp = clamp
        self.conv0 = nn.Parameter(torch.randn(inputs, inputs, 3, 3))
        self.conv1 = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.skip = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias0 = nn.Parameter(torch.zeros(inputs))
        self.bias1 = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        inputs = x.shape[1]
        fan = math.sqrt(inputs * 9)
        y = bias_act(F.conv2d(x, self.conv0 * (GAIN / fan), padding=1), self.bias0, self.clamp)
        # The sum of both branches is divided by √2, which cancels the second activation's gain.
        y = bias_act(conv_down(y, self.conv1 / fan), self.bias1, self.clamp and self.clamp / GAIN, gain=1.0)
        return conv_down(x, self.skip / math.sqrt(2 * inputs)).add_(y)


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator with minibatch standard deviation.

    Maps images (N, 3, R, R) to logits (N, 1); with `features=True` also returns the activations of each level. Options
    as Generator's.

    Source: thesis §2.4.1; Karras et al. 2020, appendix B.
    """

    config: dict[str, Any]

    def __init__(self, resolution: int, channels: list[int] | None = None, clamp: float | None = None) -> None:
        super().__init__()
        channels = _check(resolution, channels)
        self.config, self.clamp = _config(clamp, resolution=resolution, channels=channels), clamp
        down = channels[::-1]
        self.from_rgb = nn.Parameter(torch.randn(down[0], 3, 1, 1))
        self.from_rgb_bias = nn.Parameter(torch.zeros(down[0]))
        self.blocks = nn.ModuleList(_DownBlock(a, b, clamp) for a, b in zip(down, down[1:]))
        last = channels[0]
        self.conv = nn.Parameter(torch.randn(last, last + 1, 3, 3))
        self.conv_bias = nn.Parameter(torch.zeros(last))
        self.linear = Linear(last * 16, last, activate=True)
        self.out = Linear(last, 1)

    def forward(
        self, images: torch.Tensor, features: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        x = images
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        x = bias_act(F.conv2d(x, self.from_rgb * (GAIN / math.sqrt(3))), self.from_rgb_bias, self.clamp)
        activations = []
        for block in self.blocks:
            x = block(x)
            activations.append(x)
        x = torch.cat([x, self._minibatch_std(x)], 1)
        x = bias_act(F.conv2d(x, self.conv * (GAIN / math.sqrt(x.shape[1] * 9)), padding=1), self.conv_bias, self.clamp)
        logits = at_least_float32(self.out(at_least_float32(self.linear(x.flatten(1)))))
        return (logits, activations) if features else logits

    @staticmethod
    def _minibatch_std(x):
        """Standard deviation over groups of four samples, averaged to one number a group: a channel (N, 1, 4, 4)."""
        group = next(size for size in (4, 3, 2, 1) if len(x) % size == 0)
        y = at_least_float32(x).reshape(group, -1, *x.shape[1:])
        y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # (N / group,)
        return y.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])


@torch.no_grad()
def load_matching_weights(generator: Generator, state: Mapping[str, torch.Tensor]) -> None:
    """Copy the weights that fit from another generator, such as one of lower resolution.

    generator   Generator of any resolution
    state       state dict of a generator of the same channels at the levels that both have
    raises      TalkheadError if only the mapping network fits

    RGB layers of new levels are zeroed, so that the generator starts with the other one's image, enlarged.
    """
    own = generator.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if "convs.0.conv.weight" not in fitting:
        raise TalkheadError(
            "initial weights: other channels at 4x4; give the same --channels at the levels that both have"
        )
    generator.load_state_dict(own | fitting)
    for level, rgb in enumerate(generator.rgbs):
        if f"rgbs.{level}.conv.weight" not in fitting:
            rgb.conv.weight.zero_()  # type: ignore[union-attr, operator]  # a list's modules are any Module
