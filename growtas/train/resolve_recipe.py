"""Combines a recipe, a configuration file and single fields to the recipe of a training or a fine-tuning.

There are four layers, and each overrides the ones before it: space and data of the run that ``init`` names; the recipe (chosen by
name, else by space, data and method); the file; the single fields. When single fields change ``epochs``, the file's warm-up and
transitions scale with it. Values that are set in the same layer as ``epochs``, such as ``warmup_epochs``, do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from growtas.errors import ConfigError, brief, choices
from growtas.fields import rule_of
from growtas.space import load_space
from growtas.train.initial_weights import inherited_fields
from growtas.train.recipe import CONTINUING, METHODS, STAGED, Recipe
from growtas.train.recipe_file import read_layer
from growtas.train.recipes import default_recipe, find_recipe
from growtas.train.recipes.finetuning import ELASTIC_METHOD, elastic_recipe, finetune_recipe
from growtas.train.strategies import make_strategy

_NONE: Mapping[str, Any] = MappingProxyType({})


def resolve_recipe(recipe: str | Recipe | None = None, fields: Mapping[str, Any] = _NONE, *, config: Path | None = None) -> Recipe:
    """Returns the recipe of a training, with all checks that are possible without the data.

    Args:
        recipe: a recipe or its name; it replaces the recipe that the file names.
        fields: recipe fields by name.
        config: YAML file with recipe fields; its key ``recipe`` names the recipe that it changes.

    Raises:
        ConfigError: a recipe, field or method option is unknown, or a value is illegal.
        SpaceError: the space is unknown.
    """
    named, file_fields = _named_recipe(recipe, config)
    given = {**file_fields, **fields}
    for key in ("space", "data"):
        if key in given:
            rule_of(Recipe, key).check(key, given[key])
    method = given.get("method")
    if method is not None and method not in METHODS:
        raise ConfigError(f"method is {brief(method)}; it must be {choices(METHODS)}")
    if named is None:
        inherited = inherited_fields(given.get("init"))
        elastic = "teacher" in inherited  # an imported model
        method = method or (ELASTIC_METHOD if elastic else METHODS[0])
        file_fields = {"method": method, **inherited, **file_fields}
        given = {**file_fields, **fields}
        if method in CONTINUING and given.get("init") is None:
            raise ConfigError(f"{method} continues from a trained supernet; name its run with init (--init RUN)")
        if elastic:
            space = load_space(given["space"])
            named = elastic_recipe(given["space"], given.get("data", "digits"), given.get("image_size") or space.image_size)
        else:
            named = default_recipe(given.get("space", "micro"), given.get("data", "digits"), method)
    elif named.method not in METHODS and method is None:
        raise ConfigError(f"the recipe {named.name} has the method {named.method}; run it with `growtas finetune`")
    resolved = named.override(file_fields, fields)
    _refuse_ignored(named, resolved, fields)
    space = resolved.search_space()
    if resolved.subspaces is None and not {"stages", "transitions"} & given.keys():
        # The default number of stages needs a space with several widths. A number that the user gives is never adapted.
        resolved = resolved.override({"stages": min(resolved.stages, len(space.embed_dim))})
    make_strategy(resolved, space)
    return resolved


def resolve_finetune(
    image_size: int, recipe: str | Recipe | None = None, fields: Mapping[str, Any] = _NONE, *, config: Path | None = None
) -> Recipe:
    """Returns the recipe of a fine-tuning.

    It starts from the named recipe, or from :func:`growtas.train.recipes.finetuning.finetune_recipe`.

    Args:
        image_size: height and width of the model's images in pixels, used if neither recipe, file nor fields set a size.
        recipe, fields, config: as for :func:`resolve_recipe`.

    Raises:
        ConfigError: a recipe or field is unknown, a value is illegal, the recipe is for another method, or no data is named.
    """
    named, file_fields = _named_recipe(recipe, config)
    data = {**file_fields, **fields}.get("data")
    if named is None and data is None:
        raise ConfigError("a fine-tuning needs images; name a data set with --data")
    if named is None:
        size = {**file_fields, **fields}.get("image_size")
        named = finetune_recipe(str(data), size if isinstance(size, int) else image_size)
    if named.method != "finetune":
        raise ConfigError(f"the recipe {named.name} has the method {named.method}; run it with `growtas train`")
    resolved = named.override(file_fields, fields)
    _refuse_ignored(named, resolved, fields)
    return resolved


def _refuse_ignored(named: Recipe, resolved: Recipe, fields: Mapping[str, Any]) -> None:
    """Refuses single fields that have no effect in the resolved recipe."""
    reasons = {
        "stages": None if resolved.method in STAGED else f"the method {resolved.method} has no stages",
        "momentum": None if resolved.optimizer == "sgd" else f"the optimizer {resolved.optimizer} has no such setting",
        "hflip": "augment: none does not flip images" if resolved.augment == "none" else None,
        "crop_padding": None if resolved.augment == "light" else "only augment: light shifts images",
        "teacher_weight": None if resolved.teacher is not None else "there is no teacher",
    }
    for field, reason in reasons.items():
        if reason is not None and field in fields and fields[field] != getattr(named, field):
            raise ConfigError(f"{field} is set, but {reason}; leave it out")


def _named_recipe(recipe: str | Recipe | None, config: Path | None) -> tuple[Recipe | None, dict[str, Any]]:
    """Returns the recipe that the caller or the file names (None without one), and the fields that the file sets."""
    base, fields = read_layer(config) if config else (None, {})
    name = recipe if recipe is not None else base
    return find_recipe(name)() if isinstance(name, str) else name, fields
