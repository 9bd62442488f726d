"""Arrays and streams to and from files and pipes."""

import io
import json
import os
import resource
import struct
import subprocess
import sys
import textwrap
import threading
import wave
import zipfile
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

import talkhead
import toys
from talkhead import audio_files, files, image_files, video_files
from talkhead.errors import TalkheadError

RATE = 16000  # samples per second
CHECKOUT = Path(__file__).parents[1]


def noise(count, height=17, width=15, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def tone(seconds, rate=RATE, hertz=440.0, channels=1):
    wave = 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)
    return wave if channels == 1 else np.stack([wave] * channels, axis=1)


def clicks(seconds, rate=RATE, every=0.5):
    """Silence with a short burst at every multiple of `every` seconds but the first: what alignment is measured on."""
    samples = np.zeros(round(seconds * rate), np.float32)
    for start in np.arange(every, seconds, every):
        at = round(start * rate)
        samples[at : at + rate // 200] = 0.8
    return samples


def first_click(samples, rate=RATE):
    return np.argmax(np.abs(samples) > 0.3) / rate


def written(frames, **options):
    """The bytes of a pipe that carried these frames."""
    stream = io.BytesIO()
    return save(stream, frames, **options).getvalue()


def save(place, frames, **options):
    return toys.write_frames(place, frames, **({"lossless": None} | options))


def read(source, **options):
    with video_files.read_frames(source, **options) as reader:
        return np.stack(list(reader))


class OneWay:
    """What a pipe offers: bytes in order, and no position."""

    def __init__(self, data):
        self._stream = io.BytesIO(data)
        self.taken = 0

    def read(self, size):
        data = self._stream.read(min(size, 5000))
        self.taken += len(data)
        return data


def make_video(path, times, time_base=Fraction(1, 90000), rate=30):
    """A video made without the code under test: frame i, grey level i, is shown at times[i] seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 16, 16, "rgb24"
        stream.codec_context.time_base = time_base
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def ffmpeg_fps(path, fps=25):
    """Grey levels that FFmpeg's own filter "fps" gives."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        chain = [
            graph.add_buffer(template=stream, time_base=stream.time_base),
            graph.add("fps", f"fps={fps}"),
            graph.add("buffersink"),
        ]
        chain[0].link_to(chain[1])
        chain[1].link_to(chain[2])
        graph.configure()
        levels = []
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            while True:
                try:
                    levels.append(int(graph.pull().to_ndarray(format="rgb24")[0, 0, 0]))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return levels


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and ";" in text, text
    return text


# Arrays and latents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 4)), np.asfortranarray(np.eye(3)), np.int64(7)]
)
def test_array_through_file_and_pipe(tmp_path, array):
    pipe = io.BytesIO()
    files.write_array(tmp_path / "a.npy", array)
    files.write_array(pipe, array)
    for back in (
        files.read_array(tmp_path / "a.npy"),
        np.load(tmp_path / "a.npy"),
        files.read_array(OneWay(pipe.getvalue())),
    ):
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype


def test_array_that_is_none(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(TalkheadError, match="objects.npy: holds objects") as error:
        files.read_array(tmp_path / "objects.npy")
    one_line(error)
    np.save(tmp_path / "whole.npy", np.zeros(1000))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:5000])
    (tmp_path / "header.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:50])
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.npy").write_text("not an array at all")
    for name, word in [
        ("cut", "cut short"),
        ("header", "cut short"),
        ("empty", "empty"),
        ("text", "not a .npy"),
        ("missing", "no such file"),
    ]:
        with pytest.raises(TalkheadError, match=word) as error:
            files.read_array(tmp_path / f"{name}.npy")
        assert one_line(error).startswith(str(tmp_path / f"{name}.npy"))
        with pytest.raises(TalkheadError, match=word) as mapped:
            files.map_array(tmp_path / f"{name}.npy")
        assert one_line(mapped) == one_line(error)
    with pytest.raises(TalkheadError, match="objects.npy: holds objects"):
        files.map_array(tmp_path / "objects.npy")
    with pytest.raises(TalkheadError, match="-: empty"):
        files.read_array(OneWay(b""))


def test_array_written_entry_by_entry(tmp_path):
    entries = np.random.default_rng(0).integers(0, 256, (7, 4, 5), dtype=np.uint8)
    with files.array_writer(tmp_path / "a.npy", (4, 5)) as writer:
        for count, entry in enumerate(entries):
            writer.write(entry)
            if count == 2:
                writer.write(entry.T.reshape(4, 5))
                writer.cut(3)
        assert writer.count == 7 and not (tmp_path / "a.npy").exists()
    for back in (
        np.load(tmp_path / "a.npy"),
        files.read_array(tmp_path / "a.npy"),
        files.map_array(tmp_path / "a.npy"),
    ):
        assert back.dtype == np.uint8 and np.array_equal(back, entries)
    mapped = files.map_array(tmp_path / "a.npy")
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    # Whatever came into the file last, its length is what its head says.
    assert (tmp_path / "a.npy").stat().st_size == mapped.offset + entries.nbytes and mapped.offset % 64 == 0
    columns = np.arange(12.0).reshape(4, 3).T
    with files.array_writer(tmp_path / "b.npy", (4,), ">f8") as writer:
        for column in columns.astype(">f8"):
            writer.write(column)
    assert np.array_equal(np.load(tmp_path / "b.npy"), columns) and np.load(tmp_path / "b.npy").dtype == ">f8"
    with pytest.raises(ZeroDivisionError), files.array_writer(tmp_path / "c.npy", (4, 5)) as writer:
        writer.write(entries[0])
        1 / 0
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "b.npy"]


def test_latents(tmp_path):
    latents = np.random.default_rng(0).standard_normal((5, 10, 512)).astype(np.float32)
    files.write_latents(tmp_path / "lat.npy", latents, {"generator": "abc", "fps": 25.0})
    np.testing.assert_array_equal(files.read_latents(tmp_path / "lat.npy"), latents)
    assert (
        json.loads((tmp_path / "lat.json").read_text())
        == files.read_about(tmp_path / "lat.npy")
        == {"generator": "abc", "fps": 25.0}
    )
    pipe = io.BytesIO()
    files.write_latents(pipe, iter(latents), {"generator": "abc"})
    np.testing.assert_array_equal(files.read_latents(OneWay(pipe.getvalue())), latents)
    assert files.read_about("-") == {}
    files.write_array(tmp_path / "one.npy", latents[0].astype(np.float64))
    with pytest.warns(
        UserWarning,
        match=r"one.npy: \(10, 512\) is read as one latent of 10 layers; frames are \(frames, layers, 512\)$",
    ):
        one = files.read_latents(tmp_path / "one.npy")
    assert one.shape == (1, 10, 512) and one.dtype == np.float32


