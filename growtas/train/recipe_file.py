"""Recipe fields from YAML files and from ``--set KEY=VALUE``, and a recipe as such a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError
from growtas.files import read_text
from growtas.train.recipe import Recipe, check_known_fields, is_float
from growtas.train.recipes import find_recipe


def read_layer(path: Path) -> tuple[str | None, dict[str, Any]]:
    """What a YAML file sets: the name of the recipe that it goes on from (its ``recipe``, if it has one), and its fields.

    Raises:
        ConfigError: it can't be read, is not YAML, or has unknown fields or an unknown recipe.
    """
    import yaml

    text = read_text(path, f"{path}: the recipe", ConfigError)
    try:
        data = yaml.safe_load(text)
        twice = _given_twice(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}: not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    if twice is not None:
        raise ConfigError(f"{path}: {twice} is given twice; give it once")
    data = {} if data is None else data
    base = data.pop("recipe", None) if isinstance(data, dict) else None
    check_known_fields(data, str(path))
    if base is not None:
        try:
            find_recipe(base)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return base, _with_numbers(data)


def _given_twice(node: Any) -> str | None:
    """A key that a YAML mapping, or one inside it, has more than once: YAML takes the last one and says nothing."""
    seen: set[str] = set()
    for key, value in node.value if node is not None and node.id == "mapping" else ():
        if key.value in seen:
            return str(key.value)
        seen.add(str(key.value))
        if (inner := _given_twice(value)) is not None:
            return f"{key.value}.{inner}"
    return None


def read_config(path: Path) -> dict[str, Any]:
    """The fields that a YAML file sets; where it goes on from a named recipe, all of them.

    Raises:
        ConfigError: as for :func:`read_layer`; and wrong values, where it goes on from a named recipe.
    """
    base, fields = read_layer(path)
    return fields if base is None else find_recipe(base)().override(fields).to_dict()


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML with every field, which :func:`read_config` reads back to the same recipe."""
    import yaml

    # allow_unicode would write some of Unicode's line breaks as they are, which are read back as spaces.
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, default_flow_style=None, width=120)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The fields that ``--set`` gives, each as ``KEY=VALUE`` with a YAML value; ``method_options.NAME=VALUE`` sets one of those.

    Raises:
        ConfigError: no ``=``, a value that isn't YAML, a key that is given twice, or an unknown field.
    """
    import yaml

    given: dict[str, Any] = {}
    seen: set[str] = set()
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {setting!r} must be KEY=VALUE, as in warmup_epochs=2")
        if key in seen:
            raise ConfigError(f"--set gives {key} twice; give it once")
        seen.add(key)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting!r}: the value is not YAML") from None
        outer, dot, inner = key.partition(".")
        if dot and outer == "method_options" and inner:
            if not isinstance(given.setdefault(outer, {}), Mapping):
                raise ConfigError(f"--set gives {outer} as {given[outer]!r} and {key} too; give the options one by one")
            given[outer] = {**given[outer], inner: _number(value)}
        elif key == "method_options" and isinstance(value, Mapping):
            given[key] = {**given.get(key, {}), **value}
        else:
            given[key] = value
    check_known_fields(given, "--set")
    return _with_numbers(given)


def _with_numbers(data: dict[str, Any]) -> dict[str, Any]:
    # YAML 1.1 reads 1e-3 as text; people write learning rates that way.
    floats = {field.name for field in dataclasses.fields(Recipe) if is_float(field)}
    return {key: _number(value) if key in floats else value for key, value in data.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
