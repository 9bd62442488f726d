"""Weight files to networks that are ready to use, whoever wrote them, and the guard that keeps mismatched files apart.

A generator is known by its fingerprint. An encoder, a speech model or a motion model carries the fingerprint of the generator that it
was trained against, and a motion model that of its encoder; a generator that was tuned around somebody's face, or grown to a larger picture around an
encoder that was held still, carries the one that it came from, so that what was trained for the parent still fits the child: layers that the
parent did not have move as its last one. Other projects' encoders record no generator: only their size is checked.
"""

import argparse
import warnings
from pathlib import Path

import torch

from talkhead import encoders, files, latents, safe_pickle, safetensors, state_dicts
from talkhead.errors import TalkheadError
from talkhead.fingerprints import fingerprint
from talkhead.stylegan import Generator, build

WEIGHTS = Path(__file__).parent / "weights"


def bundled(kind):
    """Path of the weights that come with the package.

    kind     "generator", "encoder", "audio2latent" (the second model), "first" (the first model), "video_gan", "speech" or "keypoints"
    raises   TalkheadError if the package was installed without them
    """
    path = WEIGHTS / f"{kind}.pt"
    if not path.exists():
        what, option = {
            "first": ("first model", "--audio2latent"),
            "speech": ("character model", "--features-model"),
        }.get(kind, (kind, files.option(kind)))
        raise TalkheadError(f"{path}: the bundled {what} is not installed; pass {option} FILE")
    return path


# From a file to a network ---------------------------------------------------------------------------------------------


def load_generator(path, device="cpu"):
    """The generator in a weights file, frozen and in evaluation mode.

    path      ours: a training run, an exported file or a tuned generator; or another project's, as `read` takes them
    returns   stylegan.Generator with `fingerprint` (str), `lineage` (set of str: its own and what it was tuned from) and
              `identity`, the code of the face that it was tuned on, float32 numpy (L, 512), or None, `photo`, its picture,
              uint8 numpy (S, S, 3), or None, and
              `learnt_from` ("film", "still" or "moments", if the file says what kind of pictures it was trained on, else None)
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


def _identity(path, code, generator):
    if code is None:
        return None
    if (
        not isinstance(code, torch.Tensor)
        or code.shape != (generator.num_ws, latents.W_DIM)
        or not code.isfinite().all()
    ):
        raise TalkheadError(
            f"{path}: its identity is not one finite code ({generator.num_ws}, {latents.W_DIM}); the file is damaged: tune again"
        )
    return code.float().numpy()


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
        raise TalkheadError(f"{path}: its photo is no square picture; the file is damaged: tune again")
    return photo.numpy()


def load_encoder(path, generator=None, device="cpu"):
    """The image encoder in a weights file, frozen and in evaluation mode.

    path        ours, or one of pSp, e4e or ReStyle
    generator   if given, must be the one that the encoder was trained against, or tuned from it; where the file does not
                say which that was, one of as many layers
    returns     the encoder with `fingerprint` (str)
    raises      TalkheadError if the file is missing, damaged, of another kind or of another generator
    """

    def encoder(**config):
        return encoders.build(config, _generator)

    return _load_fitted(path, read(path, "encoder", training=False), encoder, generator, device)


def load_audio2latent(path, generator=None, device="cpu"):
    """The speech model in a weights file, the first or the second, frozen and in evaluation mode; arguments as `load_encoder`.

    returns   audio2latent.FirstModel or SecondModel; `hears` tells the features that it was trained on
    """
    from talkhead import audio2latent

    def speech_model(**config):
        return audio2latent.build(**config)

    return _load_fitted(path, read(path, "audio2latent", training=False), speech_model, generator, device)


def load_video_gan(path, generator=None, encoder=None, device="cpu"):
    """The motion model in a weights file, frozen and in evaluation mode.

    generator, encoder   if given, must be those that it was trained with; the generator may be one tuned from that
    raises               TalkheadError as `load_encoder` does
    """
    from talkhead.video_gan import LatentGenerator

    weights = read(path, "video_gan", training=False)
    model = _load_fitted(path, weights, LatentGenerator, generator, device)
    made_by = weights["config"].get("encoder")
    if encoder is not None and made_by not in (None, encoder.fingerprint):
        raise TalkheadError(
            f"{path}: its basis is of the codes of encoder {made_by}, not {encoder.fingerprint}; "
            "pass the --encoder that it belongs to, or train the motion model for this one"
        )
    return model


def load_keypoints(path=None, device="cpu"):
    """The keypoint network in a weights file, frozen and in evaluation mode; it belongs to no generator.

    path      None is the bundled one
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
            f"pass the --generator that it belongs to, or train the {kind} for this one"
        )
    model = _build(network, config.get("network", config), weights["model"], path, device)
    if generator is not None and model.num_ws != generator.num_ws:
        if unknown or model.num_ws > generator.num_ws:
            raise TalkheadError(
                f"{path}: {'an' if kind[0] in 'ae' else 'a'} {kind} of {model.num_ws} layers, the generator has {generator.num_ws}; "
                "pass the --generator that it belongs to"
            )
        model = _grown(path, kind, model, generator)
    model.trained_on, model.fingerprint = trained_on, fingerprint(weights["model"])
    if kind == "audio2latent" and "network" in config:
        model.feature_id = config.get("features", model.feature_id)  # older files hear what they all did
    return model


