"""The generator and discriminator against a slow reference and against numbers frozen from another implementation."""

import copy
import json
import math
import pickle
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import foreign
from talkhead import (
    checkpoints,
    datasets,
    fid,
    files,
    generators,
    image_files,
    latents,
    stylegan,
    stylegan_ops,
    train_stylegan,
)
from talkhead.cli import cli
from talkhead.distributed import MicroBatch
from talkhead.errors import TalkheadError
from talkhead.images import to_frames, to_images
from talkhead.stylegan import Discriminator, Generator, channel_widths, load_matching_weights
from talkhead.train_stylegan import train

# rosinality/stylegan2-pytorch, run on the weights of `fill`: every fifth pixel of two 16x16 images, and four logits.
FROZEN_IMAGES = [
    1.12707,
    -0.31189,
    2.77348,
    -2.15236,
    -4.11084,
    -4.02635,
    -3.5993,
    -4.82224,
    -1.19771,
    -3.58781,
    -6.72005,
    -3.58674,
    -1.27859,
    -4.01777,
    -4.09413,
    -3.78207,
    6.25476,
    2.53637,
    6.90282,
    6.03738,
    17.74707,
    6.70459,
    3.54843,
    10.81035,
    1.1137,
    5.06534,
    2.40041,
    1.53153,
    2.4952,
    5.09473,
    11.7854,
    2.92452,
    -2.90323,
    -3.83716,
    -2.66933,
    -2.34611,
    -3.38352,
    -3.49885,
    3.04191,
    -2.49229,
    1.00143,
    3.04202,
    -0.91466,
    -0.24168,
    -0.48162,
    1.71474,
    -0.63944,
    -1.39616,
    1.07197,
    1.23426,
    1.54608,
    -4.20954,
    -9.28662,
    -4.9675,
    -6.99221,
    -10.82553,
    -1.27304,
    -7.50739,
    -6.45967,
    -4.64007,
    -4.77533,
    -8.00432,
    -13.28611,
    -5.98606,
    4.39211,
    2.15364,
    3.27007,
    5.17448,
    13.68573,
    4.73231,
    2.97058,
    5.12165,
    2.52608,
    4.05476,
    0.83799,
    -0.79072,
    1.32061,
    2.80955,
    3.76929,
    0.4704,
    -0.38419,
    -0.56506,
    1.84133,
    -3.5476,
    0.57035,
    -4.1157,
    2.39326,
    -2.91545,
    -0.1248,
    1.16899,
    -0.3029,
    -2.44408,
    -0.65187,
    0.99337,
    -0.54873,
    -3.06605,
]
FROZEN_LOGITS = [0.8141340613365173, 0.9768192172050476, 0.8574771881103516, 0.8722364902496338]

# NVlabs/stylegan2-ada-pytorch with conv_clamp=2, on the same weights: every eighth pixel, and the logits.
CLAMPED_IMAGES = [
    -0.00196,
    -0.99243,
    -1.0577,
    -1.72652,
    2.32262,
    0.20107,
    3.42555,
    4.35647,
    -0.60629,
    -0.87614,
    -0.42452,
    0.87246,
    0.34724,
    -1.01264,
    -2.6366,
    -2.38253,
    2.14221,
    1.20560,
    3.42968,
    3.36967,
    -0.99223,
    -0.29319,
    -0.79128,
    -0.24173,
]
CLAMPED_LOGITS = [0.642819, 0.650311, 0.644718, 0.647331]


def fill(network):
    """Weights that any implementation can repeat.

    Numpy's frozen normal stream, seeded by a tensor's place in the names.
    """
    for seed, (name, value) in enumerate(sorted(network.state_dict().items())):
        drawn = torch.as_tensor(np.random.RandomState(seed).randn(*value.shape))
        value.copy_(drawn * (100 if name.startswith("mapping") and "weight" in name else 1))
    return network.eval()


def toy(resolution=16, width=8):
    torch.manual_seed(0)
    levels = int(math.log2(resolution)) - 1
    return (
        Generator(resolution, [width] * levels, z_dim=16, w_dim=16, mapping_layers=2),
        Discriminator(resolution, [width] * levels),
    )


def test_config_f_widths_and_layer_count():
    assert channel_widths(1024) == [512, 512, 512, 512, 512, 256, 128, 64, 32]
    for resolution, num_ws in ((8, 4), (64, 10), (256, 14)):
        assert Generator(resolution, [4] * (int(math.log2(resolution)) - 1)).num_ws == num_ws


def test_generator_equals_frozen_images():
    z = torch.from_numpy(np.random.RandomState(100).randn(2, 512)).float()
    with torch.no_grad():
        images = fill(Generator(16))(z)
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32
    np.testing.assert_allclose(images[:, :, ::5, ::5].flatten(), FROZEN_IMAGES, atol=18 * 1e-4)


