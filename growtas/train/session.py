"""Starting a training run, and continuing one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growtas import __version__
from growtas.data.evaluation import EvaluationSet, cut_search_split, search_indices
from growtas.data.images import Subset, Track, silent
from growtas.data.loaders import FileLoader, Loader, MemoryLoader
from growtas.data.pixels import MEMORY_LIMIT, Pixels
from growtas.data.preprocess import preprocess_record, training_transform
from growtas.data.sources import Data, open_data
from growtas.data.split import complement
from growtas.errors import ConfigError, DataError, DeviceError, GrowtasError, UsageError
from growtas.files import ensure_writable, read_json, read_json_lines, write_json
from growtas.runs import Run, check_run_name, create_run
from growtas.space import load_space
from growtas.train.config import read_config
from growtas.train.recipe import Recipe
from growtas.train.strategies import make_strategy
from growtas.train.trainer import Observer, Trainer, subnet_accuracies

FREE_ON_RESUME = ("workers",)
"""Recipe fields that may change when a run is continued, because the result doesn't hang on them."""


@dataclass(frozen=True)
class Session:
    """A run that is ready to be trained: everything is opened and checked.

    Attributes:
        run: its folder.
        recipe: what will be done.
        data: the opened data set.
        device: where it will be done.
    """

    run: Run
    recipe: Recipe
    data: Data
    device: torch.device

    def train(self, observer: Observer | None = None, track: Track[Any] = silent) -> dict[str, Any]:
        """Train, measure the three subnets on the test set, and return the run's final entries.

        Raises:
            TrainingError, DataError: see :class:`growtas.train.trainer.Trainer`.
            KeyboardInterrupt: stopped; the run's state says so, and it can be resumed.
        """
        self.run.update(state="training")
        try:
            split = read_json(self.run.path / "split.json", "search split")
            record = self.run.info["preprocess"]
            search = Subset(self.data.train, search_indices(split))
            monitor = EvaluationSet(search, record, self.data.class_names).subset(self.recipe.monitor_images)
            loader = make_loader(self.data, split, record, self.recipe, self.device, track)
            strategy = make_strategy(self.recipe, self.run.space)
            supernet = Trainer(self.run, self.recipe, strategy, loader, monitor, self.device, observer).train()
            start = time.perf_counter()
            test = EvaluationSet(self.data.test, record, self.data.class_names)
            accuracies = subnet_accuracies(supernet, test, self.device)
        except (KeyboardInterrupt, GrowtasError):
            self.run.update(state="interrupted")
            raise
        # From the epochs' own lines, so that a run that was stopped and continued counts them all.
        epochs = sum(line["seconds"] for line in read_json_lines(self.run.path / "metrics.jsonl"))
        seconds = epochs + time.perf_counter() - start
        self.run.update(state="finished", test_accuracy=accuracies, seconds=round(seconds, 1))
        return self.run.info


def start_session(
    recipe: Recipe,
    *,
    out: Path,
    name: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    track: Track[Any] = silent,
) -> Session:
    """Check the output folder, open and check the data, and create the run.

    Raises:
        OutputError: ``out`` can't be written.
        DataError: the data can't be used.
        UsageError: a run of this name exists.
    """
    chosen = pick_device(device)
    check_run_name(out, name)
    created = not out.exists()
    ensure_writable(out)
    try:
        space = load_space(recipe.space)
        data = open_data(recipe.data, data_dir, track=track, check_images=True)
        space = space.replace(num_classes=len(data.class_names))
        split = cut_search_split(data, recipe.seed, recipe.search_images)
        record = preprocess_record(space, data)
        _check_memory(data, record, recipe)
    except (GrowtasError, KeyboardInterrupt):
        if created and not any(out.iterdir()):
            out.rmdir()
        raise
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
    }
    run = create_run(out, name, info)
    write_json(run.path / "split.json", split)
    return Session(run, recipe, data, chosen)


def resume_session(
    run: Run,
    *,
    config: Path | None = None,
    options: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    device: str = "auto",
) -> Session:
    """Continue a run that was interrupted or killed.

    Args:
        options: recipe fields given anew; they must be the run's own, but for those of :data:`FREE_ON_RESUME`.

    Raises:
        ConfigError: an option differs from the run's.
        UsageError: the run is finished or was not trained here.
        DataError: the images are absent or changed.
    """
    info = run.info
    if info["state"] in ("finished", "imported"):
        raise UsageError(
            f"{run.path}: the run is {info['state']}, there is nothing to resume; start a new one with `growtas train`"
        )
    recipe = Recipe.from_dict(info["recipe"], source=str(run.path / "run.json"))
    given = {**(read_config(config) if config else {}), **(options or {})}
    for key, value in recipe.override(given).to_dict().items():
        old = recipe.to_dict()[key]
        if key in given and key not in FREE_ON_RESUME and value != old and not _same_folder(key, value, info):
            raise ConfigError(
                f"{run.path}: {key} is {_show(old)} in this run and can't become {_show(value)}; start a new run for that"
            )
    recipe = recipe.override({key: given[key] for key in FREE_ON_RESUME if key in given})
    data = open_data(info["data"]["name"], data_dir or info["data"]["data_dir"])
    data.check_unchanged(info["data"])
    if not (run.path / "split.json").is_file():  # stopped between the run's first two files
        write_json(run.path / "split.json", cut_search_split(data, recipe.seed, recipe.search_images))
    return Session(run, recipe, data, pick_device(device))


def pick_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, or with ``auto`` the GPU where there is one.

    Raises:
        DeviceError: an unknown name, or no GPU that torch can use.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {name!r}; legal for training are auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device that torch can use; train with --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def make_loader(
    data: Data,
    split: Mapping[str, Any],
    record: Mapping[str, Any],
    recipe: Recipe,
    device: torch.device,
    track: Track[Any] = silent,
) -> Loader:
    """The training images without the search split, in batches.

    Raises:
        DataError: an image is unreadable.
    """
    images = Subset(data.train, complement(search_indices(split), len(data.train)))
    common = {"batch_size": recipe.batch_size, "seed": recipe.seed}
    if recipe.augment == "paper":
        transform = training_transform(
            record,
            auto_augment=recipe.auto_augment,
            re_prob=recipe.random_erasing,
            hflip=recipe.hflip,
            color_jitter=recipe.color_jitter or None,
        )
        on_gpu = device.type == "cuda"
        return FileLoader(images, transform, **common, repeats=recipe.repeated_aug, workers=recipe.workers, pin_memory=on_gpu)
    pixels = Pixels(images, record).load_all(track, "decoding training images")
    light = {"crop_padding": recipe.crop_padding, "hflip": recipe.hflip} if recipe.augment == "light" else {}
    return MemoryLoader(pixels, images.labels, record, **common, **light)  # type: ignore[arg-type]


def _check_memory(data: Data, record: Mapping[str, Any], recipe: Recipe) -> None:
    size = Pixels(data.train, record).size if recipe.augment != "paper" else 0
    if size > MEMORY_LIMIT:
        raise DataError(
            f"{data.data_dir or data.name}: {len(data.train)} images of {record['image_size']} px are {size / 1e9:.1f} GB, "
            f"and augment: {recipe.augment} holds at most {MEMORY_LIMIT / 1e9:g} GB in memory; "
            f"set augment: paper in a --config file"
        )


def _same_folder(key: str, value: Any, info: Mapping[str, Any]) -> bool:
    """Whether a data folder is only written another way than in the run."""
    return key == "data" and info["data"]["data_dir"] == str(Path(str(value)).expanduser().absolute())


def _show(value: Any) -> str:
    return "unset" if value is None else str(value)
