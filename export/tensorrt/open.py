"""Opening a plan, whatever runtime it is for: checked first (:mod:`growtas.export.tensorrt.load`), loaded then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growtas.export.runtimes.base import Session
from growtas.export.tensorrt.cache import CacheFile, CacheKey, driver_version
from growtas.export.tensorrt.load import check_plan


def module(runtime: str) -> Any:
    """The Python module of ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        MissingExtra: it isn't installed.
    """
    from growtas.export.tensorrt import rtx_builder as tensorrt_rtx
    from growtas.export.tensorrt import tensorrt_builder as tensorrt

    return (tensorrt if runtime == tensorrt.NAME else tensorrt_rtx)._module("running a plan")


def open_plan(
    path: str | Path,
    *,
    runtime: str | None = None,
    trusted: bool = False,
    cuda_graph: bool = True,
    cache_dir: str | Path | None = None,
) -> Session:
    """A plan, ready to run on this machine's GPU.

    Args:
        path: the ``.plan`` file.
        runtime, trusted: see :func:`growtas.export.tensorrt.load.check_plan`.
        cuda_graph: launch each batch as one recorded graph.
        cache_dir: where TensorRT-RTX keeps compiled kernels; if not given, beside the plan, and nowhere for a plan without a
            manifest, which is somebody's temporary file. A folder that can't be written is no error.

    Raises:
        CheckpointError, DeviceError, MissingExtra: see :func:`growtas.export.tensorrt.load.check_plan`; or the runtime can't
        load it.
    """
    path = Path(path)
    checked = check_plan(path, runtime=runtime, trusted=trusted)
    if checked.runtime == "fake":
        from growtas.export.runtimes.fake import FakePlanSession

        return FakePlanSession(checked.data, name=str(path))
    from growtas.export.tensorrt.engine import PlanSession

    trt = module(checked.runtime)
    cache = None
    folder = cache_dir or (path.parent if checked.manifest is not None else None)
    if checked.runtime == "tensorrt-rtx" and folder is not None:
        key = CacheKey(
            kind="runtime",
            package=checked.runtime,
            version=str(trt.__version__),
            target=checked.target,
            driver=driver_version(),
            plan=checked.sha256,
        )
        cache = CacheFile(folder, key)
    return PlanSession(
        trt,
        checked.data,
        runtime=checked.runtime,
        name=str(path),
        cuda_graph=cuda_graph,
        host_code=checked.version_compatible,
        runtime_cache=cache,
    )