def test_discriminator_equals_frozen_logits():
    images = torch.from_numpy(np.random.RandomState(101).randn(4, 3, 16, 16)).float()
    with torch.no_grad():
        np.testing.assert_allclose(fill(Discriminator(16))(images).flatten(), FROZEN_LOGITS, rtol=1e-4)


def test_clamped_networks_equal_frozen_numbers():
    z = torch.from_numpy(np.random.RandomState(100).randn(2, 512)).float()
    images = torch.from_numpy(np.random.RandomState(101).randn(4, 3, 16, 16)).float()
    generator, discriminator = fill(Generator(16, clamp=2.0)), fill(Discriminator(16, clamp=2.0))
    with torch.no_grad():
        np.testing.assert_allclose(generator(z)[:, :, ::8, ::8].flatten(), CLAMPED_IMAGES, atol=5 * 1e-4)
        np.testing.assert_allclose(discriminator(images).flatten(), CLAMPED_LOGITS, rtol=1e-4)


def test_the_config_rebuilds_a_network_and_names_no_clamp_where_there_is_none():
    for clamp in (None, 256.0):
        for network in (Generator(8, [4, 4], mapping_layers=1, clamp=clamp), Discriminator(8, [4, 4], clamp=clamp)):
            assert network.config.get("clamp", "left out") == ("left out" if clamp is None else clamp)
            assert type(network)(**network.config).config == network.config


def slow_styled_conv(layer, x, w, up):
    """One sample, one modulated and demodulated kernel, zeros between pixels, then the blur: as the paper writes it."""
    style = F.linear(w, layer.conv.affine.weight / math.sqrt(w.shape[0]), layer.conv.affine.bias)
    kernel = layer.conv.weight * layer.conv.scale * style[None, :, None, None]
    kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if up:
        spread = torch.zeros(1, x.shape[1], 2 * x.shape[2] + 3, 2 * x.shape[3] + 3)
        spread[:, :, 2:-2:2, 2:-2:2] = x
        y = F.conv2d(spread, kernel.flip(2, 3))
        taps = torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2) / 16
        y = F.conv2d(F.pad(y, (1, 1, 1, 1)).transpose(0, 1), taps[None, None]).transpose(0, 1)
    else:
        y = F.conv2d(x, kernel, padding=1)
    y = y + layer.noise_strength * layer.noise_const + layer.bias[None, :, None, None]
    return torch.where(y > 0, y, 0.2 * y) * math.sqrt(2)


@pytest.mark.parametrize("index,up", [(0, False), (1, True), (2, False)])
def test_styled_conv_equals_the_slow_one(index, up):
    generator, _ = toy()
    layer = generator.convs[index]
    torch.nn.init.normal_(layer.noise_strength)
    torch.nn.init.normal_(layer.bias)
    x, w = torch.randn(3, 8, 4 if index < 2 else 8, 4 if index < 2 else 8), torch.randn(3, 16)
    with torch.no_grad():
        fast = layer(x, w, layer.noise("const", 3))
        slow = torch.cat([slow_styled_conv(layer, x[k : k + 1], w[k], up) for k in range(3)])
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def uneven(clamp=None):
    """A generator of 64x64 whose levels all differ, and latents for three images."""
    torch.manual_seed(0)
    generator = Generator(64, [8, 6, 5, 4, 3], z_dim=16, w_dim=16, mapping_layers=1, clamp=clamp)
    for layer in (*generator.convs, *generator.rgbs):
        torch.nn.init.normal_(layer.bias)
    for conv in generator.convs:
        torch.nn.init.normal_(conv.noise_strength)
    return generator.requires_grad_(False), torch.randn(3, generator.num_ws, 16)


