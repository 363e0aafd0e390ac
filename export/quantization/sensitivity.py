"""Finds the layers that must stay in fp32 so that the other layers can have a lower precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.data.split import evenly_spaced
from growtas.errors import BuildError
from growtas.export.quantization.calibration import Array
from growtas.export.quantization.convert import PrecisionInfo, convert
from growtas.progress import SILENT, Progress

RANKING_IMAGES = 32
"""Number of calibration images for ranking the layers; few images show which layers are the most sensitive."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The layers that stay in fp32.

    Attributes:
        info: description of the file that passes; not in the JSON, where it is under ``conversion``.
        kept: layers that stay in fp32, the most sensitive one first.
        errors: for each layer the error of the logits (Euclidean norm) of a file in which only this layer has the low precision;
            infinite for NaN.
        tried: number of files with several low layers that were made and checked.
    """

    info: PrecisionInfo
    kept: tuple[str, ...]
    errors: dict[str, float]
    tried: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form for manifests."""
        return {"kept": list(self.kept), "errors": self.errors, "tried": self.tried}


def find_sensitive(
    source: Path,
    out: Path,
    precision: str,
    layers: Sequence[str],
    *,
    error: Callable[[Path], float],
    passes: Callable[[Path], bool],
    calibration: Array | None = None,
    keep: Collection[str] = (),
    progress: Progress = SILENT,
    **settings: Any,
) -> Sensitivity | None:
    """Finds the smallest number of the most sensitive layers that must stay in fp32 so that a file passes.

    A layer's sensitivity is the error of a file in which only this layer has the low precision. Then the 1, 2, 4, ... most
    sensitive layers stay in fp32 until a file passes, and bisection finds the smallest such number. It is minimal if keeping fewer
    layers is never better.

    Args:
        source: the fp32 file.
        out: path of the files that are tried; at the end it holds the file that passes.
        layers: names of the layers that may have the low precision.
        error: returns the error of a file compared with the source; larger is worse, and NaN is worst.
        passes: returns whether a file is good enough.
        calibration: as for :func:`~growtas.export.quantization.convert.convert`, like all further keyword arguments.
        keep: layers that stay in fp32 in any case.

    Returns:
        The kept layers and the file; None if a file with only the least sensitive layer in low precision does not pass.

    Raises:
        BuildError, ConfigError, OutputError: as for the conversion.
    """
    few = None if calibration is None else calibration[evenly_spaced(len(calibration), RANKING_IMAGES)]
    errors: dict[str, float] = {}
    for number, layer in enumerate(layers):
        progress.stage(f"looking for layers that have to stay in fp32 ({number} of {len(layers)})")
        others = [other for other in layers if other != layer]
        convert(source, out, precision, calibration=few, keep=[*keep, *others], **settings)
        layer_error = error(out)
        errors[layer] = float("inf") if math.isnan(layer_error) else layer_error
    order = sorted(layers, key=lambda layer: -errors[layer])
    tried = 0

    def attempt(count: int) -> PrecisionInfo | None:
        nonlocal tried
        tried += 1
        try:
            info = convert(source, out, precision, calibration=calibration, keep=[*keep, *order[:count]], **settings)
        except BuildError:  # no layer is left to convert
            return None
        return info if passes(out) else None

    failed, count = 0, 1
    while count < len(order) and attempt(count) is None:
        failed, count = count, 2 * count
    count = min(count, len(order) - 1)
    if count < 1:
        return None
    while count - failed > 1:
        middle = (failed + count) // 2
        if attempt(middle) is None:
            failed = middle
        else:
            count = middle
    info = attempt(count)
    if info is None:
        return None
    return Sensitivity(info=info, kept=tuple(order[:count]), errors=errors, tried=tried)
