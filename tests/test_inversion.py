"""Frames to latents at toy size: the algorithms against what they promise."""

import argparse
import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from talkhead import training
from talkhead.distributed import MicroBatch
from talkhead.encoders import PSPEncoder, ResNetEncoder, ReStyle
from talkhead.errors import TalkheadError
from talkhead.images import to_frames, to_images
from talkhead.inversion import encode, invert, learning_rate_ramp, planned_steps
from talkhead.stylegan import Generator
from talkhead.train_encoder import train, training_size


@pytest.fixture
def clip(generator):
    """Four frames that the generator can draw, a smooth way through W+."""
    torch.manual_seed(2)
    ends = generator.w_avg + 0.5 * torch.randn(2, generator.num_ws, 512)
    path = torch.stack([ends[0].lerp(ends[1], t) for t in (0, 0.1, 0.2, 0.3)])
    return to_frames(generator.synthesis(path))


class Pictures:
    """What `train` asks of datasets.Images."""

    def __init__(self, count, size, seed=0):
        self.frames = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.frames)

    def batch(self, step, count, seed=0, flip=False, share=MicroBatch()):
        return share(to_images(self.frames[[(step * count + k) % len(self) for k in range(count)]]))


def run(clip, generator, method="optimise", encoder=None, **options):
    options = {"steps": 8, "next_steps": 4, "hybrid_steps": 6, "lr": 0.05, "perceptual": "pyramid"} | options
    return np.stack(list(invert(clip, generator, method, encoder, **options)))


def error(latents, generator, clip):
    drawn = generator.synthesis(torch.as_tensor(latents))
    return (drawn - to_images(clip)).square().mean((1, 2, 3)).numpy()


# ---- encode ----


def test_codes_do_not_depend_on_the_batch(encoder, clip):
    one, many = np.stack(list(encode(encoder, clip, batch=1))), np.stack(list(encode(encoder, clip, batch=3)))
    assert one.shape == (4, 4, 512) and one.dtype == np.float32
    assert np.allclose(one, many, atol=1e-5)
    assert np.allclose(one, encoder(to_images(clip)).detach(), atol=1e-5)


def test_encode_streams(encoder, clip):
    seen = []

    def frames():
        for frame in clip:
            seen.append(1)
            yield frame

    codes = encode(encoder, frames(), batch=2)
    next(codes)
    assert len(seen) == 2


def test_encode_uses_running_statistics_even_after_training(encoder, clip):
    wanted = np.stack(list(encode(encoder, clip)))
    encoder.train()
    assert np.array_equal(np.stack(list(encode(encoder, clip))), wanted)


def test_a_frame_that_is_not_square_is_refused(encoder, generator):
    frames = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 24, 3), np.uint8)]
    with pytest.raises(TalkheadError, match="frame 1: 24x8 is not a square"):
        list(encode(encoder, frames))
    with pytest.raises(TalkheadError, match="frame 1: 24x8 is not a square"):
        run(frames, generator)


def test_frames_of_two_sizes_are_refused(encoder):
    with pytest.raises(TalkheadError, match="one size"):
        list(encode(encoder, [np.zeros((size, size, 3), np.uint8) for size in (16, 24)]))


# ---- invert ----


def test_method_encoder_is_encode(generator, encoder, clip):
    assert np.array_equal(run(clip, generator, "encoder", encoder), np.stack(list(encode(encoder, clip))))


@pytest.mark.parametrize("method", ["optimise", "sequential", "hybrid"])
def test_optimisation_lowers_the_loss(generator, encoder, clip, method):
    losses = {}
    latents = run(
        clip[:2],
        generator,
        method,
        encoder,
        steps=30,
        next_steps=30,
        hybrid_steps=30,
        on_record=lambda record: losses.setdefault(record["frame"], []).append(record["loss"]),
    )
    assert latents.shape == (2, 4, 512) and latents.dtype == np.float32
    for index in (0, 1):
        assert len(losses[index]) == 30 and losses[index][-1] < 0.7 * losses[index][0]


