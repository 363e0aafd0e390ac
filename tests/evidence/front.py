"""``make evidence-front``: test accuracy over latency of subnets that a search found, beside timm models that were trained alone.

One supernet of ``micro`` is trained by ``growtas train --data fashion-mnist``. ``growtas search`` looks for a front over accuracy and
latency on this CPU, and some subnets of it are exported. Three Vision Transformers of timm, of the sizes of the space's smallest,
middle and largest subnet, are trained from scratch with the recipe of the supernet. All ONNX files are then timed in turns.

Takes about an hour on two idle cores, and minutes with ``--data digits``. It can be stopped: whatever is finished in build/front is
not made again. ``--prepare`` ends before the timing, which wants a quiet machine. Writes docs/evidence/front.csv, and from it docs/evidence/front.svg and a part of
docs/EVIDENCE.md; ``--draw`` only draws those again.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from growtas import Subnet, api
from growtas.cli.output import Notes
from growtas.costs import count_costs
from growtas.data.evaluation import read_search_split, test_set
from growtas.data.sources import open_data
from growtas.export.benchmark import baselines
from growtas.export.graph.exporter import DEFAULT_OPSET
from growtas.export.open import open_session
from growtas.files import ensure_writable, read_json, replacing, write_json
from growtas.runs import Run
from growtas.train.image_loader import make_loader
from growtas.train.optimizer import make_optimizer, make_scheduler
from growtas.train.recipe import Recipe
from growtas.units import format_count, standard_error
from tests.evidence.ledger import FOLDER, REPOSITORY, read_if_whole
from tests.evidence.search_gain import growtas
from tests.evidence.tables import PAGE, markdown, replace_parts, to_csv, to_svg
from tests.reference import count_correct

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DATA = ("fashion-mnist", "digits")
"""What the models can be trained on; the first by default. Digits take minutes, and have only 359 test images."""
WORK = REPOSITORY / "build" / "front"
TRAINING_THREADS = 1
"""A training's CPU seconds are then about its seconds on an idle core."""
SEARCH_IMAGES = 2_000
FOUND = 6
"""Subnets of the front that are exported."""
ROUNDS, SECONDS = 20, 6.0
"""Of the timing: turns of each model, and their length together."""


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
        epochs: of its training; ``cpu_seconds``: what that took. All found subnets share one training.
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


def trained_supernet(data: str, folder: Path) -> tuple[Run, float]:
    """The finished run of the supernet, and the CPU seconds that its training took."""
    run, record = Run(folder / "supernet"), folder / "supernet.json"
    begun = (run.path / "run.json").is_file()
    if not begun or run.info["state"] != "finished":
        new = ("--data", data, "--out", str(folder), "--name", run.path.name)
        start, before = _children_seconds(), (read_if_whole(record) or {}).get("cpu_seconds", 0.0)
        try:
            arguments = ("--resume", str(run.path)) if begun else new
            growtas("train", *arguments, "--device", "cpu", cwd=folder, threads=TRAINING_THREADS)
        finally:
            write_json(record, {"cpu_seconds": before + _children_seconds() - start})
    return run, float(read_json(record)["cpu_seconds"])


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def found_subnets(run: Run, folder: Path, cpu_seconds: float) -> list[Model]:
    """Some subnets of a searched front, exported."""
    front = run.path / "search" / "front.json"
    if not front.is_file():
        growtas(
            "search", str(run.path), "--objective", "pareto", "--device", "cpu", "--limit-images", str(SEARCH_IMAGES), cwd=folder
        )
    models = []
    for number, entry in enumerate(choose(read_json(front)["subnets"], FOUND), 1):
        subnet = Subnet.from_dict(entry["subnet"])
        exported = api.export(run, subnet, out=folder / "found", name=f"found-{number}", progress=Notes())
        models.append(
            _model(
                run,
                exported[-1].path,
                folder,
                kind="found",
                name=f"found, embed {subnet.embed_dim}, depth {subnet.depth}",
                params=count_costs(run.space, subnet).params,
                search_accuracy=entry["accuracy"],
                epochs=run.info["recipe"]["epochs"],
                cpu_seconds=cpu_seconds,
            )
        )
    return models


