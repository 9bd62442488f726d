"""A minute of the fuzzer of examples/fuzz.py; and that it would tell of each kind of fault."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

import toys
from conftest import example
from toys import EXAMPLES

MUTANTS = 250  # some twenty seconds of work, and as many to load and to make the whole files


@pytest.fixture(scope="module")
def fuzz():
    return example("fuzz")


@pytest.mark.slow
def test_no_mutant_brings_more_than_an_error_of_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "fuzz.py", "--count", str(MUTANTS), "--seed", "2"],
        env=toys.environment(TMPDIR=tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-1000:]
    *kinds, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert (
        last["mutants"] == MUTANTS == last["done"] + last["refused"] == sum(kind["mutants"] for kind in kinds)
        and last["faults"] == {}
    )
    assert min(last["done"], last["refused"]) > MUTANTS / 10  # it is not one error again and again
    assert len(kinds) > 60 and not list(tmp_path.glob("fuzz.*"))


def test_mutants_are_the_same_again_and_no_whole_files(fuzz):
    made = [
        fuzz.Seed("a.bin", bytes(range(256)) * 9, ("weights show {}",)),
        fuzz.Seed("b.bin", b"0123456789" * 40, ("weights show {}",)),
    ]
    for number in range(200):
        seed, command, data, done = fuzz.drawn_by_lot(number, 3, made)
        assert data != seed.data and len(done) in (1, 2, 4)
        assert (seed, command, data, done) == fuzz.drawn_by_lot(number, 3, made)


def test_what_is_in_an_archive_is_damaged_under_right_checksums(fuzz):
    import io
    import zipfile

    whole = io.BytesIO()
    np.savez(whole, w=np.arange(100.0))
    changed = 0
    for number in range(20):
        data, done = fuzz._repacked(
            np.random.default_rng(number), whole.getvalue(), [fuzz.Seed("a", b"0123456789" * 9, ())]
        )
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None and archive.namelist() == ["w.npy"]
            changed += archive.read("w.npy") != zipfile.ZipFile(whole).read("w.npy")
    assert changed == 20


SHOWN = "talkhead: clip.mp4: damaged; make it again\n"


@pytest.mark.parametrize(
    "status, said, memory, left, kind",
    [
        (1, SHOWN, 1, {}, None),
        (0, "", 1, {"out.npy": None}, None),
        (1, "Traceback (most recent call last):\n  ...\nKeyError: 3\n", 1, {}, "traceback"),
        (1, "", 1, {}, "says"),
        (1, "libtiff: oh\n" + SHOWN, 1, {}, "says"),
        (0, "talkhead: overflow encountered in cast\n", 1, {"out.npy": None}, "says"),
        (2, "Error: no\n", 1, {}, "says"),
        (3, SHOWN, 1, {}, "status"),
        (-signal.SIGSEGV, "", 1, {}, "SIGSEGV"),
        (-signal.SIGALRM, "", 1, {}, "hang"),
        (0, "", 3 << 30, {"out.npy": None}, "memory"),
        (1, "talkhead: out of memory; lower --batch\n", 1, {}, "memory"),
        (1, SHOWN, 1, {"out.npy": None}, "left"),
        (1, SHOWN, 1, {".out.1234abcd.npy": b""}, "left"),
        (0, "", 1, {"out.npy": None, ".out.1234abcd.npy": b""}, "left"),
        (1, SHOWN, 1, {"clip.mp4": b"changed"}, "left"),
        (0, "", 1, {}, "broken"),
        (0, "", 1, {"out.npy": b"half"}, "broken"),
        (1, SHOWN, 1, {"log.jsonl": b'{"status": "failed", "traceback": "Traceback\\nKeyError: 3"}\n'}, "traceback"),
    ],
)
def test_each_kind_of_fault_is_told(fuzz, tmp_path, status, said, memory, left, kind):
    before = {"clip.mp4": b"whole"}
    for name, data in (before | left).items():
        if data is None:
            np.save(tmp_path / name, np.zeros(3))
        else:
            (tmp_path / name).write_bytes(data)
    found = fuzz.verdict(fuzz.Told(status, said, memory, 0.1), "invert clip.mp4 -o out.npy", tmp_path, before)
    assert (found and found[0]) == kind
