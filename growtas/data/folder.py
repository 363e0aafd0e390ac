"""Opens a folder of images with a sub-folder for each class, and optionally folders for training and test above them.

A run records the version :data:`RULES`, so that the folder of an older run is read by the rules of its time.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder

from growtas.data.class_folders import ClassFolders
from growtas.data.images import ImageSet, file_set, listed
from growtas.errors import DataError, choices

RULES = 2
"""Version of the rules for reading folders; :func:`open_as_before` has the rules of runs without a version."""
TRAIN_NAMES = ("train", "training", "trn", "trainval")
TEST_NAMES = (
    "test", "tests", "testing", "tst", "holdout", "heldout", "val", "vals", "valid", "validate", "validation", "validations", "dev",
    "eval", "evals", "evaluate", "evaluation", "evaluations",
)  # fmt: skip
"""Names of test sets. If a folder has several, the first one of this list that holds class folders is used."""
_FILLER = "images?|imgs?|photos?|pictures?|pics?|data|set"
_SPLIT_NAME = re.compile(rf"\d*(?:{_FILLER})*({'|'.join((*TRAIN_NAMES, *TEST_NAMES))})(?:{_FILLER}|files?|split|folder)*(?:v?\d+)?")


@dataclass(frozen=True)
class Layout:
    """Which parts of a folder are the training and the test set.

    Attributes:
        train: name of the training set's folder; ``.`` if the class folders lie directly in the folder.
        test: name of the test set's folder; None if a fifth of the training images becomes the test set.
        unused: the other folders beside them, which are not read.
        skipped: number of items that were skipped in the folders, by kind: a folder's name, a file's suffix, or a kind of link.
        notes: one sentence for each thing that a user may not expect.
    """

    train: str
    test: str | None
    unused: tuple[str, ...]
    skipped: Mapping[str, int]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        train = "the class folders are" if self.train == "." else f"{self.train}/ is"
        return f"{train} the training set, {'a fifth of which' if self.test is None else f'{self.test}/'} is the test set"


class OpenedFolder(NamedTuple):
    """Training images, test images (None if the folder has no test set), class names, and the layout."""

    train: ImageSet
    test: ImageSet | None
    class_names: tuple[str, ...]
    layout: Layout


def open_folder(path: Path) -> OpenedFolder:
    """Opens a folder of class folders, or of a training and a test set.

    Raises:
        DataError: There are no class folders, a class folder has no images, the training set lacks a test class, it is unclear
            which folder is the training set, a folder can't be read, or a name is not UTF-8.
    """
    reader = ClassFolders(path)
    train_name, test_name, unused = _choose_splits(path, reader)
    train_folder = path / train_name
    train, class_names = reader.training_set(train_folder)
    _check_levels(train_folder, class_names, reader)
    test = None if test_name is None else reader.test_set(path / test_name, train_folder, class_names)
    for place in dict.fromkeys((path, train_folder, path / (test_name or "."))):
        reader.look_beside(place)
    layout = Layout(train_name, test_name, tuple(unused), reader.skipped, tuple(reader.notes()))
    return OpenedFolder(train, test, class_names, layout)


def _choose_splits(path: Path, reader: ClassFolders) -> tuple[str, str | None, list[str]]:
    """Chooses the training and the test folder, as in :class:`Layout`, and returns the folders beside them too."""
    names = reader.folders(path)
    split_names = {name: word for name in names if (word := _split_name(name))}
    trains = [name for name, word in split_names.items() if word in TRAIN_NAMES]
    tests = sorted((name for name in split_names if name not in trains), key=lambda name: TEST_NAMES.index(split_names[name]))
    others = [name for name in names if name not in split_names]
    flat = [name for name in split_names if not reader.folders(path / name)]
    # "train" beside "bus" and "car", or "valid" beside "invalid", is a class: its folder holds images and no class folders.
    if others and len(flat) == len(split_names) == 1 and (trains or len(others) == 1):
        reader.remarks.append(f"{flat[0]}/ is taken as a class, because it holds images and no class folders")
        return ".", None, []
    if not split_names:
        parts = {name: words for name in names if (words := _split_words(name))}
        mentioned = set().union(*parts.values())
        if len(parts) > 1 and (len(parts) == len(names) or (mentioned & set(TRAIN_NAMES) and mentioned & set(TEST_NAMES))):
            raise DataError(
                f"{path}: {_folders(parts)} have names of training and test sets, not of classes; name the folder of the training "
                f"images train, and the folder of the test images test"
            )
        return ".", None, []
    if not trains:
        beside = f" beside the class folders {choices(others[:3])}" if others else ""
        raise DataError(
            f"{path}: {_folders(tests)} without train/{beside}; a data folder holds train/ and a test set, or class folders "
            f"(if {tests[0]} is a class, give its folder another name)"
        )
    if len(trains) > 1:
        raise DataError(f"{path}: {_folders(trains)} all have names of training sets; keep only one of them here")
    test = next((name for name in tests if name not in flat), tests[0] if tests else None)
    unused = [name for name in names if name not in (trains[0], test)]
    if unused:
        chosen = f"{test}/ is the test set" if test else f"{trains[0]}/ is the training set"
        hint = "" if test else "; if test images are there, name their folder test"
        reader.remarks.append(f"{chosen}; {_folders(unused)} beside it {'is' if len(unused) == 1 else 'are'} not used{hint}")
    return trains[0], test, unused


def _split_name(name: str) -> str | None:
    """Returns the training or test name in a folder's name: ``train`` for ``Train-Set``, ``val`` for ``val2017``, or None."""
    match = _SPLIT_NAME.fullmatch(re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()))
    return match[1] if match else None


