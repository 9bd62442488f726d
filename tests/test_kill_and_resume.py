"""Five of the kills that examples/kill_and_resume.py is for; and that it would tell if a result was another."""

import json
import subprocess
import sys

import pytest
import torch

import toys
from conftest import example
from toys import EXAMPLES


@pytest.mark.slow
def test_what_was_killed_ends_with_the_same_results(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "kill_and_resume.py", "--kills", "5"],
        env=toys.environment(TMPDIR=tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["kills"] for record in told] == [2, 1, 1, 1] and not any(record["different"] for record in told)
    assert not list(tmp_path.glob("kill_and_resume.*"))


def test_differences_are_found_down_to_a_bit(tmp_path):
    script = example("kill_and_resume")
    one, other = (
        {"g.pt": {"model": {"w": torch.ones(3), "b": torch.zeros(2)}, "steps": [1, 2]}, "a.npy": b"abc"}
        for _ in range(2)
    )
    assert script.differences(one, other) == []
    other["g.pt"]["model"]["w"][1] += 1e-7
    other["a.npy"] = b"abd"
    assert script.differences(one, other) == ["/g.pt/model/w", "/a.npy"]
    assert script.differences(one, {"g.pt": one["g.pt"]}) == [""] and script.differences([1], [1, 2], "x") == ["x"]
