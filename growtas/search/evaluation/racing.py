"""Racing: the evaluation of a candidate stops as soon as it is certain that it can't become a parent.

A candidate becomes a parent only if it is among the ``k`` best so far. The ``k``-th best has ``needed`` right answers. A candidate
is dropped once its right answers plus its remaining images are fewer than that. This is exact and not an estimate. So a search with
racing has the same parents in every generation as one without, draws the same children, and ends with the same best subnets.

The order of the images makes it fast. Good subnets of one supernet agree on most images. Images that many subnets get wrong come
first, images that all get right come last, so the first eighth of the images decides. (In a random order nearly all images would be
needed: of 10,000 images, subnets differ in a few dozen. A statistical bound for a whole search would still need most of them.)

A candidate competes with earlier generations only, never with candidates of its own generation. So dropping does not depend on the
order in which evaluations finish, and a resumed search takes the same course.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growtas.search.journal import Evaluation

PARTS, LEAST_IMAGES = 32, 32
"""Largest number of parts of a race, and smallest number of images per part. Candidates are dropped after a part."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """The race that a generation takes part in.

    Attributes:
        needed: number of right answers of the ``k``-th best subnet so far.
        order: positions of the images, hardest first; a permutation, ``(images,)``, int64.
    """

    needed: int
    order: NDArray[np.int64]

    def is_lost(self, correct: int, left: int) -> bool:
        """Whether a candidate can no longer reach ``needed``, even if it answers all ``left`` images right."""
        return correct + left < self.needed

    def parts(self) -> list[slice]:
        """Divides the order into consecutive parts of equal size; the last one may be smaller."""
        images = len(self.order)
        size = max(LEAST_IMAGES, -(-images // PARTS))
        return [slice(start, min(start + size, images)) for start in range(0, images, size)]


class Racing:
    """The races of a search. Collects the results of complete evaluations.

    The order of the images is fixed when the first race starts, so that cached activations stay valid.

    Args:
        parents: number of parents; a candidate that can't be among this many best subnets is dropped.
        images: number of images.
    """

    def __init__(self, parents: int, images: int) -> None:
        self._parents, self._images = parents, images
        self._totals: list[int] = []
        self._rights = np.zeros(images, np.int64)
        self._order: NDArray[np.int64] | None = None

    def add(self, evaluation: Evaluation) -> None:
        """Adds an evaluation, if it is complete.

        An evaluation without answers, as in older journals, counts too but does not affect the order of the images.
        """
        if not evaluation.complete:
            return
        self._totals.append(round(evaluation.accuracy * self._images))
        answers = evaluation.right_answers(self._images)
        if answers is not None:
            self._rights += answers

    def race(self) -> Race | None:
        """Returns the race against the evaluations added so far; None if there are fewer of them than parents."""
        if len(self._totals) < self._parents:
            return None
        if self._order is None:
            self._order = np.argsort(self._rights, kind="stable")
        return Race(needed=sorted(self._totals, reverse=True)[self._parents - 1], order=self._order)
