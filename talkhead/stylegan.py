"""StyleGAN2 config-F: the image generator, its discriminator, and how the two are trained.

Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN"; thesis §2.4.1, §3.3.1.
Plain torch operations only, and some ways to spend them well that do not change the picture:

- Without gradients, a large picture is drawn in strips of rows: what lies between two operations stays in the cache.
- On a CPU, where multiplying is what takes time, the blur beside an up- or downsampling convolution is a cheap filter of
  its own. Elsewhere memory is what takes time, and the blur is folded into the weights: a 3x3 kernel and the 4x4 filter
  [1, 3, 3, 1] make one 6x6 kernel, four times the work on an image that is read once.
- Without gradients on a CPU, wide layers convolve in another basis, where it takes fewer multiplications (stylegan_ops.conv3x3).
"""

import copy
import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from talkhead.errors import TalkheadError
from talkhead.stylegan_ops import GAIN, _activate, _clamped, _conv, _conv_down, _conv_up, _rows, _taps, _wide

STRIP = (
    2**23
)  # bytes of activations worked on together; malloc maps blocks of 32 MB and more anew each time, page by page


def channel_widths(resolution, base=32768, largest=512):
    """Channels at 4², 8² … R²: config-F's `min(base / resolution, largest)`."""
    return [min(base // 2**k, largest) for k in range(2, int(math.log2(resolution)) + 1)]


def extend_widths(channels, resolution):
    """Widths for another resolution than they were made for: the same at the levels that both have.

    channels     widths at 4², 8² …
    resolution   a power of two
    returns      list of int: fewer; or for each level more half of the one before, but no less than 16 unless that was. Those
                 of config F go on as config F's
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
    """What rebuilds a network; what it does not use is left out, so that older files and their like agree."""
    return config if clamp is None else config | {"clamp": clamp}


class _Linear(nn.Module):
    """A linear layer whose learning rate is equalised: weights are N(0, 1) and scaled on use."""

    def __init__(self, inputs, outputs, bias=0.0, lr_multiplier=1.0, activate=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.scale, self.lr_multiplier, self.activate = lr_multiplier / math.sqrt(inputs), lr_multiplier, activate

    def forward(self, x):
        if self.activate:
            return _activate(F.linear(x, self.weight * (GAIN * self.scale)), self.bias * self.lr_multiplier)
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_multiplier)


class _ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, and whose output variance is brought back to one.

    Scaling the input and the output of one shared convolution gives the same image as a convolution per sample, and
    needs no grouped kernels.
    """

    def __init__(self, inputs, outputs, kernel, w_dim, up=False, demodulate=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = _Linear(w_dim, inputs, bias=1)
        self.scale, self.demodulate = 1 / math.sqrt(inputs * kernel**2), demodulate
        self.convolve = _conv_up if up else _conv

    def forward(self, x, w, edge=True, gain=1.0, noise=None):
        """x (N, I, H, W), w (N, w_dim) -> (N, O, H, W), or twice the size, times gain, plus noise; `edge` as in `_conv`."""
        style = self.affine(w) * self.scale  # (N, I)
        scale = self._gain(style, gain) if self.demodulate else None  # (N, O)
        if self._folds(x):
            folded = style if scale is None else scale.T * style  # (1 or O, I)
            y = self.convolve(x, self.weight * folded[..., None, None].to(x.dtype), edge)
            return y if noise is None else y.add_(noise.to(y.dtype))
        y = self.convolve(x * style.to(x.dtype)[:, :, None, None], self.weight, edge)
        if scale is None:
            return y
        scale = scale.to(y.dtype)[:, :, None, None]
        return y * scale if noise is None else torch.addcmul(noise.to(y.dtype), y, scale)

    def _folds(self, x):
        """Whether style and gain are better multiplied into the weights, where there is one picture: if there are fewer of them."""
        return len(x) == 1 and not torch.is_grad_enabled() and x.numel() > self.weight.numel()

    def _gain(self, style, gain):
        """What brings the variance of each output channel to gain²: (N, O)."""
        with torch.autocast(style.device.type, enabled=False):
            power = F.linear(_wide(style).square(), _wide(self.weight).square().sum((2, 3)))
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
        """What is added to every channel of each image, with the activation's gain: (N, 1, R, R)."""
        picture = self.noise_const * (mode == "const")
        if mode == "random":
            picture = picture.new_empty(count, 1, *picture.shape).normal_()
        elif callable(mode):
            picture = mode(len(picture))
        return (picture * (GAIN * self.noise_strength)).expand(count, 1, -1, -1)

    def forward(self, x, w, noise, edge=True):
        return _activate(self.conv(x, w, edge, GAIN, noise), self.bias, self.clamp)


class _ToRGB(nn.Module):
    """Features to colours."""

    def __init__(self, inputs, w_dim, clamp=None):
        super().__init__()
        self.clamp = clamp
        self.conv = _ModulatedConv(inputs, 3, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x, w):
        return _clamped(_wide(self.conv(x, w)).add_(self.bias.view(1, 3, 1, 1)), self.clamp)


def _draw(layers, x, styles, noises, last):
    """One level: features (N, C, H, H) -> features (N, C', 2H, 2H), None at the last, and what they add to the colours."""
    up, conv, to_rgb = layers
    size = 2 * x.shape[-1]
    row = size * len(up.bias) * x.element_size()  # bytes
    if torch.is_grad_enabled() or x.device.type != "cpu" or len(x) * size * row <= STRIP:
        x = conv(up(x, styles[0], noises[0]), styles[1], noises[1])
        return x, to_rgb(x, styles[2])
    features = None if last else x.new_empty(len(x), size, size, len(up.bias)).permute(0, 3, 1, 2)
    colours = _wide(x.new_empty(len(x), size, size, 3)).permute(0, 3, 1, 2)
    rows = min(size, max(16, STRIP // row // 4 * 4))
    for n, top in itertools.product(range(len(x)), range(0, size, rows)):
        # The second convolution looks one row further than its strip, and the first makes its rows in pairs.
        bottom, start, end = min(size, top + rows), max(0, top - 2), min(size, top + rows + 2)
        w, noise = [style[n : n + 1] for style in styles], [picture[n : n + 1] for picture in noises]
        y = up(_rows(x[n : n + 1], start // 2 - 1, end // 2 + 1), w[0], noise[0][:, :, start:end], edge=False)
        y = conv(_rows(y, top - 1 - start, bottom + 1 - start), w[1], noise[1][:, :, top:bottom], edge=False)
        colours[n, :, top:bottom] = to_rgb(y, w[2])[0]
        if not last:
            features[n, :, top:bottom] = y[0]
    return features, colours


class Generator(nn.Module):
    """StyleGAN2's generator.

    resolution       side of the image, a power of two from 8
    channels         widths at 4², 8² … R²; None gives config-F's
    z_dim, w_dim     widths of Z and W
    mapping_layers   fully connected layers from Z to W
    clamp            largest size of an activation, and of what a level adds to the colours; None sets no limit.
                     NVIDIA trains with 256, so that half precision holds them

    `num_ws` is L = 2·log2(R) − 2; `w_avg` (w_dim,) is the mean of W; `config` rebuilds the network.

    Source: thesis §2.4.1, §3.3.1; Karras et al. 2020, appendix B.
    """

    def __init__(self, resolution, channels=None, z_dim=512, w_dim=512, mapping_layers=8, clamp=None):
        super().__init__()
        channels = _check(resolution, channels)
        self.config = _config(
            clamp, resolution=resolution, channels=channels, z_dim=z_dim, w_dim=w_dim, mapping_layers=mapping_layers
        )
        self.resolution, self.z_dim, self.w_dim = resolution, z_dim, w_dim
        self.num_ws = 2 * len(channels)
        self.mapping_net = nn.Sequential(
            *(
                _Linear(z_dim if k == 0 else w_dim, w_dim, lr_multiplier=0.01, activate=True)
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

    def mapping(self, z, psi=1.0):
        """z (N, z_dim) -> w_plus (N, L, w_dim), truncated towards `w_avg` by psi (1 = not at all)."""
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        w = self.mapping_net(z)
        if psi != 1.0:
            w = self.w_avg.lerp(w, psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def synthesis(self, w_plus, noise="const"):
        """w_plus (N, L, w_dim) -> images (N, 3, R, R), about [-1, 1].

        noise    "const" (the stored pictures), "random" (fresh each call), "none", or a function that is given a side R
                 and returns pictures (N, 1, R, R)
        raises   TalkheadError if L or the width differs, or noise is another word
        """
        if w_plus.dim() != 3 or tuple(w_plus.shape[1:]) != (self.num_ws, self.w_dim):
            raise TalkheadError(
                f"latents of shape {tuple(w_plus.shape)}: this {self.resolution}² generator wants "
                f"(N, {self.num_ws}, {self.w_dim}); use latents made with it"
            )
        if noise not in ("const", "random", "none") and not callable(noise):
            raise TalkheadError(f"noise {noise!r}: must be const, random or none")
        x = self.const.expand(len(w_plus), -1, -1, -1)
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        pictures = [conv.noise(noise, len(x)) for conv in self.convs]
        x = self.convs[0](x, w_plus[:, 0], pictures[0])
        rgb = self.rgbs[0](x, w_plus[:, 1])
        for k in range(1, len(self.rgbs)):
            layers = self.convs[2 * k - 1], self.convs[2 * k], self.rgbs[k]
            styles = w_plus[:, 2 * k - 1 : 2 * k + 2].unbind(1)
            x, delta = _draw(
                layers, x, (*styles, styles[-1])[:3], pictures[2 * k - 1 : 2 * k + 1], last=k == len(self.rgbs) - 1
            )
            rgb = delta.add_(F.conv_transpose2d(rgb, _taps(rgb, gain=4), stride=2, padding=1, groups=3))
        return rgb

    def forward(self, z, psi=1.0, noise="const"):
        return self.synthesis(self.mapping(z, psi), noise)

    def shallow(self, side):
        """This generator as far as a smaller side, of which it has the weights in common: takes the same latents, and is faster.

        Its pictures are those that the whole generator has at that level, before finer levels have added what they do to them.
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


# Image generators by the architecture that the config in a weights file names. One is an nn.Module with `config`, `resolution`, `z_dim`, `w_dim`, `num_ws`,
# `w_avg`, `mapping(z, psi)`, `synthesis(w_plus, noise)` and `shallow(side)`, as Generator has them.
GENERATORS = {"stylegan2": Generator}


def build(config):
    """The generator that a `config` describes, untrained.

    config   {"arch": a name in GENERATORS, "resolution": int, …}; without "arch", StyleGAN2's
    raises   TalkheadError if the architecture is unknown; TypeError if the config does not fit it
    """
    config = dict(config)
    arch = config.pop("arch", "stylegan2")
    if arch not in GENERATORS:
        raise TalkheadError(
            f"generator of architecture {arch!r}: unknown to this version; take {', '.join(GENERATORS)}"
        )
    return GENERATORS[arch](**config)


class _DownBlock(nn.Module):
    """Residual block of the discriminator: two convolutions, the second of stride 2, beside a strided 1x1."""

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
        y = _activate(F.conv2d(x, self.conv0 * (GAIN / fan), padding=1), self.bias0, self.clamp)
        # The sum of two branches is divided by √2, which takes the second activation's gain away.
        y = _activate(_conv_down(y, self.conv1 / fan), self.bias1, self.clamp and self.clamp / GAIN, gain=1.0)
        return _conv_down(x, self.skip / math.sqrt(2 * inputs)).add_(y)


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator with minibatch standard deviation.

    images (N, 3, R, R) -> logits (N, 1); with `features=True` also the activations of each level. Options as Generator's.

    Source: thesis §2.4.1; Karras et al. 2020, appendix B.
    """

    def __init__(self, resolution, channels=None, clamp=None):
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
        self.linear = _Linear(last * 16, last, activate=True)
        self.out = _Linear(last, 1)

    def forward(self, images, features=False):
        x = images
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        x = _activate(F.conv2d(x, self.from_rgb * (GAIN / math.sqrt(3))), self.from_rgb_bias, self.clamp)
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        x = torch.cat([x, self._spread(x)], 1)
        x = _activate(
            F.conv2d(x, self.conv * (GAIN / math.sqrt(x.shape[1] * 9)), padding=1), self.conv_bias, self.clamp
        )
        logits = _wide(self.out(_wide(self.linear(x.flatten(1)))))
        return (logits, seen) if features else logits

    @staticmethod
    def _spread(x):
        """Standard deviation over groups of four samples, one number a group, as a channel: (N, 1, 4, 4)."""
        group = next(size for size in (4, 3, 2, 1) if len(x) % size == 0)
        y = _wide(x).reshape(group, -1, *x.shape[1:])
        y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # (N / group,)
        return y.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])


@torch.no_grad()
def load_matching_weights(generator, state):
    """Give a generator what fits of another one's weights; what it has beyond that starts without effect.

    generator   Generator of any resolution
    state       state dict of a generator of the same widths at the levels that both have
    raises      TalkheadError if nothing but the mapping network fits

    Colours of the levels that only the new generator has are zeroed, so that it first draws the old one's picture, larger.
    """
    own = generator.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if "convs.0.conv.weight" not in fitting:
        raise TalkheadError(
            "the weights to start from have other channels at 4x4; give the same --channels at the levels that both have"
        )
    generator.load_state_dict(own | fitting)
    for level, rgb in enumerate(generator.rgbs):
        if f"rgbs.{level}.conv.weight" not in fitting:
            rgb.conv.weight.zero_()
