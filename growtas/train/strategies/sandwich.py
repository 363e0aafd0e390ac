"""The sandwich rule with in-place distillation: BigNAS (Yu et al., ECCV 2020, Section 3.1).

The rule itself is that of slimmable networks (Yu and Huang, ICCV 2019, Sections 3.2 and 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from growtas.sampling import sample_batch
from growtas.train.strategies.base import Pass, Strategy
from growtas.train.strategies.options import check_whole


@dataclass(frozen=True, kw_only=True)
class SandwichOptions:
    """Settings of ``sandwich``.

    Attributes:
        random: subnets a step that are drawn uniformly, besides the largest and the smallest.
    """

    random: int = 2

    def __post_init__(self) -> None:
        check_whole("random", self.random, 0, 100)


class Sandwich(Strategy):
    """Each step the largest subnet, the smallest one and some random ones.

    The largest learns from the labels, the others from its soft outputs of the same images alone. A step is ``2 + random``
    passes long.
    """

    name: ClassVar[str] = "sandwich"
    Options: ClassVar[type[SandwichOptions]] = SandwichOptions

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        """See :class:`Strategy`; the largest comes first, since it teaches."""
        del epoch
        students = [self.space.smallest, *sample_batch(self.space, self.options.random, self.rng(step))]
        return (Pass(self.space.largest), *(Pass(student, labels=0.0, soft=1.0, teacher="first") for student in students))
