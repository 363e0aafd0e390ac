"""Progressive shrinking: OFA (Cai et al., ICLR 2020, Section 3.3), applied to the dimensions of a Vision Transformer.

The paper shrinks kernel size, depth and width of a convolutional network, in this order. Here the order is depth, MLP ratio, heads,
embedding width: from the dimension that changes the fewest features of a subnet to the one that changes all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from growtas.fields import checked, real
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy

_SHARE = real(0, 1000, above=True)
_DIMENSIONS = ("depth", "mlp_ratio", "num_heads", "embed_dim")


@dataclass(frozen=True, kw_only=True)
class ShrinkingOptions:
    """Options of ``shrinking``: the length of each phase relative to the others.

    A dimension with a single choice has no phase, and the other phases share its time.

    Attributes:
        largest: relative length of the first phase, which trains the largest subnet alone; its weights then become the teacher.
        depth: relative length of the phase that opens the depths.
        mlp_ratio: relative length of the phase that opens the MLP ratios.
        num_heads: relative length of the phase that opens the numbers of heads.
        embed_dim: relative length of the last phase, which opens the embedding widths.
    """

    largest: float = checked(0.4, _SHARE)
    depth: float = checked(0.15, _SHARE)
    mlp_ratio: float = checked(0.15, _SHARE)
    num_heads: float = checked(0.15, _SHARE)
    embed_dim: float = checked(0.15, _SHARE)


class Shrinking(Strategy):
    """Trains the largest subnet first, then opens one dimension after the other.

    After the first phase each step draws one subnet uniformly from the open space, in which a closed dimension has its largest
    choice. It learns from the labels and, with equal weight, from the soft outputs of the frozen largest subnet of the first phase.

    Attributes:
        phases: the open space of each phase.
        starts: the first epoch of each phase; that of the first phase is 0.
    """

    name: ClassVar[str] = "shrinking"
    Options: ClassVar[type[ShrinkingOptions]] = ShrinkingOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        elastic = [dimension for dimension in _DIMENSIONS if len(getattr(space, dimension)) > 1]
        self.phases: tuple[SearchSpace, ...] = tuple(
            space.replace(**{closed: getattr(space, closed)[-1:] for closed in elastic[opened:]})
            for opened in range(len(elastic) + 1)
        )
        shares = [getattr(self.options, phase) for phase in ("largest", *elastic)]
        places = accumulate([0.0, *shares[:-1]])
        # Rounded, so that 0.55 of 100 epochs is 55 and not 55.00000000000001.
        self.starts: tuple[float, ...] = tuple(round(recipe.epochs * place / sum(shares), 9) for place in places)

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        stage = self.stage(epoch)
        if stage == 0:
            return (Pass(self.space.largest),)
        return (Pass(sample(self.phases[stage], self.rng(step)), labels=1.0, soft=1.0, teacher="frozen"),)

    def stage(self, epoch: float) -> int:
        return sum(epoch >= start for start in self.starts[1:])

    def keeps_teacher(self, epoch: float) -> bool:
        return self.stage(epoch) > 0
