"""Compare the training of generator and discriminator with NVIDIA's: time and memory of a step, FID after equal steps.

    python examples/benchmarks/peer_training.py speed --nvidia ~/stylegan2-ada-pytorch
    python examples/benchmarks/peer_training.py quality --nvidia ~/stylegan2-ada-pytorch faces.npy --images 20000

The checkout is stylegan2-ada-pytorch's. Both train the same compact networks (widths min(32 · R / r, 128) at r², eight
mapping layers) on the same pictures with StyleGAN2's losses: non-saturating, R1 every 16 steps, path length every 4,
running average. Neither augments. Theirs is driven as their training loop does it, with their loss and their networks,
in float32.

`speed` runs both in turns, each time in a fresh process, and prints JSON objects: images a second over whole cycles of
16 steps after a first one, and the peak of resident memory. `quality` trains both on so many of a packed file's
pictures (talkhead pack), then draws from both averages, and prints Fréchet and kernel distances to those pictures as
one network sees them, which is named.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peer_generators import checkout, nvidia

from talkhead import checkpoints, datasets, fid, image_files, state_dicts
from talkhead.images import to_frames
from talkhead.stylegan import Discriminator, Generator, channel_widths
from talkhead.train_stylegan import train

LEAST_RATIO, MOST_MEMORY = 1.5, 1.0  # of theirs
CYCLE = 16  # steps, after which every regulariser has had its turns


def networks(resolution):
    torch.manual_seed(0)
    widths = channel_widths(resolution, base=32 * resolution, largest=128)
    return Generator(resolution, widths), Discriminator(resolution, widths)


class Theirs:
    """NVIDIA's networks with the weights of ours, their losses, and the order of steps of its training loop.

    generator, discriminator   ours, with widths that NVIDIA's two numbers can tell
    """

    def __init__(self, generator, discriminator, batch, r1, device="cpu"):
        from training.loss import StyleGAN2Loss

        channels, self.device = generator.config["channels"], torch.device(device)
        base = channels[-1] * generator.resolution
        made = nvidia(generator, discriminator, device, channel_base=base, channel_max=channels[0])
        self.generator, self.discriminator, self.batch = made["generator"].train(), made["discriminator"].train(), batch
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.loss = StyleGAN2Loss(
            self.device, self.generator.mapping, self.generator.synthesis, self.discriminator, r1_gamma=r1
        )
        self.phases = []
        for name, network, every in (("G", self.generator, 4), ("D", self.discriminator, 16)):
            ratio = every / (every + 1)
            adam = torch.optim.Adam(network.parameters(), lr=0.002 * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)
            self.phases += [(f"{name}main", network, adam, 1), (f"{name}reg", network, adam, every)]

    def step(self, index, images):
        images, nothing = images.to(self.device), torch.zeros(self.batch, 0, device=self.device)
        z = torch.randn(len(self.phases), self.batch, 512, device=self.device)
        for (name, network, adam, every), latents in zip(self.phases, z):
            if index % every:
                continue
            adam.zero_grad(set_to_none=True)
            network.requires_grad_(True)
            self.loss.accumulate_gradients(name, images, nothing, latents, nothing, sync=True, gain=every)
            network.requires_grad_(False)
            for parameter in network.parameters():
                if parameter.grad is not None:
                    torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
            adam.step()
        # As `--cfg auto` sets it: a short memory at first.
        beta = 0.5 ** (self.batch / min(10_000, 0.05 * self.batch * (index + 1)))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.generator.parameters()):
                slow.copy_(fast.lerp(slow, beta))
            for slow, fast in zip(self.average.buffers(), self.generator.buffers()):
                slow.copy_(fast)


class Pictures(datasets.Images):
    """Noise in the place of clips: what is trained on does not change the time."""

    def __init__(self, size, count=256):
        self.size, self.frames = size, np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


# ---- speed ----


def our_steps(generator, discriminator, steps, batch, **options):
    """Train on noise for so many steps; yield the seconds since the start after each. `options` are those of train."""
    with tempfile.TemporaryDirectory() as folder:
        records = train(
            Pictures(generator.resolution),
            Path(folder) / "g.pt",
            generator,
            discriminator,
            steps=steps,
            batch=batch,
            log_every=1,
            **options,
        )
        for record in records:
            yield record["seconds"]


def their_steps(generator, discriminator, steps, batch, device="cpu"):
    """Likewise with NVIDIA's code, within `checkout`."""
    images = Pictures(generator.resolution)
    theirs, began = Theirs(generator, discriminator, batch, 10, device), time.monotonic()
    del generator, discriminator  # or ours would count in the peak of their memory
    for index in range(steps):
        theirs.step(index, images.batch(index, batch))
        if theirs.device.type == "cuda":
            torch.cuda.synchronize(theirs.device)
        yield time.monotonic() - began


