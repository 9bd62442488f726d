"""Other projects' tensors become ours: our networks draw and judge with them as those projects' own code did.

What that code answered is in data/peers.json; foreign.py wrote it, and has the other layouts' names written out by
hand.
"""

import json
from pathlib import Path

import pytest
import torch

import foreign
from talkhead import state_dicts
from talkhead.errors import TalkheadError
from talkhead.safe_pickle import Module
from talkhead.stylegan import Discriminator, Generator

PEERS = json.loads((Path(__file__).parent / "data" / "peers.json").read_text())
SMALL = {"z_dim": 6, "w_dim": 6, "channels": (5, 4, 3), "layers": 2}  # of rosinality's, at 16²

STATES = {
    "rosinality's generator": (
        foreign.rosinality_generator(**SMALL),
        state_dicts.from_rosinality,
        state_dicts.to_rosinality,
    ),
    "rosinality's discriminator": (
        foreign.rosinality_discriminator(**SMALL),
        state_dicts.from_rosinality,
        state_dicts.to_rosinality,
    ),
    "NVIDIA's generator": (foreign.nvidia_generator(**foreign.NVIDIA), state_dicts.from_nvidia, state_dicts.to_nvidia),
    "NVIDIA's discriminator": (
        foreign.nvidia_discriminator(**foreign.NVIDIA),
        state_dicts.from_nvidia,
        state_dicts.to_nvidia,
    ),
}


def generator(state, **more):
    network = Generator(**state_dicts.generator_config(state), **more)
    network.load_state_dict(state)
    return network.eval()


def discriminator(state, **more):
    network = Discriminator(**state_dicts.discriminator_config(state), **more)
    network.load_state_dict(state)
    return network.eval()


def check(answer, expected):
    """Within 1e-4 of the answer's own size, everywhere."""
    found = foreign.some(answer)
    difference = torch.tensor(found["values"]) - torch.tensor(expected["values"])
    assert difference.abs().max() <= 1e-4 * expected["scale"] and found["scale"] == pytest.approx(
        expected["scale"], rel=1e-4
    )


@torch.no_grad()
def test_rosinalitys_weights_do_what_its_own_code_does_with_them():
    z, images = foreign.questions(foreign.ROSINALITY["z_dim"], 16)
    w_avg = foreign.formula((512,), 1002)
    ours = generator(state_dicts.from_rosinality(foreign.rosinality_generator(**foreign.ROSINALITY)) | {"w_avg": w_avg})
    their_discriminator = discriminator(
        state_dicts.from_rosinality(foreign.rosinality_discriminator(**foreign.ROSINALITY))
    )
    expected = PEERS["rosinality"]
    check(ours.mapping(z)[:, 0], expected["mapping"])
    check(ours(z), expected["const"])
    check(ours(z, psi=0.5), expected["truncated"])
    check(their_discriminator(images), expected["logits"])


@torch.no_grad()
@pytest.mark.parametrize("name, clamp", [("free", None), ("clamped", 1.5)])
def test_nvidias_weights_do_what_its_own_code_does_with_them(name, clamp):
    z, images = foreign.questions(foreign.NVIDIA["z_dim"], 32)
    ours = generator(state_dicts.from_nvidia(foreign.nvidia_generator(**foreign.NVIDIA)), clamp=clamp)
    their_discriminator = discriminator(
        state_dicts.from_nvidia(foreign.nvidia_discriminator(**foreign.NVIDIA)), clamp=clamp
    )
    expected = PEERS["nvidia"][name]
    check(ours.mapping(z)[:, 0], expected["mapping"])
    check(ours(z), expected["const"])
    check(ours(z, psi=0.5), expected["truncated"])
    check(ours(z, noise="none"), expected["none"])
    check(their_discriminator(images), expected["logits"])


@pytest.mark.parametrize("name", STATES)
def test_there_and_back_is_the_same_bit_for_bit(name):
    state, to_ours, to_theirs = STATES[name]
    back = to_theirs(to_ours(state))
    assert set(back) == set(state)
    for tensor, value in state.items():
        assert back[tensor].shape == value.shape and torch.equal(back[tensor], value), tensor


def test_ours_there_and_back():
    torch.manual_seed(0)
    for network in (Generator(32, [4, 3, 2, 2], z_dim=5, w_dim=6, mapping_layers=3), Discriminator(32, [4, 3, 2, 1])):
        state = network.state_dict()
        for there, back in (
            (state_dicts.to_nvidia, state_dicts.from_nvidia),
            (state_dicts.to_rosinality, state_dicts.from_rosinality),
        ):
            again = back(there(state))
            lost = {"w_avg"} if back is state_dicts.from_rosinality and "w_avg" in state else set()
            assert set(again) == set(state) - lost
            assert all(
                torch.equal(value, state[name]) and value.shape == state[name].shape for name, value in again.items()
            )


