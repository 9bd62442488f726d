"""Speech models are taught on clips made on the spot: what they learn, keep, resume and refuse."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import toys
from talkhead import audio_files, files, latent_cache, mfcc, train_audio2latent, video_files
from talkhead.audio2latent import FirstModel, SecondModel, build, displacements
from talkhead.audio_features import Mfcc
from talkhead.encoders import ResNetEncoder
from talkhead.errors import TalkheadError
from talkhead.latent_cache import EncodedClip, LatentCache, Windows, split
from talkhead.train_audio2latent import train
from test_audio2latent import TOY, L, toy_model


def heard(frames, batch=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, frames, 12, 28)).astype(np.float32))


FRAMES = 10


def write_clip(folder, name, speaker, seed, track=True):
    """A clip whose picture grows brighter with its sound."""
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.random(FRAMES // 2 + 1) > 0.5, 2)[:FRAMES]
    sound = np.repeat(loud, 640) * rng.standard_normal(FRAMES * 640) * 0.1
    base = rng.integers(60, 120, (16, 16, 3))
    frames = ((base + 100 * each).astype(np.uint8) for each in loud)
    toys.write_frames(folder / f"{name}.mp4", frames, sound=(sound.astype(np.float32), 16000))
    (folder / f"{name}.json").write_text(json.dumps({"speaker": speaker, "source": "test"}))
    if track:
        np.save(folder / f"{name}.track.npy", np.stack([0.1 * loud] * 3, 1).astype(np.float32))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for k in range(5):
        write_clip(folder, f"{k:06d}", f"voice{k // 2}", k)
    return folder


@pytest.fixture(scope="module")
def networks():
    generator, encoder = toys.pair()
    generator.fingerprint = "0123456789abcdef"
    return generator, encoder


TOY_FIRST = {
    "window_shape": (12, 28),
    "channels": (2, 2, 3, 3),
    "lstm": 4,
    "identity_width": 3,
    "noise_width": 2,
    "decoder": 4,
}
KINDS = {"first": (FirstModel, TOY_FIRST), "second": (SecondModel, TOY)}


def run(clips, networks, out, steps, kind="second", sizes=None, **options):
    options = {
        "batch": 2,
        "frames": 6,
        "image_frames": 2,
        "perceptual": "pyramid",
        "hold_out": 1,
        "validate_every": 2,
        "log_every": 1,
        "lr": 1e-3,
    } | options
    torch.manual_seed(1)
    network, toy = KINDS[kind]
    return list(train([clips], *networks, out, network(L, **(toy | (sizes or {}))), steps=steps, **options))


class Steps:
    """Stands in for a network's features: a random mixture of coefficients, one step in 20 ms.

    Counts what it was asked for.
    """

    name, identity, shape = "steps", {"name": "steps", "network": "0123"}, (29, 16)

    def __init__(self):
        self.matrix, self.asked = np.random.default_rng(0).standard_normal((12, 29)).astype(np.float32), 0

    def windows(self, audio):
        self.asked += 1
        return mfcc.windows(mfcc.mfcc(audio)[::2] @ self.matrix, mfcc.num_frames(audio), 16, 6, 2)


def test_training_writes_a_model_that_loads(clips, networks, tmp_path):
    records = run(clips, networks, tmp_path / "a.pt", 4)
    assert [record["step"] for record in records] == [0] * 5 + [1, 2, 3, 4]
    assert {"loss", "latent", "image", "mouth"} <= set(records[5]) and {"val_error", "val_correlation"} <= set(
        records[6]
    )
    json.dumps(records)
    weights = files.load_weights(tmp_path / "a.pt", kind="audio2latent")
    assert weights["config"]["generator"] == "0123456789abcdef"
    assert weights["config"]["features"] == {"name": "mfcc"}
    model = build(**weights["config"]["network"])
    model.load_state_dict(weights["model"])
    assert model.basis.stdev.min() > 0 and model.motion_std.min() > 0
    assert next(displacements(model, heard(1)[0].numpy(), torch.zeros(L, 512))).shape == (L, 512)


def test_the_first_model_learns_by_default_from_pictures_alone(clips, networks, tmp_path):
    records = run(clips, networks, tmp_path / "a.pt", 2, "first")
    assert records[-1]["loss"] == pytest.approx(records[-1]["image"]) and records[-1]["latent"] > 0
    weights = files.load_weights(tmp_path / "a.pt", kind="audio2latent")
    told = weights["config"]["training"]
    assert (
        told["latent_weight"],
        told["image_weight"],
        told["mouth_weight"],
        told["identity_noise"],
        told["patience"],
    ) == (0, 1, 0, 0, 10)
    model = build(**weights["config"]["network"])
    model.load_state_dict(weights["model"])
    assert isinstance(model, FirstModel) and model.identity_std.min() > 0 and model.feature_std.min() > 0
    assert next(displacements(model, heard(1)[0].numpy(), torch.zeros(L, 512))).shape == (L, 512)


@pytest.mark.parametrize(
    "kind, more", [("second", {}), ("first", {"best_of_n": 2, "patience": 1, "mouth_weight": 1.0})]
)
def test_resumed_training_equals_uninterrupted(clips, networks, tmp_path, kind, more):
    run(clips, networks, tmp_path / "whole.pt", 5, kind, **more)
    run(clips, networks, tmp_path / "parts.pt", 3, kind, **more)
    run(clips, networks, tmp_path / "parts.pt", 5, kind, **more)
    whole, parts = (files.load_weights(tmp_path / name) for name in ("whole.pt", "parts.pt"))
    for name in whole["model"]:
        assert torch.equal(whole["model"][name], parts["model"][name]), name
        assert torch.equal(whole["training"]["live"][name], parts["training"]["live"][name]), name
    assert whole["training"]["plateau"] == parts["training"]["plateau"]


def test_the_rate_cools_down_along_a_cosine(clips, networks, tmp_path):
    run(clips, networks, tmp_path / "whole.pt", 4, lr=0.1, lr_decay=0.5)
    rate = files.load_weights(tmp_path / "whole.pt")["training"]["optimizer"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0.05)  # the fourth of four steps lies half way down
    run(clips, networks, tmp_path / "even.pt", 4, lr=0.1)
    assert files.load_weights(tmp_path / "even.pt")["training"]["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_the_rate_falls_where_measurements_bring_nothing_better():
    plateau = train_audio2latent._Plateau(2)
    for error, falls in [(1.0, 0), (0.5, 0), (0.6, 0), (0.5, 1), (0.7, 1), (0.4, 1), (0.4, 1), (0.4, 2)]:
        plateau.step(error)
        assert plateau.falls == falls, error
    again = train_audio2latent._Plateau(2)
    again.load_state_dict(json.loads(json.dumps(plateau.state_dict())))
    assert vars(again) == vars(plateau)


def test_a_fallen_rate_is_what_adam_takes(clips, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(train_audio2latent._Plateau, "step", lambda self, error: setattr(self, "falls", self.falls + 1))
    run(clips, networks, tmp_path / "a.pt", 6, "first", patience=1, lr=0.1)
    # Measured after steps 2, 4 and 6: the last two of six steps took a hundredth.
    assert files.load_weights(tmp_path / "a.pt")["training"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(
        0.001
    )


def test_the_best_model_is_kept(clips, networks, tmp_path):
    records = run(clips, networks, tmp_path / "a.pt", 8, lr=0.05)
    checked = {record["step"]: record["val_error"] for record in records if "val_error" in record}
    assert files.load_weights(tmp_path / "a.pt")["training"]["best_step"] == min(checked, key=checked.get)


def test_codes_are_computed_once(clips, networks, tmp_path, monkeypatch):
    run(clips, networks, tmp_path / "a.pt", 1)
    monkeypatch.setattr(latent_cache, "encode", None)
    run(clips, networks, tmp_path / "a.pt", 2)


def test_kept_codes_are_those_of_the_encoder(clips, networks, tmp_path):
    clip = clips / "000002.mp4"
    with LatentCache(tmp_path / "a.codes", networks[1]) as kept:
        held, audio = kept.read(kept.encode(clip, "cpu"))
    fresh = np.stack(list(latent_cache.encode(networks[1], video_files.read_frames(clip))))
    assert np.abs(held - fresh).max() < 1e-3 * np.abs(fresh - fresh.mean(0)).max() + 1e-7
    assert (
        len(held) == FRAMES
        and np.abs(audio[: FRAMES * 640] - audio_files.read_audio(clip)[: FRAMES * 640]).max() < 1e-4
    )


def test_another_encoder_does_not_take_them(clips, networks, tmp_path):
    other = ResNetEncoder(L, width=4, input_size=16)
    with LatentCache(tmp_path / "a.codes", networks[1]) as kept:
        first = kept.encode(clips / "000000.mp4", "cpu").key
    with LatentCache(tmp_path / "a.codes", other) as kept:
        assert kept.encode(clips / "000000.mp4", "cpu").key != first


@pytest.mark.parametrize("augment", [False, True])
def test_features_of_a_network_are_made_once_unless_sound_varies(clips, networks, tmp_path, augment):
    features, sizes = Steps(), {"window_shape": (29, 16)}
    run(clips, networks, tmp_path / "a.pt", 2, "first", sizes, features=features, augment=augment)
    assert features.asked == 5 if not augment else features.asked >= 5 + 2 * 2
    again = Steps()
    run(clips, networks, tmp_path / "a.pt", 3, "first", sizes, features=again, augment=augment)
    assert (again.asked == 0) == (not augment)
    assert files.load_weights(tmp_path / "a.pt")["config"]["features"] == Steps.identity


def test_kept_windows_are_those_of_the_sound(clips, networks, tmp_path):
    features = Steps()
    with LatentCache(tmp_path / "a.codes", networks[1]) as kept:
        lesson = kept.encode(clips / "000002.mp4", "cpu")
        windows = Windows(kept, features)
        windows.encode(lesson)
        whole, sound = features.windows(kept.read(lesson)[1]), kept.read(lesson)[1]
        assert windows.read(lesson).shape == (FRAMES, 29, 16)
        np.testing.assert_allclose(windows.read(lesson), whole[:FRAMES], rtol=1e-3, atol=1e-3 * np.abs(whole).max())
        settings = {"frames": 6, "augment": False}
        for seed in range(5):
            chunk = train_audio2latent._TrainingWindow(lesson, settings, np.random.default_rng(seed))
            first = round(chunk.times[0])
            np.testing.assert_array_equal(chunk.read(kept, windows)[0], windows.read(lesson)[first : first + 6])
            plain = Windows(kept, Mfcc())
            heard = chunk.read(kept, plain)[0]  # of the sound from a little before
            assert np.corrcoef(heard.ravel(), mfcc.mfcc_windows(sound)[first : first + 6].ravel())[0, 1] > 0.9


def test_a_chunk_longer_than_its_clip_is_filled_up(clips, networks, tmp_path):
    with LatentCache(tmp_path / "a.codes", networks[1]) as kept:
        lesson = kept.encode(clips / "000002.mp4", "cpu")
        for augment in (False, True):
            chunk = train_audio2latent._TrainingWindow(
                lesson, {"frames": 14, "augment": augment}, np.random.default_rng(0)
            )
            windows, identity, target, there = chunk.read(kept, Windows(kept, Mfcc()))
            assert windows.shape == (14, 12, 28) and target.shape == (14, L, 512) and identity.shape == (L, 512)
            assert there[0] and not there[-1] and not windows[-1].any()


def test_an_identity_is_not_among_the_predicted_frames():
    lesson = EncodedClip("clip", "folder", "voice", "", 20, None)
    latents, seen = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((1, L, 512), np.float32), set()
    for seed in range(200):
        chunk = train_audio2latent._TrainingWindow(
            lesson, {"frames": 8, "augment": seed % 2 == 0}, np.random.default_rng(seed)
        )
        frame = chunk._identity(latents)[0, 0]
        assert np.abs(chunk.times - frame).min() > 0.4
        seen.add(frame)
    assert seen == set(range(20))


def test_features_that_do_not_fit_the_model_are_refused(clips, networks, tmp_path):
    with pytest.raises(
        TalkheadError, match=r"features: windows of steps are \(29, 16\), this speech model takes \(12, 28\)"
    ):
        run(clips, networks, tmp_path / "a.pt", 1, features=Steps())


def test_another_networks_features_do_not_resume(clips, networks, tmp_path):
    other = Steps()
    run(clips, networks, tmp_path / "a.pt", 1, sizes={"window_shape": (29, 16)}, features=other)
    other.identity = {"name": "steps", "network": "4567"}
    with pytest.raises(TalkheadError, match="was trained with features.network=0123, now 4567"):
        run(clips, networks, tmp_path / "a.pt", 2, sizes={"window_shape": (29, 16)}, features=other)


def test_nothing_to_learn_from_is_refused(clips, networks, tmp_path):
    with pytest.raises(TalkheadError, match="weights: all loss terms are off"):
        run(clips, networks, tmp_path / "a.pt", 1, "first", image_frames=0)


def test_a_file_that_holds_no_codes_is_named(clips, networks, tmp_path):
    (tmp_path / "a.codes").write_bytes(b"x" * 5000)
    with pytest.raises(TalkheadError, match="a.codes: cannot cache latents"):
        run(clips, networks, tmp_path / "a.pt", 1)


def test_a_cache_that_another_process_writes_is_waited_for(networks, tmp_path):
    _, encoder = networks
    with LatentCache(tmp_path / "a.codes", encoder) as cache:
        assert cache.file.execute("pragma busy_timeout").fetchone() == (60_000,)  # milliseconds


def lessons(*speakers):
    return [EncodedClip(f"clip{k}", f"folder{k // 2}", speaker, "", 5, None) for k, speaker in enumerate(speakers)]


def test_held_out_speakers_are_not_trained_on():
    rest, held = split(lessons(*"aabbccdd"), 2, seed=0)
    assert len(held) == 4 and not {x.speaker for x in rest} & {x.speaker for x in held}
    assert split(lessons(*"aabbccdd"), 2, seed=0) == (rest, held)
    rest, held = split(lessons(*"aab"), ["b", "clip0"], seed=0)
    assert [x.name for x in held] == ["clip0", "clip2"] and [x.name for x in rest] == ["clip1"]
    rest, held = split(lessons(*"aabb"), ["folder1"], seed=0)
    assert [x.name for x in held] == ["clip2", "clip3"]


@pytest.mark.parametrize(
    "hold_out, message",
    [
        (2, "would leave no training clips"),
        (["c"], "no speaker, clip or folder is called c"),
        (["a", "b"], "no training clips are left"),
    ],
)
def test_holding_out_too_much_is_refused(hold_out, message):
    with pytest.raises(TalkheadError, match=message):
        split(lessons("a", "b"), hold_out, seed=0)


def test_nothing_to_hold_out_trains_without_validation(clips, networks, tmp_path):
    records = run(clips, networks, tmp_path / "a.pt", 2, hold_out=0, image_frames=0, augment=False)
    assert "val_error" not in records[-1] and "image" not in records[-1]


def test_networks_of_other_layers_are_refused(clips, networks, tmp_path):
    with pytest.raises(TalkheadError, match="layers: generator 6, encoder 6, speech model 8"):
        next(train([clips], *networks, tmp_path / "a.pt", SecondModel(8, **TOY), steps=1))


def test_a_folder_without_clips_is_refused(networks, tmp_path):
    with pytest.raises(TalkheadError, match="no clips"):
        run(tmp_path, networks, tmp_path / "a.pt", 1)


WIDE = {
    "first": {"channels": (8, 8, 16, 16), "lstm": 32, "identity_width": 8, "decoder": 32},
    "second": {
        "channels": (8, 8, 16, 16, 16),
        "hidden": 64,
        "embedding": 32,
        "lstm": 32,
        "decoder": 64,
        "components": 4,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_hears_the_sound(networks, tmp_path, kind):
    """Loud is bright in these clips: an unheard voice must move an unseen face the right way. It takes many faces to
    know that brightness is what they share: from four, what is learnt hangs on the start, and so on the machine's
    rounding."""
    (tmp_path / "clips").mkdir()
    for k in range(16):
        write_clip(tmp_path / "clips", f"{k:06d}", f"voice{k // 2}", k)
    torch.manual_seed(0)
    network, toy = KINDS[kind]
    records = list(
        train(
            [tmp_path / "clips"],
            *networks,
            tmp_path / "a.pt",
            network(L, **(toy | WIDE[kind])),
            steps=150,
            batch=8,
            frames=10,
            lr=2e-3,
            latent_weight=250.0,
            image_frames=0,
            mouth_weight=1.0,
            augment=False,
            identity_noise=0.3,
            hold_out=["voice2"],
            validate_every=150,
            ema_decay=0.9,
        )
    )
    assert records[-1]["val_correlation"] > 0.85 and records[-1]["val_error"] < 0.5


def test_the_mouth_is_read_from_tracks_or_the_widest_motion():
    rng = np.random.default_rng(0)
    motion, opening = rng.standard_normal((500, 3)) * [3, 1, 0.1], rng.standard_normal(500)
    motion[:, 1] += opening
    tracked, moments = train_audio2latent._RunningMoments(), train_audio2latent._RunningMoments()
    tracked.add(np.column_stack([motion, opening]))
    moments.add(motion)
    reading = train_audio2latent._regress_opening(tracked, moments.std())
    fitted = np.linalg.lstsq(motion / moments.std(), opening / np.sqrt(np.mean(opening**2)), rcond=None)[0]
    np.testing.assert_allclose(reading, fitted, atol=0.01)
    widest = motion / moments.std() @ train_audio2latent._first_component(moments)
    assert abs(np.corrcoef(widest, motion[:, 0])[0, 1]) > 0.99 and widest.std() == pytest.approx(1, abs=0.02)


def test_latent_loss_is_the_mean_squared_error():
    basis, wanted = toy_model().basis, torch.randn(7, L, 512)
    predicted = torch.randn(7, 4)
    loss = train_audio2latent._Trainer._latent_loss(predicted, basis.project(wanted, centre=False), wanted)
    torch.testing.assert_close(loss, F.mse_loss(basis.expand(predicted), wanted), rtol=1e-4, atol=0)


def test_codes_between_frames_are_on_the_line():
    codes = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    np.testing.assert_allclose(
        train_audio2latent._interpolated(codes, np.array([-1, 0, 0.25, 2.5, 3, 9]))[:, 0, 0], [0, 0, 0.25, 2.5, 3, 3]
    )
