"""The shell in one process: options, defaults, exit statuses and messages. Real pipes are in test_pipeline.py."""

import inspect
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import talkhead
import toys
from conftest import example
from talkhead import (
    audio_files,
    checkpoints,
    cli_options,
    faces,
    files,
    fingerprints,
    image_files,
    inversion,
    landmarks,
    video_files,
)
from talkhead.cli import cli
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_images

ROOT = Path(__file__).parents[1]

# What each command must at least be told, to be parsed.
LEAST = {
    "align": ["clip"],
    "paste": ["--into", "clip", "--quads", "q.npy"],
    "invert": ["clip"],
    "generate": [],
    "pti": ["clip", "-o", "x.pt"],
    "metrics": ["a", "b"],
    "synth": ["-o", "x", "--count", "1"],
    "info": ["clip"],
    "pack": ["clips", "-o", "x.npy"],
    "train-stylegan": ["clips", "-o", "x.pt", "--steps", "1"],
    "train-encoder": ["clips", "-o", "x.pt", "--steps", "1"],
    "train-audio2latent": ["clips", "-o", "x.pt", "--steps", "1"],
    "train-video-gan": ["clips", "-o", "x.pt", "--steps", "1"],
    "train_speech": ["spoken", "-o", "x.pt", "--steps", "1"],
    "whisper_features": ["spoken", "-o", "x.pt", "--model", "folder"],
    "plot trajectory": ["a.npy", "-o", "x.png"],
    "plot losses": ["a.jsonl", "-o", "x.png"],
    "plot dashboard": ["a.jsonl", "-o", "x.png"],
    "plot strip": ["a.mp4", "-o", "x.png"],
    "plot mouth": ["a.mp4", "-o", "x.png"],
    "plot interpolate": ["-o", "x.png"],
    "plot components": ["a.npy", "-o", "x.png"],
    "study make": ["ours", "theirs", "-o", "x"],
    "study tally": ["a.csv", "--key", "x.key.json"],
    "weights list": [],
    "weights fetch": ["vgg16"],
    "weights verify": ["x.pt"],
    "weights show": ["x.pt"],
    "weights convert": ["x.pt", "-o", "y.pt"],
    "weights export": ["x.pt", "-o", "y.pt"],
}

# Whose signature the defaults of a command without --set repeat.
LIBRARY = {
    "align": ["clips.align_clip"],
    "paste": ["clips.paste_clip"],
    "generate": ["synthesis.speech_to_latents", "clips.draw_clip", "identities.load_identity"],
    "synth": ["puppets.puppet.synth"],
    "pack": ["datasets.pack"],
    "train_speech": ["train_speech.train", "speech_models.CharacterModel", "training.fit"],
    "plot trajectory": ["plots.trajectories"],
    "plot losses": ["plots.losses"],
    "plot dashboard": ["plots.dashboard"],
    "plot interpolate": ["plots.interpolation"],
    "plot components": ["directions.find", "plots.directions"],
    "study make": ["study.make", "study.pairs"],
    "study tally": ["study.tally"],
    "weights fetch": ["downloads.fetch"],
    "weights convert": ["conversion.convert"],
    "weights export": ["conversion.export"],
}


# Commands of their own in examples/, which answer as those of talkhead do.
SCRIPTS = {name: example(name).main for name in ("study", "synth", "train_speech", "whisper_features")}


def _commands():
    for name, command in [*cli.commands.items(), *SCRIPTS.items()]:
        if isinstance(command, click.Group):
            yield from ((f"{name} {part}", inner) for part, inner in command.commands.items())
        else:
            yield name, command


COMMANDS = list(_commands())


def run(*arguments, stdin=None):
    """Run a command, or a script of examples/, in this process.

    What was printed to each stream, and the exit status.
    """
    arguments = [str(argument) for argument in arguments]
    if arguments and arguments[0] in SCRIPTS:
        return CliRunner().invoke(SCRIPTS[arguments[0]], arguments[1:], input=stdin, prog_name=f"{arguments[0]}.py")
    return CliRunner().invoke(cli, arguments, input=stdin, prog_name="talkhead")


@pytest.fixture
def toy(toy_weights, monkeypatch):
    """The toy networks in the place of the bundled ones."""
    monkeypatch.setattr(checkpoints, "WEIGHTS", toy_weights)
    return toy_weights


# Help, names, options -------------------------------------------------------------------------------------------------


