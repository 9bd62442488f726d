"""Adaptive discriminator augmentation (ADA), and a slight jitter of training images.

Real and generated images are transformed at random before the discriminator, with gradients. While the probability p of
a transform stays well below 1, the generator does not learn the transforms. `update_p` adapts p during training: it
rises while the discriminator overfits.

Source: Karras et al. 2020, "Training generative adversarial networks with limited data", §2.2, §3.1 and appendix B: the
pipeline "bgc", that is pixel blitting, geometry and colour.
Departure: the wavelet is symmetric, so that flips and 90° rotations are exact; and images are extended by endless
reflection, where the authors' code pads by one reflection and then black.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from talkhead.distributed import MicroBatch
from talkhead.errors import TalkheadError

INTERVAL = 4  # steps between updates of p
# Rotations before and after anisotropic scaling; at least one of them is applied with probability p.
ROTATIONS = ("rotate_pre", "rotate_post")

# Biorthogonal low-pass filters of Cohen, Daubechies & Feauveau 1992, 11 and 17 taps, from the middle tap outwards:
# upsampling followed by downsampling is the identity.
UP = (
    1.073257603581262,
    0.5909278771877559,
    -0.05708894343146367,
    -0.1113297215597202,
    0.0204601416386752,
    0.02040184437412048,
)
DOWN = (
    0.5840157522407559,
    0.297547906345713,
    -0.06650990062484066,
    -0.05463331368252055,
    0.03516647330654035,
    0.008439012039810085,
    -0.01201419666708012,
    -0.001353604703010013,
    0.001349747865010013,
)


def sample_params(count: int, p: float, share: MicroBatch = MicroBatch()) -> dict[str, torch.Tensor]:
    """Sample augmentation parameters for a batch; each transform is applied to an image with probability p.

    count    size N of the whole batch
    share    distributed.MicroBatch: parameters are sampled for the whole batch and returned for this part
    returns  {name: float64 (n, 1), or (n, 2) for x and y}; 0 where a transform is not applied: "xflip" and "lumaflip"
             0 or 1, "rotate90" 0 to 3, "xint" and "xfrac" (translation) in image sides, "scale", "aniso", "contrast"
             and "saturation" as log2, "rotate_pre", "rotate_post" and "hue" in radians, "brightness" added
    """

    def normal(std, columns=1):
        return std * torch.randn(count, columns, dtype=torch.float64)

    def uniform(limit, columns=1):
        return limit * (2 * torch.rand(count, columns, dtype=torch.float64) - 1)

    def choice(values):
        return torch.randint(values, (count, 1)).double()

    params = {
        "xflip": choice(2),
        "rotate90": choice(4),
        "xint": uniform(0.125, 2),
        "scale": normal(0.2),
        "rotate_pre": uniform(math.pi),
        "aniso": normal(0.2),
        "rotate_post": uniform(math.pi),
        "xfrac": normal(0.125, 2),
        "brightness": normal(0.2),
        "contrast": normal(0.5),
        "lumaflip": choice(2),
        "hue": uniform(math.pi),
        "saturation": normal(1.0),
    }
    probability = dict.fromkeys(params, p) | dict.fromkeys(ROTATIONS, 1 - math.sqrt(1 - p))
    return {
        name: share(torch.where(torch.rand(count, 1) < probability[name], value, 0.0)) for name, value in params.items()
    }


def augment(images: torch.Tensor, params: dict[str, torch.Tensor]) -> torch.Tensor:
    """Augment images; twice differentiable. Images without any transform stay bit for bit the same.

    images    float (N, 3, H, W) in [-1, 1]
    params    from `sample_params`, for these N
    returns   float32, or float64 if images are; (N, 3, H, W), may leave [-1, 1]
    """
    with torch.autocast(images.device.type, enabled=False):
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        images = _transform(_resampled, images, geometric_matrix(params, *images.shape[2:]))
        return _transform(_recolored, images, color_matrix(params))


def jitter(images: torch.Tensor, p: float, share: MicroBatch = MicroBatch()) -> torch.Tensor:
    """Jitter geometry and colours of training images slightly, to enlarge a set of few faces.

    images    float (N, 3, H, W) in [-1, 1], a micro-batch
    p         probability of the geometric jitter, and independently of the colour jitter
    share     distributed.MicroBatch: random numbers are drawn for the whole batch and used for this part
    returns   float32 (N, 3, H, W) in [-1, 1]. Standard deviations: rotation 0.05 radians, scale 3.5 %, translation
              1.25 % and smooth distortion 0.6 % of the side; saturation and gamma 18 %, brightness 8 %, each channel 4
              %
    """
    count = len(images) * share.of

    def normal(std, *shape):
        return std * share.randn(count, *shape).to(images.device)

    geometric, recolored = (share(torch.rand(count) < p).to(images.device) for _ in range(2))
    angle, scale, shift, distortion = normal(0.05), normal(0.035).exp(), normal(0.025, 2), normal(0.012, 2, 6, 6)
    saturation, gamma, light = (
        normal(0.18, 1, 1, 1).exp(),
        normal(0.18, 1, 1, 1).exp(),
        (normal(0.08, 1, 1, 1) + normal(0.04, 3, 1, 1)).exp(),
    )
    matrix = torch.stack(
        [scale * angle.cos(), -scale * angle.sin(), shift[:, 0], scale * angle.sin(), scale * angle.cos(), shift[:, 1]],
        1,
    ).view(-1, 2, 3)
    distortion = F.interpolate(distortion, images.shape[2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False) + distortion
    # Bicubic, because a resampled image must be as sharp as the others.
    resampled = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    images = torch.where(geometric[:, None, None, None], resampled, images).clamp(-1, 1)
    grey = images.mean(1, keepdim=True)
    colours = ((grey + (images - grey) * saturation) / 2 + 0.5).clamp(0, 1).pow(gamma) * light
    return torch.where(recolored[:, None, None, None], colours.clamp(0, 1) * 2 - 1, images)


def geometric_matrix(params: dict[str, torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Geometric transforms of `sample_params` as matrices: float64 (N, 3, 3).

    They map homogeneous pixel coordinates (x, y, 1), from the image's centre, x to the right and y down.
    """
    side = torch.tensor([width, height])
    matrix = torch.eye(3, dtype=torch.float64)
    for step in (
        _scaling(1 - 2 * params["xflip"], torch.ones_like(params["xflip"])),
        _rotation(params["rotate90"] * (math.pi / 2)),
        _translation((params["xint"] * side).round()),
        _scaling(params["scale"].exp2(), params["scale"].exp2()),
        _rotation(params["rotate_pre"]),
        _scaling(params["aniso"].exp2(), (-params["aniso"]).exp2()),
        _rotation(params["rotate_post"]),
        _translation(params["xfrac"] * side),
    ):
        matrix = step @ matrix
    return matrix


