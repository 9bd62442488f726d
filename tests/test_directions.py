"""Directions in W+: found in weights and in codes, read from files, and added to a face."""

import numpy as np
import pytest
import torch

import toys
from talkhead import checkpoints, directions, files, image_files, stylegan3, synthesis
from talkhead.errors import TalkheadError


def affine_of_latents(generator):
    """Weights of each latent's affine layer, by the names that a file has them under."""
    state = {name: value.numpy().astype(np.float64) for name, value in generator.state_dict().items()}
    if isinstance(generator, stylegan3.Generator):
        names = ["input.affine.weight", *(f"layers.{k}.affine.weight" for k in range(generator.num_ws - 1))]
    else:
        names = [f"convs.{k}.conv.affine.weight" for k in range(generator.num_ws - 1)]
        names.append(f"rgbs.{generator.num_ws // 2 - 1}.conv.affine.weight")
    return [state[name] for name in names]


@pytest.fixture(params=["stylegan2", "stylegan3"])
def network(request):
    torch.manual_seed(3)
    if request.param == "stylegan2":
        return toys.pair()[0]
    return stylegan3.Generator(16, [8] * 4, layers=4, mapping_layers=1)


@pytest.mark.parametrize("layers", [None, (1, 3)])
def test_factorisation_is_the_svd_of_the_stacked_weights(network, layers):
    first, last = layers or (0, network.num_ws - 1)
    found, shares = directions.factorise(network, 4, layers)
    _, values, vectors = np.linalg.svd(np.concatenate(affine_of_latents(network)[first : last + 1]))
    np.testing.assert_allclose(shares, values[:4] ** 2 / (values**2).sum(), rtol=1e-6)
    assert found.shape == (4, network.num_ws, 512) and found.dtype == np.float32
    for direction, vector in zip(found, vectors):
        moved = direction[first : last + 1] * (last + 1 - first) ** 0.5
        assert np.abs(np.abs(moved @ vector) - 1).max() < 1e-5  # the sign is free
        assert (moved == moved[0]).all() and np.linalg.norm(direction) == pytest.approx(1)
    assert not np.delete(found, np.r_[first : last + 1], 1).any()


def test_an_amount_of_one_is_a_standard_deviation_of_the_latents(generator):
    codes = np.random.default_rng(0).normal(size=(9, generator.num_ws, 512)).astype(np.float32)
    for method in directions.METHODS:
        found, _ = directions.find(generator, codes, 3, method)
        for direction in found.reshape(3, -1).astype(np.float64):
            length = np.linalg.norm(direction)
            ddof = int(method == "pca")
            assert (codes.reshape(9, -1) @ direction / length).std(ddof=ddof) == pytest.approx(length, rel=1e-4)
    whole, _ = directions.find(generator, codes, 3)
    part, _ = directions.find(generator, codes, 3, layers=(1, 2))
    np.testing.assert_array_equal(part[:, 1:3], whole[:, 1:3])
    assert not part[:, :1].any() and not part[:, 3:].any()
    with pytest.raises(TalkheadError, match="method 'ica': unknown; take pca or sefa"):
        directions.find(generator, codes, 3, "ica")


@pytest.mark.parametrize("layers, components", [((2, 9), 1), (None, 0), (None, 513)])
def test_layers_and_components_that_are_not_there(generator, layers, components):
    with pytest.raises(TalkheadError, match="layers 2-9: this generator has 0-3|directions: W allows 1 to 512"):
        directions.factorise(generator, components, layers)


def test_regression_on_scores():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(12, 4, 512)).astype(np.float32)
    smiles = np.arange(12) % 3 == 0
    np.testing.assert_allclose(
        directions.regress(codes, smiles), codes[smiles].mean(0) - codes[~smiles].mean(0), atol=1e-5
    )
    scores = rng.normal(size=12)
    line = np.linalg.lstsq(np.column_stack([scores, np.ones(12)]), codes.reshape(12, -1), rcond=None)[0][0]
    np.testing.assert_allclose(directions.regress(codes, scores).ravel(), line, atol=1e-5)
    with pytest.raises(TalkheadError, match="scores: all are equal"):
        directions.regress(codes, np.ones(12))


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def known(toy_weights, tmp_path, monkeypatch):
    """The toy generator, with two bundled directions, and a third file."""
    for name in ("generator.pt", "keypoints.pt", "encoder.pt", "audio2latent.pt", "video_gan.pt"):
        (tmp_path / name).write_bytes((toy_weights / name).read_bytes())
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    generator = checkpoints.load_generator(tmp_path / "generator.pt")
    rng = np.random.default_rng(1)
    for name in ("smile", "frown", "apart/other"):
        path = tmp_path / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        latent = rng.normal(size=(1, generator.num_ws, 512)).astype(np.float32)
        files.write_latents(path, latent, {"generator": generator.fingerprint})
    np.save(tmp_path / "voice.npy", np.zeros((3, 7), np.float32))  # no direction: nothing says whose it is
    return generator


