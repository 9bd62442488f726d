"""Weights that find their network again, and the guard against files that do not belong together."""

import argparse
import json
import math
import pickle
import zipfile

import numpy as np
import pytest
import torch

import foreign
import test_safe_pickle
import toys
from talkhead import checkpoints, conversion, files, latents
from talkhead.audio2latent import displacements
from talkhead.encoders import PSPEncoder, ResNetEncoder
from talkhead.errors import TalkheadError
from talkhead.stylegan import Discriminator, Generator
from talkhead.video_gan import motion


@pytest.fixture
def generator_file(tmp_path):
    torch.manual_seed(0)
    generator = Generator(8, [4, 4], z_dim=8, w_dim=8, mapping_layers=1)
    path = tmp_path / "g.pt"
    files.save_weights(
        path,
        {
            "kind": "generator",
            "config": generator.config,
            "step": 7,
            "model": generator.state_dict(),
            "training": {"optimizer": {"lr": 1.0}},
        },
    )
    return path, generator


def save_encoder(path, trained_on):
    encoder = ResNetEncoder(4, width=2, input_size=32, w_dim=8)
    toys.save_network(path, "encoder", encoder, step=1, generator=trained_on)
    return encoder


def test_a_generator_comes_back_as_it_was(generator_file):
    path, generator = generator_file
    loaded = checkpoints.load_generator(path)
    w_plus = torch.randn(2, 4, 8)
    assert torch.equal(loaded.synthesis(w_plus), generator.synthesis(w_plus))
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    assert loaded.lineage == {loaded.fingerprint} and len(loaded.fingerprint) == 16


def test_export_drops_training_and_keeps_the_fingerprint(generator_file, tmp_path):
    path, _ = generator_file
    small = tmp_path / "small.pt"
    conversion.export(path, small)
    weights = files.load_weights(small)
    assert set(weights) == {"kind", "config", "step", "model"} and weights["step"] == 7
    assert all(value.dtype == torch.float16 for value in weights["model"].values())
    one, two = checkpoints.load_generator(path), checkpoints.load_generator(small)
    assert one.fingerprint == two.fingerprint and next(two.parameters()).dtype == torch.float32
    about = checkpoints.describe(small)
    assert about["kind"] == "generator" and about["precision"] == "float16" and not about["training_state"]
    assert (
        about["parameters"]
        == sum(value.numel() for value in one.parameters())
        < sum(value.numel() for value in one.state_dict().values())
    )


def test_motion_model_of_another_generator_or_encoder_is_refused(toy_weights, tmp_path, monkeypatch):
    generator = checkpoints.load_generator(toy_weights / "generator.pt")
    encoder = checkpoints.load_encoder(toy_weights / "encoder.pt", generator)
    model = checkpoints.load_video_gan(toy_weights / "video_gan.pt", generator, encoder)
    identity, noise = torch.randn(1, 6, 512), torch.randn(1, 2, 3)
    conversion.export(toy_weights / "video_gan.pt", tmp_path / "half.pt")
    reads, read = [], checkpoints.read
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints, "read", lambda path, *more, **options: reads.append(path) or read(path, *more, **options)
        )
        half = checkpoints.load_video_gan(tmp_path / "half.pt", generator, encoder)
    assert reads == [tmp_path / "half.pt"]
    torch.testing.assert_close(half(noise, identity)[0], model(noise, identity)[0], atol=1e-2, rtol=1e-2)
    conversion.export(toy_weights / "encoder.pt", tmp_path / "encoder.pt")  # in half precision it is the same
    checkpoints.load_video_gan(
        toy_weights / "video_gan.pt", generator, checkpoints.load_encoder(tmp_path / "encoder.pt")
    )
    encoder.fingerprint = "0123456789abcdef"
    with pytest.raises(
        TalkheadError,
        match=r"video_gan.pt: was trained with encoder \w+, but --encoder is 0123456789abcdef; pass its own",
    ):
        checkpoints.load_video_gan(toy_weights / "video_gan.pt", generator, encoder)
    generator.lineage = {"fedcba9876543210"}
    with pytest.raises(TalkheadError, match="this video_gan was trained against generator"):
        checkpoints.load_video_gan(toy_weights / "video_gan.pt", generator)


