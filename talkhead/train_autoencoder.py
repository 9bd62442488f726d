"""The networks of a StyleGAN2 run: new, or grown out of a file, with an encoder trained along by reconstruction."""

import os
import warnings
from typing import Any

from talkhead import checkpoints, encoders, files, generators, stylegan
from talkhead.errors import TalkheadError
from talkhead.fingerprints import fingerprint


def new_networks(
    init: str | os.PathLike | None = None,
    resolution: int | None = None,
    channels: list[int] | None = None,
    mapping_layers: int | None = None,
    d_channels: list[int] | None = None,
    freeze_d: int = 0,
) -> tuple[stylegan.Generator, stylegan.Discriminator, set[str]]:
    """A generator and its discriminator, new or grown out of a file.

    init            generator file to start from, also of a lower resolution; None: new networks
    resolution      side of the images, a power of two; None: 256, or that of `init`
    channels        widths at 4², 8² …; None: config F, or those of `init`, each further level half as wide
    mapping_layers  layers from Z to W; None: 8, or those of `init`
    d_channels      widths of the discriminator; None: the generator's
    freeze_d        levels of the discriminator that will be frozen; `init` must then hold one of this shape
    returns         Generator, Discriminator, and the fingerprints of the file's generator and its ancestors
    raises          TalkheadError if `init` does not fit
    warns           if `init` holds no discriminator of this shape
    """
    weights: dict = {"config": {"resolution": 256}} if init is None else checkpoints.read(init, "generator")
    config = {key: value for key, value in weights["config"].items() if key != "lineage"}
    if config.get("arch", "stylegan2") != "stylegan2":
        raise TalkheadError(f"{init}: a generator of architecture {config['arch']}; only StyleGAN2 can be trained")
    if init is not None and resolution not in (None, config["resolution"]):
        config["channels"] = stylegan.extend_widths(config["channels"], resolution)
    sizes = {"resolution": resolution, "channels": channels, "mapping_layers": mapping_layers}
    config |= {key: value for key, value in sizes.items() if value is not None}
    generator = generators.build(config)
    d_channels = d_channels or config.get("channels")
    discriminator = stylegan.Discriminator(generator.resolution, d_channels, config.get("clamp"))
    if init is None:
        return generator, discriminator, set()
    training = weights.get("training", {})
    state = training.get("generator", weights["model"])
    stylegan.load_matching_weights(generator, {name: value.float() for name, value in state.items()})
    saved = training.get("discriminator", {})
    if {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in discriminator.state_dict().items()
    }:
        discriminator.load_state_dict(saved)
    elif freeze_d:
        raise TalkheadError(
            f"{init}: holds no discriminator of this shape, which --freeze-d needs; drop --freeze-d or keep the sizes"
        )
    else:
        warnings.warn(f"{init}: no discriminator of these sizes; a new one starts from scratch", stacklevel=2)
    return generator, discriminator, {fingerprint(weights["model"]), *weights["config"].get("lineage", ())}


def paired_encoder(
    init: str | os.PathLike | None, generator: stylegan.Generator, **shape: Any
) -> encoders.ResNetEncoder:
    """The encoder that is trained along with a generator: new, or extended from a file to the generator's layers.

    init     encoder file of architecture resnet, or None
    shape    of a new one, as `encoders.ResNetEncoder` takes it
    raises   TalkheadError if `init` is of another architecture, or has more layers
    """
    if init is None:
        return encoders.ResNetEncoder(generator.num_ws, **shape)
    smaller = checkpoints.load_encoder(init)
    if not isinstance(smaller, encoders.ResNetEncoder):
        raise TalkheadError(f"{init}: only an encoder of architecture resnet can be trained along; leave it out")
    if smaller.num_ws > generator.num_ws:
        raise TalkheadError(
            f"{init}: an encoder of {smaller.num_ws} layers, the generator has {generator.num_ws}; "
            "pass one of a smaller generator"
        )
    return encoders.extend_layers(smaller, generator.num_ws)


def save_encoder(path: str | os.PathLike, encoder: encoders.ResNetEncoder, weights: dict) -> None:
    """Write an encoder trained along with a generator.

    weights   what `training.fit` hands to `on_save`: {"model", "step", "perceptual"} of that generator
    """
    config = encoder.config | {"generator": fingerprint(weights["model"])}
    header = {"kind": "encoder", "config": config, "step": weights["step"], "perceptual": weights["perceptual"]}
    files.save_weights(path, header | {"model": encoder.state_dict()})
