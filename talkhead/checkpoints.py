"""Weight files of this and other projects: loading networks, checking that files belong together, description.

A generator is identified by its fingerprint. An encoder, a speech model or a motion model carries the fingerprint of
the generator that it was trained against, and a motion model that of its encoder. A generator that was tuned to one
face, or grown to a larger resolution with a fixed encoder, carries its parent's fingerprint, so that models trained for
the parent still fit it: layers that the parent lacks get the displacement of its last one. Other projects' encoders
record no generator: only their size is checked.
"""

import argparse
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from talkhead import encoders, files, latents, safe_pickle, safetensors, state_dicts
from talkhead.errors import TalkheadError
from talkhead.fingerprints import fingerprint
from talkhead.generators import build
from talkhead.stylegan import Generator

if TYPE_CHECKING:
    from talkhead.audio2latent import FirstModel, SecondModel
    from talkhead.keypoints import KeypointNetwork
    from talkhead.video_gan import LatentGenerator

WEIGHTS = Path(__file__).parent / "weights"
OWN_CONFIG = ("clamp", "lineage")  # what a generator's config holds that other projects' layouts have no key for


def bundled(kind: str) -> Path:
    """Path of the bundled weights of a kind.

    kind     "generator", "encoder", "audio2latent" (the second model), "first" (the first model), "video_gan", "speech"
             or "keypoints"
    raises   TalkheadError if the package was installed without them
    """
    path = WEIGHTS / f"{kind}.pt"
    if not path.exists():
        name, option = {
            "first": ("first model", "--audio2latent"),
            "speech": ("character model", "--features-model"),
        }.get(kind, (kind, files.option(kind)))
        raise TalkheadError(f"{path}: the bundled {name} is not installed; pass {option} FILE")
    return path


# Loading networks -----------------------------------------------------------------------------------------------------


def load_generator(path: str | os.PathLike, device: str | torch.device = "cpu") -> Generator:
    """Load the generator of a weights file, frozen and in evaluation mode.

    path      ours: a training run, an exported file or a tuned generator; or another project's, as `read` takes them
    returns   stylegan.Generator with `fingerprint` (str), `lineage` (set of str: the fingerprints of itself and its
              parents), `identity` (float32 numpy (L, 512), W+ latent of the face that it was tuned on, or None),
              `photo` (uint8 numpy (S, S, 3), image of that face, or None) and `learnt_from` (kind of the training
              images, "film", "still" or "moments", or None if not recorded)
    raises    TalkheadError if the file is missing, damaged or of another kind
    """
    weights = read(path, "generator", training=False)
    config = dict(weights["config"])
    lineage = set(config.pop("lineage", []))
    generator = _build(_generator, config, weights["model"], path, device)
    generator.fingerprint = fingerprint(weights["model"])
    generator.lineage = lineage | {generator.fingerprint}
    generator.identity = _identity(path, weights.get("identity"), generator)
    generator.photo = _photo(path, weights.get("photo"))
    generator.learnt_from = weights.get("learnt_from")
    return generator


def _generator(**config):
    return build(config)


def _identity(path, latent, generator):
    if latent is None:
        return None
    if (
        not isinstance(latent, torch.Tensor)
        or latent.shape != (generator.num_ws, latents.W_DIM)
        or not latent.isfinite().all()
    ):
        raise TalkheadError(
            f"{path}: its identity is not one finite latent ({generator.num_ws}, {latents.W_DIM}); the file is "
            "damaged: tune again"
        )
    return latent.float().numpy()


def _photo(path, photo):
    if photo is None:
        return None
    if (
        not isinstance(photo, torch.Tensor)
        or photo.dtype != torch.uint8
        or photo.ndim != 3
        or photo.shape[0] != photo.shape[1]
        or photo.shape[2] != 3
    ):
        raise TalkheadError(f"{path}: its photo is no square image; the file is damaged: tune again")
    return photo.numpy()


