"""The parity gate: an artifact leaves the temporary folder only when it computes what its source computes, on real images."""

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
        against: what the artifact was compared with.
        batch: images in the batch.
        max_abs_error: largest difference of two logits.
        relative_error: ``max |a - b| / max |b|``; infinite where the shapes differ or a logit is not finite.
        top1_agreement: share of images with the same largest logit.
    """

    against: str
    batch: int
    max_abs_error: float
    relative_error: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The strict comparisons of one artifact.

    Attributes:
        subject: what was run, such as ``micro-subnet.onnx in onnxruntime``.
        tolerance: largest ``relative_error`` that passes.
        images: which images were used.
        comparisons: one a reference and batch.
    """

    subject: str
    tolerance: float
    images: str
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison is within the tolerance."""
        # A comparison with NaN is false, so a broken artifact can't pass.
        return all(comparison.relative_error <= self.tolerance for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form for manifests."""
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
    """The batch sizes that are checked: 1, an odd one, and the maximum.

    Raises:
        ConfigError: a maximum outside 1 to 1024.
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
    """An error divided by the largest logit; infinite where all logits should be 0 and aren't."""
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
        artifact: images to logits; it and the references may be called from several threads at once.
        references: name to the same function, computed by the source.
        images: each batch takes other ones as far as they reach.
        subject: what to call the artifact.

    Raises:
        ConfigError: a tolerance that is not above zero, or a maximum batch out of range.
        ParityError: an error above the tolerance; the message names the worst.
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
