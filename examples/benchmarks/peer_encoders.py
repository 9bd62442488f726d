"""Set the encoders beside pSp's, e4e's and ReStyle's own code: the same weights, the same picture, the same codes?

    python examples/benchmarks/peer_encoders.py --psp ~/pixel2style2pixel --e4e ~/encoder4editing \\
        --restyle ~/restyle-encoder

Each is a checkout of the project; those not given are left out. Prints a JSON object for each kind of encoder: the
largest difference of its codes over their largest offset from the mean latent, and the seconds of both on one picture.
Weights and picture are made by a formula, so that anyone gets the same. `--shrink 4` makes every layer four times
narrower, in their source too, and `--numbers 8` prints so many of their codes: that is where tests/data/encoders.json
comes from.
"""

import argparse
import contextlib
import importlib
import json
import re
import shutil
import sys
import tempfile
import time
import types
import unittest.mock
from pathlib import Path

import torch

from talkhead import encoders
from talkhead.stylegan import Generator

PRIME = 2**31 - 1
PACKAGES = ("models", "configs", "utils", "criteria")
SIZE = 256

# The options that select each encoder of each project, and the class of its network.
KINDS = {
    "psp": (
        "models.psp",
        "pSp",
        ["GradualStyleEncoder", "BackboneEncoderUsingLastLayerIntoWPlus", "BackboneEncoderUsingLastLayerIntoW"],
    ),
    "e4e": ("models.psp", "pSp", ["Encoder4Editing", "SingleStyleCodeEncoder"]),
    "restyle": ("models.psp", "pSp", ["BackboneEncoder", "GradualStyleEncoder"]),
    "restyle-e4e": ("models.e4e", "e4e", ["ProgressiveBackboneEncoder"]),
}


def noise(shape, seed):
    """Numbers in [-1, 1) that look random and are the same on every machine."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.int64) + 7919 * (seed + 1)
    index = (index * index % PRIME * 48271 + index * 69621) % PRIME
    return (index.double() / PRIME * 2 - 1).float().reshape(shape)


def fill(state):
    """Give each tensor of a state dict numbers that keep a signal alive through all layers, by its place in the names.

    The last layers get small ones, so that codes stay near the mean as a trained encoder's do: ReStyle feeds its images
    back, and far out it would enlarge the least difference at every pass.
    """
    for seed, name in enumerate(sorted(state)):
        value = state[name]
        if name.endswith("linear.weight"):
            value.copy_(noise(value.shape, seed) * 0.02)
        elif value.dim() >= 2:
            value.copy_(noise(value.shape, seed) * (3 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            value.copy_(1 + 0.5 * noise(value.shape, seed))
        elif value.is_floating_point():
            value.copy_(0.2 * noise(value.shape, seed))


def narrower(source, shrink):
    """Their source with fewer channels; the third number of a map2style is a size of its map, and stays."""

    def replace(match):
        return f"{512 // shrink}, {512 // shrink}, {match[2]}" if match[1] else str(int(match[0]) // shrink)

    return re.sub(r"(512, 512, )(\d+)|\b(?:512|256|128|64)\b", replace, source)


@contextlib.contextmanager
def checkout(folder, shrink):
    """A project's packages, importable without matplotlib and the CUDA code that they would compile."""
    with tempfile.TemporaryDirectory() as copy:
        for package in PACKAGES:
            shutil.copytree(Path(folder) / package, Path(copy) / package)
        for path in Path(copy, "models", "encoders").glob("*.py"):
            path.write_text(narrower(path.read_text(), shrink))
        ops = types.ModuleType("models.stylegan2.op")
        ops.FusedLeakyReLU = ops.fused_leaky_relu = ops.upfirdn2d = None  # only their decoder needs them
        plots = types.ModuleType("matplotlib")
        plots.use = lambda backend: None
        sys.modules |= {"models.stylegan2.op": ops, "matplotlib": plots}
        with unittest.mock.patch.object(sys, "path", [copy, *sys.path]):
            yield
        for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
            del sys.modules[name]  # the next project's packages have the same names


class Decoder(torch.nn.Module):
    """Our generator in the place of theirs, which answers with its latents too.

    What theirs draws is compared elsewhere.
    """

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, codes, input_is_latent, randomize_noise, return_latents):
        codes = codes[0] if codes[0].dim() == 3 else codes[0][:, None].expand(-1, self.generator.num_ws, -1)
        return self.generator.synthesis(codes), codes


def small_generator(resolution, w_dim):
    """A generator for the loops that need one; narrow, because it is on both sides."""
    generator = Generator(resolution, [16] * (resolution.bit_length() - 2), w_dim=w_dim, mapping_layers=1)
    fill(generator.state_dict())
    return generator.eval().requires_grad_(False)


