"""The images on which accuracy is evaluated: the search split and the test set of a run."""

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
"""Number of images of the search split, as in the paper (Section 3.3); at most a fifth of the training set."""


class EvaluationSet:
    """Preprocessed images with labels. An image is decoded at its first use, and kept in memory if all images fit.

    Args:
        images: the images.
        record: the preprocessing record.
        class_names: the class name of each label.
    """

    def __init__(self, images: ImageSet, record: Mapping[str, Any], class_names: tuple[str, ...]) -> None:
        self._images, self._record = images, record
        self._pixels = Pixels(images, record)
        self.labels: Tensor = torch.from_numpy(np.array(images.labels, np.int64))
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, start: int, stop: int) -> Tensor:
        """Returns images ``start`` to ``stop - 1``: float32 ``(n, in_chans, image_size, image_size)``, normalised.

        Raises:
            DataError: An image can't be read; the message names it.
        """
        return self.take(np.arange(*slice(start, stop).indices(len(self))))

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Returns the images at some indices, ``(len(indices), in_chans, image_size, image_size)``; see :meth:`images`."""
        return normalise(self._pixels.take(indices), self._record)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all images with their labels, in order, in batches of ``batch_size``."""
        for start in range(0, len(self), batch_size):
            yield self.images(start, start + batch_size), self.labels[start : start + batch_size]

    def labelled_as(self, class_names: Sequence[str]) -> EvaluationSet:
        """Returns the same images with labels in the order of a network's classes.

        Raises:
            DataError: The network has other classes.
        """
        if tuple(class_names) == self.class_names:
            return self
        wanted, names = ([unicodedata.normalize("NFC", name) for name in part] for part in (class_names, self.class_names))
        absent = sorted(set(names) ^ set(wanted))
        if absent:
            raise DataError(
                f"the classes of the images ({listed(self.class_names, 3)}) are not those of the run's training "
                f"({listed(class_names, 3)}), so an accuracy would be meaningless; only one of them has {absent[0]}"
            )
        changed = copy.copy(self)  # keeps the decoded pixels
        changed.class_names = tuple(class_names)
        changed.labels = torch.tensor([wanted.index(name) for name in names])[self.labels]
        return changed

    def subset(self, count: int) -> EvaluationSet:
        """Returns a stratified part of at most ``count`` images, the same at every call."""
        if count >= len(self):
            return self
        indices = stratified_split(self.labels.numpy(), count, np.random.default_rng(0), leave=0)
        part = EvaluationSet(Subset(self._images, indices), self._record, self.class_names)
        part.labels = self.labels[torch.from_numpy(indices)]
        return part


def cut_search_split(data: Data, seed: int, count: int = SEARCH_IMAGES) -> dict[str, Any]:
    """Makes the search split of a data set, the content of ``split.json``: a stratified part of the training images.

    Args:
        data: the data set.
        seed: seed of the random choice.
        count: number of images; at most a fifth of the training set is taken.

    Raises:
        DataError: There are too few training images.
    """
    size = len(data.train)
    indices = stratified_split(data.train.labels, min(count, size // 5), np.random.default_rng(seed))
    if not len(indices):
        raise DataError(
            f"{data.data_dir or data.name}: {size} training images are too few for a search split; at least 5 are needed"
        )
    counts = np.bincount(data.train.labels[indices], minlength=len(data.class_names)).tolist()
    return {
        "seed": seed,
        "search": indices.tolist(),
        "train_size": size,
        "per_class": dict(zip(data.class_names, counts, strict=True)),
    }


def read_search_split(run: Run, train: ImageSet) -> dict[str, Any]:
    """Reads the search split, ``split.json``, of a run.

    Args:
        run: the run.
        train: the training images.

    Raises:
        CheckpointError: ``split.json`` can't be read, or doesn't hold different indices of training images.
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
            "the indices of the search's training images"
        )
    return dict(split)


def search_indices(split: Mapping[str, Any]) -> NDArray[np.int64]:
    """Returns the indices of the search images in the training set."""
    return np.asarray(split["search"], np.int64)


def search_set(run: Run, *, data: str | None = None, data_dir: str | Path | None = None) -> EvaluationSet:
    """Opens the search split of a run: images that its training did not use.

    Args:
        run: the run.
        data: name of another data set, which an imported run needs. If it is not the set that the run was trained on, a new split
            of its training images is made.
        data_dir: folder of the data set.

    Raises:
        DataError: The images are missing, have changed, or have another number of classes.
        CheckpointError: The run's split can't be read.
    """
    opened, same = _open(run, data, data_dir)
    recorded = same and (run.path / "split.json").is_file()
    split = read_search_split(run, opened.train) if recorded else cut_search_split(opened, 0)
    return EvaluationSet(Subset(opened.train, search_indices(split)), run.info["preprocess"], opened.class_names)


def test_set(run: Run, *, data: str | None = None, data_dir: str | Path | None = None) -> EvaluationSet:  # noqa: PT028 (no test)
    """Opens the run's test images; arguments and errors are those of :func:`search_set`."""
    opened, _ = _open(run, data, data_dir)
    return EvaluationSet(opened.test, run.info["preprocess"], opened.class_names)


# pytest collects functions called test_* from the modules that import them.
test_set.__test__ = False  # type: ignore[attr-defined]


def _open(run: Run, data: str | None, data_dir: str | Path | None) -> tuple[Data, bool]:
    """Opens the data set, and returns whether the run was trained on it."""
    record = run.info["data"]
    if record is None and data is None:
        raise DataError(f"{run.path}: the run was imported and records no data set; name one with --data (and --data-dir)")
    opened = open_recorded(record, data_dir) if data is None else _other_data(data, data_dir, record)
    classes = run.space.num_classes
    if len(opened.class_names) != classes:
        where = opened.data_dir or opened.name
        raise DataError(f"{where}: {len(opened.class_names)} classes, but the run {run.path} has {classes}")
    return opened, record is not None and opened.record()["sha256"] == record.get("sha256")


def _other_data(name: str, data_dir: str | Path | None, record: Mapping[str, Any] | None) -> Data:
    """Opens a named data set; if it is the run's own folder, it is read by the run's rules."""
    opened = open_data(name, data_dir)
    if record is not None and opened.rules != record.get("rules", 1) and opened.name == record["name"] == "folder":
        with contextlib.suppress(DataError):
            return open_recorded(record, opened.data_dir)
    return opened
