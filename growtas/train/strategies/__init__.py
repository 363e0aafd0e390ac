"""Training methods, one per file; their names are the values of ``--method``."""

from __future__ import annotations

from growtas.space import SearchSpace
from growtas.train.recipe import Recipe
from growtas.train.strategies.auto import AutoProgressive
from growtas.train.strategies.base import Strategy
from growtas.train.strategies.dynas import Dynas
from growtas.train.strategies.fixed import Fixed, Single
from growtas.train.strategies.focusformer import FocusFormer
from growtas.train.strategies.greedynas import GreedyNas
from growtas.train.strategies.growtas import Progressive
from growtas.train.strategies.growtas_plus import ProgressivePlus
from growtas.train.strategies.prenas import PreNas
from growtas.train.strategies.sandwich import Sandwich
from growtas.train.strategies.shiftnas import ShiftNas
from growtas.train.strategies.shrinking import Shrinking
from growtas.train.strategies.tas_lora import TasLora
from growtas.train.strategies.uniform import Uniform
from growtas.train.strategies.vitas import Vitas

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        Progressive, ProgressivePlus, Uniform, Sandwich, Shrinking, PreNas, FocusFormer, Dynas, GreedyNas, ShiftNas, Vitas,
        TasLora, Single, Fixed,
    )
}  # fmt: skip


def make_strategy(recipe: Recipe, space: SearchSpace) -> Strategy:
    """Creates the training method of a recipe.

    Raises:
        ConfigError: the recipe's stages or method options don't fit the method or the space.
    """
    if recipe.method == Progressive.name and recipe.transitions == "auto":
        return AutoProgressive(space, recipe)
    return STRATEGIES[recipe.method](space, recipe)
