"""What a mouth does when it speaks: phonemes, tracks, espeak-ng, recordings."""

import json
import sys

import numpy as np
import pytest

import toys
from puppets import articulation
from puppets.articulation import measure, recorded, sentence, speak, track_from_phonemes, voices, write_phonemes
from talkhead.errors import TalkheadError
from talkhead.phonemes import closures, read_phonemes

TEXT = "My baby bought a brown paper map; please put it by the window."


def timed(labels, length=0.12, before=0.5):
    """Equally long sounds between two silences."""
    phonemes = [(0.0, before, "SIL")]
    for label in labels.split():
        phonemes.append((phonemes[-1][1], phonemes[-1][1] + length, label))
    return phonemes + [(phonemes[-1][1], phonemes[-1][1] + 0.6, "SIL")]


def frames_within(track, start, end):
    """Rows of a track whose moment, (t + 0.5) / 25 s, lies within the times."""
    clock = (np.arange(len(track)) + 0.5) / 25
    return track[(clock >= start) & (clock <= end)]


def correlation(a, b, lag):
    a, b = (a[lag:], b[: len(b) - lag]) if lag >= 0 else (a[:lag], b[-lag:])
    return np.corrcoef(a, b)[0, 1]


# --- phonemes ---


def test_closures_are_the_bilabials():
    assert closures([(0, 0.1, "P"), (0.1, 0.2, "AE1"), (0.2, 0.3, "M"), (0.3, 0.4, "F"), (0.4, 0.5, "B")]) == [
        (0, 0.1),
        (0.2, 0.3),
        (0.4, 0.5),
    ]


def test_phonemes_return_from_their_file(tmp_path):
    phonemes = [(0.0, 0.25, "SIL"), (0.25, 0.5, "AE1")]
    write_phonemes(tmp_path / "a.json", phonemes)
    assert read_phonemes(tmp_path / "a.json") == phonemes
    (tmp_path / "b.json").write_text(json.dumps({"fps": 25, "phonemes": phonemes}))
    assert read_phonemes(tmp_path / "b.json") == phonemes


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '[["a", "b", "c"]]'])
def test_a_file_without_phonemes_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(TalkheadError, match="a.json: holds no phonemes"):
        read_phonemes(tmp_path / "a.json")
    with pytest.raises(TalkheadError, match="missing.json: No such file"):
        read_phonemes(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "ipa, labels",
    [
        ("p", ["P"]),
        ("ˈeɪ", ["EY1"]),
        ("ˌɑːɹ", ["AA2", "R"]),
        ("aɪə", ["AY0", "AH0"]),
        ("tʃ", ["CH"]),
        ("", ["SIL"]),
        ("ʲ", []),
        ("əl", ["AH0", "L"]),
    ],
)
def test_ipa_becomes_arpabet(ipa, labels):
    assert articulation._labels(ipa) == labels


def test_every_sound_has_a_shape():
    written = {label for labels in articulation._IPA.values() for label in labels.split()}
    written |= {label.rstrip("012") for word in articulation.GRID_WORDS.values() for label in word}
    written |= set(articulation._SEQUENCE) - {"NSN"}
    assert written <= set(articulation._VISEMES) | set(articulation._GLIDES)


def test_sentences_repeat_by_seed_and_differ_otherwise():
    said = [sentence(np.random.default_rng(seed)) for seed in range(60)]
    assert said == [sentence(np.random.default_rng(seed)) for seed in range(60)]
    assert len(set(said)) > 55
    grid = [text for text in said if text.split()[0] in ("Bin", "Lay", "Place", "Set") and len(text.split()) == 6]
    assert 8 < len(grid) < 35
    assert all(word in articulation.GRID_WORDS for text in grid for word in text.lower().rstrip(".").split())
    assert all(text[0].isupper() and text[-1] in ".?" and "{" not in text for text in said)


# --- tracks ---


