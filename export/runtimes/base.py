"""The small protocol that every runtime and every plan builder follows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypedDict, Unpack, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from growtas.errors import ConfigError

Array = NDArray[np.float32]
Timer = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class TimerParts:
    """One run, taken apart, in milliseconds.

    Attributes:
        host_ms: the CPU's time until everything is enqueued: images into pinned memory, copies and computation launched.
        h2d_ms, device_ms, d2h_ms: images to the device, the computation, logits back; as the device's own events say.
    """

    host_ms: float
    h2d_ms: float
    device_ms: float
    d2h_ms: float


PartsTimer = Callable[[], TimerParts]


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
        """Logits ``(batch, num_classes)`` of images ``(batch, in_chans, height, width)``, both float32.

        Several threads may call it at once; a session whose runtime can't do that lets them in one by one.
        """

    def timer(self, images: Array) -> Timer:
        """A function that runs these images once and returns the milliseconds of the computation alone.

        Inputs are placed before, so that no copy to the device is timed; the function waits until the device is done.
        """

    def __enter__(self) -> Session: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@runtime_checkable
class NamedOutputs(Protocol):
    """What a :class:`Session` of a format that may hold more outputs than logits offers besides."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The artifact's outputs, in its order."""

    def run_named(self, images: Array, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """These outputs of one run, in this order, each of the type that the artifact gives; images as for ``run``.

        Args:
            names: among ``output_names``.
        """


class BuildSettings(TypedDict, total=False):
    """Keyword arguments of :meth:`PlanBuilder.build`; :class:`BuildOptions` says what they mean."""

    max_batch: int
    profile: Shapes
    precision: str
    cache_dir: Path | None
    workspace: int | None
    version_compatible: bool
    refit: bool
    strip: bool


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Batches of a plan: the smallest and the largest that it takes, and the one that it is tuned for.

    Raises:
        ConfigError: not ``1 <= min <= opt <= max``.
    """

    min: int = 1
    opt: int = 1
    max: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(
                f"a plan's batches are {self.min}, {self.opt} and {self.max} (smallest, tuned for, largest); "
                f"they must be 1 or more, each at least the one before"
            )


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a plan is compiled.

    Attributes:
        max_batch: short for a ``profile`` from 1, tuned for 1.
        profile: batches; the images' other dimensions are the ONNX file's.
        precision: what most of the file's weights are multiplied in; the build fails if they aren't.
        cache_dir: where timings of kernels are kept between builds (TensorRT only; see :mod:`growtas.export.tensorrt.cache`).
        workspace: bytes of device memory that a layer may use while it computes; the compiler's own limit if None.
        version_compatible: have later TensorRT versions load the plan too (TensorRT only).
        refit, strip: a plan whose weights can be replaced; one without them. TensorRT-RTX needs a GPU for either.

    Raises:
        ConfigError: both ``max_batch`` and ``profile``, a wrong one of them, or no bytes of workspace.
    """

    max_batch: int | None = None
    profile: Shapes | None = None
    precision: str = "fp32"
    cache_dir: Path | None = None
    workspace: int | None = None
    version_compatible: bool = False
    refit: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        if self.profile is not None and self.max_batch is not None:
            raise ConfigError("max_batch and profile both name a plan's batches; give one of them")
        if self.workspace is not None and self.workspace < 1:
            raise ConfigError(f"workspace is {self.workspace}; it must be a number of bytes from 1 up")
        _ = self.batches

    @property
    def batches(self) -> Shapes:
        """The profile, or what stands for it."""
        return self.profile or Shapes(max=Shapes.max if self.max_batch is None else self.max_batch)

    @property
    def recorded(self) -> dict[str, object]:
        """Switches that shape what is loaded and computed, as a manifest keeps them."""
        chosen = {"version_compatible": self.version_compatible, "refit": self.refit, "strip": self.strip}
        return {"tf32": False, **{name: True for name, is_on in chosen.items() if is_on}}


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
        precision: what was asked for, and found in what was compiled.
        batches: smallest, tuned for, largest.
        inspection: what was found, as JSON data; see :mod:`growtas.export.tensorrt.plan_precision`. None where nothing looked.
        timing_cache: file name of the cache that the build read and wrote; None without one.
        graph: the ONNX graph that was compiled, where it isn't the file as it is but one that computes the same, serialised.
    """

    data: bytes = field(repr=False)
    runtime: str
    runtime_version: str
    targets: tuple[str, ...]
    activation_memory_bytes: int | None
    weights_memory_bytes: int | None
    seconds: float
    settings: dict[str, object]
    precision: str = "fp32"
    batches: Shapes = Shapes()
    inspection: dict[str, object] | None = None
    timing_cache: str | None = None
    graph: bytes | None = field(default=None, repr=False)


class PlanBuilder(Protocol):
    """Compiles an ONNX file to a plan."""

    name: str

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Refuse what can't be built, before any work.

        Raises:
            DeviceError: a target that the builder doesn't know, or a precision that the target doesn't have.
            MissingExtra: the package is not installed.
        """

    def build(self, onnx: Path, targets: tuple[str, ...], **settings: Unpack[BuildSettings]) -> BuiltPlan:
        """Compile for all targets; ``settings`` are those of :class:`BuildOptions`, by default fp32 for batches 1 to 8.

        Raises:
            BuildError: the compiler refused the graph, the message holds its reason; or the graph isn't in the precision asked for.
            ConfigError, DeviceError: settings that don't go together, or that the builder doesn't have.
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
