"""How long a training waits for its images."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch

from growtas.data.evaluation import cut_search_split
from growtas.data.images import ArraySet
from growtas.data.preprocess import preprocess_record
from growtas.data.sources import FASHION_MNIST_FOLDER, Data, open_data
from growtas.distributed import World
from growtas.nn.supernet import Supernet
from growtas.space import load_space
from growtas.train.clock import Clock
from growtas.train.image_loader import make_loader
from growtas.train.recipe import Recipe
from growtas.train.recipes import fashion_mnist_micro
from growtas.train.step import Stepper, Training
from growtas.train.strategies import make_strategy
from tests.benchmarks.timing import Entry

STEPS, SKIPPED, ROUNDS = 150, 20, 3


def fashion_mnist() -> tuple[Data, str]:
    """Fashion-MNIST where it is installed, else noise of the same number and size."""
    if FASHION_MNIST_FOLDER.is_dir():
        return open_data("fashion-mnist"), "Fashion-MNIST"
    rng = np.random.default_rng(0)
    images = ArraySet(rng.integers(0, 256, (60_000, 28, 28), np.uint8), rng.integers(0, 10, 60_000), "noise")
    return Data("noise", None, images, images, tuple("0123456789"), (0.5,) * 3, (0.5,) * 3), "noise of Fashion-MNIST's size"


def waiting(recipe: Recipe, data: Data) -> float:
    """Seconds of waiting for a batch over seconds of a step, in one epoch's first steps."""
    space = load_space(recipe.space).replace(num_classes=len(data.class_names))
    record, device = preprocess_record(space, data), torch.device("cpu")
    loader = make_loader(data, cut_search_split(data, 0), record, recipe, device)
    supernet, strategy = Supernet(space), make_strategy(recipe, space)
    stepper = Stepper(Training.of(supernet, recipe, device), recipe, World(), device)
    waited = worked = 0.0
    batches = loader.batches(0)
    for step in range(STEPS):
        start = time.perf_counter()
        batch = next(batches)
        middle = time.perf_counter()
        stepper(step, batch, strategy.draw(step, 0.0), Clock(device))
        if step >= SKIPPED:  # the first batches wait for the workers to start
            waited, worked = waited + middle - start, worked + time.perf_counter() - middle
    batches.close()  # type: ignore[attr-defined]
    return waited / worked


def data_loading() -> Iterator[Entry]:
    """The recipe for Fashion-MNIST, whose images lie in memory; and timm's transforms image by image, in two workers."""
    data, name = fashion_mnist()
    recipe = dataclasses.replace(fashion_mnist_micro(), method="uniform", transitions=None)
    heavy = dataclasses.replace(recipe, augment="paper", auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25, workers=2)
    for label, chosen in (("images in memory", recipe), ("2 workers", heavy)):
        shares = [waiting(chosen, data) for _ in range(ROUNDS)]
        detail = f"{name}, micro, batch {chosen.batch_size}; rounds {', '.join(f'{share:.3f}' for share in shares)}"
        yield Entry(f"waiting for data / step, {label}", statistics.median(shares), 0.05, detail)
