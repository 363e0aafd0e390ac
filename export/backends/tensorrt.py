"""TensorRT proper: builds for the GPU at hand, and runs there. Needs the package and a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growtas.errors import DeviceError, MissingExtra
from growtas.export.backends import nvinfer
from growtas.export.backends.base import BuiltPlan, is_installed

NAME = "tensorrt"


def _module(purpose: str) -> Any:
    if not is_installed("tensorrt"):
        raise MissingExtra("tensorrt", "gpu", purpose)
    import tensorrt

    return tensorrt


def is_at_hand() -> bool:
    """Whether the package is installed and there is a GPU to build for."""
    return is_installed("tensorrt") and nvinfer.local_target() is not None


class TensorRTBuilder:
    """Compiles for the GPU of this machine."""

    name = NAME

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Only this machine's GPU can be a target.

        Raises:
            DeviceError: no GPU, or another target.
            MissingExtra: tensorrt is not installed.
        """
        del precision
        _module("building a TensorRT plan")
        here = nvinfer.local_target()
        if targets != (here,):
            where = f"is {here}" if here else "is missing"
            raise DeviceError(
                f"TensorRT builds only for the GPU of the machine it runs on, which {where}; asked was {', '.join(targets)}"
            )

    def build(self, onnx: Path, targets: tuple[str, ...], *, max_batch: int) -> BuiltPlan:
        """Compile; see :class:`growtas.export.backends.base.PlanBuilder`."""
        trt = _module("building a TensorRT plan")
        return nvinfer.build_plan(trt, onnx, targets, runtime=NAME, max_batch=max_batch, configure=lambda trt, config: None)

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """None on the GPU that it was built for."""
        return nvinfer.why_not_here(targets)


def open_plan(path: str | Path) -> nvinfer.PlanSession:
    """A TensorRT plan, ready to run on this machine's GPU.

    Raises:
        CheckpointError, DeviceError, MissingExtra: as :func:`growtas.export.backends.open_session`.
    """
    return nvinfer.PlanSession(_module("running a TensorRT plan"), Path(path), NAME)
