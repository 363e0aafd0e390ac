"""The sandwich rule with in-place distillation: BigNAS (Yu et al., ECCV 2020, Section 3.1).

The rule itself is that of slimmable networks (Yu and Huang, ICCV 2019, Sections 3.2 and 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from growtas.fields import checked, real, whole
from growtas.sampling import sample_batch
from growtas.train.strategies.base import Pass, Strategy


@dataclass(frozen=True, kw_only=True)
class SandwichOptions:
    """Settings of ``sandwich``.

    Attributes:
        random: subnets a step that are drawn uniformly, besides the largest and the smallest.
        students: weight of the losses of all subnets that are taught, together; the largest's is 1. The paper adds the losses
            up, so there every one weighs 1: ``1 + random`` together.
    """

    random: int = checked(2, whole(0, 100))
    students: float = checked(1.0, real(0, 100, above=True))


class Sandwich(Strategy):
    """Each step the largest subnet, the smallest one and some random ones.

    The largest learns from the labels, the others from its soft outputs of the same images alone. A step is ``2 + random``
    passes long.

    The students' losses are averaged, not added up as in the paper: at the start the largest has nothing to teach, and three
    losses that hold the shared weights to its outputs outweigh the one that improves them. NASViT (Gong et al., ICLR 2022) saw
    Vision Transformers saturate early under the rule and traced it to such conflicts of gradients.
    """

    name: ClassVar[str] = "sandwich"
    Options: ClassVar[type[SandwichOptions]] = SandwichOptions

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        students = [self.space.smallest, *sample_batch(self.space, self.options.random, self.rng(step))]
        soft = self.options.students / len(students)
        return (Pass(self.space.largest), *(Pass(student, labels=0.0, soft=soft, teacher="first") for student in students))