def choose(front: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Subnets of a front, spread evenly over its latencies: both ends, and those that are nearest to the places between.

    Args:
        front: the subnets of ``front.json``; their first latency counts.
        count: how many; fewer where the front has fewer, or two places have the same nearest subnet.
    """

    def latency(entry: Mapping[str, Any]) -> float:
        return float(entry["latencies"][0]["predicted"]["ms"])

    places = np.linspace(min(map(latency, front)), max(map(latency, front)), count)
    nearest = {min(range(len(front)), key=lambda i: abs(latency(front[i]) - place)) for place in places}
    return sorted((front[index] for index in nearest), key=latency)


def timm_model(subnet: Subnet, classes: int) -> nn.Module:
    """A Vision Transformer of timm for micro's images, with the width, depth, heads and MLP ratio of a subnet whose blocks are equal."""
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=28,
        patch_size=4,
        embed_dim=subnet.embed_dim,
        depth=subnet.depth,
        num_heads=subnet.num_heads[0],
        mlp_ratio=subnet.mlp_ratio[0],
        num_classes=classes,
        pretrained_cfg_overlay={"input_size": (3, 28, 28)},
    )


def trained_timm(run: Run, subnet: Subnet, folder: Path) -> Model:
    """A model of timm that was trained on the run's training images with the run's recipe, and exported."""
    name = f"timm-{subnet.embed_dim}-{subnet.depth}"
    file, record = folder / "timm" / f"{name}.onnx", folder / "timm" / f"{name}.json"
    if not record.is_file():
        recipe = Recipe.from_dict(run.info["recipe"])
        torch.manual_seed(recipe.seed)
        model = timm_model(subnet, len(run.info["class_names"]))
        cpu_seconds = train_alone(model, run, recipe, name)
        baselines.export_onnx(name, model, file, DEFAULT_OPSET)
        params = sum(parameter.numel() for parameter in model.parameters())
        write_json(record, {"params": params, "epochs": recipe.epochs, "cpu_seconds": cpu_seconds})
    label = f"timm, embed {subnet.embed_dim}, depth {subnet.depth}"
    return _model(run, file, folder, kind="timm", name=label, search_accuracy=None, **read_json(record))


def train_alone(model: nn.Module, run: Run, recipe: Recipe, name: str) -> float:
    """Trains a model as the run's supernet was trained, all of it in every step; returns the CPU seconds. It is left in eval mode."""
    data = open_data(recipe.data, run.info["data"]["data_dir"])
    loader = make_loader(data, read_search_split(run, data.train), run.info["preprocess"], recipe, torch.device("cpu"))
    optimizer = make_optimizer(model, recipe)
    scheduler = make_scheduler(optimizer, recipe, loader.steps)
    torch.set_num_threads(TRAINING_THREADS)
    model.train()
    start, step = time.process_time(), 0
    for epoch in range(recipe.epochs):
        losses = 0.0
        for images, labels in loader.batches(epoch):
            scheduler.step_update(step)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimizer.step()
            losses += loss.item()
            step += 1
        sys.stderr.write(f"{name}: epoch {epoch + 1} of {recipe.epochs}, loss {losses / loader.steps:.3f}\n")
    model.eval()
    return time.process_time() - start


def _model(run: Run, file: Path, folder: Path, **facts: Any) -> Model:
    """A model with its accuracy on the run's test images, computed from its ONNX file."""
    images = test_set(run)
    with open_session(file, threads=TRAINING_THREADS) as session:
        correct = count_correct(lambda batch: torch.from_numpy(session.run(batch.numpy())), images)
    data = run.info["data"]["name"]
    return Model(
        data=data, test_accuracy=correct / len(images), test_images=len(images), file=str(file.relative_to(folder)), **facts
    )


