"""Motion from noise.

The thesis's table and equations by hand, streaming without drift, and training on clips made on the spot.
"""

import copy
import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import toys
from talkhead import files, image_files, latent_cache, train_video_gan, video_files
from talkhead.distributed import Distributed, MicroBatch
from talkhead.encoders import ResNetEncoder
from talkhead.errors import TalkheadError
from talkhead.latents import Basis, mean_latent
from talkhead.train_video_gan import train
from talkhead.video_gan import ImageDiscriminator, LatentGenerator, VideoDiscriminator, motion

L = 6  # of a 16x16 generator
THEIRS = train_video_gan.PRESETS["mocogan-hd"]


def toy_model(seed=0, components=4, **changes):
    torch.manual_seed(seed)
    layers = 1 if changes.get("space") == "w" else L
    model = LatentGenerator(
        L, components, 3, basis=Basis.fit(torch.randn(20, layers, 512), components), **changes
    ).eval()
    model.motion_scale.uniform_(0.5, 2)
    return model


def noise(batch, frames, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, frames, 3), np.float32))


# The latent generator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"space": "w"}, {"displace": "previous"}, {"hidden": 5}, {"hidden": 5, "space": "w", "displace": "previous"}],
)
def test_forward_equals_a_slow_reading_of_the_equations(changes):
    """Frame by frame, the LSTM's gates written out."""
    model, identity = toy_model(**changes), torch.randn(2, L, 512)
    weights, spread, drawn = dict(model.state_dict()), model.basis.stdev, noise(2, 4)
    own = identity if model.space == "w_plus" else identity.mean(1, keepdim=True)
    who = ((own.flatten(1) - weights["basis.mean"]) @ weights["basis.components"].T / spread).clamp(-5, 5)
    h, c = (who @ weights["initial.weight"].T + weights["initial.bias"]).chunk(2, 1)
    place, path = torch.zeros(2, L, 512), []
    for t in range(4):
        gates = (
            drawn[:, t] @ weights["lstm.weight_ih_l0"].T
            + weights["lstm.bias_ih_l0"]
            + h @ weights["lstm.weight_hh_l0"].T
            + weights["lstm.bias_hh_l0"]
        )
        into, forget, cell, out = gates.chunk(4, 1)
        c = forget.sigmoid() * c + into.sigmoid() * cell.tanh()
        h = out.sigmoid() * c.tanh()
        coordinates = (
            h
            if model.config["hidden"] is None
            else (h @ weights["output.0.weight"].T + weights["output.0.bias"]).tanh()
        )
        step = (
            ((coordinates * model.motion_scale) @ weights["basis.components"]).unflatten(1, (-1, 512)).expand(2, L, 512)
        )
        place = place + step if model.displace == "previous" else step
        path.append(place)
    moved, state = model(drawn, identity)
    assert moved.shape == (2, 4, L, 512) and moved.dtype == torch.float32
    torch.testing.assert_close(moved, torch.stack(path, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state[0][0], h, atol=1e-5, rtol=1e-4)


def test_coordinates_of_a_displacement_are_found_again():
    for space in ("w_plus", "w"):
        model, coordinates = toy_model(space=space), torch.randn(2, 3, 4)
        torch.testing.assert_close(model.project(model.expand(coordinates)), coordinates, atol=1e-4, rtol=1e-4)


def test_motion_is_the_same_however_it_is_cut():
    model, identity = toy_model(), torch.randn(L, 512)
    whole = np.stack(list(motion(model, identity, 7, 11, chunk=100)))
    assert whole.shape == (11, L, 512) and whole.dtype == np.float32
    np.testing.assert_allclose(np.stack(list(motion(model, identity, 7, 11, chunk=3))), whole, atol=1e-5)
    rows = np.random.default_rng(7).standard_normal((11, 3), np.float32)
    np.testing.assert_allclose(
        model(torch.from_numpy(rows)[None], identity[None])[0][0].detach().numpy(), whole, atol=1e-5
    )
    np.testing.assert_allclose(np.stack(list(motion(model, identity, 7, 11, gain=0.5))), whole / 2, atol=1e-5)
    assert np.abs(np.stack(list(motion(model, identity, 8, 11))) - whole).max() > 0.01


def test_segments_follow_each_other_without_a_seam():
    model, identity = toy_model(), torch.randn(L, 512)
    joined = np.stack(list(motion(model, identity, [(7, 5), (7, 6), (3, 2)])))
    assert len(joined) == 13
    np.testing.assert_allclose(joined[:5], np.stack(list(motion(model, identity, 7, 5))), atol=1e-5)
    rows = [
        np.random.default_rng(seed).standard_normal((count, 3), np.float32) for seed, count in ((7, 5), (7, 6), (3, 2))
    ]
    np.testing.assert_allclose(
        joined, model(torch.from_numpy(np.concatenate(rows))[None], identity[None])[0][0].detach().numpy(), atol=1e-5
    )


def test_endless_motion_stays_near_the_identity_unless_the_frame_before_is_displaced():
    """A hidden output is smaller than one.

    No frame is farther than the motion_scale, and the last are no farther than the first.
    """
    model, identity = toy_model(), torch.randn(L, 512)
    far = np.array([np.linalg.norm(moved) for moved in motion(model, identity, 1, 3000, chunk=500)])
    assert far.max() <= model.motion_scale.norm() and far[-1000:].mean() < 1.2 * far[:1000].mean()
    model = toy_model(displace="previous", hidden=4)
    model.output[0].bias.data.fill_(1.0)
    far = [np.linalg.norm(moved) for moved in motion(model, identity, 1, 300)]
    assert far[-1] > 5 * far[9]


def test_an_identity_of_another_generator_is_refused():
    with pytest.raises(TalkheadError, match=r"identity: has shape \(8, 512\), this motion model takes \(6, 512\)"):
        next(motion(toy_model(), torch.randn(8, 512)))


@pytest.mark.parametrize(
    "options, message",
    [({"space": "z"}, "space 'z': unknown; take w_plus or w"), ({"displace": "all"}, "displace 'all': unknown")],
)
def test_unknown_words_are_refused(options, message):
    with pytest.raises(TalkheadError, match=message):
        LatentGenerator(L, 4, 3, **options)


# The discriminators ---------------------------------------------------------------------------------------------------


def test_shapes_of_table_3_2():
    discriminator, shapes = VideoDiscriminator(), []
    for layer in discriminator.scales[0]:
        layer.register_forward_hook(lambda _, __, made: shapes.append(tuple(made.shape[1:])))
    with torch.device("meta"):
        logits = discriminator.to("meta")(torch.zeros(1, 16, 3, 256, 256), torch.zeros(1, 3, 256, 256))
    assert [(shape[0], *shape[2:]) for shape in shapes] == [
        (64, 129, 129),
        (128, 65, 65),
        (256, 33, 33),
        (512, 34, 34),
        (1, 35, 35),
    ]
    assert [tuple(scale.shape) for scale in logits] == [(1, 1, 5, 35, 35), (1, 1, 5, 19, 19)]


@pytest.mark.parametrize("norm, conditional, frames", [("none", True, 4), ("instance", False, 20)])
def test_critic_equals_a_slow_reading(norm, conditional, frames):
    torch.manual_seed(0)
    discriminator = VideoDiscriminator(2, 2, norm, conditional)
    video, face = torch.randn(2, frames, 3, 16, 16), torch.randn(2, 3, 16, 16)
    x = torch.stack(
        [torch.cat([face, 10 * (frame - face)], 1) if conditional else frame for frame in video.unbind(1)], 2
    )
    for scale, layers in enumerate(discriminator.scales):
        y = x
        if scale:
            stride = (1, 2, 2) if frames <= 16 else 2
            y = F.avg_pool3d(x, 3, stride, 1) / F.avg_pool3d(
                torch.ones_like(x), 3, stride, 1
            )  # pixels that are not there do not count
        for k, (layer, stride) in enumerate(zip(layers, (2, 2, 2, 1, 1))):
            y = F.conv3d(y, layer.weight, layer.bias, stride, 2)
            if norm == "instance" and 1 <= k <= 3:
                dims = (2, 3, 4)
                y = (y - y.mean(dims, keepdim=True)) / (y.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt()
            if k < 4:
                y = torch.where(y > 0, y, 0.2 * y)
        torch.testing.assert_close(discriminator(video, face)[scale], y, atol=1e-4, rtol=1e-4)


def test_adversarial_losses_by_hand():
    fake, real = [torch.tensor([0.0, 2.0]), torch.tensor([1.0])], [torch.tensor([1.0, 3.0]), torch.tensor([-1.0])]
    generator, discriminator = train_video_gan.ADVERSARIAL["log"]
    assert generator(fake, real).item() == pytest.approx(
        (math.log(2) + math.log(1 + math.exp(-2))) / 2 + math.log(1 + math.exp(-1))
    )
    wanted = (math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2
    assert discriminator(fake, real).item() == pytest.approx(wanted + 2 * math.log(1 + math.exp(1)))
    generator, discriminator = train_video_gan.ADVERSARIAL["relativistic"]
    # Real are 1 and 3 around 2, fake 0 and 2 around 1; then -1 and 1.
    assert discriminator(fake, real).item() == pytest.approx(0.5 * ((1 + 1) / 2 + (4 + 0) / 2) + 0.5 * (9 + 4))
    assert generator(fake, real).item() == pytest.approx(0.5 * ((9 + 1) / 2 + (0 + 4) / 2) + 0.5 * (1 + 4))


def test_pictures_that_are_alike_cost_less_contrast():
    torch.manual_seed(0)
    others = train_video_gan._NegativeQueue(Distributed(4), 4)
    one, other = (F.normalize(torch.randn(4, 256), dim=1) for _ in range(2))
    by_hand = 0.0
    for view, positive in ((one, other), (other, one)):
        for a, b in zip(view, positive):
            away = [math.exp(float(a @ q) / 0.07) for q in others.queue[:, 1]]
            near = math.exp(float(a @ b) / 0.07)
            by_hand -= math.log(near / (near + sum(away))) / 8
    assert others.info_nce(1, one, other).item() == pytest.approx(by_hand, rel=1e-4)
    assert others.info_nce(1, one, one) < others.info_nce(1, one, other)
    for turn in range(2):  # in two parts
        others.stage(MicroBatch(turn, turn, 2), torch.stack([one, other], 1)[turn::2])
    others.push()
    assert torch.equal(others.queue[:4], torch.stack([one, other], 1)) and others.position == 4


def test_image_critic_keeps_its_features_at_length_one():
    torch.manual_seed(0)
    logits, features = ImageDiscriminator(16, 4, 8)(torch.randn(3, 3, 16, 16))
    assert logits.shape == (3,)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


# Training -------------------------------------------------------------------------------------------------------------

FRAMES = 10


def write_clip(folder, name, seed, frames=FRAMES, size=(16, 16)):
    """A clip without sound, whose picture brightens and darkens."""
    rng = np.random.default_rng(seed)
    light, base = np.cumsum(rng.uniform(-40, 40, frames)), rng.integers(60, 120, (*size, 3))
    toys.write_frames(folder / f"{name}.mp4", (np.clip(base + level, 0, 255).astype(np.uint8) for level in light))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for k in range(4):
        write_clip(folder, f"{k:06d}", k)
    return folder


@pytest.fixture(scope="module")
def networks():
    generator, encoder = toys.pair()
    generator.fingerprint = "0123456789abcdef"
    encoder.fingerprint = "fedcba9876543210"
    return generator, encoder


NETWORK, CRITIC = {"components": 4, "noise": 3}, {"width": 2}


def without_times(record):
    return {name: value for name, value in record.items() if "second" not in name}


def run(clips, networks, out, steps, network={}, discriminator={}, **options):
    options = {"batch": 2, "frames": 4, "burn_in": 3, "r1_interval": 2, "lr": 1e-3, "log_every": 1} | options
    torch.manual_seed(1)
    model, judge = LatentGenerator(L, **NETWORK | network), VideoDiscriminator(**CRITIC | discriminator)
    return [record for record in train([clips], *networks, out, model, judge, steps=steps, **options) if record["step"]]


def preset(**changes):
    """MoCoGAN-HD's options, sorted by what takes them."""
    values = THEIRS | {"hidden": 5, "generator_steps": 2} | changes
    network = {name: values.pop(name) for name in ("space", "displace", "hidden")}
    discriminator = {name: values.pop(name) for name in ("norm", "conditional")}
    return {"network": network, "discriminator": discriminator} | values


def test_training_writes_a_model_that_loads(clips, networks, tmp_path):
    records = run(clips, networks, tmp_path / "a.pt", 3, samples=tmp_path / "sheets")
    json.dumps(records)
    told = {
        "generator",
        "discriminator",
        "information",
        "real_logits",
        "fake_logits",
        "motion",
        "speed",
        "variety",
        "clips_per_second",
    }
    assert [record["step"] for record in records] == [1, 2, 3] and told <= records[0].keys()
    assert "r1" in records[0] and "r1" not in records[1]
    weights = files.load_weights(tmp_path / "a.pt", kind="video_gan")
    assert (
        weights["config"]["generator"] == networks[0].fingerprint
        and weights["config"]["encoder"] == networks[1].fingerprint
    )
    assert weights["config"]["training"]["real"] == "projected"
    model = LatentGenerator(**weights["config"]["network"])
    model.load_state_dict(weights["model"])
    assert model.motion_scale.min() > 0 and next(motion(model, torch.zeros(L, 512))).shape == (L, 512)
    assert image_files.read_image(tmp_path / "sheets" / "00000003.png").shape == (6 * 16, 8 * 16, 3)


def test_basis_is_turned_to_the_motion_of_the_clips(clips, networks, tmp_path):
    """It spans what the principal components of the frames span, and motion along its axes is uncorrelated, and a third
    of the motion_scale wide."""
    run(clips, networks, tmp_path / "a.pt", 1)
    model = LatentGenerator(L, **NETWORK)
    model.load_state_dict(files.load_weights(tmp_path / "a.pt")["model"])
    with latent_cache.LatentCache(tmp_path / "a.codes", networks[1], sound=False) as codes:
        paths = [
            torch.from_numpy(codes.read(codes.encode(clip, "cpu"))[0]) for clip in latent_cache.list_clips([clips])
        ]
    plain = torch.linalg.svd((torch.cat(paths) - torch.cat(paths).mean(0)).flatten(1).double(), full_matrices=False)[2][
        :4
    ].float()
    rows = model.basis.components
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.T @ (rows @ plain.T), plain.T, atol=1e-3, rtol=0)
    moved = torch.cat([model.project(path - path.mean(0)) for path in paths]).double()
    spread = moved.square().mean(0).sqrt()
    torch.testing.assert_close(model.motion_scale.double(), 3 * spread, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(
        moved.T @ moved / len(moved) / spread / spread[:, None], torch.eye(4).double(), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("options", [{}, {"real": "video", "precision": "bfloat16"}, preset()])
def test_resumed_training_equals_uninterrupted(clips, networks, tmp_path, options):
    run(clips, networks, tmp_path / "whole.pt", 3, **options)
    run(clips, networks, tmp_path / "parts.pt", 2, **options)
    run(clips, networks, tmp_path / "parts.pt", 3, **options)
    whole, parts = (files.load_weights(tmp_path / name) for name in ("whole.pt", "parts.pt"))
    for part in ("live", "discriminators", "information"):
        for name, value in whole["training"][part].items():
            assert torch.equal(value, parts["training"][part][name]), name
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    assert whole["training"]["watch"] == parts["training"]["watch"]


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"accumulate": 2, "real": "video", "contrastive": True, "image_discriminator": True}]
)
def test_a_batch_in_turns_is_the_same_batch(clips, networks, tmp_path, options):
    whole = run(clips, networks, tmp_path / "whole.pt", 2, batch=4, lr=1e-5, **options | {"accumulate": 1})
    parts = run(clips, networks, tmp_path / "parts.pt", 2, batch=4, lr=1e-5, **options)
    for one, other in zip(whole, parts):
        for name in ("generator", "discriminator", "information", "motion", "variety"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


def test_random_faces_of_a_generator_that_never_learnt_them_are_warned_of(clips, networks, tmp_path):
    with pytest.warns(
        UserWarning, match="start sample: its mapping network has hardly been trained .*; pass --set start=encode"
    ):
        run(clips, networks, tmp_path / "a.pt", 1, start="sample")
    trained = copy.deepcopy(networks[0])
    trained.w_avg.copy_(mean_latent(trained))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(clips, (trained, networks[1]), tmp_path / "b.pt", 1, start="sample")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"space": "w"}, {}),
        ({"start": "sample"}, {}),
        ({"displace": "previous"}, {}),
        ({"contrastive": True}, {"contrast", "alike"}),
        ({"image_discriminator": True}, {"image_generator", "image_discriminator"}),
        ({"adversarial": "relativistic"}, {}),
        ({"interpolation": 10.0}, {}),
        ({"norm": "instance"}, {}),
        ({"conditional": False}, {}),
        ({"d_size": 8, "shallow": True}, {}),
        ({"r1": 0.0}, {}),
    ],
)
def test_each_switch_trains(clips, networks, tmp_path, changes, named):
    parts = {"network": {}, "discriminator": {}}
    for name, value in changes.items():
        {
            "space": parts["network"],
            "displace": parts["network"],
            "norm": parts["discriminator"],
            "conditional": parts["discriminator"],
        }.get(name, parts)[name] = value
    before = run(clips, networks, tmp_path / "plain.pt", 2)
    after = run(clips, networks, tmp_path / "a.pt", 2, **parts)
    assert set(named) <= after[-1].keys()
    assert all(math.isfinite(value) for record in after for value in record.values())
    assert [without_times(record) for record in before] != [without_times(record) for record in after]