def test_export_keeps_what_a_generator_learnt_from(generator_file, tmp_path):
    path, _ = generator_file
    assert checkpoints.load_generator(path).learnt_from is None
    files.save_weights(tmp_path / "film.pt", files.load_weights(path) | {"learnt_from": "film"})
    conversion.export(tmp_path / "film.pt", tmp_path / "small.pt")
    assert checkpoints.load_generator(tmp_path / "small.pt").learnt_from == "film"


def test_encoder_of_another_generator_is_refused_and_of_a_parent_taken(generator_file, tmp_path):
    path, generator = generator_file
    parent = checkpoints.load_generator(path)
    encoder = save_encoder(tmp_path / "e.pt", parent.fingerprint)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(checkpoints.load_encoder(tmp_path / "e.pt", parent)(images), encoder.eval()(images))
    tuned = tmp_path / "tuned.pt"
    with torch.no_grad():
        generator.const.add_(1)
    toys.save_network(tuned, "generator", generator, step=1, lineage=sorted(parent.lineage))
    child = checkpoints.load_generator(tuned)
    assert (
        child.fingerprint != parent.fingerprint
        and checkpoints.load_encoder(tmp_path / "e.pt", child).trained_on == parent.fingerprint
    )
    save_encoder(tmp_path / "stranger.pt", "0123456789abcdef")
    with pytest.raises(TalkheadError, match="trained against generator 0123456789abcdef") as caught:
        checkpoints.load_encoder(tmp_path / "stranger.pt", parent)
    assert "\n" not in str(caught.value)


def test_a_grown_generator_takes_what_was_trained_for_its_parent(toy_weights, tmp_path):
    parent = checkpoints.load_generator(toy_weights / "generator.pt")
    larger = Generator(32, channels=[8, 8, 8, 4], mapping_layers=2)
    toys.save_network(tmp_path / "grown.pt", "generator", larger, step=1, lineage=sorted(parent.lineage))
    child = checkpoints.load_generator(tmp_path / "grown.pt")
    image = torch.rand(1, 3, 32, 32)
    small, large = (checkpoints.load_encoder(toy_weights / "encoder.pt", generator) for generator in (parent, child))
    code = large(image)
    torch.testing.assert_close(code, latents.extend_layers(small(image), 8))
    windows = np.random.default_rng(0).standard_normal((3, 12, 28)).astype(np.float32)
    for model, moved in (
        (checkpoints.load_audio2latent, lambda model, face: displacements(model, windows, face)),
        (checkpoints.load_video_gan, lambda model, face: motion(model, face, 3, 3)),
    ):
        path = toy_weights / f"{model.__name__[5:]}.pt"
        before, after = (
            np.stack(list(moved(model(path, generator), face)))
            for generator, face in ((parent, code[0, :6]), (child, code[0]))
        )
        assert after.shape == (3, 8, 512) and np.abs(before).max() > 0
        np.testing.assert_allclose(after, latents.extend_layers(before, 8), atol=1e-6)
        with pytest.raises(TalkheadError, match=r"identity: has shape \(6, 512\), this \w+ model takes \(8, 512\)"):
            next(moved(model(path, child), code[0, :6]))


def test_what_cannot_follow_a_generator_that_grew_or_shrank(toy_weights, tmp_path):
    parent = checkpoints.load_generator(toy_weights / "generator.pt")
    for name, channels in (("grown", [8, 8, 8, 4]), ("shrunk", [8, 8])):
        other = Generator(2 ** (len(channels) + 1), channels=channels, mapping_layers=2)
        toys.save_network(tmp_path / f"{name}.pt", "generator", other, step=1, lineage=sorted(parent.lineage))
    psp = PSPEncoder(parent.num_ws, width=4, input_size=32)
    toys.save_network(tmp_path / "psp.pt", "encoder", psp, step=1, generator=parent.fingerprint)
    with pytest.raises(
        TalkheadError,
        match="encoder has 6 layers, generator 8; only resnet encoders can be extended",
    ):
        checkpoints.load_encoder(tmp_path / "psp.pt", checkpoints.load_generator(tmp_path / "grown.pt"))
    for load in (checkpoints.load_encoder, checkpoints.load_audio2latent, checkpoints.load_video_gan):
        with pytest.raises(TalkheadError, match="of 6 layers, the generator has 4; pass its own --generator"):
            load(toy_weights / f"{load.__name__[5:]}.pt", checkpoints.load_generator(tmp_path / "shrunk.pt"))


