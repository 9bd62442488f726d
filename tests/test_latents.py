"""The latent coordinates: arithmetic, interpolation, and the basis against numpy's own decomposition."""

import tracemalloc

import numpy as np
import pytest
import torch

from talkhead.errors import TalkheadError
from talkhead.latents import (
    Basis,
    displace,
    displacement,
    extend_layers,
    lerp,
    mean_latent,
    random_latents,
    slerp,
    z_stream,
)


def codes(count, num_ws=2, seed=0):
    """Codes with a few strong directions, far from the origin: as faces have."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(6, num_ws * 512)) * np.array([[9, 5, 3, 2, 1, 0.5]]).T
    flat = 20 + rng.normal(size=(count, 6)) @ mixing + 0.01 * rng.normal(size=(count, num_ws * 512))
    return torch.tensor(flat, dtype=torch.float32).unflatten(1, (num_ws, 512))


def numpy_components(x, count):
    x = x.flatten(1).double().numpy()
    _, spread, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    rows = rows[:count]
    return rows * np.sign(rows[np.arange(count), np.abs(rows).argmax(1)])[:, None], spread[:count] / np.sqrt(len(x) - 1)


def test_displace_undoes_displacement():
    path, identity = torch.randn(5, 6, 512).double(), torch.randn(6, 512).double()
    assert torch.allclose(displace(identity, displacement(path, identity)), path)
    moved = displace(identity.numpy(), displacement(path.numpy(), identity.numpy()))
    assert isinstance(moved, np.ndarray) and moved.shape == (5, 6, 512)


def test_layers_that_a_generator_grew_are_as_its_last():
    w_plus = torch.randn(3, 4, 512)
    assert extend_layers(w_plus, 4) is w_plus
    larger = extend_layers(w_plus, 6)
    assert (
        torch.equal(larger[:, :4], w_plus)
        and torch.equal(larger[:, 4], w_plus[:, 3])
        and torch.equal(larger[:, 5], w_plus[:, 3])
    )
    np.testing.assert_array_equal(extend_layers(w_plus.numpy(), 6), larger.numpy())


@pytest.mark.parametrize("call", [displace, lambda a, b: displacement(b, a)])
def test_layers_of_another_generator_are_refused(call):
    with pytest.raises(TalkheadError, match="4 layers, identity of 6"):
        call(torch.zeros(6, 512), torch.zeros(1, 4, 512))


def test_interpolation_by_hand():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.allclose(lerp(a, b, 0.25), torch.tensor([0.75, 0.25]))
    assert torch.allclose(slerp(a, b, 0.5), torch.tensor([0.5, 0.5]).sqrt())
    assert torch.allclose(slerp(a, b, 1 / 3), torch.tensor([np.cos(np.pi / 6), np.sin(np.pi / 6)]).float())


def test_slerp_keeps_ends_and_length():
    a, b = torch.nn.functional.normalize(torch.randn(2, 7, 512), dim=-1)
    t = torch.linspace(0, 1, 7)[:, None]
    way = slerp(a, b, t)
    assert torch.allclose(way[0], a[0], atol=1e-6) and torch.allclose(way[-1], b[-1], atol=1e-6)
    assert torch.allclose(way.norm(dim=-1), torch.ones(7), atol=1e-5)


def test_slerp_of_one_direction_is_lerp():
    a = torch.randn(3, 512)
    assert torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a)
    assert torch.allclose(slerp(a, a, 0.3), a)


def test_mean_latent_is_the_mean_of_the_mapping():
    class Generator(torch.nn.Module):
        z_dim = 8

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def mapping(self, z):
            return (z.square() * self.scale)[:, None].expand(-1, 3, -1)

    mean = mean_latent(Generator(), samples=2500, random=z_stream(1))
    assert mean.shape == (8,) and mean.dtype == torch.float32
    assert torch.allclose(mean, torch.full((8,), 2.0), atol=0.2)  # E[2 z²] = 2
    assert torch.equal(mean, mean_latent(Generator(), samples=2500, random=z_stream(1)))
    assert not torch.equal(mean, mean_latent(Generator(), samples=2500, random=z_stream(2)))


def test_random_w_of_a_network_made_by_the_same_seed_are_as_all_others():
    """The mean of 10000 w is a hundredth of their spread from the true one: 1 / √10000."""
    from talkhead.stylegan import Generator

    torch.manual_seed(0)
    generator = Generator(8, [8, 8], mapping_layers=2).requires_grad_(False)
    w = torch.cat(
        [generator.mapping(torch.randn(1000, 512))[:, 0] for _ in range(40)]
    )  # the numbers after those of the weights
    spread = (w - w.mean(0)).norm(dim=1).square().mean().sqrt()
    assert (mean_latent(generator) - w.mean(0)).norm() < 0.015 * spread
    (found,) = random_latents(generator, 1000, 1)
    assert (found[:, 0] - w.mean(0)).norm(dim=1).square().mean().sqrt() == pytest.approx(spread.item(), rel=0.03)


@pytest.mark.parametrize("count", [40, 1300])  # fewer and more codes than the 1024 columns
def test_basis_equals_numpys_decomposition(count):
    x = codes(count)
    basis = Basis.fit(x, 4)
    components, stdev = numpy_components(x, 4)
    assert np.allclose(basis.mean, x.flatten(1).double().mean(0), atol=1e-5)
    assert np.allclose(basis.components, components, atol=1e-5)
    assert np.allclose(basis.stdev, stdev, rtol=1e-5)
    assert basis.components.dtype == basis.mean.dtype == basis.stdev.dtype == torch.float32


@pytest.mark.parametrize("count", [40, 1300])
def test_basis_of_chunks_equals_the_basis_of_all(count):
    x = codes(count)
    whole, parts = Basis.fit(x, 3), Basis.fit((chunk for chunk in x.split(37)), 3)
    assert torch.allclose(whole.components, parts.components, atol=1e-5)
    assert torch.allclose(whole.mean, parts.mean, atol=1e-5)
    assert torch.allclose(whole.stdev, parts.stdev, rtol=1e-5)


@pytest.mark.parametrize("count", [5, 1024, 1025, 2600])  # fewer, as many and more than the columns
def test_uneven_chunks_give_the_exact_components(count):
    """Against the SVD of all at once, and far from the origin.

    Every number to 1e-4 of it, or of the largest beside it.
    """
    x = codes(count, seed=count)
    x = x + 300  # thirty times their spread
    sizes, rng = [0, 1], np.random.default_rng(0)
    while sum(sizes) < count:
        sizes.append(min(int(rng.choice([1, 2, 70, 1500])), count - sum(sizes)))
    basis = Basis.fit(iter(x.split(sizes)), 4)
    components, stdev = numpy_components(x, 4)
    assert np.allclose(basis.components, components, rtol=0, atol=1e-4 * np.abs(components).max())
    assert np.allclose(basis.stdev, stdev, rtol=1e-4) and np.allclose(
        basis.mean, x.flatten(1).double().mean(0), rtol=1e-6
    )


@pytest.mark.parametrize("count", [1000, 5000])
def test_the_memory_of_a_basis_does_not_grow_with_the_codes(count):
    square = 8 * 1024**2  # bytes of a (2·512)² matrix of doubles
    chunks = (np.random.default_rng(k).normal(size=(50, 2, 512)).astype(np.float32) for k in range(count // 50))
    tracemalloc.start()
    Basis.fit(chunks, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert square < peak < 3 * square, peak / square


def test_basis_takes_numpy_codes():
    x = codes(12)
    assert torch.equal(Basis.fit(x.numpy(), 3).components, Basis.fit(x, 3).components)


def test_all_components_rebuild_every_code():
    x = codes(12)
    basis = Basis.fit(x, 11)
    assert torch.allclose(basis.components @ basis.components.T, torch.eye(11), atol=1e-5)
    assert torch.allclose(basis.expand(basis.project(x), add_mean=True), x, atol=1e-3)
    assert torch.allclose(basis.project(x).std(0), basis.stdev, rtol=1e-3)


def test_basis_stays_orthonormal_when_codes_repeat():
    x = codes(4).repeat(5, 1, 1)  # twenty codes, but only three directions
    basis = Basis.fit(x, 6)
    assert torch.allclose(basis.components @ basis.components.T, torch.eye(6), atol=1e-5)
    assert torch.all(basis.stdev[3:] < 1e-3 * basis.stdev[0])


def test_displacements_are_projected_without_the_mean():
    basis = Basis.fit(codes(30), 5)
    h = torch.randn(2, 3, 5)
    assert basis.expand(h).shape == (2, 3, 2, 512)
    assert torch.allclose(basis.project(basis.expand(h), centre=False), h, atol=1e-4)
    assert torch.allclose(basis.project(basis.expand(h, add_mean=True)), h, atol=1e-4)


@pytest.mark.parametrize("components", [0, 5, 2000])
def test_too_few_codes_are_refused(components):
    with pytest.raises(TalkheadError, match="5 latents allow 1 to 4"):
        Basis.fit(codes(5), components)


def test_no_codes_are_refused():
    with pytest.raises(TalkheadError, match="0 latents"):
        Basis.fit(iter([]), 3)


def test_the_bundled_generator_knows_random_faces_until_its_w_avg_says_otherwise():
    from talkhead import checkpoints
    from talkhead.latents import why_not_random

    generator = checkpoints.load_generator(checkpoints.bundled("generator"))
    assert why_not_random(generator) == ""
    mean = mean_latent(generator)
    spread = (generator.mapping(torch.randn(1000, 512)) - mean)[:, 0].square().sum(1).mean().sqrt()
    generator.w_avg.copy_(mean + 0.2 * spread * torch.nn.functional.normalize(torch.ones(512), dim=0))
    assert "is 0.2 std from w_avg" in why_not_random(generator)
