"""Time inversion: one optimisation step beside the same step built on rosinality's code, and hybrid beside Algorithm 2.

    python examples/benchmarks/inversion_speed.py step --rosinality ~/stylegan2-pytorch
    python examples/benchmarks/inversion_speed.py hybrid clip.mp4 --frames 16 --steps 1000 --next-steps 100

`step` draws a picture of a 256² config-F generator (random weights, the same in both), measures LPIPS and the squared
error, goes back to the latent and moves it with Adam. Theirs is built as rosinality's projector builds it, but without
its noise maps: `projector` is the whole gradient, that of the generator's weights too, as there; `frozen` leaves those
out. Ours is what `talkhead invert` runs. LPIPS looks through VGG's weights where torch's cache holds them, else through
random ones: the time is the same.

`hybrid` inverts an aligned clip by Algorithm 2, and then by hybrid with ever more steps until its mean loss is as low.
Hybrid takes one frame at a time, as Algorithm 2 does: each then goes on from the one before.

Both print JSON objects.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lpips  # rosinality's checkout has an old copy of it, which must not be found first
import numpy as np
import torch
from peer_generators import checkout, random_networks, rosinality
from torch.nn import functional as F

import talkhead
from talkhead import checkpoints, losses, video_files
from talkhead.images import resize, to_images

LEAST_STEP_RATIO = 1.5
MOST_TIME = 0.1  # of Algorithm 2's
RESOLUTION = 256


@contextlib.contextmanager
def vgg():
    """VGG's weights where LPIPS looks for them; random ones if there are none. Yields which."""
    if losses.vgg_weights().is_file():
        yield "trained"
        return
    import torchvision

    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        torch.hub.set_dir(folder)
        losses.vgg_weights().parent.mkdir(parents=True)
        torch.manual_seed(0)
        torch.save(torchvision.models.vgg16().state_dict(), losses.vgg_weights())
        yield "random"
        torch.hub.set_dir(before)


# ---- one step ----


