"""From a named recipe, a configuration file, ``--set`` and options to the recipe of a training.

Of the recipe (by name, else by space, data and method), the file, ``--set`` and the options, what comes later overrides what
comes earlier. A run that ``init`` names gives its space and data before all of these. The file is one layer and the command line
another: where the command line changes ``epochs``, the file's warm-up and transitions scale along, but a ``--set warmup_epochs=2``
beside ``--epochs 50`` stays 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, choices
from growtas.space import load_space
from growtas.train.initial_weights import initial_fields
from growtas.train.recipe import Recipe
from growtas.train.recipe_fields import METHODS
from growtas.train.recipe_file import read_layer
from growtas.train.recipes import default_recipe, find_recipe
from growtas.train.strategies import make_strategy


def resolve_recipe(
    config: Path | None,
    options: Mapping[str, Any],
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    methods: Sequence[str] = METHODS,
) -> Recipe:
    """The recipe of a training, checked as far as that goes without its data.

    Args:
        config: YAML file with recipe fields; its ``recipe`` names the one that it goes on from.
        options: fields that named options give.
        recipe: name of a recipe; overrides the file's.
        settings: fields that ``--set`` gives.
        methods: legal methods.

    Raises:
        ConfigError: an unknown recipe, field or method option, or a wrong value.
        SpaceError: an unknown space.
    """
    base, fields = read_layer(config) if config else (None, {})
    command_line = {**(settings or {}), **options}
    given = {**fields, **command_line}
    for key in ("space", "data"):
        if key in given and (not isinstance(given[key], str) or not given[key]):
            raise ConfigError(f"{key} is {given[key]!r}; it must be a text")
    method = given.get("method")
    if method is not None and method not in methods:
        raise ConfigError(f"method is {method!r}; it must be {choices(methods)}")
    name = recipe if recipe is not None else base
    if name is None:
        method = method or methods[0]
        fields = {**initial_fields(given.get("init")), **fields}
        given = {**fields, **command_line}
        if method == "growtas-plus" and given.get("init") is None:
            raise ConfigError("growtas-plus goes on from a trained supernet; name its run with init (--init RUN)")
        start = default_recipe(given.get("space", "micro"), given.get("data", "digits"), method)
        fields = {"method": method, **fields}
    else:
        start = find_recipe(name)()
        if start.method not in methods and method is None:
            verb = "finetune" if start.method == "finetune" else "train"
            raise ConfigError(f"the recipe {name} has the method {start.method}; run it with `growtas {verb}`")
    resolved = start.override(fields, command_line)
    make_strategy(resolved, load_space(resolved.space))
    return resolved
