"""A real shell: commands joined by pipes, readers that leave, writers that fail, terminals, and every line of the
README and the guides.

The `talkhead` of these tests is the real one with toy weights in the place of the bundled ones, and a detector that
knows where the puppet is. The last tests run the README on the bundled weights, where they are.
"""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

import toys
from talkhead import audio_files, checkpoints, conversion, files, stylegan3, video_files

ROOT = Path(__file__).parents[1]

STAND_IN = """\
#!{python}
import sys

sys.path.insert(0, {root!r})
from pathlib import Path

from talkhead.cli import cli


def stand_in():
    import numpy
    from talkhead import checkpoints, landmarks

    class Stub(landmarks.Detector):
        name = "stub"

        def _find(self, image):
            return [numpy.load({landmarks!r})] if image.std() > 1 else []

    checkpoints.WEIGHTS = Path({weights!r})
    landmarks.detector = lambda *_: Stub()


if not {{"--help", "--version"}} & set(sys.argv):
    stand_in()
cli(prog_name="talkhead")
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory, toy_weights, puppet):
    """Environment variables with which `talkhead` is the stand-in, and `python` the one that runs this."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "talkhead"
    script.write_text(
        STAND_IN.format(
            python=sys.executable, root=str(ROOT), weights=str(toy_weights), landmarks=str(puppet / "landmarks.npy")
        )
    )
    script.chmod(0o755)
    (folder / "python").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    (folder / "python").chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def room(tmp_path, puppet):
    """A folder to work in, with the puppet's files in it."""
    shutil.copytree(puppet, tmp_path / "room")
    return tmp_path / "room"


def shell(line, room, environment, **options):
    """Run a line of bash as a careful script does; its exit status, stdout and stderr."""
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{line}"],
        cwd=room,
        env=environment,
        timeout=600,
        **{"capture_output": True} | options,
    )


def said(done):
    return done.stderr.decode()


def left_over(room):
    """Files beside which something was begun and not finished."""
    return [path for path in room.rglob(".*") if path.is_file()]


# Pipes ----------------------------------------------------------------------------------------------------------------


def test_there_and_back(room, environment):
    """Frames to latents to frames, each command reading what the one before writes."""
    done = shell(
        "talkhead align in.mp4 --size 64 | tee aligned.mp4 | talkhead invert --method encoder > lat.npy\n"
        "talkhead generate --latents - < lat.npy -o back.mp4\n"
        "talkhead generate --latents - < lat.npy | talkhead align --size 64 | talkhead metrics - aligned.mp4 --no-lmd",
        room,
        environment,
    )
    assert done.returncode == 0, said(done)
    assert "Traceback" not in said(done) and "Warning" not in said(done)
    assert b'"frames": 5' in done.stdout and done.stdout.count(b"\n") == 1
    latents = np.load(room / "lat.npy")
    assert latents.shape == (5, 6, 512) and latents.dtype == np.float32
    assert len(list(video_files.read_frames(room / "back.mp4"))) == 5
    with video_files.read_frames(room / "aligned.mp4") as aligned:
        assert aligned.aligned and aligned.sound is not None and len(list(aligned)) == 5
    assert left_over(room) == []


