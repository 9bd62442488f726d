"""Who speaks is heard as soon as MFCC is, a mouth comes to rest, and eyes blink as often as they are told to."""

from itertools import islice

import numpy as np
import pytest

from talkhead import audio_files, blinking, mfcc, vad
from talkhead.audio_features import Mfcc


def syllables(seconds, seed=0):
    """Noise in bursts, four a second."""
    time = np.arange(round(seconds * 16000)) / 16000
    return (0.1 * np.random.default_rng(seed).normal(size=len(time)) * np.sin(2 * np.pi * 2 * time) ** 2).astype(
        np.float32
    )


def pieces(audio, size):
    return (audio[start : start + size] for start in range(0, len(audio), size))


# Whether anybody speaks -----------------------------------------------------------------------------------------------


def test_what_a_voice_takes_equals_a_slow_loop():
    """Bands of two filters each.

    Of the second before, means of eight steps, and of the frame's window, means of two.
    """
    audio = syllables(2)
    levels = np.concatenate(list(mfcc.log_mel([audio])))
    heard = vad.vad_features(audio)
    assert heard.shape == (50, 13 * (12 + 14)) and heard.dtype == np.float32

    def mean(band, first, count):
        return np.mean(
            [
                levels[step, 2 * band : 2 * band + 2].mean() if 0 <= step < len(levels) else 0.0
                for step in range(first, first + count)
            ]
        )

    for frame in (0, 3, 30, 49):
        start = 4 * frame - 12  # of the frame's own window of MFCC
        for band in (0, 7, 12):
            row = heard[frame].reshape(13, 26)[band]
            for column in (0, 5, 11):
                assert row[column] == pytest.approx(mean(band, start - 96 + 8 * column, 8), abs=1e-5)
            for column in (0, 6, 13):
                assert row[12 + column] == pytest.approx(mean(band, start + 2 * column, 2), abs=1e-5)


def test_a_voice_by_hand():
    """One hidden number, the sum of all that is heard; the weights of its own layer make it a chance."""
    audio = syllables(0.5)
    weights = np.zeros((341, 1), np.float32)
    weights[:338], weights[338], weights[339], weights[340] = 0.01, -1.0, 2.0, 0.5
    wanted = 1 / (1 + np.exp(-(2 * np.maximum(0.01 * vad.vad_features(audio).sum(1) - 1, 0) + 0.5)))
    np.testing.assert_allclose(list(vad.VoiceActivityDetector(weights).stream([audio])), wanted, rtol=1e-4)


@pytest.mark.parametrize("block", [37, 640, 7000])
def test_a_stream_is_heard_as_the_whole(block):
    audio = syllables(2.013)
    voice = vad.VoiceActivityDetector()
    whole = list(voice.stream([audio]))
    assert len(whole) == mfcc.num_frames(audio)
    np.testing.assert_allclose(list(voice.stream(pieces(audio, block))), whole, atol=1e-5)


def test_a_voice_is_heard_no_later_than_mfcc():
    audio, taken = syllables(2), []

    def blocks():
        for piece in pieces(audio, 160):
            taken.append(len(piece))
            yield piece

    heard = []
    for stream in (vad.VoiceActivityDetector().stream(blocks()), Mfcc().stream(blocks())):
        taken.clear()
        heard.append([next(stream) is not None and sum(taken) for _ in range(40)])
    assert heard[0] == heard[1]


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(32000, np.float32),
        np.full(32000, 0.3, np.float32),
        np.random.default_rng(0).normal(size=32000).astype(np.float32) * 0.1,
        0.2 * np.sin(np.arange(32000) * 0.1).astype(np.float32),
    ],
    ids=["silence", "offset", "noise", "tone"],
)
def test_nobody_speaks(sound):
    assert np.mean(list(vad.VoiceActivityDetector().stream([sound]))) < 0.2