def test_wrong_kind_and_damaged_config(generator_file, tmp_path):
    path, generator = generator_file
    with pytest.raises(TalkheadError, match="holds a generator, wanted an encoder"):
        checkpoints.load_encoder(path)
    toys.save_network(tmp_path / "bad.pt", "generator", generator, channels=[4, 8])
    with pytest.raises(TalkheadError, match="bad.pt: channels does not match the rest") as caught:
        checkpoints.load_generator(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


# Other projects' files ------------------------------------------------------------------------------------------------

SMALL = {"z_dim": 6, "w_dim": 6, "channels": (5, 4, 3), "layers": 2}


def rosinality_contents(**more):
    """What rosinality's training saves, but for the options in `more`."""
    state = foreign.rosinality_generator(**SMALL)
    other = {name: value + 1 if value.dim() else value for name, value in state.items() if "kernel" not in name}
    contents = {
        "g": state | other,
        "d": foreign.rosinality_discriminator(**SMALL),
        "g_ema": state,
        "g_optim": {"state": {}, "param_groups": [{"lr": 0.002}]},
        "d_optim": {"state": {}, "param_groups": []},
        "args": argparse.Namespace(path="/data/faces", size=16, batch=16, ckpt=None),
        "ada_aug_p": 0.25,
    }
    return contents | more


class Network(test_safe_pickle.Persistent):
    """Stands for a NVIDIA network of any state: its parts have the attributes that say what their tensors do not."""

    def __init__(self, state, clamp=None, name=""):
        super().__init__()
        for child in dict.fromkeys(key.partition(".")[0] for key in state if "." in key):
            self.add_module(
                child,
                Network(
                    {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{child}.")},
                    clamp,
                    child,
                ),
            )
        for key, value in state.items():
            if "." not in key:
                self.register_buffer(key, value)
        self.activation = "linear" if name in ("affine", "skip", "out") else "lrelu"
        if name in ("conv0", "conv1", "torgb", "fromrgb", "conv"):
            self.conv_clamp = clamp
        if name.startswith("fc"):
            self.bias_gain = 0.01


def write_nvidia(path, contents):
    """Pickle it; dicts of tensors become modules."""
    with test_safe_pickle.nvidia():
        contents = {
            key: Network(value, clamp=256) if key in ("G", "D", "G_ema") else value for key, value in contents.items()
        }
        path.write_bytes(pickle.dumps(contents))


def write_safetensors(path, state):
    """As the format's description has it."""
    header, data = {}, b""
    for name, tensor in state.items():
        numbers = tensor.contiguous().numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(numbers)],
        }
        data += numbers
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def w_avg():
    return foreign.formula((6,), 1002)


def drawn(path, **how):
    """What the generator in a file draws of one z."""
    generator = checkpoints.load_generator(path)
    return generator(foreign.formula((1, generator.z_dim), 1000), **how)


def test_a_generator_of_rosinalitys_in_every_wrapping_is_the_same(tmp_path, w_avg):
    state = foreign.rosinality_generator(**SMALL)
    wrappings = {
        "converted": {"g_ema": state, "latent_avg": w_avg},
        "parallel": {"g_ema": {f"module.{name}": value for name, value in state.items()}, "latent_avg": w_avg},
        "row": {"g_ema": state, "latent_avg": w_avg[None]},
        "training": rosinality_contents(latent_avg=w_avg),
        "psp": {
            "state_dict": {f"decoder.{name}": value for name, value in state.items()},
            "latent_avg": w_avg.repeat(6, 1),
            "opts": {"dataset_type": "ffhq_encode", "device": "cuda:0"},
        },
    }
    wrappings["compiled"] = {
        "g_ema": {f"_orig_mod.{name}": value for name, value in state.items()},
        "latent_avg": w_avg,
    }
    wrappings["compiled in parallel"] = {
        "g_ema": {f"module._orig_mod.{name}": value for name, value in state.items()},
        "latent_avg": w_avg,
    }
    wrappings["compiled part"] = {
        "state_dict": {f"decoder._orig_mod.{name}": value for name, value in state.items()},
        "latent_avg": w_avg,
    }
    wrappings["flat"] = state | {"latent_avg": w_avg}
    for name, contents in wrappings.items():
        torch.save(contents, tmp_path / f"{name}.pt")
        torch.save(contents, tmp_path / f"{name}-old.pt", _use_new_zipfile_serialization=False)
    for name, flat in {
        "flat": state,
        "compiled": {f"_orig_mod.{name}": value for name, value in state.items()},
        "psp": {f"decoder.{name}": value for name, value in state.items()},
    }.items():
        write_safetensors(tmp_path / f"{name}.safetensors", flat | {"latent_avg": w_avg})
    loaded = [checkpoints.load_generator(path) for path in sorted(tmp_path.iterdir())]
    assert len({generator.fingerprint for generator in loaded}) == 1 and len(loaded) == 21
    for generator in loaded:
        assert generator.config == {
            "resolution": 16,
            "channels": [5, 4, 3],
            "z_dim": 6,
            "w_dim": 6,
            "mapping_layers": 2,
        }
        assert torch.equal(generator.w_avg, w_avg) and torch.equal(
            generator.convs[4].noise_const, state["noises.noise_4"][0, 0]
        )
        assert not generator.training and generator.lineage == {generator.fingerprint}