@pytest.mark.parametrize("method", ["sequential", "hybrid"])
def test_a_killed_inversion_goes_on_to_the_same_bits(room, environment, method):
    steps = "--steps 20 --next-steps 20 --hybrid-steps 20"
    line = f"exec talkhead invert clip.mp4 --method {method} {steps} --batch 2 --perceptual pyramid"
    whole = shell(f"{line} -o whole.npy", room, environment)
    assert whole.returncode == 0, said(whole)
    part = room / "lat.npy.part"
    with subprocess.Popen(
        ["bash", "-c", f"{line} -o lat.npy"], cwd=room, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (part.exists() and part.stat().st_size > 20_000):
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL and part.exists() and not (room / "lat.npy").exists()
    again = shell(f"{line} -o lat.npy", room, environment)
    assert again.returncode == 0 and "lat.npy.part: going on from what was done" in said(again)
    assert (room / "lat.npy").read_bytes() == (room / "whole.npy").read_bytes()
    assert not part.exists() and left_over(room) == []


def test_a_changed_inversion_does_not_go_on(room, environment):
    line = "talkhead invert clip.mp4 --method sequential --next-steps 20 --perceptual pyramid -o lat.npy"
    part = room / "lat.npy.part"
    with subprocess.Popen(
        ["bash", "-c", f"exec {line} --steps 20"], cwd=room, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not part.exists():
            time.sleep(0.001)
        process.kill()
    done = shell(f"{line} --steps 30", room, environment)
    assert done.returncode == 1 and said(done).splitlines()[-1].startswith(
        "talkhead: lat.npy.part: was begun with steps=20, now 30"
    )


def test_progress_moves_within_a_frame(room, environment):
    """On a terminal: steps taken of all that are planned, the time left, and which frame it is."""
    main, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # a new one has no width
    line = "talkhead invert clip.mp4 --method sequential --steps 300 --next-steps 20 --perceptual pyramid -o lat.npy"
    shown = b""
    with subprocess.Popen(line.split(), cwd=room, env=environment, stderr=end) as process:
        os.close(end)
        try:
            while data := os.read(main, 1 << 16):
                shown += data
        except OSError:  # the other end was closed
            pass
    os.close(main)
    assert process.returncode == 0
    counts = [int(count) for count in re.findall(rb"(\d+)/440 ", shown)]
    assert counts == sorted(counts) and len({count for count in counts if 0 < count < 300}) > 1 and counts[-1] == 440
    assert b"frame 1, loss" in shown and re.search(rb"<\d\d:\d\d", shown)


def test_identity_and_speech_from_pipes(room, environment):
    done = shell(
        "cat speech.wav | talkhead generate --identity face.png --audio - > spoken.mp4\n"
        "cat face.png | talkhead generate --identity - --audio speech.wav -o named.mkv --label",
        room,
        environment,
    )
    assert done.returncode == 0, said(done)
    for name in ("spoken.mp4", "named.mkv"):
        with video_files.read_frames(room / name) as video:
            assert files.SYNTHETIC_TYPE in video.metadata.values()
            assert len(list(video)) == 13


def test_speech_that_comes_slowly(room, environment):
    """A recorder that pauses, within a sample too.

    The frames are those of the file, and a prepared identity needs no encoder.
    """
    done = shell(
        "talkhead invert face.png -o me.npy\n"
        "{ head -c 5001 speech.wav; sleep 0.5; tail -c +5002 speech.wav; } | talkhead generate --identity me.npy "
        "--audio - --latents-out slow.npy -o - > slow.mp4\n"
        "talkhead generate --identity me.npy --audio speech.wav --latents-out whole.npy -o whole.mp4",
        room,
        environment,
    )
    assert done.returncode == 0, said(done)
    np.testing.assert_allclose(np.load(room / "slow.npy"), np.load(room / "whole.npy"), atol=1e-5)
    with video_files.read_frames(room / "slow.mp4") as video:
        assert len(list(video)) == 13


def test_recorder_that_failed(room, environment):
    done = shell(
        "head -c 9000 speech.wav | talkhead generate --identity face.png --audio - -o out.mp4", room, environment
    )
    assert done.returncode == 1 and said(done).splitlines()[-1] == "talkhead: -: cut short; copy it again", said(done)
    done = shell(
        "echo This is no sound | talkhead generate --identity face.png --audio - -o out.mp4", room, environment
    )
    assert done.returncode == 1 and said(done).splitlines()[-1].startswith(
        "talkhead: -: not a video or a sound file"
    ), said(done)
    assert not (room / "out.mp4").exists() and left_over(room) == []


def test_reader_that_leaves(room, environment):
    done = subprocess.run(
        [
            "bash",
            "-c",
            "talkhead generate --identity face.png --audio speech.wav | head -c 10 > /dev/null; echo ${PIPESTATUS[0]}",
        ],
        cwd=room,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.strip() == "1"
    assert done.stderr.splitlines() == ["talkhead: face.png: its metadata says it is aligned"]


def test_reader_of_latents_that_leaves(room, environment):
    done = subprocess.run(
        ["bash", "-c", "talkhead invert clip.mp4 | head -c 10 > /dev/null; echo ${PIPESTATUS[0]}"],
        cwd=room,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.strip() == "1" and done.stderr == ""


def test_writer_that_failed(room, environment):
    done = shell("talkhead align nobody.mp4 | talkhead invert -o lat.npy", room, environment)
    lines = said(done).splitlines()
    assert done.returncode == 1 and len(lines) == 2 and all(line.startswith("talkhead: ") for line in lines), said(done)
    assert any("nobody.mp4: no such file" in line for line in lines) and any("-: empty" in line for line in lines)
    assert not (room / "lat.npy").exists() and left_over(room) == []


def test_input_that_was_cut(room, environment):
    done = shell("talkhead align in.mp4 > whole.mp4", room, environment)
    assert done.returncode == 0, said(done)
    done = shell(
        "head -c $(($(stat -c %s whole.mp4) * 2 / 3)) whole.mp4 | talkhead invert -o lat.npy", room, environment
    )
    assert done.returncode == 1 and len(said(done).splitlines()) == 1 and "cut short" in said(done), said(done)
    done = shell(
        "head -c 3000 < <(talkhead invert clip.mp4) | talkhead generate --latents - -o out.mp4", room, environment
    )
    assert "cut short" in said(done).splitlines()[-1], said(done)
    assert not (room / "lat.npy").exists() and not (room / "out.mp4").exists() and left_over(room) == []


@pytest.mark.parametrize(
    "closed, line, result",
    [
        ("2>&-", "align in.mp4 --size 64", "out.mp4"),
        ("2>/dev/full", "align in.mp4 --size 64", "out.mp4"),
        ("2>&-", "invert clip.mp4 --method optimise --steps 3 --perceptual pyramid", "out.npy"),
        ("<&- >&- 2>&-", "generate --identity face.png --audio speech.wav", "out.mp4"),
        ("<&- >&- 2>&-", "pti face.png --steps 2 --perceptual pyramid", "out.pt"),
    ],
)
def test_standard_streams_that_nobody_reads(room, environment, closed, line, result):
    """The result is the same. A descriptor that was closed must not become that of the next file that is opened."""
    if "/dev/full" in closed and not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    for name, more in (("heard", ""), ("unheard", closed)):
        (room / name).mkdir()
        done = shell(f"talkhead {line} -o {name}/{result} {more}", room, environment)
        assert done.returncode == 0, said(done)
    if not result.endswith(".pt"):  # which hold their seconds
        assert (room / "unheard" / result).read_bytes() == (room / "heard" / result).read_bytes()
    assert left_over(room) == []


def test_the_detector_loads_where_no_stream_is_open(room, environment):
    script = "import os; from talkhead.landmarks import _quiet\nwith _quiet():\n    os.write(2, b'noise')\n"
    script += "open('done', 'w').close()"
    done = shell(f'{sys.executable} -c "{script}" >&- 2>&-', room, environment | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and (room / "done").exists()


@pytest.mark.parametrize(
    "line",
    [
        "metrics clip.mp4 clip.mp4 --no-lmd --table",
        "weights list",
        "pti face.png -o me.pt --steps 2 --perceptual pyramid",
        "align --help",
        "--version",
    ],
)
def test_records_on_a_full_disk(room, environment, line):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    done = shell(f"talkhead {line} > /dev/full", room, environment)
    assert done.returncode == 1 and "Traceback" not in said(done) and "Exception" not in said(done), said(done)
    assert said(done).splitlines()[-1] == "talkhead: -: the disk is full; free some space"


def test_full_disk(room, environment):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    done = shell("talkhead invert clip.mp4 > /dev/full", room, environment)
    assert done.returncode == 1 and len(said(done).splitlines()) == 1 and "the disk is full" in said(done), said(done)


def test_folder_that_may_not_be_written(room, environment):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (room / "locked").mkdir(mode=0o500)
    done = shell("talkhead invert clip.mp4 -o locked/lat.npy", room, environment)
    assert done.returncode == 1 and "permission denied" in said(done)


def test_packing_more_than_a_file_may_hold(room, environment):
    done = shell("ulimit -f 100; talkhead pack clips -o faces.npy --size 64", room, environment)
    assert done.returncode == 1 and done.stdout == b"" and len(said(done).splitlines()) == 1, said(done)
    assert (
        "faces.npy: larger than a file may be here" in said(done)
        and left_over(room) == []
        and not (room / "faces.npy").exists()
    )


# Terminals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, at, message",
    [
        (["align"], "stdin", "nothing to read, stdin is a terminal"),
        (["invert", "-o", "lat.npy"], "stdin", "nothing to read, stdin is a terminal"),
        (["generate", "--latents", "-", "-o", "out.mp4"], "stdin", "nothing to read, stdin is a terminal"),
        (["align", "in.mp4"], "stdout", "the result is binary and stdout is a terminal"),
        (["invert", "clip.mp4"], "stdout", "the result is binary and stdout is a terminal"),
        (
            ["generate", "--identity", "face.png", "--audio", "speech.wav"],
            "stdout",
            "the result is binary and stdout is a terminal",
        ),
    ],
)
def test_terminals(room, command, at, message):
    ours, theirs = pty.openpty()
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | {at: theirs}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "talkhead", *command],
            cwd=room,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            timeout=600,
            **streams,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2 and message in " ".join(said(done).split()), said(done)


def test_progress_is_for_terminals(room, environment):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a new one has no width
    with subprocess.Popen(
        ["talkhead", "invert", "clip.mp4", "-o", "lat.npy"],
        cwd=room,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:  # Linux says so when the other end of a terminal closes
            pass
        assert process.stdout.read() == b""
    os.close(ours)
    assert process.returncode == 0 and b"frame" in shown


# Signals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted(room, environment, sent, status):
    np.save(room / "long.npy", np.zeros((5000, 6, 512), np.float32))
    with subprocess.Popen(
        ["talkhead", "generate", "--latents", "long.npy", "-o", "out.mp4"],
        cwd=room,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),
    ) as process:  # a job in the background, or under nohup, ignores it
        started = time.monotonic()
        while not left_over(room) and process.poll() is None and time.monotonic() - started < 120:
            time.sleep(0.05)
        process.send_signal(sent)
        errors = process.stderr.read().decode()
    assert process.returncode == status and "Traceback" not in errors and errors.strip() == "", errors
    assert not (room / "out.mp4").exists() and left_over(room) == []


def test_who_ignores_hangups_goes_on(room, environment):
    """As nohup has it."""
    line = 'trap "" HUP; exec talkhead invert clip.mp4 -o lat.npy --method optimise --steps 300 '
    line += "--perceptual pyramid --log log.jsonl"
    with subprocess.Popen(["bash", "-c", line], cwd=room, env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not ((room / "log.jsonl").exists() and (room / "log.jsonl").stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        errors = process.stderr.read().decode()
    assert process.returncode == 0 and (room / "lat.npy").exists(), errors


def test_interrupted_packing_leaves_nothing(room, environment):
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    np.save(room / "many.npy", np.repeat(frames, 30_000, 0))
    with subprocess.Popen(
        ["talkhead", "pack", "clips", "many.npy", "-o", "faces.npy", "--size", "64"],
        cwd=room,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        started = time.monotonic()
        while not left_over(room) and process.poll() is None and time.monotonic() - started < 120:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        errors = process.stderr.read().decode()
    assert process.returncode == 143 and errors.strip() == "", errors
    assert not (room / "faces.npy").exists() and not (room / "faces.json").exists() and left_over(room) == []


# Lists ----------------------------------------------------------------------------------------------------------------


def manifests(folder):
    """What all manifests tell, by result."""
    return {
        record["output"]: record
        for path in sorted(folder.glob("manifest*.jsonl"))
        for record in map(json.loads, path.read_text().splitlines())
    }


def assert_whole(room, singles):
    """Each clip's latents are those that the single command gives; the torn one's failure is told."""
    records = manifests(room / "out")
    assert {name: record["status"] for name, record in records.items()} == dict.fromkeys(singles, "done") | {
        "torn.npy": "failed"
    }
    assert "torn.mp4" in records["torn.npy"]["reason"]
    assert {path.name: path.read_bytes() for path in (room / "out").glob("*.npy")} == singles
    assert left_over(room) == [] and not list(room.rglob("*.part"))


OPTIMISE = "--method optimise --steps 30 --batch 2 --perceptual pyramid"
CLIPS = ["face.png", "torn.mp4", "clip.mp4", "clips/000000.mp4", "clips/000001.mp4"]  # the second is none


@pytest.fixture(scope="module")
def singles(puppet, environment, tmp_path_factory):
    """What the single command makes of each whole clip, as bytes."""
    folder = tmp_path_factory.mktemp("singles")
    whole = [name for name in CLIPS if name != "torn.mp4"]
    done = shell(
        "\n".join(f"talkhead invert {name} {OPTIMISE} -o {folder}/{Path(name).stem}.npy" for name in whole),
        puppet,
        environment,
    )
    assert done.returncode == 0, said(done)
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


@pytest.fixture
def listed(room):
    """The room, with a list of clips in it."""
    (room / "torn.mp4").write_bytes((room / "clip.mp4").read_bytes()[:2000])
    (room / "clips.txt").write_text("\n".join(CLIPS))
    return room


def test_a_killed_list_goes_on(listed, environment, singles):
    line = f"exec talkhead invert --list clips.txt -o out {OPTIMISE}"
    with subprocess.Popen(["bash", "-c", line], cwd=listed, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(listed.glob("out/.000000.*/000000.npy.part")):
            time.sleep(0.001)
        process.kill()
    assert (
        process.returncode == -signal.SIGKILL
        and (listed / "out/clip.npy").exists()
        and not (listed / "out/000001.npy").exists()
    )
    before = manifests(listed / "out")
    done = shell(line, listed, environment)
    assert done.returncode == 1 and "failed: torn.mp4" in said(done)
    assert said(done).splitlines()[-1] == "talkhead: 2 done, 2 skipped, 1 failed; see out/manifest.jsonl"
    after = manifests(listed / "out")
    assert before["clip.npy"] == after["clip.npy"] and any(
        "going on from what was done" in note for note in after["000000.npy"]["notes"]
    )
    assert_whole(listed, singles)


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_list(room, environment, sent, status):
    (room / "pairs.txt").write_text(
        "face.png\tspeech.wav\n" + "".join(f"face.png\tspeech.wav\t{number}.mp4\n" for number in range(500))
    )
    with subprocess.Popen(
        ["talkhead", "generate", "--list", "pairs.txt", "-o", "out"],
        cwd=room,
        env=environment,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),
    ) as process:
        while process.poll() is None and not (room / "out/0.mp4").exists():
            time.sleep(0.01)
        process.send_signal(sent)
        errors = process.stderr.read().decode()
    assert process.returncode == status and re.fullmatch(
        r"talkhead: stopped: \d+ done, 0 skipped, 0 failed of 501; see out/manifest.jsonl\n", errors
    ), errors
    made = {path.name for path in (room / "out").glob("*.mp4")}
    assert (
        left_over(room) == []
        and {name for name, record in manifests(room / "out").items() if record["status"] == "done"} <= made
    )
    assert len(made) - 1 <= len(manifests(room / "out")) < 501


def test_shards_by_xargs(listed, environment, singles):
    done = shell(
        f"seq 0 1 | xargs -P 2 -I I talkhead invert --list clips.txt -o out --shard I/2 {OPTIMISE}", listed, environment
    )
    assert done.returncode == 123 and "talkhead, shard 1/2: failed: torn.mp4" in said(
        done
    )  # how xargs tells of a failure
    assert "talkhead, shard 0/2: 3 of 5 lines of clips.txt, by --shard" in said(done)
    assert_whole(listed, singles)


def test_one_shard_given_twice(listed, environment, singles):
    """One of the two says so and leaves; the other's results are whole."""
    done = shell(f"seq 0 1 | xargs -P 2 -I I talkhead invert --list clips.txt -o out {OPTIMISE}", listed, environment)
    assert said(done).count("another process works on this shard") == 1
    assert_whole(listed, singles)


def test_shards_by_torchrun(listed, environment, singles, toy_weights):
    """Shard 1 fails at once, and torchrun would end shard 0 if its process did not wait."""
    (listed / "clips.txt").write_text("clip.mp4\ntorn.mp4\nclips/000000.mp4\nface.png\n# and\nclips/000001.mp4\n")
    done = shell(
        f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 -m talkhead invert --list "
        f"clips.txt -o out {OPTIMISE} --generator {toy_weights}/generator.pt --encoder {toy_weights}/encoder.pt",
        listed,
        environment | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and done.stdout == b"", said(done)
    for line in (
        "0/2: 3 of 5 lines of clips.txt, by RANK and WORLD_SIZE",
        "1/2: 2 of 5 lines of clips.txt, by RANK and WORLD_SIZE",
        "1/2: failed: torn.mp4",
        "0/2: 3 done, 0 skipped, 0 failed; see out/manifest-0-of-2.jsonl",
        "1/2: 1 done, 0 skipped, 1 failed; see out/manifest-1-of-2.jsonl",
    ):
        assert f"talkhead, shard {line}" in said(done)
    assert_whole(listed, singles)


# The README and the guides --------------------------------------------------------------------------------------------

# What makes their training lines take seconds; everything else is run as printed.
SMALL = {
    "--count": "4",
    "--size": "16",
    "--steps": "2",
    "--resolution": "16",
    "--channels": "8,8,8",
    "--input-size": "16",
    "--components": "4",
    "--hold-out": "1",
    "--next-steps": "2",
    "--batch": "8",  # four for each of two processes
    "--nproc-per-node": "2",
    "--array": "0-1",
}
EIGHT = {"seq 0 7": "seq 0 1", "-P 8": "-P 2", "I/8": "I/2"}  # processes; two are enough
MORE = {
    "pti": "--steps 5",
    "synth.py": "--seconds 0.5",
    "train_speech.py": "--batch 2 --channels 8 --hidden 8",
    "train-video-gan": "--batch 2 --frames 4 --width 2 --noise 3",
    "train-stylegan": "--batch 2",
    "train-encoder": "--batch 2 --width 4",
    "train-audio2latent": "--batch 2 --frames 4 --channels 4,4,4,4,4 --hidden 8 --embedding 8 --lstm 8 --decoder 8 "
    "--image-frames 2",
}


def documents():
    """The README and the guides, in the order of its links to them."""
    readme = ROOT / "README.md"
    guides = dict.fromkeys(re.findall(r"\((examples/guides/[^)#]+)", readme.read_text()))
    return [readme, *(ROOT / guide for guide in guides)]


def blocks(language):
    """Parameters: the blocks of code in the documents, each once."""
    found = {}
    for document in documents():
        for block in re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.M | re.S):
            found.setdefault(block, f"{document.stem}: {block.splitlines()[0][:60]}")
    return [pytest.param(block, id=name) for block, name in found.items()]


def reduced(block):
    block = block.replace("--pti ", "--pti --pti-steps 5 ")
    for many, few in EIGHT.items():
        block = block.replace(many, few)
    block = re.sub(r"(--[a-z0-9-]+)([ =]+)(\S+)", lambda m: f"{m[1]}{m[2]}{SMALL.get(m[1], m[3])}", block)
    return re.sub(r"(?:talkhead |python examples/)(\S+)", lambda m: f"{m[0]} {MORE.get(m[1], '')}", block)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, puppet, toy_weights):
    """A folder with the files that the documents name; their blocks are run here one after the other."""
    desk = tmp_path_factory.mktemp("desk")
    conversion.convert(toy_weights / "generator.pt", desk / "ffhq.pkl", "nvidia")  # as NVIDIA names its tensors
    toys.save_network(desk / "ffhq-r.pkl", "generator", stylegan3.Generator(16, [4] * 4, layers=4, margin=2))
    (desk / "examples").mkdir()
    shutil.copytree(ROOT / "examples/puppets", desk / "examples/puppets")
    for script in ("synth.py", "train_speech.py"):
        shutil.copy(ROOT / "examples" / script, desk / "examples")
    for name, place in {
        "face.png": "examples/face.png",
        "speech.wav": "examples/speech.wav",
        "photo.png": "photo.jpg",
        "in.mp4": "in.mp4",
    }.items():
        shutil.copy(puppet / name, desk / place)  # a PNG by the name of photo.jpg is read as what it is
    for name in ("face.png", "speech.wav"):
        shutil.copy(puppet / name, desk)
    (desk / "grid").mkdir()
    for name in ("a.mpg", "b.mpg"):
        shutil.copy(puppet / "in.mp4", desk / "grid" / name)
    return desk


@pytest.fixture(scope="module")
def cluster(environment, tmp_path_factory):
    """The environment with a `torchrun` that starts the stand-in, and an `sbatch` that runs its two tasks in turn."""
    folder = tmp_path_factory.mktemp("cluster")
    torchrun = """\
exec python -m torch.distributed.run --standalone $(echo "$@" | sed 's/-m talkhead/--no-python talkhead/')
"""
    sbatch = """\
test "$1 $2" = "--array=0-1 --wrap"
export SLURM_ARRAY_TASK_COUNT=2 SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=1 SLURM_ARRAY_TASK_STEP=1
for task in 0 1; do SLURM_ARRAY_TASK_ID=$task sh -c "$3"; done
"""
    for name, script in {"torchrun": torchrun, "sbatch": sbatch}.items():
        (folder / name).write_text(f"#!/bin/sh\nset -e\n{script}")
        (folder / name).chmod(0o755)
    return environment | {"PATH": f"{folder}{os.pathsep}{environment['PATH']}"}


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_of_the_documents(block, desk, cluster):
    done = shell(reduced(block), desk, cluster)
    assert done.returncode == 0, said(done)
    assert "Traceback" not in said(done)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_of_the_documents(block, desk, environment, toy_weights):
    patch = "from pathlib import Path\nfrom talkhead import checkpoints\n"
    patch += f"checkpoints.WEIGHTS = Path({str(toy_weights)!r})\n"
    (desk / "out.mp4").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", patch + block],
        cwd=desk,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0 and done.stdout == b"", said(done)
    assert len(list(video_files.read_frames(desk / "out.mp4"))) == 13


def test_readme_runs_in_its_first_fifty_lines():
    first = "".join((ROOT / "README.md").read_text().splitlines(keepends=True)[:50])
    assert (
        "pip install ." in first
        and "talkhead generate --identity examples/face.png" in first
        and "import talkhead" in first
    )


# The bundled weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    missing = [
        kind for kind in ("generator", "encoder", "audio2latent") if not (checkpoints.WEIGHTS / f"{kind}.pt").exists()
    ]
    if missing:
        pytest.skip(f"this copy comes without the bundled {missing[0]}")


def test_the_first_thing_a_person_tries(bundled, tmp_path):
    """The README's own line, with the package's own weights, no detector and no network."""
    offline = os.environ | {
        "PYTHONPATH": str(ROOT),
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    line = [
        "generate",
        "--identity",
        ROOT / "examples/face.png",
        "--audio",
        ROOT / "examples/speech.wav",
        "-o",
        tmp_path / "out.mp4",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "talkhead", *map(str, line)], env=offline, capture_output=True, timeout=600
    )
    assert done.returncode == 0 and done.stdout == b"", said(done)
    sound = audio_files.read_audio(ROOT / "examples/speech.wav")
    with video_files.read_frames(tmp_path / "out.mp4") as video:
        assert files.SYNTHETIC_TYPE in video.metadata.values()
        frames = np.stack(list(video)).astype(float)
    assert len(frames) == -(-len(sound) * 25 // 16000)
    moved = frames.std(0).mean(-1)
    side = moved.shape[0]
    mouth, hair = moved[side * 5 // 8 : side * 7 // 8, side * 3 // 8 : side * 5 // 8], moved[: side // 8]
    assert mouth.mean() > 2 * hair.mean(), "the mouth moves, and more than the rest"


def test_bundled_weights_are_small_and_fit_each_other(bundled):
    sizes = {path.stem: path.stat().st_size for path in checkpoints.WEIGHTS.glob("*.pt")}
    assert sum(sizes[kind] for kind in ("generator", "encoder", "audio2latent", "video_gan")) <= 40e6
    assert sizes["speech"] <= 6e6 and sizes["first"] <= 6e6 and sizes["video_gan"] <= 4e6
    generator = checkpoints.load_generator(checkpoints.bundled("generator"))
    checkpoints.load_encoder(checkpoints.bundled("encoder"), generator)
    for model in ("audio2latent", "first"):
        checkpoints.load_audio2latent(checkpoints.bundled(model), generator)
    checkpoints.load_video_gan(checkpoints.bundled("video_gan"), generator)
    assert (checkpoints.WEIGHTS / "MODEL_CARD.md").is_file()


def test_grid_clip_there_and_back(shared_data, tmp_path, toy_weights):
    """The same lines on a clip of the thesis's corpus, with a real detector."""
    pytest.importorskip("mediapipe")
    model = shared_data / "weights/mediapipe/face_landmarker_v2_with_blendshapes.task"
    clip = sorted((shared_data / "grid_s1/video").glob("*.mpg"))[0]
    talkhead = f"'{sys.executable}' -m talkhead"
    toy = f"--generator '{toy_weights}/generator.pt'"
    done = shell(
        f"{talkhead} align '{clip}' --size 64 --detector-model '{model}' | tee aligned.mp4 |"
        f" {talkhead} invert --method encoder {toy} --encoder '{toy_weights}/encoder.pt' > lat.npy\n"
        f"{talkhead} generate {toy} --latents - < lat.npy --audio aligned.mp4 -o back.mp4",
        tmp_path,
        os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, said(done)
    assert np.load(tmp_path / "lat.npy").shape == (75, 6, 512)
    with video_files.read_frames(tmp_path / "back.mp4") as video:
        assert video.sound is not None and len(list(video)) == 75