def theirs(kind, encoder_type, resolution, shrink):
    """A project's whole network, with weights made by formula, and a generator of ours for its decoder."""
    room, network, _ = KINDS[kind]
    module = importlib.import_module(room)
    generator = small_generator(resolution, 512 // shrink)
    opts = argparse.Namespace(
        encoder_type=encoder_type,
        output_size=resolution,
        stylegan_size=resolution,
        n_styles=generator.num_ws,
        input_nc=6 if kind.startswith("restyle") else 3,
        start_from_latent_avg=True,
        learn_in_w=encoder_type.endswith("IntoW"),
        device="cpu",
        n_iters_per_batch=5,
        resize_outputs=True,
        dataset_type="ffhq_encode",
    )
    cls = getattr(module, network)
    with (
        unittest.mock.patch.object(module, "Generator", lambda *_, **__: Decoder(generator)),
        unittest.mock.patch.object(cls, "load_weights", lambda self: None),
        contextlib.redirect_stdout(sys.stderr),
    ):
        net = cls(opts).eval().requires_grad_(False)
    fill(net.encoder.state_dict())
    net.latent_avg = 0.1 * noise((1 if opts.learn_in_w else generator.num_ws, 512 // shrink), 99)
    return net, opts, generator


def their_codes(net, opts, images):
    if opts.input_nc == 3:
        return net(images, return_latents=True, randomize_noise=False)[1]
    from utils.inference_utils import run_on_batch

    # What their get_average_image does, but for its move to a GPU.
    mean = net(net.latent_avg[None], input_code=True, randomize_noise=False, average_code=True)[0]
    latents = run_on_batch(images, net, opts, mean)[1]
    return torch.stack([torch.from_numpy(latents[index][-1]) for index in range(len(images))])


@torch.no_grad()
def compare(kind, encoder_type, resolution, shrink, numbers):
    net, opts, generator = theirs(kind, encoder_type, resolution, shrink)
    images = noise((1, 3, SIZE, SIZE), 7)
    started = time.monotonic()
    wanted = their_codes(net, opts, images)
    middle = time.monotonic()
    config, state = encoders.from_psp(
        net.encoder.state_dict(), net.latent_avg, vars(opts), (generator.config, generator.state_dict())
    )
    encoder = encoders.build(config, Generator)
    encoder.load_state_dict(state)
    encoder.eval()
    begun = time.monotonic()
    codes = encoder(images)
    ended = time.monotonic()
    record = {
        "project": kind,
        "encoder": encoder_type,
        "resolution": resolution,
        "shrink": shrink,
        "relative_error": ((codes - wanted).abs().max() / (wanted - net.latent_avg).abs().max()).item(),
        "offset": (wanted - net.latent_avg).square().mean().sqrt().item(),
        "their_s": round(middle - started, 2),
        "our_s": round(ended - begun, 2),
    }
    if numbers:
        # A few of each latent: a slip in the order of the layers would show.
        record |= {
            "opts": {
                name: getattr(opts, name)
                for name in ("encoder_type", "output_size", "input_nc", "start_from_latent_avg", "learn_in_w")
            },
            "codes": [[round(value, 6) for value in row] for row in wanted[0, :, :numbers].tolist()],
        }
    return record


@torch.no_grad()
def compare_faces(shrink, numbers):
    """pSp's identity network and ours, from one file, on the same picture of a face."""
    from configs.paths_config import model_paths
    from criteria.id_loss import IDLoss
    from models.encoders.model_irse import Backbone

    state = Backbone(112, 50, "ir_se").state_dict()
    fill(state)
    images = noise((1, 3, SIZE, SIZE), 7)
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(state, file.name)
        with unittest.mock.patch.dict(model_paths, {"ir_se50": file.name}), contextlib.redirect_stdout(sys.stderr):
            wanted = IDLoss().extract_feats(images)
        found = encoders.load_face_recognition(file.name)(images)
    record = {
        "project": "psp",
        "encoder": "IDLoss",
        "shrink": shrink,
        "relative_error": ((found - wanted).abs().max() / wanted.abs().max()).item(),
    }
    return record | ({"codes": [[round(value, 6) for value in wanted[0, : 8 * numbers].tolist()]]} if numbers else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("psp", "e4e", "restyle"):
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT")
    parser.add_argument("--resolution", type=int, default=1024, help="of the generator that the codes are for")
    parser.add_argument(
        "--shrink", type=int, default=1, help="how many times narrower than published; 4 needs little memory"
    )
    parser.add_argument("--numbers", type=int, default=0, help="print so many numbers of each of their latents")
    options = parser.parse_args()
    if options.psp:
        with checkout(options.psp, options.shrink):
            print(json.dumps(compare_faces(options.shrink, options.numbers)), flush=True)
    for kind, (_, _, types_) in KINDS.items():
        folder = getattr(options, kind.split("-")[0])
        for encoder_type in types_ if folder else ():
            with checkout(folder, options.shrink):
                print(
                    json.dumps(compare(kind, encoder_type, options.resolution, options.shrink, options.numbers)),
                    flush=True,
                )


if __name__ == "__main__":
    main()
