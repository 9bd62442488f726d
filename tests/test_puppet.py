"""Puppets: the warp and its truth, drawn and blended faces, and detectors that nobody here wrote."""

import json

import numpy as np
import pytest

from puppets import puppet, variety
from talkhead import TalkheadError, audio_files, faces, files, video_files
from talkhead.landmarks import MediaPipe, mouth_opening

SHUT_TO_OPEN = np.array([[0, 0, 0], [0.04, 0, 0.01], [0.08, 0, 0.03], [0.12, 0, 0.06], [0.16, 0, 0.09], [0.2, 0, 0.12]])


@pytest.fixture(scope="module")
def still():
    return puppet.drawn(3, 64)


@pytest.fixture(scope="module")
def model(shared_data):
    return shared_data / "weights" / "mediapipe" / "face_landmarker_v2_with_blendshapes.task"


@pytest.fixture(scope="module")
def portraits(shared_data, model, tmp_path_factory):
    """Every thirtieth portrait of the folder, so that the test needs seconds, and five with their mouths shut."""
    pytest.importorskip("mediapipe")
    folder = tmp_path_factory.mktemp("portraits")
    pictures = sorted((shared_data / "images" / "congress").glob("*.jpg"))
    shut = [pictures[0].with_name(f"{stem}.jpg") for stem in ("M001222", "G000586", "W000815", "V000133", "M001226")]
    for path in {*pictures[::30], *shut}:
        (folder / path.name).symlink_to(path)
    return puppet.portraits(folder, model, cache=folder / "cache.npz")


def moments(still, track, size=64, seed=0):
    pictures, landmarks = zip(*puppet.perform(still, track, size, seed, independent=True))
    return np.stack(pictures), np.stack(landmarks)


# ---------------------------------------------------------------------------------------------------------------
# Splines and masks


def test_spline_equals_scipy():
    from scipy.interpolate import RBFInterpolator

    rng = np.random.default_rng(0)
    points, values = rng.random((30, 2)), rng.normal(size=(30, 3))
    ours = puppet._spline(points, values, 16, smoothing=0)
    theirs = RBFInterpolator(points, values, kernel="thin_plate_spline")(puppet._nodes(16))
    np.testing.assert_allclose(ours, theirs.T.reshape(3, 16, 16), atol=1e-3)


def test_inside_is_the_distance_to_a_square():
    square = np.array([(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)])
    inside = puppet._inside(square, 8)
    x = (np.arange(8) + 0.5) / 8
    np.testing.assert_allclose(inside[4, 1:7], np.minimum(x[1:7] - 0.25, 0.75 - x[1:7]), atol=1e-9)
    assert (inside > 0).sum() == 16


def test_inverse_of_a_motion_field_undoes_it():
    import torch

    nodes = puppet._positions(puppet.GRID)
    bump = torch.exp(-((nodes - 0.5) ** 2).sum(-1) / 0.03)
    shift = 0.04 * torch.stack([bump, -bump])[None]
    back = puppet._invert(shift)
    at = nodes + back[0].permute(1, 2, 0)
    there = at + puppet._sample(shift, at[None])[0].permute(1, 2, 0)
    assert (there - nodes).abs().max() < 2e-4


# ---------------------------------------------------------------------------------------------------------------
# Stills


def test_drawn_faces_are_aligned_shut_and_repeatable(still):
    again = puppet.drawn(3, 64)
    assert still.image.shape == (64, 64, 3) and still.image.dtype == np.uint8
    np.testing.assert_array_equal(still.image, again.image)
    np.testing.assert_array_equal(still.points, again.points)
    assert still.opening < 0.01
    corners = faces.quad(still.landmarks)
    np.testing.assert_allclose(corners + 0.5, [(0, 0), (0, 64), (64, 64), (64, 0)], atol=1e-3)
    assert np.abs(puppet.drawn(4, 64).image.astype(int) - still.image).mean() > 5


def test_the_mirror_of_a_mirror_is_the_face(still):
    twice = puppet.mirror(puppet.mirror(still))
    np.testing.assert_array_equal(twice.image, still.image)
    np.testing.assert_allclose(twice.points, still.points, atol=1e-6)
    flipped = puppet.mirror(still).landmarks
    np.testing.assert_allclose(flipped[36], (63, 0) + still.landmarks[45] * (-1, 1), atol=1e-3)


def test_no_pictures_is_an_error(tmp_path):
    with pytest.raises(TalkheadError, match="no such folder"):
        puppet.portraits(tmp_path / "absent", "model.task")
    with pytest.raises(TalkheadError, match="holds no pictures"):
        puppet.portraits(tmp_path, "model.task")