@pytest.mark.parametrize("strip", [2**12, 2**14])  # of 16 rows, and of 20 with a remainder of 4
@pytest.mark.parametrize("folding", [(), ("cpu",)])
@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize("noise", ["const", "random", "none"])
def test_strips_make_the_whole_picture(monkeypatch, noise, clamp, folding, strip):
    generator, w_plus = uneven(clamp)
    monkeypatch.setattr(stylegan_ops, "FOLDING", folding)
    torch.manual_seed(1)
    whole = generator.synthesis(w_plus, noise)  # gradients are possible here, and then it is drawn whole
    monkeypatch.setattr(stylegan, "STRIP_BYTES", strip)
    torch.manual_seed(1)
    with torch.no_grad():
        strips = generator.synthesis(w_plus, noise)
    assert strips.shape == whole.shape == (3, 3, 64, 64) and not torch.equal(strips, whole)
    torch.testing.assert_close(strips, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_folded_blur_is_the_blur(monkeypatch):
    generator, w_plus = uneven()
    discriminator = Discriminator(64, [8, 6, 5, 4, 3])
    images = generator.synthesis(w_plus)
    logits = discriminator(images)
    monkeypatch.setattr(stylegan_ops, "FOLDING", ("cpu",))
    torch.testing.assert_close(generator.synthesis(w_plus), images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(discriminator(images), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [(24, 16, 48, 48), (0, 0, 13, 21), (0, 0, 64, 64), (21, 40, 50, 53)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_window_has_the_detail_of_the_whole_picture(window, count):
    torch.manual_seed(4)
    generator = Generator(64, [16, 16, 8, 8, 4])
    top, left, bottom, right = window
    w_plus = torch.randn(count, generator.num_ws, 512)
    with torch.no_grad():
        whole, part = generator.synthesis(w_plus), generator.synthesis(w_plus, window=window)
        coarse = generator.shallow(32).synthesis(w_plus)
    inside = (..., slice(top, bottom), slice(left, right))
    torch.testing.assert_close(part[inside], whole[inside], rtol=0, atol=1e-5 * whole.abs().max().item())
    if window[2:] != (64, 64):  # far from it, the levels before alone
        corner = (..., slice(-8, -1), slice(-8, -1))
        wanted = F.interpolate(coarse, size=64, mode="bilinear")[corner]
        torch.testing.assert_close(part[corner], wanted, rtol=0, atol=1e-5 * whole.abs().max().item())


def test_strips_remember_nothing_of_the_weights(monkeypatch):
    monkeypatch.setattr(stylegan, "STRIP_BYTES", 2**12)
    generator, w_plus = uneven()
    names = list(generator.state_dict())
    with torch.no_grad():
        before = generator.synthesis(w_plus)
        twins = copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))
        generator.convs[3].conv.weight.data.mul_(-1)
        assert not torch.allclose(generator.synthesis(w_plus), before)
        generator.convs[3].conv.weight.data.mul_(-1)
        for same in (generator, *twins):
            assert torch.equal(same.synthesis(w_plus), before)
    assert list(generator.state_dict()) == names


def test_strips_in_half_precision(monkeypatch):
    generator, w_plus = uneven()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = generator.synthesis(w_plus)
        monkeypatch.setattr(stylegan, "STRIP_BYTES", 2**12)
        strips = generator.synthesis(w_plus)
        monkeypatch.undo()
    exact = generator.synthesis(w_plus)
    assert strips.dtype == whole.dtype == torch.float32
    for images in (whole, strips):
        assert (images - exact).abs().max() < 0.05 * exact.abs().max()


def test_batch_of_one_equals_batch_of_many_and_noise_modes():
    generator, _ = toy()
    for conv in generator.convs:
        torch.nn.init.constant_(conv.noise_strength, 0.5)
    w_plus = torch.randn(3, generator.num_ws, 16)
    with torch.no_grad():
        many = generator.synthesis(w_plus)
        torch.testing.assert_close(many[1:2], generator.synthesis(w_plus[1:2]), rtol=1e-4, atol=1e-5)
        assert torch.equal(many, generator.synthesis(w_plus))
        assert not torch.equal(generator.synthesis(w_plus, "random"), generator.synthesis(w_plus, "random"))
        assert not torch.allclose(generator.synthesis(w_plus, "none"), many)


def test_truncation_moves_towards_the_mean():
    generator, _ = toy()
    generator.w_avg.normal_()
    z = torch.randn(2, 16)
    half = generator.mapping(z, psi=0.5)
    torch.testing.assert_close(half, (generator.mapping(z) + generator.w_avg) / 2)
    torch.testing.assert_close(generator.mapping(z, psi=0.0)[1, 2], generator.w_avg)


def test_a_shallow_generator_stops_at_its_side():
    """The colours that the whole one has there, before it doubles them.

    Those of a generator of that side with the same weights.
    """
    generator = fill(Generator(32, [8, 6, 4, 4], mapping_layers=1))
    small = Generator(16, [8, 6, 4], mapping_layers=1)
    small.load_state_dict({name: value for name, value in generator.state_dict().items() if name in small.state_dict()})
    w_plus = torch.randn(2, generator.num_ws, 512)
    assert torch.equal(generator.shallow(16).synthesis(w_plus), small.synthesis(w_plus[:, : small.num_ws]))
    assert torch.equal(generator.shallow(32).synthesis(w_plus), generator.synthesis(w_plus))
    for side in (4, 12, 64):
        with pytest.raises(TalkheadError, match=f"side {side}: this generator has levels of 8, 16 … 32"):
            generator.shallow(side)


def test_the_kind_of_pictures_is_recorded(tmp_path):
    kinds = []
    for origins in (["film", "film"], ["film", "still"]):
        images = types.SimpleNamespace(
            origins=[datasets.Origin("a", 1, 16, kind) for kind in origins],
            batch=lambda step, count, *_: torch.zeros(count, 3, 16, 16),
        )
        list(train(images, tmp_path / f"{origins[1]}.pt", *toy(), steps=1, batch=4))
        kinds.append(files.load_weights(tmp_path / f"{origins[1]}.pt")["learnt_from"])
    assert kinds == ["film", None]


def test_widths_go_on_by_halves():
    assert stylegan.extend_widths([256, 192, 48], 64) == [256, 192, 48, 24, 16]
    assert stylegan.extend_widths([256, 192, 48], 8) == [256, 192] and stylegan.extend_widths([8, 6], 32) == [
        8,
        6,
        6,
        6,
    ]
    # Those of config F, by the numbers of its table.
    assert (
        stylegan.extend_widths([512] * 5, 256) == [512, 512, 512, 512, 512, 256, 128]
        and stylegan.extend_widths([512] * 5, 16) == [512] * 3
    )


def test_a_larger_generator_inherits_the_smaller_ones_picture():
    torch.manual_seed(0)
    small, large = (
        Generator(size, [8, 6, 4][:levels], z_dim=16, w_dim=16, mapping_layers=1) for size, levels in ((8, 2), (16, 3))
    )
    load_matching_weights(large, small.state_dict())
    w_plus = torch.randn(2, large.num_ws, 16)
    with torch.no_grad():
        drawn, before = large.synthesis(w_plus), small.synthesis(w_plus[:, : small.num_ws])
    spread = torch.zeros(2, 3, 19, 19)
    spread[..., 2:-1:2, 2:-1:2] = before
    taps = torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2) / 16
    larger = F.conv2d(spread.flatten(0, 1)[:, None], taps[None, None]).view(2, 3, 16, 16)
    torch.testing.assert_close(drawn, larger, rtol=1e-4, atol=1e-5)
    assert torch.equal(large.mapping(torch.ones(1, 16))[:, 0], small.mapping(torch.ones(1, 16))[:, 0])
    with pytest.raises(TalkheadError, match="other channels at 4x4"):
        load_matching_weights(Generator(8, [4, 4], z_dim=16, w_dim=16, mapping_layers=1), small.state_dict())


def test_second_derivatives_agree_with_finite_differences():
    generator, discriminator = toy(8, 4)
    generator, discriminator = generator.double(), discriminator.double()
    torch.manual_seed(1)
    w_plus = torch.randn(1, generator.num_ws, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: discriminator(generator.synthesis(w)).sum(), (w_plus,), atol=1e-4)


def test_a_config_is_built_by_its_architecture(tmp_path, monkeypatch):
    generator, _ = toy()
    assert (
        type(generators.build(generator.config))
        is type(generators.build(generator.config | {"arch": "stylegan2"}))
        is Generator
    )
    with pytest.raises(TalkheadError, match="architecture 'stylegan9': unknown to this version; take stylegan2"):
        generators.build(generator.config | {"arch": "stylegan9"})

    class Other(Generator):
        def __init__(self, **config):
            super().__init__(**config)
            self.config["arch"] = "other"

    monkeypatch.setitem(generators.GENERATORS, "other", Other)
    other = Other(**generator.config)
    torch.save(
        {"kind": "generator", "config": other.config, "step": 0, "model": other.state_dict()}, tmp_path / "other.pt"
    )
    loaded = checkpoints.load_generator(tmp_path / "other.pt")
    assert type(loaded) is Other and torch.equal(loaded.const, other.const)


def test_bad_sizes_are_refused_in_one_line():
    generator, _ = toy()
    for call in (
        lambda: Generator(48),
        lambda: Generator(16, [8, 8]),
        lambda: Discriminator(4),
        lambda: generator.synthesis(torch.zeros(1, 4, 16)),
        lambda: generator.synthesis(torch.zeros(1, 6, 16), noise="loud"),
    ):
        with pytest.raises(TalkheadError) as caught:
            call()
        assert "\n" not in str(caught.value)


class Pictures:
    """Stands in for datasets.Images: noise pictures by step."""

    def batch(self, step, count, seed=0, flip=False, share=MicroBatch()):
        return share(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(step)).clamp(-1, 1))