def test_help_takes_a_moment():
    def seconds():
        """Of computing, user's and system's: other programs may keep the clock waiting."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "talkhead", "--help"], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) <= 0.3


def test_the_shell_starts_without_what_is_slow_to_load():
    code = (
        "import sys, talkhead.cli; print(sorted({'torch', 'numpy', 'av', 'PIL', 'scipy', 'tqdm'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[]"


def test_public_names_come_when_asked_for():
    assert talkhead.TalkheadError is TalkheadError
    assert talkhead.read_frames is video_files.read_frames
    assert talkhead.faces is faces
    assert {"align", "generate", "stylegan", "__version__"} <= set(dir(talkhead))
    with pytest.raises(AttributeError, match="no attribute 'nobody'"):
        talkhead.nobody


@pytest.mark.parametrize("name", talkhead.__all__)
def test_every_public_name_is_there(name):
    assert getattr(talkhead, name) is not None


def test_version():
    assert run("--version").output.strip() == f"talkhead, version {talkhead.__version__}"


@pytest.mark.parametrize("name, command", COMMANDS)
def test_help_of_every_command(name, command):
    result = run(*name.split(), "--help")
    assert result.exit_code == 0 and command.help.splitlines()[0] in " ".join(result.output.split())
    for param in command.params:
        assert isinstance(param, click.Argument) or param.help, f"{name} {param.name} says nothing"


@pytest.mark.parametrize("name, command", COMMANDS)
def test_defaults_agree_with_the_library(name, command):
    params = command.make_context(name, list(LEAST[name])).params
    places = LIBRARY.get(name) or [place for param in command.params for place in getattr(param, "functions", ())]
    library = {}
    for place in places:
        if callable(place):
            continue
        room, function = place.rsplit(".", 1)
        home = example(f"talkhead.{room}" if (ROOT / "talkhead" / f"{room}.py").exists() else room)
        for key, parameter in inspect.signature(getattr(home, function)).parameters.items():
            if parameter.default is not parameter.empty:
                library.setdefault(key, set()).add(parameter.default)
    known = params.keys() & library.keys() - {"device", "output", "quads", "progress"}
    assert known or not places or any(isinstance(param, cli_options.Settings) for param in command.params)
    for key in known:
        assert params[key] in (None, ()) or params[key] in library[key], f"{name} --{key}"


WITH_SETTINGS = [pair for pair in COMMANDS if any(isinstance(param, cli_options.Settings) for param in pair[1].params)]


@pytest.mark.parametrize("name, command", WITH_SETTINGS)
def test_any_plain_parameter_of_the_library_can_be_set(name, command):
    def params(*arguments):
        return command.make_context(name, [*LEAST[name], *arguments]).params

    (settings,) = (param for param in command.params if isinstance(param, cli_options.Settings))
    settable = settings.settable(command)
    kinds = {key: kind for key, (kind, _) in settable.items()}
    texts = {bool: ("true", True), str: ("x", "x"), list: ("4,8", [4, 8]), tuple: ("a,b", ("a", "b"))}
    for key, kind in kinds.items():
        number = settable[key].least + (3 if kind is int else 0.25)
        text, value = texts.get(kind, (str(number), number))
        assert params("--set", f"{key}={text}")[key] == value
        flag = f"--{key.replace('_', '-')}"
        assert params(*([flag] if kind is bool else [flag, text]))[key] == value  # as version 0.1 had it
    assert not kinds.keys() & params().keys()
    bounded = [f"{key}={least - 1}" for key, (kind, least) in settable.items() if kind is int]
    numbers = [f"{key}{value}" for key, kind in kinds.items() if kind is float for value in ("=much", "=-1", "=")]
    for text in ("nothing=1", "nothing", *numbers[:3], *bounded):
        result = run(*name.split(), *LEAST[name], "--set", text)
        assert result.exit_code == 2 and "--set" in result.stderr, text
    assert ", ".join(sorted(kinds)) in " ".join(run(*name.split(), *LEAST[name], "--set", "nothing=1").stderr.split())


def test_options_of_version_0_1_are_still_understood():
    params = (
        cli.commands["train-video-gan"]
        .make_context(
            "x",
            "clips -o x.pt --steps 1 --critic-lr 0.5 --r1-every=7 --image-critic --unconditional --warm-up 3".split(),
        )
        .params
    )
    wanted = {"d_lr": 0.5, "r1_interval": 7, "image_discriminator": True, "conditional": False, "burn_in": 3}
    assert wanted.items() <= params.items()


def test_defaults_of_tuning_are_the_same_in_both_commands():
    alone = cli.commands["pti"].make_context("pti", ["face", "-o", "x.pt"]).params
    along = cli.commands["generate"].make_context("generate", []).params
    tuning, training = (inspect.signature(function).parameters for function in (talkhead.tune, talkhead.pti.train))
    identity = inspect.signature(talkhead.load_identity).parameters
    assert identity["tuning_steps"].default == alone["steps"] == tuning["steps"].default
    reading = inspect.signature(talkhead.clips.read_tuning_set).parameters
    assert identity["tuning_frames"].default == reading["limit"].default
    assert along["seed"] == tuning["seed"].default
    shared = tuning.keys() & training.keys() - {"generator", "images", "pivots"}
    assert len(shared) == 8 and all(tuning[name].default == training[name].default for name in shared)


def test_an_option_means_the_same_everywhere():
    shared = {
        "output",
        "generator",
        "encoder",
        "audio2latent",
        "video_gan",
        "seed",
        "device",
        "detector_model",
        "aligned",
        "face",
        "perceptual",
        "fid_features",
    }
    seen = {}
    for name, command in COMMANDS:
        for param in command.params:
            if param.name in shared:
                kind = type(param.type), getattr(param.type, "choices", None), sorted(param.opts)
                assert seen.setdefault(param.name, kind) == kind, f"{name} --{param.name}"
    assert set(seen) == shared


def examples(command):
    """The command lines in a command's help, each pipe's parts by themselves."""
    text = inspect.getdoc(command.callback).replace("\\\n", " ")
    for line in re.findall(r"^ *(?:talkhead |python examples/(?=\w+\.py))(.*)$", text, re.M):
        for part in line.split("|"):
            yield shlex.split(part.split(">")[0].split("<")[0].replace("talkhead ", ""))


@pytest.mark.parametrize("name, command", COMMANDS)
def test_examples_in_the_help_can_be_parsed(name, command):
    lines = list(examples(command))
    assert lines or name == "weights list"
    for line in lines:
        script = line[0].removesuffix(".py")
        group, rest = (SCRIPTS[script], line[1:]) if script in SCRIPTS else (cli, line)
        while isinstance(group, click.Group):
            group, rest = group.commands[rest[0]], rest[1:]
        group.make_context("talkhead", list(rest))


def test_every_command_is_in_the_guides():
    text = "".join(path.read_text() for path in (ROOT / "examples" / "guides").glob("*.md"))
    for name in cli.commands:
        assert f"`{name}`" in text or f"talkhead {name}" in text, name


# Asked wrongly --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nonsense"], "No such command"),
        (["generate"], "pass --identity and --audio or --noise-seed, or --latents"),
        (["generate", "--identity", "a.png"], "pass --identity and --audio"),
        (["generate", "--noise-seed", "7"], "pass --identity and --audio or --noise-seed"),
        (
            ["generate", "--identity", "a.png", "--audio", "a.wav", "--noise-seed", "7"],
            "pass one of --audio, --noise-seed and --latents",
        ),
        (["generate", "--latents", "a.npy", "--noise-seed", "7"], "pass one of --audio, --noise-seed and --latents"),
        (["generate", "--identity", "a.png", "--audio", "a.wav", "--seconds", "2"], "--seconds goes with --noise-seed"),
        (["generate", "--identity", "a.png", "--noise-seed", "x"], "whole numbers with commas"),
        (["train-video-gan", "clips", "-o", "x.pt", "--steps", "1", "--preset", "z"], "Invalid value for '--preset'"),
        (["generate", "--latents", "a.npy", "--identity", "a.npy"], "--identity is then the photo"),
        (
            ["generate", "--identity", "a.png", "--audio", "a.wav", "--whole", "--size", "64"],
            "--whole keeps the photo's size",
        ),
        (
            ["generate", "--identity", "a.png", "--audio", "a.wav", "--whole", "--no-detail"],
            "--whole keeps the photo's size",
        ),
        (["generate", "--identity", "a.npy", "--audio", "a.wav", "--whole"], "want a photo or clip"),
        (["generate", "--latents", "a.npy", "--whole"], "want a photo or clip"),
        (["generate", "--identity", "me.pt", "--audio", "a.wav", "--pti"], "--pti tunes on images"),
        (
            ["generate", "--identity", "a.png", "--audio", "a.wav", "--layers", "4"],
            "wanted the first and the last layer",
        ),
        (
            ["generate", "--identity", "a.png", "--audio", "a.wav", "--layers", "4-2"],
            "wanted the first and the last layer",
        ),
        (["generate", "--latents", "-", "--audio", "-"], "stdin can be read only once"),
        (["generate", "--latents", "a.npy", "--latents-out", "-"], "stdout can carry only one result"),
        (["align", "a.png", "--on-missing", "pray"], "Invalid value for '--on-missing'"),
        (["align", "a.png", "--face", "0"], "wanted largest, left, right or a number from 1, counted from the left"),
        (["paste", "a.mp4", "--quads", "q.npy"], "Missing option '--into'"),
        (["paste", "-", "--into", "-", "--quads", "q.npy"], "stdin can be read only once"),
        (["invert", "a.png", "--steps", "0"], "Invalid value for '--steps'"),
        (["train-stylegan", "clips", "-o", "x.pt"], "Missing option '--steps'"),
        (["train-stylegan", "-o", "x.pt", "--steps", "1"], "Missing argument 'SOURCES"),
        (["train-stylegan", "clips", "-o", "x.pt", "--steps", "1", "--channels", "8,x"], "whole numbers with commas"),
        (
            ["train-stylegan", "clips", "-o", "x.pt", "--steps", "1", "--reconstruct-only", "5"],
            "an encoder reconstructs",
        ),
        (["metrics", "a.mp4"], "a.mp4 has no partner; name real and fake clips by turns"),
        (["metrics"], "name REAL and FAKE, or a --list of such pairs"),
        (["metrics", "-", "-"], "stdin can be read only once"),
        (["metrics", "-", "a", "b", "c"], "stdin is one clip"),
        (["metrics", "a", "b", "--list", "pairs.txt"], "not both"),
        (["metrics", "a", "b", "--shard", "0/2"], "it goes with --list"),
        (
            [
                "generate",
                "--identity",
                "a.png",
                "--audio",
                "a.wav",
                "-o",
                "x.mp4",
                "--model",
                "first",
                "--audio2latent",
                "x.pt",
            ],
            "--model or --audio2latent, not both",
        ),
        (
            ["train-audio2latent", "clips", "-o", "x.pt", "--steps", "1", "--model", "first", "--hidden", "9"],
            "hidden: the first model has no such part",
        ),
        (
            ["train-audio2latent", "clips", "-o", "x.pt", "--steps", "1", "--noise-width", "9"],
            "noise_width: the second model has no such part",
        ),
        (
            ["train-audio2latent", "clips", "-o", "x.pt", "--steps", "1", "--channels", "4,4"],
            "channels: the second model has 5 convolutions",
        ),
        (["align", "--list", "clips.txt"], "name the folder for them"),
        (["align", "a.mp4", "--list", "clips.txt", "-o", "x"], "it is for a single clip; leave it out with --list"),
        (
            ["align", "--list", "clips.txt", "-o", "x", "--quads", "q.npy"],
            "Invalid value for '--quads': it is for a single clip",
        ),
        (
            ["invert", "--list", "clips.txt", "-o", "x", "--log", "l.jsonl"],
            "Invalid value for '--log': it is for a single clip",
        ),
        (
            ["generate", "--list", "pairs.txt", "-o", "x", "--identity", "a.png"],
            "Invalid value for '--identity': it is for a single clip",
        ),
        (
            ["invert", "--list", "clips.txt", "-o", "x", "--shard", "4/4"],
            "--shard 4/4: not a valid shard; shards count from 0",
        ),
        (["invert", "a.mp4", "--shard", "0/4"], "Invalid value for '--shard': it goes with --list"),
        (["align", "a.mp4", "--overwrite"], "--set overwrite goes with --list"),
        (["synth", "-o", "x", "--count", "1", "--shard", "one"], "--shard one: not a valid shard"),
    ],
)
def test_usage_errors_exit_2(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stdout == ""


# Could not ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path, puppet, toy):
    """A folder with one of everything, good and bad; the messages below are about its files."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is not a film.\n" * 100)
    np.save(tmp_path / "lat.npy", np.zeros((3, 6, 512), np.float32))
    np.save(tmp_path / "other.npy", np.zeros((3, 10, 512), np.float32))
    np.save(tmp_path / "nan.npy", np.full((3, 6, 512), np.nan, np.float32))
    np.save(tmp_path / "flat.npy", np.zeros((3, 7), np.float32))
    np.save(tmp_path / "quads.npy", np.array([[(10, 10), (10, 50), (50, 50), (50, 10)]], float))
    files.write_json(tmp_path / "quads.json", {"size": 64, "frame": [64, 64]})
    files.write_latents(tmp_path / "foreign.npy", np.zeros((3, 6, 512), np.float32), {"generator": "somebody"})
    (tmp_path / "torn.pt").write_bytes((toy / "generator.pt").read_bytes()[:5000])
    for name in ("face.png", "clip.mp4", "speech.wav", "wide.png"):
        (tmp_path / name).write_bytes((puppet / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "line, message",
    [
        ("generate --latents none.npy -o out.mp4", "none.npy: no such file"),
        ("generate --latents other.npy -o out.mp4", "this generator of 16 pixels takes (6, 512)"),
        ("generate --latents nan.npy -o out.mp4", "nan.npy, frame 0: holds NaN"),
        ("generate --latents flat.npy -o out.mp4", "flat.npy: holds float32 (3, 7), wanted "),
        ("generate --latents foreign.npy -o out.mp4", "foreign.npy: latents of generator somebody"),
        ("generate --latents text.mp4 -o out.mp4", "text.mp4: not a .npy array"),
        ("generate --latents lat.npy -o nowhere/out.mp4", "folder does not exist"),
        ("generate --latents lat.npy -o out.xyz", "cannot write .xyz"),
        ("generate --latents lat.npy -o out.mp4 --generator torn.pt", "torn.pt: damaged or not weights"),
        (
            "generate --latents lat.npy -o out.mp4 --generator {toy}/encoder.pt",
            "holds an encoder, wanted a generator; pass it as --encoder",
        ),
        ("generate --latents lat.npy -o out.mp4 --audio empty.mp4", "empty.mp4: "),
        ("generate --identity face.png --audio face.png -o out.mp4", "has no sound track"),
        ("generate --identity none.png --audio speech.wav -o out.mp4", "none.png: no such file"),
        ("generate --identity text.mp4 --audio speech.wav -o out.mp4", "text.mp4: not a video"),
        (
            "generate --identity wide.png --audio speech.wav --aligned -o out.mp4",
            "wide.png: 80x64, but an aligned face is square",
        ),
        ("generate --identity face.png --noise-seed 7 --video-gan torn.pt -o out.mp4", "torn.pt: damaged"),
        (
            "generate --identity face.png --noise-seed 7 --video-gan {toy}/audio2latent.pt -o out.mp4",
            "wanted a video_gan; pass it as --audio2latent",
        ),
        ("generate --identity none.png --noise-seed 7 -o out.mp4", "none.png: no such file"),
        ("generate --identity face.png --audio speech.wav --device cuda -o out.mp4", "--device cuda: not usable here"),
        ("paste clip.mp4 --into face.png --quads none.npy -o out.mp4", "none.npy: no such file"),
        (
            "paste clip.mp4 --into face.png --quads flat.npy -o out.mp4",
            "quads: float32, shape (3, 7), wanted (frames, 4, 2)",
        ),
        ("paste none.mp4 --into face.png --quads quads.npy -o out.mp4", "none.mp4: no such file"),
        (
            "paste clip.mp4 --into wide.png --quads quads.npy -o out.mp4",
            "wide.png: 80x64, but the quads are of frames of 64x64; pass the clip that was aligned",
        ),
        ("invert empty.mp4 -o out.npy", "empty.mp4: "),
        ("invert speech.wav -o out.npy", "speech.wav: has no video track"),
        ("invert wide.png -o out.npy", "is not a square face; align it first"),
        ("invert face.png --method hybrid --space z -o out.npy", "encoders give no z; pass --set space=w+"),
        (
            "invert face.png --method optimise --log nowhere/losses.jsonl -o out.npy",
            "nowhere/losses.jsonl: its folder does not exist",
        ),
        ("pti face.png -o nowhere/out.pt", "nowhere/out.pt: its folder does not exist"),
        ("train-encoder clip.mp4 -o face.png/out.pt --steps 1", "face.png/out.pt: its folder does not exist"),
        ("pti text.mp4 -o out.pt", "text.mp4: not a video"),
        ("metrics clip.mp4 wide.png --no-lmd", "bring both clips to one size, as metrics --set size=N does"),
        ("metrics clip.mp4 none.mp4 --no-lmd", "none.mp4: no such file"),
        ("metrics clip.mp4 clip.mp4 --no-lmd -o nowhere/out.jsonl", "nowhere/out.jsonl: its folder does not exist"),
        ("metrics clip.mp4 clip.mp4 --protocol text.mp4", "text.mp4: no protocol of talkhead metrics"),
        (
            "metrics clip.mp4 clip.mp4 --no-lmd --phonemes x",
            "closures and true landmarks need a detector; leave --no-lmd out",
        ),
        ("metrics --list text.mp4 --no-lmd", "text.mp4, line 1: wanted REAL FAKE [RESULT], separated by tabs"),
        ("weights show torn.pt", "torn.pt: damaged"),
        ("weights export none.pt -o out.pt", "none.pt: no such file"),
        ("train-video-gan face.png -o out.pt --steps 1", "face.png: no clips"),
        ("train-video-gan clip.mp4 -o out.pt --steps 1 --encoder none.pt", "none.pt: no such file"),
        ("train-encoder text.mp4 -o out.pt --steps 1", "no frames to train on"),
        ("train-stylegan none -o out.pt --resolution 16 --steps 1", "none: not found"),
        (
            "train-stylegan lat.npy -o out.pt --resolution 16 --steps 1",
            "lat.npy: holds float32 (3, 6, 512), wanted uint8 (frames, size, size, 3)",
        ),
        (
            "train-encoder clip.mp4 --validation flat.npy -o out.pt --steps 1",
            "flat.npy: holds float32 (3, 7), wanted uint8",
        ),
        ("pack none -o out.npy", "none: not found"),
        ("train_speech none -o out.pt --steps 1", "none: not found"),
        ("train_speech speech.wav -o out.pt --steps 1 --teacher none.pt", "none.pt: no such file"),
        (
            "train_speech speech.wav -o out.pt --steps 1",
            "speech.wav: no recordings with transcripts; put the words of NAME.wav into NAME.txt beside it",
        ),
        ("synth --sound-only --text none.txt -o puppets --count 1", "none.txt: cannot be read as text"),
        ("pack clip.mp4 -o nowhere/out.npy", "nowhere/out.npy: its folder does not exist"),
        ("pack clip.mp4 -o out.mp4", "out.mp4: packed frames are a .npy array; end the name in .npy"),
        ("pack text.mp4 wide.png -o out.npy", "text.mp4, wide.png: no frames to train on (text.mp4: not a video"),
        ("pack clip.mp4 lat.npy -o out.npy", "lat.npy: holds float32"),
        ("invert --list none.txt -o out", "none.txt: no such file"),
        ("align --list empty.mp4 -o out", "empty.mp4: holds no items; write SOURCE [RESULT] on each"),
        ("generate --list text.mp4 -o out", "text.mp4, line 1: wanted IDENTITY AUDIO [RESULT], separated by tabs"),
    ],
)
def test_what_could_not_be_done_is_said_in_one_line(scene, toy, monkeypatch, line, message):
    if "--device cuda" in line:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has the device that the test wants missing")
    monkeypatch.chdir(scene)
    before = sorted(scene.rglob("*"))
    result = run(*line.format(toy=toy).split())
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1, result.output
    assert last.startswith("talkhead: ") and message in last
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert sorted(scene.rglob("*")) == before, "something is left behind"


def test_our_own_bugs_keep_their_traceback(scene, monkeypatch):
    def broken(path):
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoints, "describe", broken)
    assert isinstance(run("weights", "show", scene / "torn.pt").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "problem", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")]
)
def test_too_little_memory_is_said_in_one_line(monkeypatch, problem):
    def hungry(path):
        raise problem

    monkeypatch.setattr(checkpoints, "describe", hungry)
    result = run("weights", "show", "x.pt")
    assert result.exit_code == 1 and result.stderr == "talkhead: out of memory; lower --batch, or pass --device cpu\n"


# Done -----------------------------------------------------------------------------------------------------------------


