"""The report of a run as text in the terminal: facts, curves, times and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from growtas.runs import data_title
from growtas.units import format_accuracy, format_bytes, format_count
from growtas.watch.chart import Chart, draw
from growtas.watch.report import Report

_SIDE_BY_SIDE = 100
"""Columns from which two charts stand beside each other."""
_RECIPE = (
    ("batch", "batch_size"), ("", "optimizer"), ("warm-up epochs", "warmup_epochs"),
    ("weight decay", "weight_decay"), ("augment", "augment"), ("mixup", "mixup"), ("cutmix", "cutmix"),
    ("label smoothing", "label_smoothing"), ("drop path", "drop_path"), ("teacher", "teacher"), ("seed", "seed"),
)  # fmt: skip


def print_report(report: Report, console: Console) -> None:
    """Print a report, as wide as the console, and without colours where the console has none."""
    # A path is not folded: it is there to be copied.
    console.print(Text(str(report.run.path), "bold"), soft_wrap=True)
    for line in fact_lines(_header(report), console.width):
        console.print(line, soft_wrap=True)
    for renderable in _renderables(report, console):
        console.print(renderable, markup=False)


def fold(text: str, width: int | None) -> list[str]:
    """Text as lines that are broken between words only: a path or a number stays whole even where it is wider than ``width``.

    Args:
        width: columns; None leaves the text as it is.
    """
    if width is None or cell_len(text) <= width:
        return [text]
    return pack(text.split(), width)


def pack(parts: Iterable[str], width: int, gap: str = " ") -> list[str]:
    """Parts put together to lines of at most ``width`` columns; a part that is wider has a line of its own."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(longer := lines[-1] + gap + part) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def fact_lines(facts: Sequence[tuple[str, str, str]], width: int | None) -> Iterator[Text]:
    """Facts as (name, value, style), one below the other; values are folded as by :func:`fold`."""
    indent = max((cell_len(name) for name, _, _ in facts), default=0) + 2
    for name, value, style in facts:
        label = name + " " * (indent - cell_len(name))
        for line in fold(value, None if width is None else width - indent) or [""]:
            yield Text.assemble((label, "dim"), (line, style))
            label = " " * indent


def charts(report: Report) -> list[Chart]:
    """The curves of a run that have values: loss, learning rate, accuracy of the followed subnets, and of the probes."""
    metrics = report.metrics
    boundaries = [(epoch, f"stage {stage}") for stage, epoch in metrics.stages[1:]]
    curves = [
        Chart("loss", [metrics.series("loss")], lambda value: f"{value:.3g}", boundaries),
        Chart("learning rate", [metrics.series("lr")], lambda value: f"{value:.2g}", boundaries),
        Chart("accuracy, search split", metrics.group("accuracy"), _percent, boundaries, percent=True),
        Chart("accuracy of the probes, search split", metrics.group("probes"), _percent, boundaries, percent=True),
    ]
    return [chart for chart in curves if chart.measured]


