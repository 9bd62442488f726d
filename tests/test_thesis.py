"""The script that repeats the thesis: what it refuses before it begins, and its report."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import toys
from talkhead import files
from toys import EXAMPLES

THESIS = EXAMPLES / "thesis"


def script(name):
    spec = importlib.util.spec_from_file_location(name, THESIS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def corpus(folder, taught, unheard, speakers=1):
    """A split of clips that are the same few frames with sound; the path of split.tsv."""
    grey, sound = np.full((5, 16, 16, 3), 99, np.uint8), (np.full(3200, 0.1, np.float32), 16000)
    toys.write_frames(folder / "clip.mkv", grey, lossless=None, sound=sound)
    rows = [
        (f"s{index % speakers}", folder / f"{index}.mkv", "taught" if index < taught else "unheard")
        for index in range(taught + unheard)
    ]
    for _, path, _ in rows:
        path.symlink_to(folder / "clip.mkv")
    (folder / "split.tsv").write_text("".join(f"{who}\t{path}\t{name}\n" for who, path, name in rows))
    return folder / "split.tsv"


@pytest.mark.parametrize(
    "taught, unheard, speakers, held_second, size, said",
    [
        (40, 1, 1, "0", 16, None),
        (40, 1, 1, "10", 16, "stage second: hold_out: 10 of 1 speakers would leave no training clips"),
        (40, 0, 1, "0", 16, "corpus: 0 clips to measure the first model on; it takes 1"),
        (1, 1, 1, "0", 16, "corpus: 1 clips to train on"),
        (20, 1, 2, "1", 16, "stage second: 2500 components take more than the 750 frames of 10 clips"),
        (40, 1, 1, "0", 24, "resolution 24: must be a power of two"),
        (3, 1, 1, "0", 16, "stage first: 256 components take more than the 150 frames of 2 clips"),
    ],
)
def test_what_would_fail_hours_later_is_refused_at_once(
    tmp_path, toy_weights, monkeypatch, capsys, taught, unheard, speakers, held_second, size, said
):
    check = script("check")
    monkeypatch.setattr(check.landmarks, "detector", lambda *_: None)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "check.py",
            str(corpus(tmp_path, taught, unheard, speakers)),
            "--generator",
            str(toy_weights / "generator.pt"),
            "--encoder",
            str(toy_weights / "encoder.pt"),
            "--size",
            str(size),
            "--hold-out-first",
            "0",
            "--hold-out-second",
            held_second,
        ],
    )
    answer = check.main()
    if said is None:
        assert answer is None and capsys.readouterr().out.startswith("every stage fits the corpus; perceptual loss: ")
    else:
        assert said in answer and len(answer.splitlines()) == 1


@pytest.mark.slow
def test_the_script_tries_its_options_on_the_corpus_before_it_begins(tmp_path, toy_weights):
    """One speaker, of whom the second model holds out clips: by speakers there would be nobody left."""
    (tmp_path / "data" / "video").mkdir(parents=True)
    corpus(tmp_path, 0, 0)
    for index in range(50):
        (tmp_path / "data" / "video" / f"{index:02}.mpg").symlink_to(tmp_path / "clip.mkv")
    (tmp_path / "data" / "video" / "sbig7a.mpg").symlink_to(tmp_path / "clip.mkv")  # kept to measure on
    environment = toys.environment(
        tmp_path / "bin",
        SIZE=16,
        GENERATOR=toy_weights / "generator.pt",
        ENCODER=toy_weights / "encoder.pt",
        DETECTOR_MODEL=tmp_path / "none.task",
    )
    line = [str(THESIS / "run.sh"), "grid-s1", str(tmp_path / "data"), str(tmp_path / "out")]
    for more in ([], ["--dry-run"]):
        done = subprocess.run(["bash", *line, *more], env=environment, capture_output=True, text=True)
        # All that is wrong with it is the detector, which the check comes to last.
        assert (
            done.returncode == 1 and done.stderr.splitlines()[-1].startswith("run.sh: ") and "none.task" in done.stderr
        ), done.stderr
        assert done.stdout == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("clips", [1, 2])
def test_a_report_of_few_clips_names_the_losses(tmp_path, monkeypatch, clips):
    report = script("report")
    protocol = {
        "settings": {"detector": "stub", "enlarge": 1},
        "rules": dict.fromkeys(("length", "psnr", "ssim", "lmd", "means"), "as it is"),
        "versions": {"talkhead": "0"},
    }
    record = {
        "real": "a.mp4",
        "fake": "b.mp4",
        "psnr": 20.0,
        "ssim": 0.5,
        "lmd": 1.0,
        "opening_correlation": 0.9,
        "size": [16, 16],
        "protocol": protocol,
    }
    lines = [record] * clips + ([record | {"pairs": clips, "failed": 0}] if clips > 1 else [])
    for which in ("first", "second"):
        (tmp_path / f"{which}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "networks.jsonl").write_text(
        json.dumps(
            {
                "parameters": {"audio2latent": 3_000_000},
                "size": [16, 16],
                "frames_per_second": 9.0,
                "device": "cpu",
                "threads": 1,
            }
        )
    )
    (tmp_path / "tuned").mkdir()
    for name, loss in (("generator-b", None), ("encoder-b", "pyramid"), ("first", "lpips"), ("tuned/s1", "ssim")):
        files.save_weights(
            tmp_path / f"{name}.pt", {"kind": "generator", "config": {}, "step": 0, "model": {}, "perceptual": loss}
        )
    drawn = []
    monkeypatch.setattr(report, "subprocess", SimpleNamespace(run=lambda line, check: drawn.append(line)))
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "report.py",
            "grid-s1",
            str(tmp_path),
            *(
                word
                for name in ("first", "second", "networks")
                for word in (f"--{name}", str(tmp_path / f"{name}.jsonl"))
            ),
        ],
    )
    assert report.main() is None
    text = (tmp_path / "report" / "README.md").read_text()
    assert f"| **ours, first model** | 20.00 | 0.50 | – | 1.00 | 0.90 | – | – | – | {clips} | 16 |" in text
    assert "generator B: none; its encoder: pyramid; first model: lpips; tuned generators: ssim" in text
    assert len(drawn) == 4 and all("a.mp4" in map(str, line) for line in drawn)