def test_generate_makes_a_marked_video_as_long_as_the_speech(scene):
    out = scene / "out.mp4"
    result = run("generate", "--identity", scene / "face.png", "--audio", scene / "speech.wav", "-o", out)
    assert result.exit_code == 0 and result.stdout == "", result.output
    assert "face.png: its metadata says it is aligned" in result.stderr
    samples = len(audio_files.read_audio(scene / "speech.wav"))
    with video_files.read_frames(out) as video:
        assert files.SYNTHETIC_TYPE in video.metadata.values()
        assert video.fps == video.source_fps == 25 and video.aligned
        assert len(list(video)) == -(-samples * 25 // 16000)
    assert abs(len(audio_files.read_audio(out)) - samples) <= 640 + 1024  # a frame, and AAC's own padding


def test_generate_renders_latents_with_sound_and_label(scene):
    for name, more in {"plain.mp4": [], "marked.mp4": ["--label", "--audio", scene / "speech.wav"]}.items():
        result = run("generate", "--latents", scene / "lat.npy", "-o", scene / name, *more)
        assert result.exit_code == 0, result.output
    plain, marked = ([*video_files.read_frames(scene / name)] for name in ("plain.mp4", "marked.mp4"))
    assert len(plain) == len(marked) == 3
    assert np.abs(plain[0].astype(int) - marked[0])[-3:].max() > 30
    assert len(audio_files.read_audio(scene / "marked.mp4")) > 0


def test_latents_out_renders_the_same_video(scene):
    common = ["generate", "--identity", scene / "clip.mp4", "--audio", scene / "speech.wav", "--no-detail"]
    assert run(*common, "-o", scene / "once", "--latents-out", scene / "path.npy").exit_code == 0
    assert run("generate", "--latents", scene / "path.npy", "-o", scene / "twice").exit_code == 0
    once, twice = (np.stack(list(video_files.read_frames(scene / name))) for name in ("once", "twice"))
    assert np.array_equal(once, twice)
    assert (
        files.read_about(scene / "path.npy")["generator"]
        == checkpoints.load_generator(checkpoints.bundled("generator")).fingerprint
    )


def test_noise_moves_a_face(scene):
    """As long as asked for, the same for the same seed, and written as latents too.

    Faces move alike, segments follow each other.
    """

    def moved(name, seed, face="face.png", seconds=0.4):
        result = run(
            "generate",
            "--identity",
            scene / face,
            "--noise-seed",
            seed,
            "--seconds",
            seconds,
            "-o",
            scene / f"{name}.mp4",
            "--latents-out",
            scene / f"{name}.npy",
        )
        assert result.exit_code == 0 and result.stdout == "", result.output
        with video_files.read_frames(scene / f"{name}.mp4") as video:
            assert files.SYNTHETIC_TYPE in video.metadata.values() and video.sound is None
            assert len(list(video)) == len(np.load(scene / f"{name}.npy")) == round(25 * seconds)
        return np.load(scene / f"{name}.npy")

    one = moved("one", 7)
    assert np.array_equal(moved("again", 7), one) and not np.array_equal(moved("other", 8), one)
    assert np.abs(np.diff(one, axis=0)).max() > 1e-3
    np.testing.assert_allclose(moved("joined", "7,8", seconds=0.8)[:10], one, atol=1e-6)
    assert run("generate", "--latents", scene / "one.npy", "-o", scene / "back").exit_code == 0


def test_one_noise_moves_a_list_of_faces(scene, monkeypatch):
    monkeypatch.chdir(scene)
    (scene / "faces.txt").write_text("face.png\nclip.mp4\n")
    result = run("generate", "--list", "faces.txt", "--noise-seed", 7, "--seconds", 0.2, "-o", "out")
    assert result.exit_code == 0 and "2 done, 0 skipped, 0 failed" in result.stderr, result.output
    assert [len(list(video_files.read_frames(scene / "out" / name))) for name in ("face.mp4", "clip.mp4")] == [5, 5]


def test_a_motion_model_is_trained_and_used(scene, puppet):
    line = [
        "train-video-gan",
        puppet / "clips",
        "-o",
        scene / "mine.pt",
        "--steps",
        2,
        "--batch",
        2,
        "--frames",
        4,
        "--components",
        4,
        "--noise",
        3,
        "--width",
        2,
        "--log-every",
        1,
    ]
    result = run(*line, "--samples", scene / "sheets")
    assert [record["step"] for record in records(result)][-2:] == [1, 2], result.output
    assert image_files.read_image(scene / "sheets" / "00000002.png").shape == (96, 128, 3)
    assert run("weights", "export", scene / "mine.pt", "-o", scene / "small.pt").exit_code == 0
    (told,) = records(run("weights", "show", scene / "small.pt"))
    assert (
        told["kind"] == "video_gan"
        and told["num_ws"] == 6
        and not told["training_state"]
        and told["precision"] == "float16"
    )
    result = run(
        "generate",
        "--identity",
        scene / "face.png",
        "--noise-seed",
        7,
        "--video-gan",
        scene / "small.pt",
        "-o",
        scene / "out.mp4",
    )
    assert result.exit_code == 0 and len(list(video_files.read_frames(scene / "out.mp4"))) == 100, result.output


def test_a_preset_sets_defaults_and_no_more():
    params = (
        cli.commands["train-video-gan"]
        .make_context("x", ["c", "-o", "x.pt", "--steps", "1", "--burn-in", "5", "--preset", "mocogan-hd"])
        .params
    )
    theirs = talkhead.train_video_gan.PRESETS["mocogan-hd"]
    assert {name: params[name] for name in theirs} == theirs | {"burn_in": 5}


def test_gain_of_zero_keeps_still(scene):
    result = run(
        "generate",
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "speech.wav",
        "-o",
        scene / "still",
        "--gain",
        0,
    )
    assert result.exit_code == 0, result.output
    frames = np.stack(list(video_files.read_frames(scene / "still")))
    assert (frames == frames[0]).all()


def test_pti_makes_a_generator_that_the_same_encoder_fits(scene):
    result = run("pti", scene / "face.png", "-o", scene / "me.pt", "--steps", 3, "--perceptual", "pyramid")
    assert result.exit_code == 0, result.output
    assert files.load_weights(scene / "me.pt")["perceptual"] == "pyramid"
    mine = [
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "speech.wav",
        "--no-neutral",
    ]  # pti tunes on the photo as it is
    assert run("generate", *mine, "--generator", scene / "me.pt", "-o", scene / "a").exit_code == 0
    # Both at once is the same as one after the other.
    assert run("generate", *mine, "--pti", "--pti-steps", 3, "-o", scene / "b").exit_code == 0
    a, b = (np.stack(list(video_files.read_frames(scene / name))).astype(int) for name in ("a", "b"))
    assert np.abs(a - b).max() <= 1


@pytest.fixture
def fine(tmp_path):
    """A generator of 512 pixels and its encoder, as options; beside them its motion model."""
    torch = pytest.importorskip("torch")
    from talkhead.encoders import ResNetEncoder
    from talkhead.stylegan import Generator

    torch.manual_seed(0)
    generator = Generator(512, [1] * 8, mapping_layers=1)
    encoder = ResNetEncoder(generator.num_ws, width=2, input_size=16)
    owner, motion = fingerprints.fingerprint(generator.state_dict()), toys.motion_model(generator.num_ws)
    toys.save_network(tmp_path / "fine-generator.pt", "generator", generator)
    toys.save_network(tmp_path / "fine-encoder.pt", "encoder", encoder, generator=owner)
    toys.save_network(tmp_path / "fine-video_gan.pt", "video_gan", motion, nested=True, generator=owner)
    return ["--generator", tmp_path / "fine-generator.pt", "--encoder", tmp_path / "fine-encoder.pt"]


def test_a_photo_is_aligned_for_tuning_at_the_generators_size(puppet, fine, tmp_path, monkeypatch, stub):
    """Against the crop of 512 pixels made by hand; one of 256 pixels, enlarged, is another picture."""
    from talkhead import pti

    seen = []
    monkeypatch.setattr(pti, "train", lambda images, *_, **__: seen.append(images) or [])
    monkeypatch.setattr(pti, "tune", lambda generator, images, *_, **__: seen.append(images) or generator)
    assert run("pti", puppet / "photo.png", "-o", tmp_path / "me.pt", "--perceptual", "pyramid", *fine).exit_code == 0
    photo, points = image_files.read_image(puppet / "photo.png"), np.load(puppet / "landmarks.npy")
    wanted = to_images(faces.align(photo, points, 512)[None])
    assert seen[0].shape == wanted.shape and (seen[0] - wanted).abs().max() < 2 / 127.5
    moving = ["--noise-seed", 1, "--seconds", 0.04, "--pti", "--video-gan", tmp_path / "fine-video_gan.pt"]
    result = run(
        "generate", "--identity", puppet / "photo.png", "--no-neutral", *moving, *fine, "-o", tmp_path / "x.mp4"
    )
    assert result.exit_code == 0, result.output
    assert (seen[1] - wanted).abs().max() < 2 / 127.5
    result = run("pti", puppet / "face.png", "-o", tmp_path / "me.pt", "--perceptual", "pyramid", *fine)
    assert (
        "face.png: 64x64, enlarged to the generator's 512: it learns the blur too" in result.stderr
        and "--size 512" in result.stderr
    )


def test_pti_tells_how_it_goes_and_goes_on(scene):
    line = ["pti", scene / "clip.mp4", "-o", scene / "me.pt", "--perceptual", "pyramid", "--batch", 4, "--log-every", 2]
    said = records(run(*line, "--steps", 4, "--min-delta", 0, "--samples", scene / "sheets"))
    assert [record["step"] for record in said] == [2, 4] and {
        "loss",
        "perceptual",
        "pixel",
        "seconds",
        "images_per_second",
    } <= said[0].keys()
    assert image_files.read_image(scene / "sheets" / "00000004.png").shape == (32, 8 * 16, 3)
    again = run(*line, "--steps", 4, "--min-delta", 0)
    assert (
        again.exit_code == 0
        and again.stdout == ""
        and "me.pt: is done, at step 4; there is nothing left to do" in again.stderr
    )
    more = run(*line, "--steps", 5, "--min-delta", 0)
    assert more.exit_code == 1 and "me.pt: ended at step 4 and cannot be continued" in more.stderr
    other = run("pti", scene / "face.png", *line[2:], "--steps", 4, "--min-delta", 0)
    assert (
        other.exit_code == 1
        and len(other.stderr.splitlines()) == 2
        and re.search(r"tuning.images=\w+, now \w+", other.stderr)
    )
    assert run("weights", "export", scene / "me.pt", "-o", scene / "small.pt").exit_code == 0
    (told,) = records(run("weights", "show", scene / "me.pt"))
    assert (
        told["step"] == 4
        and not told["training_state"]
        and files.load_weights(scene / "small.pt").keys()
        == {"kind", "config", "step", "perceptual", "identity", "photo", "model"}
    )


def test_identity_prepared_once_speaks_as_the_picture_does(scene, monkeypatch):
    assert run("pti", scene / "face.png", "-o", scene / "me.pt", "--steps", 3, "--perceptual", "pyramid").exit_code == 0
    assert run("invert", scene / "face.png", "-o", scene / "face.npy").exit_code == 0
    speech = ["--audio", scene / "speech.wav"]
    assert (
        run(
            "generate",
            "--identity",
            scene / "face.png",
            *speech,
            "--generator",
            scene / "me.pt",
            "--no-detail",
            "-o",
            scene / "a",
        ).exit_code
        == 0
    )
    assert run("generate", "--identity", scene / "face.png", *speech, "--no-detail", "-o", scene / "b").exit_code == 0
    monkeypatch.setattr(checkpoints, "load_encoder", None)  # no encoder is asked
    for identity, like in (("me.pt", "a"), ("face.npy", "b")):
        result = run("generate", "--identity", scene / identity, *speech, "--no-detail", "-o", scene / f"{like} again")
        assert result.exit_code == 0, result.output
        one, other = (
            np.stack(list(video_files.read_frames(scene / name))).astype(int) for name in (f"{like} again", like)
        )
        assert np.abs(one - other).max() <= 1
    result = run("generate", "--identity", scene / "me.pt", *speech, "--generator", scene / "me.pt", "-o", scene / "c")
    assert result.exit_code == 0, result.output
    with (
        video_files.read_frames(scene / "c") as frames,
        video_files.read_frames(scene / "face.png") as photo,
    ):  # a tuned generator keeps the photo, latents do not
        assert frames.size == photo.size
    assert run("generate", "--identity", scene / "face.npy", *speech, "-o", scene / "d").exit_code == 0
    with video_files.read_frames(scene / "d") as frames:
        assert frames.size == (16, 16)


def test_latents_of_other_projects_are_drawn_and_speak(scene):
    import torch

    code = 0.3 * np.random.default_rng(0).standard_normal((1, 6, 512)).astype(np.float32)
    np.save(scene / "code.npy", code)
    np.savez(scene / "projected_w.npz", w=code)
    torch.save(torch.tensor(code), scene / "latents.pt")
    for option, more in (("--latents", []), ("--identity", ["--audio", scene / "speech.wav"])):
        made = []
        for name in ("code.npy", "projected_w.npz", "latents.pt"):
            out = scene / f"{name}{option}.mkv"
            result = run("generate", option, scene / name, *more, "-o", out)
            assert result.exit_code == 0 and result.stderr == "", result.output
            made.append(np.stack(list(video_files.read_frames(out))))
        assert all(np.array_equal(made[0], other) for other in made[1:])
    result = run(
        "generate", "--identity", scene / "latents.pt", "--audio", scene / "speech.wav", "--pti", "-o", scene / "no.mp4"
    )
    assert result.exit_code == 2 and "--pti tunes on images" in result.stderr


def test_identities_of_a_list_may_be_prepared(scene, monkeypatch):
    monkeypatch.chdir(scene)
    assert run("pti", "face.png", "-o", "me.pt", "--steps", 3, "--perceptual", "pyramid").exit_code == 0
    Path("pairs.txt").write_text(
        "me.pt\tspeech.wav\ta.mkv\nface.png\tspeech.wav\tb.mkv\nother.npy\tspeech.wav\tc.mkv\n", encoding="utf-8"
    )
    result = run("generate", "--list", "pairs.txt", "-o", "out")
    assert result.exit_code == 1 and "2 done, 0 skipped, 1 failed" in result.stderr, result.output
    assert run("generate", "--identity", "me.pt", "--audio", "speech.wav", "-o", "a.mkv").exit_code == 0
    np.testing.assert_array_equal(*(np.stack(list(video_files.read_frames(name))) for name in ("a.mkv", "out/a.mkv")))


def test_identities_that_do_not_fit(scene, toy):
    torn = files.load_weights(toy / "generator.pt")
    files.save_weights(scene / "odd.pt", torn | {"identity": torn["model"]["const"]})
    torn["model"]["const"] = torn["model"]["const"] + 1
    files.save_weights(scene / "stranger.pt", torn | {"identity": torn["model"]["w_avg"].expand(6, 512).clone()})
    for more, message in (
        (
            ["--identity", toy / "generator.pt"],
            "generator.pt: holds no face beside the generator; tune again with talkhead pti",
        ),
        (["--identity", scene / "odd.pt"], "odd.pt: its identity is not one finite latent (6, 512)"),
        (["--identity", scene / "stranger.pt"], "audio2latent.pt: this audio2latent was trained against generator"),
        (
            ["--identity", scene / "stranger.pt", "--generator", toy / "generator.pt"],
            "stranger.pt: a face of generator",
        ),
        (["--identity", scene / "foreign.npy"], "foreign.npy: latents of generator somebody"),
        (["--identity", scene / "other.npy"], "identity: has shape (10, 512), this speech model takes (6, 512)"),
        (["--identity", scene / "flat.npy"], "flat.npy: holds float32 (3, 7), wanted"),
    ):
        result = run("generate", *more, "--audio", scene / "speech.wav", "-o", scene / "out.mp4")
        assert result.exit_code == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1, (
            result.output
        )
        assert not (scene / "out.mp4").exists()


def test_eyes_that_blink(scene):
    face = [
        "generate",
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "speech.wav",
        "-o",
        scene / "out",
        "--blink",
        3000,
    ]
    for name, message in (
        ("foreign.npy", "foreign.npy: a direction of generator somebody"),
        ("other.npy", "other.npy: has 10 layers, the generator 6"),
    ):
        result = run(*face, "--blink-latent", scene / name)
        assert result.exit_code == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
    np.save(scene / "blink.npy", np.full((6, 512), 3, np.float32))
    assert run(*face, "--blink-latent", scene / "blink.npy", "--latents-out", scene / "a.npy").exit_code == 0
    assert run(*face[:-4], "-o", scene / "awake", "--latents-out", scene / "b.npy").exit_code == 0
    lids = (np.load(scene / "a.npy") - np.load(scene / "b.npy")) / 3
    assert lids.max() > 0.5 and lids.min() >= -1e-4


@pytest.mark.parametrize(
    "line",
    [
        "--identity {scene}/face.png --audio {scene}/speech.wav --no-detail",
        "--identity {scene}/face.png --noise-seed 7 --seconds 0.2 --no-detail",
        "--latents {scene}/lat.npy",
    ],
    ids=["speak", "move", "render"],
)
def test_edits(scene, line):
    direction = np.random.default_rng(0).normal(size=(1, 6, 512)).astype(np.float32)
    files.write_latents(scene / "smile.npy", direction)
    paths, films = {}, {}
    for amount in (None, 0, 0.5):
        edit = [] if amount is None else ["--edit", f"{scene / 'smile.npy'}={amount}"]
        made = scene / "path.npy", scene / "out.mp4"
        result = run("generate", *line.format(scene=scene).split(), *edit, "--latents-out", made[0], "-o", made[1])
        assert result.exit_code == 0, result.output
        paths[amount], films[amount] = np.load(made[0]), made[1].read_bytes()
    np.testing.assert_array_equal(paths[0], paths[None])
    assert films[0] == films[None] != films[0.5]
    np.testing.assert_allclose(
        paths[0.5][0] - paths[None][0], 0.5 * direction[0], atol=1 if "identity" in line else 1e-6
    )


@pytest.mark.parametrize(
    "edit, status, message",
    [
        ("grin=1", 1, "grin: no such direction; bundled are none, or pass a .npy"),
        ("{scene}/foreign.npy=1", 1, "foreign.npy: a direction of generator somebody"),
        ("{scene}/lat.npy=1", 1, "lat.npy: holds 3 latents, wanted one direction"),
        ("smile", 2, "smile: wanted a direction and its amount, such as smile=0.5"),
        ("smile=much", 2, "smile=much: wanted a direction and its amount"),
        ("smile=nan", 2, "smile=nan: wanted a direction and its amount"),
        ("=1", 2, "=1: wanted a direction and its amount"),
    ],
)
def test_edits_that_cannot_be_made(scene, edit, status, message):
    face = ["--identity", scene / "face.png", "--audio", scene / "speech.wav"]
    result = run("generate", *face, "--edit", edit.format(scene=scene), "-o", scene / "out.mp4")
    assert result.exit_code == status and message in result.stderr.splitlines()[-1], result.output
    assert not (scene / "out.mp4").exists()


def test_sound_by_a_named_pipe_is_waited_for(scene, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    os.mkfifo(scene / "pipe.wav")
    data = (scene / "speech.wav").read_bytes()

    def write():
        with open(scene / "pipe.wav", "wb", buffering=0) as pipe:
            pipe.write(data[:2000])
            time.sleep(2)
            pipe.write(data[2000:])

    writer = threading.Thread(target=write)
    writer.start()
    result = run(
        "generate",
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "pipe.wav",
        "-o",
        scene / "live",
        "--latents-out",
        scene / "live.npy",
    )
    writer.join()
    assert result.exit_code == 0 and "pipe.wav: nothing has come for 0 s; waiting" in result.stderr
    assert (
        run(
            "generate",
            "--identity",
            scene / "face.png",
            "--audio",
            scene / "speech.wav",
            "-o",
            scene / "whole",
            "--latents-out",
            scene / "whole.npy",
        ).exit_code
        == 0
    )
    np.testing.assert_allclose(np.load(scene / "live.npy"), np.load(scene / "whole.npy"), atol=1e-5)


def test_tuned_weights_do_not_fit_a_stranger(scene, tmp_path):
    stranger = files.load_weights(checkpoints.bundled("generator"))
    stranger["model"]["const"] = stranger["model"]["const"] + 1
    files.save_weights(tmp_path / "stranger.pt", stranger)
    result = run(
        "generate",
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "speech.wav",
        "-o",
        scene / "out.mp4",
        "--generator",
        tmp_path / "stranger.pt",
    )
    assert (
        result.exit_code == 1 and "was trained against generator" in result.stderr and not (scene / "out.mp4").exists()
    )


def test_invert_and_metrics(scene):
    result = run("invert", scene / "clip.mp4", "-o", scene / "codes.npy")
    assert result.exit_code == 0 and result.stdout == "", result.output
    assert files.read_latents(scene / "codes.npy").shape == (8, 6, 512)
    result = run("metrics", scene / "clip.mp4", scene / "clip.mp4", "--no-lmd")
    record = json.loads(result.stdout)
    assert record["frames"] == 8 and record["identical"] == 8 and record["ssim"] == pytest.approx(1)


def test_metrics_of_sets(scene):
    for folder in ("real", "fake"):
        (scene / folder).mkdir()
        for name in ("one.mp4", "two.mp4"):
            (scene / folder / name).write_bytes((scene / "clip.mp4").read_bytes())
    (scene / "fake" / "two.mp4").write_text("torn")
    (scene / "real" / "three.mp4").write_bytes((scene / "clip.mp4").read_bytes())
    result = run("metrics", scene / "real", scene / "fake", "--no-lmd")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1 and [set(record) & {"psnr", "error", "pairs"} for record in records] == [
        {"psnr"},
        {"error"},
        {"psnr", "pairs"},
    ]
    assert (
        "1 clips have no partner of the same name" in result.stderr
        and "failed: " in result.stderr
        and "three.mp4" in result.stderr
    )
    (scene / "pairs.txt").write_text(f"{scene}/clip.mp4\t{scene}/clip.mp4\n{scene}/clip.mp4\t{scene}/face.png\n")
    result = run("metrics", "--list", scene / "pairs.txt", "--no-lmd", "-o", scene / "out.jsonl", "--table")
    assert result.exit_code == 0 and result.stdout.splitlines()[0].split() == ["frames", "PSNR", "SSIM"], result.output
    assert len((scene / "out.jsonl").read_text().splitlines()) == 3 and "all 2" in result.stdout
    again = run(
        "metrics",
        "--list",
        scene / "pairs.txt",
        "--no-lmd",
        "-o",
        scene / "out.jsonl",
        "--protocol",
        scene / "out.jsonl",
    )
    assert again.exit_code == 0 and again.stdout == ""
    wrong = run("metrics", "--list", scene / "pairs.txt", "--fps", 5, "--protocol", scene / "out.jsonl")
    assert wrong.exit_code == 1 and "the protocol says 25.0, not --fps 5.0" in wrong.stderr


def test_metrics_of_networks(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = json.loads(run("metrics", "--networks").stdout)
    assert record["networks"] and record["size"] == [16, 16]
    assert "16x16 on cpu" in run("metrics", "--networks", "--table").stdout
    assert run("metrics", "--networks", "-o", "networks.json").stdout == "" and json.loads(
        Path("networks.json").read_text(encoding="utf-8")
    )["size"] == [16, 16]


def test_metrics_of_distributions(scene, toy, monkeypatch):
    line = ["metrics", scene / "clip.mp4", scene / "clip.mp4", "--no-lmd", "--fid"]
    result = run(*line, "--fid-features", "encoder")
    record = json.loads(result.stdout)
    assert record["fid_features"].startswith("encoder-") and record["fid"] == pytest.approx(0, abs=1e-4)
    assert "talkhead: FID of 8 images by 64 features: its covariances are singular" in result.stderr
    monkeypatch.setenv("TORCH_HOME", str(scene))
    result = run(*line)
    assert result.exit_code == 1 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "talkhead weights fetch inception-fid" in result.stderr


def test_metrics_by_inception(scene, toy_inception):
    record = json.loads(run("metrics", scene / "clip.mp4", scene / "face.png", "--no-lmd").stdout)
    assert "fid" not in record
    still = scene / "still"
    still.mkdir()
    for name in "ab":
        (still / f"{name}.png").write_bytes((scene / "face.png").read_bytes())
    record = json.loads(run("metrics", scene / "clip.mp4", still, "--no-lmd", "--fid").stdout)
    assert record["fid_features"] == "inception" and record["fid"] > 1e-4


@pytest.mark.parametrize("method", ["optimise", "sequential", "hybrid"])
def test_invert_by_optimisation(scene, method):
    few = ["--steps", 2, "--next-steps", 1, "--hybrid-steps", 2, "--perceptual", "pyramid"]
    result = run("invert", scene / "face.png", "--method", method, *few, "-o", scene / "codes.npy")
    assert result.exit_code == 0, result.output
    assert files.read_latents(scene / "codes.npy").shape == (1, 6, 512)
    about = files.read_about(scene / "codes.npy")
    assert (about["method"], about["space"], about["perceptual"]) == (method, "w+", "pyramid")
    assert not (scene / "codes.npy.part").exists()


def test_invert_logs_losses(scene):
    result = run(
        "invert",
        scene / "clip.mp4",
        "--method",
        "sequential",
        "--steps",
        7,
        "--next-steps",
        4,
        "--perceptual",
        "pyramid",
        "--log",
        scene / "losses.jsonl",
        "--log-every",
        3,
        "-o",
        scene / "codes.npy",
    )
    assert result.exit_code == 0, result.output
    logged = [json.loads(line) for line in (scene / "losses.jsonl").read_text().splitlines()]
    # Every third step of a frame, and its last.
    assert [(record["frame"], record["step"]) for record in logged] == [(0, 0), (0, 3), (0, 6)] + [
        (frame, step) for frame in range(1, 8) for step in (0, 3)
    ]
    assert set(logged[0]) == {"frame", "step", "loss", "perceptual", "pixel", "lr", "steps"}
    assert all(record["loss"] == pytest.approx(record["perceptual"] + record["pixel"]) for record in logged)


def test_a_resumed_invert_logs_as_if_it_had_never_stopped(scene):
    line = ["invert", scene / "clip.mp4", "--method", "optimise", "--steps", 3, "--perceptual", "pyramid", "--batch", 2]
    assert run(*line, "-o", scene / "whole.npy", "--log", scene / "whole.jsonl").exit_code == 0
    generator = checkpoints.load_generator(checkpoints.bundled("generator"))
    with video_files.read_frames(scene / "clip.mp4") as reader:
        stopped = inversion.invert(
            reader, generator, "optimise", steps=3, perceptual="pyramid", batch=2, partial=scene / "codes.npy.part"
        )
        for _ in range(3):
            next(stopped)
    lines = (scene / "whole.jsonl").read_text().splitlines(keepends=True)
    (scene / "codes.jsonl").write_text("".join(lines[:9]) + lines[9][:11])  # a frame and a half more than was kept
    result = run(*line, "-o", scene / "codes.npy", "--log", scene / "codes.jsonl")
    assert result.exit_code == 0 and "codes.npy.part: going on from what was done" in result.stderr
    assert (scene / "codes.npy").read_bytes() == (scene / "whole.npy").read_bytes()
    assert (scene / "codes.jsonl").read_text() == (scene / "whole.jsonl").read_text()
    assert not (scene / "codes.npy.part").exists()


def test_invert_says_which_loss_it_took_and_who_converged(scene, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(scene))
    result = run(
        "invert",
        scene / "face.png",
        "--method",
        "optimise",
        "--steps",
        4,
        "--tolerance",
        0.1,
        "-o",
        scene / "codes.npy",
    )
    assert "perceptual loss: pyramid, because torch's cache holds no VGG weights for lpips" in result.stderr
    assert "0 of 1 frames converged early; 4 steps in all" in result.stderr
    assert files.read_about(scene / "codes.npy")["perceptual"] == "pyramid"


def test_invert_to_a_pipe_keeps_nothing_beside_it(scene, monkeypatch):
    monkeypatch.chdir(scene)
    before = sorted(scene.iterdir())
    result = run("invert", "face.png", "--method", "optimise", "--steps", 2, "--perceptual", "pyramid")
    assert result.exit_code == 0 and result.stdout_bytes.startswith(b"\x93NUMPY") and sorted(scene.iterdir()) == before


class Stub(landmarks.Detector):
    """Finds the puppet where the fixture pasted it, in every picture that is not blank."""

    name = "stub"

    def __init__(self, landmarks):
        self.landmarks = landmarks

    def _find(self, image):
        return [self.landmarks] if image.std() > 1 else []


@pytest.fixture
def stub(puppet, monkeypatch):
    found = Stub(np.load(puppet / "landmarks.npy"))
    monkeypatch.setattr(landmarks, "detector", lambda *_: found)


def test_align_cuts_the_face_out_and_says_so(scene, puppet, stub):
    result = run("align", puppet / "photo.png", "-o", scene / "out.png", "--size", 64, "--quads", scene / "quads.npy")
    assert result.exit_code == 0, result.output
    assert "photo.png: landmarks by stub" in result.stderr
    assert np.load(scene / "quads.npy").shape == (1, 4, 2)
    with video_files.read_frames(scene / "out.png") as picture:
        assert picture.aligned and picture.size == (64, 64)
        (aligned,) = picture
    (known,) = video_files.read_frames(puppet / "face.png")
    # The photo holds the aligned puppet, so that cutting it out gives it back.
    assert np.abs(aligned[8:-8, 8:-8].astype(int) - known[8:-8, 8:-8]).mean() < 8


@pytest.mark.parametrize("face, taken", [("largest", 1), ("left", 0), ("2", 1)])
def test_one_of_two_faces_is_taken_and_said(scene, puppet, monkeypatch, face, taken):
    """Of a photo with the puppet at the left and, in a mirror, larger at the right."""
    photo = image_files.read_image(puppet / "photo.png")
    finder = Stub(np.load(puppet / "landmarks.npy"))
    finder._find = lambda image: (
        [finder.landmarks, (finder.landmarks - (70, 60)) * 1.2 + (230, 60)] if image.shape[1] == 320 else []
    )
    monkeypatch.setattr(landmarks, "detector", lambda *_: finder)
    image_files.write_image(scene / "two.png", np.concatenate([photo, 255 - photo], 1))
    line = [
        "align",
        scene / "two.png",
        "-o",
        scene / "out.png",
        "--quads",
        scene / "q.npy",
        *(["--face", face] if face != "largest" else []),
    ]
    result = run(*line)
    number = f"number {taken + 1} from the left"
    assert result.exit_code == 0, result.output
    assert (
        f"two.png: 2 faces found, and {f'the largest, {number},' if taken else number} is taken; pass --face for "
        "another\n" in result.stderr
    )
    assert (np.load(scene / "q.npy")[0].mean(0)[0] > 160) == taken
    wanted = image_files.read_image(scene / "out.png")
    result = run(
        "pti",
        scene / "two.png",
        "-o",
        scene / "me.pt",
        "--steps",
        1,
        "--perceptual",
        "pyramid",
        "--face",
        face,
        "--samples",
        scene / "sheets",
    )
    assert result.exit_code == 0 and f"{number}" in result.stderr, result.output
    seen = image_files.read_image(scene / "sheets/00000001.png")[:16]
    assert np.abs(seen.astype(int) - resize(wanted, 16)).mean() < 4
    result = run(
        "generate",
        "--identity",
        scene / "two.png",
        "--audio",
        scene / "speech.wav",
        "-o",
        scene / "out.mp4",
        "--face",
        face,
    )
    assert result.exit_code == 0 and f"{number}" in result.stderr, result.output
    assert run("align", scene / "two.png", "-o", scene / "no.png", "--face", 3).stderr.endswith(
        "two.png: face 3 is wanted, and 2 found; pass another --face\n"
    )


def test_what_is_aligned_is_not_aligned_again(scene, stub):
    result = run("align", scene / "face.png", "-o", scene / "again.png", "--size", 64)
    assert result.exit_code == 0 and "aligned already" in result.stderr
    assert np.array_equal(image_files.read_image(scene / "again.png"), image_files.read_image(scene / "face.png"))


def test_a_talking_head_goes_back_into_the_photo(scene, puppet, stub):
    result = run("align", puppet / "photo.png", "-o", scene / "face.png", "--quads", scene / "q.npy", "--size", 32)
    assert files.read_json(scene / "q.json") == {"size": 32, "frame": [120, 160], "fps": 25.0, "smoothing": 2.0}
    assert (
        run(
            "generate",
            "--identity",
            scene / "face.png",
            "--audio",
            scene / "speech.wav",
            "-o",
            scene / "head.mp4",
            "--no-detail",
        ).exit_code
        == 0
    )
    result = run(
        "paste", scene / "head.mp4", "--into", puppet / "photo.png", "--quads", scene / "q.npy", "-o", scene / "out.mkv"
    )
    assert result.exit_code == 0 and result.stdout == "", result.output
    with video_files.read_frames(scene / "out.mkv") as video:
        assert not video.aligned and video.size == (120, 160) and files.SYNTHETIC_TYPE in video.metadata.values()
        frames = list(video)
    assert len(frames) == 13
    photo = image_files.read_image(puppet / "photo.png").astype(int)
    assert all(np.abs(frame[:20] - photo[:20]).max() < 10 for frame in frames)
    assert np.abs(frames[0].astype(int) - photo)[40:80, 50:90].mean() > 10  # the toy generator draws no faces
    spoken, given = (audio_files.read_audio(path) for path in (scene / "out.mkv", scene / "speech.wav"))
    assert np.corrcoef(spoken[: len(given)], given[: len(spoken)])[0, 1] > 0.9


def test_a_clip_cut_out_and_put_back_is_the_clip(scene, puppet, stub):
    line = ["align", puppet / "in.mp4", "-o", scene / "cut", "--quads", scene / "q.npy", "--smoothing", 0]
    assert run(*line).exit_code == 0
    out = scene / "back.mp4"
    result = run(
        "paste",
        scene / "cut",
        "--into",
        puppet / "in.mp4",
        "--quads",
        scene / "q.npy",
        "-o",
        out,
        "--feather",
        0.1,
        "--no-match-colour",
    )
    assert result.exit_code == 0 and "crops" not in result.stderr, result.output
    before, after = (np.stack(list(video_files.read_frames(path))).astype(float) for path in (puppet / "in.mp4", out))
    assert before.shape == after.shape and 10 * np.log10(255**2 / np.square(before - after).mean()) > 33
    # The cut pictures are silent: the sound is the clip's.
    heard, given = audio_files.read_audio(out), audio_files.read_audio(puppet / "in.mp4")
    assert np.corrcoef(heard[: len(given)], given[: len(heard)])[0, 1] > 0.85  # FFmpeg's AAC of 64 kbit/s


def test_quads_of_what_was_aligned_already_are_the_whole_picture(scene, stub):
    result = run("align", scene / "face.png", "-o", scene / "small.png", "--size", 16, "--quads", scene / "q.npy")
    assert result.exit_code == 0 and files.read_json(scene / "q.json")["size"] == 64
    result = run(
        "paste",
        scene / "face.png",
        "--into",
        scene / "face.png",
        "--quads",
        scene / "q.npy",
        "-o",
        scene / "back.png",
        "--no-match-colour",
    )
    assert result.exit_code == 0, result.output
    assert np.array_equal(image_files.read_image(scene / "back.png"), image_files.read_image(scene / "face.png"))


@pytest.mark.parametrize("on_missing, frames", [("hold", 6), ("skip", 4)])
def test_align_without_a_face_in_some_frames(scene, puppet, stub, on_missing, frames):
    result = run(
        "align",
        puppet / "leaves.mp4",
        "-o",
        scene / "out",
        "--size",
        32,
        "--quads",
        scene / "q.npy",
        "--on-missing",
        on_missing,
    )
    assert result.exit_code == 0, result.output
    assert len(list(video_files.read_frames(scene / "out"))) == frames
    quads = np.load(scene / "q.npy")
    assert quads.shape == (6, 4, 2)
    assert np.isnan(quads).any((1, 2)).tolist() == [
        False,
        False,
        on_missing == "skip",
        on_missing == "skip",
        False,
        False,
    ]


def test_align_fails_where_the_face_is_missing(scene, puppet, stub):
    result = run("align", puppet / "leaves.mp4", "-o", scene / "out.mp4")
    assert result.exit_code == 1 and "leaves.mp4, frame 2: no face found" in result.stderr
    assert not (scene / "out.mp4").exists()


def test_generate_aligns_a_photo_first(scene, puppet, stub):
    result = run(
        "generate", "--identity", puppet / "photo.png", "--audio", scene / "speech.wav", "-o", scene / "out.mp4"
    )
    assert result.exit_code == 0 and "photo.png: aligning the face that stub finds" in result.stderr, result.output


def test_weights_list_show_and_export(scene, toy):
    listed = [json.loads(line) for line in run("weights", "list").stdout.splitlines()]
    assert [record["kind"] for record in listed if "kind" in record] == [
        "audio2latent",
        "encoder",
        "generator",
        "keypoints",
        "video_gan",
    ]
    assert run("weights", "export", toy / "generator.pt", "-o", scene / "small.pt").exit_code == 0
    small, large = (
        json.loads(run("weights", "show", path).stdout) for path in (scene / "small.pt", toy / "generator.pt")
    )
    assert small["precision"] == "float16" and large["precision"] == "float32"
    assert small["fingerprint"] == large["fingerprint"] and small["config"] == large["config"]


def test_other_projects_weights_draw_invert_and_convert(scene, toy):
    assert run("weights", "convert", toy / "generator.pt", "-o", scene / "r.pt", "--to", "nvidia").exit_code == 0
    theirs, ours = (json.loads(run("weights", "show", path).stdout) for path in (scene / "r.pt", toy / "generator.pt"))
    assert theirs["format"] == "nvidia" and theirs["fingerprint"] == ours["fingerprint"]
    for name, path in (("a", scene / "r.pt"), ("b", toy / "generator.pt")):
        result = run("generate", "--latents", scene / "lat.npy", "--generator", path, "-o", scene / name)
        assert result.exit_code == 0 and result.stderr == "", result.output
    a, b = (np.stack(list(video_files.read_frames(scene / name))) for name in "ab")
    assert np.array_equal(a, b)
    result = run(
        "invert", scene / "clip.mp4", "--generator", scene / "r.pt", "-o", scene / "codes.npy"
    )  # the toy encoder knows it
    assert result.exit_code == 0, result.output
    result = run("weights", "convert", toy / "encoder.pt", "-o", scene / "e.pt", "--to", "rosinality")
    assert result.exit_code == 1 and "only a generator can be written for rosinality" in result.stderr


def test_a_warning_is_one_line_on_stderr(scene, toy):
    import torch

    result = run("weights", "convert", toy / "generator.pt", "-o", scene / "r.pt", "--to", "rosinality")
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr == (
        "talkhead: rosinality's code builds no generator of the channels [8, 8, 8]; "
        "change its table to load this file\n"
    )
    contents = files.load_weights(scene / "r.pt")
    torch.save({"g_ema": contents["g_ema"]}, scene / "bare.pt")
    result = run("generate", "--latents", scene / "lat.npy", "--generator", scene / "bare.pt", "-o", scene / "out")
    assert result.stderr == (
        f"talkhead: {scene / 'bare.pt'}: lacks the mean of W; computed from 10000 random z; "
        "talkhead weights convert would record it\n"
    )


def test_train_stylegan_starts_from_rosinalitys_weights_but_does_not_go_on_with_them(scene, toy):
    line = [
        "train-stylegan",
        scene / "clip.mp4",
        "-o",
        scene / "g.pt",
        "--resolution",
        16,
        "--channels",
        "8,8,8",
        "--mapping-layers",
        2,
        *BRIEF,
    ]
    assert len(records(run(*line))) == 2
    assert run("weights", "convert", scene / "g.pt", "-o", scene / "r.pt", "--to", "rosinality").exit_code == 0
    result = run("train-stylegan", scene / "clip.mp4", "-o", scene / "h.pt", "--init", scene / "r.pt", *BRIEF)
    assert len(records(result)) == 2 and "no discriminator" not in result.stderr
    assert run("weights", "convert", scene / "r.pt", "-o", scene / "c.pt").exit_code == 0
    result = run("train-stylegan", scene / "clip.mp4", "-o", scene / "c.pt", "--init", scene / "r.pt", *BRIEF)
    assert result.exit_code == 1 and "is a converted file without optimisers; pass it as --init" in result.stderr


def test_no_bundled_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    result = run("weights", "list")
    assert result.exit_code == 1 and "no weights came with this package" in result.stderr


# Lists ----------------------------------------------------------------------------------------------------------------


def told(path):
    """A manifest, by result."""
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["output"] for record in told}) == len(told)
    return {record["output"]: record for record in told}


def test_align_a_list(scene, puppet, stub, monkeypatch):
    (scene / "clips.txt").write_text(
        f"# what there is\n{puppet}/in.mp4\n{scene}/text.mp4\n\n{puppet}/leaves.mp4\n{scene}/face.png\tmine/face.png\n"
    )
    calls = []
    monkeypatch.setattr(landmarks, "detector", lambda *_, stub=landmarks.detector(): calls.append(1) or stub)
    line = ["align", "--list", scene / "clips.txt", "-o", scene / "out", "--size", 32]
    result = run(*line)
    assert result.exit_code == 1 and result.stdout == "" and calls == [1]
    *failures, summary = result.stderr.splitlines()
    assert len(failures) == 2 and failures[0].startswith(f"talkhead: failed: {scene}/text.mp4: not a video")
    assert summary == f"talkhead: 2 done, 0 skipped, 2 failed; see {scene}/out/manifest.jsonl"
    records = told(scene / "out/manifest.jsonl")
    assert {name: record["status"] for name, record in records.items()} == {
        "in.mp4": "done",
        "text.mp4": "failed",
        "leaves.mp4": "failed",
        "mine/face.png": "done",
    }
    assert records["in.mp4"]["frames"] == 5 and records["in.mp4"]["notes"] == [f"{puppet}/in.mp4: landmarks by stub"]
    assert (
        records["leaves.mp4"]["reason"].startswith(f"{puppet}/leaves.mp4, frame 2: no face found")
        and records["leaves.mp4"]["seconds"] >= 0
    )
    for source, name in ((puppet / "in.mp4", "in.mp4"), (scene / "face.png", "mine/face.png")):
        single = scene / f"single{Path(name).suffix}"
        assert run("align", source, "-o", single, "--size", 32).exit_code == 0
        assert (scene / "out" / name).read_bytes() == single.read_bytes()
    again = run(*line, "--on-missing", "hold")
    assert again.stderr.splitlines()[-1].startswith("talkhead: 1 done, 2 skipped, 1 failed")
    assert told(scene / "out/manifest.jsonl")["in.mp4"] == records["in.mp4"]


@pytest.mark.parametrize("method", ["encoder", "optimise"])
def test_invert_a_list_from_stdin_in_shards(scene, method, monkeypatch):
    monkeypatch.chdir(scene)
    few = ["--method", method, "--steps", 2, "--perceptual", "pyramid"]
    for index in (0, 1):
        result = run(
            "invert", "--list", "-", "-o", "out", "--shard", f"{index}/2", *few, stdin="face.png\nclip.mp4\nwide.png\n"
        )
        lines = result.stderr.splitlines()
        assert lines[0] == f"talkhead, shard {index}/2: {2 - index} of 3 lines of -, by --shard"
        assert (
            lines[-1]
            == f"talkhead, shard {index}/2: 1 done, 0 skipped, {1 - index} failed; see out/manifest-{index}-of-2.jsonl"
        )
        assert result.exit_code == 1 - index
    assert "is not a square face" in told(scene / "out/manifest-0-of-2.jsonl")["wide.npy"]["reason"]
    for name in ("face.png", "clip.mp4"):
        assert run("invert", name, "-o", "single.npy", *few).exit_code == 0
        made = (scene / "out" / name).with_suffix(".npy")
        assert made.read_bytes() == (scene / "single.npy").read_bytes()
        assert made.with_suffix(".json").read_bytes() == (scene / "single.json").read_bytes()
    assert sorted(path.name for path in (scene / "out").iterdir()) == [
        "clip.json",
        "clip.npy",
        "face.json",
        "face.npy",
        "manifest-0-of-2.jsonl",
        "manifest-1-of-2.jsonl",
    ]


@pytest.mark.parametrize("more", [["--label"], ["--pti", "--pti-steps", 2]])
def test_generate_a_list(scene, monkeypatch, more):
    monkeypatch.chdir(scene)
    (scene / "pairs.txt").write_text("face.png\tspeech.wav\nclip.mp4\tspeech.wav\tb.mkv\nface.png\tface.png\n")
    result = run("generate", "--list", "pairs.txt", "-o", "out", *more)
    assert result.exit_code == 1 and "talkhead: failed: face.png: has no sound track" in result.stderr
    records = told(scene / "out/manifest.jsonl")
    assert [record["status"] for record in records.values()] == ["done", "done", "failed"] and list(records) == [
        "face-speech.mp4",
        "b.mkv",
        "face.mp4",
    ]
    assert (records["b.mkv"]["identity"], records["b.mkv"]["audio"], records["b.mkv"]["frames"]) == (
        "clip.mp4",
        "speech.wav",
        13,
    )
    assert run("generate", "--identity", "face.png", "--audio", "speech.wav", "-o", "single.mp4", *more).exit_code == 0
    assert (scene / "out/face-speech.mp4").read_bytes() == (scene / "single.mp4").read_bytes()


def test_networks_of_a_list_are_loaded_once(scene, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        checkpoints, "load_generator", lambda *args, load=checkpoints.load_generator: loaded.append(1) or load(*args)
    )
    (scene / "clips.txt").write_text(f"{scene}/face.png\n{scene}/clip.mp4\n")
    assert run("invert", "--list", scene / "clips.txt", "-o", scene / "out").exit_code == 0 and loaded == [1]


def test_a_clip_that_needs_too_much_memory_is_one_failure_of_a_list(scene, monkeypatch):
    def hungry(*args, encode=inversion.encode, **options):
        yield from encode(*args, **options)
        if len(tried) == 0:
            tried.append(1)
            raise MemoryError

    tried = []
    monkeypatch.setattr(inversion, "encode", hungry)
    (scene / "clips.txt").write_text(f"{scene}/face.png\n{scene}/clip.mp4\n")
    result = run("invert", "--list", scene / "clips.txt", "-o", scene / "out")
    assert result.exit_code == 1 and f"{scene}/face.png: out of memory; lower --batch" in result.stderr
    assert [record["status"] for record in told(scene / "out/manifest.jsonl").values()] == ["failed", "done"]


def test_synth_in_shards(tmp_path, monkeypatch):
    line = ["synth", "-o", tmp_path / "p", "--count", 5, "--start", 3, "--size", 16, "--frames", 1]
    assert [record["step"] for record in records(run(*line, "--shard", "1/2"))] == [4, 6]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "1")
    result = run(*line)
    assert [record["step"] for record in records(result)] == [3, 5, 7]
    assert result.stderr.splitlines() == ["talkhead, shard 0/2: 3 of 5 clips, by the Slurm array"]