@pytest.mark.parametrize(
    "joint, augment",
    [
        (False, {}),
        (True, {}),
        (False, {"augment": "ada", "augment_p": 0.5, "ada_images": 200}),
        (True, {"augment": "fixed", "augment_p": 0.5}),
    ],
)
def test_four_steps_equal_two_and_two(tmp_path, joint, augment):
    from talkhead.encoders import ResNetEncoder

    def run(out, steps):
        generator, discriminator = toy()
        options = dict(augment)
        if joint:
            options |= {
                "encoder": ResNetEncoder(generator.num_ws, width=4, input_size=32, w_dim=16),
                "reconstruct_only": 1,
                "reconstruction": lambda a, b: (a - b).abs().mean((1, 2, 3)),
                "mouth_weight": 1.0,
                "w_weight": 1.0,
            }
        return list(
            train(
                Pictures(),
                out,
                generator,
                discriminator,
                steps=steps,
                batch=4,
                r1_interval=2,
                pl_interval=2,
                log_every=1,
                **options,
            )
        )

    whole = run(tmp_path / "whole.pt", 4)
    run(tmp_path / "parts.pt", 2)
    rest = run(tmp_path / "parts.pt", 4)
    for ours, theirs in zip(whole[2:], rest):
        assert {k: v for k, v in ours.items() if "second" not in k} == {
            k: v for k, v in theirs.items() if "second" not in k
        }
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt"))
    assert one["step"] == two["step"] == 4 and one["training"]["scalars"] == two["training"]["scalars"]
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    for name, value in one["training"]["discriminator"].items():
        assert torch.equal(value, two["training"]["discriminator"][name]), name


