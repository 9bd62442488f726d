"""Other projects' networks of 16² in their own layouts: names and shapes written out by hand, numbers by a formula.

    python tests/foreign.py ROSINALITY NVIDIA > tests/data/peers.json

runs the two projects' own code (checkouts of rosinality/stylegan2-pytorch and NVlabs/stylegan2-ada-pytorch) on weights
of the same formula, and writes down what it draws and how it judges: the numbers that the tests compare with.
"""

import json
import math
import sys
import types

import torch

NVIDIA = {"z_dim": 24, "w_dim": 32, "channels": (32, 16, 8, 4), "layers": 3}  # at 32²
ROSINALITY = {
    "z_dim": 512,
    "w_dim": 512,
    "channels": (512, 512, 512),
    "layers": 2,
}  # at 16²: its code makes no narrower ones


def formula(shape, index):
    """Numbers that look random, of mean 0 and variance 1, and are the same everywhere."""
    count = math.prod(shape)
    wave = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + index * 78.233) * 43758.5453
    return ((wave - wave.floor() - 0.5) * math.sqrt(12)).float().reshape(shape)


def filled(shapes):
    """A state dict: the formula's numbers for each name, counted in the order of the alphabet; filters as they are."""
    state = {}
    for index, name in enumerate(sorted(name for name in shapes if not name.endswith(("kernel", "resample_filter")))):
        first = (
            100 if name.startswith(("style.", "mapping.fc")) and name.endswith("weight") else 1
        )  # their learning rate is 0.01
        state[name] = formula(shapes[name], index) * first
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    for name in shapes.keys() - state.keys():
        gain = 16 if name.endswith(("upsample.kernel", "conv.blur.kernel")) else 4  # 4 in each direction, or 1
        state[name] = torch.outer(taps, taps) / 64 * (gain / 4)
    return state


def rosinality_generator(z_dim, w_dim, channels, layers):
    assert z_dim == w_dim
    a, b, c = channels
    shapes = {}
    for layer in range(1, layers + 1):
        shapes |= {f"style.{layer}.weight": (w_dim, w_dim), f"style.{layer}.bias": (w_dim,)}
    shapes |= {
        "input.input": (1, a, 4, 4),
        "conv1.conv.weight": (1, a, a, 3, 3),
        "conv1.conv.modulation.weight": (a, w_dim),
        "conv1.conv.modulation.bias": (a,),
        "conv1.noise.weight": (1,),
        "conv1.activate.bias": (a,),
        "to_rgb1.bias": (1, 3, 1, 1),
        "to_rgb1.conv.weight": (1, 3, a, 1, 1),
        "to_rgb1.conv.modulation.weight": (a, w_dim),
        "to_rgb1.conv.modulation.bias": (a,),
        "convs.0.conv.weight": (1, b, a, 3, 3),
        "convs.0.conv.blur.kernel": (4, 4),
        "convs.0.conv.modulation.weight": (a, w_dim),
        "convs.0.conv.modulation.bias": (a,),
        "convs.0.noise.weight": (1,),
        "convs.0.activate.bias": (b,),
        "convs.1.conv.weight": (1, b, b, 3, 3),
        "convs.1.conv.modulation.weight": (b, w_dim),
        "convs.1.conv.modulation.bias": (b,),
        "convs.1.noise.weight": (1,),
        "convs.1.activate.bias": (b,),
        "to_rgbs.0.bias": (1, 3, 1, 1),
        "to_rgbs.0.upsample.kernel": (4, 4),
        "to_rgbs.0.conv.weight": (1, 3, b, 1, 1),
        "to_rgbs.0.conv.modulation.weight": (b, w_dim),
        "to_rgbs.0.conv.modulation.bias": (b,),
        "convs.2.conv.weight": (1, c, b, 3, 3),
        "convs.2.conv.blur.kernel": (4, 4),
        "convs.2.conv.modulation.weight": (b, w_dim),
        "convs.2.conv.modulation.bias": (b,),
        "convs.2.noise.weight": (1,),
        "convs.2.activate.bias": (c,),
        "convs.3.conv.weight": (1, c, c, 3, 3),
        "convs.3.conv.modulation.weight": (c, w_dim),
        "convs.3.conv.modulation.bias": (c,),
        "convs.3.noise.weight": (1,),
        "convs.3.activate.bias": (c,),
        "to_rgbs.1.bias": (1, 3, 1, 1),
        "to_rgbs.1.upsample.kernel": (4, 4),
        "to_rgbs.1.conv.weight": (1, 3, c, 1, 1),
        "to_rgbs.1.conv.modulation.weight": (c, w_dim),
        "to_rgbs.1.conv.modulation.bias": (c,),
        "noises.noise_0": (1, 1, 4, 4),
        "noises.noise_1": (1, 1, 8, 8),
        "noises.noise_2": (1, 1, 8, 8),
        "noises.noise_3": (1, 1, 16, 16),
        "noises.noise_4": (1, 1, 16, 16),
    }
    return filled(shapes)


