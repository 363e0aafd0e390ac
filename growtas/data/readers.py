"""Opens data sets by the names of timm's ``create_dataset``: torchvision, Hugging Face, webdataset and TFDS."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_dataset

from growtas.data.decode import decode
from growtas.data.images import ArraySet, ImageSet, ReaderSet, file_set, paths_of
from growtas.errors import DataError, cause, choices
from growtas.progress import Progress, tracked

PREFIXES = {"torch": "torchvision", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset"}
"""The package that each prefix of timm's names needs."""
_TEST_SPLITS = ("test", "validation", "val")
STREAM_LIMIT = 2_000_000_000
"""Largest size in bytes of a stream's decoded images, which are held in memory."""


def open_timm(name: str, folder: Path | None, progress: Progress) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Opens a data set by its timm name, and returns training images, test images and class names.

    The test set is the first of the splits test, validation and val that exists and has labels. Its labels are mapped to those of
    the training set by class name, because each split may number its classes differently.

    Raises:
        DataError: The package is missing, the set can't be opened, the classes of the two splits can't be mapped, or both splits
            contain the same image.
    """
    prefix = name.partition("/")[0].lower()
    package = PREFIXES[prefix]
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{name} needs the package {package}, which is not installed: pip install {package.replace('_', '-')}")
    if folder is None and prefix in ("torch", "wds"):
        raise DataError(f"{name} needs --data-dir, the folder of its files")
    train, train_names = _as_images(_open(name, folder, "train"), name, "training", progress)
    failures = []
    for split in _TEST_SPLITS:
        try:
            test, test_names = _as_images(_open(name, folder, split), name, "test", progress)
        except DataError as error:
            failures.append(str(error))
            continue
        if not len(test) or test.labels.min() >= 0:
            break
        failures.append(f"{name}: the images of the split {split} have no labels")
    else:
        raise DataError(f"{name}: no test set among the splits {choices(_TEST_SPLITS)} ({failures[0]})")
    if train_names != test_names:
        test.labels = _mapped(name, test.labels, test_names, train_names)
    _check_apart(name, train, test)
    classes = max((int(images.labels.max()) + 1 for images in (train, test) if len(images)), default=0)
    return train, test, train_names or tuple(str(i) for i in range(classes))


def _mapped(
    name: str, labels: NDArray[np.int64], test_names: tuple[str, ...] | None, train_names: tuple[str, ...] | None
) -> NDArray[np.int64]:
    """Converts the test set's labels to the training set's numbering of the classes."""
    if train_names is None or test_names is None:
        which = "training" if train_names is None else "test"
        raise DataError(f"{name}: the {which} set has no class names, so its classes can't be matched with those of the other set")
    number = {class_name: label for label, class_name in enumerate(train_names)}
    used = np.unique(labels).tolist()
    unknown = [test_names[label] for label in used if test_names[label] not in number]
    if unknown:
        raise DataError(f"{name}: class {choices(unknown[:3])} of the test set is not in the training set")
    return np.array([number.get(class_name, -1) for class_name in test_names], np.int64)[labels]


def _check_apart(name: str, train: ImageSet, test: ImageSet) -> None:
    """Raises if the test set has files of the training set."""
    train_paths, test_paths = map(paths_of, (train, test))
    if train_paths is None or test_paths is None:
        return
    known = {os.path.abspath(path) for path in train_paths}
    shared = [path for path in test_paths if os.path.abspath(path) in known]
    if shared:
        raise DataError(f"{name}: {len(shared)} of {len(test)} test images are also training images, such as {shared[0]}")


def _open(name: str, folder: Path | None, split: str) -> Any:
    root = str(folder) if folder else None
    try:
        download = name.lower().startswith("torch/") and not name.lower().endswith("folder")
        # timm decodes the images of a stream; an empty mode keeps the mode of the files.
        mode = "" if name.partition("/")[0].lower() in ("wds", "hfids") else "RGB"
        return create_dataset(name, root=root, split=split, download=download, input_img_mode=mode)
    except (Exception, SystemExit) as error:  # every backend raises its own exceptions
        raise DataError(f"{name}: the split {split} can't be opened ({cause(error)})") from None


def _as_images(dataset: Any, name: str, split: str, progress: Progress) -> tuple[ImageSet, tuple[str, ...] | None]:
    """Returns the images of a split with the split's own labels, and the class names of these labels."""
    title = f"{name} {split}"
    pixels, labels = getattr(dataset, "data", None), getattr(dataset, "targets", None)
    reader = getattr(dataset, "reader", None)
    images: ImageSet
    names = None
    if pixels is not None and labels is not None:  # CIFAR, MNIST and similar sets are in memory
        if np.asarray(pixels[:1]).dtype != np.uint8:
            raise DataError(f"{title}: its pixels are {np.asarray(pixels[:1]).dtype}, but must be uint8")
        images = ArraySet(np.asarray(pixels, np.uint8), np.asarray(labels), title)
    elif not hasattr(dataset, "__getitem__"):
        images = _read_stream(dataset, title)
    elif reader is not None:
        labels = _reader_labels(reader, dataset, progress)
        if labels and isinstance(labels[0], str):  # the labels are class names, without numbers
            names = tuple(sorted(set(labels)))
            labels = [names.index(label) for label in labels]
        images = ReaderSet(labels, lambda i: decode(reader[i][0]), lambda i: f"{title}, image {i}")
    else:
        for attribute in ("labels", "_labels"):
            labels = getattr(dataset, attribute, None) if labels is None else labels
        if labels is None:
            labels = [int(dataset[i][1]) for i in tracked(range(len(dataset)), f"reading labels of {title}", progress)]
        if hasattr(dataset, "samples"):  # without torchvision's loader, which converts every image to RGB
            images = file_set([path for path, _ in dataset.samples], labels)
        else:
            images = ReaderSet(labels, lambda i: dataset[i][0], lambda i: f"{title}, image {i}")
    return images, names or _class_names(dataset, images)