def test_what_a_file_lacks_is_made_again_and_said(tmp_path):
    state = {
        name: value for name, value in foreign.rosinality_generator(**SMALL).items() if not name.startswith("noises")
    }
    torch.save({"g_ema": state}, tmp_path / "bare.pt")
    with pytest.warns(UserWarning) as said:
        generator, again = (checkpoints.load_generator(tmp_path / "bare.pt") for _ in range(2))
    assert [str(warning.message).split(": ")[1].split(";")[0] for warning in said][:2] == [
        "lacks the mean of W",
        "lacks noise buffers",
    ]
    assert generator.fingerprint == again.fingerprint
    z = torch.randn(20000, 6, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(generator.w_avg, generator.mapping(z)[:, 0].mean(0), atol=0.05)
    assert generator.convs[4].noise_const.std() == pytest.approx(1, abs=0.2)
    about = checkpoints.describe(tmp_path / "bare.pt")
    assert about["w_avg"] == about["noise"] == "missing"


def test_nvidias_pickle_and_the_tuned_generator_of_pti(tmp_path):
    main = foreign.nvidia_generator(**foreign.NVIDIA)
    write_nvidia(
        tmp_path / "net.pkl",
        {
            "G_ema": main,
            "G": main | {"mapping.w_avg": main["mapping.w_avg"] + 1},
            "augment_pipe": None,
            "D": foreign.nvidia_discriminator(**foreign.NVIDIA),
            "training_set_kwargs": {"path": "ffhq.zip"},
        },
    )
    with test_safe_pickle.nvidia():
        torch.save(Network(main, clamp=256), tmp_path / "tuned.pt")
    network, tuned = checkpoints.load_generator(tmp_path / "net.pkl"), checkpoints.load_generator(tmp_path / "tuned.pt")
    assert (
        network.config["clamp"] == 256
        and network.config["mapping_layers"] == 3
        and network.fingerprint == tuned.fingerprint
    )
    assert torch.equal(network.w_avg, main["mapping.w_avg"])
    training = checkpoints.read(tmp_path / "net.pkl")["training"]
    assert torch.equal(training["generator"]["w_avg"], network.w_avg + 1) and "from_rgb" in training["discriminator"]
    about = checkpoints.describe(tmp_path / "net.pkl")
    assert about["format"] == "nvidia" and about["trained_with"] == {"path": "ffhq.zip"} and about["num_ws"] == 8
    assert about["discriminator"] and about["training_copy"] and not about["optimizer"]


def test_a_discriminator_that_is_not_stylegan2s_is_left_out_and_said(tmp_path, w_avg):
    contents = rosinality_contents(latent_avg=w_avg)
    contents["d"]["extra"] = torch.zeros(1)
    torch.save(contents, tmp_path / "odd.pt")
    with pytest.warns(UserWarning, match="its discriminator is skipped: has extra"):
        weights = checkpoints.read(tmp_path / "odd.pt")
    assert set(weights["training"]) == {"generator"}


def same(one, two):
    assert set(one) == set(two)
    for name, value in one.items():
        assert value.shape == two[name].shape and value.dtype == two[name].dtype and torch.equal(value, two[name]), name


@pytest.mark.parametrize("half", [False, True])
def test_round_trips_between_the_layouts_lose_nothing(tmp_path, half):
    torch.manual_seed(0)
    networks = [Generator(16, [8, 8, 4], z_dim=6, w_dim=6, mapping_layers=2, clamp=256) for _ in range(2)]
    for network in networks:
        network.w_avg.normal_()
    discriminator = Discriminator(16, [8, 8, 4])
    state, fast, judge = (
        {name: value.half() if half else value for name, value in network.state_dict().items()}
        for network in (*networks, discriminator)
    )
    files.save_weights(
        tmp_path / "0.pt",
        {
            "kind": "generator",
            "config": {**networks[0].config, "lineage": ["0123456789abcdef"]},
            "step": 7,
            "model": state,
            "training": {"generator": fast, "discriminator": judge},
        },
    )
    with pytest.warns(UserWarning, match="rosinality's code builds no generator of the channels"):
        conversion.convert(tmp_path / "0.pt", tmp_path / "1.pt", "rosinality")
    conversion.convert(tmp_path / "1.pt", tmp_path / "2.pt", "nvidia")
    conversion.convert(tmp_path / "2.pt", tmp_path / "3.pt")
    before, after = (files.load_weights(tmp_path / name) for name in ("0.pt", "3.pt"))
    assert {key: after[key] for key in ("kind", "config", "step")} == {
        key: before[key] for key in ("kind", "config", "step")
    }
    same(after["model"], before["model"])
    for name in ("generator", "discriminator"):
        same(after["training"][name], before["training"][name])
    pictures = [drawn(tmp_path / f"{index}.pt", psi=0.7) for index in range(4)]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    described = [checkpoints.describe(tmp_path / f"{index}.pt") for index in range(4)]
    assert [about["format"] for about in described] == ["talkhead", "rosinality", "nvidia", "talkhead"]
    assert all(described[0] | {"format": about["format"]} == about for about in described)


def test_what_is_written_for_others_is_in_their_layout(tmp_path, w_avg):
    torch.save(rosinality_contents(latent_avg=w_avg), tmp_path / "r.pt")
    conversion.convert(tmp_path / "r.pt", tmp_path / "ours.pt")
    with pytest.warns(UserWarning, match="channels"):
        conversion.convert(tmp_path / "ours.pt", tmp_path / "back.pt", "rosinality")
    theirs, back = rosinality_contents(), files.load_weights(tmp_path / "back.pt")
    assert torch.equal(back["latent_avg"], w_avg)
    for name in ("g", "d", "g_ema"):
        same(back[name], theirs[name])
    state = foreign.nvidia_generator(**foreign.NVIDIA)
    write_nvidia(tmp_path / "n.pkl", {"G_ema": state, "D": foreign.nvidia_discriminator(**foreign.NVIDIA)})
    conversion.convert(tmp_path / "n.pkl", tmp_path / "n.pt", "nvidia")
    back = files.load_weights(tmp_path / "n.pt")
    same(back["G_ema"], state)
    same(back["D"], foreign.nvidia_discriminator(**foreign.NVIDIA))
    widths = {"channel_base": 128, "channel_max": 32, "num_fp16_res": 0, "conv_clamp": 256}
    assert back["kwargs"] == {
        "G": {
            "z_dim": 24,
            "c_dim": 0,
            "w_dim": 32,
            "img_resolution": 32,
            "img_channels": 3,
            "mapping_kwargs": {"num_layers": 3},
            "synthesis_kwargs": widths,
        },
        "D": {"c_dim": 0, "img_resolution": 32, "img_channels": 3, **widths},
    }
    assert (
        checkpoints.load_generator(tmp_path / "n.pt").fingerprint
        == checkpoints.load_generator(tmp_path / "n.pkl").fingerprint
    )


def test_describe_tells_what_rosinalitys_training_recorded(tmp_path, w_avg):
    torch.save(rosinality_contents(latent_avg=w_avg), tmp_path / "r.pt")
    about = checkpoints.describe(tmp_path / "r.pt")
    json.dumps(about)
    assert (
        about["format"] == "rosinality"
        and about["kind"] == "generator"
        and about["resolution"] == 16
        and about["num_ws"] == 6
    )
    assert about["precision"] == "float32" and about["w_avg"] == about["noise"] == "recorded"
    assert about["discriminator"] and about["training_copy"] and about["optimizer"] and about["training_state"]
    assert about["trained_with"] == {"path": "/data/faces", "size": 16, "batch": 16, "ckpt": None}
    assert about["parameters"] == sum(
        value.numel() for value in checkpoints.load_generator(tmp_path / "r.pt").parameters()
    )


# pSp ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def psp_file(tmp_path):
    """A pSp file of 16²: a narrow encoder and its generator."""
    torch.manual_seed(0)
    encoder = PSPEncoder(6, width=2, input_size=256, w_dim=16)
    decoder = foreign.rosinality_generator(16, 16, (4, 4, 4), 1)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items() if name != "w_avg"}
    state |= {f"decoder.{name}": value for name, value in decoder.items()} | {"face_pool.x": torch.zeros(1)}
    opts = {
        "encoder_type": "GradualStyleEncoder",
        "dataset_type": "ffhq_encode",
        "output_size": 16,
        "start_from_latent_avg": True,
        "device": "cuda:0",
    }
    latent_avg = torch.randn(16)
    torch.save({"state_dict": state, "opts": opts, "latent_avg": latent_avg.repeat(6, 1)}, tmp_path / "psp.pt")
    return tmp_path / "psp.pt", encoder.eval(), latent_avg