def rosinality_discriminator(channels, **_):
    a, b, c = channels
    return filled(
        {
            "convs.0.0.weight": (c, 3, 1, 1),
            "convs.0.1.bias": (c,),
            "convs.1.conv1.0.weight": (c, c, 3, 3),
            "convs.1.conv1.1.bias": (c,),
            "convs.1.conv2.0.kernel": (4, 4),
            "convs.1.conv2.1.weight": (b, c, 3, 3),
            "convs.1.conv2.2.bias": (b,),
            "convs.1.skip.0.kernel": (4, 4),
            "convs.1.skip.1.weight": (b, c, 1, 1),
            "convs.2.conv1.0.weight": (b, b, 3, 3),
            "convs.2.conv1.1.bias": (b,),
            "convs.2.conv2.0.kernel": (4, 4),
            "convs.2.conv2.1.weight": (a, b, 3, 3),
            "convs.2.conv2.2.bias": (a,),
            "convs.2.skip.0.kernel": (4, 4),
            "convs.2.skip.1.weight": (a, b, 1, 1),
            "final_conv.0.weight": (a, a + 1, 3, 3),
            "final_conv.1.bias": (a,),
            "final_linear.0.weight": (a, 16 * a),
            "final_linear.0.bias": (a,),
            "final_linear.1.weight": (1, a),
            "final_linear.1.bias": (1,),
        }
    )


def nvidia_generator(z_dim, w_dim, channels, layers):
    shapes = {"mapping.w_avg": (w_dim,), "synthesis.b4.const": (channels[0], 4, 4)}
    for layer in range(layers):
        shapes |= {f"mapping.fc{layer}.weight": (w_dim, w_dim if layer else z_dim), f"mapping.fc{layer}.bias": (w_dim,)}
    for side, before, width in zip((4, 8, 16, 32), (None, *channels), channels):
        block = f"synthesis.b{side}"
        shapes |= {
            f"{block}.resample_filter": (4, 4),
            f"{block}.torgb.weight": (3, width, 1, 1),
            f"{block}.torgb.bias": (3,),
            f"{block}.torgb.affine.weight": (width, w_dim),
            f"{block}.torgb.affine.bias": (width,),
        }
        for conv, inputs in (("conv0", before), ("conv1", width)):
            if inputs:
                conv = f"{block}.{conv}"
                shapes |= {
                    f"{conv}.weight": (width, inputs, 3, 3),
                    f"{conv}.bias": (width,),
                    f"{conv}.noise_strength": (),
                    f"{conv}.noise_const": (side, side),
                    f"{conv}.resample_filter": (4, 4),
                    f"{conv}.affine.weight": (inputs, w_dim),
                    f"{conv}.affine.bias": (inputs,),
                }
    return filled(shapes)


def nvidia_discriminator(channels, **_):
    a, b, c, d = channels
    shapes = {"b32.fromrgb.weight": (d, 3, 1, 1), "b32.fromrgb.bias": (d,), "b32.fromrgb.resample_filter": (4, 4)}
    for side, inputs, outputs in ((32, d, c), (16, c, b), (8, b, a)):
        shapes |= {
            f"b{side}.resample_filter": (4, 4),
            f"b{side}.conv0.weight": (inputs, inputs, 3, 3),
            f"b{side}.conv0.bias": (inputs,),
            f"b{side}.conv0.resample_filter": (4, 4),
            f"b{side}.conv1.weight": (outputs, inputs, 3, 3),
            f"b{side}.conv1.bias": (outputs,),
            f"b{side}.conv1.resample_filter": (4, 4),
            f"b{side}.skip.weight": (outputs, inputs, 1, 1),
            f"b{side}.skip.resample_filter": (4, 4),
        }
    return filled(
        shapes
        | {
            "b4.conv.weight": (a, a + 1, 3, 3),
            "b4.conv.bias": (a,),
            "b4.conv.resample_filter": (4, 4),
            "b4.fc.weight": (a, 16 * a),
            "b4.fc.bias": (a,),
            "b4.out.weight": (1, a),
            "b4.out.bias": (1,),
        }
    )