def test_a_track_is_one_row_a_frame_and_repeats():
    phonemes = timed("HH AH0 L OW1")
    track = track_from_phonemes(phonemes, 40, np.random.default_rng(3))
    assert track.shape == (40, 3) and track.dtype == np.float32
    assert np.array_equal(track, track_from_phonemes(phonemes, 40, np.random.default_rng(3)))
    assert not np.array_equal(track, track_from_phonemes(phonemes, 40, np.random.default_rng(4)))


@pytest.mark.parametrize("label", ["P", "B", "M"])
@pytest.mark.parametrize("length", [0.03, 0.06, 0.1])
def test_bilabials_shut_the_mouth_wherever_the_frames_fall(label, length):
    for offset in np.linspace(0, 0.04, 9):
        start = 0.5 + offset
        phonemes = [
            (0, 0.3, "SIL"),
            (0.3, start, "AA1"),
            (start, start + length, label),
            (start + length, start + 0.4, "AA1"),
        ]
        track = track_from_phonemes(phonemes, 30, np.random.default_rng(0))
        assert (frames_within(track, start - 0.02, start + length + 0.02)[:, 0] == 0).any()
        assert frames_within(track, start + 0.2, start + 0.3)[:, 0].min() > 0.08


def test_lips_meet_the_teeth_in_f_and_v():
    for label in "FV":
        phonemes = timed(f"AA1 {label} AA1")
        track = track_from_phonemes(phonemes, 40)
        start, end, _ = phonemes[2]
        narrow = frames_within(track, start, end)[:, 0].min()
        assert 0 < narrow < 0.035


def test_a_long_vowel_reaches_its_own_shape():
    track = track_from_phonemes([(0, 0.3, "SIL"), (0.3, 1.3, "IY2")], 33)
    assert track[20] == pytest.approx(articulation._VISEMES["IY"][:3], rel=0.03)


def test_rounded_sounds_narrow_and_spread_sounds_widen():
    widths = {
        label: frames_within(track_from_phonemes(timed(f"{label} {label}"), 40), 0.55, 0.7)[:, 1].mean()
        for label in ("UW1", "OW1", "W", "SH", "IY1", "S", "EH1")
    }
    assert all(widths[label] < -0.05 for label in ("UW1", "OW1", "W", "SH"))
    assert all(widths[label] > 0.03 for label in ("IY1", "S", "EH1"))


def test_silence_is_closed_and_quiet_speech_opens_less():
    phonemes = timed("AE1 T AE1 T", before=1.0)
    track = track_from_phonemes(phonemes, 50)
    assert np.abs(track[:20]).max() < 0.01 and np.abs(track[-3:]).max() < 0.01
    soft = track_from_phonemes(phonemes, 50, loudness=np.zeros(50))
    assert soft[:, 0].max() < 0.85 * track[:, 0].max()
    assert not track_from_phonemes([], 10).any()


def test_movement_is_smooth_and_no_shout():
    rng = np.random.default_rng(5)
    labels = [
        label + "1" if label in articulation.VOWELS else label for label in articulation._VISEMES if label != "SIL"
    ]
    tracks = [track_from_phonemes(timed(" ".join(rng.choice(labels, 30)), 0.09), 90, rng) for _ in range(10)]
    track = np.stack(tracks)
    assert track[..., 0].min() >= 0 and track[..., 0].max() < 0.28 and (track[..., 0] <= 0.20).mean() > 0.9
    assert -0.28 <= track[..., 1].min() and track[..., 1].max() <= 0.15
    assert np.abs(np.diff(track[..., 0], axis=1)).max() < 0.2
    power = (np.abs(np.fft.rfft(track[..., 0] - track[..., 0].mean(), axis=1)) ** 2).mean(0)
    frequency = np.fft.rfftfreq(90, 1 / 25)
    assert power[frequency > 8].sum() < 0.06 * power.sum()


def test_a_label_from_another_alphabet_is_named():
    with pytest.raises(TalkheadError, match="'xx' at 0.50 s: not in ARPABET"):
        track_from_phonemes(timed("xx"), 20)


# --- espeak-ng ---


