"""Evaluates the subnets of one search on several processes. Process 0 searches and distributes the subnets to all processes.

Each subnet is evaluated by one process, in the same way as without others, so the results are the same. A process gets a few
subnets at a time, which are neighbours in the order that shares the most work. Results are journalled before the next distribution.

The processes exchange only small Python objects over gloo, even if they compute on GPUs. So a waiting process costs nothing, and
process 0 can measure subnets in between.
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
"""Number of subnets that a process gets at a time."""
_PATIENCE = datetime.timedelta(days=7)
"""Longest time to wait for another process, such as process 0 while it measures. The death of a process is noticed at once."""

Answer = tuple[list[tuple[Subnet, Evaluation]], str | None]
"""Results of a process, and its error message, if it failed."""


@dataclass(frozen=True)
class SearchWorld(World):
    """The processes of a search, which wait for each other without a practical limit.

    Attributes:
        device: device of this process: ``cpu``, or a GPU that no other process uses.
        group: the gloo process group; None for a single process.
    """

    device: str = "cpu"
    group: Any = None

    def share(self, value: Any) -> Any:
        """Returns the value of process 0 on every process.

        Raises:
            WorkerError: a process has died.
        """
        if self.size == 1:
            return value
        box = [value]
        with noticing_lost_process("search"):
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes by rank on process 0, and an empty list on the others.

        Raises:
            WorkerError: a process has died.
        """
        if self.size == 1:
            return [value]
        every: list[Any] | None = [None] * self.size if self.is_main else None
        with noticing_lost_process("search"):
            dist.gather_object(value, every, dst=0, group=self.group)
        return every or []


class WorkerExit(SystemExit):
    """Ends a process other than 0: with exit code 0 after it has served process 0, with 1 if another process has died."""


@contextlib.contextmanager
def search_world() -> Iterator[SearchWorld]:
    """Context manager that joins the processes that torchrun started, each with its device; a single process without torchrun.

    Ctrl-C and SIGTERM reach all processes. Process 0 reports them, and the others end silently.

    Raises:
        DeviceError: this machine has fewer GPUs than processes (its first process reports this), or the processes can't connect.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local, neighbours = (int(os.environ.get(key, default)) for key, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
    if gpus and neighbours > gpus:
        if local:
            raise WorkerExit(0)
        raise DeviceError(
            f"{socket.gethostname()} has {gpus} GPUs for {neighbours} processes, but each process needs its own GPU; "
            f"start torchrun with at most --nproc-per-node {gpus}"
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
    """Evaluates subnets on all processes. A context manager; leaving it on process 0 ends :meth:`serve` on the others.

    Every process creates one and enters it::

        with SharedEvaluator(SubnetEvaluator(supernet, images, device=world.device), world) as evaluate:
            if not world.is_main:
                evaluate.serve()
                return
            racing = None if exact else Racing(config.parents, len(images))
            scorer = Scorer(space, evaluate, journal, racing, progress)

    Args:
        local: evaluator of this process, which is closed together with this object. Its images must be the same, in the same order,
            on all processes. If a process failed to create its evaluator, the error, which is reported when it gets subnets.
        world: the processes of the search.
    """

    def __init__(self, local: SubnetEvaluator | Exception, world: SearchWorld) -> None:
        self._local, self._world = local, world
        self._connected = True

    def __enter__(self) -> SharedEvaluator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            # After Ctrl-C or the death of a process the others end by themselves, so there is nobody to notify.
            if self._world.is_main and self._connected and (kind is None or issubclass(kind, Exception)):
                self._world.share(None)
        finally:
            if not isinstance(self._local, Exception):
                self._local.close()

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluates subnets like :class:`growtas.search.evaluation.evaluator.SubnetEvaluator`. Called on process 0 only.

        Raises:
            WorkerError: a process failed (the message says which and why), or has died.
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
        """Evaluates the subnets that process 0 distributes until it leaves its ``with`` block. Called on the other processes.

        Raises:
            WorkerError: a process has died.
        """
        while (message := self._world.share(None)) is not None:
            shares, race = message
            self._evaluate_share(shares[self._world.rank], race)

    def _evaluate(self, subnets: Sequence[Subnet], race: Race | None) -> Iterator[tuple[Subnet, Evaluation]]:
        if isinstance(self._local, Exception):
            raise self._local
        return self._local(subnets, race)

    def _evaluate_share(self, subnets: Sequence[Subnet], race: Race | None) -> list[Answer]:
        """Evaluates this process's share. Returns the results or errors of all processes on process 0."""
        answer: Answer
        try:
            answer = list(self._evaluate(subnets, race)), None
        except Exception as error:  # the other processes wait for this one, so it must answer after any error
            answer = [], " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return self._world.gather(answer)
