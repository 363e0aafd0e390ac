"""From configuration file and options to the recipe of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, choices
from growtas.space import load_space
from growtas.train.config import read_config
from growtas.train.legal import METHODS, STAGED
from growtas.train.recipe import Recipe
from growtas.train.recipes import default_recipe


def resolve_recipe(config: Path | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe for a configuration file and command-line options, in rising precedence over the default recipe.

    Raises:
        ConfigError: an unknown field or a wrong value.
        SpaceError: an unknown space.
    """
    given = {**(read_config(config) if config else {}), **options}
    space, data = given.get("space", "micro"), given.get("data", "digits")
    for key, value in (("space", space), ("data", data)):
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{key} is {value!r}; it must be a text")
    if given.get("method", "growtas") not in METHODS:
        raise ConfigError(f"method is {given['method']!r}; it must be {choices(METHODS)}")
    recipe = default_recipe(space, data).override(given)
    search_space = load_space(recipe.space)
    if recipe.method in STAGED:
        recipe.growth(search_space)
    return recipe