# Training -------------------------------------------------------------------------------------------------------------


def records(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


TINY_ENCODER = ["--width", 4, "--input-size", 16]
BRIEF = ["--steps", 2, "--batch", 2, "--log-every", 1]


def test_train_stylegan_and_its_encoder_and_go_on(scene, monkeypatch):
    line = [
        "train-stylegan",
        scene / "clip.mp4",
        "-o",
        scene / "g.pt",
        "--resolution",
        16,
        "--channels",
        "8,8,8",
        "--batch",
        2,
        "--mapping-layers",
        2,
        "--log-every",
        1,
        "--perceptual",
        "pyramid",
        "--encoder-out",
        scene / "e.pt",
        *TINY_ENCODER,
    ]
    assert [record["step"] for record in records(run(*line, "--steps", 2))] == [1, 2]
    assert [record["step"] for record in records(run(*line, "--steps", 3, "--samples", scene / "sheets"))] == [3]
    assert image_files.read_image(scene / "sheets" / "00000003.png").shape == (5 * 16, 8 * 16, 3)
    generator = checkpoints.load_generator(scene / "g.pt")
    checkpoints.load_encoder(scene / "e.pt", generator)  # raises unless they fit
    assert (
        files.load_weights(scene / "g.pt")["perceptual"]
        == files.load_weights(scene / "e.pt")["perceptual"]
        == "pyramid"
    )
    # Sizes not given are those of the file.
    (scene / "e.pt").unlink()
    reads = []
    load = files.load_weights
    monkeypatch.setattr(
        files, "load_weights", lambda path, *more, **options: reads.append(path) or load(path, *more, **options)
    )
    assert records(run(*line, "--steps", 3)) == []  # all is done: the encoder is written again
    assert reads == [scene / "g.pt"]  # once, to resume from: not for each encoder that is saved
    checkpoints.load_encoder(scene / "e.pt", generator)
    onward = ["train-stylegan", scene / "clip.mp4", "-o", scene / "h.pt", "--init", scene / "g.pt", *BRIEF]
    assert len(records(run(*onward))) == 2
    assert checkpoints.load_generator(scene / "h.pt").config == generator.config
    # Around an encoder that is held still, its codes keep their meaning: it fits the result too.
    held = [
        *onward[:2],
        "-o",
        scene / "i.pt",
        *onward[4:],
        "--encoder-init",
        scene / "e.pt",
        "--encoder-lr",
        0,
        "--perceptual",
        "pyramid",
    ]
    assert len(records(run(*held))) == 2
    checkpoints.load_encoder(scene / "e.pt", checkpoints.load_generator(scene / "i.pt"))


def test_train_stylegan_measures_fid(scene, toy_inception):
    line = [
        "train-stylegan",
        scene / "clip.mp4",
        "--resolution",
        16,
        "--channels",
        "8,8,8",
        "--mapping-layers",
        2,
        *BRIEF,
        "--fid-every",
        1,
        "--fid-images",
        5,
    ]
    result = run(*line, "-o", scene / "g.pt")
    assert [record["fid_features"] for record in records(result)] == ["inception"] * 2
    assert "FID of 5 images by 128 features" in result.stderr
    named = {
        record["fid_features"] for record in records(run(*line, "-o", scene / "h.pt", "--fid-features", "encoder"))
    }
    assert len(named) == 1 and named.pop().startswith("encoder-")
    toy_inception.unlink()
    result = run(*line, "-o", scene / "i.pt")
    assert (
        result.exit_code == 1
        and result.stdout == ""
        and "weights fetch inception-fid" in result.stderr
        and not (scene / "i.pt").exists()
    )


def test_train_stylegan_grows(scene):
    small = [
        "train-stylegan",
        scene / "clip.mp4",
        "-o",
        scene / "8.pt",
        "--resolution",
        8,
        "--channels",
        "8,6",
        "--mapping-layers",
        1,
        "--perceptual",
        "pyramid",
        "--encoder-out",
        scene / "e8.pt",
        *TINY_ENCODER,
        *BRIEF,
        "--reconstruct-only",
        2,
    ]
    records(run(*small))
    large = [
        "train-stylegan",
        scene / "clip.mp4",
        "-o",
        scene / "16.pt",
        "--init",
        scene / "8.pt",
        "--encoder-init",
        scene / "e8.pt",
        "--resolution",
        16,
        "--channels",
        "8,6,4",
        "--d-channels",
        "4,4,4",
        "--perceptual",
        "pyramid",
        "--encoder-out",
        scene / "e16.pt",
        *BRIEF,
    ]
    result = run(*large)
    assert len(records(result)) == 2 and "8.pt: no discriminator of these sizes" in result.stderr
    generator = checkpoints.load_generator(scene / "16.pt")
    assert generator.config["channels"] == [8, 6, 4] and generator.config["mapping_layers"] == 1
    assert checkpoints.load_encoder(scene / "e16.pt", generator).num_ws == 6
    result = run(*small[:3], scene / "x.pt", *small[4:], "--encoder-init", scene / "e16.pt")
    assert result.exit_code == 1 and "an encoder of 6 layers, the generator has 4" in result.stderr


def test_train_stylegan_grows_and_shrinks_with_the_widths_of_init(scene):
    line = ["train-stylegan", scene / "clip.mp4", "--mapping-layers", 1, *BRIEF]
    assert len(records(run(*line, "-o", scene / "8.pt", "--resolution", 8, "--channels", "40,36"))) == 2
    for init, size, widths in (
        ("8.pt", 32, [40, 36, 18, 16]),
        ("32.pt", 16, [40, 36, 18]),
        ("32.pt", None, [40, 36, 18, 16]),
    ):
        result = run(
            *line, "-o", scene / f"{size}.pt", "--init", scene / init, *(["--resolution", size] if size else [])
        )
        assert len(records(result)) == 2, result.output
        assert checkpoints.load_generator(scene / f"{size}.pt").config["channels"] == widths


def test_a_grown_generator_is_moved_by_what_moved_its_parent(scene, toy):
    run(
        "train-stylegan",
        scene / "clip.mp4",
        "-o",
        scene / "grown.pt",
        "--init",
        toy / "generator.pt",
        "--encoder-init",
        toy / "encoder.pt",
        "--encoder-lr",
        0,
        "--resolution",
        32,
        "--channels",
        "8,8,8,4",
        "--perceptual",
        "pyramid",
        *BRIEF,
    )
    generator = checkpoints.load_generator(scene / "grown.pt")
    parent = checkpoints.load_generator(toy / "generator.pt").fingerprint
    files.write_latents(scene / "blink.npy", [np.ones((6, 512), np.float32)], {"generator": parent})
    for how in (
        ["--audio", scene / "speech.wav", "--blink", 3000, "--blink-latent", scene / "blink.npy"],
        ["--noise-seed", 1, "--seconds", 0.2],
    ):
        result = run(
            "generate",
            "--identity",
            scene / "face.png",
            *how,
            "--generator",
            scene / "grown.pt",
            "--latents-out",
            scene / "path.npy",
            "-o",
            scene / "out.mp4",
            "--no-detail",
        )
        assert result.exit_code == 0, result.output
        path = np.load(scene / "path.npy")
        moved = path - path[0]
        assert path.shape[1:] == (8, 512) and np.abs(moved).max() > 0
        np.testing.assert_allclose(moved[:, 6:], moved[:, 5:6].repeat(2, 1), atol=1e-5)
        with video_files.read_frames(scene / "out.mp4") as frames:
            assert next(iter(frames)).shape == (generator.resolution,) * 2 + (3,)


def test_packed_frames_train_as_their_clips_do(scene, puppet):
    (scene / "clips").mkdir()
    for clip in (puppet / "clips").glob("*.mp4"):
        (scene / "clips" / clip.name).write_bytes(clip.read_bytes())
    (scene / "clips" / "torn.mp4").write_bytes((scene / "clips" / "000000.mp4").read_bytes()[:3000])
    (scene / "clips" / "wide.png").write_bytes((scene / "wide.png").read_bytes())
    result = run("pack", scene / "clips", "-o", scene / "faces.npy", "--size", 16)
    (record,) = records(result)
    assert record == {"file": str(scene / "faces.npy"), "frames": 48, "size": 16, "left_out": 2}
    said = result.stderr.splitlines()
    assert [Path(line.split(": ")[2]).name for line in said[:2]] == ["torn.mp4", "wide.png"]
    assert said[2:] == ["talkhead: 2 files were left out; 48 frames of the others were taken"]
    train = ["train-stylegan", "--resolution", 16, "--channels", "8,8,8", "--mapping-layers", 2, *BRIEF, "-o"]
    clips, packed = (run(*train, scene / f"{source}.pt", scene / source) for source in ("clips", "faces.npy"))
    assert packed.stderr == "" and clips.stderr.splitlines() == said
    keys = {"generator", "discriminator", "real_logits"}
    assert [{key: record[key] for key in keys} for record in records(clips)] == [
        {key: record[key] for key in keys} for record in records(packed)
    ]


def test_hidden_files_are_passed_over_by_every_command(scene, puppet, monkeypatch):
    """What a kill left behind, what macOS puts beside each file, and what lies in hidden folders."""
    from puppets import puppet as room
    from talkhead import datasets, evaluation, latent_cache

    hidden = ("._clip.mp4", ".clip.1234abcd.mp4", "._face.png", ".trash/clip.mp4", ".trash/face.png")
    for folder in ("ours", "theirs"):
        (scene / folder / ".trash").mkdir(parents=True)
        for name in hidden:
            (scene / folder / name).write_bytes(
                (puppet / "clip.mp4").read_bytes() if name.endswith("mp4") else b"AppleDouble"
            )
        (scene / folder / "clip.mp4").write_bytes((puppet / "clip.mp4").read_bytes())
        (scene / folder / "face.png").write_bytes((puppet / "face.png").read_bytes())
    ours, theirs = scene / "ours", scene / "theirs"
    result = run("pack", ours, "-o", scene / "packed.npy", "--size", 16)
    assert result.exit_code == 0 and json.loads(result.stdout) == {
        "file": str(scene / "packed.npy"),
        "frames": 9,
        "size": 16,
        "left_out": 0,
    }
    assert datasets.clips([ours]) == [ours / "clip.mp4", ours / "face.png"] and latent_cache.list_clips([ours]) == [
        ours / "clip.mp4"
    ]
    assert room._pictures(ours) == [ours / "face.png"]
    assert evaluation.match([ours, theirs]) == ([(str(ours / "clip.mp4"), str(theirs / "clip.mp4"))], [])
    assert [(pair.ours, pair.others) for pair in example("study").pairs([ours, theirs], ())] == [
        (ours / "clip.mp4", theirs / "clip.mp4")
    ]
    (ours / "clip.txt").write_text("Ah")
    (ours / ".trash/clip.txt").write_text("Oh")
    assert [lesson.path for lesson in example("train_speech").recordings([ours])] == [ours / "clip.mp4"]


def test_mixtures_are_said_in_one_line(scene):
    train = ["-o", scene / "x.pt", "--perceptual", "pyramid", *BRIEF]
    image_files.write_image(scene / "small.png", np.zeros((8, 8, 3), np.uint8))
    result = run(
        "train-stylegan", scene / "clip.mp4", scene / "small.png", "--resolution", 16, "--channels", "8,8,8", *train
    )
    assert len(records(result)) == 2
    assert result.stderr.splitlines() == [
        "talkhead: frames of 2 sizes, 8x8 to 64x64, are all resized to 16x16; smaller ones (1 of 9) become blurred",
        "talkhead: films (8 frames) and still images (1) are mixed: a generator learns neither well (thesis §3.5); "
        "train on the images alone, and then on the films with --init",
    ]
    # An encoder is not a generator.
    result = run(
        "train-encoder", scene / "clip.mp4", scene / "face.png", *TINY_ENCODER, *train[:1], scene / "e.pt", *train[2:]
    )
    assert len(records(result)) == 2 and result.stderr == ""


def test_info_tells_generated_from_filmed(scene):
    stream = run("generate", "--latents", scene / "lat.npy", "-o", "-").stdout_bytes
    filmed, piped = records(run("info", scene / "clip.mp4", "-", stdin=stream))
    assert filmed["file"] == str(scene / "clip.mp4") and not filmed["synthetic"]
    assert piped["file"] == "-" and piped["synthetic"] and piped["software"].startswith("talkhead")
    result = run("info", scene / "none.mp4")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1


def test_clips_larger_than_memory_are_sent_to_pack(scene, monkeypatch):
    monkeypatch.setattr(talkhead.datasets, "memory_left", lambda: 10_000)
    result = run("train-stylegan", scene / "clip.mp4", "-o", scene / "x.pt", "--resolution", 64, *BRIEF)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "about 8 frames of 64x64, but memory has room for 0; train on a file made by talkhead pack" in result.stderr


def test_train_encoder(scene):
    line = [
        "train-encoder",
        scene / "clip.mp4",
        "-o",
        scene / "e.pt",
        *BRIEF,
        *TINY_ENCODER,
        "--perceptual",
        "pyramid",
        "--validation",
        scene / "face.png",
        "--validate-every",
        1,
        "--samples",
        scene / "sheets",
        "--samples-every",
        1,
        "--keep",
        1,
    ]
    assert all("validation" in record for record in records(run(*line)))
    assert image_files.read_image(scene / "sheets" / "00000001.png").shape == (2 * 16, 8 * 16, 3)
    assert checkpoints.load_encoder(scene / "e-00000002.pt").num_ws == 6
    onward = [
        "train-encoder",
        scene / "clip.mp4",
        "-o",
        scene / "f.pt",
        "--init",
        scene / "e.pt",
        *BRIEF,
        "--perceptual",
        "pyramid",
    ]
    assert len(records(run(*onward))) == 2
    assert run("weights", "export", scene / "f.pt", "-o", scene / "small.pt").exit_code == 0
    assert json.loads(run("weights", "show", scene / "small.pt").stdout)["perceptual"] == "pyramid"
    weights = files.load_weights(scene / "f.pt")
    files.save_weights(scene / "f.pt", weights | {"perceptual": "lpips"})
    result = run(*onward)
    assert (
        result.exit_code == 1
        and "was trained with perceptual=lpips, now pyramid; resume with the same" in result.stderr
    )


def test_train_psp_and_use_it(scene, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    faces = talkhead.FaceRecognition(width=4, size=8)
    torch.save(faces.state_dict(), tmp_path / "faces.pth")
    line = [
        "train-encoder",
        scene / "clip.mp4",
        "-o",
        scene / "p.pt",
        "--arch",
        "psp",
        "--width",
        4,
        "--input-size",
        32,
        *BRIEF,
        "--perceptual",
        "pyramid",
    ]
    start = ["--irse", tmp_path / "faces.pth", "--identity-network", tmp_path / "faces.pth", "--latent-weight", 0.005]
    record = records(run(*line, *start))[-1]
    wanted = record["pixel"] + 0.8 * record["perceptual"] + 0.1 * record["identity"] + 0.005 * record["latent"]
    assert record["loss"] == pytest.approx(wanted, rel=1e-4)
    assert files.load_weights(scene / "p.pt")["config"]["arch"] == "psp"
    # It is an encoder like any other.
    few = ["--perceptual", "pyramid", "--hybrid-steps", 1]
    for method in ("encoder", "hybrid"):
        assert (
            run(
                "invert",
                scene / "face.png",
                "--encoder",
                scene / "p.pt",
                "--method",
                method,
                *few,
                "-o",
                scene / "p.npy",
            ).exit_code
            == 0
        )
        assert files.read_latents(scene / "p.npy").shape == (1, 6, 512)
    talk = ["--identity", scene / "face.png", "--audio", scene / "speech.wav", "--encoder", scene / "p.pt"]
    assert run("generate", *talk, "-o", scene / "out.mp4").exit_code == 0
    assert (
        run(
            "pti",
            scene / "face.png",
            "--encoder",
            scene / "p.pt",
            "-o",
            scene / "me.pt",
            "--steps",
            1,
            "--perceptual",
            "pyramid",
        ).exit_code
        == 0
    )
    onward = [
        "train-encoder",
        scene / "clip.mp4",
        "-o",
        scene / "q.pt",
        "--init",
        scene / "p.pt",
        *BRIEF,
        "--perceptual",
        "pyramid",
    ]
    assert len(records(run(*onward))) == 2


@pytest.mark.parametrize(
    "wrong",
    [["--irse", "x"], ["--head", "w"], ["--arch", "psp", "--imagenet", "x"], ["--arch", "psp", "--pool-size", 2]],
)
def test_options_of_the_other_architecture_are_refused(wrong):
    result = run(*["train-encoder", "clips", "-o", "x.pt", "--steps", 1], *wrong)
    assert result.exit_code == 2 and "for --arch" in result.stderr


def test_train_speech_and_hear_by_it(scene, puppet):
    (scene / "speech.txt").write_text("Not speech.\n")
    tiny = ["--channels", 4, "--hidden", 6, "--steps", 2, "--batch", 2, "--log-every", 1]
    line = ["train_speech", scene / "speech.wav", scene / "speech.wav", "-o", scene / "s.pt", *tiny]
    told = records(run(*line, "--validation", scene / "speech.wav", "--validate-every", 1))
    assert [record["step"] for record in told] == [1, 2] and all(
        np.isfinite(record["ctc"]) and record["val_cer"] >= 0 for record in told
    )
    assert run("weights", "export", scene / "s.pt", "-o", scene / "half.pt").exit_code == 0
    shown = json.loads(run("weights", "show", scene / "half.pt").stdout)
    assert (shown["kind"], shown["step"], shown["precision"]) == ("speech", 2, "float16")
    widths = [
        "--components",
        4,
        "--channels",
        "4,4,4,4,4",
        "--hidden",
        8,
        "--embedding",
        8,
        "--lstm",
        8,
        "--decoder",
        8,
        "--image-frames",
        0,
    ]
    hear = ["--features", "bundled", "--features-model", scene / "half.pt"]
    train = [
        "train-audio2latent",
        puppet / "clips",
        "-o",
        scene / "a.pt",
        *widths,
        *BRIEF,
        "--hold-out",
        1,
        "--frames",
        4,
        *hear,
    ]
    records(run(*train))
    speak = [
        "generate",
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "speech.wav",
        "-o",
        scene / "out.mp4",
        "--audio2latent",
        scene / "a.pt",
    ]
    assert run(*speak, "--features-model", scene / "s.pt").exit_code == 0
    result = run(*speak, "--generator", scene / "half.pt")
    assert (
        result.exit_code == 1
        and "half.pt: holds a character model, wanted a generator; pass it as --features-model" in result.stderr
    )


def test_train_audio2latent(scene, puppet):
    tiny = [
        "--components",
        4,
        "--channels",
        "4,4,4,4,4",
        "--hidden",
        8,
        "--embedding",
        8,
        "--lstm",
        8,
        "--decoder",
        8,
        "--image-frames",
        2,
    ]
    line = [
        "train-audio2latent",
        puppet / "clips",
        "-o",
        scene / "a.pt",
        *BRIEF,
        *tiny,
        "--frames",
        4,
        "--hold-out",
        1,
        "--perceptual",
        "pyramid",
        "--validate-every",
        1,
    ]
    assert "val_correlation" in records(run(*line))[-1]
    assert files.load_weights(scene / "a.pt")["perceptual"] == "pyramid"
    result = run(
        "generate",
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "speech.wav",
        "-o",
        scene / "out.mp4",
        "--audio2latent",
        scene / "a.pt",
    )
    assert result.exit_code == 0, result.output


def test_train_the_first_model_and_speak_with_it(scene, puppet):
    tiny = [
        "--channels",
        "4,4,4,4",
        "--lstm",
        8,
        "--decoder",
        8,
        "--identity-width",
        4,
        "--noise-width",
        3,
        "--image-frames",
        2,
    ]
    line = [
        "train-audio2latent",
        puppet / "clips",
        *BRIEF,
        "--model",
        "first",
        "--features",
        "mfcc",
        "--frames",
        4,
        "--hold-out",
        1,
        "--perceptual",
        "pyramid",
        "--validate-every",
        1,
    ]
    assert "val_correlation" in records(run(*line, "-o", scene / "a.pt", *tiny))[-1]
    config = files.load_weights(scene / "a.pt")["config"]
    assert (
        config["network"]["model"] == "first"
        and config["network"]["noise_width"] == 3
        and config["features"] == {"name": "mfcc"}
    )
    speak = [
        "generate",
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "speech.wav",
        "--audio2latent",
        scene / "a.pt",
    ]
    paths = {}
    for name, more in {
        "one": ["--seed", 1],
        "again": ["--seed", 1],
        "two": ["--seed", 2],
        "none": ["--deterministic"],
        "nothing": ["--deterministic", "--seed", 2],
    }.items():
        assert run(*speak, "-o", scene / name, "--latents-out", scene / f"{name}.npy", *more).exit_code == 0
        paths[name] = np.load(scene / f"{name}.npy")
    assert np.array_equal(paths["one"], paths["again"]) and np.array_equal(paths["none"], paths["nothing"])
    assert (paths["one"] != paths["two"]).any() and (paths["one"] != paths["none"]).any()
    assert run(*line, "-o", scene / "b.pt", "--deterministic", *tiny).exit_code == 0
    assert files.load_weights(scene / "b.pt")["config"]["network"]["noise_width"] == 0


def test_the_bundled_first_model_is_another_file(scene, toy):
    speak = [
        "generate",
        "--identity",
        scene / "face.png",
        "--audio",
        scene / "speech.wav",
        "-o",
        scene / "out.mp4",
        "--model",
    ]
    assert run(*speak, "second").exit_code == 0
    result = run(*speak, "first")
    assert (
        result.exit_code == 1
        and "first.pt: the bundled first model is not installed; pass --audio2latent FILE" in result.stderr
    )


def test_every_kind_of_features_can_be_named():
    (option,) = [param for param in cli.commands["train-audio2latent"].params if param.name == "features"]
    assert option.help.startswith(f"Audio features: {', '.join(talkhead.audio_features.FEATURES)}.")


def test_features_that_the_model_does_not_hear(scene, toy):
    weights = files.load_weights(toy / "audio2latent.pt")
    config = {name: value for name, value in weights["config"].items() if name != "generator"}
    files.save_weights(
        scene / "a.pt",
        weights
        | {
            "config": {
                "network": config,
                "generator": weights["config"]["generator"],
                "features": {"name": "mfcc", "steps": 2},
            }
        },
    )
    speak = ["generate", "--identity", scene / "face.png", "--audio", scene / "speech.wav", "-o", scene / "out.mp4"]
    result = run(*speak, "--audio2latent", scene / "a.pt")
    assert (
        result.exit_code == 1
        and "this speech model takes mfcc (steps 2), not mfcc; pass the --features" in result.stderr
    )
    result = run(*speak, "--features-model", "net.pt")
    assert result.exit_code == 1 and "drop net.pt" in result.stderr and not (scene / "out.mp4").exists()


def test_curves_for_tensorboard(scene, monkeypatch):
    line = [
        "train-encoder",
        scene / "clip.mp4",
        "-o",
        scene / "e.pt",
        *BRIEF,
        *TINY_ENCODER,
        "--perceptual",
        "pyramid",
        "--tensorboard",
        scene / "curves",
    ]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = run(*line)
    assert result.exit_code == 1 and "--set tensorboard: its package is not installed; pip install" in result.stderr
    drawn = []
    writer = types.SimpleNamespace(add_scalar=lambda *point: drawn.append(point), flush=lambda: None)
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=lambda folder: writer)
    )
    last = records(run(*line))[-1]
    assert ("loss", last["loss"], 2) in drawn
    fid = [
        "--fid-every",
        1,
        "--fid-images",
        2,
        "--fid-features",
        "encoder",
        "--resolution",
        8,
        "--channels",
        "4,4",
        "--mapping-layers",
        1,
    ]
    last = records(
        run("train-stylegan", scene / "clip.mp4", "-o", scene / "g.pt", *BRIEF, *fid, "--tensorboard", scene / "curves")
    )[-1]
    assert ("fid", last["fid"], 2) in drawn and "fid_features" not in {
        point[0] for point in drawn
    }  # a name has no curve


