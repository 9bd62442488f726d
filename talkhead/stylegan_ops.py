"""Operations of StyleGAN2's layers: Winograd 3x3 convolution, resampling convolutions, bias and activation.

The Winograd convolution F(4x4, 3x3) computes each tile of 4x4 outputs from 6x6 inputs. In a transformed basis inputs
and kernel are multiplied element by element: 36 products instead of 144. Over all tiles and channels that is a batched
matrix product for each of the 36 elements. In float32 results differ from direct convolution by about 1e-5 of the
largest one, hundredths of a grey level in the image.

Source: Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", §4.3 for the three matrices.
"""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

OUT_TILE, IN_TILE = 4, 6  # side of a tile of outputs, and of the inputs that it depends on
CHUNK = 1_500_000  # elements of transformed tiles or kernels per matrix product: fits the cache, avoids large mallocs
MIN_CHANNELS, MIN_WIDTH = 128, 32  # below these the transforms cost more than the products save

# The matrices Bᵀ, G and Aᵀ of Lavin & Gray, for inputs, kernel and outputs.
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """True if `conv3x3` supports this convolution and is faster than torch: CPU, float32, no gradients, many channels.

    x        float (N, C, H, W)
    weight   float (O, C, k, k)
    """
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and x.shape[3] >= MIN_WIDTH
        and x.shape[3] % OUT_TILE == 0
        and not torch.is_autocast_enabled("cpu")
    )


