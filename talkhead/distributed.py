"""Distributed training under torchrun, gradient accumulation, mixed precision, and the choice of a device.

The batch of a step is split into n equal micro-batches, one for each process and accumulation turn; micro-batch k holds
every n-th sample from the k-th on. Random numbers are drawn for the whole batch and split the same way, and gradients
are averaged, so the result equals that of one process with the same batch, except for the order of summation.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

# torch's optimisers import this module, whose functions take the current process group as a default argument and so
# keep it alive, with threads that abort at exit. Imported now, before there is a group, it keeps none.
import torch.distributed.nn  # noqa: F401
from torch import distributed, nn

from talkhead.errors import TalkheadError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
BUCKET = 8_000_000  # gradient values averaged in one message
Samples = TypeVar("Samples")  # a sequence, array or tensor with one entry per sample
Thing = TypeVar("Thing")
TIMEOUT = timedelta(hours=6)  # others wait while one process encodes or validates; torchrun ends them if it dies


@contextmanager
def init_process_group(device: torch.device) -> Iterator[torch.device]:
    """Join torchrun's process group, if there is one, for the time of the block; yields the device of this process.

    device   torch.device; each process of a machine takes a CUDA device of its own

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() or distributed.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            raise TalkheadError(f"{device}: not found; start at most one process per CUDA device, or pass --device cpu")
        torch.cuda.set_device(device)
    store, rank, size = next(distributed.rendezvous("env://"))
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_fresh(store, rank, size),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def _fresh(store, rank, size):
    """An empty part of torchrun's store, which after a restart still holds the addresses of the ended processes.

    Rank 0 publishes a random prefix. The others write a random mark of their own under it, until rank 0 has published
    all marks it received: a prefix from before the restart cannot contain the new marks.
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
    """Micro-batch: every `of`-th sample of a batch from `first` on, processed by this process in turn `turn`."""

    turn: int = 0
    first: int = 0
    of: int = 1

    def __call__(self, batch: Samples) -> Samples:
        """Select this micro-batch from a sequence or tensor with one entry per sample."""
        return batch[self.first :: self.of]  # type: ignore[index]  # all of them can be sliced

    def randn(self, count: int, *shape: int, device: str | torch.device | None = None) -> torch.Tensor:
        """Draw `count` standard normal samples, the same in every process, and return this micro-batch's."""
        return self(torch.randn(count, *shape, device=device))


class Distributed:
    """The processes of a training run, and their joint optimiser steps.

    batch        samples per step, of all processes together
    accumulate   micro-batches per process and step: less memory for the same time
    precision    "float32", or "bfloat16" or "float16": arithmetic within `autocast`
    device       device of this process
    whole        the size of a micro-batch must be a multiple of this, if there are several: the group size of the
                 discriminator's minibatch std
    raises       TalkheadError if the batch cannot be split like that
    """

    def __init__(
        self,
        batch: int = 1,
        accumulate: int = 1,
        precision: str = "float32",
        device: str | torch.device = "cpu",
        whole: int = 1,
    ) -> None:
        if precision not in PRECISIONS:
            raise TalkheadError(f"precision {precision!r}: unknown; take {', '.join(PRECISIONS)}")
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        self.batch, self.precision, self.device = batch, precision, torch.device(device)
        parts = self.size * accumulate
        if parts > 1 and batch % (parts * whole):
            why = (
                f": the minibatch std of the discriminator needs multiples of {whole} in each of the {parts} parts"
                if whole > 1
                else ""
            )
            raise TalkheadError(
                f"a batch of {batch} cannot be split over {self.size} processes in {accumulate} micro-batches; "
                f"pass --batch as a multiple of {parts * whole}{why}"
            )
        # In each turn, all processes together hold every `accumulate`-th sample, whatever their number.
        self.shares = [MicroBatch(turn, turn + accumulate * self.rank, parts) for turn in range(accumulate)]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and logs (rank 0)."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.precision], enabled=self.precision != "float32")

    def optimizer_step(
        self,
        loss: Callable[[MicroBatch], tuple[torch.Tensor, dict]],
        *optimizers: torch.optim.Optimizer,
        scaled: bool = True,
        longest: float | None = None,
    ) -> dict:
        """Take one optimiser step on a loss that is a mean over the batch.

        loss      function of a MicroBatch: mean loss of its samples, and a dict of numbers for the log
        scaled    use the gradient scaler, for a loss computed within `autocast`
        longest   maximum gradient norm, to which gradients are clipped; None: no limit
        returns   the dict, averaged over this process's micro-batches
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
            torch.manual_seed(start)  # every micro-batch draws for the whole batch and keeps its part
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
        """Replace each tensor by its mean over the processes, in a few large messages."""
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
        with _raise_if_others_ended():
            for work in [distributed.all_reduce(message, async_op=True) for message in flat]:
                work.wait()
        for bucket, message in zip(buckets, flat):
            for tensor, mean in zip(bucket, (message / self.size).split([tensor.numel() for tensor in bucket])):
                tensor.copy_(mean.view(tensor.shape))

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the processes."""
        value = value.detach().clone()
        self._average([value])
        return value

    def reduce_record(self, record: dict, stop: bool) -> tuple[dict, bool]:
        """Average the record of a step over the processes, as floats, and combine `stop` by "or".

        record   {name: number or tensor of one number}; ints are taken to be equal in all processes
        """
        names = [name for name, value in record.items() if not isinstance(value, int)]
        values = torch.tensor([*(float(record[name]) for name in names), float(stop)], dtype=torch.float64)
        # Communication needs the processes' device; a single process uses the CPU, because MPS has no float64.
        *means, stopped = (self.mean(values.to(self.device)) if self.size > 1 else values).tolist()
        return record | dict(zip(names, means)), stopped > 0

    def copy(self, thing: Thing) -> Thing:
        """Broadcast an object from rank 0: numbers, strings, CPU tensors, and dicts and lists of them."""
        if self.size == 1:
            return thing
        box: list = [thing if self.is_main else None]
        with _raise_if_others_ended():
            distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Wait for all processes (a barrier)."""
        self.copy(None)

    def convert_sync_batchnorm(self, network: nn.Module) -> None:
        """Make a network's batch normalisation use the statistics of all processes' samples."""
        for module in network.modules():
            if self.size > 1 and type(module) is nn.BatchNorm2d:
                module.__class__ = _SyncBatchNorm  # the same parameters and names; only `forward` differs


@contextmanager
def _raise_if_others_ended():
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise TalkheadError("another training process exited; its own message gives the cause") from error


class _SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with mean and variance over all processes' samples; unlike torch's, on a CPU too."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            y = x.to(torch.promote_types(x.dtype, torch.float32))
            # (processes, 2, C)
            moments = _AllGather.apply(torch.stack([y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)]))
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
    """Stack the tensors of all processes; the gradient of a process's tensor is the sum over all processes."""

    @staticmethod
    def forward(ctx, tensor):
        parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        with _raise_if_others_ended():
            distributed.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        with _raise_if_others_ended():
            distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def pick_device(name: str = "auto") -> torch.device:
    """Choose the torch device of a name.

    name     "auto" (cuda, then mps, then cpu), "cpu", "cuda", "cuda:1", "mps"
    raises   TalkheadError if the device is not available
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TalkheadError(f"--device {name}: not usable here ({reason}); pass --device cpu") from error
    return device
