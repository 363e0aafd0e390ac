"""Reads recipe fields from YAML files and from ``--set KEY=VALUE``, and writes a recipe as YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, brief
from growtas.files import parse_yaml, read_yaml
from growtas.train.recipe import Recipe, check_known_fields, is_float
from growtas.train.recipes import find_recipe


def read_layer(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Reads a YAML file with recipe fields.

    Returns:
        The name of the recipe that the file changes (its key ``recipe``; None without one), and the fields that it sets.

    Raises:
        ConfigError: the file can't be read, is not YAML, or names an unknown field or recipe.
    """
    data = read_yaml(path, "recipe", ConfigError)
    data = {} if data is None else data
    base = data.pop("recipe", None) if isinstance(data, dict) else None
    check_known_fields(data, str(path))
    if base is not None:
        try:
            find_recipe(base)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return base, _with_numbers(data)


def read_config(path: Path) -> dict[str, Any]:
    """Returns the fields that a YAML file sets; if the file names a recipe, all fields of the changed recipe.

    Raises:
        ConfigError: as for :func:`read_layer`; or the file names a recipe and sets an illegal value.
    """
    base, fields = read_layer(path)
    return fields if base is None else find_recipe(base)().override(fields).to_dict()


def dump_recipe(recipe: Recipe) -> str:
    """Returns a recipe as YAML with every field. :func:`read_config` reads the same values back."""
    import yaml

    # No allow_unicode: it leaves some of Unicode's line breaks unescaped, and they would be read back as spaces.
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, default_flow_style=None, width=120)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Returns the fields that ``--set`` sets.

    Args:
        settings: ``KEY=VALUE`` with a YAML value; ``method_options.NAME=VALUE`` sets a single option of the method.

    Raises:
        ConfigError: a setting has no ``=``, a value isn't YAML, a key occurs twice, or a field is unknown.
    """
    given: dict[str, Any] = {}
    for key, value in parse_pairs(settings, "--set", "warmup_epochs=2").items():
        outer, dot, inner = key.partition(".")
        if dot and outer == "method_options" and inner:
            if not isinstance(given.setdefault(outer, {}), Mapping):
                raise ConfigError(f"--set sets both {outer} to {given[outer]!r} and {key}; set the options one by one")
            given[outer] = {**given[outer], inner: _number(value)}
        elif key == "method_options" and isinstance(value, Mapping):
            given[key] = {**given.get(key, {}), **value}
        else:
            given[key] = value
    check_known_fields(given, "--set")
    return _with_numbers(given)


def parse_pairs(pairs: Sequence[str], option: str, example: str) -> dict[str, Any]:
    """Parses a repeatable option ``KEY=VALUE`` whose values are YAML.

    Raises:
        ConfigError: a pair has no ``=``, a value isn't YAML, or a key occurs twice.
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"{option} {brief(pair)} must have the form KEY=VALUE, as in {example}")
        if key in given:
            raise ConfigError(f"{option} sets {key} twice; set it once")
        given[key] = parse_yaml(text, f"{option} {brief(pair)}", ConfigError)
    return given


def _with_numbers(data: dict[str, Any]) -> dict[str, Any]:
    # YAML 1.1 reads 1e-3 as text, but people write learning rates that way.
    floats = {field.name for field in dataclasses.fields(Recipe) if is_float(field)}
    return {key: _number(value) if key in floats else value for key, value in data.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
