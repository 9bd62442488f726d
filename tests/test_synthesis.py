"""Latents become frames one by one as they come, and a face and a voice become latents."""

import inspect
import re
from itertools import islice

import numpy as np
import pytest
import torch

import talkhead
import toys
from talkhead import metrics, synthesis
from talkhead.errors import TalkheadError
from talkhead.mfcc import mfcc_windows


@pytest.fixture(scope="module")
def networks():
    return toys.pair(encoder_seed=1, std=0.3)


@pytest.fixture(scope="module")
def generator(networks):
    return networks[0].eval()


@pytest.fixture(scope="module")
def encoder(networks):
    return networks[1].eval()


@pytest.fixture(scope="module")
def audio2latent(generator):
    torch.manual_seed(2)
    return toys.second_model(generator.num_ws).eval()


@pytest.fixture
def latents(generator):
    return np.random.default_rng(0).normal(size=(5, generator.num_ws, 512)).astype(np.float32)


def test_frames_are_what_the_generator_draws(generator, latents):
    frames = np.stack(list(synthesis.synthesize(generator, latents)))
    with torch.no_grad():
        images = generator.synthesis(torch.from_numpy(latents)).numpy()
    by_hand = np.clip(np.rint((images.transpose(0, 2, 3, 1) + 1) * 127.5), 0, 255)
    assert frames.dtype == np.uint8 and frames.shape == (5, 16, 16, 3)
    assert np.abs(frames - by_hand).max() <= 1


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_batches_do_not_change_the_picture(generator, latents, batch):
    frames = np.stack(list(synthesis.synthesize(generator, latents, batch=batch))).astype(int)
    alone = np.concatenate([list(synthesis.synthesize(generator, latents[i : i + 1])) for i in range(5)])
    assert np.abs(frames - alone).max() <= 1


@pytest.mark.parametrize("precision, least", [("bfloat16", 30), ("float16", 50)])
def test_halved_precision_draws_nearly_the_same(generator, latents, precision, least):
    whole, half = (
        np.stack(list(synthesis.synthesize(generator, latents, precision=name))) for name in ("float32", precision)
    )
    assert metrics.psnr(whole, half) > least
    assert not np.array_equal(whole, half)


def test_unknown_precision_is_refused(generator, latents):
    with pytest.raises(TalkheadError, match="precision 'int8': unknown; take float32, bfloat16 or float16"):
        next(synthesis.synthesize(generator, latents, precision="int8"))


def test_latents_are_read_no_further_than_the_next_batch(generator, latents):
    read = []

    def source():
        for index, latent in enumerate(latents):
            read.append(index)
            yield latent

    next(synthesis.synthesize(generator, source(), batch=2))
    assert read == [0, 1, 2, 3]


def test_live_latents_are_drawn_as_they_come_and_late_ones_together(generator, latents, monkeypatch):
    read, clock = [], iter(range(1000))

    def source():
        for index, latent in enumerate([*latents, *latents, *latents]):
            read.append(index)
            yield latent

    monkeypatch.setattr(synthesis.time, "monotonic", lambda: next(clock))  # each takes a second to come
    frames = synthesis.synthesize(generator, source(), batch=1)
    first = [next(frames), next(frames)]
    assert read == [0, 1]
    monkeypatch.setattr(synthesis.time, "monotonic", lambda: 0.0)  # and now they are there
    rest = list(frames)
    assert read == list(range(3 * len(latents)))
    whole = list(synthesis.synthesize(generator, source(), batch=4))
    assert np.abs(np.stack([*first, *rest]).astype(int) - np.stack(whole)).max() <= 1
    read.clear()
    next(synthesis.synthesize(generator, source(), batch=1))
    assert read == list(range(min(synthesis.CATCH_UP, 3 * len(latents))))


def test_latents_of_another_generator_are_refused(generator, latents):
    with pytest.raises(TalkheadError, match=r"frame 0: shape \(4, 512\).*takes \(6, 512\)"):
        list(synthesis.synthesize(generator, latents[:, :4]))


def test_a_frame_for_every_40_ms(generator, encoder, audio2latent):
    face = np.full((20, 20, 3), 90, np.uint8)
    speech = np.random.default_rng(0).normal(size=16000 + 1).astype(np.float32) * 0.1
    frames = list(synthesis.generate(generator, encoder, audio2latent, face, speech, detail=False))
    assert len(frames) == 26
    assert all(frame.shape == (16, 16, 3) and frame.dtype == np.uint8 for frame in frames)


def test_with_detail_frames_are_of_the_photo_s_size(generator, encoder, audio2latent):
    import talkhead

    face = talkhead.read_image("examples/face.png")
    speech = np.random.default_rng(0).normal(size=3200).astype(np.float32) * 0.1
    frames = list(synthesis.generate(generator, encoder, audio2latent, face, speech))
    assert [frame.shape for frame in frames] == 5 * [face.shape]
    code = synthesis.encode_identity(encoder, face)
    assert [frame.shape for frame in synthesis.generate(generator, None, audio2latent, code, speech)] == 5 * [
        (16, 16, 3)
    ]


