"""What the trainers look at: clips, pictures and packed files; refusals, memory, and what is warned of."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import toys
from talkhead import datasets, files, image_files, video_files
from talkhead.errors import TalkheadError
from talkhead.images import resize, to_frames


def pictures(folder, count=5, size=8):
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        image_files.write_image(folder / f"{index:02}.png", frame)
    return frames


def test_images_hold_every_frame_and_show_each_once_an_epoch(tmp_path):
    frames = pictures(tmp_path / "faces")
    images = datasets.Images([tmp_path / "faces"], 8)
    assert len(images) == 5 and np.array_equal(images.frames, frames)
    batches = [images.batch(step, 2, seed=3) for step in range(5)]
    shown = to_frames(torch.cat(batches))
    for epoch in (shown[:5], shown[5:]):
        assert sorted(frame.tobytes() for frame in epoch) == sorted(frame.tobytes() for frame in frames)
    assert torch.equal(images.batch(4, 2, seed=3), batches[4])
    assert datasets.Images([tmp_path / "faces"], 4, every=2, limit=2).frames.shape == (2, 4, 4, 3)


def test_images_refuse_what_cannot_be_trained_on(tmp_path):
    with pytest.raises(TalkheadError, match="not found"):
        datasets.Images([tmp_path / "nothing"], 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TalkheadError, match="no frames"):
        datasets.Images([tmp_path / "empty"], 8)
    image_files.write_image(tmp_path / "wide.png", np.zeros((4, 8, 3), np.uint8))
    with pytest.raises(TalkheadError, match="8x4, wanted square"):
        datasets.Images([tmp_path / "wide.png"], 8)


def test_one_bad_clip_is_skipped_and_named(tmp_path):
    pictures(tmp_path / "faces")
    (tmp_path / "faces" / "zz.mp4").write_bytes(b"not a film")
    images = datasets.Images([tmp_path / "faces"], 8)
    assert len(images) == 5 and len(images.skipped) == 1 and "zz.mp4" in images.skipped[0]


def clip(path, count=6, size=16, seed=0):
    """A lossless film of noise, slowly changing; what it shows."""
    rng = np.random.default_rng(seed)
    first = rng.integers(20, 230, (size, size, 3))
    frames = [(first + rng.integers(-3, 4, first.shape)).astype(np.uint8) for _ in range(count)]
    path.parent.mkdir(exist_ok=True)
    toys.write_frames(path, frames)
    return frames


def packed(sources, output, *arguments):
    list(datasets.pack(sources, output, *arguments))
    return output


@pytest.fixture
def films(tmp_path):
    """Two films of 6 and 5 frames, one between them that breaks off, and a text that is no film."""
    clip(tmp_path / "films" / "a.mp4")
    clip(tmp_path / "films" / "c.mp4", 5, seed=1)
    clip(tmp_path / "films" / "b.mp4", 60, seed=2)
    whole = (tmp_path / "films" / "b.mp4").read_bytes()
    (tmp_path / "films" / "b.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "films" / "d.mp4").write_text("not a film")
    return tmp_path / "films"


def same(one, two):
    """Whether two sets of images give the same batches, over more than an epoch, to the bit."""
    assert len(one) == len(two) and one.names == two.names
    return all(
        torch.equal(one.batch(step, 4, seed=5, flip=True), two.batch(step, 4, seed=5, flip=True)) for step in range(5)
    )


@pytest.mark.parametrize("size", [16, 8])
def test_packed_frames_give_the_batches_of_their_clips(films, tmp_path, size):
    whole = packed([films], tmp_path / "p.npy", size)
    frames = np.load(whole)
    assert frames.shape == (11, size, size, 3) and frames.dtype == np.uint8
    direct, mapped = datasets.Images([films], size), datasets.Images([whole], size)
    assert np.array_equal(direct.frames[:], frames) and same(direct, mapped)
    for every, limit in [(2, None), (1, 4), (2, 5), (5, 3), (1, 6), (1, 7), (3, 100)]:
        direct = datasets.Images([films], size, every, limit)
        assert same(direct, datasets.Images([whole], size, every, limit))
        assert same(direct, datasets.Images([packed([films], tmp_path / "q.npy", size, every, limit)], size))


def test_packed_frames_among_clips_and_packed_again(films, tmp_path):
    clip(tmp_path / "other" / "e.mp4", seed=3)
    (tmp_path / "faces").mkdir()
    image_files.write_image(tmp_path / "faces" / "f.png", np.full((16, 16, 3), 7, np.uint8))
    whole = packed([films], tmp_path / "p.npy", 16)
    clips = datasets.Images([tmp_path / "other", films, tmp_path / "faces"], 16)
    sources = [tmp_path / "other", whole, tmp_path / "faces"]
    assert same(clips, datasets.Images(sources, 16)) and len(clips) == 18
    assert same(clips, datasets.Images([packed(sources, tmp_path / "q.npy", 16)], 16))
    assert same(
        datasets.Images(sources, 16, 2, 7), datasets.Images([packed(sources, tmp_path / "q.npy", 16, 2, 7)], 16)
    )
    assert {Path(name).name for name in clips.names} == {"a.mp4", "c.mp4", "e.mp4", "f.png"}


def test_packed_frames_of_another_size_are_resized(tmp_path):
    frames = clip(tmp_path / "films" / "a.mp4")
    images = datasets.Images([packed([tmp_path / "films"], tmp_path / "p.npy", 16)], 8)
    assert images.frames.shape == (6, 8, 8, 3) and np.array_equal(images.frames[-1], resize(frames[-1], 8))
    assert np.array_equal(images.frames[[3, 0]], [resize(frames[3], 8), resize(frames[0], 8)])
    with pytest.raises(IndexError):
        images.frames[6]


def test_beside_packed_frames_it_is_told_where_they_came_from(films, tmp_path):
    records = list(datasets.pack([films], tmp_path / "p.npy", 8))
    assert [Path(record["file"]).name for record in records] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert [record.get("frames") for record in records] == [6, None, 5, None]
    about = files.read_json(tmp_path / "p.json")
    assert about["frames"] == 11 and about["size"] == 8
    assert about["sources"] == [
        {"file": str(films / "a.mp4"), "frames": 6, "side": 16, "kind": "film"},
        {"file": str(films / "c.mp4"), "frames": 5, "side": 16, "kind": "film"},
    ]
    assert about["left_out"] == [records[1]["left_out"], records[3]["left_out"]]
    assert "b.mp4: cut short" in about["left_out"][0] or "b.mp4: damaged" in about["left_out"][0]
    assert datasets.Images([films], 8).skipped == about["left_out"]


def test_packed_frames_need_nothing_beside_them(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "p.npy", frames)
    images = datasets.Images([tmp_path / "p.npy"], 8, every=2)
    assert np.array_equal(images.frames[:], frames[::2]) and images.names == [str(tmp_path / "p.npy")] * 3
    assert warned(images) == []  # what nobody knows is nothing to warn of


@pytest.mark.parametrize(
    "array, beside, message",
    [
        (np.zeros((5, 8, 8, 3)), None, r"p.npy: holds float64 \(5, 8, 8, 3\), wanted uint8"),
        (np.zeros((5, 8, 9, 3), np.uint8), None, r"holds uint8 \(5, 8, 9, 3\), wanted uint8 \(frames, size, size, 3\)"),
        (np.zeros((5, 8, 8), np.uint8), None, r"holds uint8 \(5, 8, 8\), wanted"),
        (np.zeros((0, 8, 8, 3), np.uint8), None, r"holds uint8 \(0, 8, 8, 3\), wanted|damaged or cut short"),
        (np.array([{}]), None, "p.npy: holds objects"),
        (b"", None, "p.npy: empty"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", None, "p.npy: damaged or cut short"),
        (b"text", None, "p.npy: not a .npy array"),
        (np.zeros((5, 8, 8, 3), np.uint8), "{", "p.json: not JSON"),
        (np.zeros((5, 8, 8, 3), np.uint8), '{"speaker": "s1"}', "p.json: does not describe packed frames"),
        (np.zeros((5, 8, 8, 3), np.uint8), "[1]", "p.json: holds no JSON object"),
        (
            np.zeros((5, 8, 8, 3), np.uint8),
            '{"sources": [{"file": "a", "frames": 4, "side": 8, "kind": "film"}]}',
            "holds 5 frames, but the .json .* records 4",
        ),
    ],
)
def test_packed_files_that_are_none_are_refused_in_one_line(tmp_path, array, beside, message):
    pictures(tmp_path / "faces")
    if isinstance(array, bytes):
        (tmp_path / "p.npy").write_bytes(array)
    else:
        np.save(tmp_path / "p.npy", array)
    if beside:
        (tmp_path / "p.json").write_text(beside)
    with pytest.raises(TalkheadError, match=message) as error:
        datasets.Images([tmp_path / "faces", tmp_path / "p.npy"], 8)
    assert "\n" not in str(error.value)


def test_packed_file_that_was_cut_is_refused(films, tmp_path):
    path = packed([films], tmp_path / "p.npy", 8)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TalkheadError, match="p.npy: damaged or cut short; write it again"):
        datasets.Images([path], 8)


def test_nothing_is_packed_of_nothing(films, tmp_path):
    for sources, output, message in [
        ([films / "d.mp4"], "p.npy", "no frames to train on .*d.mp4: not a video"),
        ([films], "p.mp4", "end the name in .npy"),
        ([films], "no/p.npy", "its folder does not exist"),
    ]:
        with pytest.raises(TalkheadError, match=message):
            packed(sources, tmp_path / output, 8)
    assert os.listdir(tmp_path) == ["films"]


def test_memory_is_flat_while_frames_are_packed(tmp_path):
    """Ten times the frames, 12 MB more of them, take no more memory."""
    for count in (50, 500):
        clip(tmp_path / f"{count}.mp4", count, 96)
    script = (
        "import resource, sys; from talkhead import datasets\n"
        "for count in (50, 500):\n"
        "    list(datasets.pack([f'{sys.argv[1]}/{count}.mp4'], sys.argv[1] + '/p.npy', 96))\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    short, long = map(float, done.stdout.split())
    assert long < short + 4  # MiB


def test_frames_of_several_sizes_are_counted_and_said(tmp_path, recwarn):
    clip(tmp_path / "films" / "a.mp4", 6, 16)
    clip(tmp_path / "films" / "b.mp4", 5, 16, seed=1)
    datasets.Images([tmp_path / "films"], 32)
    assert not recwarn
    clip(tmp_path / "films" / "c.mp4", 3, 64)
    wanted = "frames of 2 sizes, 16x16 to 64x64, are all resized to 32x32; smaller ones (11 of 14) become blurred"
    with pytest.warns(UserWarning) as said:
        datasets.Images([tmp_path / "films"], 32)
    assert [str(warning.message) for warning in said] == [wanted]
    with pytest.warns(UserWarning, match=re.escape(wanted)):
        packed([tmp_path / "films"], tmp_path / "p.npy", 32)
    with pytest.warns(UserWarning, match="are all resized to 16x16$"):
        datasets.Images([tmp_path / "films"], 16)
    recwarn.clear()
    datasets.Images([tmp_path / "p.npy"], 32)  # they are of one size now
    assert not recwarn


def stills(folder, count=4):
    """Pictures of nothing in common."""
    folder.mkdir()
    for index in range(count):
        image_files.write_image(
            folder / f"{index}.png", np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        )
    return folder


def moments(folder):
    """A film as `talkhead synth --frames` makes it."""
    clip(folder / "m.mp4", seed=9)
    files.write_json(folder / "m.json", {"source": "moments"})
    return folder


def extracted(folder):
    """A film as a folder of pictures."""
    clip(folder.with_suffix(".mp4"), seed=8)
    return toys.write_frames(folder, video_files.read_frames(folder.with_suffix(".mp4")), lossless=None)


def warned(images):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images.warn_of_mixture()
    return [str(warning.message) for warning in said]


def test_films_and_still_pictures_are_not_to_be_mixed(tmp_path):
    film = tmp_path / "film.mp4"
    clip(film)
    kinds = {
        "film": film,
        "stills": stills(tmp_path / "stills"),
        "moments": moments(tmp_path / "moments"),
        "extracted": extracted(tmp_path / "extracted"),
        "one": tmp_path / "stills" / "0.png",
    }
    for names, counts in {
        ("film",): None,
        ("stills",): None,
        ("moments",): None,
        ("extracted",): None,
        ("one",): None,
        ("stills", "moments"): None,
        ("film", "moments", "extracted"): None,
        ("film", "stills"): (6, 4),
        ("stills", "extracted"): (6, 4),
        ("film", "one", "extracted", "moments"): (12, 1),
    }.items():
        sources = [kinds[name] for name in names]
        for images in (datasets.Images(sources, 16), datasets.Images([packed(sources, tmp_path / "p.npy", 16)], 16)):
            said = warned(images)
            assert len(said) == (counts is not None), (names, said)
            if counts:
                assert (
                    f"films ({counts[0]} frames) and still images ({counts[1]}) are mixed" in said[0]
                    and "\n" not in said[0]
                )


def test_frames_that_do_not_fit_into_memory_are_refused_before_they_fill_it(films, tmp_path, monkeypatch):
    whole = packed([films], tmp_path / "p.npy", 16)
    pictures(tmp_path / "faces", 9)
    frame = 16 * 16 * 3  # bytes

    def refused(sources, room, *arguments):
        monkeypatch.setattr(datasets, "memory_left", lambda: room * frame)
        with pytest.raises(TalkheadError, match="talkhead pack.*--set every=N or --set limit=N") as error:
            datasets.Images(sources, 16, *arguments)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "about 9 frames" in refused([tmp_path / "faces"], 8)
    assert "about 11 frames of 16x16, but memory has room for 10" in refused([films / "a.mp4", films / "c.mp4"], 10)
    for arguments in [(2,), (1, 10)]:
        assert len(datasets.Images([films / "a.mp4", films / "c.mp4"], 16, *arguments)) <= 10
    assert len(datasets.Images([whole], 16)) == 11  # it need not fit
    assert len(datasets.Images([whole, films / "a.mp4"], 16)) == 17
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "room for 7" in refused([films / "a.mp4", films / "c.mp4"], 15)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(datasets, "_frame_count", lambda path: 0)  # clips that say nothing of their length
    assert "more than 10 frames" in refused([films / "a.mp4", films / "c.mp4"], 10)
    monkeypatch.setattr(datasets, "memory_left", lambda: None)
    assert len(datasets.Images([films], 16)) == 11


def test_images_take_no_more_memory_than_their_bytes(tmp_path):
    """Frames that are made smaller leave no holes behind, and packed ones take none."""
    clip(tmp_path / "a.mp4", 800, 96)
    packed([tmp_path / "a.mp4"], tmp_path / "p.npy", 64)
    clip(tmp_path / "b.mp4", 20, 96)
    script = (
        "import sys; from talkhead import datasets\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
        "first = datasets.Images([sys.argv[1] + '/b.mp4'], 64)\n"
        "for name in ('p.npy', 'a.mp4'):\n"
        "    before = resident(); images = datasets.Images([f'{sys.argv[1]}/{name}'], 64); print(resident() - before)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc on this system")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    mapped, held = map(float, done.stdout.split())
    assert mapped < 2 and 9 < held < 9.4 + 15  # MiB; 800 frames are 9.4, and 75 before they are shrunk and as float32


def test_memory_left_is_what_the_machine_tells():
    room = datasets.memory_left()
    assert room is None or 2**24 < room <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
