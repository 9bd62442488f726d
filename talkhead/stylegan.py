"""StyleGAN2 config-F: the image generator, its critic, and how the two are trained.

Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN"; thesis §2.4.1, §3.3.1.
Plain torch operations only, and some ways to spend them well that do not change the picture:

- Without gradients, a large picture is drawn in strips of rows: what lies between two operations stays in the cache.
- On a CPU, where multiplying is what takes time, the blur beside an up- or downsampling convolution is a cheap filter of
  its own. Elsewhere memory is what takes time, and the blur is folded into the weights: a 3x3 kernel and the 4x4 filter
  [1, 3, 3, 1] make one 6x6 kernel, four times the work on an image that is read once.
- Without gradients on a CPU, wide layers convolve in another basis, where it takes fewer multiplications (winograd.py).
"""

import copy
import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from talkhead import ada, fid, metrics, winograd
from talkhead.distributed import Team
from talkhead.errors import TalkheadError
from talkhead.images import sheet, to_frames
from talkhead.latents import z_stream
from talkhead.training import Feed, fit

STRIP = (
    2**23
)  # bytes of activations worked on together; malloc maps blocks of 32 MB and more anew each time, page by page
FOLDING = ("cuda", "mps")  # devices on which the blur is folded into the weights
GAIN = math.sqrt(2)  # after an activation, so that the variance stays
MOUTH = (
    0.3125,
    0.6875,
    0.5625,
    0.8125,
)  # left, right, top, bottom of the mouth's surroundings in an FFHQ crop, of its side