@pytest.fixture
def photographed(monkeypatch, still):
    """Makes every picture file a portrait, so that folders can be read without a detector."""
    from dataclasses import replace

    monkeypatch.setattr(
        puppet, "_detect_portraits", lambda paths, model, size: [replace(still, names=(path.stem,)) for path in paths]
    )


def write_album(place):
    """Two folders: one person twice, with a table that tells so, and another person.

    The same person again by name, and two unknown ones.
    """
    for name in ("set/1_shut.jpg", "set/1_open.jpg", "set/2_shut.jpg", "more/1.jpg", "more/3.jpg", "more/4.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    (place / "SOURCES.tsv").write_text(
        "file\tperson_id\tITA\nset/1_shut.jpg\tlab:1\t-12\nset/1_open.jpg\tlab:1\t-9.5\nset/2_shut.jpg\tlab:2\t\n"
    )
    return [place / "set", place / "more"]


def test_several_folders_and_a_table_tell_who_is_who(tmp_path, photographed):
    stills = puppet.portraits(write_album(tmp_path), cache=tmp_path / "cache.npz")
    told = {still.names[0]: still.people for still in stills}
    assert told == {
        "1_open": ("lab:1",),
        "1_shut": ("lab:1",),
        "2_shut": ("lab:2",),
        "1": ("lab:1",),
        "3": ("3",),
        "4": ("4",),
    }
    assert {still.names[0]: still.tone for still in stills[:2]} == {"1_open": "dark", "1_shut": "dark"} and stills[
        0
    ].tone_angle == -9.5
    assert {still.tone_angle for still in stills[2:]} == {variety.tone_angle(stills[2].image)}
    again = puppet.portraits(
        [tmp_path / "set", tmp_path / "more"], cache=tmp_path / "cache.npz", exclude=("lab:1", "4")
    )
    assert [(still.names, still.people) for still in again] == [(("2_shut",), ("lab:2",)), (("3",), ("3",))]
    (alone,) = puppet.portraits(
        tmp_path / "set", exclude=["1"]
    )  # a table beside the folder; an id without its collection
    assert alone.names == ("2_shut",)


def test_who_cannot_be_told_is_an_error(tmp_path, photographed):
    folders = write_album(tmp_path)
    (tmp_path / "more" / "2_shut.jpg").touch()
    with pytest.raises(TalkheadError, match="2_shut.jpg: another folder has a picture of that name"):
        puppet.portraits(folders)
    (tmp_path / "SOURCES.tsv").write_text("file\tlicence\nset/1_shut.jpg\tCC0\n")
    with pytest.raises(TalkheadError, match='SOURCES.tsv: not a table of sources .*"person_id"'):
        puppet.portraits(folders[0])


def crowd(still, *people, **changed):
    from dataclasses import replace

    return [
        replace(still, names=(f"{who}-{number}",), people=(who,), looks=np.zeros(6), **changed)
        for number, who in enumerate(people)
    ]


def test_every_composite_is_of_several_people(still):
    """Three of four photos show one person: by chance alone, most pairs would be of that person twice."""
    rng = np.random.default_rng(0)
    stills = crowd(still, "anna", "anna", "anna", "ben", "carl")
    for _ in range(200):
        chosen = puppet.choose(stills, rng)
        people = [person for one in chosen for person in one.people]
        assert len(people) == len(set(people)) >= 2
    assert puppet.composite(chosen).people == tuple(people)
    with pytest.raises(TalkheadError, match="all show one person"):
        puppet.choose(stills[:3], rng)


def test_eyes_nose_and_mouth_are_of_different_people(still, monkeypatch):
    owners, blend = [], puppet._blend_bands
    monkeypatch.setattr(
        puppet,
        "_blend_bands",
        lambda images, regions, eyes, nose, rng: (
            owners.append((int(eyes), int(nose))) or blend(images, regions, eyes, nose, rng)
        ),
    )
    stills = crowd(still, "anna", "ben", "carl", "dora")
    for seed in range(12):
        puppet.composite(stills, seed)
    assert {owner for pair in owners for owner in pair} == {0, 1, 2} and all(
        eyes != nose for eyes, nose in owners
    )  # the mouth is the last's
    owners.clear()
    stills[0].glasses = True
    puppet.composite(stills[:2] + stills[3:], 0)
    puppet.composite(stills[:1] + stills[3:], 0)
    assert owners == [(0, 1), (0, 1)]


