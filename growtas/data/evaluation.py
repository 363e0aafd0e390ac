"""The images that accuracy is measured on: the search split and the test set of a run."""

from __future__ import annotations

import contextlib
import copy
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growtas.data.images import ImageSet, Subset, listed
from growtas.data.pixels import Pixels
from growtas.data.preprocess import normalise
from growtas.data.sources import Data, open_data, open_recorded
from growtas.data.split import stratified_split
from growtas.errors import CheckpointError, DataError
from growtas.files import read_json
from growtas.runs import Run

SEARCH_IMAGES = 10_000
"""Images of the search split, as in the paper (Section 3.3); at most a fifth of the training set."""


class EvaluationSet:
    """Preprocessed images with labels; an image is decoded at its first use and stays in memory where all images fit.

    Args:
        images: the images.
        record: the preprocessing.
        class_names: a name for each label.
    """

    def __init__(self, images: ImageSet, record: Mapping[str, Any], class_names: tuple[str, ...]) -> None:
        self._images, self._record = images, record
        self._pixels = Pixels(images, record)
        self.labels: Tensor = torch.from_numpy(np.array(images.labels, np.int64))
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop - 1``: float32 ``(n, in_chans, image_size, image_size)``.

        Raises:
            DataError: an image is unreadable; the message names it.
        """
        return self.take(np.arange(*slice(start, stop).indices(len(self))))

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Images picked by position, ``(len(indices), in_chans, image_size, image_size)``; as :meth:`images` otherwise."""
        return normalise(self._pixels.take(indices), self._record)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, ``batch_size`` at a time, with their labels."""
        for start in range(0, len(self), batch_size):
            yield self.images(start, start + batch_size), self.labels[start : start + batch_size]

    def labelled_as(self, class_names: Sequence[str]) -> EvaluationSet:
        """The same images with the labels that a network with these classes gives them.

        Raises:
            DataError: the classes are others.
        """
        if tuple(class_names) == self.class_names:
            return self
        wanted, own = ([unicodedata.normalize("NFC", name) for name in names] for names in (class_names, self.class_names))
        absent = sorted(set(own) ^ set(wanted))
        if absent:
            raise DataError(
                f"the images' classes ({listed(self.class_names, 3)}) are not those that the run was trained on "
                f"({listed(class_names, 3)}), so accuracies on them mean nothing; {absent[0]} is in one of them only"
            )
        changed = copy.copy(self)  # with the pixels that are decoded already
        changed.class_names = tuple(class_names)
        changed.labels = torch.tensor([wanted.index(name) for name in own])[self.labels]
        return changed

    def subset(self, count: int) -> EvaluationSet:
        """A stratified part of at most ``count`` images, the same at every call."""
        if count >= len(self):
            return self
        indices = stratified_split(self.labels.numpy(), count, np.random.default_rng(0), leave=0)
        part = EvaluationSet(Subset(self._images, indices), self._record, self.class_names)
        part.labels = self.labels[torch.from_numpy(indices)]
        return part


SPLIT_JSON = """``split.json``: the training images that are set aside for the search.

Fields:
    seed (whole number): The recipe's seed, by which they were drawn.
    search (list of whole numbers): Indices of the images in the training set, counted from 0 and ascending.
    train_size (whole number): Images of the training set, those of the search among them.
    per_class (object): How many images of each class are set aside, by the class's name.
"""


def cut_search_split(data: Data, seed: int, count: int = SEARCH_IMAGES) -> dict[str, Any]:
    """The search split of a data set as ``split.json`` holds it: stratified, from the training images only.

    Args:
        count: images wanted; at most a fifth of the training set is taken.

    Raises:
        DataError: there are too few training images.
    """
    size = len(data.train)
    indices = stratified_split(data.train.labels, min(count, size // 5), np.random.default_rng(seed))
    if not len(indices):
        raise DataError(
            f"{data.data_dir or data.name}: {size} training images are too few to set some aside for the search; have 5 or more"
        )
    counts = np.bincount(data.train.labels[indices], minlength=len(data.class_names)).tolist()
    return {
        "seed": seed,
        "search": indices.tolist(),
        "train_size": size,
        "per_class": dict(zip(data.class_names, counts, strict=True)),
    }


def read_search_split(run: Run, train: ImageSet) -> dict[str, Any]:
    """The search split in a run's folder.

    Raises:
        CheckpointError: ``split.json`` can't be read, or doesn't hold different indices of ``train``, the training images.
    """
    path = run.path / "split.json"
    split = read_json(path, "search split")
    indices = split.get("search") if isinstance(split, dict) else None
    if (
        not isinstance(indices, list)
        or not all(type(index) is int and 0 <= index < len(train) for index in indices)
        or not 0 < len(set(indices)) == len(indices)
    ):
        raise CheckpointError(
            f"{path}: the search split must be an object whose 'search' is a list of different numbers from 0 to {len(train) - 1}, "
            "the training images that the search uses"
        )
    return dict(split)


def search_indices(split: Mapping[str, Any]) -> NDArray[np.int64]:
    """Indices into the training set of a split's search images."""
    return np.asarray(split["search"], np.int64)


def search_set(run: Run, *, data: str | None = None, data_dir: str | Path | None = None) -> EvaluationSet:
    """The search split of a run, which its training did not see.

    Args:
        data, data_dir: other images than the run's; an imported run has none, and needs them. Where the data set is not the one
            that was trained on, a split is cut from its training images.

    Raises:
        DataError: the images are absent, changed, or have another number of classes.
        CheckpointError: the run's split can't be read.
    """
    opened, same = _open(run, data, data_dir)
    recorded = same and (run.path / "split.json").is_file()
    split = read_search_split(run, opened.train) if recorded else cut_search_split(opened, 0)
    return EvaluationSet(Subset(opened.train, search_indices(split)), run.info["preprocess"], opened.class_names)


def test_set(run: Run, *, data: str | None = None, data_dir: str | Path | None = None) -> EvaluationSet:  # noqa: PT028 (no test)
    """The run's test images; arguments and errors as for :func:`search_set`."""
    opened, _ = _open(run, data, data_dir)
    return EvaluationSet(opened.test, run.info["preprocess"], opened.class_names)


# pytest collects functions called test_* from the modules that import them.
test_set.__test__ = False  # type: ignore[attr-defined]


def _open(run: Run, data: str | None, data_dir: str | Path | None) -> tuple[Data, bool]:
    """The data set, and whether it is the one that the run was trained on."""
    record = run.info["data"]
    if record is None and data is None:
        raise DataError(f"{run.path}: the run was imported and records no images; name some with --data (and --data-dir)")
    opened = open_recorded(record, data_dir) if data is None else _other_data(data, data_dir, record)
    classes = run.space.num_classes
    if len(opened.class_names) != classes:
        where = opened.data_dir or opened.name
        raise DataError(f"{where}: {len(opened.class_names)} classes, but the run {run.path} has {classes}")
    return opened, record is not None and opened.record()["sha256"] == record.get("sha256")


def _other_data(name: str, data_dir: str | Path | None, record: Mapping[str, Any] | None) -> Data:
    """A data set that was named, by the rules of the run where it turns out to be the run's own."""
    opened = open_data(name, data_dir)
    if record is not None and opened.rules != record.get("rules", 1) and opened.name == record["name"] == "folder":
        with contextlib.suppress(DataError):
            return open_recorded(record, opened.data_dir)
    return opened
