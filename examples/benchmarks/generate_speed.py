"""Time and weigh `talkhead generate`: frames a second after start-up, and peak memory for short and long speech.

    python examples/benchmarks/generate_speed.py
    python examples/benchmarks/generate_speed.py --frame 512
    python examples/benchmarks/generate_speed.py --device cuda --cores 0 --size 1024 --pti

Runs the command itself, from files to MP4, in a fresh process for each length of speech, on two cores. Prints a JSON
object for each run and one that sets the figures against their limits. Linux and macOS (memory comes from wait4).

--size takes random weights of full size for faces so large: StyleGAN2's config F, ResNet18, the second model of 2,500
components, which is FFHQ's network at 1024. How fast a network is does not hang on its weights; its pictures are noise,
which codes worse than a face does. --frame is the side of the frames that are written, with the photo's detail; 0
writes the generator's own. --pti times `talkhead pti` on one picture too: random weights do not end it early, so the
figure is that of all steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

from talkhead import audio_files, files, video_files

LEAST_RATE = {"cpu": 12.5, "cuda": 350.0}  # frames a second: half of real time; ten times what the thesis had on a V100
LEAST_WITH_DETAIL = {512: 25.0, 1024: 10.0}  # frames a second on two cores; on a GPU 100 at 1024
MOST_STARTUP = 5.0  # seconds
MOST_PTI = {256: 20, 1024: 60}  # seconds on a GPU
MOST_MEMORY = 1500  # MB
MOST_GROWTH = 1.05  # of the peak, from the short speech to the long: what an allocator's moods may explain
EXAMPLES = Path(__file__).parents[1]


def spoken(source, seconds, path):
    """Repeat a recording until it lasts so long, as WAV."""
    audio = audio_files.read_audio(source)
    samples = np.resize(audio, round(seconds * 16000))
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def measure(command, stdout=None):
    """Run a command to its end: (seconds, peak resident memory in MB)."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=stdout)
    # wait4 alone tells the peak of this one child. The kernel counts from the fork, so this script must stay small: no
    # torch here.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"generate_speed.py: {' '.join(command)}: exit status {process.returncode}")
    return seconds, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def random_weights(size, folder, channels=None):
    """Write untrained networks of full size that fit each other: generator.pt, encoder.pt, audio2latent.pt.

    channels   of the generator; None: config F's
    """
    import torch

    from talkhead import fingerprints
    from talkhead.audio2latent import SecondModel
    from talkhead.encoders import ResNetEncoder
    from talkhead.latents import Basis
    from talkhead.stylegan import Generator

    torch.manual_seed(0)
    generator = Generator(size, channels)
    components, values = 2500, generator.num_ws * 512
    basis = Basis(torch.zeros(values), torch.randn(components, values) / values**0.5, torch.ones(components))
    networks = {
        "generator": generator,
        "encoder": ResNetEncoder(generator.num_ws),
        "audio2latent": SecondModel(generator.num_ws, components, basis=basis),
    }
    owner = {"generator": fingerprints.fingerprint(generator.state_dict())}
    for kind, network in networks.items():
        config = network.config if kind == "generator" else network.config | owner
        files.save_weights(
            Path(folder) / f"{kind}.pt", {"kind": kind, "config": config, "step": 0, "model": network.state_dict()}
        )


def weights(options, folder):
    """Options that name the networks given, or random ones.

    Random ones are written by another process, to keep this one small.
    """
    if options.size:
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import generate_speed; "
            f"generate_speed.random_weights({options.size}, {str(folder)!r})"
        )
        measure([sys.executable, "-c", code])
    named = {
        kind: folder / f"{kind}.pt" if options.size else getattr(options, kind)
        for kind in ("generator", "encoder", "audio2latent")
    }
    return {kind: str(path) for kind, path in named.items() if path}


def flags(named, *kinds):
    return [word for kind in kinds if kind in named for word in (f"--{kind}", named[kind])]


def trial(options, named, seconds, folder):
    audio, video = spoken(options.audio, seconds, str(folder / f"{seconds}.wav")), str(folder / f"{seconds}.mp4")
    command = [
        sys.executable,
        "-m",
        "talkhead",
        "generate",
        "--identity",
        str(options.identity),
        "--audio",
        audio,
        "-o",
        video,
        "--device",
        options.device,
        *flags(named, "generator", "encoder", "audio2latent"),
        *(["--size", str(options.frame)] if options.frame else ["--no-detail"]),
    ]
    wall, peak = measure(command)
    with video_files.read_frames(video) as reader:
        frames, size = sum(1 for _ in reader), list(reader.size)
    record = {
        "speech_s": seconds,
        "frames": frames,
        "size": size,
        "device": options.device,
        "wall_s": round(wall, 2),
        "peak_mb": round(peak),
    }
    print(json.dumps(record), flush=True)
    return record