def test_a_photo_blinks_when_the_path_does(generator, encoder, audio2latent):
    import talkhead
    from talkhead import blinking

    face, speech = talkhead.read_image("examples/face.png"), np.zeros(16000 * 2, np.float32)
    lids = list(islice(blinking.blinks(60, 3), 50))
    frames = list(
        synthesis.generate(
            generator,
            encoder,
            audio2latent,
            face,
            speech,
            blink=60,
            seed=3,
            blink_latent=np.zeros((6, 512), np.float32),
        )
    )
    eyes = [np.abs(frame[180:280].astype(int) - face[180:280]).mean() for frame in frames]
    assert max(lids) > 0.9 and np.corrcoef(lids, eyes)[0, 1] > 0.9


def test_path_starts_at_the_mean_code_of_the_pictures(encoder, audio2latent):
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    speech = rng.normal(size=4000).astype(np.float32) * 0.1
    with torch.no_grad():
        codes = encoder(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1)
    path = np.stack(list(synthesis.speech_to_latents(encoder, audio2latent, faces, speech)))
    origin = codes.mean(0)
    with torch.no_grad():
        moved, _ = audio2latent(torch.from_numpy(np.array(mfcc_windows(speech)))[None], origin[None])
    assert path.dtype == np.float32
    np.testing.assert_allclose(path, (origin + moved[0]).numpy(), atol=1e-4)
    twice = np.stack(list(synthesis.speech_to_latents(encoder, audio2latent, faces, speech, gain=2.0)))
    np.testing.assert_allclose(twice - origin.numpy(), 2 * (path - origin.numpy()), atol=1e-4)
    assert np.abs(path - origin.numpy()).max() > 0.001


def test_noise_moves_the_mean_code_of_the_pictures(encoder, generator):
    from talkhead.video_gan import motion

    faces = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    torch.manual_seed(0)
    mover = toys.motion_model(generator.num_ws)
    with torch.no_grad():
        origin = encoder(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1).mean(0).numpy()
    path = np.stack(list(synthesis.noise_to_latents(encoder, mover, faces, 7, 5)))
    np.testing.assert_allclose(path, origin + np.stack(list(motion(mover, origin, 7, 5))), atol=1e-4)
    np.testing.assert_allclose(
        np.stack(list(synthesis.noise_to_latents(encoder, mover, faces, [(7, 5)], batch=2, gain=2.0))),
        2 * path - origin,
        atol=1e-4,
    )


def test_batch_does_not_change_the_path(encoder, audio2latent):
    rng = np.random.default_rng(0)
    face = rng.integers(0, 256, (16, 16, 3), np.uint8)
    speech = rng.normal(size=16000).astype(np.float32) * 0.1
    one, many = (
        np.stack(list(synthesis.speech_to_latents(encoder, audio2latent, face, speech, batch))) for batch in (1, 64)
    )
    np.testing.assert_allclose(one, many, atol=1e-4)


@pytest.mark.parametrize("block", [37, 640, 5000, 10**6])
def test_path_of_a_stream_is_that_of_the_whole(encoder, audio2latent, block):
    rng = np.random.default_rng(0)
    face = rng.integers(0, 256, (16, 16, 3), np.uint8)
    speech = rng.normal(size=16001).astype(np.float32) * 0.1
    whole = np.stack(list(synthesis.speech_to_latents(encoder, audio2latent, face, speech)))
    blocks = (speech[first : first + block] for first in range(0, len(speech), block))
    streamed = np.stack(list(synthesis.speech_to_latents(encoder, audio2latent, face, blocks, batch=1)))
    np.testing.assert_allclose(streamed, whole, atol=1e-5)


def test_sound_is_heard_no_further_than_the_next_frame_needs(encoder, audio2latent):
    heard = []

    def microphone():
        for _ in range(200):
            heard.append(160)
            yield np.zeros(160, np.float32)

    path = synthesis.speech_to_latents(encoder, audio2latent, np.zeros((16, 16, 3), np.uint8), microphone(), batch=1)
    for frame in range(20):
        next(path)
        assert sum(heard) <= 640 * (frame + 1) + 2160 + 160  # 135 ms after the frame's end, and a block


def test_code_stands_for_the_picture_it_was_made_from(encoder, audio2latent):
    face = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    speech = np.random.default_rng(1).normal(size=4000).astype(np.float32) * 0.1
    code = synthesis.encode_identity(encoder, face)
    assert code.dtype == np.float32 and code.shape == (encoder.num_ws, 512)
    np.testing.assert_array_equal(
        list(synthesis.speech_to_latents(None, audio2latent, code, speech)),
        list(synthesis.speech_to_latents(encoder, audio2latent, face, speech)),
    )


def still(encoder):
    return np.random.default_rng(0).normal(size=(encoder.num_ws, 512)).astype(np.float32)


