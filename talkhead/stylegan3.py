"""StyleGAN3's generators, T and R, whose details move with the face instead of sticking to the pixels.

Source: Karras et al. 2021, "Alias-free generative adversarial networks"; thesis §6.1.
Plain torch operations only. There is no noise input, and no training.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.signal
import scipy.special
import torch
import torch.nn.functional as F
from torch import nn

from talkhead.errors import TalkheadError
from talkhead.stylegan import Linear

GAIN, SLOPE = math.sqrt(2), 0.2  # of the leaky ReLU


def channel_widths(layers: "Layers", base: int = 32768, largest: int = 512) -> list[int]:
    """Output channels of all layers but the last, by their cutoffs; R has twice the base and the largest width of T."""
    return [int(np.rint(min(base / 2 / cutoff, largest))) for cutoff in layers.cutoffs[:-1]]


class Layers:
    """Geometry of a generator's layers, the last of which is ToRGB.

    resolution       side R of the image, pixels
    count            layers without ToRGB
    critical         critically sampled layers at the end
    margin           pixels beyond the image on either side
    first_cutoff, first_stopband, last_stopband   frequencies of the first layer, in cycles per image, and the last
                     layer's stopband in cutoffs

    Lists with one entry per layer: `cutoffs`, `half_widths` of the transition band, `rates` (samples per image side)
    and `sizes` (samples with margins).

    Source: Karras et al. 2021, §3.2, appendix C.
    """

    def __init__(
        self,
        resolution: int,
        count: int = 14,
        critical: int = 2,
        margin: int = 10,
        first_cutoff: float = 2.0,
        first_stopband: float = 2**2.1,
        last_stopband: float = 2**0.3,
    ) -> None:
        exponents = np.minimum(np.arange(count + 1) / (count - critical), 1)
        last = resolution / 2
        cutoffs = first_cutoff * (last / first_cutoff) ** exponents
        stopbands = first_stopband * (last * last_stopband / first_stopband) ** exponents
        rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, resolution))))
        self.cutoffs = cutoffs.tolist()
        self.half_widths = (np.maximum(stopbands, rates / 2) - cutoffs).tolist()
        self.rates = rates.astype(int).tolist()
        self.sizes = [rate + 2 * margin for rate in self.rates[:-2]] + [resolution] * 2


def lowpass(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> torch.Tensor | None:
    """Low-pass filter, Kaiser-windowed: float32 (taps,), or (taps, taps) if radially symmetric; None of one tap.

    cutoff, width   centre and width of the transition band, in cycles per image, like the sampling rate

    Source: Karras et al. 2021, appendix C.1 and C.2.
    """
    if taps == 1:
        return None
    if not radial:
        return torch.as_tensor(scipy.signal.firwin(taps, cutoff, width=width, fs=rate), dtype=torch.float32)
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(x[:, None], x)
    window = np.kaiser(taps, scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(taps, width / (rate / 2))))
    kernel = scipy.special.j1(2 * cutoff * np.pi * radius) / (np.pi * radius) * np.outer(window, window)
    return torch.as_tensor(kernel / kernel.sum(), dtype=torch.float32)


def upsample(x: torch.Tensor, kernel: torch.Tensor | None, factor: int, low: int, high: int) -> torch.Tensor:
    """Insert zeros, pad, and filter by a symmetric separable kernel (taps,): (N, C, H, W) to `factor` times the side.

    low, high   padding before and after, in samples of the result; negative to crop
    """
    if kernel is None:
        return F.pad(x, (low, high, low, high))
    taps, channels = len(kernel), x.shape[1]
    kernel = (kernel * factor).to(x.dtype)
    for axis, shape in ((3, (1, taps)), (2, (taps, 1))):
        length = x.shape[axis] * factor + low + high - taps + 1
        stride = (1, factor) if axis == 3 else (factor, 1)
        x = F.conv_transpose2d(x, kernel.view(1, 1, *shape).expand(channels, 1, *shape), stride=stride, groups=channels)
        before = low - taps + 1
        pad = (before, length - before - x.shape[axis])
        x = F.pad(x, pad if axis == 3 else (0, 0, *pad))
    return x


def downsample(x: torch.Tensor, kernel: torch.Tensor | None, factor: int) -> torch.Tensor:
    """Filter by a symmetric kernel, (taps,) or (taps, taps), and keep one sample in `factor`, without padding."""
    if kernel is None:
        return x
    channels, kernel = x.shape[1], kernel.to(x.dtype)
    if kernel.ndim == 2:
        return F.conv2d(x, kernel.expand(channels, 1, -1, -1), stride=factor, groups=channels)
    taps = len(kernel)
    x = F.conv2d(x, kernel.view(1, 1, 1, taps).expand(channels, -1, -1, -1), stride=(1, factor), groups=channels)
    return F.conv2d(x, kernel.view(1, 1, taps, 1).expand(channels, -1, -1, -1), stride=(factor, 1), groups=channels)


class _Input(nn.Module):
    """Fourier features, turned and moved by the first latent and by a transform of the image."""

    def __init__(self, w_dim, channels, size, rate, bandwidth):
        super().__init__()
        self.size, self.rate, self.bandwidth = size, rate, bandwidth
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = Linear(w_dim, 4)
        with torch.no_grad():
            self.affine.weight.zero_()
            self.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        frequencies = torch.randn(channels, 2)
        radii = frequencies.norm(dim=1, keepdim=True)
        self.register_buffer("frequencies", frequencies / (radii * radii.square().exp().pow(0.25)) * bandwidth)
        self.register_buffer("phases", torch.rand(channels) - 0.5)
        self.register_buffer("transform", torch.eye(3))

    def forward(self, w, transform=None):
        transform = self.transform if transform is None else transform.to(w)
        cosine, sine, right, down = self.affine(w).unbind(1)
        length = torch.hypot(cosine, sine)
        cosine, sine, right, down = (value / length for value in (cosine, sine, right, down))
        turn = torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2)
        move = turn @ torch.stack([-right, -down], 1)[..., None]
        learnt = F.pad(torch.cat([turn, move], 2), (0, 0, 0, 1))
        learnt[:, 2, 2] = 1
        matrix = learnt @ transform
        phases = self.phases + (self.frequencies @ matrix[:, :2, 2:]).squeeze(2)
        frequencies = self.frequencies @ matrix[:, :2, :2]
        # A transform that enlarges the image's contents backwards can push frequencies out of the band.
        beyond = (frequencies.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)
        axis = (torch.arange(self.size, device=w.device) + 0.5 - self.size / 2) / self.rate
        across, below = (frequencies[..., k, None] * axis for k in (0, 1))  # (N, C, size)
        angles = across[:, :, None] + below[..., None] + phases[..., None, None]
        waves = torch.sin(angles * (2 * math.pi)) * (1 - beyond).clamp(0, 1)[..., None, None]
        return torch.einsum("oc,nchw->nohw", self.weight / math.sqrt(len(self.weight)), waves)


class _Layer(nn.Module):
    """Modulated convolution, and a leaky ReLU at a higher sampling rate between two filters; ToRGB has neither."""

    def __init__(self, w_dim, layers, index, channels, kernel, taps, oversampling, radial, critical, clamp, half):
        super().__init__()
        last, previous = index == len(layers.rates) - 1, max(index - 1, 0)
        inputs, outputs = channels[previous], 3 if last else channels[index]
        rate, rate_in = layers.rates[index], layers.rates[previous]
        between = max(rate, rate_in) * (1 if last else oversampling)
        self.up, self.down = between // rate_in, between // rate
        self.last, self.clamp, self.half, kernel = last, clamp, half, 1 if last else kernel
        self.affine = Linear(w_dim, inputs, bias=1)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("magnitude", torch.ones(()))  # mean square of the inputs, in training
        up_taps = taps * self.up if self.up > 1 and not last else 1
        down_taps = taps * self.down if self.down > 1 and not last else 1
        for name, count, at, round_one in (
            ("up_kernel", up_taps, previous, False),
            ("down_kernel", down_taps, index, radial and not critical),
        ):
            band = layers.cutoffs[at], 2 * layers.half_widths[at]
            self.register_buffer(name, lowpass(count, *band, between, round_one), persistent=False)
        total = (layers.sizes[index] - 1) * self.down + 1 - (layers.sizes[previous] + kernel - 1) * self.up
        total += up_taps + down_taps - 2
        self.low = (total + self.up) // 2
        self.high = total - self.low

    def forward(self, x, w):
        if self.half and x.device.type == "cuda":
            x = x.half()
        style = self.affine(w)
        x = upsample(self._convolve(x, style), self.up_kernel, self.up, self.low, self.high)
        if not self.last:
            x = F.leaky_relu(x, SLOPE) * GAIN
        if self.clamp is not None:
            x = x.clamp(-self.clamp, self.clamp)
        return downsample(x, self.down_kernel, self.down)

    def _convolve(self, x, style):
        """Scale input and output of one convolution for all samples, instead of the kernel of each."""
        weight, inputs = self.weight, self.weight[0].numel()
        if self.last:
            style, scale = style / math.sqrt(inputs), None
        else:
            weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
            style = style * style.square().mean(1, keepdim=True).rsqrt()
            scale = (F.linear(style.square(), weight.square().sum((2, 3))) + 1e-8).rsqrt()
        x = x * (style * self.magnitude.rsqrt()).to(x.dtype)[..., None, None]
        x = F.conv2d(x, weight.to(x.dtype), padding=weight.shape[2] - 1)
        if scale is not None:
            x = x * scale.to(x.dtype)[..., None, None]
        return x + self.bias.to(x.dtype)[:, None, None]


class Generator(nn.Module):
    """StyleGAN3's generator.

    resolution       side R of the image
    channels         output channels of all layers but ToRGB; None is T's, or with radial filters R's
    kernel           side of the convolutions' kernels: 3 is T's, 1 R's
    radial           radially symmetric filters before downsampling, as R has: the image can be turned, not only moved
    layers, critical, margin, first_cutoff, first_stopband, last_stopband   as in Layers
    taps             of the filters, in samples of the lower rate
    oversampling     of the leaky ReLUs
    clamp            limit of the absolute value of activations
    scale            of the image
    half_levels      on a GPU, layers of the this many highest resolutions compute in float16, as NVIDIA's do
    z_dim, w_dim, mapping_layers   as in stylegan.Generator

    `num_ws` is L = layers + 2: the first latent moves the Fourier features. Interface as in stylegan.Generator.

    Source: Karras et al. 2021, §3 and appendices C to F.
    """

    w_avg: torch.Tensor

    def __init__(
        self,
        resolution: int,
        channels: Sequence[int] | None = None,
        kernel: int = 3,
        radial: bool = False,
        layers: int = 14,
        critical: int = 2,
        margin: int = 10,
        first_cutoff: float = 2.0,
        first_stopband: float = 2**2.1,
        last_stopband: float = 2**0.3,
        taps: int = 6,
        oversampling: int = 2,
        clamp: float | None = 256.0,
        scale: float = 0.25,
        half_levels: int = 4,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 2,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        geometry = Layers(resolution, layers, critical, margin, first_cutoff, first_stopband, last_stopband)
        channels = list(channels or channel_widths(geometry, 32768 << radial, 512 << radial))
        if len(channels) != layers or min(channels) < 1:
            raise TalkheadError(
                f"channels {channels}: wanted {layers} positive widths, one for each layer but the last"
            )
        self.config |= {"arch": "stylegan3", "channels": channels}
        self.resolution, self.z_dim, self.w_dim, self.num_ws, self.scale = resolution, z_dim, w_dim, layers + 2, scale
        sizes = [z_dim] + [w_dim] * mapping_layers
        self.mapping_net = nn.Sequential(
            *(Linear(*pair, lr_multiplier=0.01, activate=True) for pair in zip(sizes, sizes[1:]))
        )
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.input = _Input(w_dim, channels[0], geometry.sizes[0], geometry.rates[0], geometry.cutoffs[0])
        shared = kernel, taps, oversampling, radial
        self.layers = nn.ModuleList(
            _Layer(
                w_dim, geometry, k, channels, *shared, k >= layers - critical, clamp, rate << half_levels > resolution
            )
            for k, rate in enumerate(geometry.rates)
        )

    def mapping(self, z: torch.Tensor, psi: float = 1.0) -> torch.Tensor:
        """Map z (N, z_dim) to w_plus (N, L, w_dim), truncated towards `w_avg` by psi (1 is no truncation)."""
        w = self.mapping_net(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())
        if psi != 1.0:
            w = self.w_avg.lerp(w, psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def synthesis(
        self,
        w_plus: torch.Tensor,
        noise: str | Callable[[int], torch.Tensor] = "const",
        transform: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Synthesize images (N, 3, R, R), about [-1, 1], of w_plus (N, L, w_dim).

        noise       as in stylegan.Generator; this network has none
        transform   (3, 3) or (N, 3, 3): takes a place in the image, in its sides from its centre, to the place of the
                    network's upright face that is drawn there; None is the file's own, of most files the identity
        raises      TalkheadError if L or the width does not fit
        """
        if w_plus.dim() != 3 or tuple(w_plus.shape[1:]) != (self.num_ws, self.w_dim):
            raise TalkheadError(
                f"latents of shape {tuple(w_plus.shape)}: this {self.resolution}² generator wants "
                f"(N, {self.num_ws}, {self.w_dim}); use latents made with it"
            )
        w = w_plus.unbind(1)
        x = self.input(w[0], transform)
        for layer, code in zip(self.layers, w[1:]):
            x = layer(x, code)
        return x.to(w_plus.dtype) * self.scale

    def forward(
        self, z: torch.Tensor, psi: float = 1.0, noise: str | Callable[[int], torch.Tensor] = "const"
    ) -> torch.Tensor:
        return self.synthesis(self.mapping(z, psi), noise)

    def affine_weights(self) -> list[torch.Tensor]:
        """Weights (styles, w_dim) of the affine layer of each latent, L in all."""
        return [layer.affine.weight.detach() for layer in (self.input, *self.layers)]  # type: ignore[union-attr]

    def shallow(self, side: int) -> "Generator":
        """Raise TalkheadError: no layer but the last of a StyleGAN3 makes an image."""
        raise TalkheadError(f"side {side}: a StyleGAN3 has images of {self.resolution}² only; pass that side")
