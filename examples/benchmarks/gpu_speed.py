"""Measure every speed of talkhead on one GPU, in about five minutes: JSON lines, then one table in Markdown.

    python examples/benchmarks/gpu_speed.py
    python examples/benchmarks/gpu_speed.py --nvidia ~/stylegan2-ada-pytorch --team
    python examples/benchmarks/gpu_speed.py --device cpu --scale 0.02 --perceptual pyramid    # all of it, small

  generate    frames a second of the library call behind `talkhead generate`, from files to MP4: a long speech beside a
              short one, so that the time for the photo drops out
  synthesis   frames a second of the generator alone at 1024², batch 8, and the share of the memory's limit: inputs and
              outputs of all layers, read and written once at the speed of a copy within the device
  inversion   optimisation steps a second, those of each frame counted, with the bundled generator
  pti         seconds of 350 tuning steps on one image
  training    images a second of train-stylegan over whole cycles of 16 steps, after a first one
  nvidia      the same by stylegan2-ada-pytorch's code, with --nvidia; at first it compiles for some minutes
  team        the same batch by two processes on one card, with --team. They are started by torchrun and talk over gloo,
              for NCCL refuses two processes on a card

The generator of 1024² is config F, with random weights, and so are the encoder and the speech model beside it: the
speed does not depend on them. At 256² the bundled networks are taken, or config F where it says so. LPIPS looks through
VGG's weights where torch's cache holds them, else through random ones.

A measurement takes --seconds after its warm-up. One that fails, or lasts longer than --limit, becomes a line, and the
others go on; the exit status is then 1. With --scale below 1, sides, widths, batches and times shrink, and the
figures are held against nothing.
"""

import argparse
import contextlib
import functools
import gc
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import inversion_speed
import peer_training
import torch
from generate_speed import EXAMPLES, MOST_PTI, random_weights, spoken
from peer_generators import checkout, random_networks

from talkhead import checkpoints, image_files, pti
from talkhead.distributed import pick_device
from talkhead.images import resize, to_images
from talkhead.stylegan import Discriminator, Generator, channel_widths, extend_widths
from talkhead.talking_head import TalkingHead

LEAST_RAW, LEAST_DETAIL, LEAST_SYNTHESIS = 350, 100, 500  # frames a second at 1024²; the thesis had 35 on a V100
LEAST_STEPS = 100  # of inversion a second
PTI_STEPS = 350
FACE, SPEECH = EXAMPLES / "face.png", EXAMPLES / "speech.wav"
BUNDLED = 256  # side of the bundled generator's images
SLOWER = 5  # times the limit for what compiles or starts processes


