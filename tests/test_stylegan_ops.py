"""Convolution by fewer multiplications: what torch's own gives, and only where it is faster."""

import pytest
import torch
import torch.nn.functional as F

from talkhead import stylegan_ops
from talkhead.stylegan import Generator


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize(
    "count, inputs, outputs, height, width", [(1, 3, 5, 8, 12), (2, 4, 2, 7, 4), (1, 1, 1, 3, 8), (3, 2, 7, 9, 16)]
)
def test_a_convolution_is_what_the_definition_gives(count, inputs, outputs, height, width, edge):
    x, weight = numbers(count, inputs, height, width), numbers(outputs, inputs, 3, 3, seed=1)
    wanted = F.conv2d(x.double(), weight.double(), padding=(int(edge), 1))
    for picture in (x, x.contiguous(memory_format=torch.channels_last)):
        found = stylegan_ops.conv3x3(picture, weight, edge)
        assert found.shape == wanted.shape and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_parts_make_the_whole(monkeypatch):
    """Kernels and rows of tiles taken a few at a time, as where there are many."""
    x, weight = numbers(2, 6, 20, 8), numbers(10, 6, 3, 3, seed=1)
    whole = stylegan_ops.conv3x3(x, weight)
    monkeypatch.setattr(stylegan_ops, "CHUNK", 36 * 6 * 4)  # two rows of two tiles, and four kernels
    torch.testing.assert_close(stylegan_ops.conv3x3(x, weight), whole, rtol=0, atol=1e-5 * whole.abs().max().item())


def test_it_is_used_where_it_pays():
    x, weight = numbers(1, 128, 4, 32), numbers(128, 128, 3, 3)
    assert not stylegan_ops.pays(x, weight)  # there may be gradients
    with torch.no_grad():
        assert stylegan_ops.pays(x, weight)
        assert not stylegan_ops.pays(x[:, :64], weight[:, :64]) and not stylegan_ops.pays(x, weight[:64])
        assert (
            not stylegan_ops.pays(x, weight[..., 1:2, 1:2])
            and not stylegan_ops.pays(x[..., :16], weight)
            and not stylegan_ops.pays(numbers(1, 128, 4, 34), weight)
        )
        assert not stylegan_ops.pays(x.double(), weight.double()) and not stylegan_ops.pays(
            x.bfloat16(), weight.bfloat16()
        )
        with torch.autocast("cpu", torch.bfloat16):
            assert not stylegan_ops.pays(x, weight)


@pytest.mark.parametrize("count", [1, 2])
def test_a_generator_draws_the_same_picture_with_gradients_and_without(count):
    """Wide enough for it; one picture has its styles multiplied into the weights too."""
    torch.manual_seed(0)
    generator = Generator(64, [128] * 5, mapping_layers=1)
    for layer in (*generator.convs, *generator.rgbs):
        layer.bias.data.normal_()
    w_plus = generator.mapping(numbers(count, 512))
    careful = generator.synthesis(w_plus).detach()
    with torch.no_grad():
        quick = generator.synthesis(w_plus)
    torch.testing.assert_close(quick, careful, rtol=0, atol=1e-5 * careful.abs().max().item())
