"""Several processes evaluate the subnets of one search: process 0 searches, and deals out subnets to all, itself included.

A subnet is evaluated by one process, as a process alone would do it, so the numbers are the same. Dealt are neighbours in the order
that shares most work, a few at a time: what comes back is journalled before the next ones are dealt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

import torch.distributed as dist

from growtas.errors import GrowtasError
from growtas.search.journal import Evaluation
from growtas.search.racing import Race
from growtas.subnet import Subnet
from growtas.train.distributed import World

ROUND = 16
"""Subnets that a process is dealt at a time."""

Results = list[tuple[Subnet, Evaluation]]


class Local(Protocol):
    """The evaluator of one process; see :class:`growtas.search.evaluate.SubnetEvaluator`."""

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluate subnets."""

    def close(self) -> None:
        """Free what it holds."""


class WorkerError(GrowtasError):
    """A process could not evaluate what it was dealt."""


class SharedEvaluator:
    """Evaluates subnets on all processes of a world. A context manager; leaving it on process 0 sends the others home.

    Args:
        local: this process's evaluator; closed with this one.
        world: the processes, joined already.
        sort: brings subnets into the order in which neighbours share most.
    """

    def __init__(self, local: Local, world: World, sort: Callable[[Sequence[Subnet]], list[Subnet]] = list) -> None:
        self._local, self._world, self._sort = local, world, sort

    def __enter__(self) -> SharedEvaluator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Ctrl-C stops all processes at once: there is nobody left to tell.
        if self._world.is_main and (kind is None or issubclass(kind, Exception)):
            self._world.share(None)
        self._local.close()

    def __call__(self, subnets: Sequence[Subnet], race: Race | None = None) -> Iterator[tuple[Subnet, Evaluation]]:
        """Evaluate subnets, as :class:`growtas.search.evaluate.SubnetEvaluator` does; on process 0 only.

        Raises:
            WorkerError: a process failed; the message says which, and why.
        """
        if self._world.size == 1:
            yield from self._local(subnets, race)
            return
        ordered = self._sort(subnets)
        for start in range(0, len(ordered), ROUND * self._world.size):
            dealt = ordered[start : start + ROUND * self._world.size]
            share = -(-len(dealt) // self._world.size)
            hands = [dealt[share * rank : share * (rank + 1)] for rank in range(self._world.size)]
            self._world.share((hands, race))
            for rank, (results, failure) in enumerate(self._play(hands[0], race)):
                if failure is not None:
                    raise WorkerError(f"process {rank} of {self._world.size} could not evaluate its subnets ({failure})")
                yield from results

    def serve(self) -> None:
        """On the other processes: evaluate what process 0 deals out, until it leaves its ``with`` block."""
        while (message := self._world.share(None)) is not None:
            hands, race = message
            self._play(hands[self._world.rank], race)

    def _play(self, hand: Sequence[Subnet], race: Race | None) -> list[tuple[Results, str | None]]:
        """Evaluate a hand and meet the others; on process 0 every process's results, or what went wrong there."""
        mine: tuple[Results, str | None] = [], None
        try:
            mine = list(self._local(hand, race)), None
        except Exception as error:  # the others wait for this process: it must answer, whatever happened
            mine = [], " ".join(f"{type(error).__name__}: {error}".split())[:200]
        every: list[Any] | None = [None] * self._world.size if self._world.is_main else None
        dist.gather_object(mine, every, dst=0)
        return every or []
