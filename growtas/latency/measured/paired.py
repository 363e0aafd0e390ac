"""A subnet's latency on a machine that other work disturbs: its ratio to a reference subnet that was timed in turns with it.

Other work makes runs longer, and longer ones more often. So of each block the fastest tenth of its runs counts, and of all rounds
the quietest quarter, by what the two subnets took together: choosing by one of them alone would favour it. A change of the
machine's speed makes both longer and leaves their ratio as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from growtas.subnet import Subnet

CONFIDENCE = 0.95
"""Of the intervals of ratios."""
FAST_PERCENTILE = 10
"""Percentile of a block's runs that counts on a busy machine."""
_QUIETEST = 0.25
_FEWEST = 5
_MEDIAN_ERROR = math.sqrt(math.pi / 2)
"""Standard error of a median over that of a mean, of normal values."""


class Block(NamedTuple):
    """The runs of a subnet in one round.

    Attributes:
        median_ms: their median, milliseconds a batch.
        fast_ms: their :data:`FAST_PERCENTILE`.
    """

    median_ms: float
    fast_ms: float


InterleavedTimer = Callable[[Sequence[Subnet]], list[list[Block]]]
"""Times subnets in interleaved blocks: those of each subnet in each round, shape ``(subnets, rounds)``."""


def medians(blocks: Sequence[Block]) -> NDArray[np.float64]:
    """Median milliseconds of each block."""
    return np.array([block.median_ms for block in blocks], np.float64)


def quiet_ms(blocks: Sequence[Block]) -> float:
    """What a subnet's median is while nothing else runs, as far as disturbed blocks tell: the lower quartile of their medians."""
    return float(np.percentile(medians(blocks), 25))


@dataclass(frozen=True, kw_only=True)
class PairedRatio:
    """How many times the reference's latency a subnet takes.

    Attributes:
        ratio: the estimate.
        half_width: of its interval (:data:`CONFIDENCE`), relative to it; at most 1, where nothing is known of it.
    """

    ratio: float
    half_width: float

    @classmethod
    def of_blocks(cls, blocks: Sequence[Block], reference: Sequence[Block]) -> PairedRatio:
        """The median over the quietest quarter of the rounds (at least five, where there are so many)."""
        mine, beside = (np.log([block.fast_ms for block in of]) for of in (blocks, reference))
        count = min(max(math.ceil(len(mine) * _QUIETEST), _FEWEST), len(mine))
        ratios = (mine - beside)[np.argsort(mine + beside, kind="stable")[:count]]
        half_width = 1.0
        if count > 1:
            half_width = _quantile(count) * _MEDIAN_ERROR * float(ratios.std(ddof=1)) / math.sqrt(count)
        return cls(ratio=float(np.exp(np.median(ratios))), half_width=min(half_width, 1.0))

    @classmethod
    def of_visits(cls, visits: Sequence[PairedRatio]) -> PairedRatio:
        """One ratio of several times; its interval holds their own errors, and how far they lie apart."""
        logs, count = np.log([visit.ratio for visit in visits]), len(visits)
        within = math.sqrt(sum(visit.half_width**2 for visit in visits)) / count
        apart = 2 * float(logs.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        return cls(ratio=float(np.exp(logs.mean())), half_width=max(within, apart))


def _quantile(count: int) -> float:
    """Of Student's distribution, for the mean of ``count`` values."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
