"""GrowTAS+: trains the weights that the small subnets do not use (Lee et al., Section 3.2, Eq. 5)."""

from __future__ import annotations

from typing import ClassVar

from growtas.errors import ConfigError
from growtas.growth import Subspace
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy

_TRIES = 10_000


class ProgressivePlus(Strategy):
    """Draws one subnet per step uniformly from A_K without A_1. Weights that any subnet of A_1 uses are frozen."""

    name: ClassVar[str] = "growtas-plus"

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        self.frozen: Subspace = recipe.growth(space).subspaces[0]
        if self.frozen.restrict(space) == space:
            raise ConfigError(
                "growtas-plus trains the subnets outside A_1, but A_1 is the whole space; set stages to 2 or more, or set subspaces"
            )

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        rng = self.rng(step)
        # A_1 may contain nearly the whole space, but never all of it.
        for _ in range(_TRIES):
            subnet = sample(self.space, rng)
            if not self.frozen.holds(subnet):
                return (Pass(subnet),)
        raise ConfigError(f"{_TRIES:,} draws gave no subnet outside A_1; set a smaller A_1 with subspaces")

    def subspaces(self) -> tuple[Subspace, ...]:
        return (self.frozen, Subspace())
