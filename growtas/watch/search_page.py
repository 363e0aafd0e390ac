"""A search as sections of a page: the chosen subnet, its latencies, all evaluated subnets, and a drawing of the subnet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.batch import SubnetBatch
from growtas.costs import (
    block_macs,
    block_params,
    count_costs,
    macs_with_relative_position,
    stem_and_head_macs,
    stem_and_head_params,
)
from growtas.runs import data_title
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import format_accuracy, format_count
from growtas.watch.diagram import ends_of
from growtas.watch.drawing import scatter, subnet_drawing
from growtas.watch.page import Figure, Part, Row, Section, Text, table, write_page
from growtas.watch.search_report import CostPlane, accuracies, cost_rows, latency_rows, no_faster_lines

_DEVICE = ("device", "predicted", "measured")


def write_search_page(data: Mapping[str, Any], space: SearchSpace, path: Path) -> None:
    """Writes the page of a search; it replaces a file at ``path``.

    Args:
        data: the content of ``result.json``.
        space: the space that was searched.

    Raises:
        OutputError: the file can't be written.
    """
    subnet = Subnet.from_dict(data["best"])
    found = Section("search", "What was found", search_parts(data, CostPlane.all_of(data["points"])))
    origin = Section("origin", "Where it comes from", table("Origin", (), origin_rows(data)))
    count = data["images"]["count"]
    lead = f"The search found a subnet with an accuracy of {format_accuracy(data['best']['accuracy'], count)}"
    lead += f" on {count:,} images of the search split." if count else "."
    write_page(
        path,
        title=f"Search of {space.name}",
        lead=lead,
        sections=[found, Section("subnet", "The subnet, block by block", subnet_parts(space, subnet)), origin],
        footer=f"Written by growtas {data['growtas']}.",
    )


def search_parts(data: Mapping[str, Any], planes: Sequence[CostPlane]) -> list[Part]:
    """Returns the parts that describe the result and the course of a search.

    Args:
        data: the content of ``result.json``.
        planes: the evaluated subnets over each cost.
    """
    count, points = data["images"]["count"], data.get("front", {}).get("points", ())
    found = table("Found", ("quantity", "found", "limit"), cost_rows(data))
    figures = [scatter_figure(plane) for plane in planes]
    parts: list[Part] = [Row([*found, *figures])] if len(figures) < 2 else [*found, Row(figures)]
    parts += table("Latency", (*_DEVICE, "limit", "judged on"), latency_rows(data["best"]["latencies"]))
    parts += [Text(sentence) for sentence in no_faster_lines(data)]
    finalists = [
        (_accuracies(finalist, count), *row[:3], "within" if finalist["meets"] else "beyond a limit")
        for finalist in data["finalists"]
        for row in latency_rows(finalist["latencies"])
    ]
    parts += table("Finalists", ("accuracy", *_DEVICE, "limits"), finalists, fold=True)
    scored = [(str(Subnet.from_dict(entry["subnet"])), _accuracies(entry, count)) for entry in data.get("scored", ())]
    parts += table("Scored in the precision that ships", ("subnet", "accuracy"), scored, fold=True)
    front = [
        (str(Subnet.from_dict(point["subnet"])), point["precision"], format_accuracy(point["accuracy"], count), *row[1:3])
        for point in points
        for row in latency_rows(point["latencies"])
    ]
    parts += table("Front", ("subnet", "precision", "accuracy", *_DEVICE[1:]), front, fold=True)
    columns = ("generation", "subnets", "left early", "best so far", "median")
    parts += table("Generations", columns, _generations(data["history"]), right=columns, fold=True)
    parts.append(
        Text(
            "An accuracy is given with its standard error. The subnet was chosen by its accuracy on the search split, so that "
            "number is slightly optimistic; the accuracy on test images is not. A subnet left early could not become a parent any "
            "more, and its accuracy is not known. MACs are counted as in papers, without the relative position, unless it is named."
        )
    )
    return parts


def origin_rows(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Returns the time, the command and the data of the search; unknown entries are left out."""
    images, dropped = data["images"]["count"], data.get("dropped")
    yield "date", str(data["created"])
    if data.get("command"):
        yield "command", str(data["command"])
    yield "run", str(data["run"])
    if data.get("data"):
        searched = f", {images:,} search images" if images is not None else ""
        yield "data set", f"{data_title(data['data'])}{searched}"
    yield "growtas", str(data["growtas"])
    early = f", {dropped} left early" if dropped else ""
    yield "evaluated", f"{data['evaluated']} subnets{early}, {data.get('reused', 0)} from the journal, in {data['seconds']:.1f} s"


def scatter_figure(plane: CostPlane) -> Figure:
    """Returns the drawing of the evaluated subnets over a cost, with a legend."""
    legend = [("point", "\u25cf", f"{len(plane.costs)} evaluated"), ("front", "\u25cf", "front")]
    if plane.chosen_row is not None:
        legend.append(("found", "\u25c6", "found"))
    if plane.limit is not None:
        legend.append(("limit", "\u250a", plane.limit_text))
    for meets, look, text in ((True, "within", "within"), (False, "beyond", "beyond")):
        if any(within is meets for _, _, within in plane.measured):
            legend.append((look, "\u25cf", f"finalist measured {text} the limits"))
    return Figure(f"Accuracy over {plane.axis}", scatter(plane), legend)


def subnet_parts(space: SearchSpace, subnet: Subnet) -> list[Part]:
    """Returns the blocks of a subnet as a drawing and as a table with their costs."""
    first, last = ends_of(space, subnet)
    dim, columns = subnet.embed_dim, ("heads", "mlp_ratio", "hidden layer", "params", "MACs")
    ends = (stem_and_head_params(space, dim), stem_and_head_macs(space, dim))
    rows = [("patches and head", "", "", "", *map(format_count, ends))]
    for index, (heads, ratio) in enumerate(zip(subnet.num_heads, subnet.mlp_ratio, strict=True)):
        hidden = subnet.hidden_dim(index)
        counts = (count(space, dim, heads, hidden) for count in (block_params, block_macs))
        rows.append((f"block {index + 1}", str(heads), f"{ratio:g}", str(hidden), *map(format_count, counts)))
    costs, batch = count_costs(space, subnet), SubnetBatch.from_subnets([subnet])
    rows.append(("whole subnet", "", "", "", format_count(costs.params), format_count(costs.macs)))
    sentences = f"{subnet}. Input: {first}. Output: {last}."
    if space.max_relative_position is not None:
        relative = format_count(int(macs_with_relative_position(space, batch)[0]))
        sentences += f" With the relative position it has {relative} MACs."
    return [
        Text(sentences),
        Row(
            [
                Figure("Heads and hidden layers of the blocks", subnet_drawing(space, subnet)),
                *table("The blocks in numbers", ("part", *columns), rows, right=columns),
            ]
        ),
    ]


def _accuracies(subnet: Mapping[str, Any], count: int | None) -> str:
    """Formats all accuracies of a subnet; if it was only scored in fp32, the number alone."""
    named = accuracies(subnet)
    texts = [f"{format_accuracy(accuracy, count)} in {name}" for name, _, accuracy in named]
    return ", ".join(texts) if len(named) > 1 else format_accuracy(subnet["accuracy"], count)


def _generations(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for entry in history:
        shares = (entry["best_accuracy"], entry["median_accuracy"])
        shown = ("all left early" if share is None else f"{100 * share:.2f} %" for share in shares)
        yield str(entry["generation"]), str(entry["subnets"]), str(entry["dropped"]), *shown
