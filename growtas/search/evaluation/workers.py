"""Several processes evaluate the subnets of one search: process 0 searches, and distributes subnets to all, itself included.

A subnet is evaluated by one process, as a process alone would do it, so the numbers are the same. A process gets neighbours in the
order that shares most work, a few at a time: results are journalled before the next subnets are distributed.

The processes only exchange small Python objects, over gloo, also where they compute on GPUs: a process that waits costs nothing
then, and process 0 may take its time to measure subnets in between.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from growtas.distributed import World, join_world, leave_world, noticing_lost_process
from growtas.errors import DeviceError, WorkerError
from growtas.interrupts import end_at_signals
from growtas.search.evaluation.evaluator import SubnetEvaluator, by_beginning
from growtas.search.evaluation.racing import Race
from growtas.search.journal import Evaluation
from growtas.subnet import Subnet

ROUND = 16
"""Subnets that a process gets at a time."""
_PATIENCE = datetime.timedelta(days=7)
"""How long a process waits for another one. That one died is noticed at once; this is for process 0 measuring in between."""

Answer = tuple[list[tuple[Subnet, Evaluation]], str | None]
"""What a process found, or what went wrong there."""


@dataclass(frozen=True)
class SearchWorld(World):
    """The processes of a search, which wait for each other as long as it takes.

    Attributes:
        device: what this process computes on: ``cpu``, or a GPU of its own.
        group: their gloo process group; None for a process alone.
    """

    device: str = "cpu"
    group: Any = None

    def share(self, value: Any) -> Any:
        """Process 0's value, on every process.

        Raises:
            WorkerError: a process is gone.
        """
        if self.size == 1:
            return value
        box = [value]
        with noticing_lost_process("search"):
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank; an empty list but on process 0.

        Raises:
            WorkerError: a process is gone.
        """
        if self.size == 1:
            return [value]
        every: list[Any] | None = [None] * self.size if self.is_main else None
        with noticing_lost_process("search"):
            dist.gather_object(value, every, dst=0, group=self.group)
        return every or []


class WorkerExit(SystemExit):
    """Ends a process that is not the first one: with code 0 when it has served process 0, with 1 when another process is gone."""


@contextlib.contextmanager
def search_world() -> Iterator[SearchWorld]:
    """The processes that torchrun started, each with its device; a process alone where it did not. A context manager.

    Ctrl-C and SIGTERM end the others silently: they reach all of them, and process 0 says what there is to say.

    Raises:
        DeviceError: this machine has fewer GPUs than processes (said by its first one), or the processes can't meet.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local, neighbours = (int(os.environ.get(key, default)) for key, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
    if gpus and neighbours > gpus:
        if local:
            raise WorkerExit(0)
        raise DeviceError(
            f"{socket.gethostname()} has {gpus} GPUs for {neighbours} processes, and each needs its own; "
            f"give torchrun --nproc-per-node {gpus} at most"
        )
    world = join_world(torch.device("cpu"))
    if world.size == 1:
        yield SearchWorld(device="cuda" if gpus else "cpu")
        return
    try:
        if gpus:
            torch.cuda.set_device(local)
        if not world.is_main:
            end_at_signals()
        group = dist.new_group(timeout=_PATIENCE, backend="gloo")
        yield SearchWorld(**vars(world), device=f"cuda:{local}" if gpus else "cpu", group=group)
    finally:
        leave_world(world)


class SharedEvaluator:
    """Evaluates subnets on all processes of a world. A context manager; leaving it on process 0 ends the others' :meth:`serve`.

    Every process makes one and enters it::

        with SharedEvaluator(SubnetEvaluator(supernet, images, device=world.device), world) as evaluate:
            if not world.is_main:
                evaluate.serve()
                return
            racing = None if exact else Racing(config.parents, len(images))
            scorer = Scorer(space, evaluate, journal, racing, progress)

    Args:
        local: this process's evaluator, closed with this one; its images must be the same in the same order on all processes. Or
            the error of a process that could not make one: it is reported when the process gets subnets.
        world: the processes, joined already.
    """

    def __init__(self, local: SubnetEvaluator | Exception, world: SearchWorld) -> None:
        self._local, self._world = local, world
        self._connected = True

    def __enter__(self) -> SharedEvaluator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            # Ctrl-C stops all processes at once, and where one is gone the others notice: there is nobody left to tell.
            if self._world.is_main and self._connected and (kind is None or issubclass(kind, Exception)):
                self._world.share(None)
        finally:
            if not isinstance(self._local, Exception):
                self._local.close()

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluate subnets, as :class:`growtas.search.evaluation.evaluator.SubnetEvaluator` does; on process 0 only.

        Raises:
            WorkerError: a process failed, and the message says which and why; or one is gone.
        """
        size = self._world.size
        if size == 1:
            yield from self._evaluate(subnets, race)
            return
        ordered = by_beginning(subnets)
        for start in range(0, len(ordered), ROUND * size):
            batch = ordered[start : start + ROUND * size]
            count = -(-len(batch) // size)
            shares = [batch[count * rank : count * (rank + 1)] for rank in range(size)]
            try:
                self._world.share((shares, race))
                answers = self._evaluate_share(shares[0], race)
            except WorkerError:
                self._connected = False
                raise
            for rank, (results, failure) in enumerate(answers):
                if failure is not None:
                    raise WorkerError(f"process {rank} of {size} could not evaluate its subnets ({failure})")
                yield from results

    def serve(self) -> None:
        """On the other processes: evaluate what process 0 distributes, until it leaves its ``with`` block.

        Raises:
            WorkerError: a process is gone.
        """
        while (message := self._world.share(None)) is not None:
            shares, race = message
            self._evaluate_share(shares[self._world.rank], race)

    def _evaluate(self, subnets: Sequence[Subnet], race: Race | None) -> Iterator[tuple[Subnet, Evaluation]]:
        if isinstance(self._local, Exception):
            raise self._local
        return self._local(subnets, race)

    def _evaluate_share(self, subnets: Sequence[Subnet], race: Race | None) -> list[Answer]:
        """Evaluates this process's share; on process 0 returns every process's results, or what went wrong there."""
        answer: Answer
        try:
            answer = list(self._evaluate(subnets, race)), None
        except Exception as error:  # the others wait for this process: it must answer, whatever happened
            answer = [], " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return self._world.gather(answer)
