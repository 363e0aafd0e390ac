"""Opens a data set by the name given to ``--data``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from growtas.data.folder import RULES, Layout, open_as_before, open_folder
from growtas.data.idx import find_idx, read_idx
from growtas.data.images import ArraySet, ImageSet, Subset, paths_of, raise_unreadable, unreadable
from growtas.data.readers import PREFIXES, open_timm
from growtas.data.split import complement, stratified_split
from growtas.errors import DataError, choices
from growtas.fields import nearest
from growtas.files import refuse_url
from growtas.progress import SILENT, Progress
from growtas.runs import data_title

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
VERIFY_LIMIT = 20_000
"""Largest number of images of a folder that is decoded once before the first step."""
_FOLDERS = ("folder", "torch/image_folder", "torch/folder")
"""Names of a folder whose path is in ``data_dir``. growtas reads such a folder itself, because timm's readers number the classes of
each split separately, and use training images for the test if there is no test folder."""
_TEST_FRACTION = 0.2
_TEST_SEED = 0


@dataclass(frozen=True)
class Data:
    """A data set: training and test images with the same classes.

    Attributes:
        name: value of ``--data``, or ``folder`` for a folder, whose path is in ``data_dir``.
        data_dir: absolute path of the files; None if there are none.
        train: training images, of which the search split is later a part.
        test: test images.
        class_names: the class name of each label.
        mean, std: normalisation of values from 0 to 1, one number for each of R, G, B.
        layout: for a folder, which parts of it are the training and the test set.
        rules: for a folder, the version of the rules by which it was read.
    """

    name: str
    data_dir: str | None
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    layout: Layout | None = None
    rules: int | None = None

    @property
    def title(self) -> str:
        """The set's name for messages: its name, or the path of a folder."""
        return data_title({"name": self.name, "data_dir": self.data_dir})

    def record(self) -> dict[str, Any]:
        """Returns the record for ``run.json``, which is enough to open the set again and to detect changes.

        It holds name and folder, the numbers of training and test images, a hash of labels and file names, and for a folder the
        version of the rules by which it was read.
        """
        return {
            "name": self.name,
            "data_dir": self.data_dir,
            "train_size": len(self.train),
            "test_size": len(self.test),
            "sha256": self._digest(),
            **({"rules": self.rules} if self.rules is not None else {}),
        }

    def _digest(self) -> str:
        """Hashes the labels and file names of both sets, but not the pixels (ImageNet has 140 GB of them)."""
        digest = hashlib.sha256()
        for images in (self.train, self.test):
            digest.update(images.labels.tobytes())
            for path in paths_of(images) or ():
                digest.update(Path(path).name.encode() + b"\0")
        return digest.hexdigest()

    def check_unchanged(self, record: Mapping[str, Any]) -> None:
        """Compares the set with the :meth:`record` of a run.

        Raises:
            DataError: Images were added, removed, renamed or relabelled since then.
        """
        now = self.record()
        if record.get("sha256", now["sha256"]) != now["sha256"]:
            before = record["data_dir"]
            elsewhere = f", in {before}" if before not in (None, self.data_dir) else ""
            raise DataError(
                f"{self.title}: the images have changed since the run was started "
                f"(it had {record['train_size']} training and {record['test_size']} test images{elsewhere}; "
                f"now there are {len(self.train)} and {len(self.test)}); give the same images with --data-dir"
            )


def open_data(
    name: str,
    data_dir: str | Path | None = None,
    *,
    progress: Progress = SILENT,
    check_images: bool = False,
    rules: int = RULES,
) -> Data:
    """Opens a data set.

    Args:
        name: ``digits``, ``fashion-mnist``, the path of a folder, or a name of timm's ``create_dataset``.
        data_dir: folder of the files; not legal for ``digits`` and for the path of a folder.
        progress: receives each stage.
        check_images: decode every image of a folder with at most :data:`VERIFY_LIMIT` images.
        rules: version of the rules by which a folder is read.

    Raises:
        DataError: The set is unknown, missing or empty, has only one class, a class without images, test images of other classes,
            or unreadable images (the message names the first ones and counts the rest); or ``data_dir`` is not legal.
    """
    refuse_url(name, DataError)
    refuse_url(data_dir, DataError)
    folder = Path(data_dir).expanduser().absolute() if data_dir is not None else None
    if name == "digits":
        if folder is not None:
            raise DataError(
                f"digits is embedded and takes no --data-dir, but it is {folder}; to use that folder's images, give it as --data"
            )
        return _checked(_open_digits())
    if name == "fashion-mnist":
        return _checked(_open_fashion_mnist(folder or FASHION_MNIST_FOLDER))
    if name.lower() in _FOLDERS:
        if folder is None:
            raise DataError(f"{name} needs --data-dir, the path of the images' folder")
        return _open_folder(name.lower(), folder, progress, check_images=check_images, rules=rules)
    if name.partition("/")[0].lower() in PREFIXES and "/" in name:
        return _checked(Data(name, str(folder) if folder else None, *open_timm(name, folder, progress)))
    path = Path(name).expanduser().absolute()
    if folder is not None:
        raise DataError(
            f"--data {name!r} takes no --data-dir; to use a folder of images, give only the folder, as in --data {folder}"
        )
    return _open_folder("folder", path, progress, check_images=check_images, rules=rules, called=name)