def test_latents_of_other_projects(tmp_path):
    import torch

    latents = np.random.default_rng(0).standard_normal((2, 6, 512)).astype(np.float32)
    np.savez(tmp_path / "projected_w.npz", w=latents, noise=np.zeros(3))  # stylegan2-ada-pytorch's projector.py
    np.savez_compressed(tmp_path / "one.npz", anything=latents)
    torch.save(torch.tensor(latents), tmp_path / "e4e.pt")  # e4e's inference.py: latents.pt
    torch.save(torch.nn.Parameter(torch.tensor(latents)), tmp_path / "pti.pt")  # PTI's pivot: 0.pt
    torch.save(torch.tensor(latents, dtype=torch.float64), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("projected_w.npz", "one.npz", "e4e.pt", "pti.pt", "old.pt"):
        assert files.is_latents(tmp_path / name), name
        np.testing.assert_array_equal(files.read_latents(tmp_path / name), latents)
    np.savez(tmp_path / "two.npz", a=latents, b=latents)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "projected_w.npz").read_bytes()[:9000])
    flipped = bytearray((tmp_path / "one.npz").read_bytes())
    flipped[5000:5100] = bytes(100)
    (tmp_path / "flipped.npz").write_bytes(flipped)
    np.savez(tmp_path / "objects.npz", w=np.array([None]))
    np.save(tmp_path / "array.npy", latents)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    torch.save({"w": torch.tensor(latents)}, tmp_path / "dict.pt")
    for name, message in (
        ("two.npz", "holds 2 arrays .a, b., none called w"),
        ("cut.npz", "damaged"),
        ("flipped.npz", "damaged"),
        ("objects.npz", "no numbers"),
        ("array.npz", "not an archive of arrays"),
        ("none.npz", "no such file"),
        ("dict.pt", "holds a dict, wanted one tensor of latents"),
        ("none.pt", "no such file"),
    ):
        with pytest.raises(TalkheadError, match=f"^{tmp_path}/{name}: .*{message}") as error:
            files.read_latents(tmp_path / name)
        one_line(error)
    assert not any(files.is_latents(tmp_path / name) for name in ("dict.pt", "none.pt", "x.png", "-"))


@pytest.mark.parametrize("place", ["lat.npy", None])
def test_latents_written_as_they_go_by(tmp_path, place):
    latents = np.random.default_rng(0).normal(size=(3, 4, 512)).astype(np.float32)
    destination = io.BytesIO() if place is None else tmp_path / place
    with files.tee_latents(destination, iter(latents), {"fps": 25.0}) as path:
        assert place is None or not destination.exists()
        np.testing.assert_array_equal(list(path), latents)
    if place is None:
        destination.seek(0)
    np.testing.assert_array_equal(np.load(destination), latents)
    assert place is None or files.read_about(destination) == {"fps": 25.0}
    with pytest.raises(RuntimeError), files.tee_latents(tmp_path / "other.npy", iter(latents)) as path:
        next(path)
        raise RuntimeError
    assert not (tmp_path / "other.npy").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "array, word",
    [
        (np.zeros((3, 10, 511), np.float32), r"\(3, 10, 511\)"),
        (np.zeros((512,), np.float32), r"\(512,\)"),
        (np.zeros((0, 10, 512), np.float32), r"\(0, 10, 512\)"),
        (np.zeros((2, 10, 512), np.int32), "int32"),
        (np.where(np.arange(3)[:, None, None] == 1, np.nan, np.zeros((3, 10, 512))), "frame 1: holds NaN"),
        (np.full((1, 10, 512), np.inf), "frame 0: holds NaN or infinity"),
    ],
)
def test_latents_that_are_none(tmp_path, array, word):
    np.save(tmp_path / "lat.npy", array)
    with pytest.raises(TalkheadError, match=word) as error:
        files.read_latents(tmp_path / "lat.npy")
    one_line(error)


# Places ---------------------------------------------------------------------------------------------------------------


