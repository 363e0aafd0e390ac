"""The small protocol that every runtime and every plan builder follows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Timer = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    """What runs an artifact.

    Attributes:
        runtime: ``onnxruntime``, ``openvino``, ``torch``, ``tensorrt``, ``tensorrt-rtx`` or ``fake``.
        version: of that package.
        device: ``cpu``, or the GPU's name.
        threads: CPU threads of the computation; 0 on a GPU.
    """

    runtime: str
    version: str
    device: str
    threads: int


class Session(Protocol):
    """A loaded artifact. A context manager: leaving it frees what the runtime holds."""

    @property
    def info(self) -> RuntimeInfo:
        """Runtime, version, device and threads."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""

    def run(self, images: Array) -> Array:
        """Logits ``(batch, num_classes)`` of images ``(batch, in_chans, height, width)``, both float32."""

    def timer(self, images: Array) -> Timer:
        """A function that runs these images once and returns the milliseconds of the computation alone.

        Inputs are placed before, so that no copy to the device is timed; the function waits until the device is done.
        """

    def __enter__(self) -> Session: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A compiled plan, not yet on disk.

    Attributes:
        data: the serialised plan, exactly as the runtime reads it (never with anything put before it).
        runtime, runtime_version: what can load it.
        targets: compute capabilities, such as ``("sm86",)``.
        activation_memory_bytes, weights_memory_bytes: device memory that an execution needs at the maximum batch, as the
            builder reports it; None where it didn't.
        seconds: duration of the build.
        settings: switches that shape the numerics, such as ``{"tf32": False}``.
    """

    data: bytes = field(repr=False)
    runtime: str
    runtime_version: str
    targets: tuple[str, ...]
    activation_memory_bytes: int | None
    weights_memory_bytes: int | None
    seconds: float
    settings: dict[str, object]


class PlanBuilder(Protocol):
    """Compiles an ONNX file to a plan."""

    name: str

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Refuse what can't be built, before any work.

        Raises:
            DeviceError: a target that the builder doesn't know, or a precision that the target doesn't have.
            MissingExtra: the package is not installed.
        """

    def build(self, onnx: Path, targets: tuple[str, ...], *, max_batch: int) -> BuiltPlan:
        """Compile for batches 1 to ``max_batch``, optimised for batch 1.

        Raises:
            BuildError: the compiler refused the graph; the message holds its reason.
        """

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """Why a plan for these targets can't be executed on this machine; None if it can."""


def available_threads() -> int:
    """CPU threads that this process may use (affinity respected)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it isn't imported."""
    import importlib.util

    return importlib.util.find_spec(module) is not None