@torch.no_grad()
def test_both_networks_of_a_psp_file(psp_file, tmp_path):
    path, encoder, latent_avg = psp_file
    generator = checkpoints.load_generator(path)
    assert torch.equal(generator.w_avg, latent_avg)
    loaded = checkpoints.load_encoder(path, generator)
    images = torch.randn(1, 3, 256, 256)
    assert torch.allclose(loaded(images), encoder(images) + latent_avg, atol=1e-5) and loaded.trained_on is None
    about = checkpoints.describe(path)
    json.dumps(about)
    assert (
        about["format"] == "psp"
        and about["kind"] == "generator"
        and about["encoder"]["kind"] == "encoder"
        and about["encoder"]["num_ws"] == 6
    )
    assert about["trained_with"]["dataset_type"] == "ffhq_encode"
    with pytest.raises(TalkheadError, match="holds a generator and an encoder; extract one"):
        conversion.convert(path, tmp_path / "x.pt")
    conversion.convert(path, tmp_path / "e.pt", part="encoder")
    assert torch.equal(checkpoints.load_encoder(tmp_path / "e.pt", generator)(images), loaded(images))
    with pytest.raises(TalkheadError, match="holds an encoder; only a generator can be written for nvidia"):
        conversion.convert(path, tmp_path / "x.pt", "nvidia", "encoder")
    other = Generator(32, [4, 4, 4, 4], z_dim=16, w_dim=16, mapping_layers=1)
    toys.save_network(tmp_path / "other.pt", "generator", other)
    with pytest.raises(TalkheadError, match="an encoder of 6 layers, the generator has 8"):
        checkpoints.load_encoder(path, checkpoints.load_generator(tmp_path / "other.pt"))


