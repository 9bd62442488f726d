"""The measures of examples/measure_faces.py, on toy networks and drawn faces."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import example
from puppets import puppet
from talkhead import checkpoints, image_files, landmarks, metrics


@pytest.fixture(scope="module")
def script():
    return example("measure_faces")


def test_detail_is_what_a_mean_of_nine_takes_away(script):
    from scipy import ndimage

    frame = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    image = frame / 127.5 - 1
    fine = image - ndimage.uniform_filter(image, (3, 3, 1), mode="mirror")
    assert script.detail(frame) == pytest.approx(fine.std(ddof=1), rel=1e-5)
    assert script.detail(np.full((8, 8, 3), 77, np.uint8)) == pytest.approx(0, abs=1e-6)


def test_random_faces_are_those_of_the_mapping(script, toy_weights):
    generator = checkpoints.load_generator(toy_weights / "generator.pt")
    found = list(script.random_faces(generator, 20, 0.5, 3))
    z = torch.from_numpy(np.random.default_rng(3).standard_normal((16, generator.z_dim)).astype(np.float32))
    with torch.no_grad():
        wanted = generator(z[:2], 0.5)
    assert (
        len(found) == 20
        and np.abs(np.stack(found[:2]) / 127.5 - 1 - wanted.clamp(-1, 1).permute(0, 2, 3, 1).numpy()).max() < 0.01
    )


def test_every_part_is_measured(script, toy_weights, random_mobilenet, tmp_path, monkeypatch, capsys):
    stills = [replace(puppet.drawn(seed, 64), names=(f"n{seed}",), people=(f"lab:{seed}",)) for seed in range(5)]
    list(puppet.synth(tmp_path / "clips", 3, size=32, frames=2))
    (tmp_path / "people.txt").write_text("# held out\nlab:1\nother:3\nlab:9\n")
    monkeypatch.setattr(puppet, "portraits", lambda *_, **__: stills)
    monkeypatch.setattr(landmarks, "detector", lambda *_: lambda frame: [stills[0].landmarks * len(frame) / 64])
    monkeypatch.setattr(script, "descriptors", lambda chips, weights: chips.mean((1, 2)).astype(np.float32) / 255)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "measure_faces.py",
            "--generator",
            str(toy_weights / "generator.pt"),
            "--encoder",
            str(toy_weights / "encoder.pt"),
            "--portraits",
            "photos",
            "--people",
            str(tmp_path / "people.txt"),
            "--composites",
            str(tmp_path / "clips"),
            "-o",
            str(tmp_path / "out"),
            "--size",
            "48",
            "--count",
            "20",
            "--checked",
            "18",
            "3",
        ],
    )
    script.main()
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    groups = {record["group"]: record for record in records if record["part"] == "inversion"}
    assert (
        groups["all"]["photos"] == groups["lab"]["photos"] == 2
    )  # lab:1, and lab:3, whose id without its collection is 3
    pairs = script.inverted(
        [stills[1], stills[3]],
        checkpoints.load_generator(toy_weights / "generator.pt"),
        checkpoints.load_encoder(toy_weights / "encoder.pt"),
        48,
    )
    assert groups["all"]["psnr"] == pytest.approx(np.mean([metrics.psnr(a[None], b[None]) for a, b in pairs]), abs=0.01)
    assert groups["all"]["sharpness"] == pytest.approx(
        np.mean([script.detail(b) / script.detail(a) for a, b in pairs]), abs=0.001
    )
    drawn, halves = [record for record in records if record["part"] == "drawn"]
    assert (
        drawn["fid_features"] == "mobilenet"
        and drawn["count"] == 20
        and drawn["composites"] == 6
        and halves["count"] == 3
        and drawn["fid"] > 0
    )
    faces_record, composites = [record for record in records if record["part"] == "nobody"]
    assert faces_record["count"] == faces_record["found"] == 18 and composites["count"] == 3
    assert (
        image_files.read_image(tmp_path / "out" / "inverted.png").ndim
        == image_files.read_image(tmp_path / "out" / "drawn.png").ndim
        == 3
    )
