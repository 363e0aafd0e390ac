"""Opens what is benched: artifacts, timm models in PyTorch, and ONNX files as plans that are compiled here."""

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
        batches: those that are run. Where an ONNX file is to run in TensorRT, a plan is compiled for each, in the file's precision.
        device: ``cpu`` or ``cuda``, for PyTorch and ONNX Runtime; plans run on a GPU in any case, OpenVINO on the CPU.

    Raises:
        BuildError, CheckpointError: it can't be built or loaded.
        DeviceError: it can't run on this machine: no GPU for a plan, no C++ compiler for torch.compile.
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
    """Compiles an ONNX file for this machine's GPU, a plan for each batch, and loads the plans.

    Their precision is what most of the file's weights are multiplied in: its manifest's word, or else the graph's.
    """
    # Here, since they import torch and onnx, whose memory a process that measures ONNX Runtime's must not have.
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
    """One plan a batch size, each tuned for it, behind one :class:`growtas.export.runtimes.base.Session`; ``stack`` closes them."""

    def __init__(self, plans: Mapping[int, Session], stack: contextlib.ExitStack) -> None:
        self._plans, self._stack = dict(plans), stack
        first = next(iter(plans.values()))
        self.info, self.image_shape = first.info, first.image_shape

    def _plan(self, images: Array) -> Session:
        """The plan for as many images, or else the smallest that takes them; the largest says itself that it doesn't."""
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