def test_ada_moves_its_probability_by_the_signs_of_four_steps(tmp_path):
    """By hand from the log, over two files; what the file says goes before augment_p, and a lost count starts anew."""
    records = []
    for steps in (3, 10):
        generator, discriminator = toy()
        records += train(
            Pictures(),
            tmp_path / "g.pt",
            generator,
            discriminator,
            steps=steps,
            batch=4,
            log_every=1,
            r1_interval=2,
            augment="ada",
            augment_p=0.5 if steps == 3 else 0.0,
            ada_target=0.1,
            ada_images=160,
        )
    p, signs = 0.5, [record["real_signs"] for record in records]
    for step, record in enumerate(records):
        if step and step % 4 == 0:
            p = min(max(p + 16 / 160 * np.sign(round(np.mean(signs[step - 4 : step]) - 0.1, 6)), 0.0), 1.0)
        assert record["augment"] == pytest.approx(p), step
    weights = torch.load(tmp_path / "g.pt", weights_only=True)
    assert (
        weights["training"]["scalars"]["augment"] == pytest.approx(p) and weights["training"]["scalars"]["judged"] == 2
    )
    weights["training"]["scalars"] = {
        "pl_mean": weights["training"]["scalars"]["pl_mean"]
    }  # as an older version wrote it
    torch.save(weights, tmp_path / "g.pt")
    for steps, augment, p in ((11, "ada", 0.25), (12, "fixed", 0.75), (13, "none", None)):
        generator, discriminator = toy()
        (record,) = train(
            Pictures(),
            tmp_path / "g.pt",
            generator,
            discriminator,
            steps=steps,
            batch=4,
            augment=augment,
            augment_p=p or 0.0,
        )
        assert record.get("augment") == p


def test_all_that_the_critic_sees_is_augmented_alike(tmp_path, monkeypatch):
    """Changes that write the place of an image in the batch on its right half.

    The discriminator sees no image without it.
    """
    from talkhead.encoders import ResNetEncoder

    half, seen, told = torch.cat([torch.ones(8), torch.zeros(8)]), [], []

    def number(count, p, share):
        told.append(p)
        return {"number": share(torch.arange(1.0, count + 1)[:, None])}

    monkeypatch.setattr(train_stylegan.ada, "sample_params", number)
    monkeypatch.setattr(
        train_stylegan.ada,
        "augment",
        lambda images, drawn: images * half + drawn["number"][..., None, None] * (1 - half),
    )
    generator, discriminator = toy()
    discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()[:, 0, 0, -1].tolist()))
    list(
        train(
            Pictures(),
            tmp_path / "g.pt",
            generator,
            discriminator,
            steps=1,
            batch=8,
            accumulate=2,
            augment="fixed",
            augment_p=0.25,
            encoder=ResNetEncoder(generator.num_ws, width=4, input_size=32, w_dim=16),
            reconstruction=lambda a, b: (a - b).abs().mean((1, 2, 3)),
        )
    )
    # In two turns: fakes and the real images whose reconstructions are among them, then fakes and real images, then R1.
    parts = [[1, 3, 5, 7], [2, 4, 6, 8]]
    assert seen == [parts[0], parts[0][2:], parts[1], parts[1][2:], parts[0], parts[0], parts[1], parts[1], *parts]
    assert set(told) == {0.25}