def color_matrix(params: dict[str, torch.Tensor]) -> torch.Tensor:
    """Colour transforms of `sample_params` as matrices on (red, green, blue, 1): float64 (N, 4, 4).

    Contrast scales colours, lumaflip reflects luma, hue rotates about the luma axis, saturation scales chroma.
    """
    identity, luma = torch.eye(3, dtype=torch.float64), torch.full((3, 3), 1 / 3, dtype=torch.float64)
    # Rotation of chroma by 90° about the luma axis.
    quarter = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    flip, hue, saturation = (params[name][..., None] for name in ("lumaflip", "hue", "saturation"))
    chroma = saturation.exp2()
    linear = identity - 2 * flip * luma + (chroma * hue.cos() - 1) * (identity - luma) + chroma * hue.sin() * quarter
    linear = linear * params["contrast"][..., None].exp2()
    matrix = torch.eye(4, dtype=torch.float64).repeat(len(linear), 1, 1)
    matrix[:, :3, :3] = linear
    matrix[:, :3, 3:] = linear @ params["brightness"][..., None].expand(-1, 3, 1)
    return matrix


def update_p(p: float, r_t: float, batch: int, target: float = 0.6, images: int = 500_000) -> float:
    """Augmentation probability for the next INTERVAL steps: raised if r_t is above the target, lowered if below.

    r_t      mean E[sign(D(real))] of the last steps: 0 if the discriminator guesses, 1 if it overfits
    images   number in which p can go from 0 to 1
    """
    move = INTERVAL * batch / images
    return min(max(p + move * ((r_t > target) - (r_t < target)), 0.0), 1.0)


def check(augment: str, p: float, jitter: float = 0.0) -> None:
    """Check options: `augment` is "none", "ada" or "fixed", p a probability that it uses, jitter a probability."""
    if not 0 <= jitter <= 1:
        raise TalkheadError(f"jitter {jitter}: is a probability; pass one from 0 to 1")
    if augment not in ("none", "ada", "fixed"):
        raise TalkheadError(f"augment {augment!r}: must be none, ada or fixed")
    if not 0 <= p <= 1:
        raise TalkheadError(f"augment_p {p}: is a probability; pass one from 0 to 1")
    if augment == "none" and p:
        raise TalkheadError(f"augment_p {p}: augment is none; pass augment as fixed, or as ada to start there")