def test_a_changed_run_is_refused(scene):
    line = ["train-encoder", scene / "clip.mp4", "-o", scene / "e.pt", *BRIEF, "--perceptual", "pyramid"]
    records(run(*line, *TINY_ENCODER))
    result = run(*line, "--width", 8, "--input-size", 16)
    assert result.exit_code == 1 and "was trained with width=4, now 8" in result.stderr


def test_synth_writes_clips_that_say_they_are_aligned(tmp_path):
    (record,) = records(run("synth", "-o", tmp_path / "p", "--count", 1, "--size", 32, "--frames", 3))
    assert record["frames"] == 3
    with video_files.read_frames(record["clip"]) as clip:
        assert clip.aligned and clip.size == (32, 32)


def test_generate_gives_frames_of_the_photo_s_size(puppet, stub, tmp_path):
    """By default the aligned crop at the photo's own resolution.

    --size another; --whole the photo; --no-detail the generator's.
    """
    photo, speech = image_files.read_image(puppet / "photo.png"), ["--audio", puppet / "speech.wav"]
    side = talkhead.detail.native_side(faces.quad(np.load(puppet / "landmarks.npy")))
    for options, wanted in (
        ([], (side, side)),
        (["--size", 48], (48, 48)),
        (["--whole"], photo.shape[:2]),
        (["--no-detail"], (256, 256)),
    ):
        result = run(
            "generate",
            "--identity",
            puppet / "photo.png",
            *speech,
            *options,
            "-o",
            tmp_path / "-".join(map(str, ["sized", *options])),
        )
        assert result.exit_code == 0, result.output
        with video_files.read_frames(tmp_path / "-".join(map(str, ["sized", *options]))) as frames:
            assert frames.size == tuple(wanted)