def test_the_loss_is_perceptual_plus_mean_square(generator, clip):
    from talkhead.losses import pyramid_distance

    seen = []
    run(clip[:1], generator, steps=1, w_noise=0, pixel_weight=3.0, on_record=seen.append)
    drawn = generator.synthesis(generator.w_avg.expand(1, 4, -1))
    target = to_images(clip[:1])
    perceptual, pixel = pyramid_distance(drawn, target).item(), (drawn - target).square().mean().item()
    (record,) = seen
    assert (record["frame"], record["step"], record["steps"], record["lr"]) == (0, 0, 1, 0.05)
    assert record["perceptual"] == pytest.approx(perceptual, rel=1e-5) and record["pixel"] == pytest.approx(
        pixel, rel=1e-5
    )
    assert record["loss"] == pytest.approx(perceptual + 3 * pixel, rel=1e-5)


def test_the_first_step_is_adams_from_the_mean(generator, clip):
    # Adam's first step is lr in the direction of the gradient's sign, here halved by nothing: one step is all ramp.
    latents = run(clip[:1], generator, steps=1, w_noise=0, lr=0.01)
    moved = np.abs(latents[0] - generator.w_avg.numpy())
    height = learning_rate_ramp(0, 1)
    assert np.median(moved) == pytest.approx(0.01 * height, rel=0.01)


def test_frames_do_not_feel_their_batch_mates(generator, clip):
    shuffled = run(clip[[0, 3, 1]], generator, batch=3)
    together = run(clip[[0, 2, 3]], generator, batch=3)
    assert np.array_equal(shuffled[0], together[0])
    # Another batch size rounds otherwise, and Adam makes a step of a gradient that rounds to nothing.
    alone = run(clip[:1], generator, batch=1)
    assert np.abs(alone[0] - together[0]).mean() < 1e-4


def test_hybrid_does_not_depend_on_the_batch(generator, encoder, clip):
    one, many = ({}, {})
    alone, together = (
        run(
            clip,
            generator,
            "hybrid",
            encoder,
            batch=batch,
            on_record=lambda record: counts.update({record["frame"]: record["steps"]}),
        )
        for batch, counts in ((1, one), (4, many))
    )
    assert np.array_equal(alone, together) and one == many == {0: 6, 1: 4, 2: 4, 3: 4}


def test_a_photo_takes_the_steps_that_it_is_given(generator, encoder, clip):
    for steps in (1, 3):
        seen = []
        run(clip[:1], generator, "hybrid", encoder, batch=4, hybrid_steps=steps, on_record=seen.append)
        assert [(record["step"], record["steps"]) for record in seen] == [(step, steps) for step in range(steps)]


def test_hybrid_starts_at_the_code_moved_as_the_frame_before_was(generator, encoder, clip):
    latents = run(clip, generator, "hybrid", encoder, hybrid_steps=10, next_steps=1, lr=0.01)
    codes = np.stack(list(encode(encoder, clip)))
    # One step of Adam moves no number by more than the learning rate; the first frame takes ten.
    assert np.abs(np.diff(latents - codes, axis=0)).max() <= 0.01 + 1e-5
    assert np.abs(latents[0] - codes[0]).max() > 0.02


@pytest.mark.parametrize("method", ["optimise", "sequential", "hybrid"])
def test_steps_are_as_planned(generator, encoder, clip, method):
    counts = {}
    run(
        clip,
        generator,
        method,
        encoder,
        batch=2,
        on_record=lambda record: counts.update({record["frame"]: record["step"] + 1}),
    )
    planned = planned_steps(method, 8, 4, 6)
    assert counts == {frame: planned(frame) for frame in range(4)}
    assert (
        list(counts.values()) == {"optimise": [8, 8, 8, 8], "sequential": [8, 4, 4, 4], "hybrid": [6, 4, 4, 4]}[method]
    )