def test_w_moves_all_layers_alike(clips, networks, tmp_path):
    run(clips, networks, tmp_path / "a.pt", 1, network={"space": "w"})
    weights = files.load_weights(tmp_path / "a.pt")
    model = LatentGenerator(**weights["config"]["network"])
    model.load_state_dict(weights["model"])
    moved = np.stack(list(motion(model, torch.randn(L, 512), 0, 3)))
    assert np.abs(moved - moved[:, :1]).max() == 0 < np.abs(moved).max()


def test_a_generator_that_learnt_from_films_is_judged_by_films(clips, networks, tmp_path, monkeypatch):
    for learnt, real in (("film", "video"), ("still", "projected"), (None, "projected")):
        monkeypatch.setattr(networks[0], "learnt_from", learnt, raising=False)
        run(clips, networks, tmp_path / f"{learnt}.pt", 1)
        assert files.load_weights(tmp_path / f"{learnt}.pt")["config"]["training"]["real"] == real


def test_real_video_is_the_clip_and_projected_video_its_picture_from_codes(clips, networks, tmp_path):
    seen = {}

    class Spy(VideoDiscriminator):
        def forward(self, video, identity=None):
            seen.setdefault("videos", []).append((video.detach().clone(), identity.detach().clone()))
            return super().forward(video, identity)

    def shown(real):
        seen.clear()
        torch.manual_seed(1)
        list(
            train(
                [clips],
                *networks,
                tmp_path / f"{real}.pt",
                LatentGenerator(L, **NETWORK),
                Spy(2),
                steps=1,
                batch=2,
                frames=4,
                real=real,
                r1=0.0,
            )
        )
        return seen["videos"][2]  # after the fake in both losses

    video, face = shown("video")
    films = [np.stack(list(video_files.read_frames(clip))) for clip in sorted(clips.glob("*.mp4"))]
    windows = [film[k : k + 4] for film in films for k in range(FRAMES - 3)]
    as_bytes = ((video.permute(0, 1, 3, 4, 2) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert all(any(np.array_equal(window, mine) for window in windows) for mine in as_bytes)
    projected, start = shown("projected")
    generator, encoder = networks
    with torch.no_grad():
        drawn = generator.synthesis(encoder(video.flatten(0, 1))).unflatten(0, (2, 4))  # the same clips: the same seed
        torch.testing.assert_close(projected, drawn, atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(start, generator.synthesis(encoder(face)), atol=1e-2, rtol=1e-2)


# Collapse -------------------------------------------------------------------------------------------------------------

STEADY = {
    "motion": 1.0,
    "speed": 1.0,
    "variety": 1.0,
    "real_motion": 1.0,
    "real_speed": 1.0,
    "real_variety": 1.0,
    "discriminator": 2.0,
}


@pytest.mark.parametrize(
    "collapsed, message",
    [
        ({"motion": 0.01}, r"faces move 0.0\d+ times as much as in the clips"),
        ({"variety": 1e-4}, "all noise makes the same motion"),
        ({"discriminator": 1e-4}, "the discriminator is never wrong"),
    ],
)
def test_a_collapse_is_told(collapsed, message):
    watch = train_video_gan._CollapseMonitor(Distributed(1), "a.pt")
    for _ in range(300):
        told = watch(dict(STEADY))
    assert told == pytest.approx({"motion": 1.0, "speed": 1.0, "variety": 1.0})
    with pytest.raises(
        TalkheadError, match=f"training has collapsed: {message}.*a.pt, if it exists, is the last checkpoint"
    ):
        for _ in range(600):
            watch(STEADY | collapsed)


def test_a_short_collapse_is_none():
    watch = train_video_gan._CollapseMonitor(Distributed(1), "a.pt")
    for _ in range(train_video_gan._CollapseMonitor.GRACE_STEPS):
        watch(STEADY | {"motion": 0.0})
    watch = train_video_gan._CollapseMonitor(Distributed(1), "a.pt")
    for step in range(300):
        watch(STEADY | ({"motion": 0.0} if step % 3 == 0 else {}))


def test_a_run_that_stands_still_is_stopped(clips, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(train_video_gan._CollapseMonitor, "GRACE_STEPS", 2)
    monkeypatch.setattr(train_video_gan, "MOTION_RANGE", 1e-3)
    with pytest.raises(TalkheadError, match="training has collapsed: faces move 0.000"):
        run(clips, networks, tmp_path / "a.pt", 5, save_minutes=0)
    assert files.load_weights(tmp_path / "a.pt")["step"] == 2


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"frames": 11},
            r"000000.mp4: the longest clip has 10 frames, a window 11; pass longer clips, or lower frames",
        ),
        ({"frames": 1}, "motion needs at least two"),
        ({"d_size": 32}, "d_size 32: exceeds the generator's 16x16; pass no more"),
        ({"d_size": 12, "shallow": True}, "side 12: this generator has levels of 8, 16"),
        ({"real": "video", "shallow": True}, "shallow: real video does not come from"),
        ({"real": "any"}, "real 'any': unknown; take auto, video or projected"),
        ({"start": "any"}, "start 'any'"),
        ({"adversarial": "any"}, "adversarial 'any'"),
        (
            {"network": {"components": 400}},
            "basis of 400 components: 40 latents allow 1 to 39; lower --components, or give more clips",
        ),
        ({"batch": 3, "accumulate": 2}, "pass --batch as a multiple of 2"),
    ],
)
def test_what_cannot_be_trained_is_told(clips, networks, tmp_path, options, message):
    with pytest.raises(TalkheadError, match=message):
        run(clips, networks, tmp_path / "a.pt", 1, **options)