class Bench:
    """Device, sizes and files of a run.

    scale     of sides, widths, batches and times; 1 is full size
    seconds   of a measurement
    """

    def __init__(self, options, folder=None):
        self.device, self.scale, self.folder = pick_device(options.device), options.scale, folder
        self.seconds, self.perceptual, self.nvidia = options.seconds * options.scale, options.perceptual, options.nvidia

    def side(self, full):
        return max(16, 2 ** round(math.log2(full * self.scale)))

    def batch(self, full):
        return max(4, round(full * self.scale))

    def widths(self, side, bundled=False):
        """Channels at 4², 8² … side²: config F's, or the bundled generator's."""
        config_f = channel_widths(side)
        widths = extend_widths(self.bundled.config["channels"], side) if bundled else config_f
        return [min(width, max(8, round(512 * self.scale))) for width in widths]

    def now(self):
        """Seconds, when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def each(self, action):
        """Seconds of a call, after three to warm up: as many as fill the time, one synchronisation."""
        for _ in range(3):
            action()
        began = self.now()
        action()
        count = max(1, int(self.seconds / (self.now() - began)))
        began = self.now()
        for _ in range(count):
            action()
        return (self.now() - began) / count

    @functools.cached_property
    def bundled(self):
        return checkpoints.load_generator(checkpoints.bundled("generator"), device=self.device)

    def config_f(self, full):
        """A frozen generator of random weights."""
        side = self.side(full)
        return random_networks(side, self.device, self.widths(side))[0]

    @functools.cached_property
    def large(self):
        """Files of networks for 1024² that fit each other: {kind: path}."""
        side = self.side(1024)
        random_weights(side, self.folder, self.widths(side))
        return {kind: self.folder / f"{kind}.pt" for kind in ("generator", "encoder", "audio2latent")}


def row(what, value, unit, least=None, most=None, note=""):
    asked = f"≥ {least}" if least else f"≤ {most}" if most else ""
    met = value >= least if least else value <= most if most else None
    return {"what": what, "value": float(f"{value:.3g}"), "unit": unit, "asked": asked, "met": met, "note": note}


# ---- measurements: functions of a Bench that return rows ----


def generate(bench, large=False, frame=None, precision="float32", least=None):
    """Frames a second from files to MP4; `frame` is the side with detail, None the generator's own frames."""
    side = frame and max(64, bench.side(frame))
    look = {"detail": False} if frame is None else {"detail": True, "size": side}
    named = bench.large if large else {}
    head = TalkingHead(identity=FACE, device=bench.device, precision=precision, identity_options=look, **named)

    def run(length):
        audio = spoken(SPEECH, length, bench.folder / "speech.wav")
        began = bench.now()
        count = head.speak(FACE, audio, bench.folder / "out.mp4")
        return count, bench.now() - began

    length = max(0.4, 2 * bench.scale)
    run(length)  # warms up
    short = long = run(length)
    while long[1] - short[1] < bench.seconds / 2:
        length *= 4
        long = run(length)
    rate = (long[0] - short[0]) / (long[1] - short[1])
    drawn = f"{side}², detail" if frame else f"{head.generator.resolution}², no detail"
    note = f"{long[0]} frames" + ("; thesis 35" if large and frame is None else "")
    return [
        row(f"generate, {drawn}, {'config F' if large else 'bundled'}, {precision}", rate, "frames/s", least, note=note)
    ]


def synthesis(bench, precision):
    generator, batch = bench.config_f(1024), 8
    w_plus = generator.mapping(torch.randn(batch, generator.z_dim, device=bench.device))

    @torch.no_grad()
    def draw():
        with torch.autocast(bench.device.type, getattr(torch, precision), enabled=precision != "float32"):
            generator.synthesis(w_plus)

    rate = batch / bench.each(draw)
    limit = copied_bytes(bench) / (activation_bytes(generator, draw) / batch)  # frames a second
    name = f"synthesis, {generator.resolution}², {precision}"
    return [
        row(name, rate, "frames/s", LEAST_SYNTHESIS, note=f"batch {batch}"),
        row(f"{name}: share of the memory's limit", 100 * rate / limit, "%", note=f"limit {limit:.0f} frames/s"),
    ]


def activation_bytes(generator, draw):
    """Bytes that the layers' inputs and outputs take in one call of `draw`."""
    moved = []

    def count(_, inputs, output):
        moved.extend(tensor.numel() * tensor.element_size() for tensor in (inputs[0], output))

    hooks = [layer.register_forward_hook(count) for layer in [*generator.convs, *generator.rgbs]]
    draw()
    for hook in hooks:
        hook.remove()
    return sum(moved)


