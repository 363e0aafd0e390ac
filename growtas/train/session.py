"""Starts a training run, and resumes one that was stopped."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growtas import __version__
from growtas.checkpoint import save_supernet
from growtas.costs import count_costs
from growtas.data.evaluation import EvaluationSet, cut_search_split, read_search_split, search_indices
from growtas.data.images import Subset
from growtas.data.loaders import cut_batches
from growtas.data.parts import Parts
from growtas.data.preprocess import preprocess_record
from growtas.data.report import DataReport, check_data
from growtas.data.sources import Data, open_data, open_recorded
from growtas.distributed import World, join_world
from growtas.errors import ConfigError, DeviceError, GrowtasError, OutputError, UsageError
from growtas.files import ensure_writable, sha256, sweep, write_json
from growtas.latency.at_hand import devices_at_hand
from growtas.locks import exclusive
from growtas.nn.supernet import Supernet
from growtas.processes import this_process
from growtas.progress import SILENT, Progress
from growtas.runs import Run, check_run_name, create_run, read_metrics
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.events import RunReady
from growtas.train.image_loader import check_memory, make_loader
from growtas.train.initial_weights import InitialWeights
from growtas.train.interrupts import TrainingInterrupts
from growtas.train.monitored_subnets import accuracies_of, subnet_accuracies
from growtas.train.recipe import Recipe
from growtas.train.recipe_file import dump_recipe, read_config
from growtas.train.strategies import make_strategy
from growtas.train.strategies.fixed import Fixed
from growtas.train.teacher import Teacher, absolute_teacher, check_same_teacher, check_teacher, load_teacher
from growtas.train.trainer import Trainer

FREE_ON_RESUME = ("workers", "keep_checkpoints", "save_minutes")
"""Recipe fields that may change when a run is resumed, because the result does not depend on them."""


@dataclass(frozen=True)
class Session:
    """A run that is ready to be trained: all inputs are opened and checked.

    Attributes:
        run: the run and its folder.
        recipe: the recipe of the training.
        data: the opened data set.
        device: device of this process.
        world: the processes of the training.
        report: the check of the data; None for a resumed run and on all processes but 0.
        teacher: the external teacher, or None.
    """

    run: Run
    recipe: Recipe
    data: Data
    device: torch.device
    world: World = World()  # noqa: RUF009 (a frozen value)
    report: DataReport | None = None
    teacher: Teacher | None = None

    def train(self, progress: Progress = SILENT) -> dict[str, Any]:
        """Trains, and measures the monitored subnets (and a fine-tuned model) on the test set.

        Args:
            progress: receives the events of :mod:`growtas.train.events`, on process 0 only.

        Returns:
            The content of ``run.json``.

        Raises:
            UsageError: another process trains the run, or has just finished it.
            TrainingError, DataError: see :class:`growtas.train.trainer.Trainer`.
            KeyboardInterrupt: the training was stopped. The run is marked as interrupted and can be resumed.
        """
        if not self.world.is_main:
            return self._train_and_record(SILENT)
        with _lock(self.run):
            _check_unfinished(self.run)
            for folder in (self.run.path, self.run.path / "checkpoints"):
                sweep(folder)
            self.run.update(state="training", error=None, process=this_process())
            return self._train_and_record(progress)

    def _train_and_record(self, progress: Progress) -> dict[str, Any]:
        main = self.world.is_main
        with TrainingInterrupts(self.world, self.device, progress) as interrupts:
            try:
                final = self._train(progress, interrupts)
            except (KeyboardInterrupt, GrowtasError) as error:
                if main:
                    # A full disk may refuse this too; then the run counts as stopped once this process has ended.
                    with interrupts.held(), contextlib.suppress(OutputError):
                        message = {"error": str(error)} if isinstance(error, GrowtasError) else {}
                        self.run.update(state="interrupted", process=None, **message)
                raise
            if main:
                self.run.update(state="finished", process=None, **final)
        self.world.wait()
        return self.run.info

    def _train(self, progress: Progress, interrupts: TrainingInterrupts) -> dict[str, Any]:
        """Trains and measures on the test set. Returns the final entries of ``run.json``."""
        progress.event(RunReady(self.run, self.recipe, self.data, self.device.type, self.world.size, self.report))
        info = self.run.info
        split, record = read_search_split(self.run, self.data.train), info["preprocess"]
        search = EvaluationSet(Subset(self.data.train, search_indices(split)), record, self.data.class_names)
        monitor = search.subset(self.recipe.monitor_images)
        parts = Parts.of_process(self.world.rank, self.world.size, self.recipe.accumulate)
        loader = make_loader(self.data, split, record, self.recipe, self.device, progress, parts)
        strategy = make_strategy(self.recipe, self.run.space)
        self._measure_teacher(monitor, progress, interrupts)
        trainer = Trainer(
            self.run, self.recipe, strategy, loader, monitor, self.device, interrupts, self.world, progress, self.teacher
        )
        supernet = trainer.train()
        start, subnets, changes = time.perf_counter(), strategy.followed(), info.get("finetune")
        if changes is not None:
            # If the model's blocks differ in size, none of the three monitored subnets is the model, the only one that was trained.
            subnets = {**subnets, "finetuned": Subnet.from_dict(changes["subnet"], source=str(self.run.path / "run.json"))}
        test = EvaluationSet(self.data.test, record, self.data.class_names)
        accuracies = subnet_accuracies(supernet, test, self.device, subnets, self.world, interrupts.check)
        interrupts.finish()
        finetuned = {} if changes is None else {"finetune": {**changes, "test_accuracy": accuracies.pop("finetuned")}}
        # Summed over the lines of the epochs, so that the time before a stop counts too.
        epochs = sum(line.get("seconds") or 0.0 for line in read_metrics(self.run.path))
        return {"test_accuracy": accuracies, "seconds": round(epochs + time.perf_counter() - start, 1), **finetuned}

    def _measure_teacher(self, images: EvaluationSet, progress: Progress, interrupts: TrainingInterrupts) -> None:
        """Measures, records and reports the teacher's accuracy. A resumed run only reports the recorded accuracy."""
        if self.teacher is None:
            return
        record: dict[str, Any] = self.run.info.get("teacher") or self.teacher.record
        teacher = self.teacher.to(self.device)
        if "accuracy" not in record:
            progress.stage("measuring the teacher")
            accuracy = accuracies_of({"teacher": teacher}, images, self.device, self.world, interrupts.check)["teacher"]
            most_frequent = int(images.labels.bincount().max()) / len(images)
            record = {**record, "accuracy": accuracy, "images": len(images), "chance": most_frequent}
            if self.world.is_main:
                self.run.update(teacher=record)
        accuracy, count, chance = record["accuracy"], record["images"], record["chance"]
        progress.note(f"teacher: {record['model']}, accuracy {accuracy:.1%} on {count:,} images of the search split")
        if accuracy < chance + 3 * math.sqrt(chance * (1 - chance) / count):
            what = "is not better than chance" if accuracy <= chance else "is not clearly better than chance"
            progress.note(
                f"warning: the teacher {what} (the most frequent class has {chance:.1%} of these {count:,} images); "
                f"it may have other classes than the data, or the same in another order"
            )


