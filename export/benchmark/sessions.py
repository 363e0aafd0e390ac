"""Opens what is benched: artifacts, timm models in PyTorch, and ONNX files as plans that are compiled here."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from growtas.errors import DeviceError
from growtas.export.artifact import Manifest
from growtas.export.benchmark import baselines
from growtas.export.benchmark.subjects import Subject
from growtas.export.contents import read_graph
from growtas.export.open import open_session
from growtas.export.runtimes.base import Array, PartsTimer, RuntimeInfo, Session, Timer


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
    if path.suffix == ".onnx" and runtime in ("tensorrt", "tensorrt-rtx"):
        return compile_plans(path, runtime, batches, subject.manifest)
    return open_session(path, threads=threads, runtime=runtime, device=device)


def precision_of(onnx: Path, manifest: Manifest | None) -> str:
    """What most weights of an ONNX file are multiplied in: its manifest's word, or else the graph's.

    Raises:
        CheckpointError: there is no manifest, and the file can't be read.
    """
    return str((manifest and manifest.precision) or read_graph(onnx).get("precision") or "fp32")


def compile_plans(onnx: Path, runtime: str, batches: Sequence[int], manifest: Manifest | None) -> Session:
    """Compiles an ONNX file for this machine's GPU, a plan for each batch, and loads the plans.

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
    from growtas.export.tensorrt import library

    if library.local_target() is None:
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
        """What each part of a run takes in the plan of that batch size; see :class:`growtas.export.runtimes.base.TimedParts`."""
        plan: Any = self._plan(images)
        parts: PartsTimer = plan.timer_parts(images)
        return parts

    def __enter__(self) -> CompiledSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)
        self._plans.clear()
