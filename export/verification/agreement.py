"""Compares an artifact's logits with its reference's on some hundreds of real images, with thresholds for every precision.

:mod:`growtas.export.verification.parity` compares a dozen images so strictly that only fp32 passes. The thresholds here allow the
error that each precision usually has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import ConfigError
from growtas.export.graph.tensors import HalfRange, check_half_range
from growtas.export.quantization.thresholds import Thresholds
from growtas.export.verification.batches import Logits, cut_batches, run_all
from growtas.export.verification.images import VerificationImages, spread
from growtas.export.verification.inputs import ArtifactInput
from growtas.export.verification.parity import relative_error
from growtas.files import finite_or_null
from growtas.units import standard_error

_RANGE_IMAGES = 16
# With fewer than ten images per class, a better order of the class names can be found by chance.
_IMAGES_A_CLASS = 10


@dataclass(frozen=True)
class Failure:
    """A measure that misses its threshold.

    Attributes:
        measure: name of the measure.
        excess: how far the threshold is missed; 1 is the threshold itself. Failures are sorted by it.
        sentence: description for people.
    """

    measure: str
    excess: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The measurements of one artifact and the thresholds that it had to meet.

    The JSON adds ``passed``, ``failed`` (the measures that miss their thresholds), ``accuracy_drop_points`` and the standard errors
    of both accuracies.

    Attributes:
        subject: the artifact and its runtime, such as ``micro-subnet.onnx in ONNX Runtime``.
        reference: name of the reference, such as ``static ViT``.
        precision: precision whose thresholds apply.
        thresholds: the thresholds.
        images: description of the images.
        count: number of images.
        labelled: whether the images have labels.
        unlabelled_because: the reason for missing labels; None where there are labels.
        batches: the batch sizes, which were used in turn.
        finite: whether artifact and reference have logits of the same shape, and all of them are finite.
        max_abs_error: largest absolute difference of two logits; infinite unless ``finite``.
        relative_error: ``max_abs_error`` divided by the reference's largest logit.
        relative_error_by_batch: the relative error on the images of each batch size.
        cosine_min: smallest cosine between an image's logits and the reference's; 0 unless ``finite``.
        cosine_mean: mean of these cosines over all images; 0 unless ``finite``.
        top1_agreement: share of images for which both predict the same class, 0 to 1.
        accuracy: top-1 accuracy of the artifact, 0 to 1; classes are compared by name if names are known. None without labels.
        reference_accuracy: top-1 accuracy of the reference, 0 to 1; None without labels.
        accuracy_drop_error_points: standard error of the accuracy drop in percentage points, from the images that only one of the
            two classifies correctly.
        better_order: the two class names that are confused most often, if another order of the names would give a far higher
            accuracy; None otherwise.
    """

    subject: str
    reference: str
    precision: str
    thresholds: Thresholds
    images: str
    count: int
    labelled: bool
    unlabelled_because: str | None
    batches: tuple[int, ...]
    finite: bool
    # The defaults hold for logits that can't be compared.
    max_abs_error: float = math.inf
    relative_error: float = math.inf
    relative_error_by_batch: Mapping[int, float] = field(default_factory=dict)
    cosine_min: float = 0.0
    cosine_mean: float = 0.0
    top1_agreement: float = 0.0
    accuracy: float | None = None
    reference_accuracy: float | None = None
    accuracy_drop_error_points: float | None = None
    better_order: tuple[str, str] | None = None

    @property
    def accuracy_drop_points(self) -> float | None:
        """The loss of accuracy in percentage points; negative for a gain, None without labels."""
        if self.accuracy is None or self.reference_accuracy is None:
            return None
        return 100 * (self.reference_accuracy - self.accuracy)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The measures that miss their thresholds, the worst first."""
        if not self.finite:
            sentence = "some logits are not finite, or their shape differs from the reference's"
            return (Failure("finite", math.inf, sentence),)
        limits, failures = self.thresholds, []
        error, cosine, agreement = self.relative_error, self.cosine_min, self.top1_agreement
        # The comparisons are written so that NaN fails.
        if not error <= limits.relative_error:
            sentence = f"the relative error of the logits is {error:.2g} (at most {limits.relative_error:g})"
            failures.append(Failure("relative_error", _ratio(error, limits.relative_error), sentence))
        if not cosine >= limits.cosine:
            sentence = f"the worst cosine of the logits is {cosine:.5g} (at least {limits.cosine:g})"
            failures.append(Failure("cosine", _ratio(1 - cosine, 1 - limits.cosine), sentence))
        if not agreement >= limits.top1_agreement:
            sentence = f"the top-1 agreement is {agreement:.1%} (at least {limits.top1_agreement:.1%})"
            failures.append(Failure("top1_agreement", _ratio(1 - agreement, 1 - limits.top1_agreement), sentence))
        drop, most = self.accuracy_drop_points, limits.accuracy_drop_points
        # Accuracies are multiples of 100 / count points; the small margin keeps their rounding from failing the check.
        if drop is not None and not drop <= most + 1e-9:
            sentence = f"the accuracy drops by {drop:.2f} points to {self.accuracy:.1%} (at most {most:g})"
            failures.append(Failure("accuracy_drop_points", _ratio(drop, most), sentence))
        failures.sort(key=lambda failure: -failure.excess)
        if self.better_order is not None:
            predicted, label = self.better_order
            sentence = f"the class names are in a wrong order: images that it calls {predicted!r} are mostly labelled {label!r}"
            failures.insert(0, Failure("class_order", math.inf, sentence))
        return tuple(failures)

    @property
    def passed(self) -> bool:
        """Whether every measure is within its threshold."""
        return not self.failures

    @property
    def summary(self) -> str:
        """One sentence about the worst failure; empty if the artifact passed."""
        if self.passed:
            return ""
        worst, more = self.failures[0], len(self.failures) - 1
        others = f", and {more} further measure{'s' if more > 1 else ''} failed" if more else ""
        return f"{self.subject}: {worst.sentence}, compared with the {self.reference} on {self.images}{others}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form for manifests. Numbers that are not finite become None, because JSON can't express them."""
        record: dict[str, Any] = {
            "passed": self.passed,
            "failed": [failure.measure for failure in self.failures],
            **dataclasses.asdict(self),
            "accuracy_standard_error": self._standard_error(self.accuracy),
            "reference_accuracy_standard_error": self._standard_error(self.reference_accuracy),
            "accuracy_drop_points": self.accuracy_drop_points,
            "relative_error_by_batch": {str(batch): error for batch, error in self.relative_error_by_batch.items()},
        }
        return {key: finite_or_null(value) for key, value in record.items()}

    def _standard_error(self, accuracy: float | None) -> float | None:
        return None if accuracy is None else standard_error(accuracy, self.count)


