"""ONNX files in TensorRT and TensorRT-RTX: compiled here, a plan for each batch size that is measured."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from growtas.errors import DeviceError
from growtas.export.contents import read_graph
from growtas.export.runtimes.base import Array, PartsTimer, RuntimeInfo, Session, Timer


def precision_of(onnx: Path, manifest: Mapping[str, Any] | None) -> str:
    """What most weights of an ONNX file are multiplied in: its manifest's word, or else the graph's.

    Raises:
        CheckpointError: there is no manifest, and the file can't be read.
    """
    return str((manifest or {}).get("precision") or read_graph(onnx).get("precision") or "fp32")


def compile_plans(onnx: Path, runtime: str, batches: Sequence[int], manifest: Mapping[str, Any] | None) -> Session:
    """Compile an ONNX file for this machine's GPU, and load it.

    Args:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        batches: those that will be run.
        manifest: the file's, where it has one.

    Raises:
        BuildError, CheckpointError: it can't be built or loaded.
        DeviceError: no GPU, or one that the runtime or the file's precision isn't for.
        MissingExtra: the runtime is not installed.
    """
    # Here, since they import torch, whose memory a process that measures ONNX Runtime's must not have.
    from growtas.export.benchmark.stopwatch import plan_session
    from growtas.export.tensorrt import library as nvinfer

    if nvinfer.local_target() is None:
        raise DeviceError("no NVIDIA GPU with a driver on this machine")
    model, precision = onnx.read_bytes(), precision_of(onnx, manifest)
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        plans = {
            batch: stack.enter_context(plan_session(model, runtime, batch, Path(folder), precision=precision)) for batch in batches
        }
        return CompiledSession(plans, stack.pop_all())


class CompiledSession:
    """One plan a batch size, each tuned for it, behind one :class:`growtas.export.runtimes.base.Session`.

    Args:
        plans: by batch; at least one.
        stack: closes them.
    """

    def __init__(self, plans: Mapping[int, Session], stack: contextlib.ExitStack) -> None:
        self._plans, self._stack = dict(plans), stack
        first = next(iter(self._plans.values()))
        self.info: RuntimeInfo = first.info
        self.image_shape: tuple[int, int, int] = first.image_shape

    def _plan(self, images: Array) -> Session:
        """The plan for as many images, or else the smallest that takes them; the largest says itself that it doesn't."""
        fitting = sorted(batch for batch in self._plans if batch >= len(images))
        return self._plans[fitting[0] if fitting else max(self._plans)]

    def run(self, images: Array) -> Array:
        """Logits of images; see :class:`growtas.export.runtimes.base.Session`."""
        return self._plan(images).run(images)

    def timer(self, images: Array) -> Timer:
        """A timed run in the plan of that batch size; see :class:`growtas.export.runtimes.base.Session`."""
        return self._plan(images).timer(images)

    def timer_parts(self, images: Array) -> PartsTimer:
        """What each part of a run takes in the plan of that batch size; see :class:`growtas.export.runtimes.base.TimerParts`."""
        plan: Any = self._plan(images)
        parts: PartsTimer = plan.timer_parts(images)
        return parts

    def __enter__(self) -> CompiledSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)
        self._plans.clear()