@pytest.mark.parametrize("resolution", [16, 32])
def test_fine_tuning_a_foreign_file_with_frozen_levels_and_augmentation(tmp_path, puppet, resolution):
    """From a file as rosinality's training writes it.

    At another resolution its discriminator does not fit, and none may be frozen.
    """
    shape = {"z_dim": 12, "w_dim": 12, "channels": (8, 6, 4), "layers": 2}
    theirs = foreign.rosinality_generator(**shape)
    torch.save(
        {"g": theirs, "d": foreign.rosinality_discriminator(**shape), "g_ema": theirs, "latent_avg": torch.zeros(12)},
        tmp_path / "r.pt",
    )
    line = [
        "train-stylegan",
        str(puppet / "clips"),
        "--init",
        str(tmp_path / "r.pt"),
        "-o",
        str(tmp_path / "out.pt"),
        "--steps",
        "2",
        "--batch",
        "4",
        "--log-every",
        "1",
        "--augment",
        "ada",
        "--augment-p",
        "0.3",
        "--freeze-d",
        "1",
    ]
    if resolution == 32:
        line += ["--resolution", "32", "--channels", "8,6,4,4"]
        refused = CliRunner().invoke(cli, line)
        assert (
            refused.exit_code == 1 and "which --freeze-d needs" in refused.stderr and not (tmp_path / "out.pt").exists()
        )
        unlearnt = CliRunner().invoke(
            cli, ["train-stylegan", "clips", "-o", str(tmp_path / "new.pt"), "--steps", "1", "--freeze-d", "1"]
        )
        assert unlearnt.exit_code == 2 and "--freeze-d needs --init" in unlearnt.stderr
        line += ["--freeze-d", "0"]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    assert [json.loads(text)["augment"] for text in done.stdout.splitlines()] == pytest.approx([0.3, 0.3])
    discriminator = torch.load(tmp_path / "out.pt", weights_only=True)["training"]["discriminator"]
    before = checkpoints.read(tmp_path / "r.pt", "generator")["training"]["discriminator"]
    same = {name for name, value in discriminator.items() if name in before and torch.equal(value, before[name])}
    assert same == (
        {name for name in discriminator if name.startswith(("from_rgb", "blocks.0."))} if resolution == 16 else set()
    )
    generator = checkpoints.load_generator(tmp_path / "out.pt")
    assert generator.resolution == resolution
    with torch.no_grad():
        assert generator(torch.randn(1, 12)).isfinite().all()


def test_frozen_levels_of_the_critic_stay_as_they_were(tmp_path):
    generator, discriminator = toy()
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    list(train(Pictures(), tmp_path / "g.pt", generator, discriminator, steps=2, batch=4, freeze_d=1))
    for name, value in discriminator.state_dict().items():
        still = name.startswith(("from_rgb", "blocks.0."))
        assert torch.equal(value, before[name]) == still, name
    with pytest.raises(TalkheadError, match="freeze_d 3: this discriminator has 2 levels"):
        next(train(Pictures(), tmp_path / "h.pt", generator, discriminator, steps=2, batch=4, freeze_d=3))


def test_training_lowers_the_reconstruction(tmp_path):
    from talkhead.encoders import ResNetEncoder

    class OnePicture:
        def batch(self, step, count, seed=0, flip=False, share=MicroBatch()):
            return share(torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16).expand(count, -1, -1, -1))

    generator, discriminator = toy()
    records = list(
        train(
            OnePicture(),
            tmp_path / "g.pt",
            generator,
            discriminator,
            steps=30,
            batch=4,
            lr=0.01,
            log_every=1,
            encoder=ResNetEncoder(generator.num_ws, width=4, input_size=32, w_dim=16),
            reconstruct_only=30,
            reconstruction=lambda a, b: (a - b).abs().mean((1, 2, 3)),
        )
    )
    assert records[-1]["reconstruction"] < 0.5 * records[0]["reconstruction"]
    assert "discriminator" not in records[-1]


def test_all_rates_come_to_rest_over_the_last_share_of_the_steps(tmp_path, monkeypatch):
    from talkhead.encoders import ResNetEncoder

    seen = []
    step = train_stylegan._Trainer.step

    def watched(trainer, index):
        record = step(trainer, index)
        seen.append(
            [
                optimizer.param_groups[0]["lr"]
                for optimizer in (trainer.g_optimizer, trainer.d_optimizer, trainer.e_optimizer)
            ]
        )
        return record

    monkeypatch.setattr(train_stylegan._Trainer, "step", watched)
    generator, discriminator = toy()
    list(
        train(
            Pictures(),
            tmp_path / "g.pt",
            generator,
            discriminator,
            steps=8,
            batch=4,
            lr=0.01,
            pl_weight=0,
            lr_decay=0.5,
            encoder=ResNetEncoder(generator.num_ws, width=4, input_size=32, w_dim=16),
            encoder_lr=0.002,
            reconstruction=lambda a, b: (a - b).abs().mean((1, 2, 3)),
        )
    )
    for rates, full in zip(zip(*seen), (0.01, 0.01 * 16 / 17, 0.002)):
        assert rates[:5] == pytest.approx([full] * 5)
        assert rates[5:] == pytest.approx([full * (0.5 - 0.5 * math.cos(math.pi * left / 4)) for left in (3, 2, 1)])