@pytest.mark.parametrize(
    "name, options, places",
    [
        ("photo.png", [], {}),
        ("photo.png", ["--whole"], {"whole": True}),
        ("in.mp4", ["--whole"], {"whole": True}),
        ("in.mp4", ["--size", "48", "--no-neutral"], {"size": 48, "neutral": False}),
    ],
)
def test_python_makes_the_frames_of_the_command(puppet, stub, tmp_path, monkeypatch, name, options, places):
    """A clip's own sound sets how far its speaker opens the mouth in either."""
    monkeypatch.setattr(talkhead.synthesis, "own_gain", lambda film, frames: len(list(frames)) / 10)
    result = run(
        "generate", "--identity", puppet / name, "--audio", puppet / "speech.wav", *options, "-o", tmp_path / "frames"
    )
    assert result.exit_code == 0, result.output
    generator = talkhead.load_generator(talkhead.bundled("generator"))
    networks = (
        generator,
        talkhead.load_encoder(talkhead.bundled("encoder"), generator),
        talkhead.load_audio2latent(talkhead.bundled("audio2latent"), generator),
    )
    sound = talkhead.read_audio(puppet / name) if name == "in.mp4" else None
    tracked = talkhead.follow(talkhead.read_frames(puppet / name), landmarks.detector())
    look = talkhead.identity_of(tracked, generator, sound=sound, **places)
    frames = list(talkhead.generate(*networks, look, talkhead.read_audio(puppet / "speech.wav")))
    apart = np.abs(np.array(frames, int) - np.array(list(video_files.read_frames(tmp_path / "frames")), int))
    # The command's threads round otherwise; with torch 2.5 to 5 levels in one value of ten thousand.
    assert (apart > 1).mean() < 1e-3 and apart.max() < 10
    assert name == "photo.png" or look.gain == 0.5  # 5 frames of sound


