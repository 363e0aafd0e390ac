"""Quantities with units, as people type them: ``6M``, ``1.3G``, ``5ms``, ``300us``, ``20MB``.

A bare number is refused: ``--max-latency 5`` could mean seconds or milliseconds, ``--max-params 6`` six weights.
"""

from __future__ import annotations

import math
import re

from growtas.errors import UnitError

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([^\d\s]*)\s*", re.IGNORECASE)
_COUNT = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_TIME_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3}


def _parse(text: str, units: dict[str, float], what: str, example: str) -> float:
    legal = ", ".join(units)
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise UnitError(f"{what} {text!r} is not a number with a unit ({legal}); write {example}")
    number, unit = float(match[1]), match[2]
    if not unit:
        raise UnitError(f"{what} {text!r} has no unit, and a bare number could mean any of {legal}; write {example}")
    if unit not in units:
        raise UnitError(f"{what} {text!r} has the unit {unit!r}; legal are {legal}, as in {example}")
    value = number * units[unit]
    if not math.isfinite(value) or value <= 0:
        raise UnitError(f"{what} {text!r} must be finite and above zero, as in {example}")
    return value


def parse_count(text: str, what: str = "count", example: str = "6M") -> int:
    """A count of parameters or MACs: ``6M`` -> 6_000_000. Units K, M, G (or B), T; case matters not.

    Raises:
        UnitError: no unit, an unknown unit, or a value that is not above zero.
    """
    stripped = text.strip()
    return round(_parse(stripped[:-1] + stripped[-1:].upper(), _COUNT, what, example))


def parse_latency_ms(text: str, what: str = "latency", example: str = "5ms") -> float:
    """A latency in milliseconds: ``5ms`` -> 5.0, ``300us`` -> 0.3, ``1s`` -> 1000.0.

    Raises:
        UnitError: no unit, an unknown unit, or a value that is not above zero.
    """
    return _parse(text.strip(), _TIME_MS, what, example)


def format_count(value: float) -> str:
    """``5867944`` -> ``5.87M``: three significant digits, units as :func:`parse_count` reads them."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}" if abs(value) < 999.5 * factor else f"{value / factor:.0f}{unit}"
    return f"{value:.3g}"


def format_ms(value: float) -> str:
    """Milliseconds with three significant digits and the unit: ``4.21 ms``, ``0.35 ms``."""
    return f"{value:.3g} ms" if value < 999.5 else f"{value:.0f} ms"


def format_bytes(value: float) -> str:
    """Bytes in decimal units: ``22.7 MB``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}" if abs(value) < 999.5 * factor else f"{value / factor:.0f} {unit}"
    return f"{value:.0f} B"


def standard_error(share: float, count: int) -> float:
    """Standard error of a share that was counted on some images: sqrt(share * (1 - share) / count).

    Where all or none were right that would be zero, as if nothing were uncertain; it is then 1 / (2 * (count + 1)), the half width
    of Wilson's interval at one standard deviation.
    """
    return math.sqrt(share * (1 - share) / count) if 0 < share < 1 else 1 / (2 * (count + 1))


def format_accuracy(share: float, count: int | None) -> str:
    """An accuracy with its standard error on ``count`` images: ``87.3 ± 1.5 %``; without one where the number is not known."""
    if not count:
        return f"{100 * share:.2f} %"
    points = 100 * standard_error(share, count)
    digits = 1 if points >= 0.95 else 2
    return f"{100 * share:.{digits}f} ± {points:.{digits}f} %"
