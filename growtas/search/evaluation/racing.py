"""Racing: a candidate's evaluation stops as soon as it is certain that it can't become a parent.

A candidate becomes a parent only if it is among the ``k`` best so far, and the ``k``-th best got ``needed`` images right. Once a
candidate's right answers and the images left to it add up to less, the rest can't change that: it is dropped. This is a fact about
whole numbers and no estimate. So a search with racing has the parents of an exact one in every generation, draws the same children,
and ends with the same best subnets.

What makes it fast is the order of the images. Good subnets of one supernet agree on most of them, so the images that many get wrong
come first, those that all get right last: the first eighth decides. (In a random order the bound would want nearly all images:
among 10,000, subnets differ by a few dozen. A statistical bound that is to hold for a whole search would still want most of them.)

Dropping is decided against what earlier generations found, never against candidates of the same one. So it does not depend on the
order in which candidates get done, and a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.search.journal import Evaluation

PARTS, LEAST_IMAGES = 32, 32
"""A race has this many parts at most, after each of which candidates are dropped, and a part so many images at least."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """What a generation runs against.

    Attributes:
        needed: images that the ``k``-th best subnet so far gets right.
        order: the images' positions, hardest first; a permutation, ``(images,)``, int64.
    """

    needed: int
    order: NDArray[np.int64]

    def is_lost(self, correct: int, left: int) -> bool:
        """Whether a candidate can't reach the ``k``-th best any more, all ``left`` images right or not; a draw reaches it."""
        return correct + left < self.needed

    def parts(self) -> list[slice]:
        """The order in consecutive parts of one size, the last one smaller."""
        images = len(self.order)
        size = max(LEAST_IMAGES, -(-images // PARTS))
        return [slice(start, min(start + size, images)) for start in range(0, images, size)]


class Racing:
    """The races of a search: keeps what complete evaluations found.

    The order of the images is fixed when the first race starts, so that what is kept of the images' activations stays of use.

    Args:
        parents: subnets from which children are made; a candidate that can't be among so many best is dropped.
        images: number of images.
    """

    def __init__(self, parents: int, images: int) -> None:
        self._parents, self._images = parents, images
        self._totals: list[int] = []
        self._rights = np.zeros(images, np.int64)
        self._order: NDArray[np.int64] | None = None

    def add(self, evaluation: Evaluation) -> None:
        """Take note of an evaluation, if it is complete.

        One without its answers, as journals used to be, counts too, but has no say in the order of the images.
        """
        if not evaluation.complete:
            return
        self._totals.append(round(evaluation.accuracy * self._images))
        answers = evaluation.right_answers(self._images)
        if answers is not None:
            self._rights += answers

    def race(self) -> Race | None:
        """The race against what was added so far; None while there are fewer complete evaluations than parents."""
        if len(self._totals) < self._parents:
            return None
        if self._order is None:
            self._order = np.argsort(self._rights, kind="stable")
        return Race(needed=sorted(self._totals, reverse=True)[self._parents - 1], order=self._order)
