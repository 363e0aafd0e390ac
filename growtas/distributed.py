"""The processes that train together: torchrun starts them, and all of them run the same subnet in a step.

Every process draws the same subnets, because draws are functions of (seed, step). So the same parameters get gradients everywhere,
and they can simply be summed after the backward pass: no wrapper has to find out which parameters a step used.
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
"""A signal that ended one process reaches the next one within this time."""


@contextlib.contextmanager
def noticing_lost_process(work: str) -> Iterator[None]:
    """Turns what torch raises when another process is gone into a sentence about it.

    Args:
        work: what the processes do, such as ``search``.

    Raises:
        WorkerError: a process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        # What ended the other process, such as Ctrl-C, may be about to end this one: then that is what there is to say.
        time.sleep(_SIGNAL_S)
        raise WorkerError(f"a process of this {work} is gone ({' '.join(str(error).split())[:100]})") from None


@dataclass(frozen=True)
class World:
    """The processes of a training.

    Attributes:
        rank: this process's number, from 0; process 0 writes the files.
        size: how many there are.
        local_rank: this process's number on its machine, which is also that of its GPU.
        restarts: how often torchrun has started all of them again.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter], extra: Tensor) -> None:
        """Add up the gradients of all processes, and ``extra`` (float32, one-dimensional) with them, in place.

        Gradients that are None stay so: no process has them. All methods raise WorkerError where another process is gone.
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
    def sum_counts(self, counts: list[int], device: torch.device) -> list[int]:
        """Element-wise sums of a list of whole numbers over all processes."""
        if self.size == 1:
            return counts
        total = torch.tensor(counts, dtype=torch.int64, device=device)
        dist.all_reduce(total)
        return [int(value) for value in total.tolist()]

    @noticing_lost_process("training")
    def share(self, value: Any) -> Any:
        """Process 0's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @noticing_lost_process("training")
    def share_weights(self, module: nn.Module) -> None:
        """Give every process the weights of process 0."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    @noticing_lost_process("training")
    def wait(self) -> None:
        """Return when every process is here."""
        if self.size > 1:
            dist.barrier()


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups of one type and at most 25 MB (or one tensor), in their order."""
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
    """Meet the other processes where torchrun started this one; a world of one otherwise.

    Raises:
        DeviceError: a machine has fewer GPUs than processes, or the processes can't meet.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    rank, size, local = (int(os.environ.get(key, "0")) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    world = World(rank, size, local, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"process {local} of {socket.gethostname()} has no GPU of its own: there are {torch.cuda.device_count()}; "
                f"give torchrun --nproc-per-node {max(torch.cuda.device_count(), 1)} at most"
            )
        torch.cuda.set_device(local)
    if size > 1 and not dist.is_initialized():
        try:
            store, _, _ = next(rendezvous("env://"))
            # torchrun keeps its store over a restart: without a name of its own, a new group may find what the dead one left, and
            # wait for processes that are gone.
            store = PrefixStore(f"growtas/{world.restarts}", store)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"the {size} processes can't meet ({' '.join(str(error).split())[:200]})") from None
    return world


def leave_world(world: World) -> None:
    """Close what :func:`join_world` opened."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
