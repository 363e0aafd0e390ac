"""Checks before a plan is loaded: loading one runs native code on what the file holds, and a plan only fits what it was built for.

What the manifest says is compared with the file, this machine's GPU and the installed package, in this order; the bytes that were
hashed are the bytes that are loaded. A mismatch is one sentence that names both sides and the line that builds the plan anew.

A plan is only for the release that built it (NVIDIA's TensorRT-RTX documentation, "Engine Compatibility"; TensorRT's, "Version
Compatibility"). TensorRT's version-compatible plans would load in later versions too, but they bring native code for the CPU along,
which no manifest can vouch for: growtas builds none and gives none permission to run it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, DeviceError, choices
from growtas.export.artifact import manifest_path, read_manifest
from growtas.export.runtimes.base import Session
from growtas.export.tensorrt import library
from growtas.export.tensorrt.cache import CacheFile, CacheKey, driver_version
from growtas.export.tensorrt.rebuild_hint import RebuildHint

RUNTIMES = ("tensorrt", "tensorrt-rtx")
DEFAULT_RUNTIME = "tensorrt-rtx"


@dataclass(frozen=True, kw_only=True)
class CheckedPlan:
    """A plan that may be loaded.

    Attributes:
        data: the file's content.
        sha256: its hash.
        runtime: what loads it, of :data:`RUNTIMES`.
        target: compute capability of this machine's GPU.
        manifest: what was compared; None for a trusted plan without one.
    """

    data: bytes
    sha256: str
    runtime: str
    target: str
    manifest: dict[str, Any] | None


def check_plan(path: str | Path, *, runtime: str | None = None, trusted: bool = False) -> CheckedPlan:
    """Read a plan and check that it may be loaded here; nothing of it is interpreted.

    Args:
        path: the ``.plan`` file.
        runtime: ``tensorrt`` or ``tensorrt-rtx`` where the caller knows it; the manifest's if not given.
        trusted: take a plan that has no manifest. One that has is checked all the same.

    Raises:
        CheckpointError: absent, unreadable, without a manifest, or not the file that the manifest describes.
        DeviceError: built for another GPU, another package or another version, or no GPU at hand.
        MissingExtra: the package is not installed.
    """
    path = Path(path)
    stored = read_manifest(path, verify=False)
    manifest = None if stored is None else stored.to_dict()
    if manifest is None and not trusted:
        raise CheckpointError(
            f"{path}: a plan is only loaded if its manifest says what it is, and {manifest_path(path).name} is missing; "
            f"export it again (growtas export RUN --format trt)"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: the plan can't be read ({error.strerror})") from None
    sha256 = hashlib.sha256(data).hexdigest()
    plan = _plan_section(path, manifest, sha256) if manifest is not None else {}
    chosen = str(plan.get("runtime") or runtime or DEFAULT_RUNTIME)
    if chosen not in RUNTIMES:
        raise DeviceError(f"{path}: the plan's runtime is {chosen!r}; legal are {choices(RUNTIMES)}")
    rebuild = RebuildHint(path, manifest or {})
    if runtime not in (None, chosen):
        raise DeviceError(f"{path}: the plan was built with {chosen} and can't be loaded by {runtime}; {rebuild.line(None)}")
    here = library.local_target()
    if here is None:
        raise DeviceError(f"{path}: the plan can't run here: no NVIDIA GPU with a driver on this machine")
    targets = tuple(map(str, plan.get("targets") or ()))
    if manifest is not None and here not in targets:
        built_for = choices(targets) or "no GPU"
        raise DeviceError(f"{path}: the plan was built for {built_for}, the GPU of this machine is {here}; {rebuild.line(here)}")
    if manifest is not None:
        built, installed = str(plan.get("runtime_version")), str(library.package(chosen, "running a plan").__version__)
        if built != installed:
            raise DeviceError(f"{path}: the plan was built with {chosen} {built}, installed is {installed}; {rebuild.line(here)}")
    return CheckedPlan(data=data, sha256=sha256, runtime=chosen, target=here, manifest=manifest)


def _plan_section(path: Path, manifest: Mapping[str, Any], sha256: str) -> Mapping[str, Any]:
    """The manifest's part on the plan, if the manifest is this file's.

    Raises:
        CheckpointError: it isn't.
    """
    plan, recorded = manifest.get("plan"), manifest["artifact"].get("sha256")
    if not isinstance(plan, dict):
        raise CheckpointError(f"{manifest_path(path)}: the manifest says nothing of a plan")
    if recorded != sha256:
        raise CheckpointError(
            f"{path}: the file is not the one that its manifest describes (SHA-256 {sha256[:12]}..., not {str(recorded)[:12]}...); "
            f"{RebuildHint(path, manifest).line(None)}"
        )
    return plan


def load_plan(path: str | Path, *, runtime: str | None = None, trusted: bool = False) -> Session:
    """Checks a plan, then loads it on this machine's GPU.

    TensorRT-RTX keeps the kernels that it compiles beside the plan; nowhere for a plan without a manifest, which is somebody's
    temporary file. A folder that can't be written is no error.

    Args:
        path: the ``.plan`` file.
        runtime, trusted: see :func:`check_plan`.

    Raises:
        CheckpointError, DeviceError, MissingExtra: see :func:`check_plan`; or the runtime can't load it.
    """
    from growtas.export.tensorrt import engine

    path = Path(path)
    checked = check_plan(path, runtime=runtime, trusted=trusted)
    trt = library.package(checked.runtime, "running a plan")
    cache = None
    if checked.runtime == "tensorrt-rtx" and checked.manifest is not None:
        key = CacheKey(
            kind="runtime",
            package=checked.runtime,
            version=str(trt.__version__),
            target=checked.target,
            driver=driver_version(),
            plan=checked.sha256,
        )
        cache = CacheFile(path.parent, key)
    return engine.PlanSession(trt, checked.data, runtime=checked.runtime, name=str(path), runtime_cache=cache)
