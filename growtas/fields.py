"""Checks values from files and from the command line; error messages name the legal values.

A field of a dataclass carries its rule, as in ``epochs: int = checked(30, whole(1))``; :func:`check_fields` checks all fields.
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

from growtas.errors import ConfigError, GrowtasError, brief, choices

_Value = TypeVar("_Value")
_Number = TypeVar("_Number", int, float)
RULE = "rule"
"""Key of a field's rule in its metadata."""
_LARGEST = 1e6


@dataclass(frozen=True)
class Rule:
    """Defines which values are legal.

    Attributes:
        accepts: returns whether a value is legal.
        legal: the legal values in words; they complete "it must be ...".
    """

    accepts: Callable[[Any], bool]
    legal: str

    def check(self, name: str, value: Any, error: type[GrowtasError] = ConfigError) -> None:
        """Raises ``error`` if a value is not legal; the message names the field, the value and the legal values."""
        if not self.accepts(value):
            raise error(f"{name} is {brief(value)}; it must be {self.legal}")

    def or_null(self) -> Rule:
        """Returns a rule that also accepts None."""
        return Rule(lambda value: value is None or self.accepts(value), f"{self.legal} or null")


def whole(low: int, high: float = math.inf) -> Rule:
    """Accepts whole numbers from ``low`` to ``high``."""
    legal = f"a whole number from {low} to {high:,}" if high < math.inf else f"a whole number of {low} or more"
    return Rule(lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high, legal)


def real(low: float, high: float = math.inf, *, above: bool = False) -> Rule:
    """Accepts finite numbers from ``low`` to ``high``; with ``above``, not ``low`` itself."""
    legal = f"a number above {low:g}" if above else f"a number of {low:g} or more"
    if high < math.inf:
        legal = f"{legal}, up to {high:g}" if above else f"a number from {low:g} to {high:g}"

    def accepts(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # A whole number may exceed the range of float; every comparison with NaN is false.
        return number and low <= value <= min(high, sys.float_info.max) and (value > low or not above)

    return Rule(accepts, legal)


def number() -> Rule:
    """Accepts finite numbers."""
    return real(-sys.float_info.max)


def one_of(*names: str) -> Rule:
    """Accepts one of some names."""
    return Rule(lambda value: value in names, choices(names))


def flag() -> Rule:
    """Accepts true and false."""
    return Rule(lambda value: isinstance(value, bool), "true or false")


def text() -> Rule:
    """Accepts a text that is not empty."""
    return Rule(lambda value: isinstance(value, str) and bool(value), "a text")


def text_like(pattern: str, legal: str) -> Rule:
    """Accepts a text that matches a regular expression; ``legal`` describes it in words."""
    return Rule(lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None, legal)


def list_of(rule: Rule, legal: str, *, empty: bool = False) -> Rule:
    """Accepts a list whose items a rule accepts; ``legal`` describes it in words."""
    return Rule(lambda value: isinstance(value, list | tuple) and (empty or bool(value)) and all(map(rule.accepts, value)), legal)


def checked(default: _Value, rule: Rule) -> _Value:
    """Makes a dataclass field with a default and a rule for :func:`check_fields`."""
    return dataclasses.field(default=default, metadata={RULE: rule})


def rule_of(owner: Any, name: str) -> Rule:
    """Returns the rule of a dataclass's field."""
    rule: Rule = owner.__dataclass_fields__[name].metadata[RULE]
    return rule


def check_fields(values: Any, source: str = "") -> None:
    """Checks every field of a dataclass that has a rule.

    Args:
        values: an instance of the dataclass.
        source: beginning of the error message, such as ``"method_options: "``.

    Raises:
        ConfigError: A value is not legal.
    """
    for field in dataclasses.fields(values):
        if RULE in field.metadata:
            field.metadata[RULE].check(source + field.name, getattr(values, field.name))


def check_keys(data: Mapping[Any, Any], known: Iterable[str], source: str, error: type[GrowtasError] = ConfigError) -> None:
    """Raises if a mapping has an unknown key.

    Raises:
        GrowtasError: Of the class ``error``; the message names the key, and the most similar known key or all of them.
    """
    names = list(known)
    for key in data:
        if key not in names:
            hint = nearest(key, names) or f"known are {choices(names)}"
            raise error(f"{source}: unknown field {brief(key)}; {hint}")


def nearest(name: Any, known: Iterable[str]) -> str:
    """Returns ``did you mean epochs?`` if a known name is similar, or else an empty text."""
    near = difflib.get_close_matches(str(name)[:100], list(known), 1)
    return f"did you mean {near[0]}?" if near else ""


def check_entries(data: Any, rules: Mapping[str, Rule], source: str, error: type[GrowtasError]) -> None:
    """Checks the entries of a file's object that are there; an absent entry is legal.

    Args:
        data: the content of the file.
        rules: the rule of each entry by its path, such as ``data.name``.
        source: the file, which error messages name.
        error: class of the exception.

    Raises:
        GrowtasError: Of the class ``error``; an entry is not legal.
    """
    OBJECT.check(f"{source}: the content", data, error)
    for path, rule in rules.items():
        *outer, name = path.split(".")
        value = data
        for key in outer:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and name in value:
            rule.check(f"{source}: {path}", value[name], error)


OBJECT = Rule(lambda value: isinstance(value, Mapping), "an object")


def record_of(needed: Mapping[str, Rule], others: Mapping[str, Rule], legal: str) -> Rule:
    """Accepts an object with some needed and some other entries; ``legal`` describes it in words. Further entries are legal."""

    def accepts(value: Any) -> bool:
        rules = {**others, **needed}
        return (
            isinstance(value, Mapping)
            and needed.keys() <= value.keys()
            and all(rule.accepts(value[name]) for name, rule in rules.items() if name in value)
        )

    return Rule(accepts, legal)


def map_of(rule: Rule, legal: str) -> Rule:
    """Accepts an object whose values a rule accepts; ``legal`` describes it in words."""
    return Rule(lambda value: isinstance(value, Mapping) and all(map(rule.accepts, value.values())), legal)


def above_zero(name: str, value: Any, kind: type[_Number], error: type[GrowtasError], below: float = _LARGEST) -> _Number:
    """Converts a number above zero, also a NumPy number, to ``int`` or ``float``.

    Raises:
        GrowtasError: Of the class ``error``; the value is not a number of this kind above zero.
    """
    if type(value) is kind and 0 < value < below:  # fast path for nearly all values, since a search makes many subnets
        return value
    conversion = "__index__" if kind is int else "__float__"
    if isinstance(value, bool) or not hasattr(value, conversion) or not 0 < _as_float(value) < below:
        number = "whole number" if kind is int else "number"
        raise error(f"{name} is {brief(value)}; it must be a {number} above zero and below {below:,.0f}")
    return kind(value)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond the range of float
        return math.inf