def test_neutral_mouths_are_painted_first(still):
    left, right = puppet._of(61), puppet._of(291)
    narrow, smiling = still.points.copy(), still.points.copy()
    narrow[[left, right]] += [(0.02, 0.01), (-0.02, 0.01)]
    smiling[[left, right]] += [(-0.03, -0.03), (0.03, -0.03)]
    calm, merry = crowd(still, "anna", "ben", points=narrow), crowd(still, *"cdefgh", points=smiling)
    width, eyes = np.linalg.norm(np.diff(smiling[[left, right]], axis=0)), puppet._iod(smiling)
    raised = smiling[puppet._of(13, 14), 1].mean() - smiling[[left, right], 1].mean()
    assert merry[0].smile == pytest.approx((width + 2 * raised) / eyes, rel=1e-5)
    assert calm[0].smile < puppet.CALM < merry[0].smile and merry[0].opening < puppet.SHUT
    rng = np.random.default_rng(0)
    last = {puppet.choose(calm + merry, rng)[-1].people for _ in range(60)}
    assert last == {("anna",), ("ben",)}
    assert puppet.choose(calm[:1] + merry, rng, calm[0])[-1].people != (
        "anna",
    )  # nobody calm is left: somebody who smiles, mouth shut


def test_who_has_two_photos_does_not_come_oftener(still, monkeypatch):
    monkeypatch.setattr(puppet.Still, "tone", property(lambda one: "tan"))
    rng = np.random.default_rng(0)
    stills = crowd(still, "anna", "anna", "anna", "ben")
    count = sum(puppet.evenly(stills, rng).people == ("anna",) for _ in range(400))
    assert abs(count - 200) < 60


# ---------------------------------------------------------------------------------------------------------------
# Performance


def test_frames_and_landmarks_of_a_performance(still):
    frames, landmarks = moments(still, SHUT_TO_OPEN)
    assert frames.shape == (6, 64, 64, 3) and frames.dtype == np.uint8
    assert landmarks.shape == (6, 68, 2) and landmarks.dtype == np.float32
    np.testing.assert_allclose(mouth_opening(landmarks), SHUT_TO_OPEN[:, 0], atol=0.012)


def test_the_mouth_opens_dark_and_shuts_again(still):
    frames, landmarks = moments(still, np.array([[0.2, 0, 0.12], [0, 0, 0]]))
    x, y = landmarks[0, [62, 66]].mean(0).round().astype(int)
    throat, lip = (frame[y - 1 : y + 2, x - 1 : x + 2].astype(int) for frame in frames)
    assert throat.mean((1, 2)).min() < 45 and np.abs(throat - lip).mean() > 15  # its darkest row
    upper, lower = landmarks[1, [62, 66], 1]
    assert lower - upper < 0.3


def test_widths_follow_the_track(still):
    _, landmarks = moments(still, np.array([[0.05, 0, 0.02], [0.05, -0.2, 0.02], [0.05, 0.1, 0.02]]))
    widths = np.linalg.norm(landmarks[:, 54] - landmarks[:, 48], axis=1)
    eyes = np.linalg.norm(landmarks[:, 45] - landmarks[:, 36], axis=1)
    relative = widths / eyes / (widths[0] / eyes[0]) - 1
    np.testing.assert_allclose(relative, (0, -0.2, 0.1), atol=0.04)


def test_the_border_stands_still(still):
    frames = moments(still, SHUT_TO_OPEN)[0].astype(int)
    rim = np.concatenate([frames[:, :2].reshape(6, -1), frames[:, -2:].reshape(6, -1)], 1)
    assert np.abs(rim - rim[0]).mean() < 1.5


def test_same_seed_same_frames_whatever_the_chunks(still, monkeypatch):
    track = np.repeat(SHUT_TO_OPEN, 4, 0)
    first = [frame for frame, _ in puppet.perform(still, track, 64, seed=5)]
    monkeypatch.setattr(puppet, "CHUNK", 7)
    second = [frame for frame, _ in puppet.perform(still, track, 64, seed=5)]
    assert np.abs(np.stack(first).astype(int) - np.stack(second)).max() <= 1
    other = [frame for frame, _ in puppet.perform(still, track, 64, seed=6)]
    assert np.abs(np.stack(first).astype(int) - np.stack(other)).mean() > 0.3


def test_blinks_come_as_often_as_people_blink():
    closed = puppet.blinks(np.random.default_rng(0), 25 * 60 * 30)
    edges = np.flatnonzero(np.diff((closed > 0.3).astype(int)) == 1)
    assert 13 < len(edges) / 30 < 22
    change = np.diff((closed > 0).astype(int))
    lengths = np.flatnonzero(change == -1) - np.flatnonzero(change == 1)
    assert lengths.max() <= 8 and closed.max() <= 1