def test_clips_that_cannot_be_used_are_told(networks, tmp_path):
    def attempt():
        run(tmp_path / "clips", networks, tmp_path / "a.pt", 1)

    (tmp_path / "clips").mkdir()
    with pytest.raises(TalkheadError, match="clips: no clips"):
        attempt()
    write_clip(tmp_path / "clips", "a", 0)
    with pytest.raises(
        TalkheadError, match="a.mp4: is the only clip of 4 frames or more, and a discriminator would memorise it"
    ):
        attempt()
    write_clip(tmp_path / "clips", "b", 1, frames=3)
    with pytest.raises(TalkheadError, match="a.mp4: is the only clip"):
        attempt()
    write_clip(tmp_path / "clips", "c", 2)
    with pytest.warns(UserWarning, match="1 of 3 clips are shorter than a window of 4 frames, and skipped"):
        attempt()
    write_clip(tmp_path / "clips", "d", 3, size=(16, 24))
    with pytest.raises(TalkheadError, match="d.mp4: 24x16 is not a square face; align it first"):
        attempt()


def test_networks_of_different_layers_are_refused(clips, networks, tmp_path):
    with pytest.raises(TalkheadError, match="layers: generator 6, encoder 8, motion model 6"):
        run(clips, (networks[0], ResNetEncoder(8, width=4, input_size=16)), tmp_path / "a.pt", 1)
