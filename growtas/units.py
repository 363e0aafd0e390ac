"""Quantities with units in command-line options: ``6M``, ``1.3G``, ``5ms``, ``300us``, ``20MB``.

A plain number is a count or a number of bytes. A time needs a unit, because ``--max-latency 5`` could mean seconds or milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from growtas.errors import UnitError

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([^\d\s]*)\s*", re.IGNORECASE)
_COUNT = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_BYTES = {"": 1.0, "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_TIME_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3}
# Unicode has two micro signs, and keyboards produce either of them.
_MICRO_SIGN, _GREEK_MU = "\u00b5", "\u03bc"
_EXACT_DIGITS = 12


class TypedInt(int):
    """A count or a number of bytes, with its original ``text``."""

    text: str


class TypedFloat(float):
    """A number of milliseconds, with its original ``text``."""

    text: str


def _parse(text: str, units: Mapping[str, float], what: str, example: str, *, either_case: bool = False) -> float:
    legal = ", ".join(filter(None, units))
    match = _NUMBER.fullmatch(text)
    if match is None:
        with_unit = "with or without a unit" if "" in units else "with a unit"
        raise UnitError(f"{what} {text!r} is not a number {with_unit} ({legal}); write {example}")
    number, unit = float(match[1]), match[2].replace(_GREEK_MU, _MICRO_SIGN)
    if either_case:
        unit = unit.upper()
    if unit not in units:
        if not unit:
            raise UnitError(
                f"{what} {text!r} has no unit, but a number without a unit is ambiguous; legal units are {legal}, as in {example}"
            )
        raise UnitError(f"{what} {text!r} has the unit {match[2]!r}; legal are {legal}, as in {example}")
    value = number * units[unit]
    if not math.isfinite(value) or value <= 0:
        raise UnitError(f"{what} {text!r} must be finite and above zero, as in {example}")
    return value


def _parse_whole(text: str, units: Mapping[str, float], what: str, example: str, *, either_case: bool = False) -> TypedInt:
    value = TypedInt(round(_parse(text, units, what, example, either_case=either_case)))
    if value < 1:
        raise UnitError(f"{what} {text!r} must be at least 1, as in {example}")
    value.text = text.strip()
    return value


def parse_count(text: str, what: str = "count", example: str = "6M") -> TypedInt:
    """Parses a number of parameters or MACs: ``6M`` -> 6_000_000. Units: K, M, G (or B), T, in upper or lower case, or none.

    Raises:
        UnitError: The unit is unknown, or the value is below one.
    """
    return _parse_whole(text, _COUNT, what, example, either_case=True)


def parse_bytes(text: str, what: str = "size", example: str = "20MB") -> TypedInt:
    """Parses a size in bytes: ``20MB`` -> 20_000_000, ``1MiB`` -> 1_048_576, ``512`` -> 512.

    Raises:
        UnitError: The unit is unknown, or the value is below one byte.
    """
    return _parse_whole(text, _BYTES, what, example)


def parse_latency_ms(text: str, what: str = "latency", example: str = "5ms") -> TypedFloat:
    """Parses a latency to milliseconds: ``5ms`` -> 5.0, ``300us`` -> 0.3, ``1s`` -> 1000.0.

    Raises:
        UnitError: The unit is missing or unknown, or the value is not above zero.
    """
    value = TypedFloat(_parse(text, _TIME_MS, what, example))
    value.text = text.strip()
    return value


def format_limit(value: float, form: Callable[[float, int], str]) -> str:
    """Formats a limit with its original text; a number without one, such as from a file, with all of its digits.

    Args:
        value: the limit.
        form: the format of numbers without text: one of the functions below.
    """
    return value.text if isinstance(value, TypedInt | TypedFloat) else form(value, _EXACT_DIGITS)


def format_count(value: float, digits: int = 3) -> str:
    """Formats a count with three significant digits and the units of :func:`parse_count`: ``5867944`` -> ``5.87M``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor:
            return f"{_significant(value / factor, digits)}{unit}"
    return f"{value:.{digits}g}"


def format_ms(value: float, digits: int = 3) -> str:
    """Formats milliseconds with three significant digits: ``4.21 ms``, ``0.35 ms``."""
    return f"{_significant(value, digits)} ms"


def format_ratio(value: float) -> str:
    """Two digits after the point; for ratios below 0.1 two significant digits, so that none is shown as 0.00."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def format_bytes(value: float, digits: int = 3) -> str:
    """Formats bytes in decimal units: ``22.7 MB``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{_significant(value / factor, digits)} {unit}"
    return f"{value:.0f} B"


def format_seconds(seconds: float) -> str:
    """``7.2 s``, ``3 min 20 s``, ``5 h 12 min``, ``2 d 3 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    if (minutes := round(seconds / 60)) < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _significant(value: float, digits: int) -> str:
    """Rounds to significant digits, without an exponent even for large numbers."""
    return f"{value:.{digits}g}" if abs(value) < 10.0**digits - 0.5 else f"{value:.0f}"


def standard_error(share: float, count: int) -> float:
    """Returns the standard error of an accuracy (0 to 1) on ``count`` images: sqrt(share * (1 - share) / count).

    For accuracies of 0 and 1, that formula gives zero, as if there were no uncertainty. The result is then 1 / (2 * (count + 1)),
    half the width of Wilson's interval at one standard deviation.
    """
    return math.sqrt(share * (1 - share) / count) if 0 < share < 1 else 1 / (2 * (count + 1))


def format_accuracy(share: float, count: int | None) -> str:
    """Formats an accuracy with its standard error on ``count`` images: ``87.3 ± 1.5 %``; without the error if ``count`` is None."""
    if not count:
        return f"{100 * share:.2f} %"
    points = 100 * standard_error(share, count)
    digits = 1 if points >= 0.95 else 2
    return f"{100 * share:.{digits}f} ± {points:.{digits}f} %"
