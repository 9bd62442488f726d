"""Kill commands at random moments, run them again, and compare the results with those of runs that nobody killed.

    python examples/kill_and_resume.py --kills 100

Four commands take turns: train-stylegan with an encoder along, pti, invert --list and align --list, on toy networks and
drawn faces that are made first. Each time a command starts in an empty folder, is sent SIGKILL at a moment drawn evenly
from the time that it took when it was left alone, and is given again. Then every file must be there that was there
before: latents, their JSON and aligned clips byte for byte, weights and optimisers tensor for tensor, manifests by all
that they tell but the seconds, and that the work went on. A JSON line on stdout for each command tells how many kills
there were, and after how many of them there was something to go on from ("resumed"). Exit status 1, and the folders
stay, if anything differs.

The commands are forked from one process that has loaded torch, so that a run takes a second and moments are not spent
on imports.
"""

import argparse
import functools
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # noqa: F401  # which optimisers would load in every run

import talkhead
from puppets import puppet
from talkhead import cli, encoders, files, fingerprints, landmarks, stylegan, video_files

SIZE = 16  # pixels: the generator's pictures
FRAMES = 4  # of each clip
QUICK = ["--perceptual", "pyramid", "--save-minutes", "0.0005", "--log-every", "1"]
JOBS = {  # name: arguments; what is written is in the folder "out"
    "train-stylegan": [
        "train-stylegan",
        "aligned",
        "-o",
        "out/g.pt",
        "--encoder-out",
        "out/e.pt",
        "--resolution",
        str(SIZE),
        "--channels",
        "8,8,8",
        "--mapping-layers",
        "2",
        "--width",
        "4",
        "--input-size",
        str(SIZE),
        "--stem-stride",
        "1",
        "--batch",
        "4",
        "--augment",
        "ada",
        "--steps",
        "10",
        *QUICK,
    ],
    "pti": [
        "pti",
        "aligned/0.mp4",
        "-o",
        "out/me.pt",
        "--generator",
        "generator.pt",
        "--encoder",
        "encoder.pt",
        "--steps",
        "20",
        "--min-delta",
        "0",
        *QUICK,
    ],
    "invert --list": [
        "invert",
        "--list",
        "aligned.txt",
        "-o",
        "out",
        "--generator",
        "generator.pt",
        "--method",
        "sequential",
        "--steps",
        "20",
        "--next-steps",
        "10",
        "--perceptual",
        "pyramid",
    ],
    "align --list": ["align", "--list", "clips.txt", "-o", "out", "--size", "64"],
}


# Material -------------------------------------------------------------------------------------------------------------


