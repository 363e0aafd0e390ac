"""A deterministic stand-in for runtimes and builders: for tests, and for trying the flow without either."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from growtas.export.backends.base import Array, BuiltPlan, RuntimeInfo, Timer


class FakeSession:
    """Computes a given function, and "takes" given times.

    Args:
        function: images to logits.
        latencies_ms: what the timer returns, over and over in this order.
        image_shape: channels, height and width of the input.
    """

    def __init__(
        self,
        function: Callable[[Array], Array],
        latencies_ms: tuple[float, ...] = (1.0,),
        image_shape: tuple[int, int, int] = (3, 4, 4),
    ) -> None:
        self._function, self._latencies = function, latencies_ms
        self.image_shape = image_shape
        self.calls = 0
        self.closed = False
        self.info = RuntimeInfo(runtime="fake", version="0", device="cpu", threads=1)

    def run(self, images: Array) -> Array:
        """The function's logits."""
        return np.asarray(self._function(images), np.float32)

    def timer(self, images: Array) -> Timer:
        """Returns the next of ``latencies_ms`` at each call; computes nothing."""

        def once() -> float:
            self.calls += 1
            return self._latencies[(self.calls - 1) % len(self._latencies)]

        return once

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closed = True


class FakePlanBuilder:
    """Makes a "plan" that is a hash of its inputs."""

    name = "fake"

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Takes everything."""

    def build(self, onnx: Path, targets: tuple[str, ...], *, max_batch: int) -> BuiltPlan:
        """The same bytes for the same ONNX file, targets and batch."""
        text = f"{hashlib.sha256(onnx.read_bytes()).hexdigest()} {targets} {max_batch}"
        return BuiltPlan(
            data=b"fake plan " + text.encode(),
            runtime=self.name,
            runtime_version="0",
            targets=targets,
            activation_memory_bytes=1_000_000 * max_batch,
            weights_memory_bytes=onnx.stat().st_size,
            seconds=0.0,
            settings={},
        )

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """Never runnable."""
        return "a fake plan can't be executed"
