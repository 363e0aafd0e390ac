"""Measures the time that a training spends on each activity."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

_SAMPLED = 10


class Clock:
    """Sums up the seconds of each activity: ``with clock("name"):`` adds the time of its body to ``name``.

    A GPU works asynchronously, so measuring a single activity means waiting for it, which slows the training. On a GPU the
    activities inside a step (``step=True``) are therefore measured in every tenth step only and scaled to the time of all steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._inside: dict[str, float] = {}
        self.step_seconds = 0.0
        """Total time of all steps, in seconds."""
        self._sampled = True

    @contextlib.contextmanager
    def __call__(self, activity: str, *, step: bool = False) -> Iterator[None]:
        """Adds the time of the body to ``activity``; ``step`` marks an activity inside :meth:`step`."""
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
        """Measures one step, which contains activities with ``step=True``."""
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
        """Returns the seconds of each activity. The activities inside steps add up to :attr:`step_seconds`."""
        inside = sum(self._inside.values())
        scale = self.step_seconds / inside if inside else 0.0
        parts = {name: value * scale for name, value in self._inside.items()}
        return {name: round(value, 3) for name, value in {**self._seconds, **parts}.items()}