def make(folder):
    """Write the toy networks, and clips of drawn faces, aligned and not.

    Returns the landmarks in those that are not.
    """
    torch.manual_seed(0)
    generator = stylegan.Generator(SIZE, channels=[8, 8, 8], mapping_layers=2)
    encoder = encoders.ResNetEncoder(generator.num_ws, width=8, input_size=SIZE)
    owner = {"generator": fingerprints.fingerprint(generator.state_dict())}
    for kind, network, more in (("generator", generator, {}), ("encoder", encoder, owner)):
        files.save_weights(
            folder / f"{kind}.pt",
            {"kind": kind, "config": network.config | more, "step": 0, "model": network.state_dict()},
        )
    track = np.tile(np.float32([[0.0, 0.0, 0.0], [0.15, 0.0, 0.1]]), (FRAMES // 2, 1))
    for name in ("aligned", "clips"):
        (folder / name).mkdir()
    for number in range(4):
        shown = list(puppet.perform(puppet.drawn(seed=number, size=64), track, size=64, seed=number))
        sound = np.random.default_rng(number).normal(0, 0.05, 640 * FRAMES).astype(np.float32), 16000
        with (
            video_files.FrameWriter(
                folder / f"aligned/{number}.mp4", sound=sound, metadata={files.ALIGNED_TAG: "64"}, lossless=True
            ) as aligned,
            video_files.FrameWriter(folder / f"clips/{number}.mp4", sound=sound, lossless=True) as whole,
        ):
            for frame, _ in shown:
                aligned.write(frame)
                whole.write(np.pad(frame, [(30, 26), (40, 56), (0, 0)], constant_values=110))
    for name in ("aligned", "clips"):
        (folder / f"{name}.txt").write_text("".join(f"{name}/{number}.mp4\n" for number in range(4)))
    return shown[-1][1] + np.float32((40, 30))


class Stub(landmarks.Detector):
    """Stands for a detector, whose files not everybody has: it finds the same face in every frame."""

    name = "stub"

    def __init__(self, landmarks):
        self.landmarks = landmarks

    def _find(self, image):
        return [self.landmarks]


# Runs -----------------------------------------------------------------------------------------------------------------


def start(arguments, folder):
    """Fork a process that runs a command in a folder; its id. What it says goes to out.log there."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.chdir(folder)
        log = os.open("out.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        cli.cli.main(arguments, prog_name="talkhead")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(process, folder):
    """Wait for a command that should do well; how long that took, in seconds."""
    began = time.monotonic()
    if os.waitpid(process, 0)[1] != 0:
        sys.exit(f"{folder}: a command failed:\n{(folder / 'out.log').read_text()}")
    return time.monotonic() - began


def killed(process, seconds):
    """Send SIGKILL after a while; whether it came before the command had ended."""
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def desk(material, folder):
    """A folder like the first, with an empty "out" in it."""
    folder.mkdir()
    for path in material.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "out").mkdir()
    return folder


# Results --------------------------------------------------------------------------------------------------------------


def results(folder):
    """Contents of a folder, by name, as values that can be compared.

    What a killed process left under a hidden name is not looked at.
    """
    return {
        path.name: _READERS.get(path.suffix, Path.read_bytes)(path)
        for path in files.find(folder, {".pt", ".npy", ".json", ".jsonl", ".mp4", ".part"})
    }


def _records(path):
    """The records of a manifest, without how long each took, and whether it went on from what was done."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        record | {"seconds": None, "notes": [note for note in record.get("notes", []) if "going on" not in note]}
        for record in records
    ]


_READERS = {".pt": files.load_weights, ".jsonl": _records}


def differences(one, other, where=""):
    """Where two results differ: names and keys, down to the tensors."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}/{key}")]
    elif isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        return [found for index, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{where}/{index}")]
    else:
        same = one == other
    return [] if same else [where]


# ----------------------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument(
        "--only", action="append", choices=JOBS, metavar="COMMAND", help=f"one of {', '.join(JOBS)}; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)
    for room in talkhead.MODULES:
        importlib.import_module(f"talkhead.{room}")
    root = Path(tempfile.mkdtemp(prefix="kill_and_resume."))
    material = root / "material"
    material.mkdir()
    landmarks.detector = functools.partial(lambda found, *_: found, Stub(make(material)))
    random, failed = np.random.default_rng(options.seed), False
    names = options.only or list(JOBS)
    for index, name in enumerate(names):
        arguments = JOBS[name]
        whole = desk(material, root / f"{index}-whole")
        seconds = finish(start(arguments, whole), whole)
        wanted = results(whole / "out")
        report = {
            "command": name,
            "seconds": round(seconds, 2),
            "kills": 0,
            "resumed": 0,
            "too_late": 0,
            "different": 0,
        }
        while report["kills"] < len(range(index, options.kills, len(names))):
            folder = desk(material, root / f"{index}-killed")
            if not killed(start(arguments, folder), random.uniform(0, seconds)):
                report["too_late"] += 1
                shutil.rmtree(folder)
                continue
            report["kills"] += 1
            report["resumed"] += bool(
                files.find(folder / "out", {".pt", ".npy", ".mp4", ".part"}) or list((folder / "out").rglob("*.part"))
            )
            finish(start(arguments, folder), folder)
            if found := differences(wanted, results(folder / "out")):
                report["different"] += 1
                print(f"{folder}: {name}: {', '.join(found[:5])}", file=sys.stderr)
                folder.rename(root / f"{index}-different-{report['kills']}")
            else:
                shutil.rmtree(folder)
        print(json.dumps(report), flush=True)
        failed |= report["different"] > 0
    if not failed:
        shutil.rmtree(root)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