# What the networks are asked, and what is written down of their answers -----------------------------------------------


def questions(z_dim, side):
    """z (2, z_dim), and pictures (4, 3, side, side)."""
    return formula((2, z_dim), 1000), formula((4, 3, side, side), 1001)


def some(values, count=24):
    """So many of the values, evenly spread, and their root mean square, by which differences are to be measured."""
    flat = values.detach().double().flatten()
    picked = flat[torch.linspace(0, len(flat) - 1, min(count, len(flat))).long()]
    return {"values": picked.tolist(), "scale": flat.square().mean().sqrt().item()}


def _upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
    """Zeros between, padding, the filter, every so many kept: by the definition."""
    n, c, h, w = x.shape
    wide = x.new_zeros(n, c, h * up, w * up)
    wide[..., ::up, ::up] = x
    wide = torch.nn.functional.pad(wide, (pad[0], pad[1], pad[0], pad[1]))
    return torch.nn.functional.conv2d(wide.flatten(0, 1)[:, None], kernel.flip(0, 1)[None, None])[:, 0].unflatten(
        0, (n, c)
    )[..., ::down, ::down]


class _FusedLeakyReLU(torch.nn.Module):
    def __init__(self, channels, bias=True):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return _leaky(x, self.bias)


def _leaky(x, bias):
    return torch.nn.functional.leaky_relu(x + bias.view(1, -1, *[1] * (x.dim() - 2)), 0.2) * math.sqrt(2)


def _rosinality(folder):
    stand_in = types.ModuleType("op")  # its CUDA operations, which it compiles when imported
    stand_in.upfirdn2d, stand_in.FusedLeakyReLU, stand_in.fused_leaky_relu = _upfirdn2d, _FusedLeakyReLU, _leaky
    stand_in.conv2d_gradfix = torch.nn.functional
    sys.modules["op"] = stand_in
    sys.path.insert(0, folder)
    import model

    generator = model.Generator(16, ROSINALITY["w_dim"], ROSINALITY["layers"])
    discriminator = model.Discriminator(16)
    generator.load_state_dict(rosinality_generator(**ROSINALITY))
    discriminator.load_state_dict(rosinality_discriminator(**ROSINALITY))
    z, images = questions(ROSINALITY["z_dim"], 16)
    mean = formula((ROSINALITY["w_dim"],), 1002)
    drawn, _ = generator([z], randomize_noise=False)
    cut, _ = generator([z], truncation=0.5, truncation_latent=mean, randomize_noise=False)
    return {
        "mapping": some(generator.style(z)),
        "const": some(drawn),
        "truncated": some(cut),
        "logits": some(discriminator(images)),
    }


def _nvidia(folder):
    sys.path.insert(0, folder)
    sys.modules.setdefault("requests", types.ModuleType("requests"))  # for downloads, of which there are none here
    from training import networks

    answers = {}
    for name, clamp in (("free", None), ("clamped", 1.5)):
        widths = {
            "channel_base": NVIDIA["channels"][-1] * 32,
            "channel_max": NVIDIA["channels"][0],
            "conv_clamp": clamp,
        }
        generator = networks.Generator(
            NVIDIA["z_dim"], 0, NVIDIA["w_dim"], 32, 3, {"num_layers": NVIDIA["layers"]}, widths
        ).eval()
        discriminator = networks.Discriminator(0, 32, 3, **widths)
        generator.load_state_dict(nvidia_generator(**NVIDIA))
        discriminator.load_state_dict(nvidia_discriminator(**NVIDIA))
        z, images = questions(NVIDIA["z_dim"], 32)
        answers[name] = {
            "mapping": some(generator.mapping(z, None)[:, 0]),
            "const": some(generator(z, None, noise_mode="const")),
            "truncated": some(generator(z, None, truncation_psi=0.5, noise_mode="const")),
            "none": some(generator(z, None, noise_mode="none")),
            "logits": some(discriminator(images, None)),
        }
    return answers


if __name__ == "__main__":
    with torch.no_grad():
        print(json.dumps({"rosinality": _rosinality(sys.argv[1]), "nvidia": _nvidia(sys.argv[2])}, indent=1))