def test_same_seed_same_latents(generator, clip):
    first, second, other = (run(clip[:1], generator, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, second)
    assert not np.allclose(first, other)  # two runs of Algorithm 1 land in different places (Fig. 3.7)
    assert np.array_equal(run(clip[:1], generator, seed=3, w_noise=0), run(clip[:1], generator, seed=4, w_noise=0))


def test_global_random_state_is_left_alone(generator, clip):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    run(clip[:1], generator)
    assert torch.equal(torch.rand(1), wanted)


def test_sequential_starts_at_the_code_before(generator, clip):
    latents = run(clip, generator, "sequential", next_steps=1, lr=0.01)
    # One step of Adam moves no number by more than the learning rate.
    assert np.abs(np.diff(latents, axis=0)).max() <= 0.01 + 1e-6
    assert np.array_equal(latents[0], run(clip[:1], generator, "optimise", lr=0.01)[0])


def test_sequential_path_is_smoother_than_independent_ones(generator, clip):
    independent = run(clip, generator, "optimise", steps=30, w_noise=0.075)
    sequential = run(clip, generator, "sequential", steps=30, next_steps=15, w_noise=0.075)
    jump = lambda latents: np.linalg.norm(np.diff(latents, axis=0), axis=(1, 2)).mean()
    assert jump(sequential) < 0.5 * jump(independent)  # Fig. 3.8


def test_w_has_one_latent_for_all_layers_and_fits_worse():
    torch.manual_seed(0)
    generator = Generator(16, [8, 8, 8], w_dim=8).eval().requires_grad_(False)  # a W too small to hold a picture
    clip = to_frames(generator.synthesis(torch.randn(2, 6, 8)))
    w, w_plus = (run(clip, generator, steps=60, space=space, w_noise=0) for space in ("w", "w+"))
    assert np.array_equal(w, np.broadcast_to(w[:, :1], w.shape))
    assert not np.array_equal(w_plus, np.broadcast_to(w_plus[:, :1], w_plus.shape))
    assert np.all(error(w_plus, generator, clip) < error(w, generator, clip))  # §3.3.1.1


def test_hybrid_in_w_starts_at_the_codes_mean(generator, encoder, clip):
    latents = run(clip[:1], generator, "hybrid", encoder, space="w", hybrid_steps=1, lr=1e-6)
    code = next(encode(encoder, clip))
    assert np.allclose(latents[0], code.mean(0), atol=1e-4)


def test_in_z_the_result_is_what_the_mapping_makes_of_some_z(generator, clip):
    latents = run(clip[:2], generator, space="z", steps=30)
    assert latents.shape == (2, 4, 512)
    assert np.array_equal(latents, np.broadcast_to(latents[:, :1], latents.shape))
    start = run(clip[:1], generator, space="z", steps=1, w_noise=0, lr=1e-9)
    assert error(latents[:1], generator, clip[:1]) < error(start, generator, clip[:1])


def test_in_z_the_start_is_the_one_of_many_that_maps_nearest_to_the_mean(generator, clip):
    start = run(clip[:1], generator, space="z", steps=1, w_noise=0, lr=1e-9)[0, 0]
    random = np.stack([generator.mapping(torch.randn(1, 512))[0, 0].numpy() for _ in range(100)])
    mean = generator.w_avg.numpy()
    assert np.linalg.norm(start - mean) < np.linalg.norm(random - mean, axis=1).min()


def test_the_space_is_not_measured_by_the_weights_of_the_network(generator, clip, z_among_weights):
    run(clip[:1], generator, steps=1, w_noise=0.01)
    assert z_among_weights(generator) == 0


def test_in_z_each_frame_goes_on_from_the_z_before(generator, clip):
    latents = run(clip, generator, "sequential", space="z", next_steps=1, lr=1e-6, w_noise=0)
    assert np.abs(latents - latents[:1]).max() < 1e-4


# ---- convergence ----


def converging(clip, generator, monkeypatch, **options):
    """Latents, and every frame's records, where twice five steps tell whether a loss still falls."""
    monkeypatch.setattr(training, "WINDOW", 5)
    records = {}
    latents = run(
        clip,
        generator,
        steps=400,
        w_noise=0,
        on_record=lambda record: records.setdefault(record["frame"], []).append(record),
        **options,
    )
    return latents, records


def test_a_converged_frame_lands_early(generator, clip, monkeypatch):
    latents, records = converging(clip[:1], generator, monkeypatch, tolerance=0.05)
    taken, losses = len(records[0]), [record["loss"] for record in records[0]]
    assert 40 < taken < 300 and taken == records[0][-1]["steps"]
    # The first steps at which five gained less than a twentieth, counted by hand, are three quarters of all.
    # The rate rises over the first twenty, which tell nothing.
    settled = next(
        k
        for k in range(30, taken)
        if sum(losses[k - 10 : k - 5]) - sum(losses[k - 5 : k]) <= 0.05 * sum(losses[k - 10 : k - 5])
    )
    assert taken == -(-settled * 4 // 3)
    rates = [record["lr"] for record in records[0]]
    assert rates[settled - 1] == 0.05 and rates[settled:] == sorted(rates[settled:], reverse=True) and rates[-1] < 0.01
    whole, _ = converging(clip[:1], generator, monkeypatch)
    assert error(latents, generator, clip[:1]) < 4 * error(whole, generator, clip[:1]) + 1e-3


def test_each_frame_converges_by_itself(generator, clip, monkeypatch):
    mates = np.stack([clip[0], 255 - clip[1], clip[2]])
    together, records = converging(mates, generator, monkeypatch, tolerance=0.05, batch=3)
    assert len({len(seen) for seen in records.values()}) > 1  # not all at once
    for k in range(3):
        alone, (seen,) = (lambda found: (found[0], list(found[1].values())))(
            converging(mates[k : k + 1], generator, monkeypatch, tolerance=0.05)
        )
        assert abs(len(seen) - len(records[k])) <= 2
        assert (
            np.abs(error(alone, generator, mates[k : k + 1]) - error(together[k : k + 1], generator, mates[k : k + 1]))
            < 1e-3
        )


def test_bfloat16_is_near(generator, clip):
    single, half = (run(clip[:2], generator, steps=30, precision=precision) for precision in ("float32", "bfloat16"))
    assert not np.array_equal(single, half)
    assert np.allclose(error(single, generator, clip[:2]), error(half, generator, clip[:2]), rtol=0.3)


# ---- a run that is stopped ----


STOPPED = [
    ("optimise", 2, "w+"),
    ("optimise", 3, "z"),
    ("sequential", 4, "w+"),
    ("sequential", 1, "w"),
    ("sequential", 1, "z"),
    ("hybrid", 2, "w+"),
]


@pytest.mark.parametrize("method, batch, space", STOPPED)
@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, generator, encoder, clip, method, batch, space, done):
    options = {"method": method, "encoder": encoder, "batch": batch, "space": space}
    whole = run(clip, generator, **options)
    part, seen = tmp_path / "lat.npy.part", []
    few = {"steps": 8, "next_steps": 4, "hybrid_steps": 6, "lr": 0.05, "perceptual": "pyramid"} | options
    stopped = invert(clip, generator, partial=part, **few)
    for _ in range(done):
        next(stopped)
    del stopped
    resumed = run(clip, generator, partial=part, on_record=lambda record: seen.append(record["frame"]), **options)
    assert np.array_equal(resumed, whole)
    assert min(seen, default=4) >= done - done % (batch if method == "optimise" else 1)
    seen.clear()
    assert np.array_equal(
        run(clip, generator, partial=part, on_record=lambda record: seen.append(record["frame"]), **options), whole
    )
    assert set(seen) <= {3}  # all is there but a last batch that was not full


def test_a_record_that_was_cut_short_is_made_again(tmp_path, generator, clip):
    part = tmp_path / "part"
    whole = run(clip, generator, "sequential", partial=part)
    size = part.stat().st_size
    for cut in (1, 600, 9000):
        with open(part, "r+b") as stream:
            stream.truncate(size - cut)
        assert np.array_equal(run(clip, generator, "sequential", partial=part), whole)
        assert part.stat().st_size == size


def test_another_run_does_not_go_on(tmp_path, generator, encoder, clip):
    part = tmp_path / "part"
    run(clip[:2], generator, "sequential", partial=part)
    before = part.read_bytes()
    other = copy.deepcopy(generator)
    other.w_avg += 0.01
    for message, line in {
        "begun with lr=0.05, now 0.02": {"lr": 0.02},
        "begun with method=sequential, now optimise": {"method": "optimise"},
        "begun with next_steps=4, now 5": {"next_steps": 5},
        "begun with generator": {"generator": other},
        "begun with seed=0, now 1": {"seed": 1},
    }.items():
        with pytest.raises(TalkheadError, match=message):
            run(clip, **{"generator": generator, "method": "sequential", "partial": part} | line)
    with pytest.raises(TalkheadError, match="frame 1 differs from that of the stopped run"):
        run(clip[[0, 2]], generator, "sequential", partial=part)
    assert part.read_bytes() == before
    # What the method does not use may change.
    assert len(run(clip, generator, "sequential", partial=part, hybrid_steps=9, batch=2)) == 4
    part.write_text("shopping list")
    with pytest.raises(TalkheadError, match="not the partial latents"):
        run(clip, generator, "sequential", partial=part)


def test_latents_come_as_soon_as_they_are_known(generator, clip):
    seen = []

    def frames():
        for frame in clip:
            seen.append(1)
            yield frame

    latents = invert(frames(), generator, "sequential", steps=1, next_steps=1, perceptual="pyramid")
    assert not seen
    for count in (1, 2, 3):
        next(latents)
        assert len(seen) == count


def test_only_the_latent_receives_a_gradient(generator, clip):
    generator.requires_grad_(True)
    before = copy.deepcopy(generator.state_dict())
    run(clip[:1], generator, steps=2)
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_frames_of_another_size_are_resized(generator):
    big = np.full((1, 40, 40, 3), 200, np.uint8)
    assert np.allclose(run(big, generator), run(big[:, :8, :8], generator), atol=1e-3)


def test_what_does_not_fit_is_refused_at_once(generator, encoder, clip):
    other = ResNetEncoder(6, width=4, input_size=32)
    for message, options in {
        "needs an encoder": {"method": "hybrid"},
        "encoder of 6 layers, generator of 4": {"method": "encoder", "encoder": other},
        "encoders give W": {"method": "encoder", "encoder": encoder, "space": "w"},
        "encoders give no z": {"method": "hybrid", "encoder": encoder, "space": "z"},
        "take encoder, optimise": {"method": "magic"},
        "take w\\+, w or z": {"method": "optimise", "space": "x"},
    }.items():
        with pytest.raises(TalkheadError, match=message):
            invert(clip, generator, **options)


def test_a_loss_that_is_not_finite_names_its_frame(generator, clip):
    generator.convs[0].bias.fill_(float("nan"))
    with pytest.raises(TalkheadError, match="frame 0, step 0: the loss is nan; lower --lr"):
        run(clip, generator)


def test_learning_rate_rises_and_falls():
    ramp = [learning_rate_ramp(step, 100) for step in range(100)]
    assert ramp[0] == pytest.approx(0.2) and ramp[4] == 1 and ramp[74] == 1
    assert ramp[88] == pytest.approx(0.5, abs=0.05) and ramp[-1] < 0.01
    assert ramp[:5] == sorted(ramp[:5]) and ramp[74:] == sorted(ramp[74:], reverse=True)


# ---- train ----


def trained(out, generator, steps, **options):
    torch.manual_seed(3)
    encoder = ResNetEncoder(generator.num_ws, width=4, input_size=8, stem_stride=2, w_avg=generator.w_avg)
    options = {"batch": 2, "perceptual": "pyramid", "log_every": 1} | options
    return encoder, list(train(Pictures(6, 8), generator, out, encoder, steps=steps, **options))


def test_training_lowers_the_loss_and_leaves_the_generator(tmp_path, generator):
    before = copy.deepcopy(generator.state_dict())
    encoder, records = trained(tmp_path / "e.pt", generator, 30)
    losses = [record["loss"] for record in records]
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
    assert [record["step"] for record in records] == list(range(1, 31))
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    weights = torch.load(tmp_path / "e.pt", weights_only=True)
    assert weights["perceptual"] == "pyramid"
    assert weights["kind"] == "encoder" and weights["config"] == encoder.config | {"generator": "0123456789abcdef"}
    assert all(torch.equal(value, weights["model"][name]) for name, value in encoder.state_dict().items())


def test_training_loss_by_its_parts(tmp_path, generator):
    _, (record,) = trained(
        tmp_path / "e.pt",
        generator,
        1,
        pixel_weight=2.0,
        perceptual_weight=3.0,
        latent_weight=5.0,
        identity=torch.nn.Flatten(),
        identity_weight=7.0,
    )
    parts = 2 * record["pixel"] + 3 * record["perceptual"] + 5 * record["latent"] + 7 * record["identity"]
    assert record["loss"] == pytest.approx(parts, rel=1e-5)
    # The tiny head draws all but the mean face, and the L2 norm over √N is the root mean square.
    drawn = generator.synthesis(generator.w_avg.expand(2, 4, -1))
    square = (drawn - Pictures(6, 8).batch(0, 2)).square().mean((1, 2, 3))
    assert record["pixel"] == pytest.approx(square.sqrt().mean().item(), rel=0.02)


@pytest.mark.parametrize("loss_size", [None, 4])
def test_psps_loss_by_its_parts(tmp_path, generator, loss_size):
    torch.manual_seed(3)
    encoder = PSPEncoder(4, width=4, input_size=32, w_avg=generator.w_avg)
    options = {
        "batch": 2,
        "perceptual": "pyramid",
        "latent_weight": 5.0,
        "identity": torch.nn.Flatten(),
        "loss_size": loss_size,
    }
    before = copy.deepcopy(encoder)
    (record,) = train(Pictures(6, 8), generator, tmp_path / "e.pt", encoder, steps=1, log_every=1, **options)
    assert record["loss"] == pytest.approx(
        record["pixel"] + 0.8 * record["perceptual"] + 0.1 * record["identity"] + 5 * record["latent"], rel=1e-5
    )
    images = Pictures(6, 8).batch(0, 2)
    with torch.no_grad():
        codes = before.train()(images)
        drawn = generator.synthesis(codes)
        if loss_size:
            images, drawn = (F.interpolate(x, (4, 4), mode="bilinear", antialias=True) for x in (images, drawn))
    assert record["pixel"] == pytest.approx((drawn - images).square().mean().item(), rel=1e-4)
    assert record["latent"] == pytest.approx(
        np.mean([np.linalg.norm(code - generator.w_avg) for code in codes]), rel=1e-4
    )
    # Adam's first step is its learning rate, whatever the gradient.
    moved = max((new - old).abs().max().item() for new, old in zip(encoder.parameters(), before.parameters()))
    assert moved == pytest.approx(1e-4, rel=0.01)


def test_training_psp_lowers_the_loss_and_goes_on_where_it_stopped(tmp_path, generator):
    def run(out, steps):
        torch.manual_seed(3)
        encoder = PSPEncoder(4, width=4, input_size=32, w_avg=generator.w_avg)
        options = {"batch": 2, "perceptual": "pyramid", "log_every": 1, "lr": 0.002}
        return encoder, [
            record["loss"] for record in train(Pictures(6, 8), generator, out, encoder, steps=steps, **options)
        ]

    straight, losses = run(tmp_path / "a.pt", 30)
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
    short, _ = run(tmp_path / "b.pt", 4)
    run(tmp_path / "c.pt", 2)
    resumed, more = run(tmp_path / "c.pt", 4)
    assert more == losses[2:4]
    for name, value in short.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


@pytest.mark.parametrize(
    "encoder, resolution, loss_size, wanted",
    [
        (PSPEncoder(4, width=4, input_size=256), 1024, None, 256),  # 70,000 pictures are 14 GB, not 220
        (PSPEncoder(4, width=4, input_size=256), 1024, 512, 512),
        (PSPEncoder(4, width=4, input_size=64), 128, None, 128),
        (ResNetEncoder(4, width=4, input_size=256), 1024, None, 1024),
        (ResNetEncoder(4, width=4, input_size=256), 64, None, 256),
    ],
)
def test_pictures_are_held_as_large_as_they_are_looked_at(encoder, resolution, loss_size, wanted):
    assert training_size(argparse.Namespace(resolution=resolution), encoder, loss_size) == wanted


def test_restyle_is_not_trained(tmp_path, generator):
    encoder = ReStyle(PSPEncoder(4, width=4, input_size=32, channels=6), copy.deepcopy(generator))
    with pytest.raises(TalkheadError, match="restyle: training is not supported"):
        next(train(Pictures(2, 8), generator, tmp_path / "e.pt", encoder, steps=1))


def test_four_steps_equal_two_and_two_more(tmp_path, generator):
    straight, _ = trained(tmp_path / "a.pt", generator, 4)
    trained(tmp_path / "b.pt", generator, 2)
    resumed, records = trained(tmp_path / "b.pt", generator, 4)
    assert [record["step"] for record in records] == [3, 4]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_validation_is_measured_with_frozen_statistics(tmp_path, generator):
    _, records = trained(tmp_path / "e.pt", generator, 4, validation=Pictures(3, 8, seed=9), validate_every=2)
    assert ["validation" in record for record in records] == [False, True, False, True]


def test_an_encoder_of_another_generator_cannot_be_trained(tmp_path, generator):
    with pytest.raises(TalkheadError, match="encoder of 6 layers"):
        next(train(Pictures(2, 8), generator, tmp_path / "e.pt", ResNetEncoder(6, width=4), steps=1))
