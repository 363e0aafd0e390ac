"""Checks before a plan is loaded: loading one runs native code on what the file holds, and a plan only fits what it was built for.

What the manifest says is compared with the file, this machine's GPU and the installed package, in this order; the bytes that were
hashed are the bytes that are loaded. A mismatch is one sentence that names both sides and the line that builds the plan anew.

Rules of versions. TensorRT-RTX: a plan is only for the release that built it (NVIDIA's TensorRT-RTX documentation, "Engine
Compatibility"). TensorRT: likewise, unless the plan was built version-compatible; then the installed version may be a later one
(NVIDIA's TensorRT documentation, "Version Compatibility").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, DeviceError, choices
from growtas.export.manifest import manifest_path, read_manifest

RUNTIMES = ("tensorrt", "tensorrt-rtx", "fake")
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
        version_compatible: it brings its own runtime along, which is native code too.
    """

    data: bytes
    sha256: str
    runtime: str
    target: str
    manifest: dict[str, Any] | None
    version_compatible: bool


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
    plan = _plan_section(path, manifest, sha256) if manifest is not None else {}
    chosen = str(plan.get("runtime") or runtime or DEFAULT_RUNTIME)
    if chosen not in RUNTIMES:
        raise DeviceError(f"{path}: the plan's runtime is {chosen!r}; legal are {choices(RUNTIMES[:2])}")
    rebuild = _Rebuild(manifest or {})
    if runtime not in (None, chosen):
        raise DeviceError(f"{path}: the plan was built with {chosen} and can't be loaded by {runtime}; {rebuild.line(None)}")
    here = _local_target(chosen)
    if here is None:
        raise DeviceError(f"{path}: the plan can't run here: no NVIDIA GPU with a driver on this machine")
    targets = tuple(map(str, plan.get("targets") or ()))
    if manifest is not None and here not in targets:
        built_for = choices(targets) or "no GPU"
        raise DeviceError(f"{path}: the plan was built for {built_for}, the GPU of this machine is {here}; {rebuild.line(here)}")
    version_compatible = bool((plan.get("settings") or {}).get("version_compatible"))
    if manifest is not None:
        built, installed = str(plan.get("runtime_version")), _installed_version(chosen)
        if not _loads(chosen, built, installed, version_compatible):
            raise DeviceError(f"{path}: the plan was built with {chosen} {built}, installed is {installed}; {rebuild.line(here)}")
    return CheckedPlan(
        data=data, sha256=sha256, runtime=chosen, target=here, manifest=manifest, version_compatible=version_compatible
    )


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
            f"{_Rebuild(manifest).line(None)}"
        )
    return plan


@dataclass(frozen=True)
class _Rebuild:
    """How a plan is built anew."""

    manifest: Mapping[str, Any]

    def line(self, target: str | None) -> str:
        """``build it anew: growtas export RUN --format trt --target sm86``, as far as the manifest knows the parts."""
        source, plan = self.manifest.get("source") or {}, self.manifest.get("plan") or {}
        named = target or ",".join(map(str, plan.get("targets") or ()))
        run = str(source.get("run") or "RUN")
        precision = str(self.manifest.get("precision") or "fp32")
        words = ["growtas", "export", run, "--format", "trt", *(["--target", named] if named else [])]
        if precision != "fp32":
            words += ["--precision", precision]
        return f"build it anew: {' '.join(words)}"


def _loads(runtime: str, built: str, installed: str, version_compatible: bool) -> bool:
    """Whether the installed version of a runtime may load what another one built."""
    if runtime == "tensorrt" and version_compatible:
        return _numbers(installed) >= _numbers(built) > ()
    return built == installed


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _local_target(runtime: str) -> str | None:
    from growtas.export.backends import fake, nvinfer

    return fake.MACHINE.gpu if runtime == fake.NAME else nvinfer.local_target()


def _installed_version(runtime: str) -> str:
    """Version of a runtime's package, as the package itself says.

    Raises:
        MissingExtra: it isn't installed.
    """
    from growtas.export.backends import fake, plans

    return fake.MACHINE.version if runtime == fake.NAME else str(plans.module(runtime).__version__)