def _reader_labels(reader: Any, dataset: Any, progress: Progress) -> list[Any]:
    """Reads the labels of a timm reader; for a Hugging Face table without decoding the images."""
    table, key = getattr(reader, "dataset", None), getattr(reader, "label_key", None)
    if table is not None and key is not None:
        labels = list(table[key])
        return [reader.class_to_idx[label] for label in labels] if getattr(reader, "remap_class", False) else labels
    return [int(reader[i][1]) for i in tracked(range(len(dataset)), "reading labels", progress)]


def _read_stream(dataset: Iterable[tuple[Image.Image, int]], title: str) -> ImageSet:
    """Reads a stream into memory: a stratified split and resuming within an epoch need random access."""
    images: list[Image.Image] = []
    labels, size = [], 0
    for image, label in dataset:
        images.append(image)
        labels.append(int(label))
        size += np.asarray(image).nbytes
        if size > STREAM_LIMIT:
            raise DataError(
                f"{title}: the stream holds more than {STREAM_LIMIT / 1e9:g} GB of decoded images, the limit for streams; "
                f"unpack it into class folders and name their folder"
            )
    return ReaderSet(labels, lambda i: images[i], lambda i: f"{title}, image {i}")


def _class_names(dataset: Any, images: ImageSet) -> tuple[str, ...] | None:
    """Returns the class names of a data set; None if it has none, or too few."""
    names = getattr(dataset, "classes", None)
    reader = getattr(dataset, "reader", None)
    if names is None and reader is not None:
        table, key = getattr(reader, "dataset", None), getattr(reader, "label_key", None)
        names = getattr(getattr(table, "features", {}).get(key), "names", None) if table is not None and key else None
        if names is None and getattr(reader, "class_to_idx", None):
            names = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
    if names is None or (len(images) and len(names) <= images.labels.max()):
        return None
    return tuple(str(name) for name in names)
