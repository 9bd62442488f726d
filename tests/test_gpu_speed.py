"""examples/benchmarks/gpu_speed.py: its arithmetic, its failures, and all of it small on a CPU."""

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import toys
from conftest import example
from talkhead.stylegan import Generator

GPU_SPEED = toys.EXAMPLES / "benchmarks" / "gpu_speed.py"


@pytest.fixture
def gpu_speed(monkeypatch):
    monkeypatch.syspath_prepend(GPU_SPEED.parent)
    return example("gpu_speed")


def test_bytes_of_activations_by_hand(gpu_speed):
    generator = Generator(16, [8, 8, 8], mapping_layers=1)
    convs = 8 * (2 * 4**2 + 4**2 + 8**2 + 2 * 8**2 + 8**2 + 16**2 + 2 * 16**2)  # inputs and outputs, each up and same
    rgbs = (8 + 3) * (4**2 + 8**2 + 16**2)
    w_plus = torch.zeros(2, generator.num_ws, 512)
    assert gpu_speed.activation_bytes(generator, lambda: generator.synthesis(w_plus)) == 2 * 4 * (convs + rgbs)


def test_images_a_second_leave_the_first_cycle_out(gpu_speed):
    slow_start = [10 + 0.5 * step for step in range(1, 65)]
    assert gpu_speed.image_rate(slow_start, 4, 0) == pytest.approx(8)
    asked = iter(slow_start)
    assert gpu_speed.image_rate(asked, 4, 9) == pytest.approx(8)
    assert len(list(asked)) == 16  # two cycles of 8 s after the first are enough for 9 s


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no alarms")
def test_a_measurement_that_fails_or_lasts_becomes_a_line(gpu_speed):
    bench = SimpleNamespace(device=torch.device("cpu"))

    def broken(bench, side):
        raise RuntimeError(f"no {side}\nof the library")

    def endless(bench):
        time.sleep(20)

    rows = gpu_speed.attempt(partial(broken, side=1024), bench, 5) + gpu_speed.attempt(endless, bench, 0.05)
    assert rows == [
        {"what": "broken, side 1024", "failed": "RuntimeError: no 1024"},
        {"what": "endless", "failed": "TooSlow: not done within 0.05 s"},
    ]
    rows.append(gpu_speed.row("fast", 35.24, "frames/s", least=35, note="8 of them"))
    assert gpu_speed.table(rows).splitlines()[2:] == [
        "| broken, side 1024 | failed |  |  | RuntimeError: no 1024 |",
        "| endless | failed |  |  | TooSlow: not done within 0.05 s |",
        "| fast | 35.2 frames/s | ≥ 35 | yes | 8 of them |",
    ]


@pytest.mark.slow
def test_the_speeds_of_a_gpu_are_measured_small_on_a_cpu():
    command = [sys.executable, GPU_SPEED, "--device", "cpu", "--scale", "0.02", "--perceptual", "pyramid"]
    ran = subprocess.run(
        [*command, "--limit", "600"], env=toys.environment(), stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    lines, table = ran.stdout.split("\n\n")
    rows = [json.loads(line) for line in lines.splitlines()[1:]]
    groups = {"generate": 5, "synthesis": 4, "inversion": 2, "pti": 2, "training": 4}
    assert Counter(row["group"] for row in rows) == groups
    assert all(0 < row["value"] < math.inf and row["met"] is None for row in rows)
    assert len(table.splitlines()) == 2 + len(rows)