def test_shapes_alone_say_how_large_a_network_is():
    state = state_dicts.from_nvidia(foreign.nvidia_generator(24, 32, (7, 6, 5, 4), 5))
    assert state_dicts.generator_config(state) == {
        "resolution": 32,
        "channels": [7, 6, 5, 4],
        "z_dim": 24,
        "w_dim": 32,
        "mapping_layers": 5,
    }
    state = state_dicts.from_rosinality(foreign.rosinality_discriminator((7, 6, 5)))
    assert state_dicts.discriminator_config(state) == {"resolution": 16, "channels": [7, 6, 5]}


def test_widths_of_one_are_told_from_axes_of_length_one():
    small = {"z_dim": 1, "w_dim": 1, "channels": (1, 1, 1), "layers": 1}
    state = state_dicts.from_rosinality(foreign.rosinality_generator(**small)) | {"w_avg": torch.zeros(1)}
    assert generator(state).config["channels"] == [1, 1, 1]


def test_a_file_older_than_its_noise_pictures():
    state = {
        name: value for name, value in foreign.rosinality_generator(**SMALL).items() if not name.startswith("noises")
    }
    ours = state_dicts.from_rosinality(state)
    assert not any("noise_const" in name for name in ours) and "convs.4.noise_strength" in ours


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


SYNTHESIS = foreign.nvidia_generator(**foreign.NVIDIA)
CRITIC = foreign.nvidia_discriminator(**foreign.NVIDIA)
RGBS = [f"synthesis.b{side}.torgb.weight" for side in (4, 8, 16)]


@pytest.mark.parametrize(
    "read, state, message",
    [
        (state_dicts.from_nvidia, SYNTHESIS | {"mapping.embed.weight": torch.zeros(4, 4)}, "conditional"),
        (state_dicts.from_nvidia, without(SYNTHESIS, *RGBS), "generator of the orig architecture"),
        (
            state_dicts.from_nvidia,
            without(SYNTHESIS, *RGBS) | {"synthesis.b8.skip.weight": torch.zeros(4)},
            "generator of the resnet architecture",
        ),
        (
            state_dicts.from_nvidia,
            without(CRITIC, *(f"b{side}.skip.weight" for side in (8, 16, 32))),
            "discriminator of the orig architecture",
        ),
        (state_dicts.from_nvidia, CRITIC | {"b4.conv.weight": torch.zeros(32, 32, 3, 3)}, "minibatch std"),
        (state_dicts.from_nvidia, without(SYNTHESIS, "synthesis.b8.conv0.bias"), "has no synthesis.b8.conv0.bias"),
        (state_dicts.from_nvidia, SYNTHESIS | {"extra": torch.zeros(1)}, "has extra, unlike a StyleGAN2"),
        (
            state_dicts.from_nvidia,
            SYNTHESIS | {"synthesis.b8.resample_filter": torch.eye(4) / 4},
            "not the filter",
        ),
        (
            state_dicts.from_nvidia,
            {name: value[:1] if "torgb.bias" in name else value for name, value in SYNTHESIS.items()},
            "has 1 colour channels",
        ),
        (
            state_dicts.from_rosinality,
            STATES["rosinality's generator"][0] | {"conv1.noise.weight": torch.zeros(2)},
            r"conv1.noise.weight has the shape \(2,\)",
        ),
        (state_dicts.from_rosinality, {"input.input": torch.zeros(1, 4, 4, 4)}, "has no to_rgbs.0"),
        (state_dicts.from_rosinality, {}, "has no convs.0.0.weight"),
    ],
)
def test_what_is_no_plain_stylegan2_is_refused_by_name(read, state, message):
    with pytest.raises(TalkheadError, match=message) as caught:
        read(state)
    assert "\n" not in str(caught.value)


def module(**children):
    return Module("Network", {}, {}, children)


def layer(**attributes):
    return Module("Layer", {}, attributes, {})


@pytest.mark.parametrize(
    "network, clamp",
    [
        (module(b4=module(conv1=layer(conv_clamp=256, activation="lrelu"), torgb=layer(conv_clamp=256))), 256),
        (module(b8=module(conv0=layer(conv_clamp=None), skip=layer(conv_clamp=None, activation="linear"))), None),
        (module(b8=module(conv0=layer(conv_clamp=256), skip=layer(conv_clamp=None, activation="linear"))), 256),
        (module(mapping=module(fc0=layer(activation="lrelu", bias_gain=0.01))), None),
    ],
)
def test_the_limit_of_activations_is_in_the_layers_attributes(network, clamp):
    assert state_dicts.nvidia_clamp(network) == clamp


@pytest.mark.parametrize(
    "network, message",
    [
        (module(b4=module(conv1=layer(conv_clamp=256), torgb=layer(conv_clamp=None))), "only one limit"),
        (module(b4=module(conv1=layer(activation="relu"))), "activation relu"),
        (module(b4=module(affine=layer(conv_clamp=None))), "b4.affine has the activation lrelu"),
        (module(mapping=module(fc0=layer(activation="lrelu", bias_gain=1))), "lr_multiplier of 1"),
    ],
)
def test_attributes_that_are_not_stylegan2s_are_refused(network, message):
    with pytest.raises(TalkheadError, match=message):
        state_dicts.nvidia_clamp(network)
