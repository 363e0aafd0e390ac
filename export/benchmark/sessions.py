"""Opens the subjects of a benchmark: artifacts, timm models in PyTorch, and ONNX files, which are compiled here for TensorRT."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import cast

from growtas.errors import DeviceError
from growtas.export.artifact import Artifact, Manifest
from growtas.export.benchmark import baselines
from growtas.export.benchmark.subjects import Subject
from growtas.export.formats import ONNX, PLAN
from growtas.export.graph.contents import read_graph
from growtas.export.open import open_artifact
from growtas.export.runtimes.base import Array, PartsTimer, Session, TimedParts, Timer


def open_subject(subject: Subject, *, threads: int, batches: Sequence[int], device: str = "cpu") -> Session:
    """Loads a subject in its runtime.

    Args:
        threads: CPU threads.
        batches: batch sizes that will be run. For an ONNX file in TensorRT, one plan is compiled per size, in the file's precision.
        device: ``cpu`` or ``cuda``, for PyTorch and ONNX Runtime. Plans always run on a GPU, and OpenVINO always on the CPU.

    Raises:
        BuildError, CheckpointError: the subject can't be built or loaded.
        DeviceError: the subject can't run on this machine: a plan finds no GPU, or torch.compile no C++ compiler.
        MissingExtra: the runtime is not installed.
    """
    runtime, path = subject.runtime, subject.path
    if path is None:
        from growtas.export.runtimes.torch import TorchSession

        model = baselines.create(str(subject.timm))
        shape = baselines.image_shape(model)
        return TorchSession(model, shape, threads=threads, device=device, compiled=runtime == "compile")
    if path.suffix == ONNX.suffix and runtime in PLAN.runtimes:
        return _compile_plans(path, runtime, batches, subject.manifest)
    artifact = Artifact(path=path, manifest=subject.manifest or Manifest())
    return open_artifact(artifact, threads=threads, runtime=runtime, device=device)


def _compile_plans(onnx: Path, runtime: str, batches: Sequence[int], manifest: Manifest | None) -> Session:
    """Compiles an ONNX file for this machine's GPU, one plan per batch size, and loads the plans.

    The plans' precision is that of the manifest, or else that of the graph's weights.
    """
    # Imported here, because they import torch and onnx, which must not add to the memory measured for ONNX Runtime.
    from growtas.export.benchmark.stopwatch import plan_session
    from growtas.export.graph.edit import load_proto
    from growtas.export.tensorrt import library

    if library.local_target() is None:
        raise DeviceError("no NVIDIA GPU with a driver on this machine")
    precision = str((manifest and manifest.precision) or read_graph(onnx).get("precision") or "fp32")
    model = load_proto(onnx).SerializeToString()
    with contextlib.ExitStack() as stack:
        plans = {batch: stack.enter_context(plan_session(model, runtime, batch, precision=precision)) for batch in batches}
        return _CompiledSession(plans, stack.pop_all())


class _CompiledSession:
    """One session for several plans, each of which is tuned for one batch size; ``stack`` closes the plans."""

    def __init__(self, plans: Mapping[int, Session], stack: contextlib.ExitStack) -> None:
        self._plans, self._stack = dict(plans), stack
        first = next(iter(plans.values()))
        self.info, self.image_shape = first.info, first.image_shape

    def _plan(self, images: Array) -> Session:
        """The plan of the smallest sufficient batch size. If none is sufficient, the largest plan raises the error."""
        return self._plans[min((batch for batch in self._plans if batch >= len(images)), default=max(self._plans))]

    def run(self, images: Array) -> Array:
        return self._plan(images).run(images)

    def timer(self, images: Array) -> Timer:
        return self._plan(images).timer(images)

    def timer_parts(self, images: Array) -> PartsTimer:
        return cast("TimedParts", self._plan(images)).timer_parts(images)

    def __enter__(self) -> _CompiledSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)
        self._plans.clear()
