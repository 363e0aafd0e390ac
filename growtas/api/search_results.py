"""The result of a search, and the files that hold it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from growtas import __version__
from growtas.files import write_json
from growtas.runs import Run
from growtas.search.finalists import SearchedSubnet
from growtas.search.limits import Limits
from growtas.search.precision import accuracies_dict
from growtas.search.search import Outcome, Search
from growtas.search.targets import DeviceLatency
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import standard_error
from growtas.watch.pictures import can_draw, draw_search_png
from growtas.watch.search_page import write_search_page
from growtas.watch.search_report import CostPlane, history, search_points


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The subnet that a search chose, and the files that it wrote.

    Attributes:
        run: the run that was searched.
        space: the choices that were searched.
        limits: those that need no device.
        chosen: the subnet with its costs, accuracy and latencies, and the finalists.
        files: ``result``, ``subnet`` and ``report``, and ``picture`` and ``front`` where they were written.
        report: the content of ``result.json``.
    """

    run: Run
    space: SearchSpace
    limits: Limits
    chosen: SearchedSubnet
    files: Mapping[str, Path]
    report: Mapping[str, Any]

    @property
    def subnet(self) -> Subnet:
        """The chosen subnet."""
        return self.chosen.subnet

    @property
    def accuracy(self) -> float:
        """Its top-1 accuracy on the search split in fp32, 0 to 1."""
        return self.chosen.evaluation.accuracy

    @property
    def accuracies(self) -> dict[str, float]:
        """The same by precision: in fp32, and in those that the limits were for, where it was converted and scored."""
        converted = self.chosen.converted.items()
        return {"fp32": self.accuracy, **{conversion.precision: evaluation.accuracy for conversion, evaluation in converted}}

    @property
    def latencies(self) -> tuple[DeviceLatency, ...]:
        """Its latency on each device, in the order of the devices."""
        return self.chosen.latencies

    def to_dict(self) -> dict[str, Any]:
        """What ``growtas search --json`` prints: the content of ``result.json``."""
        return dict(self.report)


def write_results(run: Run, folder: Path, search: Search, outcome: Outcome, record: Mapping[str, Any]) -> SearchResult:
    """Writes ``result.json``, ``subnet.json``, the page, and where they apply the picture and ``front.json``.

    Args:
        record: the beginning of ``result.json``: checkpoint, settings and counts.

    Raises:
        OutputError: a file can't be written.
    """
    chosen, count = outcome.chosen, record["images"]["count"]

    def with_error(content: dict[str, Any]) -> dict[str, Any]:
        accuracy = content["accuracy"]
        error = standard_error(accuracy, count) if count and accuracy is not None else None
        converted = [with_error(entry) for entry in content.get("converted", ())]
        return {**content, "accuracy_standard_error": error, **({"converted": converted} if "converted" in content else {})}

    best = with_error(chosen.to_dict())
    files: dict[str, Path] = {"result": folder / "result.json", "subnet": folder / "subnet.json"}
    report: dict[str, Any] = {
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "growtas": __version__,
        **record,
        "time": asdict(outcome.spent),
        "unsteady": chosen.unsteady,
        "best": best,
        "latency_note": chosen.latencies[0].note if chosen.latencies else None,
        "finalists": [with_error(finalist.to_dict()) for finalist in chosen.finalists],
        "scored": [
            with_error({"subnet": subnet.to_dict(), "accuracy": accuracy, "converted": accuracies_dict(converted)})
            for subnet, accuracy, converted in chosen.scored
        ],
        "history": history(outcome.result),
        "points": search_points(search, outcome),
    }
    if search.front:
        files["front"] = folder / "front.json"
        front = outcome.front.to_dict(search.space) if outcome.front else search.front_report(outcome.result)
        front["subnets"] = [with_error(subnet) for subnet in front["subnets"]]
        write_json(files["front"], front)
        report["front"] = {"subnets": len(front["subnets"]), "hypervolume": front["hypervolume"]}
        if outcome.front:
            report["front"] |= {"points": front["subnets"], "unscored": front["unscored"]}
    files |= {"report": folder / "report.html"} | ({"picture": folder / "search.png"} if can_draw() else {})
    report["files"] = {name: str(path) for name, path in files.items()}
    write_json(files["result"], report)
    subnet = {**best, **{key: record[key] for key in ("device", "devices", "limits")}}
    write_json(files["subnet"], {**subnet, "space": run.space.name, "checkpoint_sha256": record["checkpoint_sha256"]})
    write_search_page(report, search.space, files["report"])
    if "picture" in files:
        draw_search_png(CostPlane.all_of(report["points"])[0], search.space.name, count, files["picture"])
    return SearchResult(run=run, space=search.space, limits=search.limits, chosen=chosen, files=files, report=report)
