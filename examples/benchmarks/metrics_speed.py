"""Frames a second that `talkhead metrics` compares without networks, beside the time to decode them.

    python examples/benchmarks/metrics_speed.py

Makes two clips of a puppet, 256 x 256 pixels, one of them with noise, then takes turns: decode both, frame by frame as
the library reads them, and compare both by PSNR and SSIM. Prints a JSON object: frames a second of each at its best
turn and in the median, their ratio turn by turn (median), the computing that a pair of frames costs, the seconds that
the whole command takes with its start, and how busy the machine was. Where other programs want its cores too, only the
milliseconds of computing say something: decoding and comparing go on side by side, so that on two free cores a pair
takes the longer of the comparison alone and half of all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from puppets import puppet  # noqa: E402
from talkhead import video_files
from talkhead.protocol import Protocol  # noqa: E402

SIDE, NOISE = 256, 6  # pixels, grey levels


def make(folder, frames):
    """Two clips: the puppet speaking, and a noisy copy."""
    time_ = np.arange(frames) / 25
    opening = 0.08 * (1 + np.sin(12 * time_))
    track = np.stack([opening, 0 * opening, 0.6 * opening], 1).astype(np.float32)
    random = np.random.default_rng(0)
    with video_files.FrameWriter(folder / "real.mp4") as real, video_files.FrameWriter(folder / "fake.mp4") as fake:
        for frame, _ in puppet.perform(puppet.drawn(seed=3, size=SIDE), track, size=SIDE, seed=0):
            real.write(frame)
            fake.write(np.clip(frame + random.normal(0, NOISE, frame.shape), 0, 255).astype(np.uint8))
    return folder / "real.mp4", folder / "fake.mp4"


def decode(real, fake):
    with video_files.read_frames(real) as a, video_files.read_frames(fake) as b:
        for _ in zip(a, b):
            pass


def seconds(work):
    """By the clock, and of computing."""
    began, computed = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - computed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    protocol = Protocol(lmd=False)
    with tempfile.TemporaryDirectory() as folder:
        real, fake = make(Path(folder), options.frames)
        turns = [
            (seconds(lambda: decode(real, fake)), seconds(lambda: protocol(real, fake))) for _ in range(options.turns)
        ]
        command = [sys.executable, "-m", "talkhead", "metrics", str(real), str(fake), "--no-lmd"]
        whole, _ = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    (decoding, decode_cpu), (comparing, compare_cpu) = np.array(turns).transpose(1, 2, 0)
    milliseconds = {
        name: 1000 * np.median(cpu) / options.frames
        for name, cpu in (("decode", decode_cpu), ("decode_and_compare", compare_cpu))
    }
    print(
        json.dumps(
            {
                "frames": options.frames,
                "size": [SIDE, SIDE],
                "decode_frames_per_second": {
                    "best": options.frames / decoding.min(),
                    "median": options.frames / np.median(decoding),
                },
                "compare_frames_per_second": {
                    "best": options.frames / comparing.min(),
                    "median": options.frames / np.median(comparing),
                },
                "compare_to_decode": float(np.median(comparing / decoding)),
                "cpu_ms_per_pair": milliseconds,
                "command_seconds": whole,
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
