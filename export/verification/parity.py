"""The parity gate: an artifact leaves the temporary folder only if its logits on real images match those of its source."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from growtas.errors import ConfigError, ParityError
from growtas.export.runtimes.base import Array
from growtas.export.verification.batches import Logits, cut_batches, run_all
from growtas.export.verification.images import VerificationImages

DEFAULT_TOLERANCE = 1e-4
ODD_BATCH = 3
MAX_MAX_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An artifact compared with one reference at one batch size.

    Attributes:
        against: name of the reference.
        batch: number of images in the batch.
        max_abs_error: largest absolute difference of two logits.
        relative_error: ``max |a - b| / max |b|`` over the batch; infinite if the shapes differ or a logit is not finite.
        top1_agreement: share of images for which both predict the same class, 0 to 1.
    """

    against: str
    batch: int
    max_abs_error: float
    relative_error: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The strict comparisons of one artifact.

    The JSON adds ``passed`` and the worst ``relative_error``, ``max_abs_error`` and ``top1_agreement`` of all comparisons.

    Attributes:
        subject: the artifact and its runtime, such as ``micro-subnet.onnx in ONNX Runtime``.
        tolerance: largest ``relative_error`` that passes.
        images: description of the images.
        comparisons: one comparison for each reference and batch size.
    """

    subject: str
    tolerance: float
    images: str
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison is within the tolerance."""
        # Comparisons with NaN are false, so an artifact with NaN can't pass.
        return all(comparison.relative_error <= self.tolerance for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form for manifests."""
        return {
            "passed": self.passed,
            "subject": self.subject,
            "tolerance": self.tolerance,
            "images": self.images,
            "relative_error": max(comparison.relative_error for comparison in self.comparisons),
            "max_abs_error": max(comparison.max_abs_error for comparison in self.comparisons),
            "top1_agreement": min(comparison.top1_agreement for comparison in self.comparisons),
            "comparisons": [dataclasses.asdict(comparison) for comparison in self.comparisons],
        }


def gate_batches(max_batch: int) -> tuple[int, ...]:
    """Returns the batch sizes to check: 1, an odd one, and the maximum.

    Raises:
        ConfigError: the maximum is not in the range 1 to 1024.
    """
    if not 1 <= max_batch <= MAX_MAX_BATCH:
        raise ConfigError(f"--max-batch is {max_batch}; it must be from 1 to {MAX_MAX_BATCH}")
    return tuple(sorted({1, min(ODD_BATCH, max_batch), max_batch}))


def compare(got: Array, want: Array, *, against: str) -> Comparison:
    """Compares logits ``(batch, num_classes)`` of an artifact with a reference's."""
    batch = len(want)
    if got.shape != want.shape or not (np.isfinite(got).all() and np.isfinite(want).all()):
        return Comparison(against=against, batch=batch, max_abs_error=np.inf, relative_error=np.inf, top1_agreement=0.0)
    error, scale = float(np.abs(got - want).max()), float(np.abs(want).max())
    agreement = float((got.argmax(1) == want.argmax(1)).mean())
    relative = relative_error(error, scale)
    return Comparison(against=against, batch=batch, max_abs_error=error, relative_error=relative, top1_agreement=agreement)


def relative_error(error: float, scale: float) -> float:
    """Returns an error divided by the largest logit; infinite if all logits should be 0 but are not."""
    return error / scale if scale else (0.0 if error == 0.0 else math.inf)


def run_gate(
    artifact: Logits,
    references: Mapping[str, Logits],
    images: VerificationImages,
    *,
    subject: str,
    max_batch: int,
    tolerance: float = DEFAULT_TOLERANCE,
) -> ParityReport:
    """Compares an artifact with every reference at every batch size of :func:`gate_batches`.

    Args:
        artifact: computes the logits of images; several threads may call it and the references at once.
        references: the reference functions by name.
        images: the images; each batch takes the next ones, and starts again after the last.
        subject: name of the artifact in messages.

    Raises:
        ConfigError: the tolerance is not between 0 and 1, or the maximum batch is out of range.
        ParityError: an error is above the tolerance; the message names the worst one.
    """
    if not 0 < tolerance < 1:
        raise ConfigError(f"--tolerance is {tolerance:g}; it must be between 0 and 1 (relative error, 1e-4 by default)")
    batches = cut_batches(images.images, gate_batches(max_batch))
    comparisons = [
        compare(got, want, against=name)
        for got, *expected in run_all((artifact, *references.values()), batches)
        for name, want in zip(references, expected, strict=True)
    ]
    report = ParityReport(subject=subject, tolerance=tolerance, images=images.description, comparisons=tuple(comparisons))
    if not report.passed:
        failed = [comparison for comparison in comparisons if not comparison.relative_error <= tolerance]
        worst = max(failed, key=lambda comparison: comparison.relative_error)
        raise ParityError(
            f"{subject}: logits differ from the {worst.against}'s by {worst.relative_error:.2g} relative at batch {worst.batch} "
            f"(tolerance {tolerance:g}, top-1 agreement {worst.top1_agreement:.0%}); nothing was exported"
        )
    return report