@torch.no_grad()
def test_a_restyle_file_without_its_mean(psp_file):
    path, *_ = psp_file
    contents = torch.load(path, weights_only=True)
    del contents["latent_avg"]
    first = contents["state_dict"]["encoder.input_layer.0.weight"]
    contents["state_dict"]["encoder.input_layer.0.weight"] = torch.cat([first, first], 1)
    contents["opts"] |= {"n_iters_per_batch": 2}
    torch.save(contents, path)
    with pytest.warns(UserWarning, match="lacks the mean of W"):
        encoder = checkpoints.load_encoder(path)
        generator = checkpoints.load_generator(path)
    assert encoder.config["arch"] == "restyle" and torch.equal(encoder.w_avg[3], generator.w_avg)
    assert encoder(torch.randn(1, 3, 256, 256)).shape == (1, 6, 16)
    assert checkpoints.describe(path)["encoder"]["num_ws"] == 6


def test_an_encoder_that_is_not_known_leaves_the_generator_readable(psp_file):
    path, *_ = psp_file
    contents = torch.load(path, weights_only=True)
    contents["opts"]["encoder_type"] = "Novel"
    torch.save(contents, path)
    checkpoints.load_generator(path)
    assert "Novel" in checkpoints.describe(path)["encoder"]["unreadable"]
    with pytest.raises(TalkheadError, match=f"^{path}: .*Novel"):
        checkpoints.load_encoder(path)