def channel_widths(resolution, base=32768, largest=512):
    """Channels at 4², 8² … R²: config-F's `min(base / resolution, largest)`."""
    return [min(base // 2**k, largest) for k in range(2, int(math.log2(resolution)) + 1)]


def extended(channels, resolution):
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


def _taps(like, gain=1.0):
    """The filter [1, 3, 3, 1] down and across for each channel: (C, 1, 4, 4)."""
    line = torch.tensor((1.0, 3.0, 3.0, 1.0), device=like.device, dtype=like.dtype) * (math.sqrt(gain) / 8)
    return torch.outer(line, line).expand(like.shape[1], 1, 4, 4)


def _blurred(weight, gain=1.0):
    """(O, I, k, k) -> (O, I, k+3, k+3): the kernel that convolves and applies the [1, 3, 3, 1] filter at once."""
    size = weight.shape[-1]
    spread = torch.zeros(size + 3, size, device=weight.device, dtype=weight.dtype)
    for tap, value in enumerate((1, 3, 3, 1)):
        spread.diagonal(-tap).fill_(value * math.sqrt(gain) / 8)
    both = torch.kron(
        spread, spread
    )  # ((k+3)², k²): one small matrix product is far faster than a convolution of kernels
    return F.linear(weight.flatten(2), both).unflatten(2, (size + 3, size + 3))


def _conv(x, weight, edge=True):
    """Convolution that keeps the size. Without `edge`, the first and last row of x are neighbours that get no result."""
    if winograd.pays(x, weight):
        return winograd.conv3x3(x, weight, edge)
    reach = weight.shape[-1] // 2
    return F.conv2d(x, weight, padding=(reach if edge else 0, reach))


def _conv_up(x, weight, edge=True):
    """Convolution of 3x3 that doubles the size, and the blur that smooths it. `edge` as in `_conv`."""
    weight = weight.transpose(0, 1)
    if x.device.type in FOLDING:
        return F.conv_transpose2d(x, _blurred(weight, gain=4), stride=2, padding=(2 if edge else 4, 2))
    x = F.conv_transpose2d(x, weight, stride=2, padding=(0 if edge else 1, 0))
    return _Blur.apply(x, 4, (1 if edge else 0, 1))


def _conv_down(x, weight):
    """Blur, and the convolution that halves the size."""
    reach = weight.shape[-1] // 2
    if x.device.type in FOLDING:
        return F.conv2d(x, _blurred(weight), stride=2, padding=1 + reach)
    if reach == 0:
        return F.conv2d(_Blur.apply(x, 1, (1, 1), 2), weight)
    return F.conv2d(_Blur.apply(x, 1, (1 + reach, 1 + reach)), weight, stride=2)


class _Blur(torch.autograd.Function):
    """The filter [1, 3, 3, 1] down and across, times `gain`, with so much padding at either end; every pixel of the result, or every second.

    Its gradient is the same filter again; torch would look for the gradient of the taps too when it differentiates that.
    """

    @staticmethod
    def forward(ctx, x, gain, padding, stride=1):
        ctx.gain, ctx.padding, ctx.stride = gain, padding, stride
        return F.conv2d(x, _taps(x, gain), stride=stride, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        if ctx.stride == 1:
            return _Blur.apply(gradient, ctx.gain, [3 - ends for ends in ctx.padding]), None, None, None
        return _Spread.apply(gradient, ctx.gain, ctx.padding), None, None, None


class _Spread(torch.autograd.Function):
    """What carries a gradient back through `_Blur` of stride 2, to a picture of twice the size."""

    @staticmethod
    def forward(ctx, x, gain, padding):
        ctx.gain, ctx.padding = gain, padding
        return F.conv_transpose2d(x, _taps(x, gain), stride=2, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        return _Blur.apply(gradient, ctx.gain, ctx.padding, 2), None, None


def _rows(x, top, bottom):
    """Rows of a picture (N, C, H, W), from top up to bottom; what lies beyond it is zero."""
    inside = x[:, :, max(top, 0) : bottom]
    missing = max(-top, 0), max(bottom - x.shape[2], 0)
    return F.pad(inside, (0, 0, *missing)) if any(missing) else inside


def _activate(x, bias, clamp=None, gain=GAIN):
    """Leaky ReLU 0.2 of x + gain · bias, within ± clamp. x is overwritten, and holds the gain already: in weights it costs less."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return _clamped(F.leaky_relu_(x.add_((bias * gain).to(x.dtype).view(shape)), 0.2), clamp)


def _clamped(x, clamp):
    return x if clamp is None else x.clamp(-clamp, clamp)


def _config(clamp, **config):
    """What rebuilds a network; what it does not use is left out, so that older files and their like agree."""
    return config if clamp is None else config | {"clamp": clamp}


def _wide(x):
    """Half precision to float32; what is wider stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
    """Residual block of the critic: two convolutions, the second of stride 2, beside a strided 1x1."""

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
    """StyleGAN2's residual critic with minibatch standard deviation.

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


class _Average:
    """The slow copy of a generator that is used once training is done."""

    def __init__(self, generator, half_life):
        self.copy = copy.deepcopy(generator).eval().requires_grad_(False)
        self.half_life = half_life

    @torch.no_grad()
    def update(self, generator, batch, seen):
        # A short memory at first: an average over thousands of early images would lag far behind.
        half_life = min(self.half_life, 0.05 * max(seen, 1))
        keep = 0.5 ** (batch / max(half_life, 1e-8))
        torch._foreach_lerp_(list(self.copy.parameters()), list(generator.parameters()), 1 - keep)
        for slow, fast in zip(self.copy.buffers(), generator.buffers()):
            slow.copy_(fast)


@torch.no_grad()
def inherit(generator, state):
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


def train(
    images,
    out,
    generator,
    discriminator,
    *,
    steps,
    batch=16,
    lr=0.002,
    beta1=0.0,
    r1=10.0,
    r1_every=16,
    path_length=2.0,
    path_every=4,
    style_mixing=0.9,
    average_images=10_000,
    flip=False,
    freeze_d=0,
    encoder=None,
    encoder_lr=0.001,
    reconstruction=None,
    reconstruction_weight=10.0,
    mouth_weight=0.0,
    lips=None,
    lip_weight=0.0,
    feature_weight=1.0,
    sample_share=0.5,
    augment="none",
    augment_p=0.0,
    augment_target=0.6,
    augment_images=500_000,
    jitter=0.0,
    cool_down=0.0,
    fid_every=0,
    fid_images=10_000,
    fid_features="inception",
    reconstruct_only=0,
    accumulate=1,
    precision="float32",
    lineage=(),
    seed=0,
    device="cpu",
    **run,
):
    """Train a generator against a critic; yield log records. The file's "model" is the running average.

    images              datasets.Images
    generator, discriminator   networks of one resolution; what they hold is the start
    beta1               Adam's memory of gradients; StyleGAN2 has none, and reconstruction alone learns faster with 0.9
    r1, r1_every        weight γ of R1 and how often it is applied (lazily)
    path_length, path_every    weight of path-length regularisation, 0 to leave it out, and how often
    style_mixing        chance that an image takes its later layers from a second z
    average_images      half life of the running average, in images
    freeze_d            levels of the critic that stay as they are, from the pictures' own downwards: for a start from
                        weights of many pictures, and few new ones (Mo et al. 2020)
    augment             whether all that the critic sees is changed at random, so that it cannot learn few images by heart:
                        "none", "ada" (as often as it takes) or "fixed"
    augment_p           how often: the probability of each change, from 0 to 1, if fixed, and where ada starts a new run
    augment_target      what ada holds the mean sign of the critic's logits for real images at
    augment_images      so many would take its probability from 0 to 1
    jitter              probability with which a training image is moved and recoloured a little before anything learns from it (augmentation.jitter)
    cool_down           share of the steps, the last ones, over which all learning rates fall to nothing along a cosine: generator and encoder
                        come to rest together, where the running average is of the generator alone
    encoder             images -> w_plus; if given, it is trained with the generator to reconstruct the images, and
                        the critic judges reconstructions too
    sample_share        share of a fake batch that is drawn from z, where there is an encoder; the rest are reconstructions
    reconstruction      distance of two image batches -> (N,); needed with an encoder
    encoder_lr          its learning rate; 0 holds it still, so that latents keep their meaning while the pictures improve
    mouth_weight        weight of the same distance between the mouths alone: an aligned face has its mouth in one place
    lips, lip_weight    distance of the lips of two image batches -> (N,), such as losses.LipDistance, and its weight
    feature_weight      weight of the distance between the critic's activations of image and reconstruction
    reconstruct_only    first so many steps reconstruct and leave the critic alone
    fid_every           steps between two measurements of FID and KID against the images, and one at the end; 0 for none. The
                        file's "model" is then the best average by FID, unless an encoder learns along: it fits the last one
    fid_images          pictures that the average draws for it, from z of their own, always the same; and as many of the
                        images, or all. FID of few is too large: only numbers of equally many pictures may be compared
    fid_features        "inception" or "mobilenet", for the weights in torch's hub cache, or a feature network as in fid.py
    accumulate          turns in which a batch is worked on, to fit into memory: the result is the same
    precision           "float32", or "bfloat16" or "float16" for forward and backward passes under autocast; R1 and
                        path length are always float32
    lineage             fingerprints of the generators whose encoders and speech models fit this one too
    run                 how training.fit logs and saves; its `samples` are faces drawn from the same z every time, and with an
                        encoder pictures over their reconstructions
    yields              {"step", "seconds", "images", losses…}, and "fid", "kid" and "fid_features", their network, where measured
    raises              TalkheadError as training.fit does, and at once if Inception's weights are not there

    Source: thesis §3.3.1.2, §4.2.2.1; Karras et al. 2020 for the losses.
    Departure: the encoder, its reconstruction loss and the critic's feature distance (Larsen et al. 2016) are ours: they
    make a generator out of few images in hours on a CPU, and are off unless an encoder is given. Path lengths are compared
    with their mean before the step, not after it, so that parts of a batch need not wait for each other. Augmentation
    leaves the reconstruction loss alone; the feature distance is between image and reconstruction changed alike.
    """
    team = Team(batch, accumulate, precision, device, whole=4)
    trainer = _Trainer(
        images, generator.to(device), discriminator.to(device), encoder and encoder.to(device), team, locals()
    )
    state = {
        "model": trainer.average.copy,
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimizer": trainer.g_optimizer,
        "discriminator_optimizer": trainer.d_optimizer,
        "scalars": trainer.scalars,
    }
    if encoder is not None:
        state |= {"encoder": encoder, "encoder_optimizer": trainer.e_optimizer}
    header = {
        "kind": "generator",
        "config": generator.config | ({"lineage": sorted(lineage)} if lineage else {}),
        "perceptual": getattr(reconstruction, "name", None),
        "learnt_from": _kind(images),
    }
    checks = {}
    if fid_every:
        fid = _Fid(images, trainer.average.copy, fid_images, fid_features, seed, device)
        header |= {"fid_images": fid_images, "fid_features": fid.network.name}
        checks = {
            "validate": fid,
            "validate_every": fid_every,
            "keep_best": "fid" if encoder is None or encoder_lr == 0 else None,
        }
    yield from fit(
        trainer.step,
        state,
        steps=steps,
        out=out,
        header=header,
        team=team,
        seed=seed,
        feed=trainer.feed,
        draw=trainer.draw,
        **checks,
        **run,
    )


def _kind(images):
    """What kind of pictures these are, if all are of one: "film", "still", "moments"."""
    kinds = {origin.kind for origin in getattr(images, "origins", ())}
    return kinds.pop() if len(kinds) == 1 else None


class _Fid:
    """How far the pictures of a generator are from training images, as a feature network sees both. Both are looked at as bytes."""

    def __init__(self, images, generator, count, network, seed, device):
        self.network = fid.named(network, device)
        # A copy remembers an order of the images for itself: the Feed's thread looks up another meanwhile.
        self.images, self.generator, self.count, self.seed, self.device = (
            copy.copy(images),
            generator,
            count,
            seed,
            device,
        )
        self.real = None  # features of the images
        if min(count, len(images)) < 2:
            raise TalkheadError(
                f"FID of {min(count, len(images))} pictures: it compares two or more; pass more, or leave fid_every out"
            )
        metrics.warn_of_few(min(count, len(images)), self.network)

    def __call__(self):
        if self.real is None:
            batches = (self.images.batch(index, metrics.TOGETHER, self.seed) for index in itertools.count())
            self.real = self._seen(batches, min(self.count, len(self.images)))
        return metrics.compare_features(self.real, self._seen(self._drawn(), self.count), self.network)

    def _seen(self, batches, count):
        cloud = metrics.Seen(self.network)
        for batch in itertools.islice(batches, math.ceil(count / metrics.TOGETHER)):
            cloud.look(to_frames(batch))
        return cloud.features()[:count]

    @torch.no_grad()
    def _drawn(self):
        random, count = z_stream(self.seed), metrics.TOGETHER
        while True:
            z = torch.randn(count, self.generator.z_dim, generator=random).to(self.device)
            yield self.generator(
                z, noise=lambda side: torch.randn(count, 1, side, side, generator=random).to(self.device)
            )


class _Scalars:
    """Running numbers that a checkpoint must keep."""

    def __init__(self, **values):
        self.values = values

    def state_dict(self):
        return dict(self.values)

    def load_state_dict(self, values):
        self.values |= values  # what a file of an older version does not have starts anew


class _Trainer:
    """One optimiser step of each network, in StyleGAN2's order: generator, its regulariser, critic, its regulariser."""

    def __init__(self, images, generator, discriminator, encoder, team, options):
        self.generator, self.discriminator, self.encoder, self.team = generator, discriminator, encoder, team
        self.options = {
            key: options[key]
            for key in options
            if key not in ("images", "generator", "discriminator", "encoder", "team")
        }
        if encoder is not None and options["reconstruction"] is None:
            raise TalkheadError("an encoder is to be trained along: pass reconstruction, the distance that it lowers")
        if generator.resolution != discriminator.config["resolution"]:
            raise TalkheadError(
                f"generator is {generator.resolution}², discriminator {discriminator.config['resolution']}²; give both one resolution"
            )
        ada.check(options["augment"], options["augment_p"], options["jitter"])
        self.device = team.device
        self.average = _Average(generator, options["average_images"])
        self.g_optimizer = _lazy_adam(generator, options, options["path_every"] if options["path_length"] else 0)
        self.d_optimizer = _lazy_adam(discriminator, options, options["r1_every"])
        self.learning = _above(discriminator, options["freeze_d"])
        self.g_optimizers = [self.g_optimizer]
        self.rates = [
            (self.g_optimizer, self.g_optimizer.param_groups[0]["lr"]),
            (self.d_optimizer, self.d_optimizer.param_groups[0]["lr"]),
        ]
        self.samples = team.batch  # how many of the fakes are drawn from z
        if encoder is not None:
            self._take_along(encoder)
        adaptive = (
            {"augment": float(options["augment_p"]), "signs": 0, "judged": 0} if options["augment"] == "ada" else {}
        )
        self.scalars = _Scalars(path_mean=0.0, **adaptive)
        self.feed = Feed(
            lambda index: [
                images.batch(index, team.batch, options["seed"], options["flip"], share) for share in team.shares
            ]
        )
        self.shown = images.batch(0, 8, options["seed"]) if encoder is not None else None

    def _take_along(self, encoder):
        rate, parts = self.options["encoder_lr"], self.team.shares[0].of
        self.e_optimizer = torch.optim.Adam(encoder.parameters(), lr=rate)
        if rate > 0:
            self.g_optimizers.append(self.e_optimizer)
            self.rates.append((self.e_optimizer, rate))
        encoder.requires_grad_(rate > 0).train(rate > 0)
        self.team.share_statistics(encoder)
        self.samples = round(self.team.batch * self.options["sample_share"])
        if self.samples % parts:
            raise TalkheadError(
                f"sample_share: {self.samples} of {self.team.batch} pictures cannot be cut into {parts} parts; pass a multiple"
            )

    def _latents(self, count, share):
        """w_plus of fresh z, some with two styles."""
        generator = self.generator
        z = torch.cat([share.randn(count, generator.z_dim), share.randn(count, generator.z_dim)]).to(self.device)
        first, second = generator.mapping(z).chunk(2)
        self.drawn.append(first[:, 0].detach().float().mean(0))
        cut = torch.randint(1, generator.num_ws, (count,))
        cut[torch.rand(count) >= self.options["style_mixing"]] = generator.num_ws
        early = (torch.arange(generator.num_ws) < share(cut)[:, None]).to(self.device)
        return torch.where(early[..., None], first, second)

    def _pictures(self, w_plus, count, share):
        """Pictures of latents, with fresh noise in each."""
        return self.generator.synthesis(w_plus, lambda side: share.randn(count, 1, side, side, device=self.device))

    def step(self, index):
        options, descend = self.options, self.team.descend
        real = self._jittered([batch.to(self.device) for batch in self.feed(index)])
        self._set_rates(index)
        adversarial = self.encoder is None or index >= options["reconstruct_only"]
        record, fakes = {"images": (index + 1) * options["batch"]}, []
        self.drawn = []  # means of W
        self._judge(False)
        record |= descend(
            lambda share: self._generator_loss(share, real[share.turn], adversarial, fakes), *self.g_optimizers
        )
        self._judge(True)
        if adversarial:
            if options["path_length"] and index % options["path_every"] == 0:
                record |= descend(self._path_loss, self.g_optimizer, scaled=False)
                self._remember_path(record["path_length"])
            record |= descend(
                lambda share: self._critic_loss(share, real[share.turn], fakes[share.turn]), self.d_optimizer
            )
            if index % options["r1_every"] == 0:
                record |= descend(lambda share: self._r1_loss(share, real[share.turn]), self.d_optimizer, scaled=False)
            if options["augment"] != "none":
                record["augment"] = self._probability()
            if options["augment"] == "ada":
                self._adapt(record["real_signs"])
        if self.drawn:
            self.generator.w_avg.lerp_(self.team.mean(torch.stack(self.drawn).mean(0)), 0.002)
        self.average.update(self.generator, options["batch"], record["images"])
        return record

    def _jittered(self, turns):
        if not self.options["jitter"]:
            return turns
        start, changed = torch.randint(2**62, ()).item(), []
        for images, share in zip(turns, self.team.shares):
            torch.manual_seed(start)  # every share draws for the whole batch
            changed.append(ada.jitter(images, self.options["jitter"], share))
        return changed

    def _set_rates(self, index):
        if self.options["cool_down"]:
            left = min((self.options["steps"] - index) / (self.options["cool_down"] * self.options["steps"]), 1.0)
            for optimizer, rate in self.rates:
                optimizer.param_groups[0]["lr"] = rate * (0.5 - 0.5 * math.cos(math.pi * left))

    def _judge(self, learning):
        self.discriminator.requires_grad_(False)
        for parameter in self.learning:
            parameter.requires_grad_(learning)

    def _probability(self):
        return self.scalars.values["augment"] if self.options["augment"] == "ada" else float(self.options["augment_p"])

    def _changes(self, share):
        """Random changes for this share of a batch that the critic is to see."""
        return (
            None if self.options["augment"] == "none" else ada.draw(self.options["batch"], self._probability(), share)
        )

    def _adapt(self, signs):
        """Count the signs of a step's logits for real images; after every few steps, move the probability."""
        values, batch = self.scalars.values, self.options["batch"]
        values["signs"] += round(
            self.team.mean(signs).item() * batch
        )  # a whole number, in however many parts it was summed
        values["judged"] += 1
        if values["judged"] == ada.EVERY:
            values["augment"] = ada.adapt(
                values["augment"],
                values["signs"] / (ada.EVERY * batch),
                batch,
                self.options["augment_target"],
                self.options["augment_images"],
            )
            values["signs"] = values["judged"] = 0

    def _generator_loss(self, share, real, adversarial, fakes):
        options, parts, loss, record = self.options, [], 0.0, {}
        batch, samples = options["batch"], self.samples
        with self.team.autocast():
            if adversarial and samples:
                parts.append(self._pictures(self._latents(samples, share), samples, share))
            if self.encoder is not None:
                rebuilt = self._pictures(self.encoder(real), batch, share)
                loss = loss + self._reconstruction(rebuilt.float(), real, record)
                parts.append(rebuilt[: (batch - samples) // share.of])
            fake = torch.cat(parts)
            if adversarial:
                changes = self._changes(share)
                logits, seen = self.discriminator(_changed(fake, changes), features=True)
                realism = F.softplus(-logits).mean()
                loss = loss + realism
                record["generator"] = realism.detach()
                if self.encoder is not None and options["feature_weight"]:
                    loss = loss + options["feature_weight"] * self._feature_distance(
                        seen, real, changes, samples // share.of
                    )
        fakes.append(fake.detach().float())
        return loss, record

    def _reconstruction(self, rebuilt, real, record):
        options = self.options
        distance = options["reconstruction"](rebuilt, real).mean()
        record["reconstruction"] = distance.detach()
        loss = options["reconstruction_weight"] * distance
        if options["mouth_weight"]:
            left, right, top, bottom = (round(edge * self.generator.resolution) for edge in MOUTH)
            mouth = options["reconstruction"](
                rebuilt[..., top:bottom, left:right], real[..., top:bottom, left:right]
            ).mean()
            record["mouth"] = mouth.detach()
            loss = loss + options["mouth_weight"] * mouth
        if options["lip_weight"]:
            lips = options["lips"](rebuilt, real).mean()
            record["lips"] = lips.detach()
            loss = loss + options["lip_weight"] * lips
        return loss

    def _feature_distance(self, seen, real, changes, samples):
        rebuilt = len(real) - samples
        alike = changes and {name: values[samples:] for name, values in changes.items()}
        with torch.no_grad():
            _, wanted = self.discriminator(_changed(real[:rebuilt], alike), features=True)
        return sum(F.l1_loss(ours[samples:].float(), theirs.float()) for ours, theirs in zip(seen, wanted)) / len(
            wanted
        )

    def _path_loss(self, share):
        options, count = self.options, max(1, self.options["batch"] // 2)
        w_plus = self._latents(count, share)
        images = self._pictures(w_plus, count, share)
        weights = share.randn(count, *images.shape[1:], device=self.device) / self.generator.resolution
        (grad,) = torch.autograd.grad((images * weights).sum(), w_plus, create_graph=True)
        lengths = grad.square().sum(2).mean(1).sqrt()
        loss = (
            (lengths - self.scalars.values["path_mean"]).square().mean()
            * options["path_length"]
            * options["path_every"]
        )
        return loss, {"path_length": lengths.detach().mean()}

    def _remember_path(self, length):
        before = self.scalars.values["path_mean"]
        self.scalars.values["path_mean"] = before + 0.01 * (self.team.mean(length).item() - before)

    def _critic_loss(self, share, real, fake):
        with self.team.autocast():
            fake_logits = self.discriminator(_changed(fake, self._changes(share)))
            real_logits = self.discriminator(_changed(real, self._changes(share)))
            loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        logits = {"real_logits": real_logits.detach().mean(), "fake_logits": fake_logits.detach().mean()}
        return loss, {"discriminator": loss.detach()} | logits | {"real_signs": real_logits.detach().sign().mean()}

    def _r1_loss(self, share, real):
        real = real.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(
            self.discriminator(_changed(real, self._changes(share))).sum(), real, create_graph=True
        )
        penalty = grad.square().sum((1, 2, 3)).mean()
        return penalty * self.options["r1"] / 2 * self.options["r1_every"], {"r1": penalty.detach()}

    @torch.no_grad()
    def draw(self):
        """What the average draws: three rows from z, and with an encoder a row of pictures over their reconstructions."""
        average, random = self.average.copy, z_stream(self.options["seed"])
        rows = [average(torch.randn(8, average.z_dim, generator=random).to(self.device)) for _ in range(3)]
        if self.encoder is not None:
            training = self.encoder.training
            rows += [self.shown, average.synthesis(self.encoder.eval()(self.shown.to(self.device)))]
            self.encoder.train(training)
        return sheet(*rows)


def _changed(images, changes):
    return images if changes is None else ada.augment(images, changes)


def _above(discriminator, frozen):
    """The critic's parameters but for those of so many levels from the pictures on; the first holds the colours too."""
    levels = [
        [discriminator.from_rgb, discriminator.from_rgb_bias],
        *(list(block.parameters()) for block in discriminator.blocks),
    ]
    if frozen > len(discriminator.blocks):
        raise TalkheadError(
            f"freeze_d {frozen}: this critic has {len(discriminator.blocks)} levels to freeze; pass fewer"
        )
    still = {id(parameter) for level in levels[: frozen + 1] for parameter in level} if frozen else set()
    return [parameter for parameter in discriminator.parameters() if id(parameter) not in still]


def _lazy_adam(network, options, every):
    """Adam as StyleGAN2 sets it when a regulariser is applied only every so many steps."""
    ratio = every / (every + 1) if every else 1.0
    return torch.optim.Adam(
        network.parameters(), lr=options["lr"] * ratio, betas=(options["beta1"] ** ratio, 0.99**ratio), fused=True
    )
