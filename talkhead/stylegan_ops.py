"""Convolution with 3x3 kernels in a quarter of the multiplications: F(4x4, 3x3), as matrix products of plain torch.

Every tile of 4x4 results hangs on 6x6 numbers. Brought to another basis, these are multiplied number by number with the
kernel in that basis: 36 products where the definition takes 144. Between the numbers of one place in all tiles and the
channels that is a matrix product, which every processor does well. Rounding differs from the definition's by about 1e-5 of the
largest result in float32, where a few layers of a generator are seen as hundredths of a grey level.

Source: Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", §4.3 for the three matrices.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

TILE, SIDE = 4, 6  # results and inputs of a tile, down and across
PART = 1_500_000  # numbers of tiles or kernels worked on together, so that they stay in the cache, and malloc need not map them anew
FEWEST_CHANNELS, SMALLEST = 128, 32  # below, changing the basis costs more than the products save

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


def pays(x, weight):
    """Whether `conv3x3` can do this convolution, and faster than torch: on a CPU, without gradients, of many channels.

    x        float (N, C, H, W), H rows of results or H − 2
    weight   float (O, C, k, k)
    """
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and x.shape[3] >= SMALLEST
        and x.shape[3] % TILE == 0
        and not torch.is_autocast_enabled("cpu")
    )


def conv3x3(x, weight, edge=True):
    """What F.conv2d(x, weight, padding=1) gives; without `edge`, padding=(0, 1): the first and last row get no result.

    x        float32 (N, C, H, W), W a multiple of 4
    weight   float32 (O, C, 3, 3)
    returns  float32 (N, O, H or H − 2, W), channels last in memory
    """
    count, channels, height, width = x.shape
    height, across = height if edge else height - 2, width // TILE
    down = -(-height // TILE)
    to_input, to_kernel, to_output = _bases()
    size = max(1, PART // (SIDE**2 * channels))
    kernels = [
        (to_kernel @ part.reshape(-1, 9).T).view(SIDE**2, -1, channels).transpose(1, 2) for part in weight.split(size)
    ]
    y = x.new_empty(count, down * TILE, width, len(weight))
    rows = max(1, PART // (SIDE**2 * across * channels))
    for n in range(count):
        for top in range(0, down, rows):
            tiles = (to_input @ _tiles(x[n], top, min(rows, down - top), edge)).view(SIDE**2, -1, channels)
            place = y[n, top * TILE : (top + rows) * TILE].view(-1, TILE, across, TILE, len(weight))
            for kernel, part in zip(kernels, place.split(size, -1)):
                products = to_output @ torch.bmm(tiles, kernel).flatten(1)  # (16, tiles · O)
                part.copy_(products.view(TILE, TILE, -1, across, kernel.shape[2]).permute(2, 0, 3, 1, 4))
    return y[:, :height].permute(0, 3, 1, 2)


def _tiles(x, top, rows, edge):
    """The 6x6 numbers that so many rows of tiles hang on: of a picture (C, H, W) to (36, tiles · C)."""
    channels, height, width = x.shape
    first = top * TILE - edge
    last = first + rows * TILE + 2
    inside = x[:, max(first, 0) : last].permute(1, 2, 0)  # (rows, W, C)
    inside = F.pad(inside, (0, 0, 1, 1, max(-first, 0), max(last - height, 0)))
    down, across, _ = inside.stride()
    shape = SIDE, SIDE, rows, width // TILE, channels
    return inside.as_strided(shape, (down, across, TILE * down, TILE * across, 1)).reshape(SIDE**2, -1)


@lru_cache(1)
def _bases():
    """The changes of basis for the numbers of a tile at once: (36, 36), (36, 9) and (16, 36)."""
    return [
        torch.kron(matrix, matrix)
        for matrix in (torch.tensor(rows, dtype=torch.float32) for rows in (_INPUT, _KERNEL, _OUTPUT))
    ]


FOLDING = ("cuda", "mps")  # devices on which the blur is folded into the weights
GAIN = math.sqrt(2)  # after an activation, so that the variance stays


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
    if pays(x, weight):
        return conv3x3(x, weight, edge)
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


def _wide(x):
    """Half precision to float32; what is wider stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
