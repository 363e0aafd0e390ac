"""Checks a plan and then loads it. Loading runs native code from the file, and a plan is valid only for its GPUs and release.

A plan can be loaded only by the release that built it (NVIDIA's TensorRT-RTX documentation, "Engine Compatibility"; TensorRT's,
"Version Compatibility"). Later versions can also load TensorRT's version-compatible plans, but these contain native CPU code, which
a manifest can't vouch for. So growtas builds no such plans and never runs such code.
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
from growtas.files import MAX_WEIGHTS_BYTES, read_bytes


def load_plan(path: str | Path, *, runtime: str | None = None, trusted: bool = False) -> Session:
    """Compares a plan's manifest with the file, this machine's GPU and the installed package, in this order, and loads the plan.

    The bytes that are hashed are the bytes that are loaded. TensorRT-RTX caches its compiled kernels beside the plan, unless the
    folder can't be written, or the plan is a temporary file without a manifest.

    Args:
        path: the ``.plan`` file.
        runtime: ``tensorrt`` or ``tensorrt-rtx``; by default that of the manifest.
        trusted: accept a plan without a manifest. If there is a manifest, the plan is still checked.

    Raises:
        CheckpointError: the plan is absent, unreadable or not loadable, has no manifest, or does not match its manifest.
        DeviceError: the plan was built for another GPU, package or version, or this machine has no GPU. The message names both
            sides and the command that builds the plan again.
        MissingExtra: the package is not installed.
    """
    path = Path(path)
    manifest = read_manifest(path, verify=False)
    if manifest is None and not trusted:
        raise CheckpointError(
            f"{path}: a plan is only loaded with its manifest, and {manifest_path(path).name} is missing; "
            f"export it again (growtas export RUN --format trt)"
        )
    data = read_bytes(path, f"{path}: the plan", limit=MAX_WEIGHTS_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    plan = PlanRecord() if manifest is None else _plan_record(path, manifest, sha256)
    chosen = plan.runtime or runtime or PLAN.runtimes[0]
    if chosen not in PLAN.runtimes:
        raise DeviceError(f"{path}: the plan's runtime is {chosen!r}; legal are {choices(sorted(PLAN.runtimes))}")
    if runtime not in (None, chosen):
        hint = rebuild_hint(path, manifest or Manifest())
        raise DeviceError(f"{path}: the plan was built with {chosen} and can't be loaded by {runtime}; {hint}")
    here = library.local_target()
    if here is None:
        raise DeviceError(f"{path}: the plan can't run here: no NVIDIA GPU with a driver on this machine")
    if manifest is not None and here not in plan.targets:
        built_for, hint = choices(plan.targets) or "no GPU", rebuild_hint(path, manifest, here)
        raise DeviceError(f"{path}: the plan was built for {built_for}, but the GPU of this machine is {here}; {hint}")
    trt, cache = library.package(chosen, "running a plan"), None
    if manifest is not None:
        built, installed = plan.runtime_version, str(trt.__version__)
        if built != installed:
            hint = rebuild_hint(path, manifest, here)
            raise DeviceError(f"{path}: the plan was built with {chosen} {built}, but {installed} is installed; {hint}")
        if chosen == "tensorrt-rtx":
            key = CacheKey(kind="runtime", package=chosen, version=installed, target=here, driver=driver_version(), plan=sha256)
            cache = CacheFile(path.parent, key)
    return engine.PlanSession(trt, data, runtime=chosen, name=str(path), runtime_cache=cache)


def why_not_loadable(plan: PlanRecord) -> str | None:
    """Returns the reason why :func:`load_plan` would refuse a plan on this machine, from its manifest; None if it would load it."""
    reason = library.why_not_here(plan.targets)
    if reason is not None:
        return reason
    runtime = plan.runtime or PLAN.runtimes[0]
    try:
        installed = str(library.package(runtime, "running a plan").__version__)
    except MissingExtra as error:
        return str(error)
    if installed == plan.runtime_version:
        return None
    return f"it was built with {runtime} {plan.runtime_version}, but {installed} is installed"


def _plan_record(path: Path, manifest: Manifest, sha256: str) -> PlanRecord:
    """The manifest's record of the plan. The manifest must match the file."""
    if manifest.plan is None:
        raise CheckpointError(f"{manifest_path(path)}: the manifest does not describe a plan")
    recorded = manifest.file.sha256
    if recorded != sha256:
        raise CheckpointError(
            f"{path}: the file is not the one that its manifest describes (SHA-256 {sha256[:12]}..., not {str(recorded)[:12]}...); "
            f"{rebuild_hint(path, manifest)}"
        )
    return manifest.plan