def test_resampling_keeps_what_both_rates_can_hold():
    def sound(time):
        return (np.sin(2764.6 * time) + 0.3 * np.sin(18850 * time)) * np.sin(np.pi * time) ** 2  # 440 Hz and 3 kHz

    ours = articulation._resample(sound(np.arange(22050) / 22050), 22050)
    assert len(ours) == 16000
    assert np.abs(ours - sound(np.arange(16000) / 16000)).max() < 1e-3
    too_high = np.sin(2 * np.pi * 9000 * np.arange(22050) / 22050) * np.hanning(22050)
    assert np.abs(articulation._resample(too_high, 22050)).max() < 1e-3


def test_padding_leaves_no_hole_between_phonemes():
    padded = articulation._pad([(0.0, 0.1, "M"), (0.2, 0.3, "AA1"), (0.3, 0.4, "SIL")], 0.25, 1.0)
    assert [label for *_, label in padded] == ["SIL", "M", "SIL", "AA1", "SIL"]
    assert np.allclose([row[:2] for row in padded], [(0, 0.25), (0.25, 0.35), (0.35, 0.45), (0.45, 0.55), (0.55, 1.0)])


@pytest.fixture(scope="module")
def utterance():
    pytest.importorskip("espeakng_loader", reason="needs the extra 'synth'")
    return speak(TEXT, "en-us+f3", seed=7)


