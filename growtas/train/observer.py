"""Who watches a training: progress bars, logs, tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Observer(Protocol):
    """Is told how the training gets on; may raise KeyboardInterrupt to stop it."""

    def on_start(self, first_step: int, steps: int) -> None:
        """The training is about to begin, or to go on, at a step out of ``steps``."""

    def on_step(self, step: int, epoch: int, stage: int, loss: float) -> None:
        """A step is done."""

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch is done and saved; ``metrics`` is its line of ``metrics.jsonl``."""


class Silent:
    """An observer that shows nothing."""

    def on_start(self, first_step: int, steps: int) -> None:
        """Nothing."""

    def on_step(self, step: int, epoch: int, stage: int, loss: float) -> None:
        """Nothing."""

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """Nothing."""


class Logging:
    """An observer that also hands every epoch's metrics to a log.

    Args:
        inner: is told of everything.
        add: takes the metrics.
    """

    def __init__(self, inner: Observer, add: Callable[[dict[str, Any]], None]) -> None:
        self._inner, self._add = inner, add
        self.on_start, self.on_step = inner.on_start, inner.on_step

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """See :class:`Observer`."""
        self._add(metrics)
        self._inner.on_epoch(metrics)
