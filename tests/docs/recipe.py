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

_RULES = """
- The recipe is the one of `--recipe`, else the one that the file of `--config` names under `recipe`, else the default for the
  space, the data and the method: `digits-demo` for digits, `fashion-mnist-micro` for Fashion-MNIST, the paper's recipe for a
  space of AutoFormer on other data, and `small-images` for everything else.
- Warm-up and transitions scale with `epochs`, unless the same layer sets them too. `--set` and the options are one layer:
  `--epochs 50` scales the numbers of the file, and `--epochs 50 --set warmup_epochs=4` keeps 4.
- `--set method_options.random=3` sets one option of the method and keeps its others.
- An unknown field, option or recipe is refused with the nearest known one, and a wrong value with the legal ones, before any
  data is opened.
- `batch_size` must be even for `mixup` and `cutmix`. With several processes or parts it must be a multiple of twice their
  product, processes times `accumulate`.
- A fine-tuning, and a training with `init`, take the `pixel_range` of the run that they start from.
- The teacher's head must have the data's classes in the data's order, which is alphabetical for folders. Of a
  `teacher_checkpoint` only tensors are loaded, no code. The teacher's accuracy is measured before the first step, with a
  warning if it is no better than chance. `--resume` refuses other weights; if their file was moved, `--teacher-checkpoint`, or
  `--teacher` for a model of growtas, names its new place.
"""


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
        "## How values are combined",
        _RULES,
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
