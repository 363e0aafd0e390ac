"""Data sets that timm's ``create_dataset`` opens by name: torchvision's, Hugging Face's, webdataset's, TFDS'."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset

from growtas.data.decode import decode
from growtas.data.images import ArraySet, ImageSet, ReaderSet, file_set
from growtas.errors import DataError, choices
from growtas.progress import Progress, tracked

PREFIXES = {"torch": "torchvision", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset"}
"""Prefixes of timm's names, and the package that each needs."""
_TEST_SPLITS = ("test", "validation", "val")
STREAM_LIMIT = 2_000_000_000
"""Bytes of decoded images up to which a set that can only be streamed is held in memory."""


def open_timm(name: str, folder: Path | None, progress: Progress) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Training images, test images and class names of a timm name.

    The test set is the first of the splits test, validation and val that the set has.

    Raises:
        DataError: the package is missing, or the set can't be opened.
    """
    prefix = name.partition("/")[0].lower()
    package = PREFIXES[prefix]
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{name} needs the package {package}, which is not installed: pip install {package.replace('_', '-')}")
    if folder is None and prefix in ("torch", "wds"):
        raise DataError(f"{name} needs --data-dir, the folder of its files")
    train = _open(name, folder, "train")
    failures = []
    for split in _TEST_SPLITS:
        try:
            test = _open(name, folder, split)
            break
        except DataError as error:
            failures.append(str(error))
    else:
        raise DataError(f"{name}: no test set among the splits {choices(_TEST_SPLITS)} ({failures[0]})")
    train_set, test_set = (_as_images(dataset, name, split, progress) for dataset, split in ((train, "training"), (test, "test")))
    classes = max((int(images.labels.max()) + 1 for images in (train_set, test_set) if len(images)), default=0)
    return train_set, test_set, _class_names(train, classes)


def _open(name: str, folder: Path | None, split: str) -> Any:
    root = str(folder) if folder else None
    try:
        download = name.lower().startswith("torch/") and not name.lower().endswith("folder")
        # Streams come decoded: in the mode of their files, if timm is not asked for another.
        mode = "" if name.partition("/")[0].lower() in ("wds", "hfids") else "RGB"
        return create_dataset(name, root=root, split=split, download=download, input_img_mode=mode)
    except (Exception, SystemExit) as error:  # every backend has its own kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name}: the split {split} can't be opened ({reason})") from None


def _as_images(dataset: Any, name: str, split: str, progress: Progress) -> ImageSet:
    title = f"{name} {split}"
    pixels = getattr(dataset, "data", None)
    labels = getattr(dataset, "targets", None)
    if pixels is not None and labels is not None:  # CIFAR, MNIST and their kin lie in memory
        if np.asarray(pixels[:1]).dtype != np.uint8:
            raise DataError(f"{title}: its pixels are {np.asarray(pixels[:1]).dtype}, and only uint8 ones are understood")
        return ArraySet(np.asarray(pixels, np.uint8), np.asarray(labels), title)
    if not hasattr(dataset, "__getitem__"):
        return _read_stream(dataset, title)
    reader = getattr(dataset, "reader", None)
    if reader is not None:
        return ReaderSet(_reader_labels(reader, dataset, progress), lambda i: decode(reader[i][0]), lambda i: f"{title}, image {i}")
    for attribute in ("labels", "_labels"):
        labels = getattr(dataset, attribute, None) if labels is None else labels
    if labels is None:
        labels = [int(dataset[i][1]) for i in tracked(range(len(dataset)), f"reading labels of {title}", progress)]
    if hasattr(dataset, "samples"):  # not through torchvision's loader, which converts every image to RGB
        return file_set([path for path, _ in dataset.samples], labels)
    return ReaderSet(labels, lambda i: dataset[i][0], lambda i: f"{title}, image {i}")


def _reader_labels(reader: Any, dataset: Any, progress: Progress) -> list[int]:
    """Labels of a timm reader, without decoding the images where it is a Hugging Face table."""
    table, key = getattr(reader, "dataset", None), getattr(reader, "label_key", None)
    if table is not None and key is not None:
        labels = list(table[key])
        return [reader.class_to_idx[label] for label in labels] if getattr(reader, "remap_class", False) else labels
    return [int(reader[i][1]) for i in tracked(range(len(dataset)), "reading labels", progress)]


def _read_stream(dataset: Iterable[tuple[Image.Image, int]], title: str) -> ImageSet:
    """Hold a stream in memory: a stratified split, and resuming in the middle, need images that have a place."""
    images: list[Image.Image] = []
    labels, size = [], 0
    for image, label in dataset:
        images.append(image)
        labels.append(int(label))
        size += np.asarray(image).nbytes
        if size > STREAM_LIMIT:
            raise DataError(
                f"{title}: the stream holds more than {STREAM_LIMIT / 1e9:g} GB of decoded images, the most that is kept in "
                f"memory; unpack it into class folders and name that folder"
            )
    return ReaderSet(labels, lambda i: images[i], lambda i: f"{title}, image {i}")


def _class_names(dataset: Any, classes: int) -> tuple[str, ...]:
    """The names that a data set gives its labels, else the numbers."""
    names = getattr(dataset, "classes", None)
    reader = getattr(dataset, "reader", None)
    if names is None and reader is not None:
        table, key = getattr(reader, "dataset", None), getattr(reader, "label_key", None)
        names = getattr(getattr(table, "features", {}).get(key), "names", None) if table is not None and key else None
        if names is None and getattr(reader, "class_to_idx", None):
            names = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
    if names is None or len(names) < classes:
        return tuple(str(i) for i in range(classes))
    return tuple(str(name) for name in names)
