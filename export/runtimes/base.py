"""The protocol of a session, which every runtime implements."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from growtas.errors import DeviceError
from growtas.files import scratch_folder

Array = NDArray[np.float32]
Timer = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class TimerParts:
    """The parts of one run, in milliseconds.

    Attributes:
        host_ms: CPU time until everything is enqueued: images are in pinned memory, copies and computation are launched.
        h2d_ms: copy of the images to the device, timed by the device's events.
        device_ms: computation on the device, timed by its events.
        d2h_ms: copy of the logits back to the host, timed by the device's events.
    """

    host_ms: float
    h2d_ms: float
    device_ms: float
    d2h_ms: float


PartsTimer = Callable[[], TimerParts]


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    """The runtime of a session.

    Attributes:
        runtime: ``onnxruntime``, ``openvino``, ``torch``, ``torch.compile``, ``torch.cudagraphs``, ``torch.export``,
            ``tensorrt`` or ``tensorrt-rtx``.
        version: version of the runtime's package.
        device: ``cpu``, or the GPU's name.
        threads: CPU threads that a run uses; 0 on a GPU.
    """

    runtime: str
    version: str
    device: str
    threads: int


class Session(Protocol):
    """A loaded artifact. It is a context manager, which frees the runtime's memory at the end."""

    @property
    def info(self) -> RuntimeInfo:
        """Runtime, version, device and threads."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""

    def run(self, images: Array) -> Array:
        """Returns logits ``(batch, num_classes)`` of images ``(batch, in_chans, height, width)``, both float32.

        Several threads may call it at once. If the runtime can't do that, the session runs the calls one after another.
        """

    def timer(self, images: Array) -> Timer:
        """Returns a function that runs these images once and returns the time of the computation in milliseconds.

        The images are placed on the device in advance, so that no copy is timed. The function waits until the device is done.
        """

    def __enter__(self) -> Session: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@runtime_checkable
class NamedOutputs(Protocol):
    """Further methods of a :class:`Session` whose format may have more outputs than logits."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the artifact's outputs, in the artifact's order."""

    def run_named(self, images: Array, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns the named outputs of one run, in this order and in the artifact's types; images are as for ``run``.

        Args:
            names: some of ``output_names``.
        """


@runtime_checkable
class TimedParts(Protocol):
    """A further method of a :class:`Session` on a GPU."""

    def timer_parts(self, images: Array) -> PartsTimer:
        """Returns a function that runs these images once, with transfers, and returns the milliseconds of each part."""


def is_installed(module: str) -> bool:
    """Whether a module can be imported. It is not imported."""
    return importlib.util.find_spec(module) is not None


def require_compiler(device: str = "cpu") -> None:
    """Checks that the compiler works that ``torch.compile`` needs.

    Raises:
        DeviceError: no compiler works; the message names those that were tried.
    """
    if device == "cuda":
        return  # Triton has its own compiler.
    named = os.environ.get("CXX")
    tried = [named] if named else ["g++", "clang++", "c++"]
    if not any(_compiles(command) for command in tried):
        raise DeviceError(f"torch.compile needs a C++ compiler, and none of {', '.join(tried)} works here; install one or set CXX")


def _compiles(command: str) -> bool:
    if shutil.which(command) is None:
        return False
    with scratch_folder() as folder:
        source = folder / "one.cpp"
        source.write_text("#include <cmath>\nint main() { return std::sqrt(0.0) > 1; }\n", encoding="utf-8")
        try:
            done = subprocess.run([command, str(source), "-o", str(source.with_suffix(""))], capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0
