"""StyleGAN3's generators; tests/data/stylegan3.npz holds numbers of NVIDIA's own code.

`examples/benchmarks/peer_stylegan3.py CHECKOUT --write tests/data/stylegan3.npz` wrote it; its function `fill` makes
the same weights here.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from talkhead import (
    checkpoints,
    conversion,
    inversion,
    safe_pickle,
    state_dicts,
    stylegan3,
    synthesis,
    train_autoencoder,
)
from talkhead.errors import TalkheadError
from talkhead.generators import build

FROZEN = Path(__file__).parent / "data" / "stylegan3.npz"
FILL = runpy.run_path(Path(__file__).parents[1] / "examples" / "benchmarks" / "peer_stylegan3.py")["fill"]
WIDTHS = [32] * 10 + [25, 20, 16, 16]  # of 64², as NVIDIA's channel_base 1024 and channel_max 32 make them


def nvidia(kind):
    """NVIDIA's state dict of T or R at 64², with the numbers of `fill`."""
    generator = stylegan3.Generator(64, WIDTHS, kernel=1 if kind == "R" else 3, radial=kind == "R")
    geometry, state = stylegan3.Layers(64), {}
    for name, value in [*generator.state_dict().items(), *generator.named_buffers()]:
        if name.startswith("layers."):
            index = int(name.split(".")[1])
            layer = f"L{index}_{geometry.sizes[index]}_{[*WIDTHS, 3][index]}"
            name = name.replace(f"layers.{index}", f"synthesis.{layer}")
            name = name.replace("_kernel", "_filter").replace("magnitude", "magnitude_ema")
        elif name.startswith("input."):
            name = f"synthesis.{name.replace('frequencies', 'freqs')}"
        else:
            name = name.replace("mapping_net.", "mapping.fc").replace("w_avg", "mapping.w_avg")
        state[name] = value.clone()
    FILL(state)
    return state


def load(kind, **more):
    state, config = state_dicts.from_stylegan3(nvidia(kind))
    generator = build(config | more).eval().requires_grad_(False)
    generator.load_state_dict(state)
    return generator


@pytest.mark.parametrize("kind", "TR")
def test_results_are_those_of_nvidias_code(kind):
    generator, frozen = load(kind), np.load(FROZEN)
    w_plus = generator.mapping(torch.from_numpy(frozen[f"{kind}_z"]))
    np.testing.assert_allclose(w_plus[:, 3], frozen[f"{kind}_w"], rtol=1e-4, atol=1e-5)
    images = generator.synthesis(torch.from_numpy(frozen[f"{kind}_w"])[:, None].expand(-1, 16, -1))
    wanted = frozen[f"{kind}_image"]
    assert images.shape == (2, 3, 64, 64)
    assert np.abs(images[:, :, ::8, ::8].numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert wanted.std() > 0.01


@pytest.mark.parametrize("kind", "TR")
def test_a_transform_moves_the_image_and_r_turns_it_too(kind):
    generator = load(kind)
    w_plus = generator.mapping(torch.randn(1, 512, generator=torch.Generator().manual_seed(3)))
    still = generator.synthesis(w_plus)
    moved = generator.synthesis(w_plus, transform=torch.tensor([[1, 0, 8 / 64], [0, 1, 0], [0, 0, 1.0]]))
    turned = generator.synthesis(w_plus, transform=torch.tensor([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]]))

    def error(images, wanted):
        """Error without the edges, beside how far the image is from one colour."""
        images, wanted = images[..., 12:-12, 12:-12], wanted[..., 12:-12, 12:-12]
        return ((images - wanted).norm() / (wanted - wanted.mean((2, 3), keepdim=True)).norm()).item()

    assert error(moved, still.roll(-8, 3)) < 0.2 < error(moved, still)
    assert (error(turned, still.rot90(1, (2, 3))) < 0.2) == (kind == "R")


def test_second_derivatives_are_those_of_differences():
    torch.manual_seed(0)
    generator = stylegan3.Generator(16, [4] * 4, layers=4, margin=2, w_dim=8, z_dim=8).double().requires_grad_(False)
    w_plus = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)

    def norm(w_plus):
        (first,) = torch.autograd.grad(generator.synthesis(w_plus).square().sum(), w_plus, create_graph=True)
        return first.square().sum()

    (second,) = torch.autograd.grad(norm(w_plus), w_plus)
    step = torch.randn_like(w_plus) * 1e-8
    difference = norm(w_plus + step) - norm(w_plus - step)
    assert (2 * (second * step).sum()).item() == pytest.approx(difference.item(), rel=1e-2)


