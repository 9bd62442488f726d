"""Parts of a batch in turns and in processes: what they learn together is what one process learns."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from talkhead import files
from talkhead.cli import cli
from talkhead.distributed import Distributed, MicroBatch
from talkhead.errors import TalkheadError

STEPS = 5
NETWORKS = [
    "--resolution",
    "16",
    "--channels",
    "8,8,8",
    "--mapping-layers",
    "2",
    "--perceptual",
    "pyramid",
    "--width",
    "4",
    "--input-size",
    "16",
]
TRAINERS = {
    "stylegan": [
        "train-stylegan",
        "{faces}",
        "--batch",
        "8",
        "--pl-interval",
        "2",
        "--r1-interval",
        "2",
        "--flip",
        *NETWORKS,
    ],
    "joint": [
        "train-stylegan",
        "{faces}",
        "--batch",
        "8",
        "--pl-interval",
        "2",
        "--r1-interval",
        "2",
        "--encoder-out",
        "{folder}/e.pt",
        "--lr",
        "2e-4",
        "--encoder-lr",
        "1e-5",
        "--mouth-weight",
        "1",
        *NETWORKS,
    ],
    "encoder": [
        "train-encoder",
        "{faces}",
        "--generator",
        "{weights}/generator.pt",
        "--batch",
        "8",
        "--lr",
        "1e-5",
        "--flip",
        "--perceptual",
        "pyramid",
        "--width",
        "4",
        "--input-size",
        "16",
    ],
    "audio2latent": [
        "train-audio2latent",
        "{faces}",
        "--generator",
        "{weights}/generator.pt",
        "--encoder",
        "{weights}/encoder.pt",
        "--batch",
        "4",
        "--frames",
        "4",
        "--image-frames",
        "2",
        "--lr",
        "1e-5",
        "--components",
        "4",
        "--channels",
        "4,4,4,4,4",
        "--hidden",
        "8",
        "--embedding",
        "8",
        "--lstm",
        "8",
        "--decoder",
        "8",
        "--perceptual",
        "pyramid",
        "--hold-out",
        "1",
    ],
    "video_gan": [
        "train-video-gan",
        "{faces}",
        "--generator",
        "{weights}/generator.pt",
        "--encoder",
        "{weights}/encoder.pt",
        "--batch",
        "4",
        "--frames",
        "4",
        "--components",
        "4",
        "--noise",
        "3",
        "--width",
        "2",
        "--r1-interval",
        "2",
        "--lr",
        "1e-5",
        "--contrastive",
        "--image-discriminator",
    ],
    "first": [
        "train-audio2latent",
        "{faces}",
        "--model",
        "first",
        "--features",
        "mfcc",
        "--generator",
        "{weights}/generator.pt",
        "--encoder",
        "{weights}/encoder.pt",
        "--batch",
        "4",
        "--frames",
        "4",
        "--image-frames",
        "2",
        "--lr",
        "1e-5",
        "--channels",
        "4,4,4,4",
        "--lstm",
        "8",
        "--decoder",
        "8",
        "--identity-width",
        "4",
        "--noise-width",
        "3",
        "--best-of-n",
        "2",
        "--mouth-weight",
        "1",
        "--patience",
        "1",
        "--validate-every",
        "2",
        "--perceptual",
        "pyramid",
        "--hold-out",
        "1",
    ],
    "pti": [
        "pti",
        "{faces}/000000.mp4",
        "--generator",
        "{weights}/generator.pt",
        "--encoder",
        "{weights}/encoder.pt",
        "--batch",
        "8",
        "--lr",
        "1e-5",
        "--perceptual",
        "pyramid",
    ],
}
# Resampling amplifies what the order of sums changes, so that the rate of the encoder is lower still.
ADA = ["--encoder-lr", "1e-6", "--augment", "ada", "--augment-p", "0.5", "--ada-images", "100"]
TRAINERS |= {f"{name} augmented": [*TRAINERS[name], *ADA] for name in ("stylegan", "joint")}


@pytest.fixture
def line(tmp_path, puppet, toy_weights):
    def line(name, *more):
        texts = [*TRAINERS[name], "-o", "{folder}/out.pt", "--log-every", "1", "--steps", str(STEPS), *more]
        return [text.format(folder=tmp_path, faces=puppet / "clips", weights=toy_weights) for text in texts]

    return line


def torchrun(line, *options, program=("-m", "talkhead")):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *options,
        *program,
        *line,
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def records(text):
    return [record for record in map(json.loads, text.splitlines()) if record["step"]]


def alone(line):
    """The records of a run of one process."""
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    return records(done.stdout)


def stopped(line, step=2):
    """The records of a run of one process that is told to stop after some steps."""
    reduce_record, turns = Distributed.reduce_record, iter(range(1, step + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Distributed, "reduce_record", lambda self, record, stop: reduce_record(self, record, next(turns) == step)
        )
        done = CliRunner().invoke(cli, line)
    assert done.exit_code == 1 and f"stopped at step {step} of {STEPS}, checkpoint written" in done.stderr, done.output
    return records(done.stdout)


def together(line):
    """The records of a run of two."""
    with torchrun(line) as run:
        out, said = run.communicate()
    assert run.returncode == 0, said
    return records(out)


def weights(path):
    """Every tensor that a run keeps, by name."""

    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            elif isinstance(value, torch.Tensor):
                yield f"{prefix}{key}", value

    return dict(flat(files.load_weights(path)))


def assert_alike(ours, theirs, tolerance=1e-5):
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for one, other in zip(ours, theirs):
        for name in one.keys() | other.keys():
            if "second" not in name and "val" not in name:
                assert one[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), (one["step"], name)


@pytest.mark.parametrize("name", ["joint augmented", "encoder", "audio2latent", "first", "video_gan", "pti"])
def test_two_processes_learn_what_one_learns(name, line, tmp_path):
    """Losses to 1e-5, over steps with every regulariser; and two go on from where one has stopped.

    Rates are low: sums in another order differ by 1e-7, which Adam makes a whole step where a gradient should vanish.
    """
    one = alone(line(name))
    whole = weights(tmp_path / "out.pt")
    (tmp_path / "out.pt").unlink()
    assert_alike(stopped(line(name)) + together(line(name)), one)
    for key, value in weights(tmp_path / "out.pt").items():
        if "optimizer" not in key:
            torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=1e-3, msg=key)


GRADIENTS = """
import sys, torch
from talkhead.encoders import ResNetEncoder
from talkhead.distributed import Distributed, init_process_group
torch.manual_seed(0)
with init_process_group(torch.device("cpu")):
    encoder, images = ResNetEncoder(6, width=4, input_size=32).double(), torch.randn(8, 3, 32, 32, dtype=torch.float64)
    team = Distributed(batch=8)
    team.convert_sync_batchnorm(encoder.train())
    held_still = torch.optim.SGD(encoder.parameters(), lr=0.0)
    team.optimizer_step(lambda share: (encoder(share(images)).sin().mean() * 1e3, {}), held_still)
    if team.is_main:
        gradients = {name: value.grad for name, value in encoder.named_parameters()}
        torch.save(gradients | dict(encoder.named_buffers()), sys.argv[1])
