"""The protocol that the session of every runtime follows."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from growtas.errors import DeviceError

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
        runtime: ``onnxruntime``, ``openvino``, ``torch``, ``torch.compile``, ``torch.cudagraphs``, ``torch.export``,
            ``tensorrt`` or ``tensorrt-rtx``.
        version: of that package.
        device: ``cpu``, or the GPU's name.
        threads: CPU threads that a run takes; 0 on a GPU.
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


@runtime_checkable
class TimedParts(Protocol):
    """What a :class:`Session` on a GPU offers besides."""

    def timer_parts(self, images: Array) -> PartsTimer:
        """A function that runs these images once, transfers included, and returns the milliseconds of each part."""


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it isn't imported."""
    return importlib.util.find_spec(module) is not None


def require_compiler(device: str = "cpu") -> None:
    """Refuses ``torch.compile`` where the compiler that it needs does not work.

    Raises:
        DeviceError: with the compilers that were tried.
    """
    if device == "cuda":
        return  # Triton brings its own.
    named = os.environ.get("CXX")
    tried = [named] if named else ["g++", "clang++", "c++"]
    if not any(_compiles(command) for command in tried):
        raise DeviceError(f"torch.compile needs a C++ compiler, and none of {', '.join(tried)} works here; install one or set CXX")


def _compiles(command: str) -> bool:
    if shutil.which(command) is None:
        return False
    with tempfile.TemporaryDirectory(prefix="growtas-") as folder:
        source = Path(folder) / "one.cpp"
        source.write_text("#include <cmath>\nint main() { return std::sqrt(0.0) > 1; }\n", encoding="utf-8")
        try:
            done = subprocess.run([command, str(source), "-o", str(source.with_suffix(""))], capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0