def test_the_mouth_rests_in_silence_as_the_model_rests(encoder, audio2latent):
    """After speech, and from the first frame on; what the face does in silence is the model's own."""
    code, silence = still(encoder), np.zeros(3 * 16000, np.float32)
    *_, rest = synthesis.speech_to_latents(None, audio2latent, code, silence)
    path = np.stack(list(synthesis.speech_to_latents(None, audio2latent, code, silence, gate=True)))
    np.testing.assert_allclose(path, np.broadcast_to(rest, path.shape), atol=1e-3)


def test_the_gate_lets_speech_pass(encoder, audio2latent, monkeypatch):
    """Where a voice is heard, the path is the model's; where none is, it rests."""
    code, speech = still(encoder), np.random.default_rng(1).normal(size=32000).astype(np.float32) * 0.1
    free = np.stack(list(synthesis.speech_to_latents(None, audio2latent, code, speech)))
    for likely, wanted in ((1.0, free), (0.0, None)):
        monkeypatch.setattr(
            synthesis.vad.VoiceActivityDetector,
            "stream",
            lambda self, blocks, likely=likely: (likely for _ in range(50)),
        )
        path = np.stack(list(synthesis.speech_to_latents(None, audio2latent, code, speech, gate=True)))
        if wanted is None:
            assert (path == path[0]).all() and np.abs(path - free).max() > 1e-4
        else:
            np.testing.assert_allclose(path[8:], wanted[8:], atol=1e-4)


@pytest.mark.parametrize("gate", [True, False])
def test_layers_that_are_not_named_stay(encoder, audio2latent, gate):
    code, speech = still(encoder), np.random.default_rng(1).normal(size=8000).astype(np.float32) * 0.1
    whole, part = (
        np.stack(list(synthesis.speech_to_latents(None, audio2latent, code, speech, layers=layers, gate=gate)))
        for layers in (None, (2, 3))
    )
    np.testing.assert_array_equal(part[:, 2:4], whole[:, 2:4])
    assert (part[:, :2] == code[:2]).all() and (part[:, 4:] == code[4:]).all() and not (whole[:, 4:] == code[4:]).all()


def test_blinks_are_added_to_what_speech_moves(encoder, audio2latent):
    code, speech = still(encoder), np.random.default_rng(1).normal(size=160000).astype(np.float32) * 0.1
    latent = np.random.default_rng(2).normal(size=code.shape).astype(np.float32)
    awake, blinking = (
        np.stack(
            list(synthesis.speech_to_latents(None, audio2latent, code, speech, blink=rate, blink_latent=latent, seed=3))
        )
        for rate in (0, 40)
    )
    lids = np.array([lid for lid, _ in zip(synthesis.blinking.blinks(40, 3), awake)], np.float32)
    assert (lids > 0.5).sum() > 4
    np.testing.assert_allclose(blinking, awake + lids[:, None, None] * latent, atol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [lambda x: np.clip(20 * x, -1, 1), lambda x: 1e-5 * x, lambda x: x + 0.5, lambda x: 0 * x],
    ids=["clipped", "quiet", "offset", "none"],
)
def test_bad_sound_moves_the_face_within_bounds(encoder, audio2latent, spoil):
    face = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    speech = (np.random.default_rng(1).normal(size=16000) * np.sin(np.arange(16000) / 800) ** 2 * 0.1).astype(
        np.float32
    )
    good, bad = (
        np.stack(list(synthesis.speech_to_latents(encoder, audio2latent, face, sound)))
        - synthesis.encode_identity(encoder, face)
        for sound in (speech, spoil(speech))
    )
    assert bad.shape == good.shape and np.isfinite(bad).all()
    assert np.abs(bad).max() <= 3 * np.abs(good).max()


def test_label_marks_a_corner_and_nothing_else():
    frames = np.random.default_rng(0).integers(60, 200, (2, 64, 64, 3), np.uint8)
    marked = list(synthesis.label(iter(frames)))
    for frame, before in zip(marked, frames):
        changed = (frame != before).any(-1)
        assert changed[-8:, :48].mean() > 0.9
        assert not changed[:32].any() and not changed[:, 48:].any()
    assert marked[0].min() < 40, "a dark plate"
    assert marked[0].max() > 220, "and white letters on it"


def test_label_is_two_fifths_of_a_large_frame():
    (frame,) = synthesis.label([np.full((256, 256, 3), 128, np.uint8)])
    changed = (frame != 128).any(-1)
    assert changed[-8:, :102].mean() > 0.9 and not changed[:, 102:].any()


def test_label_of_a_frame_smaller_than_a_letter():
    (frame,) = synthesis.label([np.zeros((2, 2, 3), np.uint8)])
    assert frame.shape == (2, 2, 3)


def test_what_generate_says_of_its_arguments_is_all_and_public():
    """It hands arguments on to a function that `import talkhead` does not offer, so its own docstring tells them."""
    told, handed_on = inspect.getdoc(talkhead.generate), inspect.signature(synthesis.speech_to_latents).parameters
    assert set(re.findall(r"`(\w+)`", told)) <= set(dir(talkhead))
    assert [name for name in handed_on if not re.search(rf"\b{name}\b", told)] == []
