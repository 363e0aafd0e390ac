"""Checking the values of a method's own options."""

from __future__ import annotations

import math

from growtas.errors import ConfigError


def check_whole(name: str, value: int, low: int, high: float = math.inf) -> None:
    """Refuse a whole number outside ``low`` to ``high``.

    Raises:
        ConfigError: naming the option, its value and the legal ones.
    """
    if not low <= value <= high:
        legal = f"from {low} to {high:g}" if high < math.inf else f"of {low} or more"
        raise ConfigError(f"method_options: {name} is {value}; it must be a whole number {legal}")


def check_real(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """Refuse a number outside ``low`` to ``high``, or with ``above`` one that is ``low`` itself; NaN is refused too.

    Raises:
        ConfigError: naming the option, its value and the legal ones.
    """
    if not low <= value <= high or not math.isfinite(value) or (above and value == low):
        start = f"above {low:g}" if above else f"of {low:g} or more"
        legal = f"{start}, up to {high:g}" if high < math.inf else start
        raise ConfigError(f"method_options: {name} is {value:g}; it must be a number {legal}")