def test_edits_add_up(known, tmp_path):
    assert directions.bundled() == ["frown", "smile"]
    smile, other = (np.load(tmp_path / f"{name}.npy")[0] for name in ("smile", "apart/other"))
    total = directions.edit({"smile": 0.5, str(tmp_path / "apart" / "other.npy"): -2}, known)
    np.testing.assert_allclose(total, 0.5 * smile - 2 * other, atol=1e-6)
    assert not directions.edit({"smile": 0}, known).any()


def test_directions_that_do_not_fit(known, tmp_path):
    files.write_latents(tmp_path / "two.npy", np.zeros((2, 6, 512), np.float32))
    files.write_latents(tmp_path / "tall.npy", np.zeros((1, 10, 512), np.float32))
    files.write_latents(tmp_path / "strange.npy", np.zeros((1, 6, 512), np.float32), {"generator": "somebody"})
    for source, message in (
        ("grin", "grin: no such direction; bundled are frown, smile, strange, or pass a .npy"),
        ("voice", "voice: no such direction"),
        ("strange", "strange.npy: a direction of generator somebody, not of"),
        (tmp_path / "two.npy", "two.npy: holds 2 latents, wanted one direction"),
        (tmp_path / "tall.npy", "tall.npy: has 10 layers, the generator 6"),
        (tmp_path / "none.npy", "none.npy: no such file"),
    ):
        with pytest.raises(TalkheadError) as problem:
            directions.load_direction(source, known)
        assert message in str(problem.value)


def test_written_directions_are_read(known, tmp_path):
    found = np.random.default_rng(2).normal(size=(2, 6, 512)).astype(np.float32)
    directions.write(tmp_path / "found", found, known)
    for index in (1, 2):
        path = tmp_path / "found" / f"component-{index}.npy"
        np.testing.assert_array_equal(directions.load_direction(path, known), found[index - 1])
        assert files.read_about(path) == {"generator": known.fingerprint}


# Faces ----------------------------------------------------------------------------------------------------------------


def test_a_face_is_edited_before_it_speaks(known):
    model = checkpoints.load_audio2latent(checkpoints.bundled("audio2latent"), known)
    motion = checkpoints.load_video_gan(checkpoints.bundled("video_gan"), known)
    code = np.random.default_rng(3).normal(size=(6, 512)).astype(np.float32)
    smile = directions.edit({"smile": 0.5}, known)
    for path in (
        lambda code, **edit: synthesis.speech_to_latents(None, model, code, toys.speech(0.4), **edit),
        lambda code, **edit: synthesis.noise_to_latents(None, motion, code, frames=5, **edit),
    ):
        plain, zero, edited, smiling = (
            np.stack(list(made))
            for made in (path(code), path(code, edit=0 * smile), path(code, edit=smile), path(code + smile))
        )
        np.testing.assert_array_equal(zero, plain)
        np.testing.assert_array_equal(edited, smiling)
        assert np.abs(edited - plain).max() > 0.5


def test_a_photo_moves_against_its_unedited_render(known, puppet):
    """Measured against the edited render, an edit would be invisible."""
    encoder = checkpoints.load_encoder(checkpoints.bundled("encoder"), known)
    model = checkpoints.load_audio2latent(checkpoints.bundled("audio2latent"), known)
    photo = synthesis.identity_of([(image_files.read_image(puppet / "face.png"), None, 0)], known)
    code = synthesis.code_of(encoder, photo, known)
    smile, sound = directions.edit({"smile": 0.5}, known), toys.speech(0.2)
    made = list(synthesis.generate(known, encoder, model, photo, sound, edit=smile))
    path = list(synthesis.speech_to_latents(None, model, code + smile, sound))
    wanted = list(synthesis.with_detail(path, photo, known, code, batch=8))
    np.testing.assert_array_equal(made, wanted)