def test_foreign_weights_are_exported_too(psp_file, tmp_path, w_avg):
    torch.save({"g_ema": foreign.rosinality_generator(**SMALL), "latent_avg": w_avg}, tmp_path / "r.pt")
    conversion.export(tmp_path / "r.pt", tmp_path / "small.pt")
    assert checkpoints.describe(tmp_path / "small.pt")["precision"] == "float16"
    assert (
        checkpoints.load_generator(tmp_path / "small.pt").fingerprint
        == checkpoints.load_generator(tmp_path / "r.pt").fingerprint
    )
    with pytest.raises(TalkheadError, match="extract one with talkhead weights convert --part"):
        conversion.export(psp_file[0], tmp_path / "x.pt")


def test_converting_onto_itself(tmp_path, w_avg):
    torch.save({"g_ema": foreign.rosinality_generator(**SMALL), "latent_avg": w_avg}, tmp_path / "r.pt")
    before = drawn(tmp_path / "r.pt")
    conversion.convert(tmp_path / "r.pt", tmp_path / "r.pt")
    assert files.load_weights(tmp_path / "r.pt", kind="generator")["step"] == 0 and torch.equal(
        drawn(tmp_path / "r.pt"), before
    )


# What is none ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "contents, message",
    [
        ({"body.0.res_layer.1.weight": torch.zeros(1)}, "holds IR-SE-50, a face recognition network"),
        ({"features.0.weight": torch.zeros(1)}, "holds a classifier such as VGG"),
        ({"lin0.model.1.weight": torch.zeros(1)}, "holds the linear layers of LPIPS"),
        ({"weight": torch.zeros(1)}, r"holds unknown weights \(weight, …\)"),
        ({"epoch": 3}, "holds no weights"),
        (torch.zeros(2), "holds a Tensor"),
        ({"g_ema": {}}, "has no convs.0.0.weight: not a StyleGAN2"),
        ({"g_ema": foreign.rosinality_discriminator(**SMALL)}, "holds a discriminator in the generator's place"),
        (
            {"g_ema": foreign.rosinality_generator(**SMALL) | {"to_rgbs.1.conv.weight": torch.zeros(1, 3)}},
            "not a StyleGAN2's",
        ),
        (
            {"g_ema": foreign.rosinality_generator(**SMALL) | {"convs.3.activate.bias": torch.zeros(7)}},
            "config and weights do not make a generator",
        ),
        ({"g_ema": foreign.rosinality_generator(**SMALL), "latent_avg": 3}, "its latent_avg is not a latent"),
        (
            {
                "kind": "generator",
                "config": {"resolution": torch.zeros(2)},
                "step": 0,
                "model": Generator(8, [2, 2]).state_dict(),
            },
            "resolution does not match the rest",
        ),
        (
            {"kind": "generator", "config": {}, "step": 0, "model": {"const": 3}},
            "model does not match the rest",
        ),
        (
            {"kind": "generator", "config": {}, "step": 0, "model": {"const": torch.zeros(1)}},
            "convs.0.conv.affine.weight is missing",
        ),
        ({"g_ema": {"weight": print}}, "refers to builtins.print|refers to __builtin__.print"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_generator_is_refused_in_one_line(tmp_path, contents, message):
    torch.save(contents, tmp_path / "x.pt")
    with pytest.raises(TalkheadError, match=message) as caught:
        checkpoints.load_generator(tmp_path / "x.pt")
    assert str(caught.value).startswith(f"{tmp_path / 'x.pt'}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data, message",
    [
        (None, "is a folder; name a file"),
        (b"", "empty"),
        (b"<!DOCTYPE html><title>Google Drive", "a web page"),
        (b"hello", "neither a pickle"),
        (b"PK\x03\x04 and no more", "damaged"),
    ],
)
def test_a_file_that_is_not_weights_is_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "x.pt"
    path.mkdir() if data is None else path.write_bytes(data)
    for read in (checkpoints.load_generator, checkpoints.load_encoder, checkpoints.describe):
        with pytest.raises(TalkheadError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(TalkheadError, match="no such file"):
        checkpoints.describe(tmp_path / "none.pt")


def test_an_archive_that_was_zipped_again_says_so(tmp_path, w_avg):
    torch.save({"g_ema": foreign.rosinality_generator(**SMALL), "latent_avg": w_avg}, tmp_path / "x.pt")

    def zipped(name, how, folder=True, more=()):
        with zipfile.ZipFile(tmp_path / "x.pt") as whole, zipfile.ZipFile(tmp_path / name, "w", how) as again:
            for part in whole.namelist():
                again.writestr(part if folder else part.partition("/")[2], whole.read(part))
            for part in more:
                again.writestr(part, b"")

    zipped("stored.pt", zipfile.ZIP_STORED)
    assert (
        checkpoints.load_generator(tmp_path / "stored.pt").fingerprint
        == checkpoints.load_generator(tmp_path / "x.pt").fingerprint
    )
    zipped("packed.pt", zipfile.ZIP_DEFLATED)
    zipped("flat.pt", zipfile.ZIP_STORED, folder=False)
    zipped("mac.pt", zipfile.ZIP_STORED, more=["__MACOSX/._data.pkl"])
    with zipfile.ZipFile(tmp_path / "around.pt", "w", zipfile.ZIP_DEFLATED) as around:
        around.write(tmp_path / "x.pt", "x.pt")
    for name, message in (
        (
            "packed",
            "was unpacked and zipped again, with compression, which torch cannot read; use the original file, or zip "
            "its folder",
        ),
        ("flat", "was unpacked and zipped again, not as one folder, which torch cannot read; use the original"),
        ("mac", "was unpacked and zipped again, not as one folder"),
        ("around", "a zip archive that torch.save did not write; unpack it"),
    ):
        with pytest.raises(TalkheadError, match=f"^{tmp_path}/{name}.pt: {message}"):
            checkpoints.load_generator(tmp_path / f"{name}.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, generator_file, value):
    weights = files.load_weights(generator_file[0])
    total = len(weights["model"])
    weights["model"]["convs.0.bias"] = torch.full_like(weights["model"]["convs.0.bias"], value)
    files.save_weights(tmp_path / "bad.pt", weights)
    for open_it in (
        checkpoints.load_generator,
        checkpoints.read,
        lambda path: conversion.export(path, tmp_path / "out.pt"),
    ):
        with pytest.raises(
            TalkheadError,
            match=f"bad.pt: 1 of its {total} tensors hold NaN or infinity, convs.0.bias first: training diverged",
        ):
            open_it(tmp_path / "bad.pt")
    assert checkpoints.describe(tmp_path / "bad.pt")["kind"] == "generator" and not (tmp_path / "out.pt").exists()


def test_a_damaged_archive_is_refused_at_any_length(tmp_path, w_avg):
    torch.save({"g_ema": foreign.rosinality_generator(**SMALL), "latent_avg": w_avg}, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for length in (40, len(data) // 3, len(data) - 30):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises(TalkheadError, match="damaged"):
            checkpoints.load_generator(tmp_path / "cut.pt")


def test_weights_list_counts_parameters_as_metrics_does():
    """Of each bundled network.

    A basis, pictures of noise and statistics are kept with it, and not learnt by descent.
    """
    from talkhead import evaluation, speech_models

    generator = checkpoints.load_generator(checkpoints.bundled("generator"))
    encoder, second = (
        load(checkpoints.bundled(kind), generator)
        for load, kind in ((checkpoints.load_encoder, "encoder"), (checkpoints.load_audio2latent, "audio2latent"))
    )
    counts = evaluation.network_speed(generator, encoder, second, seconds=0.2)["parameters"]
    for kind in ("generator", "encoder", "audio2latent"):
        assert checkpoints.describe(checkpoints.bundled(kind))["parameters"] == counts[kind], kind
    for kind, network in (
        ("first", checkpoints.load_audio2latent(checkpoints.bundled("first"))),
        ("video_gan", checkpoints.load_video_gan(checkpoints.bundled("video_gan"))),
        ("speech", speech_models.load(checkpoints.bundled("speech"))),
    ):
        assert checkpoints.describe(checkpoints.bundled(kind))["parameters"] == sum(
            value.numel() for value in network.parameters()
        ), kind


@pytest.mark.parametrize("to", ["rosinality", "nvidia"])
def test_a_generator_without_its_mean_is_not_converted(toy_weights, tmp_path, to):
    weights = files.load_weights(toy_weights / "generator.pt")
    del weights["model"]["w_avg"]
    files.save_weights(tmp_path / "g.pt", weights)
    with pytest.raises(TalkheadError, match="g.pt: .*w_avg"):
        conversion.convert(tmp_path / "g.pt", tmp_path / "out.pt", to)
    assert not (tmp_path / "out.pt").exists()
