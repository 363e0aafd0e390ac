"""TensorRT-RTX: builds plans ahead of time for GPUs that are not at hand. Running one needs a GPU and its driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from growtas.errors import ConfigError, DeviceError, MissingExtra, choices
from growtas.export.runtimes.base import BuildOptions, BuildSettings, BuiltPlan, is_installed
from growtas.export.tensorrt import library as nvinfer
from growtas.export.tensorrt.build import build_plan
from growtas.export.tensorrt.targets import check_precision

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

    def build(self, onnx: Path, targets: tuple[str, ...], **settings: Unpack[BuildSettings]) -> BuiltPlan:
        """Compile; see :class:`growtas.export.runtimes.base.PlanBuilder`.

        ``cache_dir`` is not used: a timing cache changes nothing in a plan of TensorRT-RTX, and makes the compiler look for a GPU
        (release notes of TensorRT-RTX 1.1).
        """
        options = BuildOptions(**settings)
        if options.version_compatible:
            raise ConfigError("TensorRT-RTX has no version-compatible plans: each release loads only its own; build with TensorRT")
        # Tried with 1.7.1: the compiler asks the CUDA driver and fails inside.
        if (options.refit or options.strip) and nvinfer.local_target() is None:
            raise DeviceError("TensorRT-RTX builds refittable or stripped plans only on a machine with an NVIDIA GPU")
        trt = _module("building a plan ahead of time")

        def configure(trt: Any, config: Any) -> None:
            # The number comes first: setting an index beyond it is refused.
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)

        return build_plan(trt, onnx, targets, options, runtime=NAME, configure=configure)

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
            f"TensorRT-RTX compiles no fp32 matrix products for sm75 (T4, Turing); legal targets for fp32 are {legal}, "
            f"and fp16 or int8 compile for sm75"
        )
    check_precision(targets, precision, legal=TARGETS)
