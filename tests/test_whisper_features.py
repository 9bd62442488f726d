"""Features of Whisper for distillation, with a stand-in for its network, and the recipe of the character model."""

import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import toys
from conftest import example
from talkhead import audio_files, checkpoints
from talkhead.errors import TalkheadError
from toys import EXAMPLES

script = example("whisper_features")

STAND_IN = '''
import numpy as np


class WhisperModel:
    """Every step's states are eight of its samples and their squares."""

    def __init__(self, path, **options):
        pass

    def feature_extractor(self, audio):
        return np.asarray(audio, np.float32)

    def encode(self, audio):
        chosen = np.pad(audio, (0, 30 * 16000 - len(audio))).reshape(1500, 320)[:, ::40]
        return np.concatenate([chosen, chosen**2], 1)[None]


def pad_or_trim(features):
    return features
'''


def run(*arguments):
    return CliRunner().invoke(script.main, [str(argument) for argument in arguments])


@pytest.fixture
def whisper(tmp_path, monkeypatch):
    """A folder of weights, and faster-whisper replaced."""
    modules = {name: types.ModuleType(name) for name in ("faster_whisper", "faster_whisper.audio")}
    for name, module in modules.items():
        exec(STAND_IN, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper" / "model.bin").touch()
    return tmp_path / "whisper"


def test_blocks_are_joined_without_a_seam():
    audio = np.random.default_rng(0).standard_normal(61 * 16000 + 100).astype(np.float32)
    longest = []

    def encode(block):
        longest.append(len(block))
        return np.resize(block, 480_000).reshape(1500, 320)[:, :2]

    states = script.hidden_states(encode, audio)
    assert max(longest) <= 480_000 and states.dtype == np.float16
    np.testing.assert_array_equal(states, np.pad(audio, (0, 220)).reshape(-1, 320)[:, :2].astype(np.float16))


def test_components_are_those_of_a_singular_value_decomposition():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((400, 6)) * (9, 5, 3, 2, 1, 1)) @ rng.standard_normal((6, 6)) + 3
    project, share = script.principal_components([rows[:150], rows[150:]], 3)
    standard = (rows - rows.mean(0)) / (rows.std(0) + 1e-3)
    left, values, _ = np.linalg.svd(standard, full_matrices=False)
    np.testing.assert_allclose(np.abs(project(rows)), np.abs(left[:, :3]) * 20, atol=0.01)
    np.testing.assert_allclose(share, values[:3] ** 2 / (values[:3] ** 2).sum(), rtol=1e-5)


def test_features_are_written_for_every_recording(tmp_path, whisper):
    (tmp_path / "held").mkdir()
    for number, place in enumerate(("a.wav", "b.wav", "held/c.wav")):
        audio_files.write_audio(tmp_path / place, toys.speech(0.5 + 0.1 * number, number))
    line = [tmp_path / "a.wav", tmp_path / "b.wav", "--model", whisper, "-o", tmp_path / "features.pt"]
    result = run(*line, "--validation", tmp_path / "held", "--components", 3)
    assert result.exit_code == 0, result.output
    found = example("train_speech").Teacher(tmp_path / "features.pt")
    assert {name: rows.shape for name, rows in found.states.items()} == {
        "a.wav": (25, 3),
        "b.wav": (30, 3),
        "c.wav": (35, 3),
    }
    fitted = np.concatenate([found.states["a.wav"], found.states["b.wav"]]).astype(float)
    np.testing.assert_allclose(fitted.T @ fitted / 55, np.eye(3), atol=0.01)  # c.wav does not count
    assert found.share.sum() == pytest.approx(1) and (np.diff(found.share) <= 0).all()