def test_a_whole_photo_changes_nowhere_but_in_the_face(puppet, stub, tmp_path):
    result = run(
        "generate",
        "--identity",
        puppet / "photo.png",
        "--audio",
        puppet / "speech.wav",
        "--whole",
        "-o",
        tmp_path / "whole",
    )
    assert result.exit_code == 0, result.output
    photo, square = image_files.read_image(puppet / "photo.png"), faces.quad(np.load(puppet / "landmarks.npy"))
    low, high = np.floor(square.min(0)).astype(int).clip(0), np.ceil(square.max(0)).astype(int)
    outside = np.ones(photo.shape[:2], bool)
    outside[low[1] : high[1] + 1, low[0] : high[0] + 1] = False
    for frame in video_files.read_frames(tmp_path / "whole"):
        np.testing.assert_array_equal(frame[outside], photo[outside])


def test_an_aligned_picture_has_no_whole(scene):
    result = run(
        "generate", "--identity", scene / "face.png", "--audio", scene / "speech.wav", "--whole", "-o", scene / "x.mp4"
    )
    assert (
        result.exit_code == 1
        and "face.png: aligned already; --whole wants the photo that it was cut from" in result.stderr
    )
    assert not (scene / "x.mp4").exists()


def test_a_clip_is_dubbed_for_as_long_as_the_sound(scene):
    """Its 8 frames are repeated back and forth; outside the mouth each is the clip's own."""
    result = run("generate", "--identity", scene / "clip.mp4", "--audio", scene / "speech.wav", "-o", scene / "dubbed")
    assert result.exit_code == 0, result.output
    clip, dubbed = (np.stack(list(video_files.read_frames(scene / name))) for name in ("clip.mp4", "dubbed"))
    order = [0, 1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2]
    assert len(dubbed) == 13 and len(clip) == 8
    np.testing.assert_array_equal(dubbed[:, :12], clip[order][:, :12])