def _grown(path, kind, model, generator):
    """What was trained for a smaller generator, made ready for one that grew out of it."""
    if kind != "encoder":
        model.layers = generator.num_ws
        return model
    if not isinstance(model, encoders.ResNetEncoder):
        raise TalkheadError(
            f"{path}: an encoder of {model.num_ws} layers, the generator has grown to {generator.num_ws}, and only encoders of "
            "architecture resnet grow along; train one for it (talkhead train-encoder)"
        )
    return encoders.extend_layers(model, generator.num_ws).to(model.w_avg.device).eval().requires_grad_(False)


def _build(network, config, state, path, device):
    """Rebuild a network from its config and load its weights strictly, as float32."""
    try:
        model = network(**config)
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
    except (TypeError, RuntimeError, KeyError) as problem:
        reason = str(problem).splitlines()[0]
        raise TalkheadError(
            f"{path}: config and weights do not make a {network.__name__.strip('_')} ({reason}); the file is damaged "
            "or from another version: train or export it again"
        ) from problem
    return model.to(device).eval().requires_grad_(False)


# Whoever wrote it -----------------------------------------------------------------------------------------------------


def read(path, kind=None, training=True):
    """The weights of one network in any project's file, in our own layout.

    path       our .pt; rosinality's, from training or converted; NVIDIA's .pkl of StyleGAN2; the tuned generator of PTI;
               a .pt of pSp, e4e or ReStyle, whose generator and encoder can both be had; what `convert` wrote; a .safetensors of
               any of their state dicts
    kind       "generator", "encoder", "audio2latent", "video_gan" or "speech"; None is the one that the file holds
    training   False leaves out what only training needs
    returns    {"kind", "config", "step", "model"}, and "training" if there is more to it: of another project's file,
               "generator" and "discriminator" as they were trained, without their optimisers
    raises     TalkheadError if the file is missing, damaged, unsafe, of another kind, of a network that is not known here, or holds NaN
    warns      if the file lacks the mean of W or the noise pictures, which are made again from fixed seeds

    Nothing in the file is run. Shapes alone say how large a network is.
    """
    return _File(path).read(kind, training)


