"""Describes every field of a recipe and every option of a training method, from the classes that check them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growtas.docstrings import descriptions
from growtas.fields import RULE
from growtas.train.recipe import Recipe
from growtas.train.strategies import STRATEGIES
from growtas.train.strategies.auto import AutoProgressive

_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "None": "null"}


@dataclass(frozen=True)
class FieldDescription:
    """A field of a recipe, or an option of a training method.

    Attributes:
        name: The key in a recipe's YAML file, and with `--set`.
        type: What kind of value it takes, in words.
        default: The value where the recipe gives none.
        legal: The legal values, in words.
        meaning: What the value decides.
    """

    name: str
    type: str
    default: Any
    legal: str
    meaning: str


@dataclass(frozen=True)
class RecipeFields:
    """All that a recipe can set.

    Attributes:
        fields: The fields of every recipe.
        method_options: The options of each training method, which are keys of the field `method_options`. Methods without options
            are left out.
    """

    fields: tuple[FieldDescription, ...]
    method_options: Mapping[str, tuple[FieldDescription, ...]]

    def to_dict(self) -> dict[str, Any]:
        """What ``growtas recipes --fields --json`` prints."""
        return dataclasses.asdict(self)


def recipe_fields() -> RecipeFields:
    """Describes every recipe field and every method option: name, type, default, legal values and meaning."""
    options = {name: _describe(strategy.Options) for name, strategy in STRATEGIES.items()}
    options["growtas"] = _describe(AutoProgressive.Options)
    return RecipeFields(_describe(Recipe), {name: described for name, described in options.items() if described})


def _describe(model: type[Any]) -> tuple[FieldDescription, ...]:
    meanings = descriptions(model)
    return tuple(
        FieldDescription(
            name=field.name,
            type=type_words(str(field.type)),
            default={} if field.default is dataclasses.MISSING else field.default,
            legal=field.metadata[RULE].legal,
            meaning=meanings[field.name],
        )
        for field in dataclasses.fields(model)
    )


def type_words(annotation: str) -> str:
    """A Python annotation in the words of a YAML file: ``list of numbers or null`` for ``tuple[float, ...] | None``."""
    return " or ".join(_word(part.strip()) for part in re.split(r"\|(?![^\[]*\])", annotation))


def _word(part: str) -> str:
    """A part of an annotation that is no union."""
    outer, _, inner = part.removesuffix("]").partition("[")
    if outer not in ("tuple", "list", "Sequence"):
        return {"Mapping": "mapping", "dict": "mapping", **_TYPES}.get(outer, outer)
    items = set(inner.removesuffix(", ...").split(", "))
    return f"list of {_TYPES[items.pop()]}s" if len(items) == 1 and items <= {"str", "int", "float"} else "list"
