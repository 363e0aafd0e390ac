"""TensorRT-RTX: builds plans ahead of time for GPUs that are not at hand. Running one needs a GPU and its driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growtas.errors import DeviceError, MissingExtra, choices
from growtas.export.backends import nvinfer
from growtas.export.backends.base import BuiltPlan, is_installed

NAME = "tensorrt-rtx"
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
# Why a target that people ask for is missing, where there is more to say than that it is.
_ELSEWHERE = {"sm87": "Jetson Orin", "sm90": "H100", "sm100": "B200"}


def _module(purpose: str) -> Any:
    if not is_installed("tensorrt_rtx"):
        raise MissingExtra("tensorrt-rtx-cu13", "trt-rtx", purpose)
    import tensorrt_rtx

    return tensorrt_rtx


class TensorRTRTXBuilder:
    """Compiles for one or several compute capabilities in one plan; needs no GPU."""

    name = NAME

    def check(self, targets: tuple[str, ...], precision: str) -> None:
        """Targets that TensorRT-RTX has, in a precision that each has.

        Raises:
            DeviceError: otherwise, with the reason and the legal targets.
            MissingExtra: tensorrt-rtx is not installed.
        """
        check_targets(targets, precision)
        _module("building a plan ahead of time")

    def build(self, onnx: Path, targets: tuple[str, ...], *, max_batch: int) -> BuiltPlan:
        """Compile; see :class:`growtas.export.backends.base.PlanBuilder`."""
        trt = _module("building a plan ahead of time")

        def configure(trt: Any, config: Any) -> None:
            # The number comes first: setting an index beyond it is refused.
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)

        return nvinfer.build_plan(trt, onnx, targets, runtime=NAME, max_batch=max_batch, configure=configure)

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """None on a machine with a GPU of one of the targets."""
        return nvinfer.why_not_here(targets)


def check_targets(targets: tuple[str, ...], precision: str) -> None:
    """Refuse targets that TensorRT-RTX can't compile for.

    Raises:
        DeviceError: with the reason and the legal targets.
    """
    for target in targets:
        if target not in TARGETS:
            name = f"{target} ({_ELSEWHERE[target]})" if target in _ELSEWHERE else target
            raise DeviceError(
                f"TensorRT-RTX builds no plans for {name}; legal targets are {choices(TARGETS)}, "
                f"and TensorRT itself builds for other GPUs on the machine that has one"
            )
    # Tried with 1.7.1: "FP32 GEMM is not supported" while compiling for Turing.
    if precision == "fp32" and "sm75" in targets:
        legal = choices(target for target in TARGETS if target != "sm75")
        raise DeviceError(
            f"TensorRT-RTX compiles no fp32 matrix products for sm75 (T4, Turing); legal targets for fp32 are {legal}"
        )


def open_plan(path: str | Path) -> nvinfer.PlanSession:
    """A TensorRT-RTX plan, ready to run on this machine's GPU.

    Raises:
        CheckpointError, DeviceError, MissingExtra: as :func:`growtas.export.backends.open_session`.
    """
    return nvinfer.PlanSession(_module("running a TensorRT-RTX plan"), Path(path), NAME)
