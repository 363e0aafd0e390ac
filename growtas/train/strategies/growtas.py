"""GrowTAS: progressive subnet sampling, from small to large (Lee et al., Section 3.2, Eq. 3 and 4)."""

from __future__ import annotations

from typing import ClassVar

from growtas.growth import GrowthSchedule, Subspace
from growtas.space import SearchSpace
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Strategy


class Progressive(Strategy):
    """Draws one subnet per step uniformly from the subspace that is open at the epoch."""

    name: ClassVar[str] = "growtas"

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        self.growth: GrowthSchedule = recipe.growth(space)

    def stage(self, epoch: float) -> int:
        return self.growth.stage(epoch)

    def subspace(self, epoch: float) -> Subspace:
        return self.growth.subspaces[self.stage(epoch)]

    def subspaces(self) -> tuple[Subspace, ...]:
        return self.growth.subspaces
