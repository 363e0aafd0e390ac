"""Progressive shrinking: OFA (Cai et al., ICLR 2020, Section 3.3), carried over to the dimensions of a Vision Transformer.

The paper shrinks kernel size, depth and width of a convolutional network, in this order. Here the order is depth, MLP ratio,
heads, embedding width: from what changes the least of a subnet's features to what changes all of them.
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
    """Settings of ``shrinking``: the phases' shares of the training, relative to each other.

    A dimension with a single choice has nothing to open: its phase is left out, and the others share its time.

    Attributes:
        largest: of the largest subnet alone, whose weights then become the teacher.
        depth: of the phase that opens the depths.
        mlp_ratio: of the phase that opens the MLP ratios.
        num_heads: of the phase that opens the numbers of heads.
        embed_dim: of the phase that opens the embedding widths, the last.
    """

    largest: float = checked(0.4, _SHARE)
    depth: float = checked(0.15, _SHARE)
    mlp_ratio: float = checked(0.15, _SHARE)
    num_heads: float = checked(0.15, _SHARE)
    embed_dim: float = checked(0.15, _SHARE)


class Shrinking(Strategy):
    """The largest subnet first; then one dimension after the other is opened, with the first phase's network as the teacher.

    From the end of the first phase on a step is one subnet, uniformly from what is open (a dimension that is closed has its
    largest choice), and learns from the labels and, with equal weight, from the soft outputs of the frozen largest subnet.

    Attributes:
        phases: the open space of each phase.
        starts: the epoch from which each phase is open; the first is 0.
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
