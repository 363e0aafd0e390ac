"""The largest allowed differences between an artifact of each precision and its source."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from growtas.errors import ConfigError, choices

OPTIONS: Mapping[str, tuple[str, float, float]] = {
    "relative_error": ("--max-error", 0.0, math.inf),
    "cosine": ("--min-cosine", -1.0, 1.0),
    "top1_agreement": ("--min-agreement", 0.0, 1.0),
    "accuracy_drop_points": ("--max-accuracy-drop", 0.0, 100.0),
}
"""The option that replaces each threshold, with its smallest and largest legal value."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The limits of an artifact's differences from its reference. A value equal to its limit passes.

    Attributes:
        relative_error: largest ``max |a - b| / max |b|`` of the logits over all images.
        cosine: smallest cosine between an image's logits and the reference's; every image must reach it.
        top1_agreement: smallest share of images for which both predict the same class, 0 to 1.
        accuracy_drop_points: largest loss of accuracy in percentage points.
    """

    relative_error: float
    cosine: float
    top1_agreement: float
    accuracy_drop_points: float

    def __post_init__(self) -> None:
        for name, (option, least, most) in OPTIONS.items():
            value = getattr(self, name)
            # Comparisons with NaN are false, so it is refused as well.
            if not (least <= value <= most and math.isfinite(value)):
                legal = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} up"
                raise ConfigError(f"{option} is {value:g}; it must be a number from {legal}")

    def override(
        self,
        *,
        max_error: float | None = None,
        min_cosine: float | None = None,
        min_agreement: float | None = None,
        max_accuracy_drop: float | None = None,
    ) -> Thresholds:
        """Returns these thresholds with replacements for all arguments that are not None.

        Raises:
            ConfigError: a value is out of range.
        """
        given = (max_error, min_cosine, min_agreement, max_accuracy_drop)
        return dataclasses.replace(self, **{name: value for name, value in zip(OPTIONS, given, strict=True) if value is not None})


THRESHOLDS: Mapping[str, Thresholds] = {
    # Rounding alone causes about 1e-6; 1e-4 is a hundred times that, far below any known fault. One prediction in 300 may change.
    "fp32": Thresholds(relative_error=1e-4, cosine=0.99999, top1_agreement=0.995, accuracy_drop_points=0.3),
    # 11 bits of mantissa, 5e-4 per rounding. The logits of five blocks had an error of 7e-4, which grows with the number of blocks.
    "fp16": Thresholds(relative_error=1e-2, cosine=0.9995, top1_agreement=0.99, accuracy_drop_points=0.3),
    # 8 bits of mantissa: eight times the error of fp16.
    "bf16": Thresholds(relative_error=8e-2, cosine=0.99, top1_agreement=0.97, accuracy_drop_points=0.5),
    # With every product in int8, single logits changed by a third, one prediction in twenty changed, and 0.6 points of accuracy
    # were lost. The accuracy decides; the other three limits only find broken files.
    "int8": Thresholds(relative_error=5e-1, cosine=0.8, top1_agreement=0.93, accuracy_drop_points=0.5),
    # 4 bits of mantissa: as coarse as int8 near the largest number and finer near zero.
    "fp8": Thresholds(relative_error=5e-1, cosine=0.8, top1_agreement=0.93, accuracy_drop_points=0.5),
}
"""The default thresholds of each precision."""


def thresholds_for(precision: str) -> Thresholds:
    """Returns the default thresholds of a precision.

    Raises:
        ConfigError: the precision is not in :data:`THRESHOLDS`.
    """
    if precision not in THRESHOLDS:
        raise ConfigError(f"precision is {precision!r}; legal are {choices(THRESHOLDS)}")
    return THRESHOLDS[precision]