def format_seconds(seconds: float) -> str:
    """``7.2 s``, ``3 min 20 s``, ``5 h 12 min``, ``2 d 3 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    if (minutes := round(seconds / 60)) < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _renderables(report: Report, console: Console) -> Iterator[RenderableType]:
    yield from _chart_grid(charts(report), console)
    if report.metrics.lines:
        yield ""
        yield from _time_spent(report, plain=console.options.ascii_only)
    if report.checkpoints:
        yield ""
        yield _checkpoints(report)


def _header(report: Report) -> list[tuple[str, str, str]]:
    info, rows = report.info, [("state", _state_line(report), "")]
    if isinstance(info.get("error"), str):
        rows.append(("error", info["error"], "red"))
    space = info.get("space")
    name = space.get("name", "?") if isinstance(space, Mapping) else "?"
    rows.append(("what", f"{name}, method {info.get('method', '?')}", ""))
    rows.append(("data", _data_line(info), ""))
    if isinstance(info.get("recipe"), Mapping):
        rows.append(("recipe", _recipe_line(info["recipe"]), ""))
    if isinstance(info.get("source"), Mapping):
        rows.append(("source", str(info["source"].get("file")), ""))
    rows.append(("begun", f"{report.run.created:%Y-%m-%d %H:%M}", ""))
    accuracy, measured_on = report.accuracy
    if accuracy:
        label = "test accuracy" if measured_on == "test" else "accuracy"
        where = "" if measured_on == "test" else f" ({measured_on}, epoch {report.metrics.done})"
        shown = [f"{name} {format_accuracy(value, report.accuracy_images)}" for name, value in accuracy.items()]
        rows.append((label, ", ".join(shown) + where, ""))
    if searched := report.searched:
        shown = [f"{format_accuracy(value, count)} in {precision}" for precision, (value, count) in searched.items()]
        rows.append(("searched", f"{', '.join(shown)} (search split)", ""))
    if bad := report.metrics.not_finite():
        rows.append(("loss", f"not finite in epoch {', '.join(map(str, bad[:8]))}{' ...' if len(bad) > 8 else ''}", "red"))
    return rows


def _state_line(report: Report) -> str:
    done, total, left = report.metrics.done, report.epochs, report.seconds_left
    parts = [str(report.state)]
    if total is not None:
        parts.append(f"{done} of {total} epochs")
    if report.metrics.lines:
        parts.append(format_seconds(report.info.get("seconds") or report.metrics.seconds))
    elif total is not None:
        parts.append("no epoch is complete yet")
    if left is not None:
        parts.append(f"about {format_seconds(left)} left")
    return ", ".join(parts)


def _data_line(info: Mapping[str, Any]) -> str:
    data, names = info.get("data"), info.get("class_names")
    if not isinstance(data, Mapping):
        return "not known (the run was not trained here)"
    sizes = [f"{data[key]:,} {what} images" for key, what in (("train_size", "training"), ("test_size", "test")) if key in data]
    classes = [f"{len(names)} classes"] if isinstance(names, list) else []
    return ", ".join([data_title(data), *sizes, *classes])


def _recipe_line(recipe: Mapping[str, Any]) -> str:
    shown = [
        f"{what} {_short(recipe[key])}".strip()
        for what, key in _RECIPE
        if recipe.get(key) not in (None, 0, "none") or (key == "seed" and key in recipe)
    ]
    rate = f"lr {_short(recipe.get('lr'))} to {_short(recipe.get('min_lr'))}"
    return f"{recipe.get('name', 'custom')}: {recipe.get('epochs')} epochs, {rate}, {', '.join(shown)}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _chart_grid(curves: list[Chart], console: Console) -> Iterator[RenderableType]:
    width, plain = max(console.width, 40), console.options.ascii_only
    columns = 2 if width >= _SIDE_BY_SIDE else 1
    gap = 3 * (columns - 1)
    chart_width = (width - gap) // columns
    for start in range(0, len(curves), columns):
        row = curves[start : start + columns]
        grid = Table.grid(padding=(0, gap, 0, 0))
        high = 11 if row[0].percent or gap else 5 if row[0].title == "learning rate" else 9
        texts = [Text("\n").join(Text.assemble(*line) for line in draw(chart, chart_width, high, plain=plain)) for chart in row]
        for text in texts:
            text.no_wrap, text.overflow = True, "crop"
            grid.add_column(width=chart_width, no_wrap=True)
        grid.add_row(*texts)
        yield ""
        yield grid


def _time_spent(report: Report, *, plain: bool) -> Iterator[RenderableType]:
    metrics = report.metrics
    spent = metrics.time()
    total = sum(spent.values())
    if total:
        table = _titled_table("time", "right", "left", "right")
        for activity, seconds in spent.items():
            bar = ("#" if plain else "█") * round(30 * seconds / total)
            table.add_row(Text(activity, "not bold"), f"{seconds / total:.1%}", bar, format_seconds(seconds))
        yield table
    rate, compute = metrics.images_per_second(), metrics.compute()
    parts = [f"{rate['median']:,.0f} images/s (median; last epoch {rate['last']:,.0f})"] if rate else []
    for key, what in (("macs", "MACs of training"), ("extra_macs", "MACs of teachers and the method itself")):
        if compute.get(key):
            parts.append(f"{format_count(compute[key])} {what}")
    if compute.get("passes"):
        parts.append(f"{compute['passes']:,.0f} passes")
    if parts:
        yield ", ".join(parts)


def _checkpoints(report: Report) -> RenderableType:
    table = _titled_table("checkpoints", "left", "right", "left")
    for checkpoint in report.checkpoints:
        score = "" if checkpoint.score is None else f"mean accuracy {checkpoint.score:.2%}"
        table.add_row(Text(checkpoint.path.name, "not bold"), checkpoint.kind, format_bytes(checkpoint.bytes), score)
    best = report.metrics.best()
    if best is not None and not any(checkpoint.kind == "best" for checkpoint in report.checkpoints):
        table.add_row(Text("best epoch", "not bold"), str(best[0]), "", f"mean accuracy {best[1]:.2%}")
    return table


def _titled_table(title: str, *justify: JustifyMethod) -> Table:
    """A table whose first column is bold, with its title in the first row."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for method in justify:
        table.add_column(justify=method)
    table.add_row(title)
    return table


def _percent(value: float) -> str:
    return f"{value:.1%}"
