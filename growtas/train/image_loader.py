"""Builds the loader of a recipe's training images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from growtas.data.evaluation import search_indices
from growtas.data.images import Subset
from growtas.data.loaders import FileLoader, Loader, MemoryLoader
from growtas.data.parts import Parts
from growtas.data.pixels import MEMORY_LIMIT, Pixels
from growtas.data.preprocess import training_transform
from growtas.data.sources import Data
from growtas.data.split import complement
from growtas.errors import DataError
from growtas.progress import SILENT, Progress
from growtas.resources import available_cpus
from growtas.train.recipe import Recipe


def make_loader(
    data: Data,
    split: Mapping[str, Any],
    record: Mapping[str, Any],
    recipe: Recipe,
    device: torch.device,
    progress: Progress = SILENT,
    parts: Parts = Parts(),  # noqa: B008 (a frozen value)
) -> Loader:
    """Builds the loader of the training images without the search split.

    Args:
        data: the opened data set.
        split: the search split, as in ``split.json``.
        record: the preprocessing, as in ``run.json``.
        recipe: the recipe of the training.
        device: the device of the training.
        progress: receives each stage.
        parts: the parts of each batch that this process loads.

    Raises:
        ConfigError: a batch can't be cut into so many parts.
        DataError: an image is unreadable.
    """
    images = Subset(data.train, complement(search_indices(split), len(data.train)))
    common = {"batch_size": recipe.batch_size, "seed": recipe.seed, "parts": parts}
    if recipe.augment == "paper":
        transform = training_transform(
            record,
            auto_augment=recipe.auto_augment,
            re_prob=recipe.random_erasing,
            hflip=recipe.hflip,
            color_jitter=recipe.color_jitter or None,
        )
        workers = min(recipe.workers, available_cpus())
        on_gpu = device.type == "cuda"
        return FileLoader(images, transform, **common, repeats=recipe.repeated_aug, workers=workers, pin_memory=on_gpu)  # type: ignore[arg-type]
    pixels = Pixels(images, record).load_all(progress, "decoding training images")
    light = {"crop_padding": recipe.crop_padding, "hflip": recipe.hflip} if recipe.augment == "light" else {}
    return MemoryLoader(pixels, images.labels, record, **common, **light)  # type: ignore[arg-type]


def check_memory(data: Data, record: Mapping[str, Any], recipe: Recipe) -> None:
    """Checks that the images fit in memory, if the recipe's augmentation keeps them there.

    Raises:
        DataError: they exceed the limit.
    """
    size = Pixels(data.train, record).size if recipe.augment != "paper" else 0
    if size > MEMORY_LIMIT:
        raise DataError(
            f"{data.data_dir or data.name}: {len(data.train)} images of {record['image_size']} px take {size / 1e9:.1f} GB, "
            f"but augment: {recipe.augment} keeps at most {MEMORY_LIMIT / 1e9:g} GB in memory; "
            f"set augment: paper in a --config file"
        )