def load_encoder(
    path: str | os.PathLike, generator: Generator | None = None, device: str | torch.device = "cpu"
) -> encoders.Encoder:
    """Load the image encoder of a weights file, frozen and in evaluation mode.

    path        ours, or one of pSp, e4e or ReStyle
    generator   if given, must be the one that the encoder was trained against, or tuned from it; if the file does not
                record that generator, one with the same number of layers
    returns     the encoder with `fingerprint` (str)
    raises      TalkheadError if the file is missing, damaged, of another kind or of another generator
    """

    def encoder(**config):
        return encoders.build(config, _generator)

    return _load_fitted(path, read(path, "encoder", training=False), encoder, generator, device)


def load_audio2latent(
    path: str | os.PathLike, generator: Generator | None = None, device: str | torch.device = "cpu"
) -> "FirstModel | SecondModel":
    """Load the speech model of a weights file, frozen and in evaluation mode; arguments as `load_encoder`.

    returns   audio2latent.FirstModel or SecondModel; `feature_id` is the id of its audio features
    """
    from talkhead import audio2latent

    def speech_model(**config):
        return audio2latent.build(**config)

    return _load_fitted(path, read(path, "audio2latent", training=False), speech_model, generator, device)


def load_video_gan(
    path: str | os.PathLike,
    generator: Generator | None = None,
    encoder: encoders.Encoder | None = None,
    device: str | torch.device = "cpu",
) -> "LatentGenerator":
    """Load the motion model of a weights file, frozen and in evaluation mode.

    generator, encoder   if given, must be those that it was trained with; the generator may also be one tuned from it
    raises               TalkheadError as `load_encoder` does
    """
    from talkhead.video_gan import LatentGenerator

    weights = read(path, "video_gan", training=False)
    model = _load_fitted(path, weights, LatentGenerator, generator, device)
    made_by = weights["config"].get("encoder")
    if encoder is not None and made_by not in (None, encoder.fingerprint):
        raise TalkheadError(
            f"{path}: was trained with encoder {made_by}, but --encoder is {encoder.fingerprint}; "
            "pass its own encoder, or train a motion model for this one"
        )
    return model


def load_keypoints(path: str | os.PathLike | None = None, device: str | torch.device = "cpu") -> "KeypointNetwork":
    """Load the keypoint network of a weights file, frozen and in evaluation mode; it is independent of generators.

    path      weights file; None: the bundled one
    returns   keypoints.KeypointNetwork
    raises    TalkheadError if the file is missing, damaged or of another kind
    """
    from talkhead.keypoints import KeypointNetwork

    path = bundled("keypoints") if path is None else path
    weights = read(path, "keypoints", training=False)
    return _build(KeypointNetwork, weights["config"], weights["model"], path, device)


def _load_fitted(path, weights, network, generator, device):
    kind, config = weights["kind"], dict(weights["config"])
    unknown = kind == "encoder" and config.get("generator") is None
    trained_on = config.pop("generator", None)
    if generator is not None and not unknown and trained_on not in generator.lineage:
        raise TalkheadError(
            f"{path}: this {kind} was trained against generator {trained_on}, not {generator.fingerprint}; "
            f"pass its own --generator, or train the {kind} for this one"
        )
    model = _build(network, config.get("network", config), weights["model"], path, device)
    if generator is not None and model.num_ws != generator.num_ws:
        if unknown or model.num_ws > generator.num_ws:
            raise TalkheadError(
                f"{path}: {'an' if kind[0] in 'ae' else 'a'} {kind} of {model.num_ws} layers, the generator has "
                f"{generator.num_ws}; pass its own --generator"
            )
        model = _extend_layers(path, kind, model, generator)
    model.trained_on, model.fingerprint = trained_on, fingerprint(weights["model"])
    if kind == "audio2latent" and "network" in config:
        model.feature_id = config.get("features", model.feature_id)  # absent in older files
    return model


