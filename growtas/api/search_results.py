"""The result of a search and its files."""

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
        space: the search space.
        limits: the limits that need no device.
        chosen: the subnet with its costs, accuracy and latencies, and the finalists.
        files: the written files by name: ``result``, ``subnet`` and ``report``, and if they were written ``picture`` and
            ``front``.
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
        """Top-1 accuracy of the subnet on the search split in fp32, 0 to 1."""
        return self.chosen.evaluation.accuracy

    @property
    def accuracies(self) -> dict[str, float]:
        """Top-1 accuracy (0 to 1) by precision: in fp32, and in each precision that the subnet was converted to."""
        converted = self.chosen.converted.items()
        return {"fp32": self.accuracy, **{conversion.precision: evaluation.accuracy for conversion, evaluation in converted}}

    @property
    def latencies(self) -> tuple[DeviceLatency, ...]:
        """Latency of the subnet on each device, in the order of the devices."""
        return self.chosen.latencies

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of ``result.json``, which ``growtas search --json`` prints too."""
        return dict(self.report)


RESULT_JSON = """``result.json``: what a search found, besides what it was asked for and what it took.

Fields:
    created (text): When the search ended, ISO 8601 with the time zone.
    growtas (text): Version of growtas.
    time (object): Where the time went, in seconds.
    time.evaluation (number): Evaluating subnets in the supernet.
    time.sampling (number): Drawing, costing, predicting and ranking subnets.
    time.measuring (number): Measuring finalists, and scoring them in the precision that ships.
    unsteady (true or false): Whether a latency of the chosen subnet was measured while other work disturbed the timings.
    best (object): The chosen subnet.
    latency_note (text or null): What kind of number the first latency is, in words; null without a device.
    finalists (list): The subnets that were considered, in the order of their scores; the last one was chosen.
    scored (list): Subnets that were scored in the precisions that ship, the best in fp32 first.
    scored[].subnet (object): The subnet, as in a subnet's file.
    scored[].accuracy (number): Top-1 accuracy in fp32, 0 to 1.
    scored[].accuracy_standard_error (number or null): Standard error of that accuracy, 0 to 1; null in a replay.
    scored[].converted (list): The accuracies in the precisions that ship, as in ``best``.
    history (list): The generations.
    history[].generation (whole number): Its number, from 1.
    history[].subnets (whole number): Its subnets.
    history[].dropped (whole number): How many of them were dropped from a race.
    history[].best_accuracy (number or null): Best accuracy so far, 0 to 1.
    history[].generation_best_accuracy (number or null): Best accuracy of this generation, 0 to 1.
    history[].median_accuracy (number or null): Median accuracy of its subnets that saw all images, 0 to 1.
    machine (object): Full names of the CPU and the GPU that the search ran on, by their names for ``--device``.
    points (object): What the search evaluated, for drawings.
    points.accuracies (list): Top-1 accuracy (0 to 1) of every subnet that was evaluated on all images.
    points.chosen (whole number or null): Row of the chosen subnet among them; null if it is not among them.
    points.costs (list): One entry for each limited cost; without a limit, one for the first predicted latency or the parameters.
    front (object): A summary of ``front.json``. Absent without a front.
    front.subnets (whole number): Points of the front.
    front.hypervolume (number): The front's hypervolume, as in ``front.json``.
    front.points (list): The points of ``front.json``. Absent where only one precision was asked for.
    front.unscored (list): The points without a known accuracy, as in ``front.json``. Absent likewise.
    files (object): Path of each file that was written, by what it is: ``result``, ``subnet``, ``report``, ``picture``, ``front``.
"""


SUBNET_JSON = """``subnet.json``: the chosen subnet as ``best`` in ``result.json`` has it, and what it was searched for.

Fields:
    device (text or null): The first device.
    devices (list): Every device, as in ``result.json``.
    limits (object): The limits, as in ``result.json``.
    space (text): Name of the space that was trained.
    checkpoint_sha256 (text): SHA-256 of the supernet's file, in hexadecimal.
"""


def write_results(run: Run, folder: Path, search: Search, outcome: Outcome, record: Mapping[str, Any]) -> SearchResult:
    """Writes ``result.json``, ``subnet.json``, ``report.html``, ``front.json`` for a front, and ``search.png`` with matplotlib.

    After the entries of ``record``, ``result.json`` has ``time`` (seconds per part of the search), ``unsteady`` (whether other work
    disturbed a latency of the chosen subnet), ``best`` (the chosen subnet with its costs, accuracy and latencies), ``finalists``
    (the considered subnets; the last one was chosen), ``scored`` (subnets evaluated in the exported precision), ``history`` (counts
    and accuracies per generation), ``front`` and ``files``. Accuracies are from 0 to 1, on the search split.

    Args:
        run: the run that was searched.
        folder: the folder of the files.
        search: the search that was run.
        outcome: its outcome.
        record: the first entries of ``result.json``: checkpoint, settings and counts.

    Raises:
        OutputError: A file can't be written.
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