def test_real_words_are_heard(shared_data):
    """A recording of GRID, clean and in noise 20 dB under it: within its words and without."""
    audio = audio_files.read_audio(shared_data / "grid_s1" / "video" / "bbaf2n.mpg")
    spoken = slice(26, 52)  # frames, from bbaf2n.align: 0.95 to 2.12 s, less the edges
    hiss = np.random.default_rng(0).normal(size=len(audio)) * np.std(audio[16000:32000]) / 10
    for sound in (audio, audio + hiss):
        likely = np.array(list(vad.VoiceActivityDetector().stream([sound])))
        assert np.mean(likely[spoken] > 0.5) > 0.8 and np.mean(np.delete(likely, np.r_[20:58]) > 0.5) < 0.1


# The mouth ------------------------------------------------------------------------------------------------------------


def test_a_mouth_comes_to_rest_and_opens_again():
    rest, moved = np.float32([[1.0, 2.0]]), np.float32([[3.0, 2.0]])
    speaking = [0.0] * 3 + [1.0] * 8 + [0.0] * 12
    path = np.array(list(vad.gate_mouth([moved] * 23, speaking, rest)))[:, 0]
    np.testing.assert_array_equal(path[:3, 0], 1)
    part = (path[:, 0] - 1) / 2  # of the way
    assert part[3] == pytest.approx(vad.OPENING) and part[4] == pytest.approx(1 - (1 - vad.OPENING) ** 2)
    assert part[10] > 0.99 and (np.diff(part[10:]) < 0).all() and part[-1] < 0.01
    assert (path[:, 1] == 2).all()


def test_a_doubt_opens_the_mouth():
    moved, rest = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    *_, last = vad.gate_mouth([moved] * 50, [0.5] * 50, rest)
    assert last == pytest.approx(vad.TRUST / (1 + vad.TRUST), abs=1e-3)


# Eyes -----------------------------------------------------------------------------------------------------------------


def falls(lids):
    """Frames in which lids begin to fall."""
    lids = np.concatenate([[0, 0], lids])
    return np.flatnonzero((np.diff(lids)[1:] > 0) & (np.diff(lids)[:-1] <= 0))


@pytest.mark.parametrize("rate", [6, 17, 40])
def test_eyes_blink_as_often_as_they_are_told_to(rate):
    minutes = 300
    lids = np.array(list(islice(blinking.blinks(rate), minutes * 60 * 25)))
    assert lids.min() == 0 and 0.9 < lids.max() <= 1
    waits = np.diff(falls(lids)) / 25
    # Two that fall within a frame or two of each other are seen as one.
    assert len(waits) / minutes == pytest.approx(rate, rel=0.15)
    share = blinking.DOUBLE_PROBABILITY + (1 - blinking.DOUBLE_PROBABILITY) * (
        1 - np.exp(-0.6 * (1 - blinking.DOUBLE_PROBABILITY) * rate / 60)
    )  # some follow at once by chance
    assert np.mean(waits < 0.6) == pytest.approx(share, abs=0.05)


def test_a_blink_is_drawn_as_it_was_measured(monkeypatch):
    """What it takes from a tenth to the top, and back to a tenth; seen between frames as by a faster camera."""
    monkeypatch.setattr(vad.mfcc, "FPS", 1000)
    monkeypatch.setattr(blinking, "DOUBLE_PROBABILITY", 0.0)
    lids = np.array(list(islice(blinking.blinks(6), 200_000)))
    edges = np.flatnonzero(np.diff((lids > 0.1).astype(int))).reshape(-1, 2)
    tops = [first + np.argmax(lids[first : last + 1]) for first, last in edges]
    assert np.median(tops - edges[:, 0]) == pytest.approx(1000 * 0.804 * blinking.CLOSE[0], rel=0.3)
    assert np.median(edges[:, 1] - tops) == pytest.approx(1000 * 0.684 * blinking.OPEN[0], rel=0.3)


def test_blinks_hang_on_the_seed():
    first, again, other = ([*islice(blinking.blinks(17, seed), 2000)] for seed in (1, 1, 2))
    assert first == again and first != other


def test_who_is_not_to_blink_does_not():
    assert not any(islice(blinking.blinks(0), 1000))
