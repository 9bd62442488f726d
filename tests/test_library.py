"""Everything that a README command does, repeated from Python without importing click."""

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from test_cli import run

ROOT = Path(__file__).parents[1]
FACE, SPEECH = ROOT / "examples" / "face.png", ROOT / "examples" / "speech.wav"

# Command: the library's call for it. Both write `out`; {a} is a folder of inputs, made by the first commands.
PAIRS = {
    "align": (
        "align {a}/face.png -o {out}.png --size 128",
        "talkhead.align_clip('{a}/face.png', '{out}.png', find=None, size=128)",
    ),
    "invert": (
        "invert {a}/clip.mp4 -o {out}.npy",
        "talkhead.invert_clip('{a}/clip.mp4', '{out}.npy', G, E)",
    ),
    "hybrid": (
        "invert {a}/one.mp4 --method hybrid --hybrid-steps 3 --next-steps 2 --perceptual pyramid -o {out}.npy",
        "talkhead.invert_clip('{a}/one.mp4', '{out}.npy', G, E, 'hybrid', talkhead.Perceptual('pyramid'),"
        " hybrid_steps=3, next_steps=2)",
    ),
    "speak": (
        "generate --identity {a}/face.png --audio {a}/speech.wav -o {out}.mp4",
        "talkhead.TalkingHead().speak('{a}/face.png', '{a}/speech.wav', '{out}.mp4')",
    ),
    "dub": (
        "generate --identity {a}/clip.mp4 --audio {a}/speech.wav -o {out}.mp4",
        "talkhead.TalkingHead().speak(Path('{a}/clip.mp4'), Path('{a}/speech.wav'), Path('{out}.mp4'))",
    ),
    "move": (
        "generate --identity {a}/face.png --noise-seed 7 --seconds 0.2 --no-detail -o {out}.mp4",
        "talkhead.TalkingHead(drives='video_gan', identity_options={{'detail': False}})"
        ".move('{a}/face.png', '{out}.mp4', segments=[(7, 5)])",
    ),
    "render": (
        "generate --latents {a}/lat.npy -o {out}.mp4",
        "talkhead.TalkingHead(drives=None).render('{a}/lat.npy', '{out}.mp4')",
    ),
    "paste": (
        "paste {a}/clip.mp4 --into {a}/face.png --quads {a}/quads.npy -o {out}.mp4",
        "talkhead.paste_clip('{a}/clip.mp4', '{a}/face.png', '{a}/quads.npy', '{out}.mp4')",
    ),
    "pti": (
        "pti {a}/one.mp4 --steps 2 --batch 1 --perceptual pyramid -o {out}.pt",
        "images, pivots, photo = talkhead.clips.read_tuning_set('{a}/one.mp4', G, E, find=None)\n"
        "list(talkhead.pti.train(images, G, pivots, '{out}.pt', photo=photo, steps=2, batch=1, perceptual="
        "talkhead.Perceptual('pyramid')))",
    ),
    "metrics": (
        "metrics {a}/clip.mp4 {a}/clip.mp4 --no-lmd -o {out}.json",
        "list(talkhead.evaluate([('{a}/clip.mp4', '{a}/clip.mp4')], talkhead.Protocol(lmd=False), '{out}.json'))",
    ),
    "pack": (
        "pack {a}/clip.mp4 --size 32 -o {out}.npy",
        "list(talkhead.pack(['{a}/clip.mp4'], '{out}.npy', 32))",
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "face.png").write_bytes(FACE.read_bytes())
    with wave.open(str(SPEECH)) as speech, wave.open(str(folder / "speech.wav"), "wb") as short:
        short.setparams(speech.getparams())
        short.writeframes(speech.readframes(4800))
    noise = ["generate", "--identity", FACE, "--noise-seed", 3, "--no-detail"]
    for name, seconds in (("clip", 0.2), ("one", 0.04)):
        assert run(*noise, "--seconds", seconds, "-o", folder / f"{name}.mp4").exit_code == 0
    assert run("invert", folder / "clip.mp4", "-o", folder / "lat.npy").exit_code == 0
    square = np.array([(0, 0), (0, 512), (512, 512), (512, 0)]) - 0.5
    np.save(folder / "quads.npy", np.tile(square, (5, 1, 1)))
    return {"a": folder}


@pytest.fixture(scope="module")
def library(places, tmp_path_factory):
    """The folder of what one Python process made by all calls, without click."""
    folder = tmp_path_factory.mktemp("library")
    code = [
        "import sys, torch, talkhead",
        "from pathlib import Path",
        "G = talkhead.load_generator(talkhead.bundled('generator'))",
        "E = talkhead.load_encoder(talkhead.bundled('encoder'), G)",
        *(call.format(**places, out=folder / name) for name, (_, call) in PAIRS.items()),
        "assert 'click' not in sys.modules",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return folder


@pytest.mark.parametrize("name", PAIRS)
def test_the_library_does_what_the_command_does(name, places, library, tmp_path):
    result = run(*PAIRS[name][0].format(**places, out=tmp_path / name).split())
    assert result.exit_code == 0, result.output
    (made,) = (path for path in tmp_path.iterdir() if path.suffix != ".json" or name == "metrics")
    if name == "pti":  # its file keeps the time that it took
        one, other = (torch.load(folder / made.name, weights_only=True)["model"] for folder in (tmp_path, library))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    else:
        assert made.read_bytes() == (library / made.name).read_bytes()
