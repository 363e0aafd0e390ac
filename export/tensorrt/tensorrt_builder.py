"""TensorRT proper, 10 and 11: builds for the GPU at hand, and runs there. Needs the package and a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from growtas.errors import DeviceError, MissingExtra
from growtas.export.runtimes.base import BuildOptions, BuildSettings, BuiltPlan, is_installed
from growtas.export.tensorrt import library as nvinfer
from growtas.export.tensorrt.build import build_plan
from growtas.export.tensorrt.cache import CacheKey, TimingCache, driver_version
from growtas.export.tensorrt.targets import check_precision

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
        """Only this machine's GPU can be a target, in a precision that it has.

        Raises:
            DeviceError: no GPU, another target, or a precision that it doesn't have.
            MissingExtra: tensorrt is not installed.
        """
        _module("building a TensorRT plan")
        here = nvinfer.local_target()
        if targets != (here,):
            where = f"is {here}" if here else "is missing"
            raise DeviceError(
                f"TensorRT builds only for the GPU of the machine it runs on, which {where}; asked was {', '.join(targets)}"
            )
        check_precision(targets, precision)

    def build(self, onnx: Path, targets: tuple[str, ...], **settings: Unpack[BuildSettings]) -> BuiltPlan:
        """Compile; see :class:`growtas.export.runtimes.base.PlanBuilder`."""
        options = BuildOptions(**settings)
        trt = _module("building a TensorRT plan")
        cache = None
        if options.cache_dir is not None:
            version, target = str(trt.__version__), targets[0]
            key = CacheKey(kind="timing", package=NAME, version=version, target=target, driver=driver_version())
            cache = TimingCache(options.cache_dir, key)

        def configure(trt: Any, config: Any) -> None:
            # Types and formats of layers, for whoever inspects the engine; it costs some kilobytes.
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED

        return build_plan(trt, onnx, targets, options, runtime=NAME, configure=configure, timing_cache=cache)

    def why_not_runnable(self, targets: tuple[str, ...]) -> str | None:
        """None on the GPU that it was built for."""
        return nvinfer.why_not_here(targets)