def one_run(options):
    """Steps of one of the two in this process; prints its figures."""
    run = CYCLE * (1 + options.cycles), options.batch
    if options.who == "ours":
        times = list(our_steps(*networks(options.resolution), *run))
    else:
        with checkout(options.nvidia.resolve()):
            times = list(their_steps(*networks(options.resolution), *run))
    rate = options.batch * CYCLE * options.cycles / (times[-1] - times[CYCLE - 1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
    print(
        json.dumps(
            {
                "who": options.who,
                "resolution": options.resolution,
                "images_per_s": round(rate, 2),
                "peak_mb": round(peak),
            }
        )
    )


def speed(options):
    for resolution in options.resolution:
        found = {"theirs": [], "ours": []}
        for _ in range(options.repeat):
            for who in found:
                command = [
                    sys.executable,
                    __file__,
                    "run",
                    "--nvidia",
                    options.nvidia,
                    "--who",
                    who,
                    "--resolution",
                    resolution,
                    "--batch",
                    options.batch,
                    "--cycles",
                    options.cycles,
                ]
                done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True, text=True)
                found[who].append(json.loads(done.stdout))
                print(done.stdout.strip(), flush=True)
        rate, peak = (
            {who: statistics.median(record[key] for record in records) for who, records in found.items()}
            for key in ("images_per_s", "peak_mb")
        )
        ratio, memory = rate["ours"] / rate["theirs"], peak["ours"] / peak["theirs"]
        print(
            json.dumps(
                {
                    "resolution": resolution,
                    "batch": options.batch,
                    "threads": torch.get_num_threads(),
                    "ratio": round(ratio, 2),
                    "least_ratio": LEAST_RATIO,
                    "memory": round(memory, 2),
                    "most_memory": MOST_MEMORY,
                    "met": ratio >= LEAST_RATIO and memory <= MOST_MEMORY,
                }
            ),
            flush=True,
        )


# ---- quality ----


@torch.no_grad()
def drawn(generator, count):
    """So many pictures of one z after another, the same for both, uint8 (16, R, R, 3) at a time."""
    random = torch.Generator().manual_seed(7)
    for start in range(0, count, 16):
        yield to_frames(generator(torch.randn(min(16, count - start), 512, generator=random)))


def quality(options):
    resolution = options.resolution[0]
    images = datasets.Images([options.faces], resolution)
    steps, out = options.images // options.batch, Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    see = (
        fid.Inception()
        if options.features == "inception"
        else fid.FaceFeatures(checkpoints.load_encoder(checkpoints.bundled("encoder")))
    )
    wanted = np.concatenate([see(images.frames[start : start + 16]) for start in range(0, len(images), 16)])
    with checkout(options.nvidia.resolve()):
        theirs, began = Theirs(*networks(resolution), options.batch, options.r1), time.monotonic()
        torch.manual_seed(0)
        for index in range(steps):
            theirs.step(index, images.batch(index, options.batch))
            if index % 50 == 0:
                print(f"theirs: {index} of {steps}", file=sys.stderr, flush=True)
        spent = {"theirs": time.monotonic() - began}
        state = state_dicts.from_nvidia(theirs.average.state_dict())
    began = time.monotonic()
    generator, discriminator = networks(resolution)
    for record in train(
        images, out / "ours.pt", generator, discriminator, steps=steps, batch=options.batch, r1=options.r1, log_every=50
    ):
        print(f"ours: {record['step']} of {steps}", file=sys.stderr, flush=True)
    spent["ours"] = time.monotonic() - began
    ours = checkpoints.load_generator(out / "ours.pt")
    other = networks(resolution)[0].eval()
    other.load_state_dict(state)
    answers = {}
    for who, network in (("theirs", other), ("ours", ours)):
        frames = list(drawn(network, options.draw))
        image_files.write_image(
            out / f"{who}.png", np.concatenate([np.concatenate(list(batch), 1) for batch in frames[:4]]), synthetic=True
        )
        seen = np.concatenate([see(batch) for batch in frames])
        answers[who] = {"fid": fid.frechet_distance(wanted, seen), "kid": fid.kernel_distance(wanted, seen)}
        print(
            json.dumps(
                {"who": who, "images": steps * options.batch, "features": see.name, "seconds": round(spent[who], 1)}
                | answers[who]
            ),
            flush=True,
        )
    ratio = answers["ours"]["fid"] / answers["theirs"]["fid"]
    print(
        json.dumps(
            {
                "resolution": resolution,
                "features": see.name,
                "fid_ratio": round(ratio, 3),
                "most": 1.0,
                "met": ratio <= 1.0,
            }
        ),
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    commands = {name: what.add_parser(name) for name in ("speed", "run", "quality")}
    for command in commands.values():
        command.add_argument("--nvidia", type=Path, metavar="CHECKOUT", required=True)
        command.add_argument("--batch", type=int, default=16)
    commands["speed"].add_argument("--resolution", type=int, nargs="+", default=[64, 128])
    commands["speed"].add_argument("--repeat", type=int, default=3, help="processes of each")
    commands["run"].add_argument("--resolution", type=int, required=True)
    commands["run"].add_argument("--who", choices=["ours", "theirs"], required=True)
    for name in ("speed", "run"):
        commands[name].add_argument("--cycles", type=int, default=1, help=f"of {CYCLE} steps, after the first")
    commands["quality"].add_argument("faces", help="a packed file of pictures")
    commands["quality"].add_argument("--resolution", type=int, nargs=1, default=[64])
    commands["quality"].add_argument(
        "--images", type=int, default=20_000, help="pictures to learn from, counted each time they are seen"
    )
    commands["quality"].add_argument("--draw", type=int, default=2048, help="pictures to compare")
    commands["quality"].add_argument("--r1", type=float, default=1.0)
    commands["quality"].add_argument("--features", default="encoder", choices=["encoder", "inception"])
    commands["quality"].add_argument("--out", default="quality", help="folder for what is learnt and drawn")
    options = parser.parse_args()
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    {"speed": speed, "run": one_run, "quality": quality}[options.what](options)


if __name__ == "__main__":
    main()