def their_steps(theirs, mean, target, count, frozen):
    """Seconds and losses of so many steps of their projector: forward, LPIPS and squared error, backward, Adam."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        percept = lpips.LPIPS(net="vgg", verbose=False).requires_grad_(not frozen).eval()
    theirs["generator"].requires_grad_(not frozen)
    code = mean[None].clone().requires_grad_(True)
    adam, seconds, values = torch.optim.Adam([code], lr=0.01), [], []
    for _ in range(count):
        began = time.perf_counter()
        drawn = theirs["images"](code)
        loss = percept(drawn, target).sum() + F.mse_loss(drawn, target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        values.append(loss.item())
        seconds.append(time.perf_counter() - began)
    return seconds, values


def our_steps(generator, frames, count, method="optimise", perceptual="lpips"):
    """Seconds and losses of so many steps a frame of `talkhead.invert`, as it reports them.

    The first one's seconds are those of what comes before the steps.
    """
    times, values = [time.perf_counter()], []

    def on_record(record):
        times.append(time.perf_counter())
        values.append(record["loss"])

    list(
        talkhead.invert(
            frames,
            generator,
            method,
            steps=count,
            next_steps=count,
            w_noise=0.0,
            perceptual=perceptual,
            on_record=on_record,
        )
    )
    return np.diff(times).tolist(), values


def step(options):
    generator, discriminator = random_networks(RESOLUTION, "cpu")
    frame = np.random.default_rng(0).integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
    target = to_images(frame[None])
    with vgg() as weights, checkout(options.rosinality.resolve()):
        theirs, mean = rosinality(generator, discriminator, "cpu"), generator.w_avg.expand(generator.num_ws, -1)
        taken, first = {"projector": [], "frozen": [], "ours": []}, {}
        for _ in range(options.repeat):  # in turns, so that all meet the same weather
            for name in taken:
                if name == "ours":
                    seconds, values = our_steps(generator, [frame], options.count + 1)
                else:
                    seconds, values = their_steps(theirs, mean, target, options.count + 1, name == "frozen")
                taken[name] += seconds[1:]  # the first one warms up
                first[name] = values[0]
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    ratios = {name: round(medians[name] / medians["ours"], 2) for name in ("projector", "frozen")}
    return (
        {"resolution": RESOLUTION, "vgg": weights, "steps": len(taken["ours"])}
        | {f"{name}_s": round(value, 3) for name, value in medians.items()}
        | {
            "first_loss_difference": abs(first["ours"] - first["frozen"]) / first["frozen"],
            "ratio_projector": ratios["projector"],
            "ratio_frozen": ratios["frozen"],
            "least_ratio": LEAST_STEP_RATIO,
            "met": ratios["frozen"] >= LEAST_STEP_RATIO,
        }
    )


# ---- hybrid ----


class Run:
    """One inversion of a clip: its seconds, the loss of its codes, and how smooth their path is."""

    def __init__(self, frames, generator, perceptual, method, **options):
        began = time.perf_counter()
        self.codes = np.stack(list(talkhead.invert(frames, generator, method, perceptual=perceptual, **options)))
        self.seconds = time.perf_counter() - began
        with torch.no_grad():
            self.loss = float(
                np.mean(
                    [
                        self._loss(generator, perceptual, code, frame)
                        for code, frame in zip(torch.from_numpy(self.codes), frames)
                    ]
                )
            )
        moves = np.diff(self.codes.reshape(len(frames), -1).astype(np.float64), axis=0)
        self.path = {
            "step": float(np.linalg.norm(moves, axis=1).mean()),
            "bend": float(np.linalg.norm(np.diff(moves, axis=0), axis=1).mean() / np.linalg.norm(moves, axis=1).mean()),
        }

    @staticmethod
    def _loss(generator, perceptual, code, frame):
        drawn, target = (
            generator.synthesis(code[None]),
            to_images(resize(frame, generator.resolution)[None]),
        )
        return (perceptual(drawn, target) + losses.pixel_loss(drawn, target)).item()

    def record(self, name):
        return {"run": name, "seconds": round(self.seconds, 1), "loss": round(self.loss, 5)} | {
            key: round(value, 3) for key, value in self.path.items()
        }


def hybrid(options):
    generator = checkpoints.load_generator(options.generator or checkpoints.bundled("generator"))
    encoder = checkpoints.load_encoder(options.encoder or checkpoints.bundled("encoder"), generator)
    perceptual = losses.Perceptual(options.perceptual)
    with video_files.read_frames(options.clip, limit=options.frames) as reader:
        frames = list(reader)
    chain = Run(
        frames, generator, perceptual, "sequential", steps=options.steps, next_steps=options.next_steps, lr=options.lr
    )
    print(json.dumps(chain.record("Algorithm 2")), flush=True)
    for steps in (1, 2, 3, 4, 5, 6, 8, 12, 20, 30, 50, 80, 120, 200):
        run = Run(
            frames,
            generator,
            perceptual,
            "hybrid",
            encoder=encoder,
            hybrid_steps=10 * steps,
            next_steps=steps,
            lr=options.hybrid_lr,
        )
        print(json.dumps(run.record(f"hybrid, {steps} steps")), flush=True)
        if run.loss <= chain.loss:
            break
    share = run.seconds / chain.seconds
    return {
        "perceptual": perceptual.name,
        "frames": len(frames),
        "share_of_time": round(share, 3),
        "most": MOST_TIME,
        "loss_ratio": round(run.loss / chain.loss, 3),
        "bend_ratio": round(run.path["bend"] / chain.path["bend"], 3),
        "met": run.loss <= chain.loss and share <= MOST_TIME and run.path["bend"] <= chain.path["bend"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("step")
    one.add_argument("--rosinality", type=Path, metavar="CHECKOUT", required=True)
    one.add_argument("--count", type=int, default=5, help="steps to time in a turn")
    one.add_argument("--repeat", type=int, default=3, help="turns")
    two = what.add_parser("hybrid")
    two.add_argument("clip", help="an aligned clip")
    two.add_argument("--frames", type=int, default=16)
    two.add_argument("--steps", type=int, default=1000, help="of the first frame in Algorithm 2; the thesis takes 5000")
    two.add_argument("--next-steps", type=int, default=100, help="of the others; the thesis takes 500")
    two.add_argument("--lr", type=float, default=0.01, help="of Algorithm 2")
    two.add_argument("--hybrid-lr", type=float, default=0.02, help="of hybrid, which has few steps")
    two.add_argument("--perceptual", default="auto")
    for kind in ("generator", "encoder"):
        two.add_argument(f"--{kind}", help="weights; the bundled ones if left out")
    options = parser.parse_args()
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(json.dumps({"step": step, "hybrid": hybrid}[options.what](options)), flush=True)


if __name__ == "__main__":
    main()