def conv3x3(x: torch.Tensor, weight: torch.Tensor, pad_rows: bool = True) -> torch.Tensor:
    """Winograd convolution, equal to F.conv2d(x, weight, padding=1); without `pad_rows`, to padding=(0, 1).

    x        float32 (N, C, H, W), W a multiple of 4
    weight   float32 (O, C, 3, 3)
    returns  float32 (N, O, H, W), without `pad_rows` (N, O, H − 2, W), channels last in memory
    """
    count, channels, height, width = x.shape
    height, across = height if pad_rows else height - 2, width // OUT_TILE  # across, down: numbers of tiles
    down = -(-height // OUT_TILE)
    to_input, to_kernel, to_output = _bases()
    size = max(1, CHUNK // (IN_TILE**2 * channels))
    kernels = [
        (to_kernel @ part.reshape(-1, 9).T).view(IN_TILE**2, -1, channels).transpose(1, 2)
        for part in weight.split(size)
    ]
    y = x.new_empty(count, down * OUT_TILE, width, len(weight))
    rows = max(1, CHUNK // (IN_TILE**2 * across * channels))
    for n in range(count):
        for top in range(0, down, rows):
            tiles = (to_input @ _tiles(x[n], top, min(rows, down - top), pad_rows)).view(IN_TILE**2, -1, channels)
            target = y[n, top * OUT_TILE : (top + rows) * OUT_TILE].view(-1, OUT_TILE, across, OUT_TILE, len(weight))
            for kernel, part in zip(kernels, target.split(size, -1)):
                products = to_output @ torch.bmm(tiles, kernel).flatten(1)  # (16, tiles · O)
                part.copy_(products.view(OUT_TILE, OUT_TILE, -1, across, kernel.shape[2]).permute(2, 0, 3, 1, 4))
    return y[:, :height].permute(0, 3, 1, 2)


def _tiles(x, top, rows, pad_rows):
    """Inputs (36, tiles · C) of `rows` rows of tiles, from tile row `top` of an image (C, H, W)."""
    channels, height, width = x.shape
    first = top * OUT_TILE - pad_rows
    last = first + rows * OUT_TILE + 2
    inside = x[:, max(first, 0) : last].permute(1, 2, 0)  # (rows, W, C)
    inside = F.pad(inside, (0, 0, 1, 1, max(-first, 0), max(last - height, 0)))
    down, across, _ = inside.stride()
    shape = IN_TILE, IN_TILE, rows, width // OUT_TILE, channels
    return inside.as_strided(shape, (down, across, OUT_TILE * down, OUT_TILE * across, 1)).reshape(IN_TILE**2, -1)


@lru_cache(1)
def _bases():
    """Transforms of flattened input tiles, kernels and output tiles: (36, 36), (36, 9) and (16, 36)."""
    return [
        torch.kron(matrix, matrix)
        for matrix in (torch.tensor(rows, dtype=torch.float32) for rows in (_INPUT, _KERNEL, _OUTPUT))
    ]


FOLDING = ("cuda", "mps")  # devices on which the resampling filter is folded into the weights
GAIN = math.sqrt(2)  # of the activation, which keeps the variance


def resample_filter(like: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Separable filter [1, 3, 3, 1], one copy for each channel of `like`: (C, 1, 4, 4)."""
    line = torch.tensor((1.0, 3.0, 3.0, 1.0), device=like.device, dtype=like.dtype) * (math.sqrt(gain) / 8)
    return torch.outer(line, line).expand(like.shape[1], 1, 4, 4)


def fold_filter(weight: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Kernel (O, I, k+3, k+3) of a convolution by weight (O, I, k, k) followed by the resampling filter."""
    size = weight.shape[-1]
    matrix = torch.zeros(size + 3, size, device=weight.device, dtype=weight.dtype)
    for tap, value in enumerate((1, 3, 3, 1)):
        matrix.diagonal(-tap).fill_(value * math.sqrt(gain) / 8)
    # ((k+3)², k²): one small matrix product is far faster than a convolution of kernels.
    matrix = torch.kron(matrix, matrix)
    return F.linear(weight.flatten(2), matrix).unflatten(2, (size + 3, size + 3))


def conv_same(x: torch.Tensor, weight: torch.Tensor, pad_rows: bool = True) -> torch.Tensor:
    """Convolution that keeps the size; without `pad_rows`, the border rows of x are only context and get no output."""
    if pays(x, weight):
        return conv3x3(x, weight, pad_rows)
    reach = weight.shape[-1] // 2
    if reach == 0 and x.device.type == "cpu" and not torch.is_grad_enabled():
        # Few outputs: a matrix product takes a third of the time.
        return (weight.flatten(1) @ x.permute(0, 2, 3, 1).flatten(1, 2).mT).unflatten(2, x.shape[2:])
    return F.conv2d(x, weight, padding=(reach if pad_rows else 0, reach))


def conv_up(x: torch.Tensor, weight: torch.Tensor, pad_rows: bool = True) -> torch.Tensor:
    """Transposed 3x3 convolution that doubles the size, then the resampling filter; `pad_rows` as in `conv_same`."""
    weight = weight.transpose(0, 1)
    if x.device.type in FOLDING:
        return F.conv_transpose2d(x, fold_filter(weight, gain=4), stride=2, padding=(2 if pad_rows else 4, 2))
    x = F.conv_transpose2d(x, weight, stride=2, padding=(0 if pad_rows else 1, 0))
    return Downsample.apply(x, 4, (1 if pad_rows else 0, 1))


def conv_down(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Resampling filter, then the convolution of stride 2 that halves the size."""
    reach = weight.shape[-1] // 2
    if x.device.type in FOLDING:
        return F.conv2d(x, fold_filter(weight), stride=2, padding=1 + reach)
    if reach == 0:
        return F.conv2d(Downsample.apply(x, 1, (1, 1), 2), weight)
    return F.conv2d(Downsample.apply(x, 1, (1 + reach, 1 + reach)), weight, stride=2)


class Downsample(torch.autograd.Function):
    """Resampling filter times `gain`, with `padding` (rows, columns) at either end and a stride of 1 or 2.

    Its gradient is a resampling filter too. Torch's own convolution would also compute gradients of the filter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gain: float, padding: tuple[int, int] | list[int], stride: int = 1
    ) -> torch.Tensor:
        ctx.gain, ctx.padding, ctx.stride = gain, padding, stride
        return F.conv2d(x, resample_filter(x, gain), stride=stride, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if ctx.stride == 1:
            return Downsample.apply(gradient, ctx.gain, [3 - size for size in ctx.padding]), None, None, None
        return Upsample.apply(gradient, ctx.gain, ctx.padding), None, None, None


class Upsample(torch.autograd.Function):
    """Transpose of `Downsample` with stride 2: an image of twice the size."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: float, padding: tuple[int, int] | list[int]) -> torch.Tensor:
        ctx.gain, ctx.padding = gain, padding
        return F.conv_transpose2d(x, resample_filter(x, gain), stride=2, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return Downsample.apply(gradient, ctx.gain, ctx.padding, 2), None, None


def crop_rows(x: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
    """Rows `top` to `bottom` (excluded) of images (N, C, H, W), zero outside of them."""
    inside = x[:, :, max(top, 0) : bottom]
    missing = max(-top, 0), max(bottom - x.shape[2], 0)
    return F.pad(inside, (0, 0, *missing)) if any(missing) else inside


def bias_act(x: torch.Tensor, bias: torch.Tensor, clamp: float | None = None, gain: float = GAIN) -> torch.Tensor:
    """Leaky ReLU (0.2) of x + gain · bias, clamped to ± clamp, in place. The gain of x is already in its weights."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return clamped(F.leaky_relu_(x.add_((bias * gain).to(x.dtype).view(shape)), 0.2), clamp)


def clamped(x: torch.Tensor, clamp: float | None) -> torch.Tensor:
    return x if clamp is None else x.clamp(-clamp, clamp)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