"""


def test_gradients_and_statistics_of_two_processes_are_those_of_one(tmp_path):
    """Through batch normalisation, in float64: they agree to its last digits."""
    (tmp_path / "script.py").write_text(GRADIENTS)
    subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "1"],
        check=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    with torchrun([tmp_path / "2"], program=[tmp_path / "script.py"]) as run:
        _, said = run.communicate()
    assert run.returncode == 0, said
    one, two = (torch.load(tmp_path / name) for name in "12")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-12, msg=name)


LAST_STEP = """
import sys, torch
from torch import distributed
from talkhead.distributed import Distributed, init_process_group
with init_process_group(torch.device("cpu")):
    weight, team = torch.nn.Parameter(torch.ones(3)), Distributed(batch=8)
    team.optimizer_step(lambda share: (weight.sum(), {}), torch.optim.SGD([weight], lr=0.1))
    group = distributed.group.WORLD
held = sys.getrefcount(group) - 2
del group
assert not held, "others hold the group, and so its threads"
"""


def test_no_thread_outlives_a_run(tmp_path):
    """Else it may let go of the last tensors while Python ends, and the process aborts.

    Once in fifty runs on a busy machine.
    """
    (tmp_path / "script.py").write_text(LAST_STEP)
    with torchrun([], program=[tmp_path / "script.py"]) as run:
        _, said = run.communicate()
    assert run.returncode == 0, said


@pytest.mark.parametrize("name", ["stylegan", "stylegan augmented", "audio2latent", "first", "pti"])
def test_turns_learn_what_one_turn_learns(name, line, tmp_path):
    whole = alone(line(name))
    (tmp_path / "out.pt").unlink()
    assert_alike(alone(line(name, "--accumulate", "2")), whole)


def test_a_killed_worker_starts_again_from_the_last_checkpoint(line, tmp_path):
    """kill -9 of one of two: torchrun starts both again, and the result is that of a run which nobody disturbed."""
    arguments = line("encoder", "--steps", "12", "--save-minutes", "0")
    undisturbed = together(arguments)
    calm = weights(tmp_path / "out.pt")
    (tmp_path / "out.pt").unlink()
    with torchrun(arguments, "--max-restarts", "1") as run:
        first = "".join(run.stdout.readline() for _ in range(3))
        workers = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        rest, said = run.communicate()
    assert run.returncode == 0, said
    last = {record["step"]: record for record in records(first + rest)}
    assert_alike([last[step] for step in sorted(last)], undisturbed, 0)
    for key, value in weights(tmp_path / "out.pt").items():
        assert torch.equal(value, calm[key]), key
    (tmp_path / "out.pt").unlink()
    assert_alike(undisturbed[:3], alone([*arguments, "--steps", "3"]))


def test_sigterm_ends_all_with_one_checkpoint(line, tmp_path):
    with torchrun(line("encoder", "--steps", "100000")) as run:
        run.stdout.readline()
        run.terminate()
        _, said = run.communicate()
    stopped = re.search(r"talkhead: .*out.pt: stopped at step (\d+) of 100000, checkpoint written", said)
    assert run.returncode != 0 and stopped, said
    assert files.load_weights(tmp_path / "out.pt")["step"] == int(stopped[1])
    assert os.listdir(tmp_path) == ["out.pt"]


def test_two_come_to_rest_together(line, tmp_path):
    done = together(line("pti", "--steps", "200", "--lr", "0", "--min-delta", "0.5"))
    assert [record["step"] for record in done] == list(range(1, 101)) and done[-1]["converged"]
    assert files.load_weights(tmp_path / "out.pt")["converged"] and os.listdir(tmp_path) == ["out.pt"]


def test_an_error_of_one_ends_the_other(line, tmp_path):
    """The leader alone reads the file that is to be resumed."""
    (tmp_path / "out.pt").write_bytes(b"nonsense")
    with torchrun(line("encoder")) as run:
        _, said = run.communicate()
    assert run.returncode != 0 and "talkhead: " in said and "out.pt: not a file of plain weights" in said
    assert "talkhead, process 1: another training process exited" in said or "SIGTERM" in said


# In one process -------------------------------------------------------------------------------------------------------


def test_shares_are_strided_and_make_up_the_batch():
    team = Distributed(batch=8, accumulate=2)
    assert [share(list(range(8))) for share in team.shares] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    torch.manual_seed(0)
    whole = torch.randn(6, 2)
    for first in range(3):
        torch.manual_seed(0)
        assert torch.equal(MicroBatch(0, first, 3).randn(6, 2), whole[first::3])


def test_a_batch_that_cannot_be_cut_is_told_why():
    assert [share(range(8)) for share in Distributed(8, accumulate=2, whole=4).shares] == [
        range(0, 8, 2),
        range(1, 8, 2),
    ]
    for options, said in (
        (
            {"whole": 4},
            "pass --batch as a multiple of 8: the minibatch std of the discriminator needs multiples of 4 in each of "
            "the 2 parts",
        ),
        ({}, "pass --batch as a multiple of 2"),
    ):
        with pytest.raises(TalkheadError, match=f"{said}$"):
            Distributed(5, accumulate=2, **options)


def test_groups_of_four_stay_whole_in_a_share():
    from talkhead.stylegan import Discriminator

    images = torch.randn(16, 5, 4, 4)
    whole = Discriminator._minibatch_std(images)
    for first in range(2):
        torch.testing.assert_close(Discriminator._minibatch_std(images[first::2]), whole[first::2])


def test_gradients_are_of_the_mean_over_turns():
    """Against one plain step of SGD, with clipping, by hand."""
    batch = torch.randn(6, 3)

    def learn(step):
        torch.manual_seed(1)
        layer = torch.nn.Linear(3, 1)
        step(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
        return layer.weight.detach()

    def together(layer, optimizer):
        team = Distributed(6, accumulate=3)
        record = team.optimizer_step(
            lambda share: (layer(share(batch)).square().mean(), {"turn": share.turn}), optimizer, longest=0.5
        )
        assert record == {"turn": 1}

    def plainly(layer, optimizer):
        layer(batch).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.5)
        optimizer.step()

    torch.testing.assert_close(learn(together), learn(plainly))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["joint", "joint augmented", "encoder", "audio2latent", "first", "pti"])
def test_half_precision_learns_nearly_the_same_and_goes_on(name, precision, line, tmp_path):
    # Pictures of 16 leave maps of one pixel to an encoder, and oneDNN's bfloat16 gradient of their 3x3 kernels may hold
    # anything.
    more = ["--input-size", "64"] if name in ("joint", "joint augmented", "encoder") else []
    wanted = alone(line(name, *more))[0]
    (tmp_path / "out.pt").unlink()
    more += ["--precision", precision]
    got = stopped(line(name, *more))
    assert ("scaler" in files.load_weights(tmp_path / "out.pt")["training"]) == (precision == "float16")
    got += alone(line(name, *more))
    assert [record["step"] for record in got] == list(range(1, STEPS + 1))
    losses = wanted.keys() & {"reconstruction", "discriminator", "perceptual", "latent", "mouth"}
    assert losses and all(
        got[0][key] == pytest.approx(wanted[key], rel=0.02) and got[0][key] != wanted[key] for key in losses
    ), {key: (got[0][key], wanted[key]) for key in losses}
    assert all(
        value.dtype != torch.float16 and value.dtype != torch.bfloat16
        for value in weights(tmp_path / "out.pt").values()
    )


def test_half_precision_scales_its_losses():
    """A gradient too small for float16 arrives; one too large skips the step and lowers the scale."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    team = Distributed(precision="float16")
    team.optimizer_step(lambda share: ((weight.half() * 1e-7).float().sum(), {}), optimizer)
    assert weight.item() == pytest.approx(1 - 1e-7, abs=1e-7)
    before = weight.item(), team.scaler.get_scale()
    team.optimizer_step(lambda share: (weight.sum() * float("inf"), {}), optimizer)
    assert weight.item() == before[0] and team.scaler.get_scale() == before[1] / 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch": 6, "accumulate": 4}, "multiple of 4"),
        ({"precision": "int8"}, "precision 'int8'"),
        ({"batch": 8, "accumulate": 4, "whole": 4}, "multiple of 16"),
    ],
)
def test_bad_teams_are_refused(options, message):
    with pytest.raises(TalkheadError, match=message):
        Distributed(**options)


def test_what_is_an_int_stays_one():
    record, stop = Distributed().reduce_record({"images": 8, "loss": torch.tensor(0.5), "other": 2.0}, False)
    assert record == {"images": 8, "loss": 0.5, "other": 2.0} and isinstance(record["images"], int) and not stop
    assert Distributed().reduce_record({}, True)[1]
