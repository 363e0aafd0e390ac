"""A subnet's latency on a machine that other work disturbs: its ratio to a reference subnet that was timed in turns with it.

Other work makes runs longer, and longer ones more often. So of each block the fastest tenth of its runs counts, and of all rounds
the quietest quarter, by what the two subnets took together: choosing by one of them alone would favour it. A change of the
machine's speed makes both longer and leaves their ratio as it is.

With several threads some runs are *shorter* beside other work: where it holds the other cores, the first thread does everything
and waits for nobody, and a small network is faster so. Which runs are of which kind can't be told. So the latency of a small
network is taken as the middle between the shortest and the longest runs that nothing interrupted, and both are in its margin.
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
SLOW_PERCENTILE = 95
"""Percentile of a block's uninterrupted runs that may be what a run takes while nothing else runs, with several threads."""
_INTERRUPTED = 2.0
"""A run is interrupted if it takes more than this many times a block's fast runs."""
_SMALL_MS = 3.0
"""Handing work to other threads cost 0.12 to 0.16 ms a run where it was measured; for longer runs that is no matter."""
_QUIETEST = 0.25
_FEWEST = 5
_MEDIAN_ERROR = math.sqrt(math.pi / 2)
"""Standard error of a median over that of a mean, of normal values."""


class Block(NamedTuple):
    """The runs of a subnet in one round.

    Attributes:
        median_ms: their median, milliseconds a batch.
        fast_ms: their :data:`FAST_PERCENTILE`.
        slow_ms: the :data:`SLOW_PERCENTILE` of those that were not interrupted.
        interrupted: share of the block's time that went to interrupted runs.
    """

    median_ms: float
    fast_ms: float
    slow_ms: float
    interrupted: float = 0.0

    @classmethod
    def of_runs(cls, times_ms: Sequence[float] | NDArray[np.float64]) -> Block:
        """What counts of the times of a block's runs."""
        times = np.asarray(times_ms, np.float64)
        fast, median = np.percentile(times, [FAST_PERCENTILE, 50])
        whole = times <= _INTERRUPTED * fast
        slow = float(np.percentile(times[whole], SLOW_PERCENTILE))
        return cls(float(median), float(fast), slow, float(times[~whole].sum() / times.sum()))


InterleavedTimer = Callable[[Sequence[Subnet]], list[list[Block]]]
"""Times subnets in interleaved blocks: those of each subnet in each round, shape ``(subnets, rounds)``."""


def medians(blocks: Sequence[Block]) -> NDArray[np.float64]:
    """Median milliseconds of each block."""
    return np.array([block.median_ms for block in blocks], np.float64)


def quiet_ms(blocks: Sequence[Block], threads: int = 1) -> float:
    """What a subnet's median is while nothing else runs, as far as disturbed blocks tell.

    The lower quartile of their medians; with several threads the middle between that and the longest uninterrupted runs.
    """
    shortest_ms = float(np.percentile(medians(blocks), 25))
    return shortest_ms * math.exp(_half_distance(shortest_ms, blocks, threads))


def _half_distance(shortest_ms: float, blocks: Sequence[Block], threads: int) -> float:
    """Half the logarithm of how many times ``shortest_ms`` the longest uninterrupted runs take; 0 where all are of one kind."""
    if threads < 2 or shortest_ms > _SMALL_MS:
        return 0.0
    # Blocks in which the other threads hardly ever had a core hold no such runs.
    longest_ms = float(np.percentile([block.slow_ms for block in blocks], 75))
    return max(math.log(longest_ms / shortest_ms) / 2, 0.0)


@dataclass(frozen=True, kw_only=True)
class PairedRatio:
    """How many times the reference's latency a subnet takes.

    Attributes:
        ratio: the estimate.
        half_width: of its interval (:data:`CONFIDENCE`), relative to it; at most 1, where nothing is known of it.
        mixture: how far, relative to the ratio, the shortest and the longest uninterrupted runs lie on either side of it. Further
            rounds don't make it less. 0 with one thread.
    """

    ratio: float
    half_width: float
    mixture: float = 0.0

    @classmethod
    def of_blocks(cls, blocks: Sequence[Block], reference: Sequence[Block], threads: int = 1) -> PairedRatio:
        """The median over the quietest quarter of the rounds (at least five, where there are so many).

        Args:
            threads: of one run; with several, the ratio is the middle between those of the shortest and of the longest runs.
        """
        mine, beside = (np.log([block.fast_ms for block in of]) for of in (blocks, reference))
        count = min(max(math.ceil(len(mine) * _QUIETEST), _FEWEST), len(mine))
        ratios = (mine - beside)[np.argsort(mine + beside, kind="stable")[:count]]
        half_width = 1.0
        if count > 1:
            half_width = _quantile(count) * _MEDIAN_ERROR * float(ratios.std(ddof=1)) / math.sqrt(count)
        shortest_ms = float(np.exp(np.median(ratios))) * quiet_ms(reference)
        half_distance = _half_distance(shortest_ms, blocks, threads)
        ratio = shortest_ms * math.exp(half_distance) / quiet_ms(reference, threads)
        return cls(ratio=ratio, half_width=min(half_width, 1.0), mixture=math.expm1(half_distance))

    @classmethod
    def of_visits(cls, visits: Sequence[PairedRatio]) -> PairedRatio:
        """One ratio of several times; its interval holds their own errors, and how far they lie apart."""
        logs, count = np.log([visit.ratio for visit in visits]), len(visits)
        within = math.sqrt(sum(visit.half_width**2 for visit in visits)) / count
        apart = 2 * float(logs.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        mixture = max(visit.mixture for visit in visits)
        return cls(ratio=float(np.exp(logs.mean())), half_width=max(within, apart), mixture=mixture)


def _quantile(count: int) -> float:
    """Of Student's distribution, for the mean of ``count`` values."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
