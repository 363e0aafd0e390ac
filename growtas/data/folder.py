"""Opens a folder of images: a sub-folder for each class, with or without train/ and val/ above them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder

from growtas.data.images import ImageSet, file_set
from growtas.errors import DataError, choices
from growtas.files import check_folder

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("val", "test", "validation", "valid", "eval")


def open_folder(path: Path) -> tuple[ImageSet, ImageSet | None, tuple[str, ...]]:
    """Training images, test images (None where the folder has none of its own), and class names.

    Raises:
        DataError: no images, a class folder without images, or test classes that the training set lacks.
    """
    train_folder = next((path / name for name in TRAIN_FOLDERS if (path / name).is_dir()), None)
    test_folder = next((path / name for name in TEST_FOLDERS if (path / name).is_dir()), None)
    if train_folder is None and test_folder is not None:
        raise DataError(f"{path}: {test_folder.name}/ without train/; a folder has both, or the class folders themselves")
    train, class_names = _open_split(train_folder or path)
    if len(class_names) < 2:
        raise DataError(f"{train_folder or path}: only one class folder, {class_names[0]}; a classifier needs 2 or more")
    if train_folder is None or test_folder is None:
        return train, None, class_names
    test, test_names = _open_split(test_folder)
    unknown = sorted(set(test_names) - set(class_names))
    if unknown:
        raise DataError(
            f"{test_folder}: class {choices(unknown[:3])} is not in {train_folder}, which has {choices(class_names[:10])}"
        )
    # A test set may lack a class, so its labels are not the training set's yet.
    test.labels = np.array([class_names.index(name) for name in test_names], np.int64)[test.labels]
    return train, test, class_names


def _open_split(folder: Path) -> tuple[ImageSet, tuple[str, ...]]:
    check_folder(folder, DataError)
    if not any(entry.is_dir() for entry in folder.iterdir()):
        what = "the folder is empty" if not any(folder.iterdir()) else "no class folders"
        raise DataError(f"{folder}: {what}; images belong into a sub-folder a class, as in {folder / 'CLASS' / 'image.png'}")
    dataset = ImageFolder(folder, allow_empty=True)  # its classes are the top folders, however deep the files lie
    for label in np.setdiff1d(np.arange(len(dataset.classes)), dataset.targets):
        check_folder(folder / dataset.classes[label], DataError)
        raise DataError(f"{folder / dataset.classes[label]}: the class folder has no images ({choices(IMG_EXTENSIONS)})")
    paths, labels = zip(*dataset.samples, strict=True)
    return file_set(paths, labels), tuple(dataset.classes)