class _File:
    """A weights file: the project that it is of, and the kinds of networks in it."""

    def __init__(self, path):
        self.path = path
        contents = _contents(path)
        self.format, self.contents = _recognise(contents)
        if self.format is None:
            raise TalkheadError(f"{path}: holds {_stranger(contents)}; pass weights of a generator or an encoder")
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
                    f"{self.path}: {len(bad)} of its {len(part)} tensors hold NaN or infinity, {bad[0]} first: its training diverged, or "
                    "a half-precision copy overflowed; take an earlier checkpoint, or the original"
                )
        if "w_avg" in weights["missing"]:
            warnings.warn(
                f"{self.path}: does not record the mean of W; made again from 10000 random z; talkhead weights convert would record it",
                stacklevel=1,
            )
        if "noise" in weights["missing"]:
            warnings.warn(f"{self.path}: has no noise pictures; made again from a fixed seed", stacklevel=1)
        return {key: value for key, value in weights.items() if key != "missing"}

    def ours(self, kind=None, training=True):
        """`read`, where "missing" says what had to be made again, instead of a warning."""
        if kind is None and len(self.kinds) > 1:
            raise TalkheadError(
                f"{self.path}: holds {' and '.join(map(files.a, self.kinds))}; take one out with talkhead weights convert --part"
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
        except TalkheadError as problem:
            raise TalkheadError(f"{self.path}: {' '.join(str(problem).split())}") from problem
        weights = {"kind": kind, "step": 0, "missing": ()} | weights
        if not weights.get("training"):
            weights.pop("training", None)
        return weights

    def generator(self, model, training, w_avg=None, clamp=None):
        """The weights of a generator out of its state in our layout, with what is missing made again.

        training   (name, function that gives a state) of "generator" and "discriminator", as far as they are to be read
        """
        if "const" not in model:
            raise TalkheadError("holds a discriminator in the generator's place")
        record = _record(self.contents.get("talkhead"))
        own = {key: value for key, value in _record(record.get("config")).items() if key in _OWN_CONFIG}
        config = state_dicts.generator_config(model) | ({} if clamp is None else {"clamp": clamp}) | own
        if w_avg is not None:
            model["w_avg"] = w_avg
        missing = _complete(model, config)
        parts = {}
        for name, convert in training:
            try:
                parts[name] = convert()
            except TalkheadError as problem:
                warnings.warn(f"{self.path}: its {name} is left out: {problem}", stacklevel=1)
        if "generator" in parts:
            parts["generator"] = {
                **model,
                **({"w_avg": record["w_avg"]} if "w_avg" in record else {}),
                **parts["generator"],
            }
        return {"config": config, "step": record.get("step", 0), "model": model, "training": parts, "missing": missing}


def _check_ours(path, contents):
    """Refuse what no version of ours wrote."""
    kinds = {"kind": str, "config": dict, "step": int, "model": dict, "training": dict}
    wrong = [
        key for key, kind in kinds.items() if not isinstance(contents.get(key, {} if key == "training" else None), kind)
    ]
    if not wrong and not all(isinstance(value, torch.Tensor) for value in contents["model"].values()):
        wrong = ["model"]
    if not wrong and contents["kind"] == "generator":
        try:
            found = state_dicts.generator_config(contents["model"])
        except TalkheadError as problem:
            raise TalkheadError(f"{path}: {problem}; the file is damaged") from problem
        wrong = [key for key in found if _plain(contents["config"]).get(key) != found[key]]
    if wrong:
        raise TalkheadError(
            f"{path}: {wrong[0]} and the rest do not go together; the file is damaged, copy or train it again"
        )


def _contents(path):
    """What was saved in a file, without running anything."""
    with files.reading(path) as stream:
        if safetensors.is_safetensors(stream.read(9)):
            return files.load_weights(path)
    if safe_pickle.sniff(path) == "zip":
        try:
            return files.load_weights(path, mapped=True)
        except files.NotPlainWeights:
            pass  # a network of NVIDIA's, saved whole; or what must be refused, by name
    return safe_pickle.read(path)


def _recognise(contents):
    """The project that wrote a file, and the contents in that project's usual arrangement; None if nobody known."""
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
    # A flat file, as .safetensors are, has it among the rest.
    beside = (
        contents
        if "state_dict" in contents
        else {"latent_avg": state.pop("latent_avg")}
        if "latent_avg" in state
        else {}
    )
    if _within(state, "decoder.") or _within(state, "encoder."):
        return "psp", beside | {"state_dict": state}
    if "conv1.conv.modulation.weight" in state:
        return "rosinality", beside | {"g_ema": state}
    if "synthesis.b4.const" in state or "synthesis.input.weight" in state:
        return "nvidia", {"G_ema": state}
    return None, contents


_KNOWN = {  # what people have beside such files, by a tensor of theirs
    "body.0.res_layer.1.weight": "IR-SE-50, which recognises faces",
    "features.0.weight": "a classifier such as VGG",
    "layer1.0.conv1.weight": "a classifier such as ResNet",
    "lin0.model.1.weight": "the linear layers of LPIPS",
    "netcnnaud.0.weight": "SyncNet",
    "slice1.0.weight": "a classifier such as VGG",
    "Conv2d_1a_3x3.conv.weight": "Inception",
}


def _stranger(contents):
    if not isinstance(contents, dict):
        return files.a(type(contents).__name__)
    state = _state(contents.get("state_dict", contents))
    known = next((name for tensor, name in _KNOWN.items() if tensor in state), None)
    return known or (f"unknown weights ({next(iter(state))}, …)" if state else "no weights")


def _state(value):
    """The tensors of a state dict, or of a NVIDIA module, by name; what DataParallel and torch.compile put into names is taken out."""
    state = value.state if isinstance(value, safe_pickle.Module) else value
    state = (
        {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        if isinstance(state, dict)
        else {}
    )
    return {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}


def _within(state, prefix):
    """The part of a state dict under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in _state(state).items() if name.startswith(prefix)}


def _record(value):
    """A recorded set of options as a dict."""
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
    model, clamp = state_dicts.from_nvidia(_state(main)), _clamp(main)

    def part(key):
        state = state_dicts.from_nvidia(_state(contents[key]))
        if _clamp(contents[key]) != clamp:
            raise TalkheadError(f"limits its activations to {_clamp(contents[key])}, the generator in use to {clamp}")
        group = _group(contents[key])
        if group != 4:
            warnings.warn(
                f"{file.path}: its discriminator compared pictures in groups of {group}, here of 4", stacklevel=1
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
    """How many pictures its minibatch layer compares."""
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
    """(512,), (1, 512) or, once for each layer, (L, 512) -> (512,)."""
    if w is not None and not (
        isinstance(w, torch.Tensor) and w.is_floating_point() and w.dim() in (1, 2) and w.numel()
    ):
        raise TalkheadError("its latent_avg is not a latent; the file is damaged")
    if w is None or w.dim() == 1:
        return w
    return (w[0] if (w == w[:1]).all() else w.mean(0)).clone()


def _complete(state, config):
    """Make what a generator's file may lack: "w_avg", the mean of W, and "noise", its pictures. Returns which it was."""
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
        # In double precision, so that every machine finds the same fingerprint; and ever of these z, or what was trained
        # against such a file would not fit any more.
        state["w_avg"] = latents.mean_latent(mapping, random=torch.Generator().manual_seed(0))
        missing.append("w_avg")
    return tuple(missing)


# From a file to a file ------------------------------------------------------------------------------------------------


def convert(source, destination, to="talkhead", part=None):
    """Rewrite a weights file in the layout of another project, bit for bit: generators, discriminator, noise and mean of W.

    source        as `read` takes it
    destination   .pt to write
    to            "talkhead"; "rosinality": {g_ema, latent_avg, g, d}; "nvidia": {G_ema, G, D: state dicts, kwargs: what builds their
                  networks}. g and d only where the source has them
    part          "generator" or "encoder", of a file that holds both
    raises        TalkheadError as `read` does, or if an encoder is to be written in another layout than ours
    warns         if the other project's code would make a network of other widths

    Optimisers stay behind, except from ours to ours.
    """
    weights = read(source, part)
    if to != "talkhead" and weights["kind"] != "generator":
        raise TalkheadError(
            f"{source}: holds {files.a(weights['kind'])}; only a generator can be written for {to}, pass --to talkhead"
        )
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
            f"rosinality's code makes no generator of the channels {channels}; change its table to load this file",
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


_OWN_CONFIG = ("clamp", "lineage")


def _own_record(weights):
    """What another project's layout has no place for. Their code does not look at it."""
    return {
        "step": weights["step"],
        "config": {key: weights["config"][key] for key in _OWN_CONFIG if key in weights["config"]},
    }


def _rosinality_channels(channels):
    """The widths its code makes at that many levels, with the channel_multiplier that comes nearest."""
    multiplier = channels[-1] << max(len(channels) - 5, 0) >> 8
    return [512 if k < 4 else (256 * multiplier) >> (k - 4) for k in range(len(channels))]


def _nvidia_widths(config):
    """channel_base and channel_max, from which its code makes these widths: min(base / resolution, max)."""
    channels, resolution = config["channels"], config["resolution"]
    widths = {"channel_base": channels[-1] * resolution, "channel_max": channels[0]}
    if channels != [min(widths["channel_base"] // (4 << k), widths["channel_max"]) for k in range(len(channels))]:
        warnings.warn(
            f"NVIDIA's code makes no network of the channels {channels}; the kwargs in this file do not fit it",
            stacklevel=1,
        )
    return widths


def export(source, destination, half=True):
    """Copy a weights file without its training state, by default in half precision.

    source   as `read` takes it
    raises   TalkheadError if the file cannot be read or written
    """
    weights = read(source, training=False)
    model = {
        name: value.half() if half and value.is_floating_point() else value for name, value in weights["model"].items()
    }
    kept = {
        key: weights[key]
        for key in ("kind", "config", "step", "perceptual", "identity", "photo", "learnt_from")
        if key in weights
    }
    files.save_weights(destination, kept | {"model": model})


# What a file holds ----------------------------------------------------------------------------------------------------


def describe(path):
    """What a weights file holds, whoever wrote it: a dict of plain values.

    returns   format ("talkhead", "rosinality", "nvidia" or "psp"), kind, step, parameters (those that are trained, as metrics counts them), precision, config, training_state (is there
              more than inference needs?), num_ws; of a generator also resolution, fingerprint, w_avg ("recorded" or "missing"), noise
              (likewise), whether discriminator, training_copy and optimizer are there, and identity, if it holds one; trained_with and perceptual,
              if the file says what it was trained on and by which loss. Where it holds an encoder too, "encoder" is another such dict.
    """
    file = _File(path)
    about = {"format": file.format}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the answer
        about |= _described(file, file.kinds[0])
        for kind in file.kinds[1:]:
            try:
                about[kind] = _described(file, kind)
            except TalkheadError as problem:
                about[kind] = {"unreadable": str(problem)}
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
            "num_ws": 2 * len(config["channels"]),
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
    """How many numbers of a network are trained. Its pictures of noise, basis, mean of W and statistics are none of them."""
    config = {key: value for key, value in config.items() if key not in ("lineage", "generator")}
    try:
        with torch.device("meta"):  # shapes alone
            network = _network(kind, config.get("network", config))
    except (TypeError, RuntimeError, KeyError) as problem:
        raise TalkheadError(
            f"{path}: its config makes no {kind} ({str(problem).splitlines()[0]}); the file is damaged or from another version"
        ) from problem
    return sum(parameter.numel() for parameter in network.parameters())


def _network(kind, config):
    """An untrained network of a kind."""
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


_TOLD = (
    "dataset_type",
    "encoder_type",
    "output_size",
    "stylegan_size",
    "start_from_latent_avg",
    "learn_in_w",
    "max_steps",
)


def _trained_with(contents):
    """What a file records of its training: its data, above all."""
    record = _record(contents.get("args")) or _record(contents.get("training_set_kwargs"))
    opts = _record(contents.get("opts"))
    record = record or {key: opts[key] for key in _TOLD if key in opts}
    return {"trained_with": _plain(record)} if record else {}


def _plain(value):
    """A value as JSON can say it."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


# Networks that fit each other -----------------------------------------------------------------------------------------


def load_networks(device="cpu", **paths):
    """{kind: network} for {kind: path}, checked against each other.

    paths    generator, and any of encoder, audio2latent, video_gan; None is the bundled one
    raises   TalkheadError if one was trained against another
    """
    found = {kind: path or bundled(kind) for kind, path in paths.items()}
    networks = {"generator": load_generator(found.pop("generator"), device)}
    if "encoder" in found:
        networks["encoder"] = load_encoder(found.pop("encoder"), networks["generator"], device)
    return networks | {kind: load_driver(kind, path, device=device, **networks) for kind, path in found.items()}


def load_driver(kind, path, generator, encoder=None, device="cpu"):
    """The speech model ("audio2latent") or motion model ("video_gan") in a file, None for the bundled one, if it fits the others."""
    path = path or bundled(kind)
    if kind == "video_gan":
        return load_video_gan(path, generator, encoder, device)
    return load_audio2latent(path, generator, device)
