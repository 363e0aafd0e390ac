"""docs/reference/recipe.md: every recipe field, the options of every training method, and the recipes that ship."""

from __future__ import annotations

import json
from typing import Any

import yaml

from growtas.docstrings import summary
from growtas.train.recipe import Recipe
from growtas.train.recipe_fields import FieldDescription, recipe_fields
from growtas.train.recipes import RECIPES
from growtas.train.recipes.entry import Entry
from growtas.train.strategies import STRATEGIES
from growtas.train.strategies.auto import AutoOptions
from tests.docs.markdown import code, fence, page, sentence, table


def recipe_page() -> str:
    """The page, from :class:`growtas.train.recipe.Recipe` and the registries of methods and recipes."""
    described = recipe_fields()
    methods = [
        part
        for method, options in described.method_options.items()
        for part in (f"### {method}", _about(method), _table(options, "option"))
    ]
    listed = [[f"[`{name}`](#{name})", *_facts(entry)] for name, entry in RECIPES.items()]
    return page(
        "Recipe fields",
        "A recipe is a mapping of the fields below. `growtas train --recipe NAME` takes one that ships, `--config FILE` reads "
        "fields "
        "from a YAML file, `--set NAME=VALUE` sets one field, and many fields have an option of their own. An option overrides "
        "`--set`, "
        "`--set` overrides `--config`, and `--config` overrides the recipe. `growtas recipes --fields` prints the same tables.",
        "## Fields",
        _table(described.fields, "field"),
        "## Options of the training methods",
        "The options of the chosen `method` are keys of the field `method_options`: `--set method_options.NAME=VALUE`. Methods "
        "that "
        "are not listed have no options.",
        *methods,
        "## Recipes that ship",
        "`growtas recipes NAME` prints a recipe with all of its fields. Only the fields that differ from the defaults are shown "
        "below. "
        "An expected accuracy is what somebody else reports; a measured one was measured with growtas.",
        table(("recipe", "space", "data", "method", "epochs"), listed),
        *(part for entry in RECIPES.values() for part in _shipped(entry)),
    )


def _table(described: tuple[FieldDescription, ...], what: str) -> str:
    rows = [[code(one.name), one.type, _value(one.default), one.legal, sentence(one.meaning)] for one in described]
    return table((what, "type", "default", "legal values", "meaning"), rows)


def _value(value: Any) -> str:
    return code(json.dumps(value))


def _about(method: str) -> str:
    return summary(AutoOptions if method == "growtas" else STRATEGIES[method].Options)


def _facts(entry: Entry) -> list[str]:
    recipe = entry()
    return [recipe.space, recipe.data, recipe.method, str(recipe.epochs)]


def _shipped(entry: Entry) -> list[str]:
    recipe, usual = entry().to_dict(), Recipe().to_dict()
    changed = {key: value for key, value in recipe.items() if value != usual[key]}
    notes = {"Run": code(entry.command), "Source": sentence(entry.source), "Expected": sentence(entry.expected)}
    notes["Measured"] = sentence(entry.measured)
    return [
        f"### {entry.name}",
        "\n".join(f"- {heading}: {text}" for heading, text in notes.items()),
        fence(yaml.safe_dump(changed, sort_keys=False, default_flow_style=None, width=100), "yaml"),
    ]