def _extend_layers(path, kind, model, generator):
    """Extend a model that was trained for a smaller generator to one grown from that."""
    if kind != "encoder":
        model.layers = generator.num_ws
        return model
    if not isinstance(model, encoders.ResNetEncoder):
        raise TalkheadError(
            f"{path}: encoder has {model.num_ws} layers, generator {generator.num_ws}; only resnet encoders can be "
            "extended: train one for it (talkhead train-encoder)"
        )
    return encoders.extend_layers(model, generator.num_ws).to(model.w_avg.device).eval().requires_grad_(False)


def _build(network, config, state, path, device):
    """Rebuild a network from its config and load its weights strictly, as float32."""
    try:
        model = network(**config)
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
    except (TypeError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise TalkheadError(
            f"{path}: config and weights do not make a {network.__name__.strip('_')} ({reason}); the file is damaged "
            "or from another version: train or export it again"
        ) from error
    return model.to(device).eval().requires_grad_(False)


# Reading files of any project -----------------------------------------------------------------------------------------


def read(path: str | os.PathLike, kind: str | None = None, training: bool = True) -> dict:
    """Read the weights of one network from a file of any supported project, converted to our layout.

    path       our .pt; rosinality's, from training or converted; NVIDIA's .pkl of StyleGAN2 or 3; the tuned generator
               of PTI; a .pt of pSp, e4e or ReStyle, with an encoder and a generator; a file written by `conversion`; a
               .safetensors of any of their state dicts
    kind       "generator", "encoder", "audio2latent", "video_gan" or "speech"; None: the only one in the file
    training   False omits the training state
    returns    {"kind", "config", "step", "model"}, and "training" if there is a training state: in another project's
               file the "generator" and "discriminator" in training, without optimisers
    raises     TalkheadError if the file is missing, damaged, unsafe, of another kind, of an unknown network, or holds
               NaN
    warns      if the file lacks the mean of W or the noise buffers, which are then made from fixed seeds

    No code of the file is run. The size of a network is derived from the shapes of its tensors.
    """
    return _File(path).read(kind, training)


class _File:
    """A weights file: its format (the project it comes from) and the kinds of networks in it."""

    def __init__(self, path):
        self.path = path
        contents = _contents(path)
        self.format, self.contents = _recognise(contents)
        if self.format is None:
            raise TalkheadError(f"{path}: holds {_name_unknown(contents)}; pass weights of a generator or an encoder")
        self.kinds = [contents["kind"]] if self.format == "talkhead" else list(_READERS[self.format])
        if self.format == "talkhead":
            _check_ours(path, contents)
        if self.format == "psp":
            self.kinds = [kind for kind in self.kinds if _within(self.contents["state_dict"], _PREFIXES[kind])]

    def read(self, kind=None, training=True):
        weights = self.ours(kind, training)
        for part in (
            weights["model"],
            *(part for name, part in weights.get("training", {}).items() if name in ("generator", "discriminator")),
        ):
            bad = [name for name, tensor in part.items() if not tensor.isfinite().all()]
            if bad:
                raise TalkheadError(
                    f"{self.path}: {len(bad)} of its {len(part)} tensors hold NaN or infinity, {bad[0]} first: "
                    "training diverged, or a half-precision copy overflowed; use an earlier checkpoint, or the "
                    "original"
                )
        if "w_avg" in weights["missing"]:
            warnings.warn(
                f"{self.path}: lacks the mean of W; computed from 10000 random z; talkhead weights convert would "
                "record it",
                stacklevel=1,
            )
        if "noise" in weights["missing"]:
            warnings.warn(f"{self.path}: lacks noise buffers; drawn from a fixed seed", stacklevel=1)
        return {key: value for key, value in weights.items() if key != "missing"}

    def ours(self, kind=None, training=True):
        """Weights as from `read`, with "missing", the names of tensors that had to be made, instead of a warning."""
        if kind is None and len(self.kinds) > 1:
            raise TalkheadError(
                f"{self.path}: holds {' and '.join(map(files.a, self.kinds))}; extract one with talkhead weights "
                "convert --part"
            )
        kind = kind or self.kinds[0]
        if kind not in self.kinds:
            raise TalkheadError(
                f"{self.path}: holds {' and '.join(map(files.a, self.kinds))}, wanted {files.a(kind)}; "
                f"pass it as {files.option(self.kinds[0])}"
            )
        if self.format == "talkhead":
            return {key: value for key, value in self.contents.items() if training or key != "training"} | {
                "missing": ()
            }
        try:
            weights = _READERS[self.format][kind](self, training)
        except TalkheadError as error:
            raise TalkheadError(f"{self.path}: {' '.join(str(error).split())}") from error
        weights = {"kind": kind, "step": 0, "missing": ()} | weights
        if not weights.get("training"):
            weights.pop("training", None)
        return weights

    def generator(self, model, training, w_avg=None, clamp=None):
        """Weights of a generator from its state dict in our layout, with missing tensors filled in.

        training   pairs (name, function that returns a state dict) of "generator" and "discriminator", those to be read
        """
        if "const" not in model:
            raise TalkheadError("holds a discriminator in the generator's place")
        record = _record(self.contents.get("talkhead"))
        own = {key: value for key, value in _record(record.get("config")).items() if key in OWN_CONFIG}
        config = state_dicts.generator_config(model) | ({} if clamp is None else {"clamp": clamp}) | own
        if w_avg is not None:
            model["w_avg"] = w_avg
        missing = _complete(model, config)
        parts = {}
        for name, convert in training:
            try:
                parts[name] = convert()
            except TalkheadError as error:
                warnings.warn(f"{self.path}: its {name} is skipped: {error}", stacklevel=1)
        if "generator" in parts:
            parts["generator"] = {
                **model,
                **({"w_avg": record["w_avg"]} if "w_avg" in record else {}),
                **parts["generator"],
            }
        return {"config": config, "step": record.get("step", 0), "model": model, "training": parts, "missing": missing}


def _check_ours(path, contents):
    """Check the structure of a file of ours; raise TalkheadError if no version of talkhead wrote it."""
    kinds = {"kind": str, "config": dict, "step": int, "model": dict, "training": dict}
    wrong = [
        key for key, kind in kinds.items() if not isinstance(contents.get(key, {} if key == "training" else None), kind)
    ]
    if not wrong and not all(isinstance(value, torch.Tensor) for value in contents["model"].values()):
        wrong = ["model"]
    if not wrong and contents["kind"] == "generator":
        try:
            found = state_dicts.generator_config(contents["model"])
        except TalkheadError as error:
            raise TalkheadError(f"{path}: {error}; the file is damaged") from error
        wrong = [key for key in found if _plain(contents["config"]).get(key) != found[key]]
    if wrong:
        raise TalkheadError(f"{path}: {wrong[0]} does not match the rest; the file is damaged, copy or train it again")


def _contents(path):
    """Load the contents of a file without running code."""
    with files.reading(path) as stream:
        if safetensors.is_safetensors(stream.read(9)):
            return files.load_weights(path)
    if safe_pickle.sniff(path) == "zip":
        try:
            return files.load_weights(path, mapped=True)
        except files.NotPlainWeights:
            pass  # a pickled network of NVIDIA's, or an unsafe file, which safe_pickle refuses by name
    return safe_pickle.read(path)


def _recognise(contents):
    """Format of a file ("talkhead", "nvidia", "rosinality", "psp" or None), and its contents in its usual form."""
    if isinstance(contents, safe_pickle.Module):
        return "nvidia", {"G_ema": contents}
    if not isinstance(contents, dict):
        return None, contents
    if "kind" in contents and "model" in contents and "config" in contents:
        return "talkhead", contents
    for format, keys in (("nvidia", ("G_ema", "G")), ("rosinality", ("g_ema", "g"))):
        if any(isinstance(contents.get(key), (dict, safe_pickle.Module)) for key in keys):
            return format, contents
    state = _state(contents.get("state_dict", contents))
    # A flat file, such as a .safetensors, has latent_avg among the tensors.
    extra = (
        contents
        if "state_dict" in contents
        else {"latent_avg": state.pop("latent_avg")}
        if "latent_avg" in state
        else {}
    )
    if _within(state, "decoder.") or _within(state, "encoder."):
        return "psp", extra | {"state_dict": state}
    if "conv1.conv.modulation.weight" in state:
        return "rosinality", extra | {"g_ema": state}
    if "synthesis.b4.const" in state or "synthesis.input.weight" in state:
        return "nvidia", {"G_ema": state}
    return None, contents


_KNOWN = {  # names of common unsupported files, by one of their tensors
    "body.0.res_layer.1.weight": "IR-SE-50, a face recognition network",
    "features.0.weight": "a classifier such as VGG",
    "layer1.0.conv1.weight": "a classifier such as ResNet",
    "lin0.model.1.weight": "the linear layers of LPIPS",
    "netcnnaud.0.weight": "SyncNet",
    "slice1.0.weight": "a classifier such as VGG",
    "Conv2d_1a_3x3.conv.weight": "Inception",
}


def _name_unknown(contents):
    if not isinstance(contents, dict):
        return files.a(type(contents).__name__)
    state = _state(contents.get("state_dict", contents))
    known = next((name for tensor, name in _KNOWN.items() if tensor in state), None)
    return known or (f"unknown weights ({next(iter(state))}, …)" if state else "no weights")


def _state(value):
    """Tensors of a state dict or an NVIDIA module by name, without the prefixes of DataParallel and torch.compile."""
    state = value.state if isinstance(value, safe_pickle.Module) else value
    state = (
        {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        if isinstance(state, dict)
        else {}
    )
    return {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}


def _within(state, prefix):
    """Entries of a state dict under a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in _state(state).items() if name.startswith(prefix)}


def _record(value):
    """Recorded options (Namespace or dict) as a dict."""
    return vars(value) if isinstance(value, argparse.Namespace) else value if isinstance(value, dict) else {}


def _rosinality(file, training):
    contents = file.contents
    parts = [
        (name, lambda key=key: state_dicts.from_rosinality(_state(contents[key])))
        for name, key in (("generator", "g"), ("discriminator", "d"))
        if training and key in contents
    ]
    model = state_dicts.from_rosinality(_state(contents.get("g_ema", contents.get("g"))))
    return file.generator(model, parts, _one_latent(contents.get("latent_avg")))


def _nvidia(file, training):
    contents = file.contents
    main = contents.get("G_ema", contents.get("G"))
    if "synthesis.input.weight" in _state(main):
        module = main if isinstance(main, safe_pickle.Module) else None
        model, config = state_dicts.from_stylegan3(_state(main), module)
        return {"config": config, "model": model}
    model, clamp = state_dicts.from_nvidia(_state(main)), _clamp(main)

    def part(key):
        state = state_dicts.from_nvidia(_state(contents[key]))
        if _clamp(contents[key]) != clamp:
            raise TalkheadError(f"clamps activations at {_clamp(contents[key])}, the generator in use at {clamp}")
        group = _group(contents[key])
        if group != 4:
            warnings.warn(
                f"{file.path}: its discriminator's minibatch std has groups of {group}, here of 4", stacklevel=1
            )
        return state

    parts = [
        (name, lambda key=key: part(key))
        for name, key in (("generator", "G"), ("discriminator", "D"))
        if training and key in contents
    ]
    return file.generator(model, parts, clamp=clamp)


def _clamp(network):
    return state_dicts.nvidia_clamp(network) if isinstance(network, safe_pickle.Module) else None


def _group(network):
    """Group size of the discriminator's minibatch std layer."""
    last = network.children.get("b4") if isinstance(network, safe_pickle.Module) else None
    layer = last and last.children.get("mbstd")
    return layer.attributes.get("group_size", 4) if layer else 4


_PREFIXES = {"generator": "decoder.", "encoder": "encoder."}


def _psp_generator(file, training):
    model = state_dicts.from_rosinality(_within(file.contents["state_dict"], "decoder."))
    return file.generator(model, (), _one_latent(file.contents.get("latent_avg")))


def _psp_encoder(file, training):
    contents = file.contents
    opts = {
        key: value for key, value in _record(contents.get("opts")).items() if isinstance(value, (str, int, float, bool))
    }
    state, latent_avg = _within(contents["state_dict"], "encoder."), contents.get("latent_avg")
    decoder, missing = None, ()
    if _within(contents["state_dict"], "decoder."):
        weights = _psp_generator(file, training)
        decoder = weights["config"], weights["model"]
        if latent_avg is None:
            latent_avg, missing = decoder[1]["w_avg"], weights["missing"]
    config, state = encoders.from_psp(state, latent_avg, opts, decoder)
    return {"config": config, "model": state, "missing": missing}


_READERS = {
    "rosinality": {"generator": _rosinality},
    "nvidia": {"generator": _nvidia},
    "psp": {"generator": _psp_generator, "encoder": _psp_encoder},
}


def _one_latent(w):
    """Reduce a latent (512,), (1, 512) or, repeated per layer, (L, 512) to (512,)."""
    if w is not None and not (
        isinstance(w, torch.Tensor) and w.is_floating_point() and w.dim() in (1, 2) and w.numel()
    ):
        raise TalkheadError("its latent_avg is not a latent; the file is damaged")
    if w is None or w.dim() == 1:
        return w
    return (w[0] if (w == w[:1]).all() else w.mean(0)).clone()


def _complete(state, config):
    """Add what a generator may lack: "w_avg", the mean of W, and "noise", the noise buffers; return their names."""
    missing = []
    random = torch.Generator().manual_seed(0)
    for k in range(2 * len(config["channels"]) - 1):
        side = 4 << (k + 1) // 2
        if f"convs.{k}.noise_const" not in state:
            state[f"convs.{k}.noise_const"] = torch.randn(side, side, generator=random)
            missing = ["noise"]
    if "w_avg" not in state:
        mapping = Generator(8, [1, 1], config["z_dim"], config["w_dim"], config["mapping_layers"]).double()
        mapping.load_state_dict(
            {name: value for name, value in state.items() if name.startswith("mapping_net.")}, strict=False
        )
        # In double precision and of fixed z, so that the fingerprint, which trained models record, is always the same.
        state["w_avg"] = latents.mean_latent(mapping, random=torch.Generator().manual_seed(0))
        missing.append("w_avg")
    return tuple(missing)


# Describing files -----------------------------------------------------------------------------------------------------


def describe(path: str | os.PathLike) -> dict:
    """Describe a weights file of any supported project as a dict of plain values.

    returns   format ("talkhead", "rosinality", "nvidia" or "psp"), kind, step, parameters (number of trained ones),
              precision, config, training_state (bool: holds more than inference needs), num_ws; of a generator also
              resolution, fingerprint, w_avg and noise ("recorded" or "missing"), discriminator, training_copy and
              optimizer (bool: present), and identity, if present; trained_with and perceptual, the training data and
              the loss, if recorded. If the file holds an encoder too, "encoder" is another such dict.
    """
    file = _File(path)
    about = {"format": file.format}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the result holds the same information
        about |= _described(file, file.kinds[0])
        for kind in file.kinds[1:]:
            try:
                about[kind] = _described(file, kind)
            except TalkheadError as error:
                about[kind] = {"unreadable": str(error)}
    return about | _trained_with(file.contents)


def _described(file, kind):
    weights = file.ours(kind)
    model, config, training = weights["model"], weights["config"], weights.get("training", {})
    about = {
        "kind": kind,
        "step": weights["step"],
        "parameters": _parameters(file.path, kind, config),
        "precision": str(next(iter(model.values())).dtype).removeprefix("torch."),
        "training_state": bool(training) or _has_optimizer(file.contents),
        "config": config,
    }
    if kind == "generator":
        about |= {
            "resolution": config["resolution"],
            "num_ws": config["layers"] + 2 if "layers" in config else 2 * len(config["channels"]),
            "fingerprint": fingerprint(model),
        }
        about |= {name: "missing" if name in weights["missing"] else "recorded" for name in ("w_avg", "noise")}
        about |= {
            "discriminator": "discriminator" in training,
            "training_copy": "generator" in training,
            "optimizer": _has_optimizer(file.contents),
        }
        about |= {"identity": True} if weights.get("identity") is not None else {}
    elif kind == "encoder":
        about["num_ws"] = config.get("encoder", config)["num_ws"]
    elif kind == "video_gan":
        about["num_ws"] = config.get("network", config)["num_ws"]
    return about | {key: weights[key] for key in ("perceptual",) if key in weights}


def _parameters(path, kind, config):
    """Number of trained parameters of a network; noise buffers, basis, mean of W and statistics do not count."""
    config = {key: value for key, value in config.items() if key not in ("lineage", "generator")}
    try:
        with torch.device("meta"):  # shapes without memory
            network = _network(kind, config.get("network", config))
    except (TypeError, RuntimeError, KeyError) as error:
        raise TalkheadError(
            f"{path}: its config makes no {kind} ({str(error).splitlines()[0]}); the file is damaged or from another "
            "version"
        ) from error
    return sum(parameter.numel() for parameter in network.parameters())


def _network(kind, config):
    """Build an untrained network of a kind."""
    from talkhead import audio2latent, keypoints, speech_models, video_gan

    make = {
        "generator": lambda: build(config),
        "encoder": lambda: encoders.build(config, _generator),
        "audio2latent": lambda: audio2latent.build(**config),
        "video_gan": lambda: video_gan.LatentGenerator(**config),
        "speech": lambda: speech_models.CharacterModel(**config),
        "keypoints": lambda: keypoints.KeypointNetwork(**config),
    }
    return make[kind]()


def _has_optimizer(contents):
    return any(str(key).endswith(("optim", "optimizer")) for key in [*contents, *_record(contents.get("training"))])


_RECORDED_OPTS = (
    "dataset_type",
    "encoder_type",
    "output_size",
    "stylegan_size",
    "start_from_latent_avg",
    "learn_in_w",
    "max_steps",
)


def _trained_with(contents):
    """Recorded training options of a file, above all its data set."""
    record = _record(contents.get("args")) or _record(contents.get("training_set_kwargs"))
    opts = _record(contents.get("opts"))
    record = record or {key: opts[key] for key in _RECORDED_OPTS if key in opts}
    return {"trained_with": _plain(record)} if record else {}


def _plain(value):
    """Convert a value to types that JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


# Networks that fit each other -----------------------------------------------------------------------------------------


def load_networks(device: str | torch.device = "cpu", **paths: str | os.PathLike | None) -> dict:
    """{kind: network} for {kind: path}, checked against each other.

    paths    generator, and any of encoder, audio2latent, video_gan; None is the bundled one
    raises   TalkheadError if one was trained against another
    """
    found = {kind: path or bundled(kind) for kind, path in paths.items()}
    networks: dict = {"generator": load_generator(found.pop("generator"), device)}
    if "encoder" in found:
        networks["encoder"] = load_encoder(found.pop("encoder"), networks["generator"], device)
    return networks | {kind: load_driver(kind, path, device=device, **networks) for kind, path in found.items()}


def load_driver(
    kind: str,
    path: str | os.PathLike | None,
    generator: Generator,
    encoder: encoders.Encoder | None = None,
    device: str | torch.device = "cpu",
) -> "FirstModel | SecondModel | LatentGenerator":
    """The speech model ("audio2latent") or motion model ("video_gan") in a file, if it fits the others.

    None is the bundled one.
    """
    path = path or bundled(kind)
    if kind == "video_gan":
        return load_video_gan(path, generator, encoder, device)
    return load_audio2latent(path, generator, device)
