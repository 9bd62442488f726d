"""Conversion of weight files to other projects' layouts, and their export without the training state."""

import os
import warnings

import torch

from talkhead import checkpoints, files, state_dicts
from talkhead.errors import TalkheadError


def convert(
    source: str | os.PathLike, destination: str | os.PathLike, to: str = "talkhead", part: str | None = None
) -> None:
    """Convert a weights file to another project's layout, bit for bit: generators, discriminator, noise, mean of W.

    source        as `checkpoints.read` takes it
    destination   .pt to write
    to            "talkhead"; "rosinality": {g_ema, latent_avg, g, d}; "nvidia": {G_ema, G, D: state dicts, kwargs:
                  arguments of their networks}. g, d, G and D only if the source has them
    part          "generator" or "encoder", of a file that holds both
    raises        TalkheadError as `checkpoints.read` does, or if an encoder is to be written in a layout not ours
    warns         if the other project's code would build a network of other widths

    Optimisers are dropped, except from ours to ours.
    """
    weights = checkpoints.read(source, part)
    if to != "talkhead" and weights["kind"] != "generator":
        raise TalkheadError(
            f"{source}: holds {files.a(weights['kind'])}; only a generator can be written for {to}, pass --to talkhead"
        )
    if to != "talkhead" and "arch" in weights["config"]:
        raise TalkheadError(f"{source}: a StyleGAN3; only a StyleGAN2 can be written for {to}, pass --to talkhead")
    if to != "talkhead" and "w_avg" not in weights["model"]:
        raise TalkheadError(
            f"{source}: a generator without w_avg, its mean of W; the file is damaged, copy or train it again"
        )
    files.save_weights(destination, _WRITERS[to](weights))


def _to_rosinality(weights):
    model, training = weights["model"], weights.get("training", {})
    channels = weights["config"]["channels"]
    if channels != _rosinality_channels(channels):
        warnings.warn(
            f"rosinality's code builds no generator of the channels {channels}; change its table to load this file",
            stacklevel=1,
        )
    contents = {"g_ema": state_dicts.to_rosinality(model), "latent_avg": model["w_avg"]}
    contents |= {
        key: state_dicts.to_rosinality(training[name])
        for name, key in (("generator", "g"), ("discriminator", "d"))
        if name in training
    }
    record = _own_record(weights)
    if "generator" in training and not torch.equal(training["generator"]["w_avg"], model["w_avg"]):
        record["w_avg"] = training["generator"]["w_avg"]
    return contents | {"talkhead": record}


def _to_nvidia(weights):
    model, training, config = weights["model"], weights.get("training", {}), weights["config"]
    contents = {"G_ema": state_dicts.to_nvidia(model)}
    contents |= {
        key: state_dicts.to_nvidia(training[name])
        for name, key in (("generator", "G"), ("discriminator", "D"))
        if name in training
    }
    widths = _nvidia_widths(config) | {"num_fp16_res": 0, "conv_clamp": config.get("clamp")}
    sizes = {"img_resolution": config["resolution"], "img_channels": 3, "c_dim": 0}
    kwargs = {
        "G": sizes
        | {
            "z_dim": config["z_dim"],
            "w_dim": config["w_dim"],
            "synthesis_kwargs": widths,
            "mapping_kwargs": {"num_layers": config["mapping_layers"]},
        }
    }
    if "D" in contents:
        kwargs["D"] = sizes | _nvidia_widths(state_dicts.discriminator_config(training["discriminator"]))
        kwargs["D"] |= {"num_fp16_res": 0, "conv_clamp": config.get("clamp")}
    return contents | {"kwargs": kwargs, "talkhead": _own_record(weights)}


_WRITERS = {"talkhead": dict, "rosinality": _to_rosinality, "nvidia": _to_nvidia}


def _own_record(weights):
    """Values that another project's layout has no key for; its code ignores them."""
    return {
        "step": weights["step"],
        "config": {key: weights["config"][key] for key in checkpoints.OWN_CONFIG if key in weights["config"]},
    }


def _rosinality_channels(channels):
    """Widths that rosinality's code builds for this number of levels, with the nearest channel_multiplier."""
    multiplier = channels[-1] << max(len(channels) - 5, 0) >> 8
    return [512 if k < 4 else (256 * multiplier) >> (k - 4) for k in range(len(channels))]


def _nvidia_widths(config):
    """Options channel_base and channel_max of NVIDIA's code for these widths: min(base / resolution, max)."""
    channels, resolution = config["channels"], config["resolution"]
    widths = {"channel_base": channels[-1] * resolution, "channel_max": channels[0]}
    if channels != [min(widths["channel_base"] // (4 << k), widths["channel_max"]) for k in range(len(channels))]:
        warnings.warn(
            f"NVIDIA's code builds no network of the channels {channels}; the kwargs in this file do not fit it",
            stacklevel=1,
        )
    return widths


def export(source: str | os.PathLike, destination: str | os.PathLike, half: bool = True) -> None:
    """Export a weights file without its training state, by default in half precision.

    source   as `checkpoints.read` takes it
    raises   TalkheadError if the file cannot be read or written
    """
    weights = checkpoints.read(source, training=False)
    model = {
        name: value.half() if half and value.is_floating_point() else value for name, value in weights["model"].items()
    }
    kept = {
        key: weights[key]
        for key in ("kind", "config", "step", "perceptual", "identity", "photo", "learnt_from")
        if key in weights
    }
    files.save_weights(destination, kept | {"model": model})