def _ratio(value: float, threshold: float) -> float:
    return value / threshold if threshold > 0 else math.inf


def measure_artifact(
    artifact: Logits,
    reference: Logits,
    images: VerificationImages,
    *,
    precision: str,
    thresholds: Thresholds,
    subject: str,
    batches: Sequence[int],
    class_names: Sequence[str] | None = None,
    reference_is: str,
) -> Verification:
    """Runs an artifact and its reference on all images, in batches of each size in turn, and compares their logits.

    Args:
        artifact, reference: compute logits ``(batch, num_classes)`` of images; several threads may call them at once.
        precision: precision of the artifact.
        thresholds: thresholds to meet; see :func:`growtas.export.quantization.thresholds.thresholds_for`.
        subject, reference_is: names of the two in messages.
        batches: batch sizes. An incomplete last batch is filled with the first images, whose answers are not counted again.
        class_names: the artifact's class names, in the order of its logits. A prediction is right if its name is that of the
            image's label. Without names the class numbers are compared.

    Raises:
        ConfigError: there are no batch sizes, or one is below 1.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"the batch sizes are {list(batches)}; they must be 1 or more")
    sizes = list(batches)
    while sum(sizes) < len(images):
        sizes.append(batches[len(sizes) % len(batches)])
    runs = run_all((artifact, reference), cut_batches(images.images, sizes))
    finite = all(got.shape == want.shape and np.isfinite(got).all() and np.isfinite(want).all() for got, want in runs)
    verification = Verification(
        subject=subject,
        reference=reference_is,
        precision=precision,
        thresholds=thresholds,
        images=images.description,
        count=len(images),
        labelled=images.labels is not None,
        unlabelled_because=images.unlabelled_because,
        batches=tuple(dict.fromkeys(batches)),
        finite=finite,
    )
    if not finite:
        return verification
    got, want = (np.concatenate([run[side] for run in runs]).astype(np.float64) for side in (0, 1))
    errors, scale = np.abs(got - want).max(1), float(np.abs(want).max())
    of_batch = np.repeat(sizes, sizes)
    cosines = _cosines(got, want)
    first, expected = got.argmax(1)[: len(images)], want.argmax(1)[: len(images)]
    if images.labels is not None:
        answers = _labels_of_outputs(images, class_names, got.shape[1])[first]
        right, reference_right = answers == images.labels, expected == images.labels
        verification = dataclasses.replace(
            verification,
            accuracy=float(right.mean()),
            reference_accuracy=float(reference_right.mean()),
            accuracy_drop_error_points=100 * float(np.std(reference_right.astype(float) - right)) / math.sqrt(len(images)),
            better_order=_better_order(answers, images),
        )
    return dataclasses.replace(
        verification,
        max_abs_error=float(errors.max()),
        relative_error=relative_error(float(errors.max()), scale),
        relative_error_by_batch={
            batch: relative_error(float(errors[of_batch == batch].max()), scale) for batch in verification.batches
        },
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        top1_agreement=float((first == expected).mean()),
    )


def _cosines(got: NDArray[np.float64], want: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosine of each row with its counterpart: 1 for two rows of zeros, 0 if only one of them is zero."""
    norms = np.linalg.norm(got, axis=1), np.linalg.norm(want, axis=1)
    product = norms[0] * norms[1]
    cosines = np.einsum("ij,ij->i", got, want) / np.where(product > 0, product, 1.0)
    result: NDArray[np.float64] = np.where((norms[0] == 0) & (norms[1] == 0), 1.0, np.clip(cosines, -1.0, 1.0))
    return result