def test_a_file_of_nvidias_is_read_and_a_file_of_ours_is_the_same(tmp_path):
    state = nvidia("R")
    torch.save({"G_ema": state}, tmp_path / "r.pt")
    about = checkpoints.describe(tmp_path / "r.pt")
    assert (about["format"], about["num_ws"], about["resolution"]) == ("nvidia", 16, 64) and about["config"]["radial"]
    conversion.convert(tmp_path / "r.pt", tmp_path / "ours.pt")
    conversion.export(tmp_path / "ours.pt", tmp_path / "half.pt")
    theirs, ours, half = (checkpoints.load_generator(tmp_path / f"{name}.pt") for name in ("r", "ours", "half"))
    w_plus = theirs.mapping(torch.randn(1, 512), psi=0.7)
    assert torch.equal(theirs.synthesis(w_plus), ours.synthesis(w_plus))
    assert theirs.fingerprint == ours.fingerprint == half.fingerprint
    with pytest.raises(TalkheadError, match="StyleGAN3; only a StyleGAN2 can be written for rosinality"):
        conversion.convert(tmp_path / "r.pt", tmp_path / "no.pt", to="rosinality")
    assert not (tmp_path / "no.pt").exists()


def test_what_only_the_pickled_network_tells(tmp_path):
    state = nvidia("T")
    layer = safe_pickle.Module("SynthesisLayer", {}, {"conv_clamp": 64}, {})
    synthesis = safe_pickle.Module("SynthesisNetwork", {}, {"num_critical": 2, "output_scale": 0.5}, {"L0": layer})
    module = safe_pickle.Module("Generator", state, {}, {"synthesis": synthesis})
    config = state_dicts.from_stylegan3(state, module)[1]
    assert (config["clamp"], config["scale"], config["critical"], config["half_levels"]) == (64, 0.5, 2, 4)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("synthesis.L3_36_32.bias"), "no tensor for layers.3.bias"),
        (lambda state: state.pop("synthesis.L0_36_32.weight"), "no layers synthesis.L0 onwards"),
        (lambda state: state.update({"mapping.embed.weight": torch.zeros(2, 2)}), "class-conditional"),
        (lambda state: state.update({"synthesis.noise": torch.zeros(2)}), "has synthesis.noise of the shape"),
        (lambda state: state["synthesis.L4_52_32.up_filter"].mul_(1.2), "filters are not those of a StyleGAN3"),
    ],
)
def test_other_networks_are_refused(tmp_path, change, words):
    state = nvidia("T")
    change(state)
    torch.save({"G_ema": state}, tmp_path / "other.pt")
    with pytest.raises(TalkheadError, match=rf"other.pt: .*{words}"):
        checkpoints.load_generator(tmp_path / "other.pt")


def test_it_is_inverted_and_draws_frames():
    generator = load("T")
    frames = list(synthesis.synthesize(generator, generator.mapping(torch.randn(2, 512), psi=0.5).numpy()))
    assert frames[0].shape == (64, 64, 3) and frames[0].dtype == np.uint8
    latents = list(inversion.invert(frames[:1], generator, method="optimise", steps=3))
    assert latents[0].shape == (16, 512)


def test_it_is_not_trained(tmp_path):
    torch.save({"G_ema": nvidia("T")}, tmp_path / "t.pt")
    with pytest.raises(TalkheadError, match="t.pt: a generator of architecture stylegan3; only StyleGAN2"):
        train_autoencoder.new_networks(tmp_path / "t.pt")


def test_what_does_not_fit_is_refused():
    with pytest.raises(TalkheadError, match="wanted 14 positive widths"):
        stylegan3.Generator(64, [8, 8])
    generator = stylegan3.Generator(64, WIDTHS)
    with pytest.raises(TalkheadError, match=r"wants \(N, 16, 512\)"):
        generator.synthesis(torch.zeros(1, 14, 512))
    with pytest.raises(TalkheadError, match="images of 64² only"):
        generator.shallow(32)
    assert generator.config == stylegan3.Generator(**{k: v for k, v in generator.config.items() if k != "arch"}).config


def test_widths_are_nvidias():
    layers = stylegan3.Layers(1024)
    assert stylegan3.channel_widths(layers) == [512] * 7 + [323, 203, 128, 81, 51, 32, 32]
    assert layers.sizes == [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024]
