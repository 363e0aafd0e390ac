"""``make evidence-front``: test accuracy over latency of found subnets, beside timm models that were trained alone.

One supernet of ``micro`` is trained by ``growtas train --data fashion-mnist``. ``growtas search`` looks for a front over
accuracy and latency on this CPU, and some subnets of it are exported. Three Vision Transformers of timm, of the sizes of the
space's smallest, middle and largest subnet, are trained from scratch with the recipe of the supernet, at two learning rates. All
ONNX files are then timed in turns.

Takes one to two hours on two idle cores, and a quarter of an hour with ``--data digits``. It can be stopped: what is finished in
build/front is not made again. ``--prepare`` ends before the timing, which wants a quiet machine. Writes docs/evidence/front.csv,
and from it docs/evidence/front.svg and a part of docs/EVIDENCE.md; ``--draw`` only draws those again.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from growtas import Subnet, api
from growtas.cli.output import Notes
from growtas.costs import count_costs
from growtas.data.evaluation import EvaluationSet, read_search_split, search_set, test_set
from growtas.data.sources import open_data
from growtas.export.benchmark import baselines
from growtas.export.graph.exporter import DEFAULT_OPSET
from growtas.export.open import open_session
from growtas.files import ensure_writable, read_json, write_json
from growtas.runs import Run
from growtas.train.image_loader import make_loader
from growtas.train.optimizer import make_optimizer, make_scheduler
from growtas.train.recipe import Recipe
from tests.evidence.front_page import PARTS, Model, Point, read_points, write_all
from tests.evidence.ledger import FOLDER, REPOSITORY, read_if_whole
from tests.evidence.search_gain import growtas
from tests.evidence.tables import PAGE
from tests.reference import count_correct

DATA = ("fashion-mnist", "digits")
"""What the models can be trained on; the first by default. Digits take minutes, and have only 359 test images."""
WORK = REPOSITORY / "build" / "front"
RATE_FACTORS = (1.0, 1 / 3)
"""Learning rates of the timm models, in those of the recipe. It was chosen for supernets, and a rate must suit the model."""
TRAINING_THREADS = 1
"""A training's CPU seconds are then about its seconds on an idle core."""
SEARCH_IMAGES = 2_000
FOUND = 6
"""Subnets of the front that are exported."""
ROUNDS, SECONDS = 20, 6.0
"""Of the timing: turns of each model, and their length together."""


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
    """A Vision Transformer of timm for micro's images, of the size of a subnet whose blocks are equal."""
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


def best_timm(run: Run, subnet: Subnet, folder: Path) -> Model:
    """A model of timm that was trained with each of RATE_FACTORS; the better one on the search images, with the CPU time of all."""
    recipe, images = Recipe.from_dict(run.info["recipe"]), search_set(run)
    trainings = [trained_timm(run, subnet, replace(recipe, lr=factor * recipe.lr), folder) for factor in RATE_FACTORS]
    cpu_seconds = sum(record["cpu_seconds"] for _, record in trainings)
    file, record = max(trainings, key=lambda training: accuracy_of(training[0], images))
    facts = {**record, "cpu_seconds": cpu_seconds, "search_accuracy": None}
    return _model(run, file, folder, kind="timm", name=f"timm, embed {subnet.embed_dim}, depth {subnet.depth}", **facts)


def trained_timm(run: Run, subnet: Subnet, recipe: Recipe, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A model of timm that was trained on the run's training images with a recipe: its ONNX file, and what is known of it."""
    name = f"timm-{subnet.embed_dim}-{subnet.depth}-{recipe.lr:g}"
    file, record = folder / "timm" / f"{name}.onnx", folder / "timm" / f"{name}.json"
    if not record.is_file():
        torch.manual_seed(recipe.seed)
        model = timm_model(subnet, len(run.info["class_names"]))
        cpu_seconds = train_alone(model, run, recipe, name)
        baselines.export_onnx(name, model, file, DEFAULT_OPSET)
        params = sum(parameter.numel() for parameter in model.parameters())
        write_json(record, {"params": params, "epochs": recipe.epochs, "cpu_seconds": cpu_seconds})
    return file, read_json(record)


def train_alone(model: nn.Module, run: Run, recipe: Recipe, name: str, teacher: nn.Module | None = None) -> float:
    """Trains the whole model in every step, as the run's supernet was trained otherwise; returns the CPU seconds.

    A teacher's soft outputs get the recipe's share of the loss.
    """
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
            logits = model(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(images).softmax(1)
                loss = (1 - recipe.teacher_weight) * loss + recipe.teacher_weight * F.cross_entropy(logits, soft)
            loss.backward()
            optimizer.step()
            losses += loss.item()
            step += 1
        sys.stderr.write(f"{name}: epoch {epoch + 1} of {recipe.epochs}, loss {losses / loader.steps:.3f}\n")
    model.eval()
    return time.process_time() - start


def accuracy_of(file: Path, images: EvaluationSet) -> float:
    """The accuracy of an ONNX file, 0 to 1."""
    with open_session(file, threads=TRAINING_THREADS) as session:
        return count_correct(lambda batch: torch.from_numpy(session.run(batch.numpy())), images) / len(images)


def _model(run: Run, file: Path, folder: Path, **facts: Any) -> Model:
    """A model with its accuracy on the run's test images, computed from its ONNX file."""
    images = test_set(run)
    data = run.info["data"]["name"]
    return Model(
        data=data, test_accuracy=accuracy_of(file, images), test_images=len(images), file=str(file.relative_to(folder)), **facts
    )


def prepared(data: str, folder: Path) -> list[Model]:
    """The models, trained and exported; those of an earlier call where the folder has them."""
    record = folder / "models.json"
    if not record.is_file():
        ensure_writable(folder / "timm")
        run, cpu_seconds = trained_supernet(data, folder)
        sizes = (run.space.smallest, run.space.middle(), run.space.largest)
        alone = [best_timm(run, subnet, folder) for subnet in sizes]
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