def test_all_that_learns_sees_the_same_jittered_pictures(tmp_path, monkeypatch):
    from talkhead.encoders import ResNetEncoder

    class Stripes:
        def batch(self, step, count, seed=0, flip=False, share=MicroBatch()):
            return share(torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16).expand(count, -1, -1, -1))

    encoded, compared = [], []

    class Watched(ResNetEncoder):
        def forward(self, images):
            encoded.append(images)
            return super().forward(images)

    def distance(images, targets):
        compared.append(targets)
        return (images - targets).abs().mean((1, 2, 3))

    def run(out, accumulate):
        encoded.clear(), compared.clear()
        generator, discriminator = toy()
        torch.manual_seed(5)
        list(
            train(
                Stripes(),
                out,
                generator,
                discriminator,
                steps=1,
                batch=8,
                accumulate=accumulate,
                jitter=0.9,
                reconstruct_only=1,
                reconstruction=distance,
                encoder=Watched(generator.num_ws, width=4, input_size=32, w_dim=16),
            )
        )
        return list(encoded[:accumulate]), list(compared)

    (seen,), (wanted,) = run(tmp_path / "one.pt", 1)
    assert (
        torch.equal(seen, wanted)
        and not torch.equal(seen, Stripes().batch(0, 8))
        and len(set(map(float, seen.mean((1, 2, 3))))) > 4
    )
    parts = torch.empty_like(seen)
    parts[::2], parts[1::2] = run(tmp_path / "two.pt", 2)[0]
    assert torch.allclose(parts, seen, atol=1e-6)


def test_lips_and_w_are_asked_for_where_a_weight_says_so(tmp_path):
    from talkhead.encoders import ResNetEncoder

    def records(**options):
        generator, discriminator = toy()
        return list(
            train(
                Pictures(),
                tmp_path / f"{len(list(tmp_path.iterdir()))}.pt",
                generator,
                discriminator,
                steps=1,
                batch=4,
                reconstruct_only=1,
                reconstruction=lambda a, b: (a - b).abs().mean((1, 2, 3)),
                encoder=ResNetEncoder(generator.num_ws, width=4, input_size=32, w_dim=16),
                **options,
            )
        )[-1]

    assert "lips" not in records()
    assert records(lips=lambda images, targets: (images - targets).abs().amax((1, 2, 3)), lip_weight=3.0)["lips"] > 0
    assert "w_reconstruction" not in records()
    assert records(w_weight=2.0)["w_reconstruction"] > 0


def test_a_held_encoder_stays_as_it_was_and_lineage_is_kept(tmp_path):
    from talkhead.encoders import ResNetEncoder

    generator, discriminator = toy()
    encoder = ResNetEncoder(generator.num_ws, width=4, input_size=32, w_dim=16)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    list(
        train(
            Pictures(),
            tmp_path / "g.pt",
            generator,
            discriminator,
            steps=2,
            batch=4,
            encoder=encoder,
            encoder_lr=0.0,
            reconstruction=lambda a, b: (a - b).abs().mean((1, 2, 3)),
            lineage={"0123456789abcdef"},
        )
    )
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    loaded = checkpoints.load_generator(tmp_path / "g.pt")
    assert loaded.lineage == {"0123456789abcdef", loaded.fingerprint}


@pytest.mark.parametrize("gain, padding, stride", [(4, (0, 1), 1), (1, (2, 2), 1), (1, (1, 1), 2)])
def test_gradients_of_the_resampling_filter(gain, padding, stride):
    """Twice, for R1 and path length differentiate gradients."""
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stylegan_ops.Downsample.apply(x, gain, padding, stride), x)
    assert torch.autograd.gradgradcheck(lambda x: stylegan_ops.Downsample.apply(x, gain, padding, stride).sin(), x)


# FID while training ---------------------------------------------------------------------------------------------------


class Corners:
    """A feature network: the colours of two corners, so wide that some tests have fewer pictures."""

    name, width = "corners", 6

    def __call__(self, frames):
        return np.concatenate([frames[:, 0, 0], frames[:, -1, -1]], 1).astype(np.float32)


@pytest.fixture
def noise(tmp_path):
    """datasets.Images of thirty pictures of noise."""
    folder = tmp_path / "noise"
    folder.mkdir()
    for index, frame in enumerate(np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)):
        image_files.write_image(folder / f"{index:02}.png", frame)
    return datasets.Images([folder], 16)


def measured(images, out, steps=6, **options):
    """The records of a short run on noise, with FID measured every second step."""
    options = {
        "fid_every": 2,
        "fid_images": 24,
        "fid_features": Corners(),
        "lr": 0.01,
        "ema_half_life": 1,
        "log_every": 1,
    } | options
    return list(train(images, out, *toy(), steps=steps, batch=4, r1_interval=2, pl_interval=2, **options))