def _transform(transform, images, matrices):
    """Apply a transform to the images whose matrix is not the identity."""
    rows = (matrices != torch.eye(matrices.shape[-1], dtype=matrices.dtype)).flatten(1).any(1).nonzero().flatten()
    if not len(rows):
        return images
    selected = rows.to(images.device)
    return images.index_copy(0, selected, transform(images[selected], matrices[rows]))


def _like(matrix, images):
    return matrix.to(images.dtype).to(images.device)


def _recolored(images, matrices):
    matrices = _like(matrices, images)
    return torch.baddbmm(matrices[:, :3, 3:], matrices[:, :3, :3], images.flatten(2)).view_as(images)


def _resampled(images, matrices):
    """Resample images by their matrices at twice the resolution, then downsample, against aliasing."""
    height, width = images.shape[2:]
    margin = len(DOWN) - 1
    # (N, 3, 2H - 1, 2W - 1)
    fine = _upsampling(height, images.dtype, images.device) @ images
    fine = fine @ _upsampling(width, images.dtype, images.device).T
    # affine_grid and grid_sample use coordinates from -1 to 1, the centres of the first and the last pixel.
    before = torch.tensor([1 / (width - 1), 1 / (height - 1), 1.0], dtype=matrices.dtype)
    after = torch.tensor([width - 1 + margin, height - 1 + margin, 1.0], dtype=matrices.dtype)
    # Translations are in fine pixels, hence the 2.
    source = torch.linalg.inv(matrices) * torch.tensor([[1.0, 1.0, 2.0]] * 2 + [[1.0] * 3], dtype=matrices.dtype)
    source = _like(before[:, None] * source * after, images)[:, :2]
    grid = F.affine_grid(
        source, [len(images), 3, 2 * (height + margin) - 1, 2 * (width + margin) - 1], align_corners=True
    )
    fine = _GridSample.apply(fine, grid)
    fine = _downsampling(height, images.dtype, images.device) @ fine
    return fine @ _downsampling(width, images.dtype, images.device).T


@lru_cache(32)
def _upsampling(side, dtype, device):
    """Matrix that upsamples a line of pixels by 2, reflected at its ends: (2 side - 1, side)."""
    matrix = torch.zeros(2 * side - 1, side, dtype=torch.float64)
    fine = torch.arange(2 * side - 1)
    for offset in range(1 - len(UP), len(UP)):
        source = (fine + offset).abs()
        source = torch.where(source > 2 * side - 2, 4 * side - 4 - source, source)
        even = source % 2 == 0
        matrix.index_put_(
            (fine[even], source[even] // 2), torch.tensor(UP[abs(offset)], dtype=torch.float64), accumulate=True
        )
    return matrix.to(dtype).to(device)


@lru_cache(32)
def _downsampling(side, dtype, device):
    """Matrix that downsamples by 2 a line padded by half the filter at either end: (side, 2 side + 15)."""
    taps = torch.tensor([*DOWN[:0:-1], *DOWN], dtype=torch.float64)
    matrix = torch.zeros(side, 2 * side - 2 + len(taps), dtype=torch.float64)
    for row in range(side):
        matrix[row, 2 * row : 2 * row + len(taps)] = taps
    return matrix.to(dtype).to(device)


class _GridSample(torch.autograd.Function):
    """Bilinear sampling with reflection, twice differentiable; torch's own is only once, in older versions."""

    @staticmethod
    def forward(ctx, images, grid):
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)

    @staticmethod
    def backward(ctx, gradient):
        return _GridScatter.apply(gradient, *ctx.saved_tensors, ctx.shape), None


class _GridScatter(torch.autograd.Function):
    """Transpose of `_GridSample`: scatters samples to the pixels that they came from, by the same weights."""

    @staticmethod
    def forward(ctx, samples, grid, shape):
        ctx.save_for_backward(grid)
        images = samples.new_empty(shape)  # only the shape is used, because sampling is linear
        return torch.ops.aten.grid_sampler_2d_backward(samples, images, grid, 0, 2, True, [True, False])[0]

    @staticmethod
    def backward(ctx, gradient):
        return _GridSample.apply(gradient, *ctx.saved_tensors), None, None


def _scaling(x, y):
    return torch.diag_embed(torch.cat([x, y, torch.ones_like(x)], 1))


def _rotation(angle):
    matrix = torch.eye(3, dtype=angle.dtype).repeat(len(angle), 1, 1)
    cos, sin = angle[:, 0].cos(), angle[:, 0].sin()
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cos, -sin, sin, cos
    return matrix


def _translation(by):
    matrix = torch.eye(3, dtype=by.dtype).repeat(len(by), 1, 1)
    matrix[:, :2, 2] = by
    return matrix