def _split_words(name: str) -> set[str]:
    """Returns the training and test names among the words of a folder's name: ``train`` for ``pets_train``."""
    words = re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name)
    return {word.casefold() for word in words} & {*TRAIN_NAMES, *TEST_NAMES}


def _check_levels(folder: Path, class_names: tuple[str, ...], reader: ClassFolders) -> None:
    """Raises for training and test folders inside of class folders, and remarks other sub-folders of class folders."""
    inner = reader.subfolders
    for place, names in inner.items():
        words = {_split_name(name) for name in names}
        if words & set(TRAIN_NAMES) and words & set(TEST_NAMES):
            raise DataError(
                f"{place}: the class folder holds {choices(sorted(names)[:3])}; put these folders above the class folders, as in "
                f"{folder / 'train' / class_names[0]}"
            )
    common = set.intersection(*inner.values()) if len(inner) == len(class_names) else set()
    if len(common) > 1:
        reader.remarks.append(
            f"every class ({listed(class_names, 3)}) holds the folders {listed(sorted(common), 3)}; if those are the classes, "
            f"name a folder that holds only them, or name the folders above them train and test"
        )
    elif inner:
        places = [os.path.join(os.path.basename(place), name) for place in sorted(inner) for name in sorted(inner[place])]
        reader.remarks.append(f"images in sub-folders of a class folder belong to the class: {listed(places, 3)}")


def _folders(names: Iterable[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def open_as_before(path: Path) -> OpenedFolder:
    """Opens a folder by the rules of runs that record no version: lower-case names, and torchvision's file suffixes.

    Raises:
        DataError: There are no images, or the training set lacks a test class.
    """

    def first(*names: str) -> str | None:
        return next((name for name in names if (path / name).is_dir()), None)

    train_name = first("train", "training")
    test_name = first("val", "test", "validation", "valid", "eval") if train_name else None
    names = [train_name or "."] + ([test_name] if test_name else [])
    try:
        opened = [ImageFolder(path / name, allow_empty=True) for name in names]
    except OSError as error:
        raise DataError(f"{path}: the folder can't be read ({error.strerror or 'no class folders'})") from None
    class_names = tuple(opened[0].classes)
    if any(not part.samples or set(part.classes) - set(class_names) for part in opened):
        raise DataError(f"{path}: no images ({choices(IMG_EXTENSIONS)}), or test classes that the training set lacks")
    sets = [
        file_set([name for name, _ in part.samples], [class_names.index(part.classes[label]) for label in part.targets])
        for part in opened
    ]
    return OpenedFolder(sets[0], sets[1] if test_name else None, class_names, Layout(names[0], test_name, (), {}, ()))
