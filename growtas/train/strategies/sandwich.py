"""The sandwich rule with in-place distillation: BigNAS (Yu et al., ECCV 2020, Section 3.1).

The rule comes from slimmable networks (Yu and Huang, ICCV 2019, Sections 3.2 and 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from growtas.fields import checked, real, whole
from growtas.sampling import sample_batch
from growtas.train.strategies.base import Pass, Strategy


@dataclass(frozen=True, kw_only=True)
class SandwichOptions:
    """Options of ``sandwich``.

    Attributes:
        random: number of randomly drawn subnets per step, in addition to the largest and the smallest.
        students: total weight of the losses of all subnets but the largest, whose weight is 1. The paper sums the losses, which
            corresponds to ``1 + random``.
    """

    random: int = checked(2, whole(0, 100))
    students: float = checked(1.0, real(0, 100, above=True))


class Sandwich(Strategy):
    """Runs the largest subnet, the smallest subnet and some random subnets in each step.

    The largest subnet learns from the labels. The others learn only from its soft outputs for the same images. A step has
    ``2 + random`` passes.

    The losses of the students are averaged and not summed as in the paper. At first the largest subnet has nothing to teach, and
    three losses that pull the shared weights towards its outputs outweigh the one that improves them. NASViT (Gong et al., ICLR
    2022) observed that Vision Transformers saturate early under this rule, and explains it by such gradient conflicts.
    """

    name: ClassVar[str] = "sandwich"
    Options: ClassVar[type[SandwichOptions]] = SandwichOptions

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        students = [self.space.smallest, *sample_batch(self.space, self.options.random, self.rng(step))]
        soft = self.options.students / len(students)
        return (Pass(self.space.largest), *(Pass(student, labels=0.0, soft=soft, teacher="first") for student in students))