def _labels_of_outputs(images: VerificationImages, class_names: Sequence[str] | None, outputs: int) -> NDArray[np.int64]:
    """The label of each output of the artifact; -1 if the data has no class of that name."""
    if class_names is None or images.class_names is None:
        return np.arange(outputs)
    label = {name: index for index, name in enumerate(images.class_names)}
    # If there are fewer names than outputs, predictions of the unnamed outputs count as wrong.
    labels = np.full(max(outputs, len(class_names)), -1, np.int64)
    labels[: len(class_names)] = [label.get(name, -1) for name in class_names]
    return labels


def _better_order(answers: NDArray[np.int64], images: VerificationImages) -> tuple[str, str] | None:
    """The two classes that are confused most often, if another order of the names would give a far higher accuracy; else None.

    This needs no reference, so it also finds an order that is already wrong in the run. "Far higher" means 1.25 times as high, ten
    points more, and at least 50 %: an untrained network does not reach that by chance.
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


def check_fp16_range(path: Path, images: VerificationImages, artifact_input: ArtifactInput, *, consequence: str = "") -> HalfRange:
    """Runs an ONNX file on a few images of every class, and checks that no fp16 tensor overflows.

    Raises:
        ParityError: a tensor overflows.
        CheckpointError, MissingExtra: ONNX Runtime can't run the graph, or is not installed.
    """
    few = artifact_input.convert(spread(images.images, _RANGE_IMAGES))
    return check_half_range(path, few, subject=path.name, consequence=consequence)
