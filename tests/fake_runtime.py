"""A deterministic stand-in for runtimes and plan builders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pytest

from growtas.errors import BuildError, CheckpointError, DeviceError, choices
from growtas.export.runtimes.base import Array, PartsTimer, RuntimeInfo, Timer, TimerParts
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.tensorrt import builder, engine, library
from growtas.export.tensorrt.builder import BuiltPlan, PlanBuilder, Shapes
from growtas.latency import at_hand

_MAGIC = b"fake plan "


@dataclass(frozen=True, kw_only=True)
class FakeMachine:
    """Where fake plans are built and run.

    Attributes:
        gpu: compute capability of the GPU, such as ``sm86``; None without one, as where plans are only built.
        name: what the driver calls the GPU; None where it calls none.
        version: of the package.
        lacks: ``(target, precision)`` pairs that can't be built.
        refuses: why nothing can be built; None where it can.
        latency_ms: hidden milliseconds of a plan for one image, from the ONNX file that it was built of; one by default.
    """

    gpu: str | None = None
    name: str | None = None
    version: str = "1.0"
    lacks: tuple[tuple[str, str], ...] = ()
    refuses: str | None = None
    latency_ms: Callable[[bytes], float] = lambda onnx: 1.0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes this process believe that it runs on this machine, with fake packages of TensorRT and TensorRT-RTX."""
        monkeypatch.setattr(at_hand, "gpu_name", lambda: self.name)
        monkeypatch.setattr(library, "local_target", lambda: self.gpu)
        monkeypatch.setattr(library, "package", lambda runtime, purpose: SimpleNamespace(__version__=self.version, machine=self))
        monkeypatch.setattr(engine, "PlanSession", FakePlanSession)

    def install_builders(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As :meth:`install`, with fake builders and the packages where Python looks for them."""
        self.install(monkeypatch)
        monkeypatch.setattr(builder, "builder_of", lambda runtime: FakePlanBuilder(self, runtime))
        for module in ("tensorrt", "tensorrt_rtx"):
            fake = SimpleNamespace(__version__=self.version, __spec__=ModuleSpec(module, None))
            monkeypatch.setitem(sys.modules, module, fake)


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


class FakePlanSession(FakeSession):
    """Loads a fake plan: computes what its ONNX file does, in ONNX Runtime; each image "takes" what the machine says.

    Raises:
        CheckpointError: no fake plan.
    """

    def __init__(self, trt: Any, data: bytes, *, runtime: str, name: str = "the plan", **options: Any) -> None:
        header, _, onnx = data.removeprefix(_MAGIC).partition(b"\n")
        if not data.startswith(_MAGIC) or not onnx:
            raise CheckpointError(f"{name}: not a fake plan")
        self.header: dict[str, object] = json.loads(header)
        session = OnnxRuntimeSession(onnx, threads=1)
        super().__init__(session.run, image_shape=session.image_shape)
        device = trt.machine.name or f"fake {trt.machine.gpu}"
        self.info = RuntimeInfo(runtime=runtime, version=trt.__version__, device=device, threads=0)
        self._ms = trt.machine.latency_ms(onnx)

    def timer(self, images: Array) -> Timer:
        """The machine's milliseconds for each image; computes nothing."""
        parts = self.timer_parts(images)
        return lambda: parts().device_ms

    def timer_parts(self, images: Array) -> PartsTimer:
        """The same parts at every call; computes nothing."""
        batch = len(images)

        def once() -> TimerParts:
            self.calls += 1
            return TimerParts(host_ms=0.25, h2d_ms=0.5 * batch, device_ms=self._ms * batch, d2h_ms=0.125 * batch)

        return once


class FakePlanBuilder(PlanBuilder):
    """Makes a "plan" of the ONNX file and what was asked for; the same bytes for the same inputs."""

    def __init__(self, machine: FakeMachine | None = None, name: str = "tensorrt-rtx") -> None:
        self.machine, self.name = machine or FakeMachine(), name

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Takes everything but what the machine lacks."""
        lacking = [target for target in targets if (target, precision) in self.machine.lacks]
        if lacking:
            raise DeviceError(f"the fake compiler has no {precision} for {choices(lacking)}")

    def build(
        self,
        onnx: Path,
        targets: tuple[str, ...],
        *,
        batches: Shapes = Shapes(),  # noqa: B008
        precision: str = "fp32",
        cache_dir: Path | None = None,
    ) -> BuiltPlan:
        """A header with everything that shapes a plan, then the ONNX file."""
        if self.machine.refuses is not None:
            raise BuildError(self.machine.refuses)
        shape = [batches.min, batches.opt, batches.max]
        header = {"version": self.machine.version, "targets": targets, "precision": precision, "batches": shape}
        return BuiltPlan(
            data=_MAGIC + json.dumps(header).encode() + b"\n" + onnx.read_bytes(),
            runtime=self.name,
            runtime_version=self.machine.version,
            targets=targets,
            activation_memory_bytes=1_000_000 * batches.max,
            weights_memory_bytes=onnx.stat().st_size,
            seconds=0.0,
            precision=precision,
            batches=batches,
        )

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """Runnable where the machine has a GPU of one of the targets."""
        if self.machine.gpu is None:
            return "a fake plan can't be executed"
        if self.machine.gpu not in targets:
            return f"the GPU of this machine is {self.machine.gpu}, but the plan is for {', '.join(targets)}"
        return None
