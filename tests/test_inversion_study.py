"""The inversion study.

Its numbers against values worked by hand and slow loops, and the whole script on toy weights.
"""

import json
import subprocess
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

import toys
from conftest import example
from toys import EXAMPLES

pytest.importorskip("matplotlib", reason="the study draws with matplotlib, which is not installed")


@pytest.fixture(scope="module")
def study():
    return example("inversion_study")


def apart(a, b):
    return float(np.sqrt(np.sum((np.asarray(a, np.float64) - b) ** 2)))


def test_a_path_by_hand(study):
    numbers = study.path_numbers(np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 8.0]]))
    assert numbers == pytest.approx(
        {
            "length": 9,
            "step": 4.5,
            "curvature": 3,
            "bend": 3 / 4.5,
            "spread": (9 + 73**0.5) / 3,
            "stride": 4.5 / ((9 + 73**0.5) / 3),
        }
    )


def test_bend_knows_the_walks_it_is_named_after(study):
    random = np.random.default_rng(0)
    scatter = random.normal(size=(60, 12, 512))
    assert study.path_numbers(np.arange(5.0)[:, None] * [3, 4])["bend"] == pytest.approx(0)
    assert study.path_numbers(np.array([[0.0], [1.0]] * 4))["bend"] == pytest.approx(2)
    assert study.path_numbers(scatter)["bend"] == pytest.approx(3**0.5, rel=0.01)
    assert study.path_numbers(scatter)["stride"] == pytest.approx(1, rel=0.01)
    assert study.path_numbers(scatter.cumsum(0))["bend"] == pytest.approx(2**0.5, rel=0.01)


def test_two_runs_by_hand(study):
    a = np.array([[0.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    pair = study.pair_numbers(a, 2 * a + [1, 0])
    assert pair["between"] == pytest.approx((1 + 5**0.5 + 17**0.5) / 3)
    assert pair["within"] == pytest.approx((8 / 3 + 16 / 3) / 2)
    assert pair["ratio"] == pytest.approx(pair["between"] / 4)


def test_following_tells_a_video_from_time(study):
    frames = np.zeros((6, 2, 2, 3), np.uint8)
    frames[::2] = 200
    to_and_fro, onward = frames[:, 0, 0, 0] / 50.0, np.arange(6.0)
    assert study.following(to_and_fro, frames)["follows"] == pytest.approx(1)
    assert study.following(onward, frames)["drifts"] == pytest.approx(1)
    pairs = list(combinations(range(6), 2))
    by_loop = np.corrcoef([abs(to_and_fro[i] - to_and_fro[j]) for i, j in pairs], [j - i for i, j in pairs])[0, 1]
    assert study.following(to_and_fro, frames)["drifts"] == pytest.approx(by_loop)


def test_losses_of_frames_that_end_at_different_steps(study, tmp_path):
    records = [(1, 0, 5.0), (0, 0, 3.0), (0, 1, 2.0)]
    (tmp_path / "run.jsonl").write_text(
        "".join(json.dumps({"frame": f, "step": s, "loss": loss, "pixel": 0.1}) + "\n" for f, s, loss in records)
    )
    np.testing.assert_array_equal(study.read_losses(tmp_path / "run.jsonl"), [[3, 2], [5, np.nan]])


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_weights):
    """What the script makes of a puppet at its smallest, with toy weights: (folder, its stderr)."""
    pytest.importorskip("espeakng_loader", reason="the puppet speaks by espeak-ng, which is not installed")
    folder = tmp_path_factory.mktemp("study")
    environment = toys.environment(folder / "bin") | {
        "FRAMES": "4",
        "STEPS": "3",
        "NEXT_STEPS": "2",
        "HYBRID_STEPS": "2",
        "PERCEPTUAL": "pyramid",
        "GENERATOR": str(toy_weights / "generator.pt"),
        "ENCODER": str(toy_weights / "encoder.pt"),
    }
    done = subprocess.run(
        [EXAMPLES / "inversion_study.sh", folder / "out"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stderr


@pytest.mark.slow
def test_the_script_measures_what_it_made(made):
    out, said = made
    assert "no CLIP given" in said and "Traceback" not in said
    found = json.loads((out / "study.json").read_text())
    assert found["perceptual"] == "pyramid" and list(found["clips"]) == ["puppet"]
    clip = found["clips"]["puppet"]
    for run, numbers in clip["runs"].items():
        codes = np.load(out / "puppet" / f"{run}.npy").astype(np.float64)
        steps = [apart(codes[t], codes[t - 1]) for t in range(1, 4)]
        turns = [apart(codes[t] + codes[t - 2], 2 * codes[t - 1]) for t in range(2, 4)]
        assert numbers["w_plus"]["length"] == pytest.approx(sum(steps)), run
        assert numbers["w_plus"]["curvature"] == pytest.approx(np.mean(turns)), run
        assert numbers["w_plus"]["bend"] == pytest.approx(np.mean(turns) / np.mean(steps)), run
    alone = [np.load(out / "puppet" / f"optimise-{seed}.npy") for seed in (0, 1)]
    assert clip["pairs"]["optimise"]["between"] == pytest.approx(np.mean([apart(*pair) for pair in zip(*alone)]))
    assert len(clip["claims"]) == 5


@pytest.mark.slow
def test_the_script_reports_the_loss_that_was_made_small(made):
    """The first loss that the log of a run without noise tells is the loss of the code it began at.

    The report's is of the code it ended at.
    """
    out, _ = made
    runs = json.loads((out / "study.json").read_text())["clips"]["puppet"]["runs"]
    first = [record["loss"] for record in map(json.loads, (out / "puppet/hybrid.jsonl").open()) if record["step"] == 0]
    assert len(first) == 4 and runs["encoder"]["loss_of_frame"][0] == pytest.approx(
        first[0], rel=0.02
    )  # hybrid begins at the encoder's code
    assert runs["sequential-0"]["steps"] == 3 + 3 * 2 and runs["optimise-0"]["steps"] == 4 * 3
    assert runs["hybrid"]["lpips"] is None or runs["hybrid"]["lpips"] > 0


@pytest.mark.slow
def test_the_script_draws(made):
    out, _ = made
    for name in (
        "puppet/spaces.png",
        "puppet/methods.png",
        "puppet/paths.png",
        "puppet/strips.png",
        "interpolation.png",
    ):
        with Image.open(out / name) as picture:
            assert min(picture.size) >= 300 and picture.convert("L").getextrema()[0] < 64, name
    table = (out / "study.md").read_text()
    assert "| W+ beats W on the same loss |" in table and "## Interpolation" in table
