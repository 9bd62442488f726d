"""The encoders: against the libraries whose networks they are."""

import copy

import pytest
import torch

from talkhead.encoders import ResNetEncoder
from talkhead.errors import TalkheadError
from talkhead.stylegan import Generator


@pytest.fixture
def generator():
    """An 8×8 generator, with a mean latent of its own."""
    torch.manual_seed(0)
    generator = Generator(8, [8, 8])
    generator.w_avg.copy_(0.1 * torch.randn(512))
    generator.fingerprint = "0123456789abcdef"
    return generator.eval().requires_grad_(False)


@pytest.fixture
def encoder(generator):
    torch.manual_seed(1)
    encoder = ResNetEncoder(generator.num_ws, width=4, input_size=32, w_avg=generator.w_avg)
    torch.nn.init.normal_(encoder.fc.weight, std=0.3)  # a head with something to say
    return encoder.eval()


def test_trunk_is_torchvisions_resnet18():
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    theirs = models.resnet18().eval()
    for name, buffer in theirs.named_buffers():  # statistics that a slip in the order would show
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    ours = ResNetEncoder(num_ws=2, input_size=64).eval()
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc")}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) == {"fc.weight", "fc.bias", "w_avg"}
    theirs.fc = torch.nn.Identity()
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(ours.features(images), theirs(images))
    assert ours.fc.out_features == 2 * 512


def test_code_is_mean_plus_offset(generator):
    encoder = ResNetEncoder(4, width=4, input_size=32, w_avg=generator.w_avg).eval()
    images = torch.rand(2, 3, 32, 32)
    codes = encoder(images)
    assert codes.shape == (2, 4, 512) and codes.dtype == torch.float32
    assert (codes - generator.w_avg).abs().max() < 0.1  # an untrained encoder answers with the mean face
    with torch.no_grad():
        encoder.fc.weight.zero_()
        encoder.fc.bias.copy_(torch.arange(4 * 512.0))
    assert torch.equal(encoder(images)[0], generator.w_avg + torch.arange(4 * 512.0).view(4, 512))


def test_config_rebuilds_the_encoder():
    encoder = ResNetEncoder(4, width=4, input_size=32, stem_stride=2, pool_size=2)
    again = ResNetEncoder(**encoder.config)
    again.load_state_dict(encoder.state_dict())
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.eval()(images), encoder.eval()(images))


@pytest.mark.parametrize("stride, side", [(4, 1), (2, 2), (1, 4)])
def test_stem_stride_keeps_detail(stride, side):
    encoder = ResNetEncoder(4, width=4, input_size=32, stem_stride=stride).eval()
    x = encoder.maxpool(encoder.conv1(torch.zeros(1, 3, 32, 32)))
    assert encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(x)))).shape[-1] == side


def test_any_size_is_resized_to_the_input(encoder):
    images = torch.full((1, 3, 48, 48), 0.5)
    assert torch.allclose(encoder(images), encoder(torch.full((1, 3, 32, 32), 0.5)), atol=1e-5)


def test_imagenet_fills_the_first_four_blocks(tmp_path):
    models = pytest.importorskip("torchvision").models
    theirs = models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "resnet18.pth")
    encoder = ResNetEncoder(4)
    before = copy.deepcopy(encoder.state_dict())
    encoder.load_imagenet(tmp_path / "resnet18.pth")
    for name, value in encoder.state_dict().items():
        if name.split(".")[0] in ("conv1", "bn1", "layer1", "layer2"):
            assert torch.equal(value, theirs[name])
        else:
            assert torch.equal(value, before[name])


def test_other_imagenet_files_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"?")
    for name in ("other.pth", "broken.pth"):
        with pytest.raises(TalkheadError, match="not torchvision's resnet18"):
            ResNetEncoder(4, width=4).load_imagenet(tmp_path / name)
    with pytest.raises(TalkheadError, match="No such file"):
        ResNetEncoder(4, width=4).load_imagenet(tmp_path / "none.pth")
    torch.save(ResNetEncoder(4, width=6).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(TalkheadError, match="which has 8"):
        ResNetEncoder(4, width=8).load_imagenet(tmp_path / "wide.pth")


def test_stem_stride_is_checked():
    with pytest.raises(TalkheadError, match="1, 2 or 4"):
        ResNetEncoder(4, stem_stride=3)
