"""Convolution with 3x3 kernels in a quarter of the multiplications: F(4x4, 3x3), as matrix products of plain torch.

Every tile of 4x4 results hangs on 6x6 numbers. Brought to another basis, these are multiplied number by number with the
kernel in that basis: 36 products where the definition takes 144. Between the numbers of one place in all tiles and the
channels that is a matrix product, which every processor does well. Rounding differs from the definition's by about 1e-5 of the
largest result in float32, where a few layers of a generator are seen as hundredths of a grey level.

Source: Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", §4.3 for the three matrices.
"""

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
