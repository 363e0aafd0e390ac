"""Composes the command that builds a plan again, for messages about plans that can't be loaded."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from growtas.errors import SubnetError
from growtas.export.artifact import CompiledFromRecord, Manifest, PlanRecord, manifest_path
from growtas.export.formats import file_stem
from growtas.export.quantization.thresholds import OPTIONS, THRESHOLDS
from growtas.runs import RUNS, run_of
from growtas.subnet import Subnet


def rebuild_hint(path: Path, manifest: Manifest, target: str | None = None) -> str:
    """Returns ``build it again: growtas export runs/NAME --format trt --target sm86``, with all options that are not defaults.

    The command works in the current folder if the run is there, or else in the folder that contains ``runs/``.

    Args:
        path: the plan.
        manifest: the plan's manifest; an empty one if it has none.
        target: the compute capability to build for; by default those of the plan.
    """
    plan, precision = manifest.plan or PlanRecord(), manifest.precision or "fp32"
    # Only the name is used, so that a manifest can't point to another folder.
    name = Path(manifest.source.run or "").name
    by_name = RUNS / name if name else None
    # The run's folder, if it exists here: the one that contains the plan, or the one of that name in runs/.
    run = run_of(path) or (by_name if by_name and (by_name / "run.json").is_file() else None)
    targets = target or ",".join(plan.targets)
    words: list[Any] = ["growtas", "export", run or by_name or "RUN", "--format", "trt"]
    words += ["--target", targets] if targets else []
    # Without a target, the default would be the precision of the search's latency.
    words += ["--precision", precision] if precision != "fp32" or not targets else []
    words += [] if plan.max_batch in (None, 8) else ["--max-batch", plan.max_batch]
    words += [] if plan.optimised_for_batch in (None, 1) else ["--opt-batch", plan.optimised_for_batch]
    pixels, added = manifest.input is not None and manifest.input.takes_pixels, manifest.postprocess
    words += ["--preprocess"] if pixels else []
    words += ["--softmax"] if added and added.softmax else []
    words += ["--top-k", added.top_k] if added and added.top_k else []
    words += _threshold_options(manifest, plan, precision)
    # Without the run here, the command is run in another folder, where a relative path would be wrong.
    path = path if run is not None else path.resolve()
    # The manifest contains the subnet, so it can be used as a subnet file.
    words += [] if _is_searched_subnet(manifest, run) else ["--subnet", manifest_path(path)]
    stem = Path(manifest.file.file or path.name).stem
    stem = stem.removesuffix(".pixels" if pixels else ".outputs" if added and (added.softmax or added.top_k) else "")
    stem = stem if precision == "fp32" else stem.removesuffix(f".{precision}")
    words += [] if stem == file_stem(str(manifest.space)) else ["--name", stem]
    words += [] if run and path.parent.resolve() == (run / "export").resolve() else ["--out", path.parent]
    return f"build it again: {shlex.join(map(str, words))}"


def _threshold_options(manifest: Manifest, plan: PlanRecord, precision: str) -> list[Any]:
    """The options for a tolerance and thresholds that are not the defaults, with which the plan might not pass."""
    checked = manifest if manifest.verification else plan.compiled_from or CompiledFromRecord()
    usual: dict[str, Any] = asdict(THRESHOLDS[precision]) if precision in THRESHOLDS else {}
    words: list[Any] = []
    tolerance = checked.parity.tolerance if checked.parity else None
    if tolerance not in (None, usual.get("relative_error")):
        words, usual["relative_error"] = ["--tolerance", tolerance], tolerance
    limits = checked.verification.thresholds if checked.verification else {}
    for name, value in usual.items():
        words += [OPTIONS[name][0], limits[name]] if limits.get(name, value) != value else []
    return words


def _is_searched_subnet(manifest: Manifest, run: Path | None) -> bool:
    """Whether the plan's subnet is the one that the run's search chose, as far as this is known."""
    if not manifest.subnet:
        return True
    if run is None:
        return manifest.source.subnet_file in (None, "subnet.json")
    try:
        return Subnet.load(run / "search" / "subnet.json") == Subnet.from_dict(manifest.subnet)
    except SubnetError:
        return False
