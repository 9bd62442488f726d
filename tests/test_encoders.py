"""The encoders: against the libraries whose networks they are."""

import copy
import json
import runpy
from pathlib import Path

import pytest
import torch

import toys
from talkhead import checkpoints, encoders
from talkhead.encoders import FaceRecognition, PSPEncoder, ResNetEncoder, ReStyle, reduce_rank
from talkhead.errors import TalkheadError
from talkhead.stylegan import Generator


def test_every_other_pixel_is_what_a_stride_takes():
    from talkhead.encoders import Sparse

    ours, theirs = Sparse(5, 7, 2), torch.nn.Conv2d(5, 7, 1, 2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 5, 9, 8)
    torch.testing.assert_close(ours(images), theirs(images))


def test_narrow_encoders_learn():
    """Torch's own gradient of a 1×1 convolution with a stride kills the process at these sizes, on some processors."""
    encoder = ResNetEncoder(6, width=8, input_size=64)
    for _ in range(3):
        encoder(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


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


def test_a_head_of_lower_rank_keeps_the_codes_of_features_that_span_less():
    torch.manual_seed(0)
    encoder = ResNetEncoder(4, width=4, input_size=32, w_avg=torch.randn(4, 512)).eval()
    features = torch.randn(200, 7) @ torch.randn(7, 32) + torch.randn(32)  # seven directions about a mean
    encoder.features = lambda images: features
    with torch.no_grad():
        encoder.fc.weight.normal_()
        codes, reduced = encoder(None), reduce_rank(encoder, features, 8)
        again = ResNetEncoder(**reduced.config)
        again.load_state_dict(reduced.state_dict())
        again.features = encoder.features
        assert again.fc.weight.shape == (2048, 8) and torch.allclose(again(None), codes, rtol=0, atol=1e-2)
        lower = reduce_rank(encoder, features, 6)
        lower.features = encoder.features
        assert (lower(None) - codes).square().mean() < 0.1 * codes.var()  # the best six of seven
        assert (lower(None) - codes).abs().max() > 0.1
    for network, rank in (encoder, 32), (encoder, 0), (reduced, 4):
        with pytest.raises(TalkheadError, match="rank"):
            reduce_rank(network, features, rank)


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
    with pytest.raises(TalkheadError, match="no such file"):
        ResNetEncoder(4, width=4).load_imagenet(tmp_path / "none.pth")
    torch.save(ResNetEncoder(4, width=6).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(TalkheadError, match="differs from this encoder's 8"):
        ResNetEncoder(4, width=8).load_imagenet(tmp_path / "wide.pth")


def test_stem_stride_is_checked():
    with pytest.raises(TalkheadError, match="1, 2 or 4"):
        ResNetEncoder(4, stem_stride=3)


# ---- pSp, e4e, ReStyle ----

# What the projects' own code answers, four times narrower: weights and picture come from the formula in this script,
# which also compares the whole networks live.
ROOT = Path(__file__).parents[1]
PEERS = runpy.run_path(ROOT / "examples" / "benchmarks" / "peer_encoders.py")
FROZEN_FACE, *FROZEN = [
    json.loads(line) for line in (ROOT / "tests" / "data" / "encoders.jsonl").read_text().splitlines()
]


def theirs(opts):
    """An encoder's state as a project's file would hold it, its mean latent, and a generator for ReStyle."""
    generator = PEERS["small_generator"](opts["output_size"], 128)
    head, deltas = encoders.PSP_TYPES[opts["encoder_type"]]
    state = PSPEncoder(generator.num_ws, head, deltas, width=16, w_dim=128, channels=opts["input_nc"]).state_dict()
    del state["w_avg"]
    PEERS["fill"](state)
    rows = 1 if opts["learn_in_w"] else generator.num_ws
    return state, 0.1 * PEERS["noise"]((rows, 128), 99), (generator.config, generator.state_dict())


def rebuilt(config, state):
    encoder = encoders.build(config, Generator)
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


@pytest.mark.parametrize("record", FROZEN, ids=lambda record: f"{record['project']}-{record['encoder']}")
def test_codes_are_those_of_the_projects_own_code(record):
    state, latent_avg, decoder = theirs(record["opts"])
    encoder = rebuilt(*encoders.from_psp(state, latent_avg, record["opts"], decoder))
    codes = encoder(PEERS["noise"]((1, 3, 256, 256), 7))
    assert codes.shape == (1, 8, 128) and codes.dtype == torch.float32
    wanted = torch.tensor(record["codes"])
    assert (codes[0, :, :3] - wanted).abs().max() < 1e-4 * (wanted - latent_avg[:, :3]).abs().max()
    assert torch.equal(encoder.w_avg.expand(8, 128), latent_avg.expand(8, 128))


def tiny(head="pyramid", **options):
    torch.manual_seed(1)
    return (
        PSPEncoder(**{"num_ws": 8, "head": head, "width": 4, "input_size": 32, "w_dim": 16} | options)
        .eval()
        .requires_grad_(False)
    )


def opts(encoder_type, **more):
    return {"encoder_type": encoder_type, "start_from_latent_avg": True, "output_size": 32} | more


@pytest.mark.parametrize(
    "head, name",
    [
        ("pyramid", "GradualStyleEncoder"),
        ("last", "BackboneEncoder"),
        ("w+", "BackboneEncoderUsingLastLayerIntoWPlus"),
        ("w", "BackboneEncoderUsingLastLayerIntoW"),
    ],
)
def test_shapes_decide_the_sizes_and_what_the_options_leave_out(head, name):
    encoder = tiny(head, input_size=256 if "w" in head else 32, w_avg=torch.randn(8, 16))
    state = encoder.state_dict()
    latent_avg = state.pop("w_avg")
    images = torch.rand(2, 3, 32, 32)
    for options in (opts(name), opts(None), opts(name, label_nc=0, device="cuda:0")):
        config, found = encoders.from_psp(state, latent_avg, options)
        assert config == encoder.config
        assert torch.equal(rebuilt(config, found)(images), encoder(images))
    # An older torch counted no batches.
    uncounted = {key: value for key, value in state.items() if "num_batches" not in key}
    assert torch.equal(rebuilt(*encoders.from_psp(uncounted, latent_avg, opts(name)))(images), encoder(images))


def test_codes_start_at_the_mean_only_if_trained_so():
    encoder = tiny()
    state = encoder.state_dict()
    del state["w_avg"]
    images, mean = torch.rand(1, 3, 32, 32), torch.randn(16)
    from_mean = rebuilt(*encoders.from_psp(state, mean, opts("GradualStyleEncoder")))
    from_zero = rebuilt(*encoders.from_psp(state, mean, opts("GradualStyleEncoder", start_from_latent_avg=False)))
    assert torch.equal(from_zero(images), encoder.offset(images))
    assert torch.equal(from_mean(images), mean + encoder.offset(images))
    with pytest.raises(TalkheadError, match="lacks latent_avg"):
        encoders.from_psp(state, None, opts("GradualStyleEncoder"))
    with pytest.raises(TalkheadError, match=r"latent_avg has shape \(6, 16\), latents \(8, 16\)"):
        encoders.from_psp(state, mean.expand(6, 16), opts("GradualStyleEncoder"))


def test_what_is_no_such_encoder_is_refused_by_name():
    state = tiny().state_dict()
    mean = state.pop("w_avg")
    resnet34 = {"conv1.weight": torch.zeros(1)}
    sketch = state | {"input_layer.0.weight": torch.zeros(4, 1, 3, 3)}
    deeper = state | {"body.24.res_layer.1.weight": torch.zeros(1)}
    torn = {key: value for key, value in state.items() if key != "styles.5.linear.bias"}
    restyle = tiny(channels=6).state_dict()
    for message, weights, kind in [
        ("ResNetBackboneEncoder: its trunk is ResNet34", resnet34, "ResNetBackboneEncoder"),
        (": 1 input channels, of segmentation maps or sketches", sketch, "GradualStyleEncoder"),
        ("not an encoder of pSp, e4e or ReStyle", deeper, "GradualStyleEncoder"),
        ("not an encoder of pSp, e4e or ReStyle", {}, None),
        ("encoder of type Hyper: unknown; known are GradualStyleEncoder", state, "Hyper"),
        ("styles.5.linear.bias is missing", torn, "GradualStyleEncoder"),
        ("latlayer1.bias is missing, unexpected or of another shape", state, "BackboneEncoder"),
        (
            "GradualStyleEncoder: a ReStyle encoder without its generator",
            {key: value for key, value in restyle.items() if key != "w_avg"},
            "GradualStyleEncoder",
        ),
    ]:
        with pytest.raises(TalkheadError, match=message) as error:
            encoders.from_psp(weights, mean, opts(kind))
        assert "\n" not in str(error.value)


def test_deltas_are_added_to_the_first_latent():
    plain, summed = (rebuilt(tiny().config | {"deltas": deltas}, tiny().state_dict()) for deltas in (False, True))
    images = torch.rand(2, 3, 32, 32)
    codes = plain(images)
    assert torch.allclose(summed(images), torch.cat([codes[:, :1], codes[:, :1] + codes[:, 1:]], 1))


@pytest.mark.parametrize("head", ["pyramid", "last", "w+", "w"])
def test_one_picture_or_many_of_any_size(head):
    encoder = tiny(head)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    assert torch.allclose(encoder(images)[1:2], encoder(images[1:2]), atol=1e-5)
    assert torch.allclose(encoder(torch.full((1, 3, 48, 48), 0.5)), encoder(torch.full((1, 3, 32, 32), 0.5)), atol=1e-5)


@pytest.mark.parametrize("num_ws, input_size", [(4, 32), (12, 128), (18, 64)])
def test_every_latent_has_its_own_convolutions(num_ws, input_size):
    encoder = tiny(num_ws=num_ws, input_size=input_size)
    last = {32: 1, 64: 2, 128: 3}[input_size]  # halvings of a map of 2, 4 or 8 pixels
    halvings = [sum(isinstance(part, torch.nn.Conv2d) for part in style.convs) for style in encoder.styles]
    assert halvings == ([last] * 3 + [last + 1] * 4 + [last + 2] * 11)[:num_ws]
    assert encoder(torch.rand(1, 3, input_size, input_size)).shape == (1, num_ws, 16)


def test_sizes_and_heads_are_checked():
    for options in ({"input_size": 16}, {"input_size": 96}, {"head": "neck"}):
        with pytest.raises(TalkheadError, match="take"):
            tiny(**options)
    with pytest.raises(TalkheadError, match="architecture 'vit': unknown"):
        encoders.build({"arch": "vit"})


@pytest.fixture
def restyle():
    torch.manual_seed(2)
    generator = Generator(16, [8, 8, 8], w_dim=16, mapping_layers=1)
    inner = tiny("last", num_ws=6, channels=6, w_avg=torch.randn(16))
    return ReStyle(inner, generator, iterations=3).eval().requires_grad_(False)


def test_restyle_looks_again(restyle):
    images = torch.rand(2, 3, 32, 32)
    wanted = []
    for image in images:  # one at a time, drawn anew for each pass
        code = restyle.w_avg[None]
        for _ in range(3):
            drawn = restyle.decoder.synthesis(code).repeat_interleave(2, 2).repeat_interleave(2, 3)  # 16² seen at 32²
            code = code + restyle.encoder.offset(torch.cat([image[None], drawn], 1))
        wanted.append(code[0])
    assert torch.allclose(restyle(images), torch.stack(wanted), atol=1e-4)


def test_a_restyle_of_another_generator_is_refused(restyle):
    with pytest.raises(TalkheadError, match="encoder has 6 layers, its generator 4"):
        ReStyle(restyle.encoder, Generator(8, [8, 8], w_dim=16))


def test_a_file_rebuilds_every_encoder(tmp_path, restyle):
    images = torch.rand(1, 3, 32, 32)
    for encoder in (restyle, tiny(w_avg=torch.randn(16)), tiny("w"), ResNetEncoder(4, width=4, input_size=32).eval()):
        toys.save_network(tmp_path / "e.pt", "encoder", encoder)
        again = checkpoints.load_encoder(tmp_path / "e.pt")
        assert again.config == encoder.config and again.num_ws == encoder.num_ws
        assert torch.equal(again(images), encoder(images))


# ---- face recognition ----


def face_recognition(path, **options):
    network = FaceRecognition(width=16, size=128, **options)
    PEERS["fill"](network.state_dict())
    torch.save(network.state_dict(), path)
    return network.eval()


def test_embeddings_are_those_of_psps_own_loss(tmp_path):
    face_recognition(tmp_path / "faces.pth")
    found = encoders.load_face_recognition(tmp_path / "faces.pth")(PEERS["noise"]((1, 3, 256, 256), 7))
    (wanted,) = FROZEN_FACE["codes"]
    assert (found[0, :24] - torch.tensor(wanted)).abs().max() < 1e-4 * max(wanted)
    assert found.shape == (1, 128) and found.square().sum().item() == pytest.approx(1, rel=1e-5)


def test_only_the_face_is_recognised(tmp_path):
    network = face_recognition(tmp_path / "faces.pth")
    image = torch.rand(1, 3, 256, 256)
    frame = image.clone()
    frame[:, :, 35:223, 32:220] = 0
    inside = image.clone()
    inside[:, :, 100, 100] = 1 - inside[:, :, 100, 100]
    with torch.no_grad():
        assert torch.equal(network(image), network(image - frame))
        assert not torch.equal(network(image), network(inside))
        # Other sizes are brought to 256² first.
        assert torch.allclose(
            network(torch.full((1, 3, 64, 64), 0.5)), network(torch.full((1, 3, 256, 256), 0.5)), atol=1e-5
        )


def test_the_last_normalisation_may_lack_weights(tmp_path):
    network = face_recognition(tmp_path / "faces.pth", affine=False)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(encoders.load_face_recognition(tmp_path / "faces.pth")(image), network(image))


def test_face_recognition_fills_the_trunk(tmp_path):
    faces = FaceRecognition(width=4, size=6).state_dict()
    torch.save(faces, tmp_path / "faces.pth")
    encoder = tiny()
    before = copy.deepcopy(encoder.state_dict())
    encoder.load_irse(tmp_path / "faces.pth")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, faces[name] if name.startswith(("input_layer", "body")) else before[name])
    with pytest.raises(TalkheadError, match="differs from this encoder's 8"):
        tiny(width=8).load_irse(tmp_path / "faces.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(TalkheadError, match="not the weights of an IR-SE-50"):
        encoder.load_irse(tmp_path / "other.pth")
