"""Conversion of StyleGAN2 state dicts between our layout, rosinality's and NVIDIA's, and reading of NVIDIA's StyleGAN3.

The three differ only in the names of tensors and in axes of length one: no kernel is flipped and no axis swapped, so a
round trip is exact. The size of a network is derived from the shapes of its tensors.
"""

import re
from typing import TYPE_CHECKING

import torch

from talkhead.errors import TalkheadError

if TYPE_CHECKING:
    from talkhead.safe_pickle import Module

# Resampling filter of all three projects
FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def from_rosinality(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert rosinality's generator or discriminator to our layout.

    state     dict of tensors, as under g_ema, g or d
    returns   our state dict, without `w_avg`, which the file keeps elsewhere, and without `noise_const`, which older
              files lack
    raises    TalkheadError if it is not a StyleGAN2, or tensors are missing or left over
    """
    if "input.input" in state:
        if "to_rgbs.0.conv.weight" not in state:
            raise TalkheadError("has no to_rgbs.0: not a StyleGAN2 of 8² or more")
        names = _generator(_count(state, "to_rgbs.{}.bias") + 1, _count(state, "style.{}.weight", 1))
        return _to_ours(state, [(ours, theirs) for ours, theirs, _ in names if theirs], _rosinality_filters)
    names = _discriminator(_count(state, "convs.{}.skip.1.weight", 1) + 1)
    return _to_ours(state, [(ours, theirs) for ours, theirs, _ in names], _rosinality_filters)


def to_rosinality(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert our generator or discriminator to rosinality's layout, with resampling filters and without `w_avg`."""
    theirs = _from_ours(state, [(ours, theirs) for ours, theirs, _ in _names(state) if theirs])
    return theirs | {name: FILTER * gain for name, gain in _rosinality_filters(theirs)}


def from_nvidia(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert NVIDIA's generator or discriminator to our layout.

    state     state dict of G_ema, G or D
    raises    TalkheadError if it is conditional, of another architecture, or tensors are missing or left over
    """
    _refuse_nvidia(state)
    if "synthesis.b4.const" in state:
        names = _generator(_count(state, "synthesis.b{}.torgb.bias", size=True), _count(state, "mapping.fc{}.weight"))
    else:
        names = _discriminator(_count(state, "b{}.skip.weight", 1, size=True) + 1)
    return _to_ours(state, [(ours, theirs) for ours, _, theirs in names], _nvidia_filters)


def to_nvidia(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert our generator or discriminator to NVIDIA's layout, with its resampling filters."""
    theirs = _from_ours(state, [(ours, theirs) for ours, _, theirs in _names(state)])
    return theirs | {name: FILTER * gain for name, gain in _nvidia_filters(theirs)}


def from_stylegan3(state: dict[str, torch.Tensor], module: "Module | None" = None) -> tuple[dict, dict]:
    """Convert NVIDIA's StyleGAN3 generator to our layout.

    state     state dict of G_ema or G
    module    safe_pickle.Module of the same, or None: what tensors do not show is then as in NVIDIA's T and R
    returns   our state dict, and the config that builds the generator
    raises    TalkheadError if it is conditional, its filters are not StyleGAN3's, or tensors are missing or left over
    """
    from talkhead.generators import build

    if "mapping.embed.weight" in state:
        raise TalkheadError("a class-conditional network; only unconditional ones can be read")
    names = {name: match for name in state if (match := _LAYER.fullmatch(name))}
    sizes = {int(match["index"]): int(match["size"]) for match in names.values()}
    if not sizes or sorted(sizes) != list(range(len(sizes))) or len(sizes) < 3:
        raise TalkheadError("has no layers synthesis.L0 onwards: not a StyleGAN3, or incomplete")
    ours = {_stylegan3_name(name): value for name, value in state.items() if not name.endswith("_filter")}
    filters = {_stylegan3_name(name): value for name, value in state.items() if name.endswith("_filter")}
    config = {"arch": "stylegan3", "resolution": sizes[len(sizes) - 1]} | stylegan3_config(ours)
    config["radial"] = any(name.endswith("down_kernel") and value.dim() == 2 for name, value in filters.items())
    if module is not None:
        synthesis = module.children["synthesis"]
        own = synthesis.attributes
        config |= {ours: own[theirs] for theirs, ours in _STYLEGAN3_ATTRIBUTES.items() if theirs in own}
        clamps = {
            part.attributes["conv_clamp"] for part in synthesis.children.values() if "conv_clamp" in part.attributes
        }
        if len(clamps) > 1:
            raise TalkheadError("its layers are clamped at several values; only one limit for all can be read")
        config |= {"clamp": clamps.pop()} if clamps else {}
    network = build(config)
    expected = {name: value for name, value in network.named_buffers() if name.endswith("_kernel")}
    if expected.keys() != filters.keys() or not all(
        value.shape == filters[name].shape and torch.allclose(value, filters[name].float(), atol=1e-3)
        for name, value in expected.items()
    ):
        raise TalkheadError("its filters are not those of a StyleGAN3 of its size; it cannot be read")
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    for name in sorted(shapes.keys() | ours.keys()):
        if name not in ours:
            raise TalkheadError(f"has no tensor for {name}: not a StyleGAN3, or incomplete")
        if name not in shapes or shapes[name] != ours[name].shape:
            raise TalkheadError(f"has {name} of the shape {tuple(ours[name].shape)}, unlike a StyleGAN3")
    return ours, network.config


# NVIDIA's attributes of a StyleGAN3's synthesis network, and ours.
_STYLEGAN3_ATTRIBUTES = {
    "num_critical": "critical",
    "margin_size": "margin",
    "output_scale": "scale",
    "num_fp16_res": "half_levels",
}

_LAYER = re.compile(r"synthesis\.L(?P<index>\d+)_(?P<size>\d+)_\d+\.weight")


def _stylegan3_name(name):
    name = re.sub(r"^synthesis\.L(\d+)_\d+_\d+\.", r"layers.\1.", name)
    name = re.sub(r"^mapping\.fc(\d+)\.", r"mapping_net.\1.", name)
    for theirs, ours in (
        ("mapping.w_avg", "w_avg"),
        ("synthesis.input.freqs", "input.frequencies"),
        ("synthesis.input.", "input."),
        ("magnitude_ema", "magnitude"),
        ("_filter", "_kernel"),
    ):
        name = name.replace(theirs, ours)
    return name


def stylegan3_config(state: dict[str, torch.Tensor]) -> dict:
    """The part of a StyleGAN3 generator's config that the shapes of its state dict, in our layout, show."""
    layers = _count(state, "layers.{}.weight") - 1
    mapping = _count(state, "mapping_net.{}.weight")
    w_dim = _width(state, "layers.0.affine.weight")
    return {
        "channels": [len(state[f"layers.{k}.weight"]) for k in range(layers)],
        "kernel": state["layers.0.weight"].shape[-1],
        "layers": layers,
        "z_dim": _width(state, "mapping_net.0.weight") if mapping else w_dim,
        "w_dim": w_dim,
        "mapping_layers": mapping,
    }


def nvidia_clamp(module: "Module") -> float | None:
    """Activation limit of NVIDIA's network (its conv_clamp), or None.

    module   safe_pickle.Module of a generator or a discriminator
    raises   TalkheadError if its layers have different limits, or differ from StyleGAN2's in other ways that their
             tensors do not show
    """
    limits = set()
    for name, part in _parts(module):
        own, leaf = part.attributes, name.rpartition(".")[2]
        if leaf in ("conv0", "conv1", "torgb", "fromrgb", "conv"):
            limits.add(own.get("conv_clamp"))
        activation = own.get("activation", "lrelu")
        if activation != ("lrelu" if leaf not in ("affine", "skip", "out") else "linear"):
            raise TalkheadError(f"{name} has the activation {activation}, unlike StyleGAN2; it cannot be read")
        if name.startswith("mapping.fc") and own.get("bias_gain", 0.01) != 0.01:
            raise TalkheadError(
                f"its mapping network has an lr_multiplier of {own['bias_gain']}; only 0.01 can be read"
            )
    if len(limits) > 1:
        raise TalkheadError(
            f"its layers are clamped at {', '.join(map(str, limits))}; only one limit for all can be read"
        )
    return limits.pop() if limits else None


def _parts(module, prefix=""):
    for name, part in module.children.items():
        yield prefix + name, part
        yield from _parts(part, f"{prefix}{name}.")


def generator_config(state: dict[str, torch.Tensor]) -> dict:
    """Config that builds our generator, derived from the shapes of its state dict; of a StyleGAN3 a part of it."""
    if "input.frequencies" in state:
        return {"arch": "stylegan3"} | stylegan3_config(state)
    levels, layers = _count(state, "rgbs.{}.bias"), _count(state, "mapping_net.{}.weight")
    w_dim = _width(state, "convs.0.conv.affine.weight")
    return {
        "resolution": 2 << levels,
        "channels": [_width(state, f"rgbs.{k}.conv.weight") for k in range(levels)],
        "z_dim": _width(state, "mapping_net.0.weight") if layers else w_dim,
        "w_dim": w_dim,
        "mapping_layers": layers,
    }


def discriminator_config(state: dict[str, torch.Tensor]) -> dict:
    """Config that builds our discriminator, derived from the shapes of its state dict."""
    levels = _count(state, "blocks.{}.skip") + 1
    down = [_width(state, f"blocks.{k}.skip") for k in range(levels - 1)] + [_width(state, "out.weight")]
    return {"resolution": 2 << levels, "channels": down[::-1]}


def _width(state, name):
    """Number of input channels of a layer."""
    if name not in state or state[name].dim() < 2:
        raise TalkheadError(f"{name} is missing, or not a StyleGAN2's")
    return state[name].shape[1]


# ---------------------------------------------------------------------------------------------------------------
# Tensor names. A row is (ours, (rosinality's, leading, trailing), (NVIDIA's, leading, trailing)), where leading and
# trailing are the numbers of axes of length one that the other project has in addition.


def _generator(levels, layers):
    for k in range(layers):
        for part in ("weight", "bias"):
            yield f"mapping_net.{k}.{part}", (f"style.{k + 1}.{part}", 0, 0), (f"mapping.fc{k}.{part}", 0, 0)
    yield "w_avg", None, ("mapping.w_avg", 0, 0)
    yield "const", ("input.input", 0, 0), ("synthesis.b4.const", -1, 0)
    for k in range(2 * levels - 1):
        a, b = f"convs.{k - 1}" if k else "conv1", f"synthesis.b{4 << (k + 1) // 2}.conv{(k + 1) % 2}"
        yield from _modulated(f"convs.{k}", a, b)
        yield f"convs.{k}.noise_strength", (f"{a}.noise.weight", 1, 0), (f"{b}.noise_strength", 0, 0)
        yield f"convs.{k}.bias", (f"{a}.activate.bias", 0, 0), (f"{b}.bias", 0, 0)
        yield f"convs.{k}.noise_const", (f"noises.noise_{k}", 2, 0), (f"{b}.noise_const", 0, 0)
    for k in range(levels):
        a, b = f"to_rgbs.{k - 1}" if k else "to_rgb1", f"synthesis.b{4 << k}.torgb"
        yield from _modulated(f"rgbs.{k}", a, b)
        yield f"rgbs.{k}.bias", (f"{a}.bias", 1, 2), (f"{b}.bias", 0, 0)


def _modulated(ours, a, b):
    yield f"{ours}.conv.weight", (f"{a}.conv.weight", 1, 0), (f"{b}.weight", 0, 0)
    for part in ("weight", "bias"):
        yield f"{ours}.conv.affine.{part}", (f"{a}.conv.modulation.{part}", 0, 0), (f"{b}.affine.{part}", 0, 0)


def _discriminator(levels):
    top = f"b{2 << levels}.fromrgb"
    rows = [("from_rgb", "convs.0.0.weight", f"{top}.weight"), ("from_rgb_bias", "convs.0.1.bias", f"{top}.bias")]
    for k in range(levels - 1):
        a, b = f"convs.{k + 1}", f"b{2 << levels - k}"
        rows += [
            (f"blocks.{k}.conv0", f"{a}.conv1.0.weight", f"{b}.conv0.weight"),
            (f"blocks.{k}.bias0", f"{a}.conv1.1.bias", f"{b}.conv0.bias"),
            (f"blocks.{k}.conv1", f"{a}.conv2.1.weight", f"{b}.conv1.weight"),
            (f"blocks.{k}.bias1", f"{a}.conv2.2.bias", f"{b}.conv1.bias"),
            (f"blocks.{k}.skip", f"{a}.skip.1.weight", f"{b}.skip.weight"),
        ]
    rows += [("conv", "final_conv.0.weight", "b4.conv.weight"), ("conv_bias", "final_conv.1.bias", "b4.conv.bias")]
    for ours, a, b in (("linear", "final_linear.0", "b4.fc"), ("out", "final_linear.1", "b4.out")):
        rows += [(f"{ours}.{part}", f"{a}.{part}", f"{b}.{part}") for part in ("weight", "bias")]
    return [(ours, (a, 0, 0), (b, 0, 0)) for ours, a, b in rows]


def _names(state):
    """Rows of the table for a state dict of ours."""
    if "const" in state:
        return _generator(_count(state, "rgbs.{}.bias"), _count(state, "mapping_net.{}.weight"))
    return _discriminator(_count(state, "blocks.{}.skip") + 1)


def _rosinality_filters(state):
    """Names of the filters in a state dict of rosinality's, each with its gain: 4 for upsampling by zero insertion."""
    for name in state:
        if name.endswith(".conv.weight") and name.startswith("to_rgbs."):
            yield name.replace("conv.weight", "upsample.kernel"), 4
        elif name.endswith(".conv.weight") and name.startswith("convs.") and int(name.split(".")[1]) % 2 == 0:
            yield name.replace("weight", "blur.kernel"), 4
        elif name.endswith((".conv2.1.weight", ".skip.1.weight")):
            yield name.replace("1.weight", "0.kernel"), 1


def _nvidia_filters(state):
    """Names and gains of NVIDIA's filters: every block and every convolution has one, even if it does not resample."""
    for name in state:
        part = name.removesuffix(".weight")
        if name != part and part.endswith((".conv0", ".conv1", ".skip", ".fromrgb", "b4.conv")):
            yield f"{part}.resample_filter", 1
        if name.endswith((".torgb.bias", ".skip.weight")):
            yield f"{name.rsplit('.', 2)[0]}.resample_filter", 1


# ---------------------------------------------------------------------------------------------------------------
# Conversion


def _to_ours(state, names, filters):
    rest = dict(state)
    for name, gain in filters(state):
        kernel = rest.pop(name, None)
        if kernel is not None and (
            kernel.shape != FILTER.shape or not torch.allclose(kernel.float(), FILTER * gain, atol=1e-3)
        ):
            raise TalkheadError(f"{name} is not the filter [1, 3, 3, 1]; no other can be read")
    ours = {}
    for name, (theirs, before, after) in names:
        if theirs in rest:
            ours[name] = _reshape_unit_axes(rest.pop(theirs), -before, -after, theirs)
        elif not name.endswith(("noise_const", "w_avg")):
            raise TalkheadError(f"has no {theirs}: not a StyleGAN2, or incomplete")
    if rest:
        raise TalkheadError(f"has {next(iter(rest))}, unlike a StyleGAN2; it cannot be read")
    if "const" in ours and ours["rgbs.0.bias"].shape != (3,):
        raise TalkheadError(f"has {len(ours['rgbs.0.bias'])} colour channels; only RGB can be read")
    return ours


def _from_ours(state, names):
    missing = next((ours for ours, _ in names if ours not in state), None)
    if missing:
        raise TalkheadError(f"has no {missing}; the file is damaged")
    return {name: _reshape_unit_axes(state[ours], *axes, ours) for ours, (name, *axes) in names}


def _reshape_unit_axes(value, before, after, name):
    """Add numbers of leading and trailing axes of length one; remove them where negative."""
    shape = tuple(value.shape)
    removed = shape[: max(-before, 0)] + shape[len(shape) - max(-after, 0) :]
    if set(removed) - {1} or len(removed) != max(-before, 0) + max(-after, 0):
        raise TalkheadError(f"{name} has the shape {shape}: not a StyleGAN2's")
    kept = shape[max(-before, 0) : len(shape) - max(-after, 0)]
    return value.reshape((1,) * before + kept + (1,) * after)


def _count(state, pattern, first=0, size=False):
    """Number of consecutive tensors named by a pattern with first, first + 1, … (or with 4, 8, 16, … if `size`)."""
    count = 0
    while pattern.format(4 << first + count if size else first + count) in state:
        count += 1
    return count


def _refuse_nvidia(state):
    """Refuse architectures of NVIDIA's other than the default StyleGAN2, by name."""
    if "mapping.embed.weight" in state:
        raise TalkheadError("a class-conditional network; only unconditional ones can be read")
    if "synthesis.b4.const" in state and "synthesis.b4.torgb.weight" not in state:
        other = "resnet" if "synthesis.b8.skip.weight" in state else "orig"
        raise TalkheadError(f"a generator of the {other} architecture; only skip, StyleGAN2's own, can be read")
    if "b4.fc.weight" in state and "b8.skip.weight" not in state:
        other = "skip" if "b4.fromrgb.weight" in state else "orig"
        raise TalkheadError(f"a discriminator of the {other} architecture; only resnet, StyleGAN2's own, can be read")
    if "b4.conv.weight" in state and state["b4.conv.weight"].shape[1] != state["b4.conv.weight"].shape[0] + 1:
        raise TalkheadError(
            "a discriminator whose minibatch std does not have StyleGAN2's one channel; it cannot be read"
        )
