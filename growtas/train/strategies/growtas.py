"""GrowTAS: progressive subnet sampling, from small to large (Lee et al., Section 3.2, Eq. 3 and 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from growtas.growth import GrowthSchedule, Subspace
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.train.strategies.base import Pass, Strategy

if TYPE_CHECKING:
    from growtas.train.recipe import Recipe


class Progressive(Strategy):
    """One subnet a step, uniformly from the subspace that is open at the epoch."""

    name: ClassVar[str] = "growtas"
    staged: ClassVar[bool] = True

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        self.growth: GrowthSchedule = recipe.growth(space)

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        """See :class:`Strategy`."""
        return (Pass(sample(self.space, self.rng(step), self.subspace(epoch))),)

    def stage(self, epoch: float) -> int:
        """See :class:`Strategy`."""
        return self.growth.stage(epoch)

    def subspace(self, epoch: float) -> Subspace:
        """See :class:`Strategy`."""
        return self.growth.subspaces[self.stage(epoch)]

    def subspaces(self) -> tuple[Subspace, ...]:
        """See :class:`Strategy`."""
        return self.growth.subspaces
