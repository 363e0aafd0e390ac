"""A deterministic stand-in for runtimes and builders: for tests, and for trying the flow without either."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Unpack

import numpy as np

from growtas.errors import CheckpointError, DeviceError, choices
from growtas.export.runtimes.base import (
    Array,
    BuildOptions,
    BuildSettings,
    BuiltPlan,
    PartsTimer,
    RuntimeInfo,
    Timer,
    TimerParts,
)

NAME = "fake"
_MAGIC = b"fake plan "


@dataclass(frozen=True, kw_only=True)
class FakeMachine:
    """What fake plans are built and run on.

    Attributes:
        gpu: compute capability of the GPU, such as ``sm86``; None without one, as where plans are only built.
        version: of the fake runtime.
        lacks: ``(target, precision)`` pairs that can't be built.
    """

    gpu: str | None = None
    version: str = "1.0"
    lacks: tuple[tuple[str, str], ...] = ()


# Where fake plans are built and run unless a machine is given; tests replace it.
MACHINE = FakeMachine()


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
        self.info = RuntimeInfo(runtime=NAME, version="0", device="cpu", threads=1)

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


class FakePlanSession(FakeSession):
    """A fake plan: computes what its ONNX file does, in ONNX Runtime; each image "takes" a millisecond.

    Raises:
        CheckpointError: no fake plan.
    """

    def __init__(self, data: bytes, *, name: str = "the plan", machine: FakeMachine | None = None) -> None:
        from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession

        header, _, onnx = data.removeprefix(_MAGIC).partition(b"\n")
        if not data.startswith(_MAGIC) or not onnx:
            raise CheckpointError(f"{name}: not a fake plan")
        self.header: dict[str, object] = json.loads(header)
        session = OnnxRuntimeSession(onnx, threads=1)
        super().__init__(session.run, image_shape=session.image_shape)
        machine = machine or MACHINE
        self.info = RuntimeInfo(runtime=NAME, version=machine.version, device=f"fake {machine.gpu}", threads=0)

    def timer(self, images: Array) -> Timer:
        """A millisecond an image; computes nothing."""
        parts = self.timer_parts(images)
        return lambda: parts().device_ms

    def timer_parts(self, images: Array) -> PartsTimer:
        """The same parts at every call; computes nothing."""
        batch = len(images)

        def once() -> TimerParts:
            self.calls += 1
            return TimerParts(host_ms=0.25, h2d_ms=0.5 * batch, device_ms=1.0 * batch, d2h_ms=0.125 * batch)

        return once


class FakePlanBuilder:
    """Makes a "plan" of the ONNX file and what was asked for; the same bytes for the same inputs.

    Args:
        machine: :data:`MACHINE` if not given.
    """

    name = NAME

    def __init__(self, machine: FakeMachine | None = None) -> None:
        self._machine = machine

    @property
    def machine(self) -> FakeMachine:
        """What it builds on."""
        return self._machine or MACHINE

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Takes everything but what the machine lacks.

        Raises:
            DeviceError: that.
        """
        lacking = [target for target in targets if (target, precision) in self.machine.lacks]
        if lacking:
            raise DeviceError(f"the fake compiler has no {precision} for {choices(lacking)}")

    def build(self, onnx: Path, targets: tuple[str, ...], **settings: Unpack[BuildSettings]) -> BuiltPlan:
        """A header with everything that shapes a plan, then the ONNX file."""
        options = BuildOptions(**settings)
        batches, version = options.batches, self.machine.version
        shape = [batches.min, batches.opt, batches.max]
        header = {"version": version, "targets": targets, "precision": options.precision, "batches": shape, **options.recorded}
        return BuiltPlan(
            data=_MAGIC + json.dumps(header).encode() + b"\n" + onnx.read_bytes(),
            runtime=self.name,
            runtime_version=version,
            targets=targets,
            activation_memory_bytes=1_000_000 * batches.max,
            weights_memory_bytes=onnx.stat().st_size,
            seconds=0.0,
            settings=options.recorded,
            precision=options.precision,
            batches=batches,
        )

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """Runnable where the machine has a GPU of one of the targets."""
        if self.machine.gpu is None:
            return "a fake plan can't be executed"
        if self.machine.gpu not in targets:
            return f"the GPU of this machine is {self.machine.gpu}, the plan is for {', '.join(targets)}"
        return None
