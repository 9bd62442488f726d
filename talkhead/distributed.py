"""Who shares the work of a step: the processes that torchrun started, and the parts of a batch that each takes in turn.

A step is about one batch. It is cut into equal parts, one for each process and turn; part k holds every n-th sample from
the k-th on. Whatever is random is drawn for the whole batch and cut alike, and gradients are averaged over the parts: so
the result is that of one process with the same batch, but for the order of its sums.
"""

import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

# Torch imports this with its optimisers. Its functions have the group that there is then as a default, and so keep it for ever, with threads that
# outlive Python's own end and abort there. Imported now, there is none to keep.
import torch.distributed.nn  # noqa: F401
from torch import distributed, nn

from talkhead.errors import TalkheadError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
BUCKET = 8_000_000  # gradients averaged in one message
PATIENCE = timedelta(
    hours=6
)  # one process may encode or validate for long while others wait; torchrun ends them if it dies


@contextmanager
def init_process_group(device):
    """Take part in the run that torchrun started, where it did; yields the device of this process.

    device   torch.device; each process of a machine takes a CUDA device of its own

    torchrun tells each process of its place by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() or distributed.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            raise TalkheadError(
                f"{device}: not there; start as many processes as a machine has devices, or pass --device cpu"
            )
        torch.cuda.set_device(device)
    store, rank, size = next(distributed.rendezvous("env://"))
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_fresh(store, rank, size),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def _fresh(store, rank, size):
    """A part of torchrun's store that is empty: after a restart it still holds the addresses of the processes that ended.

    The first process invents a name for it; the others tell it, under that name, that they are there, until it has seen
    the very marks that they have made themselves: a name from before the restart cannot show them.
    """
    mark = secrets.token_hex(8)
    if rank == 0:
        store.set("talkhead/start", mark)
        others = [f"talkhead/{mark}/{other}" for other in range(1, size)]
        while not store.check(others):
            time.sleep(0.05)
        store.set(f"talkhead/{mark}/seen", b" ".join(store.get(other) for other in others))
        return distributed.PrefixStore(f"talkhead/{mark}", store)
    while True:
        start = store.get("talkhead/start").decode()
        store.set(f"talkhead/{start}/{rank}", mark)
        if store.check([f"talkhead/{start}/seen"]) and mark in store.get(f"talkhead/{start}/seen").decode():
            return distributed.PrefixStore(f"talkhead/{start}", store)
        time.sleep(0.05)


@dataclass(frozen=True)
class MicroBatch:
    """Every `of`-th sample of a batch from `first` on: what a process works on in its turn `turn`."""

    turn: int = 0
    first: int = 0
    of: int = 1

    def __call__(self, batch):
        """This share of what has one entry for each sample."""
        return batch[self.first :: self.of]

    def randn(self, count, *shape, device=None):
        """This share of `count` normal draws, which every process makes alike."""
        return self(torch.randn(count, *shape, device=device))


class Distributed:
    """The processes of a run, and the optimiser steps that they take together.

    batch        samples of a step, of all processes together
    accumulate   turns that a process takes to work on its part of them: less memory, for as much time
    precision    "float32", or "bfloat16" or "float16": arithmetic of the passes inside `autocast`
    device       of this process
    whole        a part must be a multiple of this, if there are parts: the pictures that the discriminator compares with each other
    raises       TalkheadError if the batch cannot be cut so
    """

    def __init__(self, batch=1, accumulate=1, precision="float32", device="cpu", whole=1):
        if precision not in PRECISIONS:
            raise TalkheadError(f"precision {precision!r}: unknown; take {', '.join(PRECISIONS)}")
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        self.batch, self.precision, self.device = batch, precision, torch.device(device)
        parts = self.size * accumulate
        if parts > 1 and batch % (parts * whole):
            why = (
                f", for each of the {parts} parts must be a multiple of {whole}: the discriminator compares pictures in groups of {whole}"
                if whole > 1
                else ""
            )
            raise TalkheadError(
                f"a batch of {batch} for {self.size} processes in {accumulate} turns: pass --batch as a multiple of {parts * whole}{why}"
            )
        # Turn by turn, the processes together hold every `accumulate`-th sample, however many they are.
        self.shares = [MicroBatch(turn, turn + accumulate * self.rank, parts) for turn in range(accumulate)]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")

    @property
    def is_main(self):
        """Whether this is the process that writes and logs."""
        return self.rank == 0

    def autocast(self):
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.precision], enabled=self.precision != "float32")

    def optimizer_step(self, loss, *optimizers, scaled=True, longest=None):
        """One step down the gradient of a loss that is a mean over the batch.

        loss      function of a Share: the mean loss of its samples, and a dict of numbers for the log
        scaled    whether it was computed inside `autocast`, so that small gradients would vanish in float16
        longest   gradients longer than this are shortened to it
        returns   the dict, averaged over this process's turns
        """
        parameters = [
            p
            for optimizer in optimizers
            for group in optimizer.param_groups
            for p in group["params"]
            if p.requires_grad
        ]
        for parameter in parameters:
            parameter.grad = None
        start, records = torch.randint(2**62, ()).item(), []
        for share in self.shares:
            torch.manual_seed(start)  # every share draws what is random for the whole batch, and keeps its part
            value, record = loss(share)
            value = value / len(self.shares)
            (self.scaler.scale(value) if scaled else value).backward()
            records.append(record)
        self._average([parameter.grad for parameter in parameters if parameter.grad is not None])
        for optimizer in optimizers:
            if scaled:
                self.scaler.unscale_(optimizer)
        if longest is not None:
            nn.utils.clip_grad_norm_(parameters, longest)
        for optimizer in optimizers:
            self.scaler.step(optimizer) if scaled else optimizer.step()
        if scaled:
            self.scaler.update()
        return {name: sum(record[name] for record in records) / len(records) for name in records[0]}

    def _average(self, tensors):
        """Each tensor becomes its mean over the processes, in a few large messages."""
        if self.size == 1:
            return
        buckets, room = [], 0
        for tensor in tensors:
            if room < tensor.numel():
                buckets.append([])
                room = BUCKET
            buckets[-1].append(tensor)
            room -= tensor.numel()
        flat = [torch.cat([tensor.reshape(-1) for tensor in bucket]) for bucket in buckets]
        with _others_there():
            for work in [distributed.all_reduce(message, async_op=True) for message in flat]:
                work.wait()
        for bucket, message in zip(buckets, flat):
            for tensor, mean in zip(bucket, (message / self.size).split([tensor.numel() for tensor in bucket])):
                tensor.copy_(mean.view(tensor.shape))

    def mean(self, value):
        """A tensor's mean over the processes."""
        value = value.detach().clone()
        self._average([value])
        return value

    def reduce_record(self, record, stop):
        """The record of a step as floats, averaged over the processes, and whether any of them was told to stop.

        record   {name: number or tensor of one number}; what is an int is taken to be the same everywhere
        """
        names = [name for name, value in record.items() if not isinstance(value, int)]
        values = torch.tensor([*(float(record[name]) for name in names), float(stop)], dtype=torch.float64)
        # Between processes numbers travel on their device; alone, on the CPU: Apple's has no float64.
        values = (self.mean(values.to(self.device)) if self.size > 1 else values).tolist()
        return record | dict(zip(names, values)), values[-1] > 0

    def copy(self, thing):
        """What the leader passes, for all: numbers, strings, CPU tensors, and dicts and lists of them."""
        if self.size == 1:
            return thing
        box = [thing if self.is_main else None]
        with _others_there():
            distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def wait(self):
        """Until all are here."""
        self.copy(None)

    def convert_sync_batchnorm(self, network):
        """Let a network's batch normalisation see what all processes work on, as it would in one."""
        for module in network.modules():
            if self.size > 1 and type(module) is nn.BatchNorm2d:
                module.__class__ = _SyncBatchNorm  # the same parameters and names; only `forward` differs


