"""The command that builds a plan anew, for messages of why a plan can't be loaded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from growtas.errors import SubnetError
from growtas.export.artifact import manifest_path
from growtas.export.formats import file_stem
from growtas.export.quantization.thresholds import OPTIONS, THRESHOLDS
from growtas.runs import RUNS
from growtas.subnet import Subnet


@dataclass(frozen=True)
class RebuildHint:
    """Composes the command that builds a plan anew. It works where the plan was asked for, or else in the folder of ``runs/``.

    Attributes:
        path: the plan.
        manifest: the plan's; empty where it has none.
    """

    path: Path
    manifest: Mapping[str, Any]

    def line(self, target: str | None) -> str:
        """``build it anew: growtas export runs/NAME --format trt --target sm86``, with all options that differ from the defaults.

        Args:
            target: the compute capability to build for; the plan's own ones if None.
        """
        plan, run = _part(self.manifest, "plan"), self._run_folder()
        targets = target or ",".join(map(str, plan.get("targets") or ()))
        precision = str(self.manifest.get("precision") or "fp32")
        words: list[Any] = ["growtas", "export", run or self._run_by_name() or "RUN", "--format", "trt"]
        words += ["--target", targets] if targets else []
        # Without a target it would be the precision that the search's latency was for.
        words += ["--precision", precision] if precision != "fp32" or not targets else []
        for option, value, default in (
            ("--max-batch", plan.get("max_batch"), 8),
            ("--opt-batch", plan.get("optimised_for_batch"), 1),
        ):
            words += [] if value in (None, default) else [option, value]
        words += [*self._pre_post_options(), *self._threshold_options(precision), *self._file_options(precision, run)]
        return f"build it anew: {shlex.join(map(str, words))}"

    def _run_by_name(self) -> Path | None:
        # The name alone: a manifest does not get to point elsewhere.
        name = Path(str(_part(self.manifest, "source").get("run") or "")).name
        return RUNS / name if name else None

    def _run_folder(self) -> Path | None:
        """The run's folder, where it is at hand: the one that the plan lies in, or the one of its name in ``runs/``."""
        folders = [
            self.path.parent.parent if self.path.parent.name else None,
            self.path.resolve().parent.parent,
            self._run_by_name(),
        ]
        return next((folder for folder in folders if folder is not None and (folder / "run.json").is_file()), None)

    def _pre_post_options(self) -> list[Any]:
        added = _part(self.manifest, "postprocess")
        words: list[Any] = ["--preprocess"] if _part(self.manifest, "input").get("dtype") == "uint8" else []
        words += ["--softmax"] if added.get("softmax") else []
        return words + (["--top-k", added["top_k"]] if added.get("top_k") else [])

    def _threshold_options(self, precision: str) -> list[Any]:
        """Tolerance and thresholds that were replaced: with the default ones the plan might not pass."""
        checked = self.manifest if self.manifest.get("verification") else _part(_part(self.manifest, "plan"), "compiled_from")
        usual: dict[str, Any] = asdict(THRESHOLDS[precision]) if precision in THRESHOLDS else {}
        words: list[Any] = []
        tolerance = _part(checked, "parity").get("tolerance")
        if tolerance not in (None, usual.get("relative_error")):
            words, usual["relative_error"] = ["--tolerance", tolerance], tolerance
        limits = _part(_part(checked, "verification"), "thresholds")
        for name, value in usual.items():
            words += [OPTIONS[name][0], limits[name]] if limits.get(name, value) != value else []
        return words

    def _file_options(self, precision: str, run: Path | None) -> list[Any]:
        """Subnet, name and place, where an export would take others by itself."""
        # Where the run is not at hand, the line is typed somewhere else, and a path that begins here would not hold.
        path = self.path if run is not None else self.path.resolve()
        # The manifest holds the subnet, and so is a subnet file.
        words: list[Any] = [] if self._is_searched_subnet(run) else ["--subnet", manifest_path(path)]
        pre_post = self._pre_post_options()
        name = Path(str(_part(self.manifest, "artifact").get("file") or path.name)).stem
        name = name.removesuffix(".pixels" if "--preprocess" in pre_post else ".outputs" if pre_post else "")
        name = name if precision == "fp32" else name.removesuffix(f".{precision}")
        words += [] if name == file_stem(str(self.manifest.get("space"))) else ["--name", name]
        return words if run and path.parent.resolve() == (run / "export").resolve() else [*words, "--out", path.parent]

    def _is_searched_subnet(self, run: Path | None) -> bool:
        """Whether the plan's subnet is the one that the run's search chose, as far as that can be told."""
        subnet = _part(self.manifest, "subnet")
        if not subnet:
            return True
        if run is None:
            return _part(self.manifest, "source").get("subnet_file") in (None, "subnet.json")
        try:
            return Subnet.load(run / "search" / "subnet.json") == Subnet.from_dict(subnet)
        except SubnetError:
            return False


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a manifest; empty where it lacks it."""
    part = record.get(name)
    return part if isinstance(part, Mapping) else {}
