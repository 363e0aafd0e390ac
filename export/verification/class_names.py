"""Class names of an artifact against those of the labels: which answer is right, and whether another order would fit better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from growtas.export.verification.images import VerificationImages

# Below ten images a class, an order that fits better is found by chance.
_IMAGES_A_CLASS = 10


def labels_of_outputs(images: VerificationImages, class_names: Sequence[str] | None, outputs: int) -> NDArray[np.int64]:
    """The label that each output of the artifact stands for, -1 where the data has no class of that name."""
    if class_names is None or images.class_names is None:
        return np.arange(outputs)
    label = {name: index for index, name in enumerate(images.class_names)}
    # Names that are too few leave outputs without one; these answers are wrong.
    labels = np.full(max(outputs, len(class_names)), -1, np.int64)
    labels[: len(class_names)] = [label.get(name, -1) for name in class_names]
    return labels


def better_order(answers: NDArray[np.int64], images: VerificationImages) -> tuple[str, str] | None:
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