def test_atomic(tmp_path):
    place = tmp_path / "a.txt"
    place.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with files.atomic(place) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    assert place.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with files.atomic(place) as temporary:
        temporary.write_text("new")
        assert place.read_text() == "old" and temporary.suffix == ".txt"
    assert place.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_atomic_keeps_links_modes_and_devices(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with files.atomic(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "plain").stat().st_mode
    files.write_array("/dev/null", np.zeros(3))
    assert Path("/dev/null").is_char_device()


def one_by_one(place):
    with files.array_writer(place, (1000,)) as writer:
        for _ in range(100):
            writer.write(np.zeros(1000, np.uint8))


WRITERS = {
    "entries.npy": one_by_one,
    "array.npy": lambda place: files.write_array(place, np.zeros(100_000)),
    "picture.png": lambda place: image_files.write_image(place, noise(1, 300, 300)[0]),
    "video.mp4": lambda place: save(place, noise(30, 64, 64), sound=(tone(1), RATE)),
    "video.mkv": lambda place: save(place, noise(30, 64, 64), lossless=True),
    "frame.png": lambda place: save(place, noise(1, 300, 300)),
    "folder": lambda place: save(place, noise(3, 300, 300)),
    "weights.pt": lambda place: files.save_weights(
        place, {"kind": "encoder", "model": {"w": __import__("torch").zeros(100_000)}}
    ),
    "about.json": lambda place: files.write_json(place, {"a": [0] * 100_000}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_place_that_cannot_be_written_to(tmp_path, name):
    (tmp_path / "file").touch()
    for folder, word in [
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "file", "does not exist|part of its path"),
    ]:
        with pytest.raises(TalkheadError, match=word) as error:
            WRITERS[name](folder / name)
        assert one_line(error).startswith(str(folder / name))
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(TalkheadError, match="permission denied") as error:
            WRITERS[name](tmp_path / "locked" / name)
        one_line(error)
    assert os.listdir(tmp_path / "missing" if (tmp_path / "missing").exists() else tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk(tmp_path, name):
    """A limit on the size of files fails a write half-way as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(TalkheadError, match="larger than a file may be") as error:
            WRITERS[name](tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert one_line(error).startswith(str(tmp_path / name))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_device():
    for write in (WRITERS["array.npy"], lambda place: save(place, noise(30, 64, 64))):
        with open("/dev/full", "wb", buffering=0) as full:
            with pytest.raises(TalkheadError, match="the disk is full") as error:
                write(full)
        one_line(error)


# Weights --------------------------------------------------------------------------------------------------------------


def test_weights(tmp_path):
    import torch

    path = tmp_path / "e.pt"
    weights = {"kind": "encoder", "config": {"width": 8}, "step": 3, "model": {"w": torch.arange(5.0)}}
    files.save_weights(path, weights)
    back = files.load_weights(path, kind="encoder")
    assert back["step"] == 3 and torch.equal(back["model"]["w"], weights["model"]["w"])
    with pytest.raises(TalkheadError, match="holds an encoder, wanted a generator; pass it as --encoder"):
        files.load_weights(path, kind="generator")
    torch.save({"g_ema": {}}, tmp_path / "other.pt")
    assert files.load_weights(tmp_path / "other.pt") == {"g_ema": {}}
    with pytest.raises(TalkheadError, match="not talkhead weights"):
        files.load_weights(tmp_path / "other.pt", kind="generator")


def test_weights_that_are_none(tmp_path):
    import torch

    files.save_weights(tmp_path / "whole.pt", {"kind": "encoder", "model": {"w": torch.zeros(5000)}})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:9000])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("hello, this is not a pickle")
    (tmp_path / "noise.pt").write_bytes(noise(30).tobytes())
    torch.save({"kind": "encoder", "run": subprocess.run}, tmp_path / "unsafe.pt")
    for name in ("cut", "empty", "text", "noise", "unsafe", "missing"):
        with pytest.raises(TalkheadError) as error:
            files.load_weights(tmp_path / f"{name}.pt", kind="encoder")
        assert one_line(error).startswith(str(tmp_path / f"{name}.pt"))


# Pictures -------------------------------------------------------------------------------------------------------------


def test_picture_back_and_forth(tmp_path):
    image = noise(1, 20, 31)[0]
    image_files.write_image(tmp_path / "a.png", image, {"talkhead_aligned": "20", "author": "Zoë"})
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "a.png"), image)
    assert Image.open(tmp_path / "a.png").text == {"talkhead_aligned": "20", "author": "Zoë"}
    with video_files.read_frames(tmp_path / "a.png") as reader:
        assert (reader.size, reader.aligned, reader.metadata["author"], reader.sound) == ((20, 31), True, "Zoë", None)
        np.testing.assert_array_equal(np.stack(list(reader)), image[None])
    image_files.write_image(tmp_path / "b.jpg", image, {"talkhead_aligned": "20"}, synthetic=True)
    with video_files.read_frames(tmp_path / "b.jpg") as reader:
        assert reader.aligned and reader.metadata["digital_source_type"] == files.SYNTHETIC_TYPE
    smooth = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    image_files.write_image(tmp_path / "a.jpg", smooth)
    assert np.abs(image_files.read_image(tmp_path / "a.jpg").astype(int) - smooth).max() <= 3
    np.testing.assert_array_equal(image_files.read_image(OneWay((tmp_path / "a.png").read_bytes())), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """All eight, against the table of the EXIF standard: where row 0 and column 0 of what is stored are seen."""
    seen = np.zeros((24, 16, 3), np.uint8)
    seen[:8, :8] = [250, 20, 20]  # top left
    seen[:8, 8:] = [20, 250, 20]  # top right
    stored = toys.stored_by_exif(seen, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "photo.png"), seen)


def test_picture_modes(tmp_path):
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey", "deep"):
        np.testing.assert_array_equal(image_files.read_image(tmp_path / f"{name}.png"), np.stack([grey] * 3, axis=-1))
    half = np.full((4, 6, 4), [0, 100, 200, 128], np.uint8)
    Image.fromarray(half).save(tmp_path / "alpha.png")
    assert np.abs(image_files.read_image(tmp_path / "alpha.png").astype(int) - [127, 177, 227]).max() <= 1
    palette = Image.fromarray(noise(1, 4, 6)[0]).quantize(4)
    palette.save(tmp_path / "palette.png", transparency=0)
    image = image_files.read_image(tmp_path / "palette.png")
    assert (image[np.asarray(palette) == 0] == 255).all() and image.shape == (4, 6, 3)
    Image.fromarray(noise(1, 8, 8)[0]).convert("CMYK").save(tmp_path / "print.jpg")
    assert image_files.read_image(tmp_path / "print.jpg").shape == (8, 8, 3)


def test_picture_that_is_none(tmp_path):
    image_files.write_image(tmp_path / "whole.png", noise(1, 64, 64)[0])
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    for name in ("cut.png", "empty.png", "text.jpg", "missing.png", "folder.png"):
        with pytest.raises(TalkheadError) as error:
            image_files.read_image(tmp_path / name)
        assert one_line(error).startswith(str(tmp_path / name))
    with pytest.raises(TalkheadError, match="end the name in"):
        image_files.write_image(tmp_path / "a.tga", noise(1)[0])


# Frames through a pipe ------------------------------------------------------------------------------------------------


def test_pipe_is_bit_exact():
    """Frames of odd size, noise in all three colours, and 16-bit sound: equal after one pipe, and after two."""
    frames = noise(33)
    samples = np.random.default_rng(1).integers(-32768, 32768, (round(33 / 25 * 44100), 2), dtype=np.int16)
    once = written(frames, sound=(samples / np.float32(32768), 44100), metadata={"talkhead_aligned": "17"})
    with video_files.read_frames(OneWay(once)) as reader:
        assert (reader.size, reader.fps, reader.source_fps, reader.aligned) == ((17, 15), 25.0, 25.0, True)
        assert (reader.sound.rate, reader.sound.channels) == (44100, 2)
        twice = written(reader, sound=reader.sound, metadata=reader.metadata)
    for stream in (once, twice):
        np.testing.assert_array_equal(read(OneWay(stream)), frames)
        with video_files.read_frames(OneWay(stream)) as reader:
            sound = reader.sound
            list(reader)
            np.testing.assert_array_equal(sound.take(10**9, wait=True), samples)
    with av.open(io.BytesIO(twice)) as container:  # a plain file that others can play
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "flac"]
        assert container.metadata["talkhead_aligned"] == "17"


def test_pipe_needs_no_position():
    class Forward:
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    stream = Forward()
    save(stream, noise(12))
    np.testing.assert_array_equal(read(OneWay(stream.data)), noise(12))


def test_pipe_gives_frames_soon():
    """A frame comes out before 25 more, one second, have gone in, and most come sooner."""
    marks = []
    stream = io.BytesIO()
    with video_files.FrameWriter(stream, sound=(tone(4), RATE)) as writer:
        for frame in noise(100, 32, 32):
            writer.write(frame)
            marks.append(stream.tell())
    source = OneWay(stream.getvalue())
    with video_files.read_frames(source) as reader:
        ahead = [int(np.searchsorted(marks, source.taken)) - index for index, _ in enumerate(reader)]
    assert len(ahead) == 100 and max(ahead) <= 25 and np.mean(ahead) <= 15


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.9, 0.999])
def test_pipe_cut_short(cut):
    data = written(noise(40, 32, 32), sound=(tone(1.6), RATE))
    with pytest.raises(TalkheadError, match="-: ") as error:
        read(OneWay(data[: int(cut * len(data))]))
    one_line(error)


def test_failed_writer_is_noticed_wherever_it_stopped():
    """Also where a fragment ends, when every byte there is makes sense."""
    for count in (1, 10, 11, 20, 25):
        stream = io.BytesIO()
        with pytest.raises(RuntimeError, match="upstream"):
            with video_files.FrameWriter(stream) as writer:
                for frame in noise(count):
                    writer.write(frame)
                raise RuntimeError("upstream")
        with pytest.raises(TalkheadError, match="empty|cut short|damaged") as error:
            read(OneWay(stream.getvalue()))
        one_line(error)


def test_pipe_that_holds_no_video():
    for data, word in [
        (b"", "empty"),
        (b"hello world\n" * 100, "not a video"),
        (noise(30).tobytes(), "not a video"),
        (np.lib.format.MAGIC_PREFIX + bytes(5000), "not a video"),
    ]:
        with pytest.raises(TalkheadError, match=word) as error:
            read(OneWay(data))
        assert one_line(error).startswith("-: ")


def test_reader_leaves(capfd):
    """BrokenPipeError and nothing else: no traceback out of a callback, nothing on stderr."""
    reading, writing = os.pipe()
    reader = threading.Thread(target=lambda: (os.read(reading, 1000), os.close(reading)))
    reader.start()
    with open(writing, "wb", buffering=0) as stream:
        with pytest.raises(BrokenPipeError):
            with video_files.FrameWriter(stream, sound=(tone(8), RATE)) as writer:
                for frame in noise(200, 64, 64):
                    writer.write(frame)
    reader.join()
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as stream, pytest.raises(BrokenPipeError):
        files.write_array(stream, np.zeros(100_000))
    assert capfd.readouterr() == ("", "")


def run(script, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], cwd=CHECKOUT, capture_output=True, **options
    )


def test_standard_streams():
    """ "-" is standard input and output, between processes."""
    frames = noise(15)
    copy = """
        from talkhead import video_files
        with video_files.read_frames("-") as reader:
            with video_files.FrameWriter("-", sound=reader.sound, metadata=reader.metadata) as writer:
                for frame in reader:
                    writer.write(frame)
        """
    result = run(copy, input=written(frames, sound=(tone(0.6), RATE), metadata={"talkhead_aligned": "17"}))
    assert (result.returncode, result.stderr) == (0, b"")
    np.testing.assert_array_equal(read(OneWay(result.stdout)), frames)
    sound = audio_files.read_audio(OneWay(result.stdout))
    assert len(sound) == 9600 and np.abs(sound - tone(0.6)).max() < 1e-4


def test_memory_is_flat(tmp_path):
    """Ten times the frames through reader and writer, the sound along with them, takes no more memory."""
    frame = noise(1, 48, 48)[0]
    for count in (60, 600):
        with open(tmp_path / f"{count}.mp4", "wb") as stream:
            stream.write(
                written(
                    (np.roll(frame, shift, 1) for shift in range(count)),
                    sound=(tone(count / 25, 48000, channels=2), 48000),
                )
            )
    copy = """
        import resource, sys
        from talkhead import video_files
        for count in (60, 600):
            source = open(f"{sys.argv[1]}/{count}.mp4", "rb", buffering=0)
            with source, open("/dev/null", "wb", buffering=0) as target, video_files.read_frames(source) as reader:
                with video_files.FrameWriter(target, sound=reader.sound) as writer:
                    for frame in reader:
                        writer.write(frame)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        """
    result = run(copy, str(tmp_path), text=True)
    assert result.returncode == 0, result.stderr
    short, long = map(float, result.stdout.split())
    assert long < short + 3  # MiB; the long clip's frames are 4 MB, its sound 4.6 MB


# Frames out of any video ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("name", ["25", "30", "29.97", "12", "60", "variable", "one"])
def test_frame_rate_as_ffmpeg_does(tmp_path, name, suffix):
    """Frames dropped and repeated are those that FFmpeg's filter "fps" drops and repeats."""
    steps = np.random.default_rng(0).choice([0.01, 0.033, 0.04, 0.1, 0.3], 50)
    times = {
        "25": np.arange(31) / 25,
        "30": np.arange(61) / 30,
        "29.97": np.arange(90) * 1001 / 30000,
        "12": np.arange(20) / 12,
        "60": np.arange(77) / 60,
        "variable": np.cumsum(steps) - steps[0],
        "one": [0],
    }[name]
    path = make_video(
        tmp_path / f"clip{suffix}",
        [Fraction(float(time)) for time in times],
        Fraction(1, 1000) if suffix == ".mkv" else Fraction(1, 90000),
    )
    got = [int(frame[0, 0, 0]) for frame in video_files.read_frames(path)]
    assert got == (ffmpeg_fps(path) or [0])  # Departure: of a clip shorter than half a frame one frame is left
    if name == "30":
        with video_files.read_frames(path) as reader:
            assert reader.source_fps == 30


def test_thirty_to_twenty_five_by_hand(tmp_path):
    """Frame i of 30 per second belongs to output frame round(i * 25 / 30): of every six one gives way to the next."""
    path = make_video(tmp_path / "clip.mp4", [Fraction(index, 30) for index in range(12)])
    assert [int(frame[0, 0, 0]) for frame in video_files.read_frames(path)] == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]
    assert [int(frame[0, 0, 0]) for frame in video_files.read_frames(path, limit=3)] == [0, 1, 2]
    assert [int(frame[0, 0, 0]) for frame in video_files.read_frames(path, fps=30)] == list(range(12))


def test_readers_say_how_many_frames_are_to_come(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    for name in ("clip.mp4", "folder", "clip.mkv"):
        save(tmp_path / name, frames)
        if name != "clip.mkv":  # Matroska tells the time of the whole file alone
            with video_files.read_frames(tmp_path / name) as reader:
                assert reader.count == 7 == len(list(reader))
        with video_files.read_frames(tmp_path / name, limit=3) as reader:
            assert reader.count in (3, None) and len(list(reader)) == 3
    with video_files.read_frames(tmp_path / "clip.mp4", fps=50) as twice:
        assert twice.count == 14


def test_repeated_frames_are_arrays_of_their_own(tmp_path):
    path = make_video(tmp_path / "clip.mp4", [Fraction(index, 10) for index in range(3)], rate=10)
    levels = []
    for frame in video_files.read_frames(path):
        levels.append(int(frame[0, 0, 0]))
        frame[:] = 99
    assert levels == [0] * 3 + [1] * 2 + [2] * 3  # a tenth of a second is two and a half frames


@pytest.mark.parametrize(
    "matrix, expected",
    [
        ((1, 0, 0, 1), lambda seen: seen),
        ((0, 1, -1, 0), lambda seen: np.rot90(seen, -1)),
        ((-1, 0, 0, -1), lambda seen: np.rot90(seen, 2)),
        ((0, -1, 1, 0), lambda seen: np.rot90(seen, 1)),
        ((-1, 0, 0, 1), lambda seen: seen[:, ::-1]),
        ((1, 0, 0, -1), lambda seen: seen[::-1]),
        ((0, 1, 1, 0), lambda seen: seen.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda seen: seen[::-1, ::-1].swapaxes(0, 1)),
    ],
)
def test_rotated_phone_video(tmp_path, matrix, expected):
    """The matrix of MP4's track header (ISO 14496-12: x' = ax + cy, y' = bx + dy), put there byte by byte."""
    frame = noise(1, 12, 20)[0]
    path = save(tmp_path / "phone.mp4", [frame] * 3, lossless=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version, flags, times, id, duration, layer, volume: 40 bytes before the matrix
    a, b, c, d = (value << 16 for value in matrix)
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    seen = expected(frame)
    with video_files.read_frames(path) as reader:
        assert reader.size == seen.shape[:2]
        np.testing.assert_array_equal(next(reader), seen)


def test_pixels_that_are_not_square(tmp_path):
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 72, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 9)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 72, 3), 90, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    with video_files.read_frames(tmp_path / "wide.mp4") as reader:
        assert reader.size == next(reader).shape[:2] == (64, 128)


def test_hidden_files_are_not_found(tmp_path):
    for name in (
        "b.mp4",
        "a.MP4",
        "._a.mp4",
        ".b.1234abcd.mp4",
        "notes.txt",
        "deep/c.mp4",
        "deep/.c.mp4",
        ".hidden/d.mp4",
        ".hidden/deep/e.mp4",
    ):
        (tmp_path / ".home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".home" / name).touch()
    folder = tmp_path / ".home"  # whoever names a hidden folder wants what is in it
    assert files.find(folder, {".mp4"}) == [folder / "a.MP4", folder / "b.mp4"]
    assert files.find(folder, {".mp4"}, deep=True) == [folder / "a.MP4", folder / "b.mp4", folder / "deep/c.mp4"]
    assert files.is_hidden("x/.y/z.png") and not files.is_hidden("../x/./y.png")


def test_folder_of_pictures(tmp_path):
    frames = noise(12)
    save(tmp_path / "frames", frames, metadata={"talkhead_aligned": "17"})
    assert sorted(os.listdir(tmp_path / "frames")) == [f"{index:06}.png" for index in range(12)]
    with video_files.read_frames(tmp_path / "frames") as reader:
        assert reader.aligned and reader.size == (17, 15) and reader.sound is None
        np.testing.assert_array_equal(np.stack(list(reader)), frames)
    for index in range(12):  # by number, not by letter
        (tmp_path / f"frames/{index:06}.png").rename(tmp_path / f"frames/{index}.png")
    (tmp_path / "frames/.thumbnails.png").touch()
    (tmp_path / "frames/notes.txt").touch()
    np.testing.assert_array_equal(read(tmp_path / "frames", limit=11), frames[:11])
    image_files.write_image(tmp_path / "frames/12.png", noise(1, 5, 5)[0])
    with pytest.raises(TalkheadError, match="12.png: is 5x5, the first image is 15x17") as error:
        read(tmp_path / "frames")
    one_line(error)
    (tmp_path / "none").mkdir()
    with pytest.raises(TalkheadError, match="a folder without images") as error:
        video_files.read_frames(tmp_path / "none")
    one_line(error)
    with pytest.raises(TalkheadError, match="not an empty folder") as error:
        save(tmp_path / "frames", frames)
    one_line(error)
    assert len(os.listdir(tmp_path / "frames")) == 15


def test_video_that_is_none(tmp_path):
    whole = save(tmp_path / "whole.mp4", noise(50, 64, 64), sound=(tone(2), RATE)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.txt").write_text("hello world\n" * 500)
    (tmp_path / "text.mp4").write_text("hello world\n" * 500)
    (tmp_path / "noise.mp4").write_bytes(noise(200).tobytes())
    write_wave(tmp_path / "sound.wav", tone(1))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n")
    for name in ("cut.mp4", "empty.mp4", "text.txt", "text.mp4", "noise.mp4", "sound.wav", "list.m3u8", "missing.mp4"):
        with pytest.raises(TalkheadError) as error:
            read(tmp_path / name)
        assert one_line(error).startswith(str(tmp_path / name))


def test_name_with_a_colon(tmp_path):
    path = save(tmp_path / "12:30 clip.mp4", noise(3), lossless=True)
    np.testing.assert_array_equal(read(path), noise(3))
    assert image_files.read_image(save(tmp_path / "a:b.png", noise(1))).shape == (17, 15, 3)


def test_frames_too_large_for_a_video(tmp_path):
    for destination in (tmp_path / "a.mp4", io.BytesIO()):
        with pytest.raises(
            TalkheadError,
            match=r"frames of 16386x2 are too large for a video, at most 16384 pixels a side; make them smaller",
        ):
            with video_files.FrameWriter(destination) as writer:
                writer.write(np.zeros((2, 16386, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_grid(shared_data):
    """MPEG-1 of the thesis's corpus: 75 frames, three seconds of sound, in step."""
    for path in sorted((shared_data / "grid_s1" / "video").glob("*.mpg"))[:3]:
        with video_files.read_frames(path) as reader:
            assert reader.size == (288, 360) and reader.source_fps == 25
            sound, frames = reader.sound, np.stack(list(reader))
            assert (sound.rate, sound.channels) == (44100, 2)
        assert frames.shape == (75, 288, 360, 3)
        assert len(audio_files.read_audio(path)) == pytest.approx(3 * RATE, abs=0.04 * RATE)


# Video for people -----------------------------------------------------------------------------------------------------


def scene(count, height=48, width=64):
    """Smooth moving colours, as video codecs expect."""
    time, y, x = np.meshgrid(np.arange(count) * 0.2, np.linspace(0, 3, height), np.linspace(0, 4, width), indexing="ij")
    return (127 + 100 * np.stack([np.sin(x + time), np.sin(y + time), np.cos(x + y)], axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_video_for_people(tmp_path, suffix):
    frames = scene(31)
    path = save(tmp_path / f"out{suffix}", frames, sound=(tone(31 / 25), RATE))
    with av.open(str(path)) as container:
        video, audio = container.streams
        assert (video.codec_context.name, video.codec_context.pix_fmt, audio.codec_context.name) == (
            "h264",
            "yuv420p",
            "aac",
        )
        assert video.average_rate == 25 and audio.codec_context.sample_rate == RATE
    back = read(path)
    assert back.shape == frames.shape
    error = back.astype(float) - frames
    assert 10 * np.log10(255**2 / (error**2).mean()) > 38  # dB
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 0.7  # of 255: no colour drifts
    if suffix != ".mkv":
        data = path.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before the end has come


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 64, 200)])
def test_colours_survive(tmp_path, colour):
    path = save(tmp_path / "plain.mp4", np.full((2, 32, 32, 3), colour, np.uint8))
    assert np.abs(read(path).astype(int) - colour).max() <= 2


def test_odd_sizes_are_padded(tmp_path):
    frames = scene(3, 33, 47)
    back = read(save(tmp_path / "odd.mp4", frames))
    assert back.shape == (3, 34, 48, 3)
    assert np.abs(back[:, :33, :47].astype(int) - frames).mean() < 3


def test_lossless_by_name(tmp_path):
    path = save(tmp_path / "whole.mp4", noise(9), sound=(tone(9 / 25), RATE), lossless=True)
    np.testing.assert_array_equal(read(path), noise(9))
    assert np.abs(audio_files.read_audio(path) - tone(9 / 25)).max() < 1e-4


def test_a_recording_comes_back_to_the_last_of_its_16_bits(tmp_path):
    samples = np.concatenate([tone(0.3), [1.5, -1.5]]).astype(np.float32)
    audio_files.write_audio(tmp_path / "a.wav", samples)
    with wave.open(str(tmp_path / "a.wav")) as theirs:
        assert theirs.getparams()[:3] == (1, 2, RATE)
        np.testing.assert_array_equal(
            np.frombuffer(theirs.readframes(RATE), "<i2"), (samples * 32768).round().clip(-32768, 32767)
        )
    np.testing.assert_allclose(audio_files.read_audio(tmp_path / "a.wav"), samples.clip(-1, 1), atol=2**-15)


@pytest.mark.parametrize("place", ["out.mp4", "frames", "-"])
def test_synthetic_mark(tmp_path, place):
    """What `ffprobe` shows: the digital source type of the IPTC, and who made it."""
    stream = io.BytesIO()
    destination = stream if place == "-" else tmp_path / place
    save(
        destination,
        scene(2),
        synthetic=True,
        metadata={"talkhead_aligned": "48", "encoder": "other", "minor_version": "512"},
    )
    if place == "frames":
        tags = Image.open(tmp_path / "frames/000001.png").text
    else:
        with av.open(io.BytesIO(stream.getvalue()) if place == "-" else str(destination)) as container:
            tags = container.metadata
    assert tags["digital_source_type"] == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert (
        tags["software"].startswith("talkhead ") and tags["talkhead_aligned"] == "48" and tags.get("encoder") != "other"
    )
    with video_files.read_frames(io.BytesIO(stream.getvalue()) if place == "-" else destination) as reader:
        assert reader.aligned and files.STREAM_TAG not in reader.metadata
        again = save(tmp_path / "again.mp4", reader, metadata=reader.metadata)
    with video_files.read_frames(again) as reader:  # a mark stays on what is made of what bears it
        assert reader.metadata["digital_source_type"] == tags["digital_source_type"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_the_mark_of_an_image_is_xmp_too(tmp_path, name):
    """Where IPTC's standard puts it; an image that another program marked so is known by it, and its copy keeps it."""
    image_files.write_image(tmp_path / name, noise(1)[0], synthetic=True)
    info = Image.open(tmp_path / name).info
    (mark,) = ElementTree.fromstring(info["xmp"]).iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert mark.text == files.SYNTHETIC_TYPE
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + files.SYNTHETIC_TYPE.encode() + b"</x:xmpmeta>"
    Image.fromarray(noise(1)[0]).save(tmp_path / "theirs.jpg", xmp=packet)
    with video_files.read_frames(tmp_path / "theirs.jpg") as reader:
        image_files.write_image(tmp_path / f"copy{name}", next(iter(reader)), reader.metadata)
    for path in (tmp_path / "theirs.jpg", tmp_path / f"copy{name}"):
        assert talkhead.describe(path)["synthetic"], path
    Image.fromarray(noise(1)[0]).save(tmp_path / "camera.jpg", xmp=packet.replace(b"trained", b"digital"))
    assert not talkhead.describe(tmp_path / "camera.jpg")["synthetic"]


def test_what_a_file_is(tmp_path):
    sound = (tone(1, RATE), RATE)
    clip = save(tmp_path / "a.mp4", scene(25), sound=sound, metadata={"talkhead_aligned": "48"}, synthetic=True)
    with video_files.read_frames(clip) as reader:
        height, width = reader.size
    assert talkhead.describe(clip) == {
        "file": str(clip),
        "codec": "h264",
        "width": width,
        "height": height,
        "fps": 25.0,
        "seconds": 1.0,
        "sound": True,
        "aligned": True,
        "synthetic": True,
        "software": f"talkhead {talkhead.__version__}",
    }
    image_files.write_image(tmp_path / "a.jpg", noise(1)[0])
    told = talkhead.describe(tmp_path / "a.jpg")
    assert told["codec"] == "jpeg" and told["fps"] is told["seconds"] is told["software"] is None
    assert not (told["synthetic"] or told["sound"] or told["aligned"])
    image_files.write_image(tmp_path / "b.jpg", noise(1)[0], synthetic=True)
    assert talkhead.describe(tmp_path / "b.jpg")["synthetic"]


def test_one_picture(tmp_path):
    frame = noise(2)
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", frame[:1])), frame[:1])
    with pytest.raises(TalkheadError, match="more than one frame") as error:
        save(tmp_path / "b.png", frame)
    assert one_line(error).startswith(str(tmp_path / "b.png")) and not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("place", ["out.mp4", "frames", "a.png"])
def test_nothing_is_left_behind(tmp_path, place):
    with pytest.raises(KeyboardInterrupt):
        with video_files.FrameWriter(tmp_path / place, sound=(tone(1), RATE)) as writer:
            writer.write(noise(1)[0])
            raise KeyboardInterrupt
    with pytest.raises(TalkheadError, match="no frames") as error:
        save(tmp_path / place, [])
    one_line(error)
    with pytest.raises(TalkheadError, match="frame 1: the size changes to 5x5") as error:
        save(tmp_path / place, [noise(1)[0], noise(1, 5, 5)[0]])
    one_line(error)
    with pytest.raises(TalkheadError, match="end the name in") as error:
        save(tmp_path / "out.webm", noise(1))
    one_line(error)
    assert os.listdir(tmp_path) == []


# Sound ----------------------------------------------------------------------------------------------------------------


def write_wave(path, samples, rate=RATE):
    """A WAV made without the code under test."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    with wave.open(str(path), "wb") as stream:
        stream.setparams((samples.shape[1], 2, rate, 0, "NONE", ""))
        stream.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def encode_sound(path, samples, rate, codec, layout):
    """A sound file of any codec made without the code under test."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray((samples * 32767).astype(np.int16)).reshape(1, -1), format="s16", layout=layout
        )
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_speech_as_it_is(tmp_path):
    samples = tone(1.003)
    back = audio_files.read_audio(write_wave(tmp_path / "a.wav", samples))
    assert back.dtype == np.float32 and back.shape == samples.shape
    np.testing.assert_array_equal(back, ((samples * 32767).astype(np.int16) / np.float32(32768)))
    np.testing.assert_array_equal(audio_files.read_audio(OneWay((tmp_path / "a.wav").read_bytes())), back)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_of_any_rate(tmp_path, rate, channels):
    """A tone comes out as the same tone: same length, same phase, same height."""
    back = audio_files.read_audio(write_wave(tmp_path / "a.wav", tone(1, rate, channels=channels), rate))
    assert abs(len(back) - RATE) <= 1
    assert np.abs(back[500:-500] - tone(1)[500 : len(back) - 500]).max() < 0.004


def test_surround_sound(tmp_path):
    """5.1: the speech in the centre is heard, and nothing clips though all six speak at once."""
    six = np.zeros((48000, 6), np.float32)
    six[:, 2] = tone(1, 48000)
    centre = audio_files.read_audio(write_wave(tmp_path / "centre.wav", six, 48000))
    assert (
        len(centre) == RATE
        and np.corrcoef(centre[500:-500], tone(1)[500:-500])[0, 1] > 0.999
        and np.abs(centre).max() > 0.08
    )
    loud = audio_files.read_audio(
        write_wave(tmp_path / "loud.wav", np.repeat(tone(1, 48000, channels=1)[:, None] * 2.4, 6, axis=1), 48000)
    )
    assert 0.5 < np.abs(loud).max() <= 1 and np.corrcoef(loud[500:-500], tone(1)[500:-500])[0, 1] > 0.999


@pytest.mark.parametrize(
    "name, codec, rate, layout",
    [
        ("a.m4a", "aac", 44100, "stereo"),
        ("a.ogg", "libopus", 48000, "mono"),
        ("a.mp3", "libmp3lame", 44100, "mono"),
        ("a.flac", "flac", 96000, "5.1"),
    ],
)
def test_sound_of_any_codec(tmp_path, name, codec, rate, layout):
    """A click at half a second stays there: what codecs put before the first sample is dropped."""
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    samples = np.repeat(clicks(2, rate)[:, None], channels, axis=1)
    back = audio_files.read_audio(encode_sound(tmp_path / name, samples, rate, codec, layout))
    assert np.abs(back[: RATE // 3]).max() < 0.1
    assert np.argmax(np.abs(back) > 0.25) / RATE == pytest.approx(0.5, abs=0.004)
    assert len(back) == pytest.approx(2 * RATE, abs=0.06 * RATE)


def test_sound_keeps_step_with_frames(tmp_path):
    """A flash and a click at the same instants, through every kind of file and twice through a pipe, stay together."""
    flashes = [
        np.full((32, 32, 3), 255 if index % 25 == 12 else 0, np.uint8) for index in range(75)
    ]  # at 0.48 s, 1.48 s, 2.48 s
    sound = np.roll(clicks(3, 48000, every=1.0), -round(0.52 * 48000))
    pipe = written(flashes, sound=(sound, 48000))
    with video_files.read_frames(OneWay(pipe)) as reader:
        pipe = written(reader, sound=reader.sound)
    sources = [pipe]
    for suffix in (".mp4", ".mkv", ".mov"):
        with video_files.read_frames(OneWay(pipe)) as reader:
            save(tmp_path / f"out{suffix}", reader, sound=reader.sound)
        sources.append(tmp_path / f"out{suffix}")
    for source in sources:
        opened = (lambda: OneWay(source)) if source is pipe else (lambda: source)
        frames = read(opened())
        assert len(frames) == 75 and np.argmax(frames.mean(axis=(1, 2, 3)) > 128) == 12
        samples = audio_files.read_audio(opened())
        assert first_click(samples) == pytest.approx(0.48, abs=0.002)
        assert len(samples) == (pytest.approx(3 * RATE, abs=0.04 * RATE) if str(source).endswith(".mkv") else 3 * RATE)


@pytest.mark.parametrize("video_start, audio_start", [(0, 0), (0.5, 0), (0, 0.5), (10, 10.2), (3, 2)])
@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_sample_zero_is_heard_with_the_first_picture(tmp_path, suffix, video_start, audio_start):
    """Tracks that start at different times: sound before the first picture is dropped, silence put where it is late."""
    path = tmp_path / f"late{suffix}"
    samples = clicks(4, 48000, every=2.0)  # one click, at 2 s of the sound
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"tune": "zerolatency"})
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac" if suffix == ".ts" else "flac", rate=48000)
        audio.codec_context.layout = "mono"
        packets = []
        for index in range(75):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = index + round(video_start * 25), Fraction(1, 25)
            packets += video.encode(frame)
        block = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        block.sample_rate, block.time_base, block.pts = 48000, Fraction(1, 48000), round(audio_start * 48000)
        packets += video.encode(None) + audio.encode(block) + audio.encode(None)
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    expected = 2 + audio_start - video_start
    assert first_click(audio_files.read_audio(path)) == pytest.approx(
        expected, abs=0.025
    )  # AAC in MPEG-TS keeps its priming, 21 ms
    with video_files.read_frames(path) as reader:
        pipe = written(reader, sound=reader.sound)
    assert len(read(OneWay(pipe))) == 75
    if expected < 3:
        assert first_click(audio_files.read_audio(OneWay(pipe))) == pytest.approx(expected, abs=0.025)


def test_sound_ends_with_the_frames(tmp_path):
    for seconds in (0.3, 1.0, 5.0):
        for place in (tmp_path / "out.mp4", io.BytesIO()):
            save(place, scene(25, 16, 16), sound=(tone(seconds), RATE))
            place = place if isinstance(place, Path) else OneWay(place.getvalue())
            samples = audio_files.read_audio(place)
            assert len(samples) == pytest.approx(RATE, abs=0.04 * RATE)
            heard = round(min(seconds, 1.0) * RATE) - 400
            assert (
                np.abs(samples[heard - 200 : heard]).max() > 0.3
                and np.abs(samples[heard + 1600 : RATE]).max(initial=0) < 0.05
            )


def test_limit_cuts_the_sound_too(tmp_path):
    pipe = written(noise(50), sound=(tone(2), RATE))
    with video_files.read_frames(OneWay(pipe), limit=10) as reader:
        part = written(reader, sound=reader.sound)
    np.testing.assert_array_equal(read(OneWay(part)), noise(50)[:10])
    assert len(audio_files.read_audio(OneWay(part))) == 0.4 * RATE


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_wave_from_a_pipe(tmp_path, size):
    """sox and ffmpeg cannot know the length when they write the head; what they put there is no promise."""
    data = bytearray(write_wave(tmp_path / "a.wav", tone(2, 44100, channels=2), 44100).read_bytes())
    struct.pack_into("<I", data, 4, size)
    struct.pack_into("<I", data, data.index(b"data") + 4, size)
    (tmp_path / "b.wav").write_bytes(data)
    assert len(audio_files.read_audio(tmp_path / "b.wav")) == 2 * RATE
    if size:  # FFmpeg takes a 0 on a pipe for no sound at all
        assert len(audio_files.read_audio(OneWay(data))) == 2 * RATE


# Sound as it comes ----------------------------------------------------------------------------------------------------


def wave_bytes(samples, rate, codec, size=0xFFFFFFFF):
    """A WAV of any codec as a recorder writes it to a pipe: its head does not know the length."""
    number, bits = {
        "u8": (1, 8),
        "s16": (1, 16),
        "s24": (1, 24),
        "s32": (1, 32),
        "f32": (3, 32),
        "f64": (3, 64),
        "mulaw": (7, 8),
    }[codec]
    samples = samples[:, None] if samples.ndim == 1 else samples
    if codec.startswith("f"):
        data = samples.astype(f"<f{bits // 8}").tobytes()
    elif codec == "mulaw":  # by its formula (G.711 in full precision), not by a table
        magnitude = np.log1p(255 * np.abs(samples).clip(0, 1)) / np.log(256)
        data = (
            ~(np.floor(magnitude * 127.999).astype(np.uint8) | np.where(samples < 0, 0x80, 0).astype(np.uint8))
        ).tobytes()
    else:
        whole = np.rint(samples * (2 ** (bits - 1) - 1)).astype("<i4")
        data = (
            (whole + 128).astype(np.uint8).tobytes()
            if bits == 8
            else whole[..., None].view(np.uint8)[..., : bits // 8].tobytes()
        )
    channels = samples.shape[1]
    form = struct.pack("<HHIIHH", number, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    return (
        b"RIFF"
        + struct.pack("<I", size)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
    )


@pytest.mark.parametrize(
    "rate, channels, codec",
    [
        (8000, 1, "mulaw"),
        (8000, 1, "u8"),
        (16000, 1, "s16"),
        (16000, 4, "f32"),
        (22050, 2, "s24"),
        (44100, 2, "s16"),
        (48000, 8, "s32"),
        (96000, 6, "f64"),
        (192000, 8, "f32"),
    ],
)
def test_sound_of_any_kind_comes_block_by_block(tmp_path, rate, channels, codec):
    """Through a pipe, in small pieces, it is the sound of the file, and that is the tone that went in."""
    data = wave_bytes(tone(1.2, rate, 300.0, channels), rate, codec)
    (tmp_path / "a.wav").write_bytes(data)
    with audio_files.read_sound(OneWay(data)) as sound:
        blocks = list(sound)
        assert not sound.live and sound.rate == RATE
    assert len(blocks) > 10 and all(block.dtype == np.float32 and block.ndim == 1 for block in blocks)
    back = np.concatenate(blocks)
    np.testing.assert_allclose(back, audio_files.read_audio(tmp_path / "a.wav"), atol=1e-5)
    assert abs(len(back) - 1.2 * RATE) <= 1
    loss = {"mulaw": 0.05, "u8": 0.02}.get(codec, 2e-3)  # theirs; and ripples of the resampler
    middle = slice(RATE // 10, RATE)  # not its ends
    np.testing.assert_allclose(
        back[middle] / np.abs(back[middle]).max(), tone(1.2, RATE, 300.0)[middle] / 0.4, atol=loss
    )


@pytest.fixture
def recorder(tmp_path):
    """A function that opens a pipe by its name, as `mkfifo` and a shell's <(…) do, and writes what it is told to, and
    when."""
    threads = []

    def record(*parts):
        name = tmp_path / f"pipe{len(threads)}"
        os.mkfifo(name)

        def write():
            with open(name, "wb", buffering=0) as pipe:
                for part in parts:
                    part() if callable(part) else pipe.write(part)

        threads.append(threading.Thread(target=write))
        threads[-1].start()
        return name

    yield record
    for thread in threads:
        thread.join(10)


def test_sound_comes_before_its_end(recorder):
    """All but the last packets of what was written are heard while the writer still lives."""
    data, heard = wave_bytes(tone(4, 44100), 44100, "s16"), threading.Event()
    with audio_files.read_sound(recorder(data, lambda: heard.wait(10))) as sound:
        assert sound.live and sound.count is None
        count = 0
        while count < 3.9 * RATE:
            count += len(next(sound))
        heard.set()
        rest = sum(map(len, sound))
    assert count + rest == 4 * RATE


def test_who_waits_for_sound_is_told_so(recorder, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    told, data = [], wave_bytes(tone(1), RATE, "s16")
    waited = threading.Event()

    def on_wait():
        told.append(True)
        waited.set()

    with audio_files.read_sound(recorder(data[:9000], lambda: waited.wait(10), data[9000:]), on_wait=on_wait) as sound:
        assert sum(map(len, sound)) == RATE
    assert told


def test_recorder_that_stops_within_a_sample():
    """Where no length was promised, what came is all; where one was, it is cut short."""
    data = wave_bytes(np.stack([tone(0.5)] * 2, 1), RATE, "s16")
    with audio_files.read_sound(OneWay(data[:-3])) as sound:
        assert sum(map(len, sound)) == 0.5 * RATE - 1
    data = wave_bytes(tone(2), RATE, "s16", size=RATE * 4)
    with audio_files.read_sound(OneWay(data)) as sound:
        assert sum(map(len, sound)) == 2 * RATE
    with (
        pytest.raises(TalkheadError, match="-: cut short; copy it again"),
        audio_files.read_sound(OneWay(data[:-3])) as sound,
    ):
        list(sound)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "-: empty; the command before it failed"),
        (b"RIFF", "-: not a video or a sound file"),
        (b"hello\n" * 5000, "-: not a video or a sound file"),
        (np.random.default_rng(0).bytes(50_000), "-: "),
        (wave_bytes(tone(0), RATE, "s16"), "-: "),
    ],
)
def test_stream_that_is_no_sound(data, message, capfd):
    with pytest.raises(TalkheadError) as error, audio_files.read_sound(OneWay(data)) as sound:
        list(sound)
    assert one_line(error).startswith(message)
    assert capfd.readouterr() == ("", "")


def test_frames_leave_with_their_sound(tmp_path):
    """When a frame has been written, whoever reads the pipe has it, and the sound is that of the file."""
    write_wave(tmp_path / "a.wav", tone(1))
    stream, frames = io.BytesIO(), noise(25, 16, 16)
    with (
        audio_files.read_sound(tmp_path / "a.wav", keep=True) as sound,
        video_files.FrameWriter(stream, sound=sound) as writer,
    ):
        for index, frame in enumerate(frames):
            writer.write(frame)
            if index in (1, 7, 20):
                with av.open(io.BytesIO(stream.getvalue())) as container:
                    assert sum(packet.size > 0 for packet in container.demux(video=0)) == index + 1
    np.testing.assert_array_equal(
        audio_files.read_audio(OneWay(stream.getvalue())), audio_files.read_audio(tmp_path / "a.wav")
    )


def test_kept_sound_is_what_was_read(tmp_path):
    write_wave(tmp_path / "a.wav", tone(1))
    with audio_files.read_sound(tmp_path / "a.wav", keep=True) as sound:
        first = next(sound)
        early = sound.take(len(first) // 2)
        rest = np.concatenate(list(sound))
        late = sound.take(10**9, wait=True)
    whole = np.concatenate([first, rest])
    np.testing.assert_array_equal(np.concatenate([early, late])[:, 0] / np.float32(32768), whole)


def test_silence_is_sound(tmp_path):
    back = audio_files.read_audio(write_wave(tmp_path / "silence.wav", np.zeros(RATE, np.float32)))
    assert len(back) == RATE and not back.any()


def test_sound_that_is_none(tmp_path, capfd):
    save(tmp_path / "mute.mp4", scene(5))
    save(tmp_path / "picture.png", noise(1))
    write_wave(tmp_path / "nothing.wav", np.zeros(0, np.float32))
    write_wave(tmp_path / "whole.wav", tone(2))
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:40_000])
    (tmp_path / "header.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:30])
    encode_sound(tmp_path / "whole.m4a", tone(2)[:, None], RATE, "aac", "mono")
    (tmp_path / "cut.m4a").write_bytes((tmp_path / "whole.m4a").read_bytes()[:6000])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello world\n" * 500)
    (tmp_path / "noise.wav").write_bytes(noise(200).tobytes())
    for name in (
        "mute.mp4",
        "picture.png",
        "nothing.wav",
        "cut.wav",
        "header.wav",
        "cut.m4a",
        "empty.wav",
        "text.wav",
        "noise.wav",
        "missing.wav",
    ):
        with pytest.raises(TalkheadError) as error:
            audio_files.read_audio(tmp_path / name)
        assert one_line(error).startswith(str(tmp_path / name))
    with pytest.raises(TalkheadError, match="has no sound track"):
        audio_files.read_audio(tmp_path / "mute.mp4")
    assert capfd.readouterr() == ("", "")


def test_real_sound(shared_data):
    for name, seconds in {"jfk.flac": 11.0, "RD_Radio31_000.wav": 8.0, "librispeech_84-121550-0000.flac": 8.44}.items():
        samples = audio_files.read_audio(shared_data / "audio" / name)
        assert len(samples) == pytest.approx(seconds * RATE, abs=0.01 * RATE) and 0.05 < np.abs(samples).max() <= 1


# Caches ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_to", [{}, {"XDG_CACHE_HOME": "/x"}, {"XDG_CACHE_HOME": "/x", "TORCH_HOME": "~/y"}])
def test_the_hub_folder_is_torchs_own(set_to, monkeypatch):
    import torch

    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert files.hub_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_the_cache_folder_follows_the_environment(monkeypatch):
    for name in ("XDG_CACHE_HOME", "TALKHEAD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert files.cache_folder() == Path.home() / ".cache" / "talkhead"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert files.cache_folder() == Path("/x/talkhead")
    monkeypatch.setenv("TALKHEAD_CACHE", "~/own")
    assert files.cache_folder() == Path.home() / "own"


# Damage of every kind -------------------------------------------------------------------------------------------------


def npy(shape, data=b"", close="}"):
    """A .npy whose head says this, whatever its data are."""
    text = (f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, {close}".ljust(117) + "\n").encode()
    return np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        npy("(3, 6, 512)", close=""),
        npy("(3, 6, 512"),
        npy(f"({10**30}, 6, 512)"),
        npy(f"({10**14}, 6, 512)"),
        npy("(3, 6, 512)", bytes(99)),
    ],
)
def test_no_head_of_an_array_brings_more_than_an_error(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", data)
    for read, name in ((files.read_array, "a.npy"), (files.map_array, "a.npy"), (files.read_latents, "a.npz")):
        with pytest.raises(TalkheadError, match=f"{name}: damaged"):
            read(tmp_path / name)


def test_an_archive_that_holds_something_else_under_the_name_of_an_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", b"no array")
    with pytest.raises(TalkheadError, match="a.npz: damaged or cut short, or no numbers"):
        files.read_latents(tmp_path / "a.npz")


@pytest.mark.parametrize("pickled", [b"\x80\x02}(X\x01", b"\x80\x02}(K\x01u.", b"\x80\x02]K\x01s.", b"\x80\x02K\x01R."])
def test_weights_whose_pickle_is_damaged(tmp_path, pickled):
    import torch

    torch.save({"a": 1}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for entry in whole.namelist():
            archive.writestr(entry, pickled if entry.endswith("data.pkl") else whole.read(entry))
    with pytest.raises(TalkheadError, match="a.pt: (damaged or not weights|not a file of plain weights)"):
        files.load_weights(tmp_path / "a.pt")


def test_what_lies_beside_latents_is_an_object(tmp_path):
    for text, message in (("[1]", "a.json: holds no JSON object"), ("[" * 100_000, "a.json: not JSON")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(TalkheadError, match=message):
            files.read_about(tmp_path / "a.npy")
