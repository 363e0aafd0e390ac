"""Real images with labels to verify artifacts on: preprocessed as the run was trained, the same share of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.errors import ConfigError, DataError
from growtas.export.runtimes.base import Array
from growtas.export.verification.images import gate_images
from growtas.runs import Run

MOST_IMAGES, MOST_IMAGES_COARSE, FEWEST_IMAGES = 512, 2000, 48
# An artifact and its reference take about 35 ms each for an image of 1.3 GMACs on one core: 101 images of it are 7 s of one core.
_MACS_BUDGET, _MACS_BUDGET_ROUNDED = 130_000_000_000, 450_000_000_000


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Preprocessed images, with labels where the run's data is at hand.

    Attributes:
        images: ``(count, channels, height, width)``, float32.
        labels: the class of each image, ``(count,)``; None where nothing is known of them.
        class_names: the name of each label, in the order of the run's outputs; None without labels.
        description: which images they are, for manifests.
        unlabelled_because: why there are no labels; None if there are.
    """

    images: Array
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None
    description: str
    unlabelled_because: str | None = None

    def __post_init__(self) -> None:
        if not len(self.images):
            raise DataError(f"{self.description}: there are no images to verify anything on; name other data with --data")
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise DataError(f"{self.description}: {len(self.images)} images, but labels of shape {self.labels.shape}")
        if self.labels is None and self.unlabelled_because is None:
            raise DataError(f"{self.description}: images without labels need a reason")

    def __len__(self) -> int:
        return len(self.images)


def spread(images: Array, count: int) -> Array:
    """At most ``count`` of the images, evenly spaced: they are often sorted by class, and the first ones show one class only."""
    return np.ascontiguousarray(images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)])


def images_for(macs: int, precision: str = "fp32") -> int:
    """How many images a verification takes by default: 512 of a small network, fewer of a large one, 48 at least.

    In fp32 no image may change sides, so few tell. In other precisions it is three times as many of a large network, where one that
    does should be less than the 0.3 points that may be lost; and in int8 and fp8 up to 2,000: images change sides in both
    directions there, and only many of them tell a loss of half a point from chance.

    Args:
        macs: multiplications and additions of one image.
        precision: of the artifact.
    """
    most = MOST_IMAGES_COARSE if precision in ("int8", "fp8") else MOST_IMAGES
    budget = _MACS_BUDGET if precision == "fp32" else _MACS_BUDGET_ROUNDED
    return max(FEWEST_IMAGES, min(most, budget // max(macs, 1)))


def labelled_images(run: Run, count: int, *, data: str | None = None, data_dir: str | None = None) -> LabelledImages:
    """At most ``count`` test images of the run's data, stratified by class and always the same ones; photographs without labels
    where the run has no data at hand.

    Args:
        data, data_dir: other data to take, as ``growtas train`` names it; its classes must be the run's.

    Raises:
        ConfigError: a count below one.
        DataError: the data that was named can't be used.
    """
    from growtas.data import test_set

    if count < 1:
        raise ConfigError(f"--images is {count}; it must be 1 or more (by default up to {MOST_IMAGES})")
    try:
        test = test_set(run, data=data, data_dir=data_dir)
        picked = test.subset(count)
        images = picked.images(0, len(picked)).numpy()
    except DataError:
        if data is not None or data_dir is not None:
            raise
        return _photographs(run, count)
    named = data or (run.info.get("data") or {}).get("name") or "the run's data"
    names = tuple(run.info.get("class_names") or picked.class_names)
    # Other data may have the same classes in another order, or classes that have nothing to do with the run's.
    same = sorted(names) == sorted(picked.class_names)
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[picked.class_names[label]] for label in picked.labels.tolist()], np.int64) if same else None
    return LabelledImages(
        images=np.ascontiguousarray(images, np.float32),
        labels=labels,
        class_names=names if same else None,
        description=f"{len(picked)} of {len(test)} test images of {named}",
        unlabelled_because=None if same else f"the classes of {named} have other names than the run's",
    )


def _photographs(run: Run, count: int) -> LabelledImages:
    found = gate_images(run, count)
    reason = found.fell_back_because or "the run's data has no labels at hand"
    return LabelledImages(
        images=found.images, labels=None, class_names=None, description=found.description, unlabelled_because=reason
    )


def labels_of_outputs(
    images: LabelledImages, class_names: Sequence[str] | None, outputs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For the artifact and the reference: the label that each output stands for, -1 where the data has no class of that name."""
    plain = np.arange(outputs)
    if class_names is None or images.class_names is None:
        return plain, plain
    label = {name: index for index, name in enumerate(images.class_names)}
    named = np.array([label.get(name, -1) for name in class_names], np.int64)
    # Names that are too few leave outputs without one; these answers are wrong.
    padded = np.full(max(outputs, len(named)), -1, np.int64)
    padded[: len(named)] = named
    return padded, plain


# Below ten images a class, an order that fits better is found by chance.
_IMAGES_A_CLASS = 10


def better_order(answers: NDArray[np.int64], images: LabelledImages) -> tuple[str, str] | None:
    """The classes that are taken for each other most often, where renaming the answers would make far more of them right.

    It needs no reference, so it finds an order that is wrong in the run itself. "Far more" is a quarter and ten points more, and
    half of the images right: what an untrained network does by chance stays below that.
    """
    from scipy.optimize import linear_sum_assignment

    labels = images.labels
    assert labels is not None
    classes = int(max(answers.max(), labels.max())) + 1
    if len(labels) < _IMAGES_A_CLASS * classes:
        return None
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (answers[answers >= 0], labels[answers >= 0]), 1)
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    now, best = np.trace(confusion) / len(labels), confusion[rows, columns].sum() / len(labels)
    if best < 0.5 or best < 1.25 * now or best < now + 0.1:
        return None
    moved = rows != columns
    row = rows[moved][confusion[rows, columns][moved].argmax()]
    names = images.class_names or tuple(map(str, range(classes)))
    return names[row], names[columns[row]]
