"""Compare StyleGAN3's generators with NVIDIA's own code: results of the same random weights, derivatives, and speed.

    python examples/benchmarks/peer_stylegan3.py ~/stylegan3

For T and R at 64² and 256² (`--sizes 1024` for others), with narrow layers, prints a JSON object each:

    mapping, images, moved    relative error (norm of the difference / norm) of W, of images, and of images under a
                              transform that moves and turns them
    first, second             the same of the gradient of the images by w_plus, and of a gradient of its norm
    rounding                  the same of our two gradients, in float32 beside float64. The leaky ReLU's gradient jumps
                              at zero, so that rounding shows in gradients, in theirs as in ours: the two differ by both
    their_s, our_s, ratio     CPU seconds of one image, the median of three in turns; theirs over ours

Above 256² gradients are left out, and one image is drawn instead of two.

`--write tests/data/stylegan3.npz` freezes a few of their numbers for the tests. On a CPU NVIDIA's code runs its plain
torch operations, for its own are for CUDA alone.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from talkhead import state_dicts
from talkhead.generators import build

LARGEST_ERROR, LARGEST_GRADIENT_ERROR, LEAST_RATIO = 1e-4, 1e-3, 1.5
KINDS = {"T": {}, "R": {"conv_kernel": 1, "use_radial_filters": True}}
WIDTHS = {
    64: {"channel_base": 1024, "channel_max": 32},
    256: {"channel_base": 8192, "channel_max": 128},
    1024: {"channel_base": 8192, "channel_max": 64},
}
LARGEST_SIZE = 256  # whose gradients are compared


def fill(state):
    """Give each tensor of NVIDIA's state dict numbers that depend on its name and shape alone; filters stay."""
    for name, value in sorted(state.items()):
        if name.endswith("_filter") or name.endswith("transform"):
            continue
        size = max(value.numel(), 1)
        numbers = torch.from_numpy(np.random.default_rng(sum(name.encode())).standard_normal(size)).float()
        numbers = numbers.view(value.shape)
        if name.endswith("magnitude_ema"):
            numbers = 1 + numbers.abs()
        elif name.endswith("input.affine.bias"):
            numbers = torch.tensor([1.0, 0.1, 0.05, -0.03])
        elif name.endswith("affine.bias"):
            numbers = 1 + 0.1 * numbers
        elif name.endswith(("bias", "input.affine.weight", "w_avg")):
            numbers = 0.1 * numbers
        elif "mapping.fc" in name:
            numbers = 100 * numbers
        value.copy_(numbers)


def theirs(kind, resolution):
    from training.networks_stylegan3 import Generator

    options = WIDTHS[resolution] | KINDS[kind] | {"mapping_kwargs": {"num_layers": 2}}
    network = Generator(512, 0, 512, resolution, 3, **options).eval().requires_grad_(False)
    fill(network.state_dict())
    return network


def derivatives(synthesis, w_plus, weights):
    """The gradient of weighted images by w_plus, and that of its norm."""
    w_plus = w_plus.clone().requires_grad_(True)
    (first,) = torch.autograd.grad((synthesis(w_plus) * weights).sum(), w_plus, create_graph=True)
    return first.detach(), torch.autograd.grad(first.square().sum(), w_plus)[0]


def error(ours, wanted):
    return ((ours - wanted).norm() / wanted.norm()).item()


def matrix(turn=0.3, right=0.1, down=-0.05):
    cosine, sine = np.cos(turn), np.sin(turn)
    return torch.tensor([[cosine, -sine, right], [sine, cosine, down], [0, 0, 1]], dtype=torch.float32)


def seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def compare(kind, resolution):
    network = theirs(kind, resolution)
    state, config = state_dicts.from_stylegan3(network.state_dict())
    generator = build(config).eval().requires_grad_(False)
    generator.load_state_dict(state)
    z = torch.randn(2 if resolution <= LARGEST_SIZE else 1, 512, generator=torch.Generator().manual_seed(0))
    w_plus = network.mapping(z, None)
    images = network.synthesis(w_plus)
    record = {"kind": kind, "resolution": resolution, "mapping": error(generator.mapping(z), w_plus)}
    record["images"] = error(generator.synthesis(w_plus), images)
    network.synthesis.input.transform.copy_(matrix())
    record["moved"] = error(generator.synthesis(w_plus, transform=matrix()), network.synthesis(w_plus))
    network.synthesis.input.transform.copy_(torch.eye(3))
    if resolution <= LARGEST_SIZE:
        weights = torch.randn(images[:1].shape, generator=torch.Generator().manual_seed(1)) / resolution
        own, wanted = (derivatives(each.synthesis, w_plus[:1], weights) for each in (generator, network))
        record |= {name: error(*pair) for name, pair in zip(("first", "second"), zip(own, wanted))}
        exact = derivatives(copy.deepcopy(generator).double().synthesis, w_plus[:1].double(), weights.double())
        record["rounding"] = [float(f"{error(*pair):.3g}") for pair in zip(own, exact)]
    turns = [[seconds(each.synthesis, w_plus[:1]) for each in (network, generator)] for _ in range(3)]
    their_s, our_s = (statistics.median(column) for column in zip(*turns))
    record |= {"their_s": their_s, "our_s": our_s, "ratio": their_s / our_s}
    record = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in record.items()}
    frozen = {"z": z, "w": w_plus[:, 0], "image": images[:, :, ::8, ::8]} if resolution == 64 else {}
    return record, {f"{kind}_{name}": value.numpy() for name, value in frozen.items()}


def main():
    from peer_generators import checkout

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nvidia", type=Path, help="checkout of NVlabs/stylegan3")
    parser.add_argument("--sizes", type=int, nargs="+", choices=WIDTHS, default=[64, 256], help="sides in pixels")
    parser.add_argument("--write", type=Path, help=".npz for a few of their numbers")
    options = parser.parse_args()
    missed, frozen = [], {}
    with checkout(options.nvidia), torch.random.fork_rng():
        for resolution in options.sizes:
            for kind in KINDS:
                record, numbers = compare(kind, resolution)
                print(json.dumps(record), flush=True)
                frozen |= numbers
                errors = [record[name] for name in ("mapping", "images", "moved")] + record.get("rounding", [])
                far = max(record.get("first", 0), record.get("second", 0)) > LARGEST_GRADIENT_ERROR
                if max(errors) > LARGEST_ERROR or far or resolution == 256 and record["ratio"] < LEAST_RATIO:
                    missed.append(f"{kind} {resolution}")
    if options.write:
        np.savez_compressed(options.write, **frozen)
    if missed:
        sys.exit(f"peer_stylegan3.py: missed at {', '.join(missed)}")


if __name__ == "__main__":
    main()
