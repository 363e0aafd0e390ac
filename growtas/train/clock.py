"""Measures how long a training spends on each of its activities."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

_SAMPLED = 10


class Clock:
    """Seconds an activity; whatever runs inside ``with clock("name")`` counts for it.

    A GPU works while the host goes on, so its activities can only be told apart by waiting for it, which costs time. On a GPU the
    activities inside a step (``step=True``) are therefore measured in every tenth step, and their sum is scaled to all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._inside: dict[str, float] = {}
        self.step_seconds = 0.0
        """Of all steps."""
        self._sampled = True

    @contextlib.contextmanager
    def __call__(self, activity: str, *, step: bool = False) -> Iterator[None]:
        """Count what runs inside; ``step`` marks an activity within :meth:`step`."""
        if step and not self._sampled:
            yield
            return
        start = self._now(step)
        try:
            yield
        finally:
            into = self._inside if step else self._seconds
            into[activity] = into.get(activity, 0.0) + self._now(step) - start

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A whole step, with the activities inside it."""
        self._sampled = not self._on_gpu or number % _SAMPLED == 0
        start = time.perf_counter()
        try:
            yield
        finally:
            self.step_seconds += time.perf_counter() - start

    def _now(self, step: bool) -> float:
        if step and self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Seconds of each activity; those inside steps add up to :attr:`step_seconds`."""
        inside = sum(self._inside.values())
        scale = self.step_seconds / inside if inside else 0.0
        parts = {name: value * scale for name, value in self._inside.items()}
        return {name: round(value, 3) for name, value in {**self._seconds, **parts}.items()}
