"""Each change by hand or against scipy, its chance and spread by counting, its gradients by finite differences."""

import colorsys
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.transform import Rotation

from talkhead import ada
from talkhead.ada import augment, sample_params, update_p
from talkhead.distributed import MicroBatch
from talkhead.errors import TalkheadError


def only(count=1, **changes):
    """The changes of some images of which nothing happens but these."""
    drawn = sample_params(count, 0.0)
    for name, value in changes.items():
        drawn[name] = drawn[name] + torch.as_tensor(value, dtype=torch.float64)
    return drawn


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(side):
    """Waves of at most six pixels' length across an image, in float64."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    waves = [np.cos(0.9 * x + 0.3 * y), np.sin(0.5 * x - 0.8 * y + 1), np.cos(0.2 * x) * np.sin(0.7 * y)]
    return torch.from_numpy(np.stack(waves))[None]


def test_the_wavelet_gives_back_what_was_there_and_stops_the_finest_stripes():
    up, down = (np.array([*taps[:0:-1], *taps]) for taps in (ada.UP, ada.DOWN))
    both = np.convolve(up, down)
    assert both[len(both) // 2] == pytest.approx(1) and np.abs(both[len(both) // 2 % 2 :: 2]).sum() == pytest.approx(1)
    stripes = (-1.0) ** np.arange(17)
    for taps, total in ((up, 2), (down, 1)):
        assert taps.sum() == pytest.approx(total) and (taps * stripes[: len(taps)]).sum() == pytest.approx(0, abs=1e-9)


def test_nothing_happens_at_probability_zero():
    images = noise(3, 3, 8, 8)
    assert torch.equal(augment(images, sample_params(3, 0.0)), images)


def test_what_is_left_alone_is_the_same_to_the_last_bit():
    images = noise(3, 3, 8, 8)
    changed = augment(images, only(3, rotate_pre=[[0.0], [0.5], [0.0]], hue=[[0.0], [0.5], [0.0]]))
    assert torch.equal(changed[::2], images[::2]) and not torch.allclose(changed[1], images[1], atol=0.1)


@pytest.mark.parametrize("shape", [(16, 16), (8, 12)])
def test_flips_and_half_turns_are_exact(shape):
    images = noise(2, 3, *shape)
    torch.testing.assert_close(augment(images, only(2, xflip=1)), images.flip(-1), rtol=0, atol=2e-5)
    torch.testing.assert_close(augment(images, only(2, rotate90=2)), images.flip(-1, -2), rtol=0, atol=2e-5)


def test_quarter_turns_are_exact():
    images = noise(3, 3, 16, 16)
    turned = augment(images, only(3, rotate90=[[1.0], [2.0], [3.0]]))
    for index in range(3):
        torch.testing.assert_close(turned[index], torch.rot90(images[index], index + 1, (2, 1)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("across, down", [(2, 0), (0, -1), (-2, 1), (40, -35)])
def test_whole_pixels_are_exact_and_what_comes_in_is_mirrored_for_ever(across, down):
    images = noise(1, 3, 16, 16)
    moved = augment(images, only(xint=[[across / 16 + 0.02, down / 16 - 0.02]]))  # rounded to whole pixels
    wide = np.pad(images.numpy(), ((0, 0), (0, 0), (40, 40), (40, 40)), "reflect")
    top, left = 40 - down, 40 - across
    np.testing.assert_allclose(moved, wide[:, :, top : top + 16, left : left + 16], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.4},
        {"scale": -0.3},
        {"rotate_pre": 0.7},
        {"aniso": 0.3},
        {"xfrac": [[0.1, -0.07]]},
        {
            "xflip": 1,
            "rotate90": 1,
            "xint": [[0.1, 0.0]],
            "scale": 0.2,
            "rotate_pre": 1.0,
            "aniso": -0.2,
            "rotate_post": -0.4,
            "xfrac": [[0.05, 0.1]],
        },
    ],
)
def test_geometry_is_what_scipy_makes_of_the_same_steps(changes):
    """Cubic splines, one step after the other written down in the order of the paper, and mirrored edges."""
    side, image = 32, smooth(32)
    value = {name: torch.as_tensor(changes.get(name, 0.0)).double().flatten().numpy() for name in only()}

    def turn(angle):  # down, across
        return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])

    scale, stretch = 2.0 ** value["scale"][0], 2.0 ** value["aniso"][0]
    linear = np.diag([1, 1 - 2 * value["xflip"][0]])
    linear = turn(value["rotate90"][0] * math.pi / 2) @ linear
    after = turn(value["rotate_post"][0]) @ np.diag([1 / stretch, stretch]) @ turn(value["rotate_pre"][0]) * scale
    shift = after @ np.round(np.resize(value["xint"], 2)[::-1] * side) + np.resize(value["xfrac"], 2)[::-1] * side
    inverse = np.linalg.inv(after @ linear)
    middle = np.full(2, (side - 1) / 2)
    wanted = [
        ndimage.affine_transform(channel, inverse, middle - inverse @ (middle + shift), order=5, mode="mirror")
        for channel in image[0].numpy()
    ]
    difference = augment(image, only(**changes))[0].numpy() - wanted
    assert np.sqrt(np.mean(difference**2)) < 0.03  # of waves whose root mean square is 0.7
    assert np.abs(difference).max() < 0.25  # where the mirror breaks them


def test_shrinking_does_not_alias():
    """Stripes too fine for the smaller picture vanish, where picking pixels would show other stripes."""
    x = torch.arange(64.0)
    stripes = torch.cos(0.85 * math.pi * x).expand(1, 3, 64, 64)
    assert augment(stripes, only(scale=-0.8))[..., 8:-8].abs().max() < 0.15
    grid = F.affine_grid(torch.eye(2, 3)[None] * 2**0.8, stripes.shape, align_corners=True)
    picked = F.grid_sample(stripes, grid, padding_mode="reflection", align_corners=True)
    assert picked[..., 8:-8].abs().max() > 0.7


def test_brightness_and_contrast_are_added_and_multiplied():
    images = noise(2, 3, 4, 4)
    torch.testing.assert_close(
        augment(images, only(2, brightness=[[0.25], [-0.5]])), images + torch.tensor([0.25, -0.5]).view(2, 1, 1, 1)
    )
    torch.testing.assert_close(
        augment(images, only(2, contrast=[[1.0], [-1.0]])), images * torch.tensor([2, 0.5]).view(2, 1, 1, 1)
    )


def test_a_negative_mirrors_what_the_colours_have_in_common():
    images = noise(1, 3, 4, 4)
    torch.testing.assert_close(augment(images, only(lumaflip=1)), images - 2 * images.mean(1, keepdim=True))


def test_saturation_scales_the_distance_from_grey():
    images = noise(1, 3, 4, 4)
    grey = images.mean(1, keepdim=True)
    torch.testing.assert_close(augment(images, only(saturation=1)), grey + 2 * (images - grey))


def test_hue_turns_the_colour_wheel():
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    third = augment(images, only(hue=2 * math.pi / 3))[0].flatten(1).T
    for before, after in zip(images[0].flatten(1).T.tolist(), third.tolist()):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + 1 / 3) % 1, saturation, value), abs=1e-5)
    turned = Rotation.from_rotvec(np.full(3, 0.7 / math.sqrt(3))).as_matrix() @ images[0].flatten(1).numpy()
    np.testing.assert_allclose(augment(images, only(hue=0.7))[0].flatten(1), turned, atol=1e-5)


def test_colours_follow_one_another_in_the_papers_order():
    images = noise(1, 3, 4, 4)
    changes = {"brightness": 0.3, "contrast": 0.4, "lumaflip": 1, "hue": 1.1, "saturation": -0.6}
    one_by_one = images
    for name, value in changes.items():
        one_by_one = augment(one_by_one, only(**{name: value}))
    torch.testing.assert_close(augment(images, only(**changes)), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_each_change_happens_with_its_probability_and_spread(p):
    """Counted; bounds are five standard deviations of a count wide."""
    torch.manual_seed(0)
    count = 20_000
    drawn = sample_params(count, p)

    def near(share, wanted):
        assert abs(share - wanted) <= 5 * math.sqrt(max(wanted * (1 - wanted), 1e-4) / count), (share, wanted)

    spread = {
        "scale": 0.2,
        "aniso": 0.2,
        "xfrac": 0.125,
        "brightness": 0.2,
        "contrast": 0.5,
        "saturation": 1.0,  # normal
        "xint": 0.125 / math.sqrt(3),
        "rotate_pre": math.pi / math.sqrt(3),
        "rotate_post": math.pi / math.sqrt(3),
        "hue": math.pi / math.sqrt(3),
    }
    for name, values in drawn.items():
        assert values.dtype == torch.float64 and values.shape == (count, 2 if name in ("xint", "xfrac") else 1)
        happened = (values != 0).any(1)
        half = 1 - math.sqrt(1 - p)
        chance = {
            "xflip": p / 2,
            "lumaflip": p / 2,
            "rotate90": p * 3 / 4,
            "rotate_pre": half,
            "rotate_post": half,
        }.get(name, p)
        near(happened.double().mean().item(), chance)
        if name in spread:
            assert values[happened].std().item() == pytest.approx(spread[name], rel=0.05), name
            assert abs(values[happened].mean().item()) < 0.1 * spread[name], name
    near(((drawn["rotate_pre"] != 0) | (drawn["rotate_post"] != 0)).double().mean().item(), p)
    for name in ("xint", "rotate_pre", "hue"):
        assert 0.97 < drawn[name].abs().max() / {"xint": 0.125}.get(name, math.pi) <= 1
    for quarter in (1, 2, 3):
        near((drawn["rotate90"] == quarter).double().mean().item(), p / 4)
    if p < 1:
        for matrix, chance in (
            (ada.geometric_matrix(drawn, 4096, 4096), (1 - p / 2) * (1 - p * 3 / 4) * (1 - p) ** 5),
            (ada.color_matrix(drawn), (1 - p / 2) * (1 - p) ** 4),
        ):
            near((matrix == torch.eye(matrix.shape[-1])).flatten(1).all(1).double().mean().item(), chance)
            flipped = torch.linalg.det(matrix) < 0
            near(flipped.double().mean().item(), p / 2)


def test_gradients_agree_with_finite_differences_twice():
    torch.manual_seed(0)
    images = torch.randn(3, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    drawn = sample_params(3, 1.0)
    drawn = {name: torch.where(torch.tensor([[True], [True], [False]]), value, 0.0) for name, value in drawn.items()}
    assert torch.autograd.gradcheck(lambda x: augment(x, drawn), (images,))
    assert torch.autograd.gradgradcheck(lambda x: augment(x, drawn).pow(3), (images,))


def test_shares_see_what_the_whole_batch_sees():
    images = noise(8, 3, 16, 16)
    torch.manual_seed(5)
    whole = augment(images, sample_params(8, 0.5))
    for first in range(2):
        torch.manual_seed(5)
        share = MicroBatch(0, first, 2)
        torch.testing.assert_close(
            augment(share(images), sample_params(8, 0.5, share)), share(whole), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_in_float32(dtype):
    images, drawn = noise(4, 3, 16, 16), sample_params(4, 1.0)
    exact = augment(images, drawn)
    with torch.autocast("cpu", dtype):
        assert torch.equal(augment(images, drawn), exact)
        halved = augment(images.to(dtype), drawn)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, exact, rtol=0.03, atol=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same():
    images, drawn = noise(4, 3, 32, 32), sample_params(4, 1.0)
    torch.testing.assert_close(augment(images.cuda(), drawn).cpu(), augment(images, drawn), rtol=1e-4, atol=1e-4)


def test_the_probability_follows_the_discriminator():
    """32 of 500 000 images a step, four steps a move; never outside [0, 1]."""
    move = 4 * 32 / 500_000
    assert (
        update_p(0.5, 0.7, 32) == 0.5 + move and update_p(0.5, 0.5, 32) == 0.5 - move and update_p(0.5, 0.6, 32) == 0.5
    )
    assert update_p(0.0, 0.1, 32) == 0.0 and update_p(1.0, 1.0, 32) == 1.0
    assert update_p(0.2, 0.3, 10, target=0.25, images=400) == pytest.approx(0.3)
    p = 0.0
    for _ in range(1000):
        p = update_p(p, 1.0, 125)
    assert p == pytest.approx(1)


@pytest.mark.parametrize(
    "augment, p, message",
    [
        ("sometimes", 0.0, "must be none, ada or fixed"),
        ("fixed", 1.5, "is a probability"),
        ("ada", -0.1, "is a probability"),
        ("none", 0.2, "augment is none"),
    ],
)
def test_what_makes_no_sense_is_refused(augment, p, message):
    with pytest.raises(TalkheadError, match=message):
        ada.check(augment, p)


def test_jitter_changes_as_many_as_asked_and_keeps_them_pictures():
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 32, 32) * 1.6 - 0.8
    images = ada.jitter(picture.expand(400, -1, -1, -1), 0.5)
    assert images.shape == (400, 3, 32, 32) and images.dtype == torch.float32 and images.abs().max() <= 1
    same = (images == picture).flatten(1).all(1).float().mean()
    assert same == pytest.approx(0.25, abs=0.06)  # neither moved nor recoloured
    assert torch.equal(ada.jitter(picture, 0.0), picture)


def test_jitter_moves_little():
    """A bright spot in the middle stays within a tenth of the side."""
    torch.manual_seed(1)
    spot = torch.full((200, 3, 64, 64), -1.0)
    spot[:, :, 31:33, 31:33] = 1.0
    light = ada.jitter(spot, 1.0).mean(1) + 1
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    weight = light.clamp_min(0.2) - 0.2
    across, down = ((weight * axis).sum((1, 2)) / weight.sum((1, 2)) - 31.5 for axis in (x, y))
    assert max(across.abs().max(), down.abs().max()) < 6.4 and across.std() == pytest.approx(0.8, abs=0.3)


def test_jitter_of_a_share_is_its_part_of_the_whole():
    images = torch.rand(6, 3, 16, 16)
    torch.manual_seed(3)
    whole = ada.jitter(images, 0.8)
    for first in range(2):
        torch.manual_seed(3)
        assert torch.allclose(
            ada.jitter(images[first::2], 0.8, MicroBatch(first, first, 2)), whole[first::2], atol=1e-6
        )


def test_a_jitter_that_is_no_probability_is_refused():
    with pytest.raises(TalkheadError, match="jitter 1.5: is a probability"):
        ada.check("none", 0.0, 1.5)
