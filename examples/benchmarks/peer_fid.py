"""Set FID beside pytorch-fid's own code: the same weights, the same frames, the same features and the same distance?

    python examples/benchmarks/peer_fid.py PYTORCH-FID

PYTORCH-FID is a checkout of the project. Prints JSON: the largest difference of Inception's features over the largest
feature and the seconds of both; then the relative difference of the distances. The weights are made by a formula, so
that anyone gets the same. `--shrink 16` makes every layer of their network so many times narrower, and `--numbers`
prints what theirs found instead: that is where tests/data/inception.jsonl comes from.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
import unittest.mock
import zlib
from pathlib import Path

import numpy as np
import torch

from talkhead import fid


def random(name):
    """A stream of numbers that is the same on every machine."""
    return np.random.RandomState(zlib.crc32(name.encode()))


def weights(shapes):
    """A state dict whose numbers keep a signal alive through all layers: filters of sum 0 pass on what differs between
    pictures.

    shapes   {name of a convolution: shape of its weight}
    """
    state = {}
    for name, shape in shapes.items():
        draws, count = random(name), shape[0]
        filters = draws.randn(*shape) * np.sqrt(3 / np.prod(shape[1:]))
        state[f"{name}.conv.weight"] = filters - filters.mean((1, 2, 3), keepdims=True)
        state[f"{name}.bn.weight"], state[f"{name}.bn.bias"] = 0.5 + draws.rand(count), 0.2 * draws.randn(count)
        state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"] = (
            0.2 * draws.randn(count),
            0.5 + draws.rand(count),
        )
    state = {name: torch.from_numpy(value).float() for name, value in state.items()}
    return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def frames(count=2):
    """Pictures of coloured squares, 512 x 384: shrunk, so that it shows how."""
    return random("frames").randint(0, 256, (count, 48, 64, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)


def clouds(count=400, width=64):
    """Two clouds of vectors, of different means and covariances."""
    draws = random("clouds")
    mix = draws.randn(width, width) / np.sqrt(width)
    return draws.randn(count, width), draws.randn(count + 7, width) @ mix + 0.3


def theirs(module, shrink):
    """Their network, and the shapes of its convolutions."""
    made, build, room = [], module._inception_v3, sys.modules["torchvision.models.inception"]

    class Narrow(room.BasicConv2d):
        def __init__(self, wide_in, wide, **options):
            super().__init__(wide_in if wide_in == 3 else wide_in // shrink, wide // shrink, **options)

    def keep(*args, **options):
        made.append(build(*args, **options))
        return made[0]

    def shapes():
        state = made[0].state_dict()
        return {
            name.removesuffix(".conv.weight"): list(value.shape)
            for name, value in state.items()
            if name.endswith(".conv.weight")
        }

    def load(*_, **__):
        counters = {name: value for name, value in made[0].state_dict().items() if name.endswith("num_batches_tracked")}
        return weights(shapes()) | counters

    with (
        unittest.mock.patch.object(room, "BasicConv2d", Narrow),
        unittest.mock.patch.object(module, "_inception_v3", keep),
        unittest.mock.patch.object(module, "load_state_dict_from_url", load),
    ):
        return module.InceptionV3().eval(), shapes()


@torch.no_grad()
def compare_features(module, shrink, numbers):
    network, shapes = theirs(module, shrink)
    pictures = frames()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights(shapes), Path(folder) / "weights.pth")
        ours = fid.Inception(Path(folder) / "weights.pth")
    started = time.monotonic()
    wanted = network(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)[0].flatten(1).numpy()
    middle = time.monotonic()
    found = ours(pictures)
    ended = time.monotonic()
    if numbers:
        return {
            "shrink": shrink,
            "shapes": shapes,
            "features": [[round(float(value), 6) for value in row] for row in wanted],
        }
    return {
        "shrink": shrink,
        "width": wanted.shape[1],
        "relative_error": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
        "their_s": round(middle - started, 2),
        "our_s": round(ended - middle, 2),
    }


def compare_distances(module, numbers):
    real, fake = clouds()
    statistics = [part for cloud in (real, fake) for part in (cloud.mean(0), np.cov(cloud, rowvar=False))]
    wanted = float(module.calculate_frechet_distance(*statistics))
    if numbers:
        return {"frechet_distance": wanted}
    return {"features": real.shape[1], "relative_error": abs(fid.frechet_distance(real, fake) - wanted) / wanted}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, metavar="PYTORCH-FID")
    parser.add_argument("--shrink", type=int, default=1, help="how many times narrower than published")
    parser.add_argument("--numbers", action="store_true", help="print their numbers instead")
    options = parser.parse_args()
    sys.path.insert(0, str(options.checkout / "src"))
    print(
        json.dumps(compare_features(importlib.import_module("pytorch_fid.inception"), options.shrink, options.numbers)),
        flush=True,
    )
    print(json.dumps(compare_distances(importlib.import_module("pytorch_fid.fid_score"), options.numbers)), flush=True)


if __name__ == "__main__":
    main()