@contextmanager
def _others_there():
    try:
        yield
    except RuntimeError as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        raise TalkheadError("another process of this run has ended; what it said tells why") from problem


class _SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose mean and variance are those of all processes' samples. Unlike torch's own, on a CPU too."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            y = x.to(torch.promote_types(x.dtype, torch.float32))
            moments = _AllGather.apply(
                torch.stack([y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)])
            )  # (ranks, 2, C)
            mean = moments[:, 0].mean(0)
            variance = moments[:, 1].mean(0) + moments[:, 0].var(0, unbiased=False)
            with torch.no_grad():
                count = y.numel() / y.shape[1] * len(moments)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
                self.num_batches_tracked += 1
            scale = self.weight * (variance + self.eps).rsqrt()
            return ((y - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _AllGather(torch.autograd.Function):
    """A tensor of each process, stacked; the gradient of a process's tensor is the sum of what all make of it."""

    @staticmethod
    def forward(ctx, tensor):
        parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        with _others_there():
            distributed.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        with _others_there():
            distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def pick_device(name="auto"):
    """The torch device that `name` stands for.

    name     "auto" (cuda, then mps, then cpu), "cpu", "cuda", "cuda:1", "mps"
    raises   TalkheadError if the device is not there
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise TalkheadError(f"--device {name}: not usable here ({reason}); pass --device cpu") from problem
    return device
