"""A run in a few lines: its state, what was trained on which data, and the accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from growtas.runs import data_title
from growtas.units import format_accuracy, format_seconds
from growtas.watch.report import Report

_RECIPE = (
    ("batch", "batch_size"), ("", "optimizer"), ("warm-up epochs", "warmup_epochs"),
    ("weight decay", "weight_decay"), ("augment", "augment"), ("mixup", "mixup"), ("cutmix", "cutmix"),
    ("label smoothing", "label_smoothing"), ("drop path", "drop_path"), ("teacher", "teacher"), ("seed", "seed"),
)  # fmt: skip


def facts(report: Report) -> list[tuple[str, str, str]]:
    """Returns the lines as (name, text, style); the style of errors is ``red``."""
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
        rows.append(("source", import_source(info["source"]), ""))
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


def import_source(source: Mapping[str, Any]) -> str:
    """Returns what a run was imported from: the name of a file, or of a model of timm with its weights."""
    return f"{source['model']} of timm ({source.get('weights')})" if "model" in source else str(source.get("file"))


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
