"""Speech features: against python_speech_features, slow loops, and what real recordings do to them."""

import tracemalloc

import numpy as np
import pytest

from conftest import example
from talkhead import mfcc
from talkhead.audio_features import Mfcc
from talkhead.errors import TalkheadError


def voice(seconds, seed=0):
    """Something like speech at an ordinary level: syllables of buzzing and hissing, with pauses. float32 (N,)"""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * mfcc.SAMPLE_RATE)) / mfcc.SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 30))
    syllables = np.maximum(np.sin(2 * np.pi * 3.1 * time), 0)
    return (0.2 * syllables * (buzz + 0.3 * rng.standard_normal(len(time)))).astype(np.float32)


@pytest.mark.parametrize("length", [1, 399, 400, 401, 560, 561, 5000, 170_001])
def test_plain_features_are_those_of_python_speech_features(length):
    reference = pytest.importorskip("python_speech_features")
    audio = np.random.default_rng(length).standard_normal(length) * 0.1
    ours, theirs = mfcc.mfcc(audio, floor=None), reference.mfcc(audio, mfcc.SAMPLE_RATE)[:, 1:]
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_floor_leaves_speech_itself_alone():
    audio = voice(3) + 1e-4 * np.random.default_rng(1).standard_normal(48000)
    loud = np.abs(audio).max() > 0.02
    assert loud
    plain, floored = mfcc.mfcc(audio, floor=None), mfcc.mfcc(audio, floor=-90)
    assert np.corrcoef(plain.ravel(), floored.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("samples, frames", [(1, 1), (640, 1), (641, 2), (16000, 25), (47648, 75), (48001, 76)])
def test_every_frame_that_has_begun_counts(samples, frames):
    assert mfcc.num_frames(np.zeros(samples)) == frames
    assert mfcc.mfcc_windows(np.zeros(samples, np.float32)).shape == (frames, 12, 28)


def test_windows_equal_a_slow_loop():
    features = np.random.default_rng(0).standard_normal((41, 12)).astype(np.float32)
    made = mfcc.windows(features, 11)
    assert made.dtype == np.float32 and made.shape == (11, 12, 28)
    for frame in range(11):
        for column in range(28):
            step = 4 * frame - 12 + column
            wanted = features[step] if 0 <= step < 41 else np.zeros(12)
            np.testing.assert_array_equal(made[frame, :, column], wanted)


@pytest.mark.parametrize("length", [1, 399, 400, 401, 561, 6400, 40001])
@pytest.mark.parametrize("block", [37, 640, 16000])
def test_windows_of_a_stream_are_those_of_the_whole(length, block):
    rng = np.random.default_rng(length)
    audio = (rng.normal(size=length) * np.sin(np.arange(length) / 5000) ** 2).astype(np.float32)
    blocks = (audio[start : start + block] for start in range(0, length, block))
    streamed = list(Mfcc().stream(blocks))
    np.testing.assert_allclose(streamed, mfcc.mfcc_windows(audio), atol=1e-5)
    assert streamed[0].shape == Mfcc.shape and streamed[0].dtype == np.float32


def test_windows_come_135_ms_after_their_frame():
    given = []

    def live():
        for start in range(0, 16000, 160):
            given.append(start + 160)
            yield np.zeros(160, np.float32)

    heard = [given[-1] / 16 for _ in Mfcc().stream(live())]  # ms of sound that each window had waited for
    assert heard[:20] == [pytest.approx(40 * (index + 1) + 135, abs=10) for index in range(20)]


def test_slid_windows_may_begin_before_their_frame():
    steps = np.arange(40, dtype=np.float32).reshape(20, 2)
    wanted = mfcc.windows(steps, 9, size=8, before=3, per_frame=2)
    np.testing.assert_array_equal(list(mfcc.slide(np.split(steps, [1, 2, 9]), lambda: 9, 8, 3, 2)), wanted)
    assert wanted[2, 0].tolist() == [2, 4, 6, 8, 10, 12, 14, 16]


@pytest.mark.parametrize("block", [700, 170_001])
def test_cepstra_are_those_of_python_speech_features_for_16_bits(block):
    reference = pytest.importorskip("python_speech_features")
    audio = np.random.default_rng(0).integers(-9000, 9000, 33_333).astype(np.int16)
    ours = np.concatenate(
        list(mfcc.mfcc_26(audio[first : first + block] / 32768 for first in range(0, len(audio), block)))
    )
    theirs = reference.mfcc(audio, mfcc.SAMPLE_RATE, numcep=26)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.isfinite(np.concatenate(list(mfcc.mfcc_26([np.zeros(3000)])))).all()


def test_loudness_is_the_log_of_mel_energies_above_the_floor():
    """Against the definition, with the level of speech that is louder than before all the time."""
    reference = pytest.importorskip("python_speech_features")
    time = np.arange(16000) / 16000
    audio = np.exp(4 * time) * np.random.default_rng(0).standard_normal(16000) / 60
    energies, _ = reference.fbank(audio, 16000)
    heard = np.concatenate(list(mfcc.log_mel([audio[:5000], audio[5000:]])))
    mean = energies.mean(1)
    level = np.array([max(mean[max(k - 4, 0) : k + 1].sum() / 5, 0) for k in range(len(mean))])
    late = level > 0.02  # louder than the level which is assumed at first
    expected = np.log1p(energies / (1e-4 * np.maximum.accumulate(level))[:, None])
    assert late.sum() > 20 and heard.dtype == np.float32 and heard.shape == expected.shape
    np.testing.assert_allclose(
        heard[late, 4:], expected[late, 4:], atol=0.1
    )  # below, the offset is taken out of what we hear
    assert not np.concatenate(list(mfcc.log_mel([np.zeros(3000)]))).any()


def test_an_echo_follows_what_comes_straight():
    click = np.zeros(16000)
    click[1000] = 0.5
    reverberate = example("train_speech").reverberate
    for seed in range(20):
        heard = reverberate(click, np.random.default_rng(seed))
        np.testing.assert_array_equal(heard, reverberate(click, np.random.default_rng(seed)))
        assert len(heard) == len(click) and heard[1000] == pytest.approx(0.5)
        assert np.abs(heard[:1000]).max() < 1e-9 and np.abs(heard[1001:1030]).max() < 1e-9
        tail = heard[1001:]
        assert 0.02 < np.linalg.norm(tail) / 0.5 <= 1 + 1e-6
        assert np.linalg.norm(tail[:5000]) > 5 * np.linalg.norm(tail[-2000:])


def test_windows_are_centred_on_their_frame():
    audio = np.zeros(mfcc.SAMPLE_RATE, np.float32)
    audio[12 * 640 + 320 :][:40] = 0.5  # in the middle of frame 12
    energy = np.abs(mfcc.mfcc_windows(audio)).sum(1)[12]
    heard = np.flatnonzero(energy > 1)
    assert abs(heard.mean() - 13.5) <= 2


def test_windows_do_not_copy_the_features_many_times():
    made = mfcc.windows(np.zeros((40_000, 12), np.float32), 10_000)
    assert made.base is not None and made.shape == (10_000, 12, 28)


def test_silence_is_zero_and_finite():
    for quiet in (np.zeros(8000), np.full(8000, 0.3), 1e-6 * np.random.default_rng(0).standard_normal(8000)):
        made = mfcc.mfcc(quiet.astype(np.float32))[:-3]  # the last steps see the offset end
        assert np.isfinite(made).all() and np.abs(made).max() < 0.2


def test_not_a_number_counts_as_silence():
    audio = voice(1)
    broken = audio.copy()
    broken[2000:2100] = np.nan
    broken[5000] = np.inf
    audio[2000:2100], audio[5000] = 0, 1
    np.testing.assert_array_equal(mfcc.mfcc(broken), mfcc.mfcc(audio))


def test_a_constant_offset_is_not_heard():
    audio = voice(2)
    np.testing.assert_allclose(mfcc.mfcc(audio + 0.2)[:-3], mfcc.mfcc(audio)[:-3], atol=0.5)


@pytest.mark.parametrize("gain", [0.25, 4.0])
def test_loudness_does_not_matter(gain):
    audio = voice(8)
    settled = slice(600, None)  # by then the level is that of the recording, not the one assumed at first
    difference = mfcc.mfcc(gain * audio)[settled] - mfcc.mfcc(audio)[settled]
    assert np.abs(difference).mean() < 0.05 * np.abs(mfcc.mfcc(audio)[settled]).mean()


def test_pauses_sound_alike_with_and_without_hiss():
    audio = voice(4)
    hiss = audio + 1e-4 * np.random.default_rng(3).standard_normal(len(audio)).astype(np.float32)
    pause = slice(115, 125)  # in the pause after the fourth syllable
    assert np.abs(audio[115 * 160 : 127 * 160]).max() < 1e-3
    assert np.abs(mfcc.mfcc(hiss)[pause] - mfcc.mfcc(audio)[pause]).max() < 3
    assert np.abs(mfcc.mfcc(hiss, floor=None)[pause] - mfcc.mfcc(audio, floor=None)[pause]).max() > 20


def test_a_telephone_line_changes_little():
    audio = voice(4)
    spectrum = np.fft.rfft(audio)
    spectrum[int(4000 * 4) :] = 0
    narrow = np.fft.irfft(spectrum, len(audio))
    floored = np.abs(mfcc.mfcc(narrow) - mfcc.mfcc(audio)).mean()
    assert floored < 0.7 * np.abs(mfcc.mfcc(narrow, floor=None) - mfcc.mfcc(audio, floor=None)).mean()


def test_features_do_not_depend_on_what_comes_later():
    audio = voice(13)
    whole, part = mfcc.mfcc(audio), mfcc.mfcc(audio[: 11 * 16000])
    np.testing.assert_allclose(part[:-3], whole[: len(part) - 3], rtol=1e-5, atol=1e-5)


def test_memory_does_not_grow_with_the_recording():
    def peak(seconds):
        audio = np.zeros(seconds * mfcc.SAMPLE_RATE, np.float32)
        tracemalloc.start()
        mfcc.mfcc_windows(audio)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(120) - peak(20) < 100 * 100 * 1500  # bytes: the features themselves, not the transforms


@pytest.mark.parametrize("audio", [np.zeros(0), np.zeros((100, 2))])
def test_what_is_no_recording_is_refused(audio):
    with pytest.raises(TalkheadError, match="wanted one row of samples"):
        mfcc.mfcc(audio)


def test_disturb_repeats_itself_and_keeps_the_time():
    audio = voice(1)
    once, again = (mfcc.augment_audio(audio, np.random.default_rng(5)) for _ in range(2))
    other = mfcc.augment_audio(audio, np.random.default_rng(6))
    np.testing.assert_array_equal(once, again)
    assert once.shape == audio.shape and np.isfinite(once).all() and not np.allclose(once, other)
    lag = np.argmax(np.correlate(np.abs(once), np.abs(audio[1000:-1000]), "valid")) - 1000
    assert abs(lag) < 160


def test_disturbed_silence_is_silence():
    assert np.abs(mfcc.augment_audio(np.zeros(3000), np.random.default_rng(0))).max() < 1e-9


def test_hasten_shortens_and_raises():
    tone = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)
    fast = mfcc.change_speed(tone, 1.25)
    assert len(fast) == 12800
    assert np.argmax(np.abs(np.fft.rfft(fast))) * 16000 / len(fast) == 250


def test_real_speech_is_finite_and_pauses_are_small(shared_data):
    from talkhead.audio_files import read_audio

    audio = read_audio(shared_data / "grid_s1" / "video" / "bbaf2n.mpg")
    features = np.abs(mfcc.mfcc(audio)).mean(1)
    assert np.isfinite(features).all()
    assert features[5:60].mean() < 0.5 * features[100:200].mean()  # GRID's talkers wait a second before they speak
