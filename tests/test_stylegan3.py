"""StyleGAN3's generators; tests/data/stylegan3.npz holds numbers of NVIDIA's own code.

`examples/benchmarks/peer_stylegan3.py CHECKOUT --write tests/data/stylegan3.npz` wrote it; its function `fill` makes
the same weights here.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

import talkhead
import toys
from talkhead import (
    checkpoints,
    conversion,
    faces,
    inversion,
    safe_pickle,
    state_dicts,
    stylegan3,
    synthesis,
    train_autoencoder,
    video_files,
)
from talkhead.errors import TalkheadError
from talkhead.generators import build
from talkhead.images import to_frames
from test_cli import run

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


# The head where it was in the film ------------------------------------------------------------------------------------

PATHS = runpy.run_path(Path(__file__).parents[1] / "examples" / "benchmarks" / "head_path.py")
NETWORKS = {kind: PATHS["network"](kind, side=64) for kind in "RT"}  # of more contrast than those of FILL


def square(x, y, side, degrees):
    right = side / 2 * np.array((np.cos(np.radians(degrees)), np.sin(np.radians(degrees))))
    down = right[::-1] * (-1, 1)
    centre = np.array((x, y))
    return np.stack([centre - right - down, centre - right + down, centre + right + down, centre + right - down])


QUADS = np.stack([square(*numbers) for numbers in ((180, 140, 200, 0), (190, 143, 204, 6), (171, 136, 196, -3))])


def test_transforms_put_the_centre_and_the_directions_of_each_quad_where_they_were():
    transforms = faces.quad_transforms(QUADS)
    corners = faces.mean_square(QUADS)
    np.testing.assert_allclose(corners, square(541 / 3, 419 / 3, 200, 0))
    for transform, quad in zip(transforms, QUADS):
        inverse = np.linalg.inv(transform)  # from the face to the image
        film = inverse[:2, 2] * 200 + corners.mean(0)
        np.testing.assert_allclose(film, quad.mean(0), atol=1e-9)
        right = quad[3] - quad[0]
        np.testing.assert_allclose(inverse[:2, 0], right / np.linalg.norm(right), atol=1e-12)
        np.testing.assert_allclose(transform[:2, :2] @ transform[:2, :2].T, np.eye(2), atol=1e-12)
        assert np.linalg.det(transform) == pytest.approx(1) and (transform[2] == (0, 0, 1)).all()


def test_transforms_within_a_named_frame_and_without_skipped_frames():
    still = faces.quad_transforms(np.tile(square(50, 60, 30, 0), (4, 1, 1)))
    np.testing.assert_allclose(still, np.tile(np.eye(3), (4, 1, 1)), atol=1e-12)
    gap = np.insert(QUADS, 1, np.nan, axis=0)
    np.testing.assert_array_equal(faces.quad_transforms(gap), faces.quad_transforms(QUADS))
    own = faces.quad_transforms(QUADS, QUADS[1])
    np.testing.assert_allclose(own[1], np.eye(3), atol=1e-12)
    with pytest.raises(TalkheadError, match="quads: NaN in all frames"):
        faces.quad_transforms(np.full((2, 4, 2), np.nan))
    with pytest.raises(TalkheadError, match="quads, frame 0: not a square"):
        faces.quad_transforms(QUADS * (1, 2))


@pytest.mark.parametrize("kind", "TR")
def test_the_drawn_image_follows_the_quads(kind):
    """Patches at the places of eyes, found in the drawn images; T is only moved."""
    quads = QUADS if kind == "R" else np.stack([square(*centre, 200, 0) for centre in QUADS.mean(1)])
    draw = PATHS["drawing"](NETWORKS[kind], seed=3)
    still = draw(np.eye(3))
    for transform in faces.quad_transforms(quads):
        image, wanted = draw(transform), PATHS["warp"](still, transform)
        errors = [PATHS["register"](wanted, image, eye, radius=12) for eye in ((-0.12, -0.03), (0.12, -0.03))]
        assert np.linalg.norm(errors, axis=1).max() <= 0.5  # pixels at 256²


def test_frames_are_drawn_under_one_transform_each():
    generator, transforms = NETWORKS["R"], faces.quad_transforms(QUADS)
    latents = generator.mapping(torch.randn(3, 512, generator=torch.Generator().manual_seed(3)))
    frames = list(synthesis.synthesize(generator, latents.numpy(), batch=2, transforms=transforms))
    for frame, w_plus, transform in zip(frames, latents, transforms):
        image = generator.synthesis(w_plus[None], transform=torch.from_numpy(transform))
        assert np.abs(frame - to_frames(image)[0].astype(int)).max() <= 1
    with pytest.raises(TalkheadError, match="transforms: 3, but there are more latents"):
        list(synthesis.synthesize(generator, latents.repeat(2, 1, 1).numpy(), batch=2, transforms=transforms))
    with pytest.raises(TalkheadError, match="quads need a StyleGAN3 generator"):
        next(synthesis.synthesize(toys.pair()[0], latents.numpy(), transforms=transforms))


def test_aligned_frames_under_the_transforms_are_the_film():
    """A photo that a camera moves and turns, cropped by its quads and drawn again, has its eyes where the film has."""
    rng, side = np.random.default_rng(0), 256
    photo = scipy.ndimage.gaussian_filter(rng.normal(size=(3, side, side)), (0, 4, 4), mode="wrap")
    photo = 127.5 + 50 * photo / photo.std()
    face = rng.normal(128, 20, (68, 2))
    face[36:42], face[42:48], face[48:60] = (107, 120), (149, 120), (128, 160)
    frames, points = [], []
    for time in np.linspace(0, 1, 20):
        camera = PATHS["similarity"](degrees=6 * time, right=0.05 * time, down=0.04 * np.sin(3 * time))
        frames.append(np.clip(np.rint(PATHS["warp"](photo, camera)), 0, 255).astype(np.uint8).transpose(1, 2, 0))
        places = (face + 0.5) / side - 0.5
        points.append((PATHS["mapped"](np.linalg.inv(camera), places) + 0.5) * side - 0.5)
    record = PATHS["measure"]("film", frames, np.stack(points), {"R": PATHS["drawing"](NETWORKS["R"])})
    for name in ("found", "eyes", "held_0"):
        assert record[name][1] < 0.1, name
    assert record["drawn_R"][0] <= 0.5
    assert record["turns"] > 4 and min(record["moves"]) > 3


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files_of_a_film(tmp_path_factory):
    """R and a StyleGAN2, three latents of each, and quads of four frames, one of which was skipped."""
    folder = tmp_path_factory.mktemp("film")
    toys.save_network(folder / "r.pt", "generator", NETWORKS["R"])
    toys.save_network(folder / "two.pt", "generator", toys.pair()[0])
    rng = np.random.default_rng(0)
    np.save(folder / "lat.npy", np.repeat(rng.normal(size=(1, 16, 512)), 3, 0).astype(np.float32))
    np.save(folder / "two.npy", rng.normal(size=(3, 6, 512)).astype(np.float32))
    np.save(folder / "quads.npy", np.insert(QUADS, 1, np.nan, axis=0))
    np.save(folder / "few.npy", QUADS[:2])
    np.save(folder / "flat.npy", np.zeros((3, 7)))
    return folder


@pytest.mark.parametrize("quads", [("--quads", "quads.npy"), ("--set", "quads=quads.npy")])
def test_the_command_draws_the_head_where_it_was(files_of_a_film, tmp_path, monkeypatch, quads):
    monkeypatch.chdir(files_of_a_film)
    result = run("generate", "--generator", "r.pt", "--latents", "lat.npy", *quads, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with video_files.read_frames(tmp_path / "out") as reader:
        assert not reader.aligned
        frames = list(reader)
    transforms = faces.quad_transforms(QUADS)
    wanted = synthesis.synthesize(NETWORKS["R"], np.load("lat.npy"), transforms=transforms)
    assert all(np.abs(one.astype(int) - other).max() <= 1 for one, other in zip(frames, wanted, strict=True))
    talkhead.TalkingHead("r.pt", drives=None).render("lat.npy", tmp_path / "same", quads="quads.npy")
    with video_files.read_frames(tmp_path / "same") as reader:
        assert all(np.array_equal(one, other) for one, other in zip(frames, reader, strict=True))
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 5


@pytest.mark.parametrize(
    "line, status, message",
    [
        (
            "--generator two.pt --latents two.npy --quads quads.npy",
            1,
            "quads need a StyleGAN3 generator, and this is none; pass one as --generator, or put the frames back into "
            "the film with talkhead paste --quads",
        ),
        ("--generator r.pt --latents lat.npy --quads few.npy", 1, "few.npy: quads of 2 frames, but lat.npy has 3"),
        ("--generator r.pt --latents lat.npy --quads flat.npy", 1, "shape (3, 7), wanted (frames, 4, 2)"),
        ("--generator r.pt --latents lat.npy --quads none.npy", 1, "none.npy: no such file"),
        ("--identity a.png --audio a.wav --quads quads.npy", 2, "--quads go with --latents, without --identity"),
        ("--identity a.png --latents lat.npy --quads quads.npy", 2, "--quads go with --latents, without --identity"),
    ],
)
def test_quads_that_cannot_be_drawn(files_of_a_film, tmp_path, monkeypatch, line, status, message):
    monkeypatch.chdir(files_of_a_film)
    result = run("generate", *line.split(), "-o", tmp_path / "out.mp4")
    assert (result.exit_code, result.stdout) == (status, "") and message in result.stderr
    assert status == 2 or result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_photo_is_not_moved_by_quads(files_of_a_film, tmp_path, monkeypatch):
    monkeypatch.chdir(files_of_a_film)
    head = talkhead.TalkingHead("r.pt", drives=None)
    with pytest.raises(TalkheadError, match="leave the identity out"):
        head.render("lat.npy", tmp_path / "out.mp4", identity="lat.npy", quads="quads.npy")