def test_speech_has_sound_phonemes_and_a_track(utterance):
    u = utterance
    assert u.audio.dtype == np.float32 and 3 < len(u.audio) / 16000 < 6 and 0.3 < np.abs(u.audio).max() <= 1
    assert u.track.shape == (-(-len(u.audio) // 640), 3) and u.track.dtype == np.float32
    assert u.phonemes[0][0] == 0 and u.phonemes[-1][1] == pytest.approx(len(u.audio) / 16000)
    assert all(a[1] == pytest.approx(b[0]) for a, b in zip(u.phonemes, u.phonemes[1:]))
    sounds = [label.rstrip("012") for *_, label in u.phonemes if label != "SIL"]
    assert sounds[:6] == ["M", "AY", "B", "EY", "B", "IY"] and len(closures(u.phonemes)) == 12
    assert (u.text, u.speaker, u.source) == (TEXT, "en-us+f3", "espeak-ng en-us+f3")


def test_speech_repeats_whatever_was_said_before(utterance):
    other = speak("Something else.", "en-gb+m1", seed=7)
    again = speak(TEXT, "en-us+f3", seed=7)
    assert again.audio.tobytes() == utterance.audio.tobytes() and again.phonemes == utterance.phonemes
    assert again.track.tobytes() == utterance.track.tobytes()
    assert speak(TEXT, "en-us+f3", seed=8).audio.tobytes() != utterance.audio.tobytes()
    assert other.speaker == "en-gb+m1"


def test_phoneme_times_are_those_of_the_sound(utterance):
    level = {}
    for start, end, label in utterance.phonemes:
        piece = utterance.audio[round(start * 16000) : round(end * 16000)]
        level.setdefault("AEIOU".find(label[0]) >= 0, []).append(np.sqrt(np.mean(piece**2)))
    assert np.median(level[True]) > 2 * np.median(level[False])
    for start, _, label in utterance.phonemes:  # /p/ is silent until its burst
        if label == "P":
            held = utterance.audio[round((start + 0.01) * 16000) : round((start + 0.025) * 16000)]
            assert np.sqrt(np.mean(held**2)) < 0.3 * np.median(level[True])


def test_lips_shut_on_every_bilabial_and_move_with_the_sound(utterance):
    u = utterance
    for start, end in closures(u.phonemes):
        assert frames_within(u.track, start - 0.02, end + 0.02)[:, 0].min() == 0
    loudness = articulation._loudness(u.audio, len(u.track))
    by_lag = [correlation(u.track[:, 0], loudness, lag) for lag in range(-4, 5)]
    assert abs(int(np.argmax(by_lag)) - 4) <= 1 and max(by_lag) > 0.4


def test_a_voice_is_picked_by_the_seed(utterance):
    assert speak("Hello.", seed=1).speaker in voices()
    assert len(set(voices())) == len(voices()) > 400


def test_what_cannot_be_said_is_one_line(utterance, monkeypatch):
    with pytest.raises(TalkheadError, match="'xx-nowhere': espeak-ng has no such voice"):
        speak("Hello.", "xx-nowhere")
    with pytest.raises(TalkheadError, match="the text is empty"):
        speak("  ")
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(TalkheadError, match=r"pip install 'talkhead\[synth\]'"):
        speak("Hello.")


# --- recordings ---


def drawn_face(opening, width=0.8, jaw=1.1, scale=50.0, at=(100.0, 90.0)):
    """68 landmarks with the given proportions of the eye distance; only those that matter are placed."""
    face = np.zeros((68, 2))
    face[36:42], face[42:48] = (-0.5, 0), (0.5, 0)
    face[33], face[8] = (0, 0.5), (0, 0.5 + jaw)
    face[48], face[54] = (-width / 2, 1), (width / 2, 1)
    for upper, lower, x in ((61, 67, -0.1), (62, 66, 0), (63, 65, 0.1)):
        face[upper], face[lower] = (x, 1 - opening / 2), (x, 1 + opening / 2)
    return (face * scale + at).astype(np.float32)


def watched(faces_by_frame):
    """A detector that answers from a list, and frames to show it."""
    answers = iter(faces_by_frame)
    return [np.zeros((8, 8, 3), np.uint8)] * len(faces_by_frame), lambda frame: next(answers)


def test_measuring_gives_back_what_was_drawn():
    wave = np.clip(np.sin(np.arange(60) / 5), 0, None)
    frames, detector = watched(
        [
            [drawn_face(0.01 + 0.15 * w, 0.8 * (1 - 0.1 * w), 1.1 + 0.2 * w, scale)]
            for w, scale in zip(wave, np.linspace(40, 80, 60))
        ]
    )
    track = measure(frames, detector)
    assert track.shape == (60, 3) and track.dtype == np.float32
    assert np.abs(track - np.outer(wave, (0.15, -0.1, 0.2))).max() < 0.02
    assert (track[wave == 0, 0] == 0).mean() > 0.9


def test_measuring_bridges_gaps_and_stays_with_its_talker():
    faces = [[drawn_face(0.1 * (i > 10))] for i in range(30)]
    frames, detector = watched(faces)
    whole = measure(frames, detector)
    faces = [[drawn_face(0.2, scale=90, at=(400, 90))] * (i in (5, 20)) + face for i, face in enumerate(faces)]
    faces[15] = []
    frames, detector = watched(faces)
    assert np.array_equal(measure(frames, detector), whole)


def test_a_clip_without_a_face_is_refused():
    frames, detector = watched([[]] * 9 + [[drawn_face(0)]])
    with pytest.raises(TalkheadError, match="a face in 1 of 10 frames"):
        measure(frames, detector)
    with pytest.raises(TalkheadError, match="0 of 0"):
        measure([], detector)


def test_a_grid_alignment_is_read(tmp_path):
    path = tmp_path / "a.align"
    path.write_text("0 12500 sil\n12500 25000 bin\n25000 26000 sp\n26000 51000 four\n51000 74500 sil\n")
    phonemes, text = articulation._read_align(path)
    assert text == "bin four"
    assert [label for *_, label in phonemes] == ["SIL", "B", "IH1", "N", "SIL", "F", "AO1", "SIL"]
    assert phonemes[0][:2] == (0, 0.5) and phonemes[-1][1] == 2.98 and phonemes[3][1] == 1.0
    assert phonemes[2][1] - phonemes[2][0] == pytest.approx(0.5 * 1.7 / 3.7)  # a vowel is longer than its neighbours
    for content, what in (
        ("0 10 bin\nx y z", "line 2: wanted start, end and label"),
        ("0 10 dog", "not in the dictionary: dog; give GRID's own"),
    ):
        path.write_text(content)
        with pytest.raises(TalkheadError, match=f"{what}.*, or take the file away to go without words"):
            articulation._read_align(path)


def test_numbered_phonemes_are_read(tmp_path):
    path = tmp_path / "a_seq.json"
    path.write_text("[31, 31, 31, 6, 6, 6, 24]")
    assert articulation._read_sequence(path) == [(0, 0.1, "SIL"), (0.1, 0.2, "B"), (0.2, 7 / 30, "SIL")]
    path.write_text("[31, 99]")
    with pytest.raises(TalkheadError, match="not a list of phoneme numbers"):
        articulation._read_sequence(path)


def test_a_track_is_moved_to_where_the_lips_shut():
    rng = np.random.default_rng(0)
    phonemes = timed(" ".join(rng.choice(["AA1 P", "EH1 M", "T AE1", "B IY1", "S UW1"], 30)))
    track = track_from_phonemes(phonemes, 200)
    clock = np.arange(200) + 0.5
    early = np.stack([np.interp(clock + 5, clock, column) for column in track.T], 1)  # 0.2 s ahead of the sound
    moved = articulation._synchronise(early, phonemes)
    assert np.corrcoef(moved[10:190, 0], track[10:190, 0])[0, 1] > 0.97
    assert np.array_equal(articulation._synchronise(early, phonemes[:9]), early)  # too few to tell


def test_a_recording_is_measured_once(tmp_path):
    sound = np.sin(np.arange(16000) / 10).astype(np.float32) / 2
    (tmp_path / "video").mkdir()
    (tmp_path / "align").mkdir()
    clip = tmp_path / "video" / "c.mp4"
    toys.write_frames(clip, np.zeros((25, 32, 32, 3), np.uint8), lossless=None, sound=(sound, 16000))
    (tmp_path / "align" / "c.align").write_text("0 10000 sil\n10000 20000 bin\n20000 25000 sil\n")
    answers = iter([[drawn_face(0.004 * i)] for i in range(25)])
    u = recorded(clip, lambda frame: next(answers), tmp_path / "cache")
    assert u.track.shape == (25, 3) and abs(len(u.audio) - 16000) <= 640 and u.audio.dtype == np.float32
    assert (u.text, u.speaker, u.source) == ("bin", tmp_path.name, "c.mp4") and len(u.phonemes) == 5
    again = recorded(clip, None, tmp_path / "cache", speaker="me")
    assert np.array_equal(again.track, u.track) and np.array_equal(again.audio, u.audio) and again.speaker == "me"
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(b"PK")
    with pytest.raises(TalkheadError, match="not a measured clip; delete it"):
        recorded(clip, None, tmp_path / "cache")
    with pytest.raises(TalkheadError, match="c.mp4: (File exists|Not a directory)"):
        recorded(clip, lambda frame: [drawn_face(0)], clip)
    with pytest.raises(TalkheadError, match="nothing.mpg: No such file"):
        recorded(tmp_path / "nothing.mpg", cache=tmp_path)


def test_a_grid_talker_moves_as_the_model_does(shared_data):
    pytest.importorskip("mediapipe", reason="needs the extra 'mediapipe'")
    from talkhead import landmarks

    detector = landmarks.detector(
        "mediapipe", shared_data / "weights/mediapipe/face_landmarker_v2_with_blendshapes.task"
    )
    u = recorded(shared_data / "grid_s1" / "video" / "bbal8p.mpg", detector)
    assert u.text == "bin blue at l eight please" and u.speaker == "grid_s1" and len(u.track) == 75
    assert 0.1 < np.percentile(u.track[:, 0], 95) < 0.3
    loudness = articulation._loudness(u.audio, 75)
    by_lag = [correlation(u.track[:, 0], loudness, lag) for lag in range(-4, 5)]
    assert abs(int(np.argmax(by_lag)) - 4) <= 1
    model = track_from_phonemes(u.phonemes, 75, loudness=loudness)
    assert np.corrcoef(model[:, 0], u.track[:, 0])[0, 1] > 0.5