def test_what_is_wrong_is_told_in_a_line(tmp_path, whisper, monkeypatch):
    (tmp_path / "more").mkdir()
    for place in ("a.wav", "more/a.wav"):
        audio_files.write_audio(tmp_path / place, toys.speech(0.5, 0))
    rest = ["-o", tmp_path / "features.pt", "--model"]

    def told(*arguments):
        result = run(*arguments)
        assert result.exit_code == 1 and result.stderr.count("talkhead: ") == 1, result.output
        return result.stderr.splitlines()[-1]

    assert told(tmp_path / "a.wav", *rest, tmp_path).endswith(
        "has no model.bin; pass the folder of Whisper's CTranslate2 weights"
    )
    assert told(tmp_path / "none", *rest, whisper).endswith(
        "none: not found; pass recordings or a folder of recordings"
    )
    assert told(whisper, *rest, whisper).endswith("whisper: no recordings")
    assert "another recording has the same name" in told(tmp_path / "a.wav", tmp_path / "more", *rest, whisper)
    assert "has 16 hidden units; lower --components 64" in told(tmp_path / "a.wav", *rest, whisper)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    assert told(tmp_path / "a.wav", *rest, whisper).endswith("not installed; pip install faster-whisper")
    assert not (tmp_path / "features.pt").exists()


def test_damaged_weights_are_told_in_a_line(whisper, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("Unsupported model binary version")

    monkeypatch.setattr(sys.modules["faster_whisper"], "WhisperModel", broken)
    with pytest.raises(TalkheadError, match=r"whisper: no CTranslate2 weights of Whisper \(Unsupported model binary"):
        script.load(whisper)


@pytest.mark.slow
def test_the_recipe_runs_from_recordings_to_weights_and_on(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    lines = ["file\tspeaker\ttranscript"]
    for number in range(50):  # the 4th, 24th and 44th are held out; the 4th's speaker has another recording
        place = data / "speech" / "some" / f"{number}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        audio_files.write_audio(place, toys.speech(0.5, number))
        lines.append(f"some/{number}.wav\t{'ann' if number in (3, 4) else number}\tWord, {'x' * (number % 3 + 1)}.")
    (data / "speech" / "SOURCES.tsv").write_text("\n".join(lines) + "\n")
    for folder in ("video", "align"):
        (data / "grid_s1" / folder).mkdir(parents=True)
    for name in "pq":
        audio_files.write_audio(data / "sound.wav", toys.speech(1.0, 1))
        shutil.copy(data / "sound.wav", data / "grid_s1" / "video" / f"{name}.mpg")  # read as what it is
        (data / "grid_s1" / "align" / f"{name}.align").write_text("0 12500 sil\n12500 25000 blue\n")
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper" / "model.bin").touch()
    for place in ("faster_whisper/__init__.py", "faster_whisper/audio.py"):
        (tmp_path / "stub" / place).parent.mkdir(parents=True, exist_ok=True)
        # The recipe takes 64 components.
        (tmp_path / "stub" / place).write_text(STAND_IN.replace("::40", "::10"))
    environment = toys.environment(tmp_path / "bin", SCALE=0.001, DEVICE="cpu")
    environment["PYTHONPATH"] += f":{tmp_path / 'stub'}"
    line = [EXAMPLES / "train_speech.sh", data, tmp_path / "whisper", out]
    for _ in range(2):  # and once more: everything is there
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (out / "held-out").rglob("*.wav")) == ["23.wav", "3.wav", "43.wav"]
    assert (out / "held-out" / "seen" / "some" / "3.txt").read_text() == "Word, x.\n"
    weights = checkpoints.read(out / "weights" / "speech.pt")
    assert (weights["kind"], weights["step"], weights["config"]["network"]["embedding"]) == ("speech", 2, 64)
    measured = [json.loads(row) for row in (out / "evaluation.jsonl").read_text().splitlines()]
    assert [row["recordings"] for row in measured] == [1, 2]
    assert torch.load(out / "features.pt", weights_only=True)["share"].shape == (64,)


def test_the_recipe_says_how_it_is_used():
    done = subprocess.run([EXAMPLES / "train_speech.sh"], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.splitlines()[-1].endswith("usage: train_speech.sh DATA WHISPER OUT")
