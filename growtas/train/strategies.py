"""Which subnets a training step updates."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from growtas.growth import GrowthSchedule, Subspace
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe


class Strategy(Protocol):
    """Chooses subnets as a function of (seed, step), so that resuming needs no generator state and every process agrees."""

    def draw(self, step: int, epoch: float) -> tuple[Subnet, ...]:
        """The subnets of a step, one or more; their gradients are summed.

        Args:
            step: counted from the start of the training.
            epoch: the same place in epochs, with its fraction.
        """
        ...

    def stage(self, epoch: float) -> int:
        """Index of the open subspace, from 0."""
        ...

    def subspace(self, epoch: float) -> Subspace:
        """What is open."""
        ...


class Uniform:
    """Every subnet of the space at any time, one a step (AutoFormer; SPOS)."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space, self.seed = space, seed

    def draw(self, step: int, epoch: float) -> tuple[Subnet, ...]:
        """See :class:`Strategy`."""
        del epoch
        return (sample(self.space, np.random.default_rng((self.seed, step))),)

    def stage(self, epoch: float) -> int:
        """There is one stage."""
        del epoch
        return 0

    def subspace(self, epoch: float) -> Subspace:
        """The whole space."""
        del epoch
        return Subspace()


class Progressive:
    """GrowTAS: one subnet a step, uniformly from the subspace that is open at the epoch (the paper, Eq. 3 and 4)."""

    def __init__(self, space: SearchSpace, seed: int, growth: GrowthSchedule) -> None:
        self.space, self.seed, self.growth = space, seed, growth

    def draw(self, step: int, epoch: float) -> tuple[Subnet, ...]:
        """See :class:`Strategy`."""
        return (sample(self.space, np.random.default_rng((self.seed, step)), self.growth.subspace(epoch)),)

    def stage(self, epoch: float) -> int:
        """See :class:`Strategy`."""
        return self.growth.stage(epoch)

    def subspace(self, epoch: float) -> Subspace:
        """See :class:`Strategy`."""
        return self.growth.subspace(epoch)


def make_strategy(recipe: Recipe, space: SearchSpace) -> Strategy:
    """The strategy of a recipe's method.

    Raises:
        ConfigError: the recipe's stages don't fit the space.
    """
    if recipe.method == "uniform":
        return Uniform(space, recipe.seed)
    return Progressive(space, recipe.seed, recipe.growth(space))
