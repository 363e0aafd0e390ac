"""The processes of a distributed training. torchrun starts them, and all of them train the same subnet in each step.

Every process draws the same subnets, because draws depend only on (seed, step). The same parameters therefore get gradients in all
processes, and the gradients are summed after the backward pass without detecting which parameters a step used.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from growtas.errors import DeviceError, WorkerError

_BUCKET_BYTES = 25 << 20
_SIGNAL_S = 1.0
"""Seconds within which a signal that ended one process reaches the others."""


@contextlib.contextmanager
def noticing_lost_process(work: str) -> Iterator[None]:
    """Converts torch's error for a lost process into a WorkerError.

    Args:
        work: the work of the processes for the message, such as ``search``.

    Raises:
        WorkerError: Another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        # The signal that ended the other process, such as Ctrl-C, may end this one too; then no error is reported.
        time.sleep(_SIGNAL_S)
        raise WorkerError(f"a process of this {work} has ended ({' '.join(str(error).split())[:100]})") from None


@dataclass(frozen=True)
class World:
    """The processes of a training.

    Attributes:
        rank: number of this process, from 0; process 0 writes the files.
        size: number of processes.
        local_rank: number of this process on its machine, which is also the number of its GPU.
        restarts: number of times that torchrun has restarted all processes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and prints for the user."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter], extra: Tensor) -> None:
        """Sums the gradients of all processes, and ``extra`` (float32, one-dimensional), in place.

        Gradients that are None stay None, since no process has them. All methods raise WorkerError if another process has ended.
        """
        if self.size == 1:
            return
        tensors = [extra, *(p.grad for p in parameters if p.grad is not None)]
        pending = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with noticing_lost_process("training"):
                pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in pending:
            with noticing_lost_process("training"):
                work.wait()
            for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @noticing_lost_process("training")
    def sum_numbers(self, numbers: list[float], device: torch.device) -> list[float]:
        """Sums a list of numbers over all processes, element by element; whole numbers exactly."""
        if self.size == 1:
            return numbers
        total = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    @noticing_lost_process("training")
    def share(self, value: Any) -> Any:
        """Returns the value of process 0 in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @noticing_lost_process("training")
    def share_weights(self, module: nn.Module) -> None:
        """Copies the weights of process 0 to every process."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    @noticing_lost_process("training")
    def wait(self) -> None:
        """Waits until every process has called this method."""
        if self.size > 1:
            dist.barrier()


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Groups tensors, in their order, into buckets of one dtype and at most 25 MB (or a single tensor)."""
    groups: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not groups or groups[-1][0].dtype != tensor.dtype or size + tensor.nbytes > _BUCKET_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups


def join_world(device: torch.device) -> World:
    """Connects this process with the others that torchrun started; without torchrun, returns a world of one process.

    Raises:
        DeviceError: A machine has fewer GPUs than processes, or the processes can't connect.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    rank, size, local = (int(os.environ.get(key, "0")) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    world = World(rank, size, local, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"process {local} of {socket.gethostname()} has no GPU of its own: the machine has {torch.cuda.device_count()}; "
                f"start torchrun with --nproc-per-node {max(torch.cuda.device_count(), 1)} at most"
            )
        torch.cuda.set_device(local)
    if size > 1 and not dist.is_initialized():
        try:
            store, _, _ = next(rendezvous("env://"))
            # torchrun keeps its store across restarts. Without a new prefix, the new processes could read entries of the ended
            # ones, and wait for them.
            store = PrefixStore(f"growtas/{world.restarts}", store)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"the {size} processes can't connect ({' '.join(str(error).split())[:200]})") from None
    return world


def leave_world(world: World) -> None:
    """Closes the connection that :func:`join_world` opened."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