def prepared(data: str, folder: Path) -> list[Model]:
    """The models, trained and exported; those of an earlier call where the folder has them."""
    record = folder / "models.json"
    if not record.is_file():
        ensure_writable(folder / "timm")
        run, cpu_seconds = trained_supernet(data, folder)
        sizes = (run.space.smallest, run.space.middle(), run.space.largest)
        alone = [trained_timm(run, subnet, folder) for subnet in sizes]
        write_json(record, [asdict(model) for model in (*found_subnets(run, folder, cpu_seconds), *alone)])
    return [Model(**entry) for entry in read_json(record)]


def measured(models: Sequence[Model], folder: Path) -> list[Point]:
    """The models' ONNX files, timed in turns."""
    report = api.bench(
        [folder / model.file for model in models],
        batches=(1,),
        rounds=ROUNDS,
        seconds=SECONDS,
        roofline=False,
        out=folder / "bench.json",
        progress=Notes(),
    )
    timings = {artifact.path: artifact.results[0] for artifact in report.artifacts}
    points = []
    for model in models:
        timing = timings[folder / model.file]
        points.append(
            Point(
                **asdict(model),
                p50_ms=round(timing.p50_ms, 4),
                lowest_ms=round(min(timing.p50_ms_of_rounds), 4),
                highest_ms=round(max(timing.p50_ms_of_rounds), 4),
                cpu=report.environment["cpu"],
                threads=timing.threads,
                onnxruntime=timing.runtime_version,
                timm=timm.__version__,
                date=datetime.date.today().isoformat(),
            )
        )
    return points


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
        subject = f"{model.name} ({model.p50_ms:.3f} ms)"
        if not as_fast:
            sentences.append(f"{subject}: no found subnet is as fast.")
            continue
        best = max(as_fast, key=lambda point: point.search_accuracy or 0.0)
        points_ahead, error = 100 * (best.test_accuracy - model.test_accuracy), 100 * (best.error**2 + model.error**2) ** 0.5
        sentences.append(
            f"{subject}: the subnet that the search prefers among those that are as fast ({best.p50_ms:.3f} ms) is "
            f"{abs(points_ahead):.2f} ± {error:.2f} points {'more' if points_ahead > 0 else 'less'} accurate."
        )
    minutes = found[0].cpu_seconds / 60, sum(model.cpu_seconds for model in alone) / 60
    sentences.append(
        f"One training of the supernet took {minutes[0]:.0f} CPU minutes, and gives every subnet of the front. "
        f"The {len(alone)} trainings of the timm models took {minutes[1]:.0f} CPU minutes together."
    )
    return "\n".join(f"- {sentence}" for sentence in sentences)


def conditions(points: Sequence[Point]) -> str:
    """What the latencies were measured on."""
    first = points[0]
    return (
        f"Data: {first.data}, {first.test_images:,} test images. All trainings have {first.epochs} epochs, one thread and one seed. "
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
            for point in chosen:
                axes[0].annotate(
                    format_count(point.params), (point.p50_ms, 100 * point.test_accuracy), xytext=(5, -9),
                    textcoords="offset points", fontsize=7, color=look["color"],
                )  # fmt: skip
        first = points[0]
        axes[0].set_title(f"{first.data}, {first.epochs} epochs each; labels: parameters", fontsize=9)
        axes[0].set_xlabel(f"measured latency, ms (median; batch 1, fp32, {first.threads} threads)")
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


def main() -> None:
    """Trains, searches, measures and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default=DATA[0], help="what the models are trained on")
    parser.add_argument("--prepare", action="store_true", help="train, search and export; time nothing")
    parser.add_argument("--draw", action="store_true", help="draw the figure and the table again; measure nothing")
    options = parser.parse_args()
    if options.draw:
        points = read_points(FOLDER / "front.csv")
    else:
        folder = WORK / options.data
        models = prepared(options.data, folder)
        if options.prepare:
            return
        points = measured(models, folder)
    write_all(points, FOLDER, PAGE)
    sys.stdout.write("\n\n".join(part(points) for part in PARTS.values()) + "\n")


if __name__ == "__main__":
    main()
