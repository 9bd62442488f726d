"""What training costs, and how it spreads over processes: by measurement here, and from that on paper for more.

    python examples/benchmarks/scale.py team                              # one process against two of torchrun
    python examples/benchmarks/scale.py cost --resolution 64 128 256      # config F, this machine

`team` trains the same small generator with the same batch by one process with all threads, and by two that share the
threads and talk over gloo; prints their images a second and the ratio.

`cost` takes a few steps of each size in a fresh process, and prints JSON objects: seconds of a step without
regularisers, of path length and of R1 beside it, images a second with both as often as they come (every 4 and 16
steps), the peak of memory, and the bytes of gradients that each process sends around a step. From these follow the days
that a run of so many images takes, and how much of eight devices' speed is left beside the sending, which is not hidden
behind the work: efficiency = t / (t + 2·7/8·bytes / bandwidth).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peer_training import Pictures, networks

from talkhead.stylegan import Discriminator, Generator
from talkhead.train_stylegan import train

LEAST_RATIO = 0.9
PATH_EVERY, R1_EVERY = 4, 16
# The thesis fine-tunes on 48 speakers of TCD-TIMIT for 3 epochs; 98 sentences each, taken to last 5 seconds, at 25
# frames a second.
THESIS_IMAGES = 3 * 48 * 98 * 5 * 25
BANDWIDTHS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9, "NVLink, 300 GB/s": 300e9}
DEVICES = 8


# ---- many processes ----


def trained(folder, processes, options):
    """Images a second of a run by so many processes on the same cores, after its first quarter."""
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    command = [
        sys.executable,
        *launcher,
        "-m",
        "talkhead",
        "train-stylegan",
        folder / "faces",
        "-o",
        folder / f"{processes}.pt",
        "--resolution",
        options.resolution,
        "--channels",
        ",".join(map(str, networks(options.resolution)[0].config["channels"])),
        "--batch",
        options.batch,
        "--steps",
        options.steps,
        "--log-every",
        16,
        "--device",
        "cpu",
    ]
    (folder / f"{processes}.pt").unlink(missing_ok=True)
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    first, last = records[len(records) // 4 - 1 if len(records) >= 4 else 0], records[-1]
    return (last["step"] - first["step"]) * options.batch / (last["seconds"] - first["seconds"]), last


def team(options):
    from talkhead import video_files

    rates, lasts = {1: [], 2: []}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with video_files.FrameWriter(folder / "faces") as writer:
            for frame in Pictures(options.resolution, 64).frames:
                writer.write(frame)
        for _ in range(options.repeat):
            for processes in rates:
                rate, lasts[processes] = trained(folder, processes, options)
                rates[processes].append(rate)
                print(json.dumps({"processes": processes, "images_per_s": round(rate, 2)}), flush=True)
    medians = {processes: statistics.median(values) for processes, values in rates.items()}
    ratio = medians[2] / medians[1]
    losses = ("generator", "discriminator")
    print(
        json.dumps(
            {
                "resolution": options.resolution,
                "batch": options.batch,
                "ratio": round(ratio, 3),
                "least_ratio": LEAST_RATIO,
                "largest_difference_of_last_losses": max(abs(lasts[1][key] - lasts[2][key]) for key in losses),
                "met": ratio >= LEAST_RATIO,
            }
        )
    )


# ---- one process ----


def sizes(resolution, compact):
    if compact:
        return networks(resolution)
    torch.manual_seed(0)
    return Generator(resolution), Discriminator(resolution)


def one_size(options):
    """A few steps in this process: the first warms up, and the regularisers come in turns that tell them apart."""
    generator, discriminator = sizes(options.resolution, options.compact)
    gradients = [sum(p.numel() for p in network.parameters()) for network in (generator, discriminator)]
    with tempfile.TemporaryDirectory() as folder:
        records = list(
            train(
                Pictures(options.resolution, 64),
                Path(folder) / "g.pt",
                generator,
                discriminator,
                steps=7,
                batch=options.batch,
                r1_interval=2,
                pl_interval=4,
                precision=options.precision,
                log_every=1,
                device=options.device,
            )
        )
    times = [after["seconds"] - before["seconds"] for before, after in zip(records, records[1:])]  # of the steps 1 to 6
    main = min(times[0], times[2], times[4])
    r1 = max(min(times[1], times[5]) - main, 0.0)
    path = max(times[3] - main - r1, 0.0)
    step = main + path / PATH_EVERY + r1 / R1_EVERY
    cuda = options.device.startswith("cuda")
    peak = (
        torch.cuda.max_memory_allocated() / 1e6
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
    )
    sent = 4 * (gradients[0] * (1 + 1 / PATH_EVERY) + gradients[1] * (1 + 1 / R1_EVERY))
    ring = 2 * (DEVICES - 1) / DEVICES * sent
    print(
        json.dumps(
            {
                "resolution": options.resolution,
                "widths": "compact" if options.compact else "config F",
                "batch": options.batch,
                "device": options.device,
                "precision": options.precision,
                "main_s": round(main, 3),
                "path_s": round(path, 3),
                "r1_s": round(r1, 3),
                "images_per_s": round(options.batch / step, 2),
                "peak_mb": round(peak),
                "sent_mb_per_step": round(sent / 1e6, 1),
                "thesis_run_days": round(THESIS_IMAGES / options.batch * step / 86400, 1),
                f"efficiency_of_{DEVICES}": {
                    name: round(step / (step + ring / bandwidth), 3) for name, bandwidth in BANDWIDTHS.items()
                },
            }
        ),
        flush=True,
    )


def cost(options):
    for resolution in options.resolution:
        for batch in options.batch:
            command = [
                sys.executable,
                __file__,
                "one",
                "--resolution",
                resolution,
                "--batch",
                batch,
                "--device",
                options.device,
                "--precision",
                options.precision,
                *(["--compact"] if options.compact else []),
            ]
            subprocess.run(list(map(str, command)), check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    commands = {name: what.add_parser(name) for name in ("team", "cost", "one")}
    commands["team"].add_argument("--resolution", type=int, default=64)
    commands["team"].add_argument("--batch", type=int, default=16)
    commands["team"].add_argument("--steps", type=int, default=64)
    commands["team"].add_argument("--repeat", type=int, default=2, help="runs of each")
    commands["cost"].add_argument("--resolution", type=int, nargs="+", default=[64, 128, 256])
    commands["cost"].add_argument("--batch", type=int, nargs="+", default=[4])
    commands["one"].add_argument("--resolution", type=int, required=True)
    commands["one"].add_argument("--batch", type=int, required=True)
    for name in ("cost", "one"):
        commands[name].add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        commands[name].add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
        commands[name].add_argument("--compact", action="store_true", help="narrow widths instead of config F's")
    options = parser.parse_args()
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    {"team": team, "cost": cost, "one": one_size}[options.what](options)


if __name__ == "__main__":
    main()
