"""Time and weigh `talkhead generate`: frames a second after start-up, and peak memory for short and long speech.

    python examples/benchmarks/generate_speed.py

Runs the command itself, from files to MP4, in a fresh process for each length of speech, on two cores. Prints a JSON
object for each run and one that sets the figures against their limits. Linux and macOS (memory comes from wait4).
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

from talkhead import files

LEAST_RATE = 12.5  # frames a second
MOST_MEMORY = 1500  # MB
MOST_GROWTH = 1.05  # of the peak, from the short speech to the long: what an allocator's moods may explain
EXAMPLES = Path(__file__).parents[1]


def spoken(source, seconds, path):
    """Repeat a recording until it lasts so long, as WAV."""
    audio = files.read_audio(source)
    samples = np.resize(audio, round(seconds * 16000))
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def measure(command):
    """Run a command to its end: (seconds, peak resident memory in MB)."""
    started = time.monotonic()
    process = subprocess.Popen(command)
    # wait4 alone tells the peak of this one child. The kernel counts from the fork, so this script must stay small: no torch here.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"generate_speed.py: {' '.join(command)}: exit status {process.returncode}")
    return seconds, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def trial(options, seconds, folder):
    audio, video = spoken(options.audio, seconds, str(folder / f"{seconds}.wav")), str(folder / f"{seconds}.mp4")
    command = [sys.executable, "-m", "talkhead", "generate", "--identity", str(options.identity), "--audio", audio, "-o", video, "--device", "cpu"]
    for kind in ("generator", "encoder", "audio2latent"):
        command += [f"--{kind}", getattr(options, kind)] if getattr(options, kind) else []
    wall, peak = measure(command)
    with files.read_frames(video) as reader:
        frames, size = sum(1 for _ in reader), list(reader.size)
    record = {"speech_s": seconds, "frames": frames, "size": size, "wall_s": round(wall, 2), "peak_mb": round(peak)}
    print(json.dumps(record), flush=True)
    return record


def summary(short, long):
    """What both runs say together: start-up drops out of the difference."""
    rate = (long["frames"] - short["frames"]) / (long["wall_s"] - short["wall_s"])
    return {"frames_per_s": round(rate, 1), "least": LEAST_RATE, "ratio": round(rate / LEAST_RATE, 2),
            "startup_s": round(short["wall_s"] - short["frames"] / rate, 1),
            "peak_mb": max(short["peak_mb"], long["peak_mb"]), "most_mb": MOST_MEMORY,
            "peak_growth": round(long["peak_mb"] / short["peak_mb"], 3), "most_growth": MOST_GROWTH}


def met(figures):
    return {"met": figures["frames_per_s"] >= LEAST_RATE and figures["peak_mb"] <= MOST_MEMORY and figures["peak_growth"] <= MOST_GROWTH}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identity", type=Path, default=EXAMPLES / "face.png", help="an aligned face")
    parser.add_argument("--audio", type=Path, default=EXAMPLES / "speech.wav", help="repeated to the lengths below")
    parser.add_argument("--short", type=float, default=3.0, help="seconds of speech")
    parser.add_argument("--long", type=float, default=120.0, help="seconds of speech")
    parser.add_argument("--cores", type=int, default=2)
    for kind in ("generator", "encoder", "audio2latent"):
        parser.add_argument(f"--{kind}", help="weights; the bundled ones if left out")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.cores])
    os.environ["OMP_NUM_THREADS"] = str(options.cores)
    with tempfile.TemporaryDirectory() as folder:
        runs = [trial(options, seconds, Path(folder)) for seconds in (options.short, options.long)]
    figures = summary(*runs)
    print(json.dumps(figures | met(figures)))


if __name__ == "__main__":
    main()
