"""Windows and macOS, simulated: files that are held open, streams, paths and settings that differ from Linux's."""

import errno
import ntpath
import os
import select
import signal
import sys
import threading
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch

import foreign
import toys
from talkhead import (
    TalkheadError,
    audio_files,
    cli,
    cli_io,
    conversion,
    files,
    jobs,
    landmarks,
    training,
    video_files,
)


def held(path):
    """True if this process has a file, or one below a folder, open or mapped."""
    real = os.path.realpath(path)
    names = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    names += [
        line.split(None, 5)[-1].strip() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ]
    return any(name == real or name.startswith(real + os.sep) for name in names)


@pytest.fixture
def windows_files(monkeypatch):
    """As on Windows, a file that this process has open or mapped is neither replaced nor removed."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("the files that a process holds are listed by Linux alone")

    def guard(original, count):
        def call(*arguments, **options):
            for path in arguments[:count]:
                if held(path):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return original(*arguments, **options)

        return call

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "replace", guard(os.replace, 2))
    monkeypatch.setattr(os, "unlink", guard(os.unlink, 1))
    monkeypatch.setattr(Path, "unlink", guard(Path.unlink, 1))


def frames(count=3, side=16):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "still.png", "folder"])
def test_a_file_is_closed_before_it_is_renamed(windows_files, tmp_path, name):
    toys.write_frames(tmp_path / name, frames(1))
    assert os.listdir(tmp_path) == [name]


def test_a_video_that_cannot_be_finished_is_closed_and_removed(windows_files, monkeypatch, tmp_path):
    """The reason is the one that is told, not that the partial file is held."""

    def full(self, packets):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(TalkheadError, match="clip.mp4: the disk is full"):
        with video_files.FrameWriter(tmp_path / "clip.mp4", lossless=True) as writer:
            writer.write(frames()[0])
            monkeypatch.setattr(video_files._VideoOutput, "_mux", full)
    assert not list(tmp_path.iterdir())


def test_weights_are_converted_onto_themselves(windows_files, tmp_path):
    torch.save(
        {"g_ema": foreign.rosinality_generator(6, 6, (5, 4, 3), 2), "latent_avg": torch.zeros(6)}, tmp_path / "g.pt"
    )
    conversion.convert(tmp_path / "g.pt", tmp_path / "g.pt")
    assert os.listdir(tmp_path) == ["g.pt"] and files.load_weights(tmp_path / "g.pt", kind="generator")


def test_a_reader_that_closed_its_pipe_is_none_of_ours(monkeypatch):
    """Windows calls that an invalid argument (github.com/python/cpython/issues/79935)."""

    class Closed:
        def write(self, data):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with pytest.raises(TalkheadError), files.writing(Closed()) as stream:
        stream.write(b"x")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BrokenPipeError), files.writing(Closed()) as stream:
        stream.write(b"x")


def test_lines_to_a_closed_pipe_end_the_command_in_silence(monkeypatch, capfd):
    def closed(*_, **__):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(cli.cli.commands["weights"].commands["list"], "callback", closed)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored afterwards
    with pytest.raises(OSError):
        cli.cli.main(["weights", "list"])
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        cli.cli.main(["weights", "list"])
    assert ended.value.code == 1 and capfd.readouterr().err == ""


def test_a_console_that_closes_stops_as_a_terminal_does(monkeypatch):
    """Windows has no SIGHUP, but SIGBREAK: of Ctrl-Break, of a console that closes, and of who stops its child."""
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    with training._StopSignal() as stop:
        signal.raise_signal(signal.SIGUSR1)
    assert stop.raised and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    with pytest.raises(SystemExit), cli_io._stoppable():
        signal.raise_signal(signal.SIGUSR1)


def test_sound_from_a_pipe_where_select_takes_only_sockets(monkeypatch, tmp_path):
    def sockets_only(*_):
        raise OSError(10038, "an operation was attempted on something that is not a socket")

    monkeypatch.setattr(select, "select", sockets_only)
    monkeypatch.setattr(sys, "platform", "win32")
    toys.write_frames(tmp_path / "clip.mkv", frames(25), sound=(toys.speech(1.0), 16000))
    reading, writing = os.pipe()

    def record():
        with open(writing, "wb") as stream:
            stream.write((tmp_path / "clip.mkv").read_bytes())

    recorder = threading.Thread(target=record)
    recorder.start()
    with open(reading, "rb") as stream, audio_files.read_sound(stream, on_wait=lambda: None) as sound:
        assert sum(map(len, sound)) == pytest.approx(16000, abs=1000)
    recorder.join()


@pytest.mark.parametrize("own", ["C:x.mp4", r"\x.mp4", r"C:\x.mp4", r"..\x.mp4", r"\\host\share\x.mp4"])
def test_results_stay_in_their_folder_on_windows(monkeypatch, own):
    monkeypatch.setattr(jobs, "PurePath", PureWindowsPath)
    monkeypatch.setattr(jobs, "os", type("os", (), {"path": ntpath, "curdir": ".", "pardir": "..", "sep": "\\"}))
    with pytest.raises(TalkheadError, match="would lie outside"):
        jobs._fields(f"C:\\clips\\a.mp4\t{own}", ("source",), "list, line 1")
    assert jobs._fields("C:\\clips\\a.mp4\tb/x.mp4", ("source",), "list, line 1") == (["C:\\clips\\a.mp4"], "b\\x.mp4")
    assert jobs._parts("C:\\clips\\a.mp4") == ["clips", "a"]


def test_a_folder_of_frames_is_named_with_either_slash(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sep", "\\")
    monkeypatch.setattr(os, "altsep", "/")
    assert video_files.FrameWriter(f"{tmp_path}/take.2/")._output.folder


def test_a_user_without_a_home(monkeypatch):
    """As in a container that runs under a number of no account."""
    pwd = pytest.importorskip("pwd")

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME", "TALKHEAD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert files.hub_folder().name == "checkpoints" and files.cache_folder().name == "talkhead"


def test_face_alignment_where_links_are_not_allowed(monkeypatch, tmp_path):
    """Windows wants a privilege for symbolic links."""
    face_alignment = pytest.importorskip("face_alignment")
    for url in landmarks._face_alignment_urls():
        (tmp_path / Path(url).name).write_bytes(url.encode())
    found = []

    def network(*_, **__):
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        found.extend((folder / path.name).read_bytes() for path in sorted(tmp_path.iterdir()))

    def refused(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(face_alignment, "FaceAlignment", network)
    monkeypatch.setattr(Path, "symlink_to", refused)
    landmarks.FaceAlignment(tmp_path)
    assert sorted(found) == sorted(url.encode() for url in landmarks._face_alignment_urls())
