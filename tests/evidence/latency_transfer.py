"""``python -m tests.evidence.latency_transfer``: how well few samples predict a target, and whether another's profile helps.

For each shipped profile, as if only some of its fitted subnets had been measured, against its 40 held-out ones: another target's
profile times the best factor, a model of those samples alone, and what :func:`growtas.latency.measured.fit.fit_latency` makes of
both. Prints a Markdown table of median errors. Everything was measured before; a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.latency.catalogue import measured_profiles
from growtas.latency.measured.campaign import Sample
from growtas.latency.measured.fit import FittedLatency, fit_latency
from growtas.latency.measured.profile import MeasuredProfile, held_out_errors
from growtas.latency.modelled.profile import user_folder

COUNTS = (5, 10)
DRAWS = 8


def few_samples(profile: MeasuredProfile, count: int) -> Iterator[list[Sample]]:
    """Some of a profile's fitted samples: the smallest, the largest and random ones, several times."""
    fit = sorted(profile.of_role("fit"), key=lambda sample: sample.p50_ms)
    for seed in range(DRAWS):
        rows = np.random.default_rng(seed).choice(np.arange(1, len(fit) - 1), count - 2, replace=False)
        yield [fit[0], *(fit[row] for row in sorted(rows)), fit[-1]]


def median_error(model: FittedLatency, held_out: Sequence[Sample], factor: float = 1.0) -> float:
    """The model's median error on samples, after scaling."""
    return held_out_errors(factor * _predicted(model, held_out), _measured(held_out)).median


def errors(target: MeasuredProfile, other: MeasuredProfile, count: int) -> tuple[float, float, float]:
    """Mean over the draws of the median errors: the other profile scaled, the samples alone, and both."""
    rows, held_out = [], target.of_role("held-out")
    for samples in few_samples(target, count):
        subnets, ms = [sample.subnet for sample in samples], [sample.p50_ms for sample in samples]
        factor = float(np.median(_measured(samples) / _predicted(other.model, samples)))
        alone = fit_latency(target.space, subnets, ms, target.conditions)
        both = fit_latency(target.space, subnets, ms, target.conditions, [other.model])
        scaled = median_error(other.model, held_out, factor)
        rows.append((scaled, median_error(alone, held_out), median_error(both, held_out)))
    scaled, own, adapted = np.mean(rows, axis=0).tolist()
    return scaled, own, adapted


def _predicted(model: FittedLatency, samples: Sequence[Sample]) -> NDArray[np.float64]:
    return model.predict_ms(SubnetBatch.from_subnets([sample.subnet for sample in samples]))


def _measured(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([sample.p50_ms for sample in samples])


def main() -> None:
    """Prints the table of the shipped profiles, and of the user's own."""
    out = sys.stdout.write
    out(f"Shipped profiles, and those in {user_folder()}\n\n")
    out("| target | profile of another target | samples | scaled | samples alone | both |\n")
    out("| --- | --- | ---: | ---: | ---: | ---: |\n")
    profiles = [profile for _, profile in measured_profiles()]
    for target in profiles:
        for other in profiles:
            if other is not target and other.has_terms_of(target.space):
                for count in COUNTS:
                    cells = [_name(target), _name(other), str(count), *(f"{error:.1%}" for error in errors(target, other, count))]
                    out(f"| {' | '.join(cells)} |\n")
                    sys.stdout.flush()


def _name(profile: MeasuredProfile) -> str:
    return f"{profile.space.name}, {profile.runtime} {profile.precision}, {profile.description}"


if __name__ == "__main__":
    main()
