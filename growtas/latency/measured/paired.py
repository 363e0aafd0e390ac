"""A subnet's latency on a machine that other work disturbs: its ratio to a reference subnet, with which it was timed in turns.

Other work makes runs longer, and it disturbs long runs more often. So the fastest tenth of the runs of each block counts, and the
quietest quarter of all rounds. A round's quietness is judged by both subnets together, because judging by one would favour it. A
change of the machine's speed affects both subnets and leaves their ratio unchanged.

With several threads some runs are *shorter* beside other work: if it occupies the other cores, the first thread does everything
without waiting, which is faster for a small network. The two kinds of runs can't be told apart. So the latency of a small network
is the middle between the shortest and the longest uninterrupted runs, and its margin includes both.
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
"""Confidence level of the intervals of ratios."""
FAST_PERCENTILE = 10
"""Percentile of a block's runs that is used on a busy machine."""
SLOW_PERCENTILE = 95
"""Percentile of a block's uninterrupted runs that may be the latency on the idle machine, with several threads."""
_INTERRUPTED = 2.0
"""A run counts as interrupted if it takes more than this many times as long as the fast runs of its block."""
_SMALL_MS = 3.0
"""Distributing work to other threads cost 0.12 to 0.16 ms per run where it was measured; for longer runs it does not matter."""
_QUIETEST = 0.25
_FEWEST = 5
_MEDIAN_ERROR = math.sqrt(math.pi / 2)
"""Standard error of a median divided by that of a mean, for normal values."""


class Block(NamedTuple):
    """Statistics of the runs of a subnet in one round.

    Attributes:
        median_ms: median time of the runs, in milliseconds per batch.
        fast_ms: :data:`FAST_PERCENTILE` of the runs, in milliseconds.
        slow_ms: :data:`SLOW_PERCENTILE` of the uninterrupted runs, in milliseconds.
        interrupted: share of the block's time spent in interrupted runs, 0 to 1.
    """

    median_ms: float
    fast_ms: float
    slow_ms: float
    interrupted: float = 0.0

    @classmethod
    def of_runs(cls, times_ms: Sequence[float] | NDArray[np.float64]) -> Block:
        """Computes the statistics from the times of a block's runs, in milliseconds."""
        times = np.asarray(times_ms, np.float64)
        fast, median = np.percentile(times, [FAST_PERCENTILE, 50])
        whole = times <= _INTERRUPTED * fast
        slow = float(np.percentile(times[whole], SLOW_PERCENTILE))
        return cls(float(median), float(fast), slow, float(times[~whole].sum() / times.sum()))


InterleavedTimer = Callable[[Sequence[Subnet]], list[list[Block]]]
"""Times subnets in interleaved blocks. Returns the block of each subnet in each round, shape ``(subnets, rounds)``."""


def medians(blocks: Sequence[Block]) -> NDArray[np.float64]:
    """Returns the median of each block in milliseconds."""
    return np.array([block.median_ms for block in blocks], np.float64)


def quiet_ms(blocks: Sequence[Block], threads: int = 1) -> float:
    """Estimates a subnet's median on the idle machine from disturbed blocks, in milliseconds.

    It is the lower quartile of the medians. With several threads it is the middle between that and the longest uninterrupted runs.
    """
    shortest_ms = float(np.percentile(medians(blocks), 25))
    return shortest_ms * math.exp(_half_distance(shortest_ms, blocks, threads))


def _half_distance(shortest_ms: float, blocks: Sequence[Block], threads: int) -> float:
    """Returns half the logarithm of the ratio of the longest uninterrupted runs to ``shortest_ms``; 0 with runs of one kind."""
    if threads < 2 or shortest_ms > _SMALL_MS:
        return 0.0
    # A high percentile, because blocks in which the other threads rarely had a core contain no such runs.
    longest_ms = float(np.percentile([block.slow_ms for block in blocks], 75))
    return max(math.log(longest_ms / shortest_ms) / 2, 0.0)


@dataclass(frozen=True, kw_only=True)
class PairedRatio:
    """Ratio of a subnet's latency to the reference's.

    Attributes:
        ratio: the estimated ratio.
        half_width: half width of its interval at the level :data:`CONFIDENCE`, relative to the ratio; at most 1, meaning unknown.
        mixture: distance of the shortest and the longest uninterrupted runs from the ratio, relative to it. More rounds don't
            reduce it. 0 with one thread.
    """

    ratio: float
    half_width: float
    mixture: float = 0.0

    @classmethod
    def of_blocks(cls, blocks: Sequence[Block], reference: Sequence[Block], threads: int = 1) -> PairedRatio:
        """Computes the median ratio over the quietest quarter of the rounds (at least five rounds, if there are as many).

        Args:
            blocks: the subnet's blocks.
            reference: the reference's blocks in the same rounds.
            threads: number of threads of a run. With several, the ratio is the middle between the shortest and the longest runs.
        """
        logs, reference_logs = (np.log([block.fast_ms for block in turns]) for turns in (blocks, reference))
        count = min(max(math.ceil(len(logs) * _QUIETEST), _FEWEST), len(logs))
        ratios = (logs - reference_logs)[np.argsort(logs + reference_logs, kind="stable")[:count]]
        half_width = 1.0
        if count > 1:
            half_width = _quantile(count) * _MEDIAN_ERROR * float(ratios.std(ddof=1)) / math.sqrt(count)
        shortest_ms = float(np.exp(np.median(ratios))) * quiet_ms(reference)
        half_distance = _half_distance(shortest_ms, blocks, threads)
        ratio = shortest_ms * math.exp(half_distance) / quiet_ms(reference, threads)
        return cls(ratio=ratio, half_width=min(half_width, 1.0), mixture=math.expm1(half_distance))

    @classmethod
    def of_visits(cls, visits: Sequence[PairedRatio]) -> PairedRatio:
        """Combines the ratios of several visits. The interval includes their own errors and the differences between them."""
        logs, count = np.log([visit.ratio for visit in visits]), len(visits)
        within = math.sqrt(sum(visit.half_width**2 for visit in visits)) / count
        apart = 2 * float(logs.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        mixture = max(visit.mixture for visit in visits)
        return cls(ratio=float(np.exp(logs.mean())), half_width=max(within, apart), mixture=mixture)


def _quantile(count: int) -> float:
    """Returns the quantile of Student's t distribution for the mean of ``count`` values."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
