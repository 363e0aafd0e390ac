"""Checks values that users give, in files and on the command line, and names the legal ones.

A dataclass's field carries its rule, as in ``epochs: int = checked(30, whole(1))``; :func:`check_fields` tests all of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from growtas.errors import ConfigError, GrowtasError, choices

_Value = TypeVar("_Value")
_Number = TypeVar("_Number", int, float)
RULE = "rule"
"""Key of a field's rule in its metadata."""
_LARGEST = 1e6


@dataclass(frozen=True)
class Rule:
    """Which values are legal.

    Attributes:
        accepts: whether a value is legal.
        legal: the legal values in words, as they follow "it must be".
    """

    accepts: Callable[[Any], bool]
    legal: str

    def check(self, name: str, value: Any, error: type[GrowtasError] = ConfigError) -> None:
        """Raises ``error`` where a value is not legal; the message names the field, the value and the legal ones."""
        if not self.accepts(value):
            raise error(f"{name} is {value!r}; it must be {self.legal}")

    def or_null(self) -> Rule:
        """What this rule accepts, and None."""
        return Rule(lambda value: value is None or self.accepts(value), f"{self.legal} or null")


def whole(low: int, high: float = math.inf) -> Rule:
    """Whole numbers from ``low`` to ``high``."""
    legal = f"a whole number from {low} to {high:,}" if high < math.inf else f"a whole number of {low} or more"
    return Rule(lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high, legal)


def real(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """Finite numbers from ``low`` to ``high``; ``above`` leaves out ``low`` itself."""
    legal = f"a number above {low:g}" if above else f"a number of {low:g} or more"
    if high < math.inf:
        legal = f"{legal}, up to {high:g}" if above else f"a number from {low:g} to {high:g}"

    def accepts(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Not all whole numbers fit a float, and NaN is not below anything.
        return number and low <= value <= min(high, sys.float_info.max) and (value > low or not above)

    return Rule(accepts, legal)


def one_of(*names: str) -> Rule:
    """Some names."""
    return Rule(lambda value: value in names, choices(names))


def text() -> Rule:
    """Texts that are not empty."""
    return Rule(lambda value: isinstance(value, str) and bool(value), "a text")


def text_like(pattern: str, legal: str) -> Rule:
    """Texts that a regular expression describes, and ``legal`` in words."""
    return Rule(lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None, legal)


def list_of(rule: Rule, legal: str, *, empty: bool = False) -> Rule:
    """Lists whose items a rule accepts, and ``legal`` in words."""
    return Rule(lambda value: isinstance(value, list | tuple) and (empty or bool(value)) and all(map(rule.accepts, value)), legal)


def checked(default: _Value, rule: Rule) -> _Value:
    """A dataclass field with a default and a rule for :func:`check_fields`."""
    return dataclasses.field(default=default, metadata={RULE: rule})


def rule_of(owner: Any, name: str) -> Rule:
    """The rule of a dataclass's field."""
    rule: Rule = owner.__dataclass_fields__[name].metadata[RULE]
    return rule


def check_fields(values: Any, source: str = "") -> None:
    """Checks every field of a dataclass that has a rule.

    Args:
        values: an instance of the dataclass.
        source: what the message begins with, such as ``"method_options: "``.

    Raises:
        ConfigError: a value is not legal.
    """
    for field in dataclasses.fields(values):
        if RULE in field.metadata:
            field.metadata[RULE].check(source + field.name, getattr(values, field.name))


def check_keys(data: Mapping[Any, Any], known: Iterable[str], source: str, error: type[GrowtasError] = ConfigError) -> None:
    """Refuses a mapping with an unknown key.

    Raises:
        GrowtasError: of the class ``error``; the message names the key, and the nearest known one or all of them.
    """
    names = list(known)
    for key in data:
        if key not in names:
            hint = nearest(key, names) or f"known are {choices(names)}"
            raise error(f"{source}: unknown field {key!r}; {hint}")


def nearest(name: Any, known: Iterable[str]) -> str:
    """``did you mean epochs?`` where a known name is alike, else an empty text."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"did you mean {near[0]}?" if near else ""


def above_zero(name: str, value: Any, kind: type[_Number], error: type[GrowtasError]) -> _Number:
    """The value as an ``int`` or a ``float``; NumPy's numbers are legal too.

    Raises:
        GrowtasError: of the class ``error``, where it is no number of this kind above zero.
    """
    if type(value) is kind and 0 < value < _LARGEST:  # what nearly all are; a search makes many subnets
        return value
    conversion = "__index__" if kind is int else "__float__"
    if isinstance(value, bool) or not hasattr(value, conversion) or not 0 < float(value) < _LARGEST:
        number = "whole number" if kind is int else "number"
        raise error(f"{name} is {value!r}; it must be a {number} above zero and below {_LARGEST:,.0f}")
    return kind(value)
