"""examples/shape_w.py: one frame for the layers of W+, and a mapping whose W is theirs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from talkhead import checkpoints, files
from talkhead.encoders import ResNetEncoder
from talkhead.image_files import write_image
from talkhead.images import to_images
from talkhead.stylegan import Generator

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import shape_w  # noqa: E402


def pair():
    """A generator and an encoder of 32², with weights of all kinds of values."""
    torch.manual_seed(4)
    generator = Generator(32, channels=[8, 8, 8, 8], z_dim=16, w_dim=16, mapping_layers=2)
    encoder = ResNetEncoder(generator.num_ws, width=4, input_size=32, w_dim=16, w_avg=torch.randn(8, 16))
    torch.nn.init.normal_(encoder.fc.weight, std=0.3)
    for name, bias in generator.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias, std=0.3)
    return generator.eval().requires_grad_(False), encoder.eval().requires_grad_(False)


def test_layers_that_are_turns_of_one_code_are_found_alike():
    torch.manual_seed(0)
    code = torch.randn(300, 16, dtype=torch.float64) * torch.linspace(0.2, 2, 16)
    turns = [torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0] for _ in range(4)]
    codes = torch.stack([2.0 * k + (1 + k) * code @ turn for k, turn in enumerate(turns)], 1)
    mean, scale, rotation, turned = shape_w.common_frame(codes)
    assert torch.allclose(turned, turned.mean(1, keepdim=True).expand_as(turned), atol=1e-6)
    back = torch.einsum("nle,lde->nld", turned, rotation) * scale[:, None] + mean
    assert torch.allclose(back, codes, atol=1e-9) and turned.std().item() == pytest.approx(shape_w.SPREAD, rel=0.01)


def test_images_stay_and_codes_turn():
    generator, encoder = pair()
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = encoder(images)
    before = generator.synthesis(codes)
    frame = shape_w.common_frame(codes)
    shape_w.turn(generator, encoder, *frame[:3])
    assert torch.allclose(encoder(images), frame[3].float(), atol=1e-4)
    assert torch.allclose(generator.synthesis(encoder(images)), before, atol=1e-3 * before.abs().max())
    assert not torch.allclose(generator.synthesis(codes), before, atol=0.1)


def test_the_mapping_draws_what_it_was_fitted_to():
    generator, _ = pair()
    torch.manual_seed(2)
    w = torch.randn(500, 16) * torch.linspace(0.3, 1.5, 16)
    records = list(shape_w.fit_mapping(generator, w, steps=300, batch=256))
    assert records[-1]["sliced_wasserstein"] < records[0]["sliced_wasserstein"] / 4
    drawn = generator.mapping(torch.randn(2000, 16))[:, 0]
    assert torch.allclose(generator.w_avg, w.mean(0))
    assert ((drawn.mean(0) - w.mean(0)) / w.std(0)).abs().max() < 0.3
    assert 0.5 < (drawn.std(0) / w.std(0)).min() and (drawn.std(0) / w.std(0)).max() < 1.3
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_files_from_files(tmp_path):
    generator, encoder = pair()
    header = {"generator": generator.config | {"lineage": ["0123456789abcdef"]}, "encoder": encoder.config}
    for kind, network in ("generator", generator), ("encoder", encoder):
        weights = {"kind": kind, "config": header[kind], "step": 3, "perceptual": None}
        files.save_weights(tmp_path / f"{kind}.pt", weights | {"model": network.state_dict()})
    frames = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for index, frame in enumerate(frames):
        write_image(tmp_path / "images" / f"{index}.png", frame)
    names = ["--generator", "--encoder", "--generator-out", "--encoder-out"]
    paths = [tmp_path / name for name in ("generator.pt", "encoder.pt", "g.pt", "e.pt")]
    line = [sys.executable, EXAMPLES / "shape_w.py", tmp_path / "images", "--steps", "2", "--rank", "24"]
    run = subprocess.run(
        [*map(str, line), *(str(word) for both in zip(names, paths) for word in both)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    records = [json.loads(record) for record in run.stdout.splitlines()]
    assert records[0]["images"] == 40 and 0 < records[0]["common_share"] <= 1 and records[-1]["step"] == 1
    shaped = checkpoints.load_generator(paths[2])
    assert shaped.lineage == {shaped.fingerprint}  # what fitted the generator before does not now
    images = to_images(frames[:4])
    drawn = shaped.synthesis(checkpoints.load_encoder(paths[3])(images))
    wanted = generator.synthesis(encoder(images))
    assert torch.allclose(drawn, wanted, atol=5e-3 * wanted.abs().max())  # of its 32 inputs the last layer keeps 24


def test_an_encoder_that_cannot_be_turned_is_refused():
    with pytest.raises(shape_w.TalkheadError, match="linear last layer"):
        list(shape_w.shape(None, pair()[0], torch.nn.Identity()))