def test_latents_move_a_photo(scene):
    assert (
        run(
            "generate",
            "--identity",
            scene / "face.png",
            "--audio",
            scene / "speech.wav",
            "--latents-out",
            scene / "path.npy",
            "-o",
            scene / "a",
        ).exit_code
        == 0
    )
    result = run("generate", "--latents", scene / "path.npy", "--identity", scene / "face.png", "-o", scene / "b")
    assert result.exit_code == 0, result.output
    lower = slice(40, 60)  # of 64: the mouth; with latents the head may move, too
    for one, other in zip(video_files.read_frames(scene / "a"), video_files.read_frames(scene / "b")):
        assert np.abs(one.astype(int) - other)[lower].mean() < 2


@pytest.mark.parametrize("name, command", COMMANDS)
def test_help_is_short_and_names_things(name, command):
    if name in SCRIPTS or name.split()[0] in SCRIPTS:
        return
    assert not command.help.startswith(("What ", "How ", "Who ", "Whether ", "Tell ", "Say "))
    for param in command.params:
        if isinstance(param, click.Option) and not isinstance(param, cli_options.Settings):
            text = param.help.partition("[default")[0].strip()
            assert len(text) <= 100 and not text.startswith(("What ", "How ", "Who", "Whether ", "Where ")), param.opts
