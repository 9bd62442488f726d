"""What keeps a discriminator from learning a small set by heart: random changes of every picture that it sees.

A picture is turned, shifted, stretched and recoloured at random before the discriminator looks at it, real and drawn ones
alike, and gradients pass through. As long as a picture is often enough left alone, the generator learns none of it.
How often, `update_p` finds out while training: when the discriminator is too sure of the real pictures, more is changed.

Source: Karras et al. 2020, "Training generative adversarial networks with limited data", §2.2, §3.1 and appendix B: the
pipeline "bgc", that is pixel blitting, geometry and colour.
Departure: the wavelet is a symmetric one, so that mirrored and quarter-turned pictures are exact, and the
picture goes on as in a mirror for ever, where the authors' code ends it in black after one reflection.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from talkhead.distributed import MicroBatch
from talkhead.errors import TalkheadError

EVERY = 4  # steps from one move of the probability to the next
TURNS = (
    "turn",
    "second_turn",
)  # two rotations, before and after stretching, of which one at least happens with probability p

# Low-pass filters of Cohen, Daubechies & Feauveau 1992, 11 and 17 taps, from the middle tap outwards. One after the other
# they give back what was there: what the first adds between the pixels, the second takes away.
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


def sample_params(count, p, share=MicroBatch()):
    """Random changes for some images, each of which happens to an image with probability p.

    share    team.Share: changes are drawn for all, and kept for these
    returns  {name: float64 (count, 1), or (count, 2) across and down}; 0 where nothing happens: "flip" 0 or 1,
             "quarter_turns" 0 to 3, "jump" and "drift" in image sides, "zoom", "stretch", "contrast" and "saturation" in
             powers of two, "turn", "second_turn" and "hue" in radians, "brightness" added, "negative" 0 or 1
    """

    def normal(spread, columns=1):
        return spread * torch.randn(count, columns, dtype=torch.float64)

    def uniform(reach, columns=1):
        return reach * (2 * torch.rand(count, columns, dtype=torch.float64) - 1)

    def choice(values):
        return torch.randint(values, (count, 1)).double()

    drawn = {
        "flip": choice(2),
        "quarter_turns": choice(4),
        "jump": uniform(0.125, 2),
        "zoom": normal(0.2),
        "turn": uniform(math.pi),
        "stretch": normal(0.2),
        "second_turn": uniform(math.pi),
        "drift": normal(0.125, 2),
        "brightness": normal(0.2),
        "contrast": normal(0.5),
        "negative": choice(2),
        "hue": uniform(math.pi),
        "saturation": normal(1.0),
    }
    chance = dict.fromkeys(drawn, p) | dict.fromkeys(TURNS, 1 - math.sqrt(1 - p))
    return {name: share(torch.where(torch.rand(count, 1) < chance[name], value, 0.0)) for name, value in drawn.items()}


def augment(images, drawn):
    """Change images as `sample_params` says; those to which nothing happens stay as they are, to the last bit.

    images    float (N, 3, H, W) in [-1, 1]; with gradients, and gradients of gradients
    returns   the same in float32 at least; colours may leave [-1, 1]
    """
    with torch.autocast(images.device.type, enabled=False):
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        images = _where_needed(_resampled, images, geometric_matrix(drawn, *images.shape[2:]))
        return _where_needed(_recolored, images, color_matrix(drawn))


def jitter(images, p, share=MicroBatch()):
    """Change pictures a little, as other photos of the same kind of face would differ: what learns from few faces is to see more of them.

    images    float (N, 3, H, W) in [-1, 1], the pictures of this share
    p         probability that a picture is moved, turned, scaled and bent, and, apart from that, that its colours change
    share     team.Share: changes are drawn for the whole batch, and kept for these
    returns   float32 (N, 3, H, W) in [-1, 1]. Spreads: 0.05 radians, 3.5 % in size, 1.25 % of the side in place and 0.6 % in bending; a fifth in saturation
              and gamma, 8 % in brightness, 4 % in each colour
    """
    count = len(images) * share.of

    def normal(spread, *shape):
        return spread * share.randn(count, *shape).to(images.device)

    moved, tinted = (share(torch.rand(count) < p).to(images.device) for _ in range(2))
    turn, zoom, shift, bend = normal(0.05), normal(0.035).exp(), normal(0.025, 2), normal(0.012, 2, 6, 6)
    saturation, gamma, light = (
        normal(0.18, 1, 1, 1).exp(),
        normal(0.18, 1, 1, 1).exp(),
        (normal(0.08, 1, 1, 1) + normal(0.04, 3, 1, 1)).exp(),
    )
    matrix = torch.stack(
        [zoom * turn.cos(), -zoom * turn.sin(), shift[:, 0], zoom * turn.sin(), zoom * turn.cos(), shift[:, 1]], 1
    ).view(-1, 2, 3)
    bend = F.interpolate(bend, images.shape[2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False) + bend
    # Bicubic: a picture that was moved must be no softer than the others.
    places = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    images = torch.where(moved[:, None, None, None], places, images).clamp(-1, 1)
    grey = images.mean(1, keepdim=True)
    color_matrix = ((grey + (images - grey) * saturation) / 2 + 0.5).clamp(0, 1).pow(gamma) * light
    return torch.where(tinted[:, None, None, None], color_matrix.clamp(0, 1) * 2 - 1, images)


def geometric_matrix(drawn, height, width):
    """What `sample_params` says of places as one matrix: (x, y, 1), in pixels to the right of the image's middle and below it -> where it goes.

    returns   float64 (N, 3, 3)
    """
    side = torch.tensor([width, height])
    matrix = torch.eye(3, dtype=torch.float64)
    for step in (
        _scaled(1 - 2 * drawn["flip"], torch.ones_like(drawn["flip"])),
        _turned(drawn["quarter_turns"] * (math.pi / 2)),
        _shifted((drawn["jump"] * side).round()),
        _scaled(drawn["zoom"].exp2(), drawn["zoom"].exp2()),
        _turned(drawn["turn"]),
        _scaled(drawn["stretch"].exp2(), (-drawn["stretch"]).exp2()),
        _turned(drawn["second_turn"]),
        _shifted(drawn["drift"] * side),
    ):
        matrix = step @ matrix
    return matrix


def color_matrix(drawn):
    """What `sample_params` says of colours as one matrix: (red, green, blue, 1) -> the new colour.

    returns   float64 (N, 4, 4)

    Contrast scales all three, a negative mirrors what they have in common, hue turns about it, and saturation scales the rest.
    """
    one, grey = (
        torch.eye(3, dtype=torch.float64),
        torch.full((3, 3), 1 / 3, dtype=torch.float64),
    )  # grey: what the three have in common
    across = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(
        3
    )  # a quarter turn about it, of the rest
    negative, hue, more = (drawn[name][..., None] for name in ("negative", "hue", "saturation"))
    linear = one - 2 * negative * grey + (more.exp2() * hue.cos() - 1) * (one - grey) + more.exp2() * hue.sin() * across
    linear = linear * drawn["contrast"][..., None].exp2()
    matrix = torch.eye(4, dtype=torch.float64).repeat(len(linear), 1, 1)
    matrix[:, :3, :3] = linear
    matrix[:, :3, 3:] = linear @ drawn["brightness"][..., None].expand(-1, 3, 1)
    return matrix


def update_p(p, r_t, batch, target=0.6, images=500_000):
    """The probability for the next `EVERY` steps: more if the discriminator was too sure of the real pictures in the last, less if not.

    r_t   mean sign of its logits for them: 0 of one that guesses, 1 of one that knows them all
    target     where that should stay
    images     so many would take p from 0 to 1
    """
    move = EVERY * batch / images
    return min(max(p + move * ((r_t > target) - (r_t < target)), 0.0), 1.0)


def check(augment, p, jitter=0.0):
    """Refuse what makes no sense: `augment` must be "none", "ada" or "fixed", and p a probability that it uses; `jitter` is one too."""
    if not 0 <= jitter <= 1:
        raise TalkheadError(f"jitter {jitter}: is a probability; pass one from 0 to 1")
    if augment not in ("none", "ada", "fixed"):
        raise TalkheadError(f"augment {augment!r}: must be none, ada or fixed")
    if not 0 <= p <= 1:
        raise TalkheadError(f"augment_p {p}: is a probability; pass one from 0 to 1")
    if augment == "none" and p:
        raise TalkheadError(f"augment_p {p}: nothing is augmented; pass augment as fixed, or as ada to start there")


def _where_needed(change, images, matrices):
    """Images changed by their matrices, but for those whose matrix would leave them as they are."""
    rows = (matrices != torch.eye(matrices.shape[-1], dtype=matrices.dtype)).flatten(1).any(1).nonzero().flatten()
    if not len(rows):
        return images
    picked = rows.to(images.device)
    return images.index_copy(0, picked, change(images[picked], matrices[rows]))


def _like(matrix, images):
    return matrix.to(images.dtype).to(images.device)


def _recolored(images, matrices):
    matrices = _like(matrices, images)
    return torch.baddbmm(matrices[:, :3, 3:], matrices[:, :3, :3], images.flatten(2)).view_as(images)


def _resampled(images, matrices):
    """Sample images at twice their fineness where their matrices say, and shrink what is found: so, little is aliased."""
    height, width = images.shape[2:]
    margin = len(DOWN) - 1
    fine = (
        _finer(height, images.dtype, images.device) @ images @ _finer(width, images.dtype, images.device).T
    )  # (N, 3, 2H - 1, 2W - 1)
    # affine_grid and grid_sample want every side to go from -1 to 1, from the middle of the first pixel to that of the last.
    before = torch.tensor([1 / (width - 1), 1 / (height - 1), 1.0], dtype=matrices.dtype)
    after = torch.tensor([width - 1 + margin, height - 1 + margin, 1.0], dtype=matrices.dtype)
    source = torch.linalg.inv(matrices) * torch.tensor(
        [[1.0, 1.0, 2.0]] * 2 + [[1.0] * 3], dtype=matrices.dtype
    )  # shifts by fine pixels
    source = _like(before[:, None] * source * after, images)[:, :2]
    grid = F.affine_grid(
        source, [len(images), 3, 2 * (height + margin) - 1, 2 * (width + margin) - 1], align_corners=True
    )
    fine = _Sampled.apply(fine, grid)
    return _coarser(height, images.dtype, images.device) @ fine @ _coarser(width, images.dtype, images.device).T


@lru_cache(32)
def _finer(side, dtype, device):
    """A matrix that doubles the fineness of a line of pixels, mirrored at its ends: (2 side - 1, side)."""
    matrix = torch.zeros(2 * side - 1, side, dtype=torch.float64)
    fine = torch.arange(2 * side - 1)
    for offset in range(1 - len(UP), len(UP)):
        place = (fine + offset).abs()
        place = torch.where(place > 2 * side - 2, 4 * side - 4 - place, place)
        held = place % 2 == 0
        matrix.index_put_(
            (fine[held], place[held] // 2), torch.tensor(UP[abs(offset)], dtype=torch.float64), accumulate=True
        )
    return matrix.to(dtype).to(device)


@lru_cache(32)
def _coarser(side, dtype, device):
    """A matrix that halves the fineness of a line which goes on beyond its ends by the filter's reach: (side, 2 side + 15)."""
    taps = torch.tensor([*DOWN[:0:-1], *DOWN], dtype=torch.float64)
    matrix = torch.zeros(side, 2 * side - 2 + len(taps), dtype=torch.float64)
    for row in range(side):
        matrix[row, 2 * row : 2 * row + len(taps)] = taps
    return matrix.to(dtype).to(device)


