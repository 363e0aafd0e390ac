"""How long costing a million subnets takes: parameters, MACs and a predicted latency of each.

``python -m tests.benchmarks.costing [SPACE [COUNT]]`` prints the seconds on this machine; by default a million of autoformer-b.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.latency.estimate import Conditions, LatencyEstimator
from growtas.latency.measured.fit import FittedLatency
from growtas.latency.measured.terms import CHUNK, term_names
from growtas.sampling import sample_batch
from growtas.space import SearchSpace, load_space


def cost_seconds(space: SearchSpace, batch: SubnetBatch, latency: LatencyEstimator) -> dict[str, float]:
    """Seconds to cost every subnet of a batch: ``costs`` (params and MACs), ``latency``, and their ``total``.

    The costs go in the same chunks as the latency: arrays that fit a core's cache are what makes it quick.
    """
    start = time.perf_counter()
    for row in range(0, len(batch), CHUNK):
        count_costs_batch(space, batch[row : row + CHUNK])
    costs = time.perf_counter() - start
    latency.predict_ms(batch)
    total = time.perf_counter() - start
    return {"costs": costs, "latency": total - costs, "total": total}


def slowest_model(space: SearchSpace) -> FittedLatency:
    """A model with every term in use: no fitted one takes longer to evaluate. Its milliseconds mean nothing."""
    conditions = Conditions(device="none", batch=1, precision="fp32", runtime="none")
    return FittedLatency(space, conditions, np.ones(len(term_names(space, "stepped"))), 1.0, basis="stepped")


if __name__ == "__main__":
    chosen = load_space(sys.argv[1] if len(sys.argv) > 1 else "autoformer-b")
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    draws = sample_batch(chosen, count, np.random.default_rng(0))
    seconds = cost_seconds(chosen, draws, slowest_model(chosen))
    sys.stdout.write(f"{count} subnets of {chosen.name}: " + ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items()) + "\n")
