"""Weight files to networks that are ready to use, and the guard that keeps mismatched files apart.

A generator is known by its fingerprint. An encoder or a speech model carries the fingerprint of the generator that it
was trained against; a generator that was tuned around somebody's face carries the one that it came from, so that what
was trained for the parent still fits the child.
"""

import hashlib
from pathlib import Path

import torch

from talkhead import files
from talkhead.errors import TalkheadError

WEIGHTS = Path(__file__).parent / "weights"


def bundled(kind):
    """Path of the weights that come with the package.

    kind     "generator", "encoder" or "audio2latent"
    raises   TalkheadError if the package was installed without them
    """
    path = WEIGHTS / f"{kind}.pt"
    if not path.exists():
        raise TalkheadError(f"{path}: the bundled {kind} is not installed; pass --{kind} FILE")
    return path


def fingerprint(state):
    """16 hex digits that name a generator by its numbers, rounded to half precision so that export keeps the name.

    state    state dict of tensors
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_generator(path, device="cpu"):
    """The generator in a weights file, frozen and in evaluation mode.

    path      file of kind "generator": a training run, an exported file or a tuned generator
    returns   stylegan.Generator with `fingerprint` (str) and `lineage` (set of str: its own and what it was tuned from)
    raises    TalkheadError if the file is missing, damaged or of another kind
    """
    from talkhead.stylegan import Generator

    weights = files.load_weights(path, kind="generator")
    config = dict(weights["config"])
    lineage = set(config.pop("lineage", []))
    generator = _build(Generator, config, weights["model"], path, device)
    generator.fingerprint = fingerprint(weights["model"])
    generator.lineage = lineage | {generator.fingerprint}
    return generator


def load_encoder(path, generator=None, device="cpu"):
    """The image encoder in a weights file, frozen and in evaluation mode.

    generator   if given, must be the one that the encoder was trained against, or tuned from it
    raises      TalkheadError if the file is missing, damaged, of another kind or of another generator
    """
    from talkhead import encoders, stylegan

    def encoder(**config):
        return encoders.build(config, stylegan.Generator)

    return _load_fitted(path, "encoder", encoder, generator, device)


def load_audio2latent(path, generator=None, device="cpu"):
    """The speech model in a weights file, frozen and in evaluation mode; arguments as `load_encoder`."""
    from talkhead.audio2latent import SecondModel

    return _load_fitted(path, "audio2latent", SecondModel, generator, device)


def _load_fitted(path, kind, network, generator, device):
    weights = files.load_weights(path, kind=kind)
    config = dict(weights["config"])
    trained_on = config.pop("generator", None)
    if generator is not None and trained_on not in generator.lineage:
        raise TalkheadError(f"{path}: this {kind} was trained against generator {trained_on}, not {generator.fingerprint}; "
                            f"pass the --generator that it belongs to, or train the {kind} for this one")
    model = _build(network, config.get("network", config), weights["model"], path, device)
    model.trained_on = trained_on
    return model


def _build(network, config, state, path, device):
    """Rebuild a network from its config and load its weights strictly, as float32."""
    try:
        model = network(**config)
        model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})
    except (TypeError, RuntimeError, KeyError) as problem:
        reason = str(problem).splitlines()[0]
        raise TalkheadError(f"{path}: config and weights do not make a {network.__name__} ({reason}); the file is damaged "
                            "or from another version: train or export it again") from problem
    return model.to(device).eval().requires_grad_(False)


def export(source, destination, half=True):
    """Copy a weights file without its training state, by default in half precision.

    raises   TalkheadError if the file cannot be read or written
    """
    weights = files.load_weights(source)
    model = {name: value.half() if half and value.is_floating_point() else value for name, value in weights["model"].items()}
    files.save_weights(destination, {**{key: weights[key] for key in ("kind", "config", "step")}, "model": model})


def describe(path):
    """What a weights file holds: a dict of kind, step, parameters, precision, config and, for a generator, fingerprint."""
    weights = files.load_weights(path)
    model = weights["model"]
    about = {"kind": weights["kind"], "step": weights["step"],
             "parameters": sum(value.numel() for value in model.values()),
             "precision": str(next(iter(model.values())).dtype).removeprefix("torch."),
             "training_state": "training" in weights, "config": weights["config"]}
    if weights["kind"] == "generator":
        about["fingerprint"] = fingerprint(model)
    return about