class _Sampled(torch.autograd.Function):
    """Images at the places of a grid, mirrored at their edges. Older versions of torch differentiate that only once."""

    @staticmethod
    def forward(ctx, images, grid):
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)

    @staticmethod
    def backward(ctx, gradient):
        return _Gathered.apply(gradient, *ctx.saved_tensors, ctx.shape), None


class _Gathered(torch.autograd.Function):
    """The transpose of sampling: every pixel gets what was made of it, in the same parts."""

    @staticmethod
    def forward(ctx, samples, grid, shape):
        ctx.save_for_backward(grid)
        images = samples.new_empty(shape)  # only its shape counts, for sampling is linear
        return torch.ops.aten.grid_sampler_2d_backward(samples, images, grid, 0, 2, True, [True, False])[0]

    @staticmethod
    def backward(ctx, gradient):
        return _Sampled.apply(gradient, *ctx.saved_tensors), None, None


def _scaled(x, y):
    return torch.diag_embed(torch.cat([x, y, torch.ones_like(x)], 1))


def _turned(angle):
    matrix = torch.eye(3, dtype=angle.dtype).repeat(len(angle), 1, 1)
    cos, sin = angle[:, 0].cos(), angle[:, 0].sin()
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cos, -sin, sin, cos
    return matrix


def _shifted(by):
    matrix = torch.eye(3, dtype=by.dtype).repeat(len(by), 1, 1)
    matrix[:, :2, 2] = by
    return matrix