def copied_bytes(bench):
    """Bytes a second that a copy within the device reads and writes."""
    source = torch.zeros(max(2**16, round(2**30 * bench.scale)), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return 2 * len(source) / bench.each(lambda: target.copy_(source))


def inversion(bench, method, frames, title):
    face, warm = image_files.read_image(FACE), 3

    def steps(count):
        taken, _ = inversion_speed.our_steps(bench.bundled, [face] * frames, count, method, bench.perceptual)
        return taken[frames * warm :]

    trial = steps(warm + 3)
    count = warm + max(3, int(bench.seconds * len(trial) / sum(trial) / frames))
    taken = steps(count)
    note = f"{bench.perceptual}, {len(taken)} steps"
    return [row(f"inversion, {BUNDLED}², {title}", len(taken) / sum(taken), "steps/s", LEAST_STEPS, note=note)]


def tuning(bench, side):
    generator = bench.bundled if side == BUNDLED else bench.config_f(side)
    images = to_images(resize(image_files.read_image(FACE), generator.resolution)[None])
    pivots = generator.w_avg.expand(1, generator.num_ws, -1)

    def steps(count):
        """Seconds a step; one more before them warms up."""
        times = []
        pti.tune(
            generator,
            images,
            pivots,
            count + 1,
            perceptual=bench.perceptual,
            min_delta=0,
            on_record=lambda _: times.append(bench.now()),
        )
        return (times[-1] - times[0]) / count

    count = min(PTI_STEPS, max(1, int(bench.seconds / steps(3))))
    name = f"pti, {PTI_STEPS} steps, {generator.resolution}², {'bundled' if side == BUNDLED else 'config F'}"
    note = f"{bench.perceptual}, {count} steps timed"
    return [row(name, PTI_STEPS * steps(count), "s", most=MOST_PTI[side], note=note)]


def image_rate(times, batch, seconds):
    """Images a second of whole cycles after a first one, until so many seconds have passed.

    times   seconds since the start, one for each step
    """
    cycle, start = peer_training.CYCLE, 0.0
    for count, moment in enumerate(times, 1):
        if count == cycle:
            start = moment
        elif count % cycle == 0 and moment - start >= seconds:
            break
    return batch * (count - cycle) / (moment - start)


def training(bench, precision="float32", bundled=False, theirs=False):
    side, batch = bench.side(BUNDLED), bench.batch(16)
    widths = bench.widths(side, bundled)
    run = Generator(side, widths), Discriminator(side, widths), 10**6, batch
    name = f"training, {side}², {'bundled widths' if bundled else 'config F'}, {precision}"
    if theirs:
        with checkout(bench.nvidia.resolve()), contextlib.redirect_stdout(sys.stderr):
            times = peer_training.their_steps(*run, device=bench.device)
            rate = image_rate(times, batch, bench.seconds)
        return [row(f"{name}, stylegan2-ada-pytorch", rate, "images/s", note=f"batch {batch}")]
    times = peer_training.our_steps(*run, device=bench.device, precision=precision)
    return [row(name, image_rate(times, batch, bench.seconds), "images/s", note=f"batch {batch}")]


def team(bench):
    """Training by two processes of torchrun that run `worker`."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, __file__, "--worker", "--device", bench.device, "--scale", bench.scale]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        answer = process.communicate()[0]
    finally:
        process.terminate()  # ends both
    if process.returncode:
        raise RuntimeError(f"torchrun: exit status {process.returncode}")
    return [json.loads(answer.splitlines()[-1])]


def worker(bench):
    """One of two processes; the first prints the row."""
    torch.distributed.init_process_group("gloo")
    side, cycle = bench.side(BUNDLED), peer_training.CYCLE
    batch = max(8, bench.batch(16))  # four for each process, as the minibatch std wants
    widths = bench.widths(side)
    run = Generator(side, widths), Discriminator(side, widths), 2 * cycle, batch
    times = list(peer_training.our_steps(*run, device=bench.device))
    if torch.distributed.get_rank() == 0:
        name = f"training, {side}², config F, float32, two processes"
        print(json.dumps(row(name, image_rate(times, batch, 0), "images/s", note=f"batch {batch} in all")))
    torch.distributed.destroy_process_group()


def measurements(options):
    """(group, function of a Bench, limit in seconds) of each."""
    half = ("float32", "bfloat16")
    groups = {
        "generate": [
            generate,
            functools.partial(generate, frame=512),
            *(functools.partial(generate, large=True, precision=precision, least=LEAST_RAW) for precision in half),
            functools.partial(generate, large=True, frame=1024, precision="bfloat16", least=LEAST_DETAIL),
        ],
        "synthesis": [functools.partial(synthesis, precision=precision) for precision in half],
        "inversion": [
            functools.partial(inversion, method="optimise", frames=4, title="Algorithm 1, four frames together"),
            functools.partial(inversion, method="sequential", frames=2, title="Algorithm 2"),
        ],
        "pti": [functools.partial(tuning, side=side) for side in MOST_PTI],
        "training": [
            functools.partial(training, precision=precision, bundled=bundled)
            for bundled in (False, True)
            for precision in half
        ],
        "nvidia": [functools.partial(training, theirs=True)] if options.nvidia else [],
        "team": [team] if options.team else [],
    }
    wanted = options.only or groups
    return [
        (name, measure, options.limit * (SLOWER if name in ("nvidia", "team") else 1))
        for name, measures in groups.items()
        if name in wanted
        for measure in measures
    ]


# ---- the run ----


class TooSlow(Exception):
    """A measurement's time is over. Not TimeoutError, which the package takes for a fault of a file."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TooSlow in the block after so many seconds, where the system has alarms."""

    def ring(*_):
        raise TooSlow(f"not done within {seconds:g} s")

    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(measure, bench, limit):
    """Rows of a measurement; one that tells why, if it fails."""
    what = functools.partial(measure)  # one of a plain function has no keywords
    name = ", ".join([what.func.__name__, *(f"{key} {value}" for key, value in what.keywords.items())])
    try:
        with time_limit(limit):
            return measure(bench)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return [{"what": name, "failed": f"{type(error).__name__}: {reason}"}]
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # a broken device fails again in the next measurement
                torch.cuda.empty_cache()


def surroundings(bench):
    cuda = bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(bench.device) if cuda else f"{bench.device}, {platform.machine()}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32 if cuda else None,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32 if cuda else None,
        "cores": os.cpu_count(),
        "scale": bench.scale,
    }