def test_lids_cover_the_eyes(still):
    rig = puppet._Rig(still, 64)
    motion = puppet._motion(rig, np.zeros((2, 3)), np.random.default_rng(0), True)
    motion.weights[1] = motion.weights[0]
    motion.lids[:] = 0, 1
    motion.gaze[:] = 0
    (awake, points), (asleep, shut) = puppet._perform(rig, motion)
    height = lambda marks: marks[[41, 40, 47, 46], 1] - marks[[37, 38, 43, 44], 1]
    assert (height(shut) < 0.25 * height(points)).all()
    x, y = points[36:42].mean(0).round().astype(int)
    assert np.abs(awake.astype(int) - asleep)[y - 1 : y + 2, x - 2 : x + 3].mean() > 10
    assert np.abs(awake.astype(int) - asleep)[:12].max() == 0


# ---------------------------------------------------------------------------------------------------------------
# Clips


def test_synth_writes_clips_that_do_not_depend_on_their_range(tmp_path):
    records = list(puppet.synth(tmp_path / "all", 3, size=32, frames=3, seed=2))
    assert [record["step"] for record in records] == [0, 1, 2]
    assert all(record["frames"] == 3 for record in records)
    list(puppet.synth(tmp_path / "part", 1, size=32, frames=3, seed=2, start=2))
    frames = [np.stack(list(video_files.read_frames(tmp_path / folder / "000002.mp4"))) for folder in ("all", "part")]
    np.testing.assert_array_equal(*frames)
    reader = video_files.read_frames(tmp_path / "all" / "000000.mp4")
    assert reader.aligned
    reader.close()
    landmarks = files.read_array(tmp_path / "all" / "000001.landmarks.npy")
    track = files.read_array(tmp_path / "all" / "000001.track.npy")
    assert landmarks.shape == (3, 68, 2) and track.shape == (3, 3)
    about = json.loads((tmp_path / "all" / "000001.json").read_text())
    assert set(about) == {"fps", "phonemes", "text", "speaker", "seed", "donors", "people", "source", "blink"}


def test_faces_take_turns(tmp_path):
    """Pictures of one face differ by its motion alone."""
    list(puppet.synth(tmp_path, 4, size=32, frames=2, people=2))
    faces = [next(iter(video_files.read_frames(path))).astype(float) for path in sorted(tmp_path.glob("*.mp4"))]
    apart = [[np.abs(one - other).mean() for one in faces] for other in faces]
    assert max(apart[0][2], apart[1][3]) < 0.5 * min(apart[0][1], apart[0][3], apart[1][2], apart[2][3])


