"""Several processes evaluate the subnets of one search: process 0 searches, and deals out subnets to all, itself included.

A subnet is evaluated by one process, as a process alone would do it, so the numbers are the same. Dealt are neighbours in the order
that shares most work, a few at a time: what comes back is journalled before the next ones are dealt.

The processes only exchange small Python objects, over gloo, also where they compute on GPUs: a process that waits costs nothing
then, and process 0 may take its time to measure subnets in between.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
import torch.distributed as dist

from growtas.distributed import World, join_world, leave_world
from growtas.errors import DeviceError, WorkerError
from growtas.search.evaluation.racing import Race
from growtas.search.journal import Evaluation
from growtas.subnet import Subnet

ROUND = 16
"""Subnets that a process is dealt at a time."""
_PATIENCE = datetime.timedelta(days=7)
"""How long a process waits for another one. That one died is noticed at once; this is for process 0 measuring in between."""
_SIGNAL_S = 1.0
"""A signal that ended one process reaches the next one within this time."""

Results = list[tuple[Subnet, Evaluation]]


class Local(Protocol):
    """The evaluator of one process; see :class:`growtas.search.evaluation.evaluator.SubnetEvaluator`."""

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluate subnets."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True)
class Crew(World):
    """The processes of a search, which wait for each other as long as it takes.

    Attributes:
        device: what this process computes on: ``cpu``, or a GPU of its own.
        group: what they talk over; None for a process alone.
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
        with _lost():
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
        with _lost():
            dist.gather_object(value, every, dst=0, group=self.group)
        return every or []


class WorkerExit(SystemExit):
    """Ends a process that is not the first one: with code 0 when it has served process 0, with 1 when another process is gone."""


@contextlib.contextmanager
def crew() -> Iterator[Crew]:
    """The processes that torchrun started, each with its device; a process alone where it did not. A context manager.

    Ctrl-C ends the others silently: it reaches all of them, and process 0 says what there is to say.

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
        yield Crew(device="cuda" if gpus else "cpu")
        return
    try:
        if gpus:
            torch.cuda.set_device(local)
        if not world.is_main:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        yield Crew(
            world.rank,
            world.size,
            world.local_rank,
            world.restarts,
            device=f"cuda:{local}" if gpus else "cpu",
            group=dist.new_group(timeout=_PATIENCE, backend="gloo"),
        )
    finally:
        leave_world(world)


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # What ended the other process, such as Ctrl-C, may be about to end this one: then that is what there is to say.
        time.sleep(_SIGNAL_S)
        raise WorkerError(f"a process of this search is gone ({' '.join(str(error).split())[:100]})") from None


class Unfit:
    """Stands for the evaluator of a process that could not make one: it says why when it is dealt subnets.

    Args:
        error: what went wrong.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Raise the error."""
        raise self._error

    def close(self) -> None:
        """Nothing to do."""


class SharedEvaluator:
    """Evaluates subnets on all processes of a world. A context manager; leaving it on process 0 sends the others home.

    Args:
        local: this process's evaluator; closed with this one.
        world: the processes, joined already.
        sort: brings subnets into the order in which neighbours share most.
    """

    def __init__(self, local: Local, world: World, sort: Callable[[Sequence[Subnet]], list[Subnet]] = list) -> None:
        self._local, self._sort = local, sort
        self._world = world if isinstance(world, Crew) else Crew(world.rank, world.size, world.local_rank, world.restarts)
        self._whole = True

    def __enter__(self) -> SharedEvaluator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            # Ctrl-C stops all processes at once, and where one is gone the others notice: there is nobody left to tell.
            if self._world.is_main and self._whole and (kind is None or issubclass(kind, Exception)):
                self._world.share(None)
        finally:
            self._local.close()

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluate subnets, as :class:`growtas.search.evaluation.evaluator.SubnetEvaluator` does; on process 0 only.

        Raises:
            WorkerError: a process failed, and the message says which and why; or one is gone.
        """
        if self._world.size == 1:
            yield from self._local(subnets, race)
            return
        ordered = self._sort(subnets)
        for start in range(0, len(ordered), ROUND * self._world.size):
            dealt = ordered[start : start + ROUND * self._world.size]
            share = -(-len(dealt) // self._world.size)
            hands = [dealt[share * rank : share * (rank + 1)] for rank in range(self._world.size)]
            for rank, (results, failure) in enumerate(self._deal(hands, race)):
                if failure is not None:
                    raise WorkerError(f"process {rank} of {self._world.size} could not evaluate its subnets ({failure})")
                yield from results

    def serve(self) -> None:
        """On the other processes: evaluate what process 0 deals out, until it leaves its ``with`` block.

        Raises:
            WorkerError: a process is gone.
        """
        while (message := self._world.share(None)) is not None:
            hands, race = message
            self._play(hands[self._world.rank], race)

    def _deal(self, hands: Sequence[Sequence[Subnet]], race: Race | None) -> list[tuple[Results, str | None]]:
        try:
            self._world.share((hands, race))
            return self._play(hands[0], race)
        except WorkerError:
            self._whole = False
            raise

    def _play(self, hand: Sequence[Subnet], race: Race | None) -> list[tuple[Results, str | None]]:
        """Evaluate a hand and meet the others; on process 0 every process's results, or what went wrong there."""
        mine: tuple[Results, str | None] = [], None
        try:
            mine = list(self._local(hand, race)), None
        except Exception as error:  # the others wait for this process: it must answer, whatever happened
            mine = [], " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return self._world.gather(mine)
