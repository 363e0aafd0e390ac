"""The table, the sentences and the figure of ``make evidence-front``, drawn from docs/evidence/front.csv alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.files import replacing
from growtas.units import format_count, standard_error
from tests.evidence.tables import markdown, replace_parts, to_csv, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained model, before it is timed.

    Attributes:
        data: name of the data set.
        kind: ``found`` by a search, or of ``timm``.
        name: for people.
        params: its parameters.
        search_accuracy: of a found subnet on the images that the search used, 0 to 1; None of others.
        test_accuracy: of the ONNX file on the test images, 0 to 1.
        test_images: how many those are.
        epochs: of its training.
        cpu_seconds: what its training took, of timm's models at all learning rates. All found subnets share one training.
        file: its ONNX file, in the working folder.
    """

    data: str
    kind: str
    name: str
    params: int
    search_accuracy: float | None
    test_accuracy: float
    test_images: int
    epochs: int
    cpu_seconds: float
    file: str


@dataclass(frozen=True, kw_only=True)
class Point(Model):
    """A model with its latency as it was measured: batch 1, fp32.

    Attributes:
        p50_ms: median of all runs.
        lowest_ms, highest_ms: of the medians of the rounds.
        cpu, threads, onnxruntime, timm, date: what it was measured on and with, and when.
    """

    p50_ms: float
    lowest_ms: float
    highest_ms: float
    cpu: str
    threads: int
    onnxruntime: str
    timm: str
    date: str

    @property
    def error(self) -> float:
        """Standard error of the test accuracy."""
        return standard_error(self.test_accuracy, self.test_images)

    @classmethod
    def of_row(cls, row: Mapping[str, str]) -> Point:
        """The point of a line of the CSV file."""
        types: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "float | None": _number_or_none}
        return cls(**{field.name: types[str(field.type)](row[field.name]) for field in fields(cls)})


def _number_or_none(text: str) -> float | None:
    return float(text) if text else None


def table(points: Sequence[Point]) -> str:
    """The table of the models, the fastest first."""
    header = ["model", "params", "median latency, ms (measured)", "test accuracy, %", "CPU minutes of training"]
    rows = [
        [
            point.name,
            format_count(point.params),
            f"{point.p50_ms:.3f}",
            f"{100 * point.test_accuracy:.2f} ± {100 * point.error:.2f}",
            f"{point.cpu_seconds / 60:.0f}" + (" (shared)" if point.kind == "found" else ""),
        ]
        for point in sorted(points, key=lambda point: point.p50_ms)
    ]
    return markdown(header, rows)


def comparison(points: Sequence[Point]) -> str:
    """What the numbers say, by a rule: each timm model beside the best found subnet that is as fast, by the search's accuracy."""
    found, alone = ([point for point in points if point.kind == kind] for kind in ("found", "timm"))
    sentences = []
    for model in sorted(alone, key=lambda point: point.p50_ms):
        as_fast = [point for point in found if point.p50_ms <= model.p50_ms]
        if as_fast:
            beside = max(as_fast, key=lambda point: point.search_accuracy or 0.0)
            which = f"the subnet that the search prefers among those that are as fast ({beside.p50_ms:.3f} ms)"
        else:
            beside = min(found, key=lambda point: point.p50_ms)
            which = f"no found subnet is as fast; the fastest one ({beside.p50_ms:.3f} ms)"
        ahead = 100 * (beside.test_accuracy - model.test_accuracy)
        error = 100 * (beside.error**2 + model.error**2) ** 0.5
        more = "more" if ahead > 0 else "less"
        sentences.append(f"{model.name} ({model.p50_ms:.3f} ms): {which} is {abs(ahead):.2f} ± {error:.2f} points {more} accurate.")
    minutes = found[0].cpu_seconds / 60, sum(model.cpu_seconds for model in alone) / 60
    sentences.append(
        f"One training of the supernet took {minutes[0]:.0f} CPU minutes, and gives every subnet of the front. "
        f"The {len(alone)} timm models took {minutes[1]:.0f} CPU minutes together, at both learning rates."
    )
    return "\n".join(f"- {sentence}" for sentence in sentences)


def conditions(points: Sequence[Point]) -> str:
    """What the latencies were measured on."""
    first = points[0]
    return (
        f"Data: {first.data}, {first.test_images:,} test images. "
        f"All trainings have {first.epochs} epochs, one thread and one seed. "
        f"Measured on {first.date}: {first.cpu}, {first.threads} threads, ONNX Runtime {first.onnxruntime}, fp32, batch 1. "
        f"The timm models are of timm {first.timm}."
    )


PARTS: Mapping[str, Callable[[Sequence[Point]], str]] = {"conditions": conditions, "table": table, "comparison": comparison}
"""The parts of docs/EVIDENCE.md that are drawn."""


def draw(points: Sequence[Point]) -> str:
    """The figure as SVG. Its background is white, so that it can be read on dark pages too."""

    def panel(axes: Sequence[Axes]) -> None:
        looks = {
            "found": {"marker": "o", "linestyle": "-", "color": "#2166ac", "label": "subnets found in one growtas supernet"},
            "timm": {"marker": "s", "linestyle": "none", "color": "#b2182b", "label": "timm ViTs, each trained alone"},
        }
        for kind, look in looks.items():
            chosen = sorted((point for point in points if point.kind == kind), key=lambda point: point.p50_ms)
            axes[0].errorbar(
                [point.p50_ms for point in chosen],
                [100 * point.test_accuracy for point in chosen],
                [100 * point.error for point in chosen],
                markersize=5,
                linewidth=1.2,
                capsize=2,
                **look,
            )
            for number, point in enumerate(chosen):
                # Above and below in turns, so that neighbours don't cover each other.
                axes[0].annotate(
                    format_count(point.params), (point.p50_ms, 100 * point.test_accuracy),
                    xytext=(4, 5 if number % 2 else -10), textcoords="offset points", fontsize=7, color=look["color"],
                )  # fmt: skip
        first = points[0]
        axes[0].set_title(
            f"{first.data}, {first.epochs} epochs, {first.test_images:,} test images; small numbers: parameters", fontsize=9
        )
        axes[0].set_xlabel(f"measured latency, ms (median; batch 1, fp32, {first.threads} threads)")
        axes[0].margins(x=0.08)
        axes[0].grid(alpha=0.25, linewidth=0.6)

    return to_svg(panel, 1)


def write_all(points: Sequence[Point], folder: Path, page: Path) -> None:
    """Writes the CSV file, the figure and the parts of the page, each whole or not at all."""
    text = page.read_text(encoding="utf-8")
    texts = {
        folder / "front.csv": to_csv([asdict(point) for point in points], [field.name for field in fields(Point)]),
        folder / "front.svg": draw(points),
        page: replace_parts(text, "front", lambda name: PARTS[name](points)),
    }
    for path, content in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")


def read_points(path: Path) -> list[Point]:
    """The points of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Point.of_row(row) for row in csv.DictReader(file)]