def table(rows):
    """Rows in Markdown."""
    lines = ["| | measured | asked | met | |", "|---|---|---|---|---|"]
    for found in rows:
        if "failed" in found:
            cells = [found["what"], "failed", "", "", found["failed"].replace("|", "/")]
        else:
            met = {True: "yes", False: "**no**", None: ""}[found["met"]]
            cells = [found["what"], f"{found['value']:g} {found['unit']}", found["asked"], met, found["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu, mps")
    parser.add_argument("--scale", type=float, default=1.0, help="of sides, widths, batches and times")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement after its warm-up, at scale 1")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a measurement is given up")
    parser.add_argument("--perceptual", default="lpips", help="loss of inversion and pti, as talkhead takes it")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="generate, synthesis, inversion …; all if left out")
    parser.add_argument("--nvidia", type=Path, metavar="CHECKOUT", help="of stylegan2-ada-pytorch, for the comparison")
    parser.add_argument("--team", action="store_true", help="train by two processes on the card too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(Bench(options))
    rows = []
    with contextlib.ExitStack() as stack:
        bench = Bench(options, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        vgg = stack.enter_context(inversion_speed.vgg()) if options.perceptual == "lpips" else None
        print(json.dumps(surroundings(bench) | {"vgg": vgg}), flush=True)
        for group, measure, limit in measurements(options):
            began = time.monotonic()
            for found in attempt(measure, bench, limit):
                if bench.scale != 1 and "met" in found:  # what is asked is for full size
                    found |= {"asked": "", "met": None}
                rows.append(found)
                print(json.dumps({"group": group} | found | {"took_s": round(time.monotonic() - began, 1)}), flush=True)
    print(f"\n{table(rows)}")
    if any("failed" in found for found in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
