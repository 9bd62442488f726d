"""How long `talkhead train-stylegan` waits for its pictures: from clips, from a folder of PNGs, and from a packed file.

    python examples/benchmarks/data_wait.py

Makes puppets, trains a small generator on them in each of their forms, in a fresh process each, and prints a JSON
object for each: how fast it went, how fast its data could have come, how much of the time its steps waited for them,
and whether that is within the limit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from talkhead import datasets, video_files

MOST_WAIT = 0.05  # of the time spent in steps
SYNTH = Path(__file__).parents[1] / "synth.py"
CHANNELS = {64: "128,128,96,64,32", 128: "128,128,96,64,32,16"}


def python(*arguments):
    """The last line that a command prints, a JSON object."""
    done = subprocess.run([sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"data_wait.py: {' '.join(map(str, arguments[:3]))}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def forms(folder, size, count, frames):
    """The same frames as clips, as PNGs and packed: {form: path}."""
    clips, pngs, packed = folder / "clips", folder / "png", folder / "packed.npy"
    python(SYNTH, "-o", clips, "--count", count, "--frames", frames, "--size", size)
    pngs.mkdir()
    for clip in sorted(clips.glob("*.mp4")):
        with video_files.read_frames(clip) as reader, video_files.FrameWriter(pngs / clip.stem) as writer:
            for frame in reader:
                writer.write(frame)
    python("-m", "talkhead", "pack", clips, "-o", packed, "--size", size)
    return {"clips": clips, "png": pngs, "packed": packed}


def feeding(source, resolution, batch, seconds=2):
    """Images a second that could be had if nothing was done with them."""
    torch.set_num_threads(1)  # a thread of its own makes them ready
    images, step, started = datasets.Images([source], resolution), 0, time.monotonic()
    while time.monotonic() - started < seconds:
        images.batch(step, batch, flip=True)
        step += 1
    return step * batch / (time.monotonic() - started)


def trial(form, source, resolution, options, folder):
    started = time.monotonic()
    last = python(
        "-m",
        "talkhead",
        "train-stylegan",
        source,
        "-o",
        folder / f"{form}.pt",
        "--resolution",
        resolution,
        "--channels",
        CHANNELS[resolution],
        "--batch",
        options.batch,
        "--steps",
        options.steps,
        "--flip",
        "--device",
        options.device,
    )
    startup, wait = time.monotonic() - started - last["seconds"], last["data_seconds"] / last["seconds"]
    return {
        "source": form,
        "resolution": resolution,
        "batch": options.batch,
        "steps": last["step"],
        "images_per_second": last["images_per_second"],
        "feed_images_per_second": round(feeding(source, resolution, options.batch)),
        "data_seconds": last["data_seconds"],
        "seconds": last["seconds"],
        "wait": round(wait, 4),
        "most_wait": MOST_WAIT,
        "startup_s": round(startup, 2),
        "met": wait <= MOST_WAIT,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", type=int, nargs="+", choices=CHANNELS, default=[64, 128])
    parser.add_argument(
        "--size", type=int, help="side of the stored frames, resized when read; that of training if left out"
    )
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=25, help="of each clip")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    os.environ["OMP_NUM_THREADS"] = str(options.cores)
    with tempfile.TemporaryDirectory() as folder:
        for resolution in options.resolutions:
            place = Path(folder) / str(resolution)
            place.mkdir()
            for form, source in forms(place, options.size or resolution, options.clips, options.frames).items():
                print(json.dumps(trial(form, source, resolution, options, place)), flush=True)


if __name__ == "__main__":
    main()