def test_sound_only_is_what_the_voices_say_and_no_more(tmp_path):
    pytest.importorskip("espeakng_loader")
    text = tmp_path / "lines.txt"
    text.write_text("A brown fox.\n\nFive lazy dogs!\n", encoding="utf-8-sig")
    records = list(puppet.synth(tmp_path / "out", 3, sound_only=True, text=text, voices=("en-us",), seed=5))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{n:06d}.{end}" for n in range(3) for end in ("json", "wav")
    ]
    told = [json.loads((tmp_path / "out" / f"{n:06d}.json").read_text()) for n in range(3)]
    assert [about["text"] for about in told] == ["A brown fox.", "Five lazy dogs!", "A brown fox."]
    assert [about["frames"] for about in told] == [record["frames"] for record in records]
    for n, about in enumerate(told):
        audio = audio_files.read_audio(tmp_path / "out" / f"{n:06d}.wav")
        assert about["frames"] == -(-len(audio) // 640) and about["phonemes"][-1][1] == pytest.approx(
            len(audio) / 16000
        )
    again = list(puppet.synth(tmp_path / "out", 3, sound_only=True, text=text, voices=("en-us",), seed=5))
    assert again == records


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"frames": 3}, "leave recordings and frames out"),
        ({"text": "absent.txt"}, "cannot be read"),
        ({"text": "empty.txt"}, "no sentences"),
    ],
)
def test_sound_without_words_is_refused(tmp_path, monkeypatch, wrong, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(TalkheadError, match=words):
        list(puppet.synth(tmp_path / "out", 1, sound_only=True, **wrong))
    assert not (tmp_path / "out").exists()


def test_synth_leaves_finished_clips_alone(tmp_path):
    list(puppet.synth(tmp_path, 1, size=32, frames=2))
    before = (tmp_path / "000000.mp4").stat().st_mtime_ns
    records = list(puppet.synth(tmp_path, 2, size=32, frames=2))
    assert (tmp_path / "000000.mp4").stat().st_mtime_ns == before
    assert records[0]["frames"] == 2 and (tmp_path / "000001.mp4").is_file()


def test_a_speaking_clip_is_as_long_as_its_sound(tmp_path):
    pytest.importorskip("espeakng_loader")
    (record,) = puppet.synth(tmp_path, 1, size=32, seconds=1)
    assert record["frames"] == 25 and record["speaker"]
    sound = audio_files.read_audio(tmp_path / "000000.mp4")
    assert abs(len(sound) - 16000) <= 640
    about = json.loads((tmp_path / "000000.json").read_text())
    assert about["phonemes"] and max(end for _, end, _ in about["phonemes"]) <= 1.001


# ---------------------------------------------------------------------------------------------------------------
# Composites, judged by others' detectors


def test_composites_are_aligned_and_seen_by_yunet(portraits, shared_data):
    cv2 = pytest.importorskip("cv2")
    weights = shared_data / "weights" / "yunet" / "yunet_n_dynamic.onnx"
    yunet = cv2.FaceDetectorYN.create(str(weights), "", (128, 128), 0.6)
    rng = np.random.default_rng(0)
    seen = []
    for index in range(6):
        still = puppet.composite(puppet.choose(portraits, rng), index)
        np.testing.assert_allclose(faces.quad(still.landmarks)[0] + 0.5, (0, 0), atol=0.05)
        for frame in moments(still, SHUT_TO_OPEN, 128, index)[0]:
            seen.append(yunet.detect(np.ascontiguousarray(frame[..., ::-1]))[1] is not None)
    assert np.mean(seen) >= 0.98


def test_mediapipe_sees_the_mouth_as_wide_open_as_it_is(portraits, model):
    detector = MediaPipe(model, faces=1)
    rng = np.random.default_rng(1)
    for index in range(4):
        still = puppet.composite(puppet.choose(portraits, rng), index)
        frames, truth = moments(still, np.repeat(SHUT_TO_OPEN, 2, 0), 256, index)
        found = np.stack([detector(frame)[0] for frame in frames])
        opening = mouth_opening(found)
        assert np.corrcoef(opening, mouth_opening(truth))[0, 1] >= 0.9
        assert np.linalg.norm(found - truth, axis=-1).mean() < 4  # pixels of 256


def test_excluded_portraits_are_never_donors(portraits, tmp_path):
    names = [still.names[0] for still in portraits]
    assert len(names) == len(set(names)) > 10
    rng = np.random.default_rng(0)
    left = [still for still in portraits if still.names[0] not in names[:5]]
    used = {name for _ in range(30) for still in puppet.choose(left, rng) for name in still.names}
    assert not used & set(names[:5])


# ---------------------------------------------------------------------------------------------------------------
# Variety on purpose


def test_rare_tones_are_chosen_as_often_as_common_ones(still, monkeypatch):
    from dataclasses import replace

    stills = [replace(still, names=(f"{index}",), people=(f"{index}",), looks=np.zeros(6)) for index in range(20)]
    monkeypatch.setattr(puppet.Still, "tone", property(lambda one: "dark" if one.names == ("7",) else "light"))
    rng = np.random.default_rng(0)
    rare = sum(puppet.evenly(stills, rng).names == ("7",) for _ in range(400))
    assert abs(rare - 200) < 60


def test_drawn_faces_are_not_varied(tmp_path):
    with pytest.raises(TalkheadError, match="vary: is for composites of portraits"):
        list(puppet.synth(tmp_path, 1, vary=True))


def test_varied_clips_tell_what_was_chosen_and_others_stay_as_they_were(portraits, tmp_path, monkeypatch):
    monkeypatch.setattr(puppet, "portraits", lambda *_, **__: portraits)
    wanted = {"size": 32, "frames": 1, "portraits": "photos", "seed": 4}
    plain = list(puppet.synth(tmp_path / "plain", 2, **wanted))
    varied = list(puppet.synth(tmp_path / "varied", 6, vary=True, **wanted))
    again = list(puppet.synth(tmp_path / "varied", 6, vary=True, **wanted))
    assert varied == again and not any("varied" in record for record in plain)
    for record in varied:
        told = json.loads((tmp_path / "varied" / f"{record['step']:06d}.json").read_text())
        assert told["varied"] == record["varied"] and set(told["varied"]) == {
            "tone",
            "tone_angle",
            "hair",
            "hair_shade",
            "light",
            "backdrop",
        }
    assert len({json.dumps(record["varied"]) for record in varied}) == 6