def test_fid_is_that_of_the_average_and_the_best_is_kept(tmp_path, noise):
    records = measured(noise, tmp_path / "g.pt", steps=7)
    checked = {record["step"]: record["fid"] for record in records if "fid" in record}
    assert list(checked) == [2, 4, 6, 7] and all(
        record["fid_features"] == "corners" for record in records if "kid" in record
    )
    weights = torch.load(tmp_path / "g.pt", weights_only=True)
    best = min(checked, key=checked.get)
    assert weights["training"]["best_step"] == best and weights["training"]["best_value"] == checked[best]
    assert (weights["fid_features"], weights["fid_images"]) == ("corners", 24)
    real = Corners()(noise.frames[np.random.default_rng([0, 0]).permutation(30)[:24]])
    for state, step in ((weights["model"], best), (weights["training"]["last"], 7)):
        generator, _ = toy()
        generator.load_state_dict(state)
        random, drawn = latents.z_stream(0), []
        for _ in range(2):
            z = torch.randn(16, 16, generator=random)
            with torch.no_grad():
                drawn.append(generator(z, noise=lambda side: torch.randn(16, 1, side, side, generator=random)))
        fake = Corners()(to_frames(torch.cat(drawn)[:24]))
        record = next(record for record in records if record["step"] == step)
        assert record["fid"] == pytest.approx(fid.frechet_distance(real, fake), rel=1e-6)
        assert record["kid"] == pytest.approx(fid.kernel_distance(real, fake), rel=1e-6)


def test_faces_that_are_measured_and_shown_are_not_of_the_networks_weights(tmp_path, noise, z_among_weights):
    measured(noise, tmp_path / "g.pt", steps=2, samples=tmp_path / "sheets")
    assert z_among_weights(toy()[0]) == 0


def test_measuring_changes_nothing_in_training_and_goes_on_where_it_was(tmp_path, noise):
    bare = measured(noise, tmp_path / "bare.pt", fid_every=0)
    whole = measured(noise, tmp_path / "whole.pt")
    measured(noise, tmp_path / "parts.pt", steps=4)
    rest = measured(noise, tmp_path / "parts.pt")
    without = lambda record, *words: {
        key: value for key, value in record.items() if not any(word in key for word in words)
    }
    for ours, theirs in zip(bare, whole):
        assert without(ours, "second") == without(theirs, "second", "fid", "kid")
    for ours, theirs in zip(whole[4:], rest):
        assert without(ours, "second") == without(theirs, "second")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt"))
    assert one["training"]["best_step"] == two["training"]["best_step"]
    assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())


def test_what_is_measured_may_not_change_on_the_way(tmp_path, noise):
    measured(noise, tmp_path / "g.pt", steps=2)
    other = Corners()
    other.name = "edges"
    for change, message in (
        ({"fid_features": other}, "fid_features=corners, now edges"),
        ({"fid_images": 30}, "fid_images=24, now 30"),
    ):
        with pytest.raises(TalkheadError, match=message):
            measured(noise, tmp_path / "g.pt", steps=4, **change)


def test_an_encoder_that_learns_along_fits_the_model_in_the_file(tmp_path, noise):
    from talkhead.encoders import ResNetEncoder

    for rate, last in ((0.001, True), (0.0, False)):
        along = {
            "encoder": ResNetEncoder(6, width=4, input_size=32, w_dim=16),
            "reconstruction": lambda a, b: (a - b).abs().mean((1, 2, 3)),
            "encoder_lr": rate,
        }
        assert "fid" in measured(noise, tmp_path / f"{rate}.pt", steps=2, **along)[-1]
        assert ("last" in torch.load(tmp_path / f"{rate}.pt", weights_only=True)["training"]) != last


def test_fid_by_inception(tmp_path, noise, toy_inception):
    with pytest.warns(UserWarning, match="FID of 24 images by 128 features"):
        *_, record = measured(noise, tmp_path / "g.pt", steps=1, fid_features="inception")
    assert record["fid_features"] == "inception" and record["fid"] > 0


def test_what_fid_lacks_is_said_before_training(tmp_path, noise, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for options, message in (
        ({"fid_features": "inception"}, "file not found.*talkhead weights fetch inception-fid"),
        ({"fid_images": 1}, "FID of 1 images: needs two or more"),
    ):
        with pytest.raises(TalkheadError, match=message):
            measured(noise, tmp_path / "g.pt", **options)
    assert not (tmp_path / "g.pt").exists()


def test_images_cross_the_pixel_range_and_back():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    images = to_images(frames)
    assert images.shape == (2, 3, 4, 4) and images.min() >= -1 and images.max() <= 1
    assert np.array_equal(to_frames(images), frames)
