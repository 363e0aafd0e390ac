"""The recipes that come with growtas, a function each, and which one a space and a data set get by default.

A docstring gives the command, where the numbers come from, and the accuracy to expect, saying who measured it.
"""

from __future__ import annotations

from growtas.errors import ConfigError, choices
from growtas.fields import nearest
from growtas.train.recipe import Recipe
from growtas.train.recipes import finetuning, imagenet, small
from growtas.train.recipes.entry import Entry
from growtas.train.recipes.imagenet import PAPER_SPACES, paper, paper_plus
from growtas.train.recipes.small import digits_demo, fashion_mnist_micro, small_images, small_plus

RECIPES: dict[str, Entry] = {entry.name: entry for entry in (*small.ENTRIES, *imagenet.ENTRIES, *finetuning.ENTRIES)}
"""Every recipe by its name; ``RECIPES["growtas-t"]()`` is one."""


def find_recipe(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ConfigError: no recipe has it; the message names the nearest.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe is called {str(name)!r}; {nearest(name, RECIPES) or f'there are {choices(RECIPES)}'}")
    return RECIPES[name]


def default_recipe(space: str, data: str, method: str = "growtas") -> Recipe:
    """The recipe for a space and a data set, named as ``--space`` and ``--data`` take them, and a method.

    ``growtas-plus`` has defaults of its own; the other methods take the one of GrowTAS, with their method in it.
    """
    if space in PAPER_SPACES and data not in ("digits", "fashion-mnist"):
        return paper_plus(space, data) if method == "growtas-plus" else paper(space, data)
    small = {("micro", "digits"): digits_demo, ("micro", "fashion-mnist"): fashion_mnist_micro}.get((space, data))
    recipe = small() if small else small_images(space, data)
    return small_plus(recipe) if method == "growtas-plus" else recipe
