"""A learning rate and moments for the size of the drawn subnet: DYNAS (Jeon et al., CVPR 2025, Section 3).

Subnets are drawn uniformly. Small subnets converge sooner than large ones, so their learning rate falls sooner. Gradients of
different widths point in different directions, so each width has moments of its own in the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from growtas.costs import count_costs
from growtas.fields import checked, one_of, real
from growtas.space import SearchSpace
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy

_EXPONENT = real(0, 100, above=True)


@dataclass(frozen=True, kw_only=True)
class DynasOptions:
    """Options of ``dynas``.

    Attributes:
        smallest: exponent of the smallest subnet's learning rate; larger exponents make the rate fall sooner.
        largest: exponent of the largest subnet's learning rate. With 1 for both, all subnets have the same linear schedule.
        moments: ``width`` keeps separate moments in the optimiser for each width; ``shared`` keeps one set for all subnets.
    """

    smallest: float = checked(4.0, _EXPONENT)
    largest: float = checked(0.25, _EXPONENT)
    moments: str = checked("width", one_of("width", "shared"))


class Dynas(Strategy):
    """Draws one subnet per step uniformly. Its size determines the learning rate, and its width the optimiser's moments.

    After the recipe's warm-up, the rate at a share s of the remaining training is ``lr * (1 - s) ** g``. The exponent g is linear
    in the logarithm of the subnet's number of parameters, from ``smallest`` to ``largest``. The rate falls to zero; the recipe's
    ``min_lr`` has no effect.
    """

    name: ClassVar[str] = "dynas"
    Options: ClassVar[type[DynasOptions]] = DynasOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        low, high = (math.log(count_costs(space, subnet).params) for subnet in (space.smallest, space.largest))
        self._slope = (self.options.largest - self.options.smallest) / (high - low) if high > low else 0.0
        self._offset = self.options.largest - self._slope * high

    @property
    def moment_sets(self) -> int:
        return len(self.space.embed_dim) if self.options.moments == "width" else 1

    def moments(self, passes: Sequence[Pass]) -> int:
        return self.space.embed_dim.index(passes[0].subnet.embed_dim) if self.moment_sets > 1 else 0

    def learning_rate(self, scheduled: float, epoch: float, passes: Sequence[Pass]) -> float:
        warmup = self.recipe.warmup_epochs
        if epoch < warmup:
            return scheduled
        exponent = self._slope * math.log(count_costs(self.space, passes[0].subnet).params) + self._offset
        share: float = (epoch - warmup) / (self.recipe.epochs - warmup)
        return float(self.recipe.lr * (1 - share) ** exponent)
