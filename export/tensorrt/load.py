"""Checks a plan, then loads it: loading runs native code on what the file holds, and a plan only fits what it was built for.

A plan is only for the release that built it (NVIDIA's TensorRT-RTX documentation, "Engine Compatibility"; TensorRT's, "Version
Compatibility"). TensorRT's version-compatible plans would load in later versions too, but they bring native code for the CPU along,
which no manifest can vouch for: growtas builds none and gives none permission to run it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from growtas.errors import CheckpointError, DeviceError, MissingExtra, choices
from growtas.export.artifact import Manifest, PlanRecord, manifest_path, read_manifest
from growtas.export.formats import PLAN
from growtas.export.runtimes.base import Session
from growtas.export.tensorrt import engine, library
from growtas.export.tensorrt.cache import CacheFile, CacheKey, driver_version
from growtas.export.tensorrt.rebuild_hint import rebuild_hint


def load_plan(path: str | Path, *, runtime: str | None = None, trusted: bool = False) -> Session:
    """Compares a plan's manifest with the file, this machine's GPU and the installed package, in this order, and loads the plan.

    The bytes that were hashed are the bytes that are loaded. TensorRT-RTX keeps the kernels that it compiles beside the plan;
    nowhere for a plan without a manifest, which is somebody's temporary file. A folder that can't be written is no error.

    Args:
        path: the ``.plan`` file.
        runtime: ``tensorrt`` or ``tensorrt-rtx`` where the caller knows it; the manifest's if not given.
        trusted: take a plan that has no manifest. One that has is checked all the same.

    Raises:
        CheckpointError: absent, unreadable, without a manifest, not the file that the manifest describes, or not loadable.
        DeviceError: built for another GPU, another package or another version, or no GPU at hand. The message names both sides and
            the command that builds the plan again.
        MissingExtra: the package is not installed.
    """
    path = Path(path)
    manifest = read_manifest(path, verify=False)
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
    plan = PlanRecord() if manifest is None else _plan_record(path, manifest, sha256)
    chosen = plan.runtime or runtime or PLAN.runtimes[0]
    if chosen not in PLAN.runtimes:
        raise DeviceError(f"{path}: the plan's runtime is {chosen!r}; legal are {choices(sorted(PLAN.runtimes))}")
    if runtime not in (None, chosen):
        anew = rebuild_hint(path, manifest or Manifest())
        raise DeviceError(f"{path}: the plan was built with {chosen} and can't be loaded by {runtime}; {anew}")
    here = library.local_target()
    if here is None:
        raise DeviceError(f"{path}: the plan can't run here: no NVIDIA GPU with a driver on this machine")
    if manifest is not None and here not in plan.targets:
        built_for, anew = choices(plan.targets) or "no GPU", rebuild_hint(path, manifest, here)
        raise DeviceError(f"{path}: the plan was built for {built_for}, the GPU of this machine is {here}; {anew}")
    trt, cache = library.package(chosen, "running a plan"), None
    if manifest is not None:
        built, installed = plan.runtime_version, str(trt.__version__)
        if built != installed:
            anew = rebuild_hint(path, manifest, here)
            raise DeviceError(f"{path}: the plan was built with {chosen} {built}, installed is {installed}; {anew}")
        if chosen == "tensorrt-rtx":
            key = CacheKey(kind="runtime", package=chosen, version=installed, target=here, driver=driver_version(), plan=sha256)
            cache = CacheFile(path.parent, key)
    return engine.PlanSession(trt, data, runtime=chosen, name=str(path), runtime_cache=cache)


def why_not_loadable(plan: PlanRecord) -> str | None:
    """Why :func:`load_plan` would refuse a plan on this machine, as its manifest describes it; None if it would load it."""
    reason = library.why_not_here(plan.targets)
    if reason is not None:
        return reason
    runtime = plan.runtime or PLAN.runtimes[0]
    try:
        installed = str(library.package(runtime, "running a plan").__version__)
    except MissingExtra as error:
        return str(error)
    return None if installed == plan.runtime_version else f"built with {runtime} {plan.runtime_version}, installed is {installed}"


def _plan_record(path: Path, manifest: Manifest, sha256: str) -> PlanRecord:
    """The manifest's part on the plan, if the manifest is this file's."""
    if manifest.plan is None:
        raise CheckpointError(f"{manifest_path(path)}: the manifest says nothing of a plan")
    recorded = manifest.file.sha256
    if recorded != sha256:
        raise CheckpointError(
            f"{path}: the file is not the one that its manifest describes (SHA-256 {sha256[:12]}..., not {str(recorded)[:12]}...); "
            f"{rebuild_hint(path, manifest)}"
        )
    return manifest.plan
