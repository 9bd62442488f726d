"""Compare generator and discriminator with rosinality's and NVIDIA's own code: results of the same weights, and speed.

    python examples/benchmarks/peer_generators.py --rosinality ~/stylegan2-pytorch --nvidia ~/stylegan2-ada-pytorch

Each is a checkout of the project (for NVIDIA, stylegan3's does as well); those not given are left out. For each
resolution, config F with random weights is written in the project's layout and loaded by its code, strictly. Prints a
JSON object each:

    mapping, images, truncated, logits   largest difference / largest value: of W, of pictures without and with
                                         truncation, and of the discriminator's answers to pictures
    grey_levels                          largest difference of two pictures scaled to [-1, 1], of 255
    their_s, our_s, ratio                median seconds of one picture, batch 1, taken in turns; theirs over ours

On a CPU the projects run what they have there: rosinality's and NVIDIA's plain torch operations, for their own are for
CUDA alone.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
import types
import unittest.mock
from pathlib import Path

import torch
import torch.utils.cpp_extension

from talkhead import state_dicts
from talkhead.stylegan import Discriminator, Generator

LARGEST_ERROR = 1e-4
# How many times as fast as theirs one picture is to be drawn on a CPU.
LEAST_RATIO = {("rosinality", 1024): 2.5, ("nvidia", 1024): 2.0, ("nvidia", 256): 1.4}
PSI = 0.5


def random_networks(resolution, device, channels=None):
    """Ours, config F or of other channels, in which every number counts: noise, biases, mean of W are not zero."""
    torch.manual_seed(resolution)
    generator, discriminator = Generator(resolution, channels), Discriminator(resolution, channels)
    for network in (generator, discriminator):
        for name, value in network.state_dict().items():
            if name.endswith(("bias", "bias0", "bias1", "noise_strength", "w_avg")):
                value.add_(0.1 * torch.randn_like(value))
    return [network.to(device).eval().requires_grad_(False) for network in (generator, discriminator)]


@contextlib.contextmanager
def checkout(folder):
    """A project's folder to import from.

    The CUDA code that rosinality compiles on import is left out; a CPU needs none.
    """
    before = set(sys.modules)
    stand_ins = {
        "requests": types.ModuleType("requests"),
        "pkg_resources": types.ModuleType("pkg_resources"),
    }  # NVIDIA's; one is for downloads
    stand_ins["pkg_resources"].parse_version = torch.torch_version.TorchVersion
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules |= stand_ins
    with contextlib.ExitStack() as patches:
        patches.enter_context(unittest.mock.patch.object(sys, "path", [str(folder), *sys.path]))
        if not torch.cuda.is_available():
            patches.enter_context(unittest.mock.patch.object(torch.utils.cpp_extension, "load", lambda *_, **__: None))
        yield
    for name in set(sys.modules) - before:
        place = getattr(sys.modules[name], "__file__", None)
        if name in stand_ins or place and Path(place).is_relative_to(folder):
            del sys.modules[name]  # the next project's may have the same names


def rosinality(generator, discriminator, device):
    """Their networks with these weights, as functions.

    They give W, images of w_plus, truncated images of z, and logits.
    """
    import model

    multiplier = 2  # config F
    theirs = model.Generator(generator.resolution, 512, 8, channel_multiplier=multiplier).to(device)
    theirs.load_state_dict(state_dicts.to_rosinality(generator.state_dict()))
    judge = model.Discriminator(generator.resolution, channel_multiplier=multiplier).to(device)
    judge.load_state_dict(state_dicts.to_rosinality(discriminator.state_dict()))
    theirs.eval(), judge.eval()
    return {
        "generator": theirs,
        "discriminator": judge,
        "mapping": theirs.style,
        "images": lambda w_plus: theirs([w_plus], input_is_latent=True, randomize_noise=False)[0],
        "truncated": lambda z: theirs([z], truncation=PSI, truncation_latent=generator.w_avg, randomize_noise=False)[0],
        "logits": judge,
    }


def nvidia(generator, discriminator, device, channel_base=32768, channel_max=512):
    """Likewise. NVIDIA keeps the mean of W with the weights.

    Half precision, which is for a GPU's speed, is left off.
    """
    networks, flat = _nvidia_networks()
    widths = {"channel_base": channel_base, "channel_max": channel_max, "num_fp16_res": 0, "conv_clamp": None}
    sizes = {"img_resolution": generator.resolution, "img_channels": 3}
    options = widths if flat else {"synthesis_kwargs": widths}
    theirs = (
        networks.Generator(z_dim=512, c_dim=0, w_dim=512, mapping_kwargs={"num_layers": 8}, **sizes, **options)
        .to(device)
        .eval()
    )
    theirs.load_state_dict(state_dicts.to_nvidia(generator.state_dict()))
    judge = networks.Discriminator(c_dim=0, **sizes, **widths).to(device).eval()
    judge.load_state_dict(state_dicts.to_nvidia(discriminator.state_dict()))
    return {
        "generator": theirs,
        "discriminator": judge,
        "mapping": lambda z: theirs.mapping(z, None)[:, 0],
        "images": lambda w_plus: theirs.synthesis(w_plus, noise_mode="const"),
        "truncated": lambda z: theirs(z, None, truncation_psi=PSI, noise_mode="const"),
        "logits": lambda images: judge(images, None),
    }


def _nvidia_networks():
    """Their module, and whether it takes its options flat.

    It does in stylegan3's repository; in stylegan2-ada's they are nested.
    """
    try:
        from training import networks

        return networks, False
    except ImportError:
        from training import networks_stylegan2

        return networks_stylegan2, True


PROJECTS = {"rosinality": rosinality, "nvidia": nvidia}


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def in_turns(repeat, *functions):
    """The median seconds of each function, run one after the other so that all meet the same weather."""
    seconds = [[] for _ in functions]
    for _ in range(repeat + 1):
        for function, taken in zip(functions, seconds):
            began = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken[1:]) for taken in seconds]  # the first one warms up


@torch.no_grad()
def compare(project, folder, resolution, repeat, device):
    generator, discriminator = random_networks(resolution, device)
    with checkout(folder):
        theirs = PROJECTS[project](generator, discriminator, device)
        z = torch.randn(2, 512, device=device)
        w_plus = generator.mapping(z)
        images = torch.randn(4, 3, resolution, resolution, device=device)
        ours = {
            "mapping": lambda z: generator.mapping(z)[:, 0],
            "images": generator.synthesis,
            "truncated": lambda z: generator(z, PSI),
            "logits": discriminator,
        }
        inputs = {"mapping": z, "images": w_plus, "truncated": z, "logits": images}
        pairs = {name: (ours[name](inputs[name]), theirs[name](inputs[name])) for name in ours}
        errors = {name: relative_error(*pair) for name, pair in pairs.items()}
        drawn, wanted = pairs["images"]
        grey = ((drawn - wanted).abs().max() / wanted.abs().max() * 127.5).item()
        their_s, our_s = in_turns(repeat, lambda: theirs["images"](w_plus[:1]), lambda: generator.synthesis(w_plus[:1]))
    least = LEAST_RATIO.get((project, resolution)) if device == "cpu" else None
    met = max(errors.values()) <= LARGEST_ERROR and (least is None or their_s / our_s >= least)
    return (
        {"project": project, "resolution": resolution, "device": device}
        | errors
        | {
            "grey_levels": grey,
            "their_s": round(their_s, 4),
            "our_s": round(our_s, 4),
            "ratio": round(their_s / our_s, 2),
            "least_ratio": least,
            "met": met,
        }
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for project in PROJECTS:
        parser.add_argument(f"--{project}", type=Path, metavar="CHECKOUT")
    parser.add_argument("--resolution", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeat", type=int, default=5, help="pictures to time, of each")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    for project in PROJECTS:
        for resolution in options.resolution if getattr(options, project) else ():
            print(
                json.dumps(
                    compare(project, getattr(options, project).resolve(), resolution, options.repeat, options.device)
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