def open_recorded(record: Mapping[str, Any], data_dir: str | Path | None = None) -> Data:
    """Opens the images of a run again, by the rules that the run recorded.

    Args:
        record: the run's :meth:`Data.record`.
        data_dir: new folder of the images, if they were moved.

    Raises:
        DataError: The images are missing, or have changed.
    """
    name, before = record["name"], record["data_dir"]
    # For Fashion-MNIST, open_data() raises an error that says how to install it.
    if data_dir is None and before is not None and name != "fashion-mnist" and not _is_dir(Path(before)):
        raise DataError(
            f"{before}: the folder of the run's images does not exist; if it was moved, name its new place with --data-dir"
        )
    data = open_data(name, data_dir or before, rules=record.get("rules", 1))
    data.check_unchanged(record)
    return data


def _open_folder(name: str, path: Path, progress: Progress, *, check_images: bool, rules: int, called: str | None = None) -> Data:
    if not _is_dir(path):
        if path.is_file():
            raise DataError(f"{path}: this is a file, not a folder of images; unpack it if it is an archive, and name the folder")
        if called is None:
            raise DataError(f"{path}: there is no such folder")
        hint = nearest(called, ("digits", "fashion-mnist"))
        raise DataError(
            f"{called!r} is neither a known data set nor a folder; {hint}{' ' if hint else ''}legal are digits, fashion-mnist, "
            f"a folder of images, or a name of timm's create_dataset (torch/..., hfds/..., wds/...)"
        )
    train, test, class_names, layout = open_folder(path) if rules >= RULES or name != "folder" else open_as_before(path)
    if test is None:
        train, test = _cut_test(train)
    data = _checked(Data(name, str(path), train, test, class_names, layout=layout, rules=rules if name == "folder" else RULES))
    if check_images and len(data.train) + len(data.test) <= VERIFY_LIMIT:
        parts = ((data.train, "checking training images"), (data.test, "checking test images"))
        bad = [error for images, title in parts for error in unreadable(images, progress, title)]
        raise_unreadable(bad, str(path))
    return data


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise DataError(f"{str(path)!r}: the folder can't be read ({error.strerror})") from None


def _open_digits() -> Data:
    """Opens scikit-learn's 1,797 handwritten digits, 8 x 8 grey; a fixed, stratified fifth is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test = _cut_test(ArraySet(pixels, digits.target, "digits"))
    return Data("digits", None, train, test, tuple(str(i) for i in range(10)), (0.5,) * 3, (0.5,) * 3)


def _open_fashion_mnist(folder: Path) -> Data:
    """Opens Fashion-MNIST, 60,000 + 10,000 images, 28 x 28 grey, from its IDX files."""
    sets = []
    for stem in ("train", "t10k"):
        images, labels = (find_idx(folder, f"{stem}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        if images is None or labels is None:
            absent = f"{stem}-{'labels-idx1' if images else 'images-idx3'}-ubyte.gz"
            raise DataError(
                f"{folder}: Fashion-MNIST is not there ({absent} is missing); on Debian and Ubuntu "
                f"`apt-get install dataset-fashion-mnist` installs it in {FASHION_MNIST_FOLDER}; "
                f"on other systems, name its folder with --data-dir"
            )
        pixels, targets = read_idx(images, 3), read_idx(labels, 1)
        if len(pixels) != len(targets):
            raise DataError(f"{images}: {len(pixels)} images, but {labels.name} has {len(targets)} labels")
        if len(targets) and targets.max() >= len(FASHION_MNIST_CLASSES):
            raise DataError(f"{labels}: label {targets.max()} is not legal; Fashion-MNIST's labels are 0 to 9")
        sets.append(ArraySet(pixels, targets, f"fashion-mnist {stem}"))
    return Data("fashion-mnist", str(folder), sets[0], sets[1], FASHION_MNIST_CLASSES, (0.5,) * 3, (0.5,) * 3)


def _cut_test(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Cuts a set that has no test set into training and test images; the test images are always the same stratified fifth."""
    count = round(len(images) * _TEST_FRACTION)
    indices = stratified_split(images.labels, count, np.random.default_rng(_TEST_SEED))
    return Subset(images, complement(indices, len(images))), Subset(images, indices)


def _checked(data: Data) -> Data:
    """Raises if a data set does not meet the conditions for all sets; returns it otherwise."""
    where = data.data_dir or data.name
    if not len(data.train):
        raise DataError(f"{where}: no training images")
    classes = np.unique(data.train.labels)
    if len(data.class_names) < 2 or len(classes) < 2:
        raise DataError(f"{where}: {len(classes)} class of images; a classifier needs 2 or more")
    absent = sorted(set(range(len(data.class_names))) - set(classes.tolist()))
    if absent:
        raise DataError(f"{where}: class {data.class_names[absent[0]]!r} has no training images")
    odd = sorted(set(np.unique(data.test.labels).tolist()) - set(classes.tolist()))
    if odd:
        raise DataError(f"{where}: the test set has images of class {choices(odd[:3])}, which the training set lacks")
    if not len(data.test):
        raise DataError(f"{where}: no test images; a class needs 3 images or more to have a test image")
    return data
