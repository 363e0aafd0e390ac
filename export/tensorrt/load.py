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
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, DeviceError, SubnetError, choices
from growtas.export.artifact import manifest_path, read_manifest
from growtas.runs import RUNS
from growtas.subnet import Subnet

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
    rebuild = _Rebuild(path, manifest or {})
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
            f"{_Rebuild(path, manifest).line(None)}"
        )
    return plan


# Options of `growtas export` by the thresholds' names in a manifest.
_THRESHOLDS = {
    "relative_error": "--max-error",
    "cosine": "--min-cosine",
    "top1_agreement": "--min-agreement",
    "accuracy_drop_points": "--max-accuracy-drop",
}


@dataclass(frozen=True)
class _Rebuild:
    """How a plan is built anew: by a line that works where it was asked for, or else where ``runs/`` lies."""

    path: Path
    manifest: Mapping[str, Any]

    def line(self, target: str | None) -> str:
        """``build it anew: growtas export runs/NAME --format trt --target sm86``, and what else differs from the defaults."""
        plan, run = _part(self.manifest, "plan"), self._seen()
        named = target or ",".join(map(str, plan.get("targets") or ()))
        precision = str(self.manifest.get("precision") or "fp32")
        words: list[Any] = ["growtas", "export", run or self._named() or "RUN", "--format", "trt"]
        words += ["--target", named] if named else []
        # Without a target it would be the precision that the search's latency was for.
        words += ["--precision", precision] if precision != "fp32" or not named else []
        for option, value, default in (
            ("--max-batch", plan.get("max_batch"), 8),
            ("--opt-batch", plan.get("optimised_for_batch"), 1),
        ):
            words += [] if value in (None, default) else [option, value]
        words += [*self._ends(), *self._limits(precision), *self._files(precision, run)]
        return f"build it anew: {shlex.join(map(str, words))}"

    def _named(self) -> Path | None:
        # The name alone: a manifest does not get to point elsewhere.
        name = Path(str(_part(self.manifest, "source").get("run") or "")).name
        return RUNS / name if name else None

    def _seen(self) -> Path | None:
        """The run's folder, where it is at hand: the one that the plan lies in, or the one of its name in ``runs/``."""
        folders = [self.path.parent.parent if self.path.parent.name else None, self.path.resolve().parent.parent, self._named()]
        return next((folder for folder in folders if folder is not None and (folder / "run.json").is_file()), None)

    def _ends(self) -> list[Any]:
        added = _part(self.manifest, "postprocess")
        words: list[Any] = ["--preprocess"] if _part(self.manifest, "input").get("dtype") == "uint8" else []
        words += ["--softmax"] if added.get("softmax") else []
        return words + (["--top-k", added["top_k"]] if added.get("top_k") else [])

    def _limits(self, precision: str) -> list[Any]:
        """Tolerance and thresholds that were replaced: with the default ones the plan might not pass."""
        from growtas.export.verification.thresholds import THRESHOLDS

        checked = self.manifest if self.manifest.get("verification") else _part(_part(self.manifest, "plan"), "compiled_from")
        usual: dict[str, Any] = THRESHOLDS[precision].to_dict() if precision in THRESHOLDS else {}
        words: list[Any] = []
        tolerance = _part(checked, "parity").get("tolerance")
        if tolerance not in (None, usual.get("relative_error")):
            words, usual["relative_error"] = ["--tolerance", tolerance], tolerance
        limits = _part(_part(checked, "verification"), "thresholds")
        for name, value in usual.items():
            words += [_THRESHOLDS[name], limits[name]] if limits.get(name, value) != value else []
        return words

    def _files(self, precision: str, run: Path | None) -> list[Any]:
        """Subnet, name and place, where an export would take others by itself."""
        from growtas.export.pipeline.options import ExportOptions

        # Where the run is not at hand, the line is typed somewhere else, and a path that begins here would not hold.
        path = self.path if run is not None else self.path.resolve()
        # The manifest holds the subnet, and so is a subnet file.
        words: list[Any] = [] if self._is_searched(run) else ["--subnet", manifest_path(path)]
        ends = self._ends()
        name = Path(str(_part(self.manifest, "artifact").get("file") or path.name)).stem
        name = name.removesuffix(".pixels" if "--preprocess" in ends else ".outputs" if ends else "")
        name = name if precision == "fp32" else name.removesuffix(f".{precision}")
        words += [] if name == ExportOptions().stem(str(self.manifest.get("space"))) else ["--name", name]
        return words if run and path.parent.resolve() == (run / "export").resolve() else [*words, "--out", path.parent]

    def _is_searched(self, run: Path | None) -> bool:
        """Whether the plan's subnet is the one that the run's search chose, as far as that can be told."""
        own = _part(self.manifest, "subnet")
        if not own:
            return True
        if run is None:
            return _part(self.manifest, "source").get("subnet_file") in (None, "subnet.json")
        try:
            return Subnet.load(run / "search" / "subnet.json") == Subnet.from_dict(own)
        except SubnetError:
            return False


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a manifest; empty where it lacks it."""
    part = record.get(name)
    return part if isinstance(part, Mapping) else {}


def _loads(runtime: str, built: str, installed: str, version_compatible: bool) -> bool:
    """Whether the installed version of a runtime may load what another one built."""
    if runtime == "tensorrt" and version_compatible:
        return _numbers(installed) >= _numbers(built) > ()
    return built == installed


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _local_target(runtime: str) -> str | None:
    from growtas.export.runtimes import fake
    from growtas.export.tensorrt import library as nvinfer

    return fake.MACHINE.gpu if runtime == fake.NAME else nvinfer.local_target()


def _installed_version(runtime: str) -> str:
    """Version of a runtime's package, as the package itself says.

    Raises:
        MissingExtra: it isn't installed.
    """
    from growtas.export.runtimes import fake
    from growtas.export.tensorrt import open as plans

    return fake.MACHINE.version if runtime == fake.NAME else str(plans.module(runtime).__version__)
