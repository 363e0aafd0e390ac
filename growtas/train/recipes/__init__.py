"""The recipes that come with growtas, and the default recipe for a search space and a data set.

Each recipe is a function. Its docstring states the command, the source of the numbers, and what was measured.
"""

from __future__ import annotations

from growtas.errors import ConfigError, choices
from growtas.fields import nearest
from growtas.train.recipe import Recipe
from growtas.train.recipes import finetuning, imagenet, small
from growtas.train.recipes.entry import Entry
from growtas.train.recipes.imagenet import PAPER_SPACES, paper, paper_plus
from growtas.train.recipes.small import digits_demo, fashion_mnist_micro, small_images, small_plus, with_experts

RECIPES: dict[str, Entry] = {entry.name: entry for entry in (*small.ENTRIES, *imagenet.ENTRIES, *finetuning.ENTRIES)}
"""All recipes by name; ``RECIPES["growtas-t"]()`` creates one."""


def find_recipe(name: str) -> Entry:
    """Returns the registry's entry for a name.

    Args:
        name: name of a recipe, as ``growtas recipes`` lists them.

    Raises:
        ConfigError: there is no such recipe; the message names the nearest one.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {str(name)!r}; {nearest(name, RECIPES) or f'the recipes are {choices(RECIPES)}'}")
    return RECIPES[name]


def default_recipe(space: str, data: str, method: str = "growtas") -> Recipe:
    """Returns the default recipe for a space, a data set and a method.

    ``growtas-plus`` and ``tas-lora`` have their own recipes. All other methods start from the recipe of GrowTAS; the caller
    replaces its method.

    Args:
        space: as for ``--space``.
        data: as for ``--data``.
        method: as for ``--method``.
    """
    if method == "tas-lora":
        return with_experts(default_recipe(space, data))
    if space in PAPER_SPACES and data not in ("digits", "fashion-mnist"):
        return paper_plus(space, data) if method == "growtas-plus" else paper(space, data)
    small = {("micro", "digits"): digits_demo, ("micro", "fashion-mnist"): fashion_mnist_micro}.get((space, data))
    recipe = small() if small else small_images(space, data)
    return small_plus(recipe) if method == "growtas-plus" else recipe
