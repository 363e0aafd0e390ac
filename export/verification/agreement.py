"""Compares an artifact's answers with its reference's on some hundreds of real images, with thresholds for every precision.

:mod:`growtas.export.verification.parity` compares a dozen images strictly, which only fp32 can meet. Here an artifact may
differ by what its precision costs, and by no more.
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
# Below ten images a class, an order of the names that fits better is found by chance.
_IMAGES_A_CLASS = 10


@dataclass(frozen=True)
class Failure:
    """A measure that misses its threshold; ``sentence`` is for people, ``excess`` ranks failures (1 is the threshold itself)."""

    measure: str
    excess: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The measurements of one artifact and the thresholds that it had to meet.

    Attributes:
        subject: what was run, such as ``micro-subnet.onnx in ONNX Runtime``.
        reference: what it was compared with.
        precision: whose thresholds were taken.
        thresholds: what had to be met.
        images: which images were used; ``count`` how many.
        labelled: whether they have labels; ``unlabelled_because`` says why not.
        batches: the batch sizes that were run, in turn.
        finite: whether every logit of both is a number, of the same shape.
        max_abs_error: largest difference of two logits; infinite unless ``finite``.
        relative_error: that, divided by the largest logit of the reference.
        relative_error_by_batch: the same for the images of each batch size.
        cosine_min, cosine_mean: of an image's logits with the reference's; 0 unless ``finite``.
        top1_agreement: share of images with the same first class, 0 to 1.
        accuracy, reference_accuracy: shares of images with the right class, by its name where names are known; None without labels.
        accuracy_drop_error_points: standard error of the drop, from the images that only one of the two gets right.
        better_order: where another order of the class names would make many more answers right, the two names that are most often
            taken for each other; None otherwise.
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
    # The defaults are those of logits that can't be compared.
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
        """Percentage points of accuracy that the artifact loses; negative where it gains, None without labels."""
        if self.accuracy is None or self.reference_accuracy is None:
            return None
        return 100 * (self.reference_accuracy - self.accuracy)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Every measure out of bounds, the worst first."""
        if not self.finite:
            sentence = "some logits are not finite, or of another shape than the reference's"
            return (Failure("finite", math.inf, sentence),)
        limits, failures = self.thresholds, []
        error, cosine, agreement = self.relative_error, self.cosine_min, self.top1_agreement
        # Written so that NaN fails.
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
        # An image more or less is a step of 100 / count points: the sum of two such fractions must not fail by its rounding.
        if drop is not None and not drop <= most + 1e-9:
            sentence = f"the accuracy drops by {drop:.2f} points to {self.accuracy:.1%} (at most {most:g})"
            failures.append(Failure("accuracy_drop_points", _ratio(drop, most), sentence))
        failures.sort(key=lambda failure: -failure.excess)
        if self.better_order is not None:
            given, meant = self.better_order
            sentence = f"the class names are in a wrong order: what it calls {given!r} is mostly labelled {meant!r}"
            failures.insert(0, Failure("class_order", math.inf, sentence))
        return tuple(failures)

    @property
    def passed(self) -> bool:
        """Whether every measure is within its threshold."""
        return not self.failures

    @property
    def summary(self) -> str:
        """One sentence on the worst failure; an empty text where there is none."""
        if self.passed:
            return ""
        worst, more = self.failures[0], len(self.failures) - 1
        others = f", and {more} further measure{'s' if more > 1 else ''} failed" if more else ""
        return f"{self.subject}: {worst.sentence}, compared with the {self.reference} on {self.images}{others}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form for manifests; what isn't finite is None, since JSON has no word for it."""
        written: dict[str, Any] = {
            "passed": self.passed,
            "failed": [failure.measure for failure in self.failures],
            **dataclasses.asdict(self),
            "accuracy_standard_error": self._standard_error(self.accuracy),
            "reference_accuracy_standard_error": self._standard_error(self.reference_accuracy),
            "accuracy_drop_points": self.accuracy_drop_points,
            "relative_error_by_batch": {str(batch): error for batch, error in self.relative_error_by_batch.items()},
        }
        return {key: finite_or_null(value) for key, value in written.items()}

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
        artifact, reference: images to logits ``(batch, num_classes)``; they may be called from several threads at once.
        precision: of the artifact.
        thresholds: what it has to meet; see :func:`growtas.export.quantization.thresholds.thresholds_for`.
        subject, reference_is: what to call the two.
        batches: batch sizes; the last images are filled up with the first ones where they are fewer,
            whose answers don't count again.
        class_names: the names that the artifact's users will read, in its order; an answer is right where its name is that of the
            image's label. Without names the numbers are compared.

    Raises:
        ConfigError: no batch sizes, or one below 1.
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
    """Cosine of each row with its counterpart; two rows of zeros are equal, one alone is orthogonal to everything."""
    norms = np.linalg.norm(got, axis=1), np.linalg.norm(want, axis=1)
    product = norms[0] * norms[1]
    cosines = np.einsum("ij,ij->i", got, want) / np.where(product > 0, product, 1.0)
    result: NDArray[np.float64] = np.where((norms[0] == 0) & (norms[1] == 0), 1.0, np.clip(cosines, -1.0, 1.0))
    return result


def _labels_of_outputs(images: VerificationImages, class_names: Sequence[str] | None, outputs: int) -> NDArray[np.int64]:
    """The label that each output of the artifact stands for, -1 where the data has no class of that name."""
    if class_names is None or images.class_names is None:
        return np.arange(outputs)
    label = {name: index for index, name in enumerate(images.class_names)}
    # Names that are too few leave outputs without one; these answers are wrong.
    labels = np.full(max(outputs, len(class_names)), -1, np.int64)
    labels[: len(class_names)] = [label.get(name, -1) for name in class_names]
    return labels


def _better_order(answers: NDArray[np.int64], images: VerificationImages) -> tuple[str, str] | None:
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


def check_fp16_range(path: Path, images: VerificationImages, artifact_input: ArtifactInput, *, consequence: str = "") -> HalfRange:
    """Runs an ONNX file on a few images of every class, and looks for fp16 tensors that overflow.

    Raises:
        ParityError: one does.
        CheckpointError, MissingExtra: ONNX Runtime can't run the graph, or is not installed.
    """
    few = artifact_input.convert(spread(images.images, _RANGE_IMAGES))
    return check_half_range(path, few, subject=path.name, consequence=consequence)
