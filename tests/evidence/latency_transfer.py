"""``python -m tests.evidence.latency_transfer``: how well do few samples predict a target, and does another target's profile help?

Each shipped profile is fitted again with only some of its samples, and tested on its 40 held-out subnets. It compares three models:
another target's profile times the best factor, a model of the few samples alone, and the model that
:func:`growtas.latency.measured.fit.fit_latency` fits to both. It prints a Markdown table of median errors. It measures nothing, and
takes a minute.
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
    """Yields several draws of a profile's fitted samples: the fastest, the slowest and random ones."""
    fit = sorted(profile.of_role("fit"), key=lambda sample: sample.p50_ms)
    for seed in range(DRAWS):
        rows = np.random.default_rng(seed).choice(np.arange(1, len(fit) - 1), count - 2, replace=False)
        yield [fit[0], *(fit[row] for row in sorted(rows)), fit[-1]]


def median_error(model: FittedLatency, held_out: Sequence[Sample], factor: float = 1.0) -> float:
    """The model's median error on samples, after scaling."""
    return held_out_errors(factor * _predicted(model, held_out), _measured(held_out)).median


def errors(target: MeasuredProfile, other: MeasuredProfile, count: int) -> tuple[float, float, float]:
    """The median errors, averaged over the draws: of the other profile scaled, of the samples alone, and of both."""
    rows, held_out = [], target.of_role("held-out")
    for samples in few_samples(target, count):
        subnets, ms = [sample.subnet for sample in samples], [sample.p50_ms for sample in samples]
        factor = float(np.median(_measured(samples) / _predicted(other.model, samples)))
        alone = fit_latency(target.space, subnets, ms, target.conditions)
        both = fit_latency(target.space, subnets, ms, target.conditions, [other.model])
        scaled = median_error(other.model, held_out, factor)
        rows.append((scaled, median_error(alone, held_out), median_error(both, held_out)))
    scaled, from_samples, from_both = np.mean(rows, axis=0).tolist()
    return scaled, from_samples, from_both


def _predicted(model: FittedLatency, samples: Sequence[Sample]) -> NDArray[np.float64]:
    return model.predict_ms(SubnetBatch.from_subnets([sample.subnet for sample in samples]))


def _measured(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([sample.p50_ms for sample in samples])


def main() -> None:
    """Prints the table of the shipped profiles and of the user's profiles."""
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
