"""Latencies measured on this machine that are to hold when somebody measures them again: a median, and a margin above it.

A median taken once is the machine's of that moment. So a subnet that is to be judged is timed at two visits, in blocks that
take turns with the reference subnet (:mod:`growtas.latency.measured.campaign`), each visit with sessions of its own. The margin
says how much longer it may take another time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from growtas.files import read_json_lines
from growtas.latency.estimate import PERCENTILE, Conditions
from growtas.latency.measured.campaign import Bounds, Campaign, Sample, Turns, UnsteadyMachine
from growtas.latency.measured.setup import Setup
from growtas.subnet import Subnet

VISITS = 2
LEAST_MARGIN = 0.02
"""On a quiet machine measurements of a subnet at two times differ by about 1 %; a margin is at least twice that."""
_REPEATS = 1.5
_BLOCKS = 2.0


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A subnet's latency as measured here.

    Attributes:
        ms: the median of a batch in milliseconds, the mean over the visits.
        margin: how much longer it may take another time, relative to ``ms``.
    """

    ms: float
    margin: float

    @property
    def upper_ms(self) -> float:
        """What limits are judged on, milliseconds."""
        return self.ms * (1 + self.margin)


def timed(samples: Sequence[Sample], *, reference_ms: float | None, repeatability: float) -> Timed:
    """A subnet's samples as one number with its margin, which is the sum of two parts.

    The first is the largest of :data:`LEAST_MARGIN`, twice the variation of the subnet's blocks, the difference of its visits,
    and one and a half times the largest difference of repeated measurements in the profile. The second is how much faster than
    usual the machine was, going by the reference subnet beside it; nothing where it was slower.

    Args:
        samples: of one subnet, one a visit.
        reference_ms: what the reference subnet usually takes, milliseconds; None where that is not known.
        repeatability: relative difference of measurements at two times that a profile knows of; 0 without one.
    """
    values = [sample.p50_ms for sample in samples]
    visits = max(values) / min(values) - 1
    own = max(LEAST_MARGIN, _BLOCKS * max(sample.cv for sample in samples), visits, _REPEATS * repeatability)
    beside = float(np.mean([sample.reference_ms for sample in samples]))
    faster = max((reference_ms or beside) / beside - 1, 0.0)
    return Timed(ms=float(np.mean(values)), margin=own + faster)


class Timings:
    """The stopwatch of a search: what was measured of a space's subnets here, journalled.

    Args:
        campaign: measures and journals.
        usual_ms: what the reference subnet takes when nothing is the matter, milliseconds: as a profile recorded it; None where
            that is not known.
        repeatability: see :func:`timed`.
    """

    def __init__(self, campaign: Campaign, *, usual_ms: float | None = None, repeatability: float = 0.0) -> None:
        self.campaign, self.usual_ms, self.repeatability = campaign, usual_ms, repeatability

    @property
    def conditions(self) -> Conditions:
        """What the medians are of."""
        s = self.campaign.setup
        return Conditions(device="cpu", percentile=PERCENTILE, batch=s.batch, precision=s.precision, runtime=s.runtime)

    def known(self, subnet: Subnet) -> Timed | None:
        """What was measured before, at every visit; None where one is missing."""
        samples = [self.campaign.known(subnet, visit) for visit in range(VISITS)]
        present = [sample for sample in samples if sample is not None]
        if len(present) < VISITS:
            return None
        return timed(present, reference_ms=self.usual_ms, repeatability=self.repeatability)

    def measure(self, subnet: Subnet) -> Timed:
        """What was measured, now where it is not known.

        Raises:
            UnsteadyMachine: the machine is too busy.
            OutputError: the journal can't be written.
        """
        for visit in range(VISITS):
            self.campaign.measure([subnet], visit=visit)
        found = self.known(subnet)
        assert found is not None
        return found

    def expected_margin(self, reference_ms: float) -> float:
        """The margin of a subnet that is measured as steadily as can be, while the reference takes ``reference_ms``.

        Whether the machine is slower or faster than usual, a prediction for the usual state needs so much more room.
        """
        return max(LEAST_MARGIN, _REPEATS * self.repeatability) + abs(reference_ms / (self.usual_ms or reference_ms) - 1)

    def samples_ms(self, subnets: Sequence[Subnet], on_sample: Callable[[Subnet, float], None] | None = None) -> list[float]:
        """Medians of one visit in milliseconds, in the subnets' order: to fit a model to, not to judge a limit on.

        Args:
            on_sample: told each subnet and its milliseconds, as they come.

        Raises:
            UnsteadyMachine: the machine is too busy.
            OutputError: the journal can't be written.
        """
        values, group = [], self.campaign.bounds.group
        for start in range(0, len(subnets), group):
            for sample in self.campaign.measure(subnets[start : start + group]):
                values.append(sample.p50_ms)
                if on_sample:
                    on_sample(sample.subnet, sample.p50_ms)
        return values


def as_usual(
    turns: Turns,
    usual_ms: float,
    bounds: Bounds,
    note: Callable[[str], None] = lambda text: None,
    pause: Callable[[float], None] = lambda seconds: None,
) -> Turns:
    """Turns that are taken again until the reference subnet, the last one timed, takes what it usually does.

    Other work that goes on for seconds slows every block alike: their variation does not show it, the reference does.

    Args:
        usual_ms: what the reference takes, milliseconds.
        bounds: its drift is allowed, and its tries are made.
        note: told when turns are taken again.
        pause: waits so many seconds before.

    Raises (when called):
        UnsteadyMachine: the reference takes another time at every try.
    """

    def guarded(subnets: Sequence[Subnet]) -> list[list[float]]:
        moved = 0.0
        for attempt in range(bounds.tries):
            if attempt:
                note(f"measuring again soon: the reference subnet took {moved:+.1%} against usual (allowed {bounds.drift:.1%})")
                pause(4.0 * attempt)
            blocks = turns(subnets)
            moved = float(np.median(blocks[-1])) / usual_ms - 1
            if abs(moved) <= bounds.drift:
                return blocks
        raise UnsteadyMachine(
            f"the machine is too busy, or its clocks change: the reference subnet took {moved:+.1%} against usual (allowed are "
            f"{bounds.drift:.1%}), {bounds.tries} times; nothing was lost, and the same command goes on when it is quiet"
        )

    return guarded


def set_aside(path: Path, setup: Setup, reference_ms: float, tolerance: float) -> float | None:
    """Move a journal away whose reference subnet is off what it takes now; a campaign would refuse every further sample.

    Args:
        path: the journal; it becomes ``NAME.old.jsonl``.
        setup: of the lines that count.
        reference_ms: what the reference subnet takes now, milliseconds.
        tolerance: relative difference that is none.

    Returns:
        Milliseconds that the reference subnet took in the journal; None where there is none, or it was moved away.
    """
    wanted = setup.to_dict()
    lines = [line for line in read_json_lines(path) if isinstance(line, dict) and line.get("setup") == wanted]
    before = [float(line["reference_ms"]) for line in lines if "reference_ms" in line]
    if not before:
        return None
    usual = float(np.median(before))
    if abs(reference_ms / usual - 1) <= tolerance:
        return usual
    path.replace(path.with_suffix(".old.jsonl"))
    return None
