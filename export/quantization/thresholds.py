"""The largest differences from its source that an artifact of each precision may have."""

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
"""The option that replaces each threshold, with its least and largest value."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What an artifact may differ by; equality passes.

    Attributes:
        relative_error: the most that ``max |a - b| / max |b|`` over all images may be.
        cosine: the least cosine of an image's logits with the reference's, the worst image of all.
        top1_agreement: the least share of images with the same first class, 0 to 1.
        accuracy_drop_points: the most percentage points of accuracy that may be lost.
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
        """These thresholds with those replaced that aren't None, named as the command line names them.

        Raises:
            ConfigError: a value out of range.
        """
        given = (max_error, min_cosine, min_agreement, max_accuracy_drop)
        return dataclasses.replace(self, **{name: value for name, value in zip(OPTIONS, given, strict=True) if value is not None})


THRESHOLDS: Mapping[str, Thresholds] = {
    # Rounding alone is 1e-6 or so: 1e-4 is a hundred times that and far below any fault seen. One image in 300 may tip over.
    "fp32": Thresholds(relative_error=1e-4, cosine=0.99999, top1_agreement=0.995, accuracy_drop_points=0.3),
    # 11 bits of mantissa, 5e-4 a rounding; 7e-4 in the logits of five blocks was measured, and it grows with their number.
    "fp16": Thresholds(relative_error=1e-2, cosine=0.9995, top1_agreement=0.99, accuracy_drop_points=0.3),
    # 8 bits of mantissa: eight times the error of fp16.
    "bf16": Thresholds(relative_error=8e-2, cosine=0.99, top1_agreement=0.97, accuracy_drop_points=0.5),
    # Every product in int8 moved single logits by a third and one image in twenty to another class, and lost 0.6 points of
    # accuracy: that is what decides, and the other three are there to find what is broken.
    "int8": Thresholds(relative_error=5e-1, cosine=0.8, top1_agreement=0.93, accuracy_drop_points=0.5),
    # 4 bits of mantissa: as coarse as int8 near the largest number and finer near zero.
    "fp8": Thresholds(relative_error=5e-1, cosine=0.8, top1_agreement=0.93, accuracy_drop_points=0.5),
}
"""What passes by default, a row a precision."""


def thresholds_for(precision: str) -> Thresholds:
    """The default thresholds of a precision.

    Raises:
        ConfigError: another precision than :data:`THRESHOLDS` has.
    """
    if precision not in THRESHOLDS:
        raise ConfigError(f"precision is {precision!r}; legal are {choices(THRESHOLDS)}")
    return THRESHOLDS[precision]