def start_session(
    recipe: Recipe,
    *,
    out: Path,
    name: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
    space: SearchSpace | None = None,
    weights: Callable[[SearchSpace], Supernet] | None = None,
    extra: Mapping[str, Any] | None = None,
    subnet: Mapping[str, Any] | None = None,
) -> Session:
    """Checks the output folder, opens and checks the data, and creates the run.

    Under torchrun every process calls this, and process 0 creates the run. If torchrun restarts the processes because one died,
    the run of this name is resumed.

    Args:
        recipe: the recipe of the training.
        out, name, data_dir, device, progress: as for :func:`growtas.api.train`.
        space: search space in place of the recipe's; its number of classes is replaced by the data's.
        weights: function that makes the initial supernet for a space; by default it comes from the recipe's ``init``, or is random.
        extra: further entries for ``run.json``.
        subnet: content of the run's ``search/subnet.json``, if the run needs no search.

    Raises:
        OutputError: ``out`` can't be written.
        DataError: the data can't be used.
        UsageError: a run of this name exists, or torchrun has ``--max-restarts`` and there is no name.
        CheckpointError: ``init`` can't be read.
        ConfigError: the method's options or ``init`` don't fit the space, or the teacher is unknown.
    """
    recipe = absolute_teacher(recipe)
    check_teacher(recipe)
    chosen = pick_device(device)
    world = join_world(chosen)
    if world.restarts and name is not None and (out / name / "run.json").is_file():
        return resume_session(Run(out / name), data_dir=data_dir, device=device)
    if name is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise UsageError("torchrun --max-restarts needs --name, so that restarted processes find the run")
    created = not out.exists()
    if world.is_main:
        check_run_name(out, name)
        ensure_writable(out)
    try:
        initial = InitialWeights.of(recipe) if weights is None else None
        space = space or recipe.search_space()
        if initial is not None:
            recipe, data_dir = initial.inherit(recipe, data_dir)
        if not world.is_main:
            world.wait()  # until process 0 has downloaded and decoded the files
        data = open_data(recipe.data, data_dir, progress=progress, check_images=world.is_main)
        if world.is_main:
            world.wait()
        if initial is not None and not initial.fits(recipe, len(data.class_names)):
            progress.note(
                f"{recipe.teacher}: the model has {space.num_classes} classes and the data has {len(data.class_names)}, "
                f"so the head starts at random and the training has no teacher"
            )
            recipe = recipe.override({"teacher": None})
        space = space.replace(num_classes=len(data.class_names))
        strategy = make_strategy(recipe, space)
        if subnet is None and isinstance(strategy, Fixed):
            # The subnet may have been read from a file, which may be absent when the training is resumed.
            one = strategy.subnet
            recipe = recipe.override({"method_options": {"subnet": one.to_dict()}})
            subnet = {**one.to_dict(), **asdict(count_costs(space, one)), "space": space.name}
        split = cut_search_split(data, recipe.seed, recipe.search_images)
        record = preprocess_record(space, data, recipe.pixel_range)
        record = initial.preprocess(record) if initial is not None else record
        check_memory(data, record, recipe)
        parts = Parts.of_process(world.rank, world.size, recipe.accumulate)
        steps_per_epoch, _ = cut_batches(len(data.train) - len(split["search"]), recipe.batch_size, parts)
        report = teacher = None
        if world.is_main:
            report = check_data(data, split, record, progress, steps=recipe.epochs * steps_per_epoch)
            teacher = load_teacher(recipe, record, data.class_names)  # downloads and checks it before the run is created
        supernet = weights(space) if weights else initial.supernet(recipe, space.num_classes) if initial else None
    except (GrowtasError, KeyboardInterrupt):
        if created and world.is_main and not any(out.iterdir()):
            out.rmdir()
        raise
    starts_from: dict[str, str] | None = None if supernet is None else {}
    if initial is not None:
        starts_from = {"path": str(initial.path), "sha256": sha256(initial.path)}
    info = {
        "state": "training",
        "space": space.to_dict(),
        "method": recipe.method,
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
        "data": data.record(),
        "preprocess": record,
        "class_names": list(data.class_names),
        "versions": {"growtas": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "machine": devices_at_hand(),
        "starts_from": starts_from,
        **({"teacher": teacher.record} if teacher is not None else {}),
        **(extra or {}),
    }
    path = None
    if world.is_main:

        def write(folder: Path) -> None:
            if supernet is not None:
                save_supernet(folder / "init.safetensors", supernet)
            write_json(folder / "split.json", split)
            if subnet is not None:
                write_json(folder / "search" / "subnet.json", subnet)
            (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
            if report is not None:
                write_json(folder / "data.json", report.to_dict())

        path = str(create_run(out, name, info, write).path)
    created_run = Run(Path(world.share(path)))
    if not world.is_main:
        teacher = load_teacher(recipe, record, data.class_names)  # process 0 has downloaded it
    return Session(created_run, recipe, data, chosen, world, report, teacher)


def resume_session(
    run: Run,
    *,
    config: Path | None = None,
    options: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    device: str = "auto",
) -> Session:
    """Resumes a run that was interrupted or killed.

    Args:
        run: the run.
        config, options: recipe fields from a file, and single fields. They must equal the run's, except :data:`FREE_ON_RESUME` and
            the path of a teacher's weights that were moved.
        data_dir: folder of the data set, if it was moved.
        device: as for :func:`growtas.api.train`.

    Raises:
        ConfigError: an option differs from the run's.
        CheckpointError: the teacher's file is absent, or its weights have changed.
        UsageError: the run is finished, was imported, or is being trained by another process.
        DataError: the images are absent or have changed.
    """
    _check_unfinished(run)
    if not int(os.environ.get("RANK", "0")):
        with _lock(run):  # only to raise before the images are opened; the training takes it again
            pass
    info = run.info
    recipe = Recipe.from_dict(info["recipe"], source=str(run.path / "run.json"))
    given = {**(read_config(config) if config else {}), **(options or {})}
    free: tuple[str, ...] = FREE_ON_RESUME
    if info.get("teacher") is not None:
        free += tuple(key for key in ("teacher", "teacher_checkpoint") if recipe.to_dict()[key] == info["teacher"]["weights"])
    for key, value in recipe.override(given).to_dict().items():
        old = recipe.to_dict()[key]
        if key in given and key not in free and value != old and not _same_folder(key, value, info):
            raise ConfigError(
                f"{run.path}: {key} is {_show(old)} in this run and can't be changed to {_show(value)}; start a new run instead "
                f"(with --init {run.path} it starts from these weights)"
            )
    recipe = absolute_teacher(recipe.override({key: given[key] for key in free if key in given}))
    if info.get("starts_from") is not None and not (run.path / "init.safetensors").exists():
        raise UsageError(f"{run.path}: the run was stopped before its initial weights were saved; start a new run")
    chosen = pick_device(device)
    world = join_world(chosen)
    data = open_recorded(info["data"], data_dir)
    if world.is_main and not (run.path / "split.json").is_file():  # the run was stopped while its first files were written
        write_json(run.path / "split.json", cut_search_split(data, recipe.seed, recipe.search_images))
    world.wait()
    teacher = load_teacher(recipe, info["preprocess"], info["class_names"])
    check_same_teacher(teacher, info.get("teacher"), str(run.path))
    return Session(run, recipe, data, chosen, world, teacher=teacher)


def _lock(run: Run) -> contextlib.AbstractContextManager[None]:
    return exclusive(run.path, "training this run")


def _check_unfinished(run: Run) -> None:
    state = run.info.get("state")
    if state in ("finished", "imported"):
        raise UsageError(f"{run.path}: the run is {state}, so there is nothing to resume; start a new one with `growtas train`")


def pick_device(name: str) -> torch.device:
    """Returns the device for a name: ``cpu``, ``cuda``, or ``auto`` for the GPU if there is one.

    Raises:
        DeviceError: the name is unknown, or torch can't use a GPU here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {name!r}; a training needs auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device that torch can use; train with --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _same_folder(key: str, value: Any, info: Mapping[str, Any]) -> bool:
    """Whether ``value`` is another spelling of the run's data folder."""
    return key == "data" and info["data"]["data_dir"] == str(Path(str(value)).expanduser().absolute())


def _show(value: Any) -> str:
    return "unset" if value is None else str(value)