def tuning(options, named, folder):
    """Seconds of `talkhead pti` on one picture, start-up left out: two runs, and what more steps cost."""
    walls, taken = [], []
    for steps in (2, options.pti_steps):
        command = [
            sys.executable,
            "-m",
            "talkhead",
            "pti",
            str(options.identity),
            "--aligned",
            "--steps",
            str(steps),
            "-o",
            str(folder / f"tuned-{steps}.pt"),
            "--device",
            options.device,
            *flags(named, "generator", "encoder"),
        ]
        with open(folder / "pti.jsonl", "w", encoding="utf-8") as log:
            walls.append(measure(command, log)[0])
        taken.append(json.loads((folder / "pti.jsonl").read_text().splitlines()[-1])["step"])
    each = (walls[1] - walls[0]) / (taken[1] - taken[0])
    size = options.size or "bundled"
    return {
        "pti_steps": taken[1],
        "pti_step_s": round(each, 3),
        "pti_350_steps_s": round(350 * each, 1),
        "pti_startup_s": round(walls[0] - taken[0] * each, 1),
        "most_s": MOST_PTI.get(size) if options.device != "cpu" else None,
    }


def summary(short, long, frame):
    """What both runs say together: start-up drops out of the difference."""
    rate = (long["frames"] - short["frames"]) / (long["wall_s"] - short["wall_s"])
    cpu = long["device"] == "cpu"
    least = (LEAST_WITH_DETAIL.get(frame) if cpu else 100.0) if frame else LEAST_RATE["cpu" if cpu else "cuda"]
    return {
        "frames_per_s": round(rate, 1),
        "least": least,
        "ratio": round(rate / least, 2) if least else None,
        "most_startup_s": MOST_STARTUP if frame else None,
        "startup_s": round(short["wall_s"] - short["frames"] / rate, 1),
        "peak_mb": max(short["peak_mb"], long["peak_mb"]),
        "most_mb": MOST_MEMORY if long["device"] == "cpu" else None,
        "peak_growth": round(long["peak_mb"] / short["peak_mb"], 3),
        "most_growth": MOST_GROWTH,
    }


def met(figures):
    light = figures["most_mb"] is None or figures["peak_mb"] <= figures["most_mb"]  # a GPU's libraries alone weigh more
    quick = figures["most_startup_s"] is None or figures["startup_s"] <= figures["most_startup_s"]
    return {
        "met": figures["frames_per_s"] >= (figures["least"] or 0)
        and quick
        and light
        and figures["peak_growth"] <= MOST_GROWTH
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identity", type=Path, default=EXAMPLES / "face.png", help="an aligned face")
    parser.add_argument("--audio", type=Path, default=EXAMPLES / "speech.wav", help="repeated to the lengths below")
    parser.add_argument("--short", type=float, default=3.0, help="seconds of speech")
    parser.add_argument("--long", type=float, default=120.0, help="seconds of speech")
    parser.add_argument("--cores", type=int, default=2, help="0 for all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument(
        "--size", type=int, help="random weights of full size for faces of so many pixels, a power of two"
    )
    parser.add_argument(
        "--frame", type=int, default=0, help="side of the frames, with detail; 0 for the generator's own"
    )
    parser.add_argument("--pti", action="store_true", help="time the tuning on one picture too")
    parser.add_argument("--pti-steps", type=int, default=350)
    for kind in ("generator", "encoder", "audio2latent"):
        parser.add_argument(f"--{kind}", help="weights; the bundled ones if left out")
    options = parser.parse_args()
    if options.cores:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
        os.environ["OMP_NUM_THREADS"] = str(options.cores)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        named = weights(options, folder)
        runs = [trial(options, named, seconds, folder) for seconds in (options.short, options.long)]
        figures = summary(*runs, options.frame)
        print(json.dumps(figures | met(figures)), flush=True)
        if options.pti:
            tuned = tuning(options, named, folder)
            print(json.dumps(tuned | {"met": tuned["most_s"] is None or tuned["pti_350_steps_s"] <= tuned["most_s"]}))


if __name__ == "__main__":
    main()
