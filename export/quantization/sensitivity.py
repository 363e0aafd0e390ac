"""Finds by trying which layers must stay in fp32 so that the rest may go lower."""

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
"""Calibration images while layers are ranked: which of them hurts most shows on few."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The layers that stay in fp32.

    Attributes:
        info: of the file that passes.
        kept: layers that stay in fp32, the most sensitive one first.
        errors: for each layer the error of a file in which it alone is low.
        tried: files that were made and judged.
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
    """Keeps as few layers in fp32 as make a file pass, the most sensitive ones.

    Each layer is made low alone, and the error is its sensitivity. Then the first 1, 2, 4, ... of the order stay high until a file
    passes, and the number in between is found by bisection; so it is the least of that order, if fewer layers never do better.

    Args:
        source: the fp32 file.
        out: where the files are written, one after the other; at the end the one that passes.
        layers: those that may be low, by name.
        error: of a file, compared with the source; larger is worse, and NaN is worst.
        passes: whether a file is good enough.
        calibration: as for :func:`~growtas.export.quantization.convert.convert`, as are more keyword arguments.
        keep: layers that stay in any case.

    Returns:
        The layers and the file; None where not even the least sensitive layer alone passes.

    Raises:
        BuildError, ConfigError, OutputError: as the conversion.
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
        except BuildError:  # nothing is left to be low
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
