"""Ratios between artifacts, paired by round, and whether a measurement was steady."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

CV_BOUND = 0.10
"""Coefficient of variation above which a measurement is called unsteady: on an idle machine all runtimes stay below 5 %."""


def ratio(rounds: Sequence[float], baseline: Sequence[float]) -> dict[str, Any] | None:
    """How many times the baseline's latency a subject takes, from what the two took in the same rounds.

    A slow minute hits both of a round, so it cancels out of their ratio, though not out of the ratio of two overall medians.

    Args:
        rounds, baseline: median milliseconds of each round, in order; rounds that only one of them had are left out.

    Returns:
        ``median``, ``low`` and ``high`` (the smallest and the largest round's), and ``rounds``; None without a common round.
    """
    paired = [mine / theirs for mine, theirs in zip(rounds, baseline, strict=False)]
    if not paired:
        return None
    return {"median": float(np.median(paired)), "low": min(paired), "high": max(paired), "rounds": len(paired)}


def is_steady(cv: float) -> bool:
    """Whether a coefficient of variation is at most :data:`CV_BOUND`."""
    return cv <= CV_BOUND
