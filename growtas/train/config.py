"""Recipe fields from YAML files and from ``--set KEY=VALUE``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError
from growtas.train.recipe import Recipe, check_keys, is_float


def read_config(path: Path) -> dict[str, Any]:
    """The fields that a YAML file sets.

    Raises:
        ConfigError: it can't be read, is not YAML, or has unknown fields.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the recipe can't be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}: not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    data = {} if data is None else data
    check_keys(data, str(path))
    return _with_numbers(data)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The fields that ``--set`` gives, each as ``KEY=VALUE`` with a YAML value; ``method_options.NAME=VALUE`` sets one of those.

    Raises:
        ConfigError: no ``=``, a value that isn't YAML, or an unknown field.
    """
    import yaml

    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} must be KEY=VALUE, as in warmup_epochs=2")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting!r}: the value is not YAML") from None
        outer, dot, inner = key.strip().partition(".")
        if dot and outer == "method_options":
            given.setdefault(outer, {})[inner] = _number(value)
        else:
            given[key.strip()] = value
    check_keys(given, "--set")
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
