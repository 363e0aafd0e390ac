"""The stopwatch of a search on this machine: a subnet's median latency, and a margin that covers later measurements.

A single median describes one moment of the machine. So a subnet that a limit is judged on is timed at two visits, in blocks that
are interleaved with the reference subnet (:mod:`growtas.latency.measured.campaign`), each visit with new sessions. The margin says
how much longer the subnet may take another time.

On a machine that other work disturbs, the latency is the subnet's ratio to the reference times what the reference takes while
nothing else runs, and the margin is the ratio's interval, with several threads also their mixture
(:mod:`growtas.latency.measured.paired`). While the interval crosses a limit, more visits follow, up to :data:`MAX_VISITS`, as
long as the campaign's bounds leave time for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from growtas.files import read_json_lines
from growtas.latency.at_hand import CPU
from growtas.latency.estimate import Conditions
from growtas.latency.measured.campaign import Campaign, Sample, Setup
from growtas.latency.measured.machine import Timed
from growtas.latency.measured.paired import PairedRatio
from growtas.subnet import Subnet

VISITS = 2
MAX_VISITS = 6
"""Visits of a subnet whose interval crosses a limit on an unsteady machine."""
LEAST_MARGIN = 0.02
"""On a quiet machine measurements of a subnet at two times differ by about 1 %; a margin is at least twice that."""
_REPEATS = 1.5


@dataclass(frozen=True, kw_only=True)
class MeasuredLatency:
    """A subnet's latency as measured on this machine.

    Attributes:
        ms: the median of a batch in milliseconds, the mean over the visits.
        margin: how much longer it may take another time, relative to ``ms``.
        unsteady: whether other work disturbed a visit, so that ``ms`` comes from ratios to the reference subnet.
        mixture: the part of the margin that more measurements don't make less.
    """

    ms: float
    margin: float
    unsteady: bool = False
    mixture: float = 0.0

    @property
    def upper_ms(self) -> float:
        """What limits are judged on, milliseconds."""
        return self.ms * (1 + self.margin)

    def crosses(self, limit_ms: float) -> bool:
        """Whether the limit is so near that more measurements may tell on which side of it :attr:`upper_ms` is."""
        return self.ms * (1 + 2 * self.mixture - self.margin) <= limit_ms < self.upper_ms


def combine_visits(samples: Sequence[Sample], *, reference_ms: float | None, repeatability: float) -> MeasuredLatency:
    """Combines a subnet's samples into one latency with a margin, which is the sum of two parts.

    The first is the largest of :data:`LEAST_MARGIN`, twice the variation of the subnet's blocks, the difference of its visits,
    and one and a half times the largest difference of repeated measurements in the profile. The second is how much faster than
    usual the machine was, going by the reference subnet beside it; nothing where it was slower.

    If one of the samples is unsteady, the latency is their paired ratio times what the reference took beside them, and the half
    width of its interval stands for the blocks and the visits; the second part is in the ratio then. Its mixture is added.

    Args:
        samples: of one subnet, one a visit.
        reference_ms: what the reference subnet usually takes, milliseconds; None where that is not known.
        repeatability: relative difference of measurements at two times that a profile knows of; 0 without one.
    """
    beside = float(np.mean([sample.reference_ms for sample in samples]))
    if any(sample.unsteady for sample in samples):
        paired = PairedRatio.of_visits([sample.ratio for sample in samples])
        margin = max(LEAST_MARGIN, paired.half_width, _REPEATS * repeatability) + paired.mixture
        return MeasuredLatency(ms=paired.ratio * beside, margin=margin, unsteady=True, mixture=paired.mixture)
    values = [sample.p50_ms for sample in samples]
    visits = max(values) / min(values) - 1
    blocks = max(sample.ratio.half_width for sample in samples)
    spread = max(LEAST_MARGIN, blocks, visits, _REPEATS * repeatability)
    faster = max((reference_ms or beside) / beside - 1, 0.0)
    return MeasuredLatency(ms=float(np.mean(values)), margin=spread + faster)


class LocalStopwatch:
    """Measures and journals a space's subnets on this machine.

    Args:
        campaign: measures and journals.
        device: what ``--device`` calls it.
        repeatability: see :func:`combine_visits`.
    """

    def __init__(self, campaign: Campaign, *, device: str = CPU, repeatability: float = 0.0) -> None:
        self.campaign, self.device, self.repeatability = campaign, device, repeatability

    @property
    def conditions(self) -> Conditions:
        """What the medians are of."""
        s = self.campaign.setup
        return Conditions(device=self.device, batch=s.batch, precision=s.precision, runtime=s.runtime)

    def known(self, subnet: Subnet) -> MeasuredLatency | None:
        """The journalled latency; None where the sample of a visit is missing."""
        samples = self._samples(subnet)
        if len(samples) < VISITS:
            return None
        return combine_visits(samples, reference_ms=self.campaign.usual_ms, repeatability=self.repeatability)

    def measure(self, subnet: Subnet, limit_ms: float | None = None) -> MeasuredLatency:
        """The journalled latency, or the one that is measured now.

        Args:
            limit_ms: while an unsteady latency's interval crosses it, the subnet is measured again, up to :data:`MAX_VISITS` times
                and as long as the campaign's bounds leave time. Then the interval that there is decides.

        Raises:
            UnsteadyMachine: the machine is too busy, and the campaign's bounds are strict.
            OutputError: the journal can't be written.
        """
        for visit in range(MAX_VISITS):
            if (latency := self.known(subnet)) is not None:
                doubtful = limit_ms is not None and latency.unsteady and latency.crosses(limit_ms)
                if not (doubtful and self.campaign.may_repeat):
                    return latency
            self.campaign.measure([subnet], visit=visit)
        latency = self.known(subnet)
        assert latency is not None
        return latency

    def _samples(self, subnet: Subnet) -> list[Sample]:
        """The samples of the visits so far, as they count now."""
        samples: list[Sample] = []
        while (sample := self.campaign.known(subnet, len(samples))) is not None:
            samples.append(self.campaign.settled(sample))
        return samples

    def expected_margin(self, reference: Timed) -> float:
        """The margin of a subnet that is measured as steadily as can be now.

        Whether the machine is slower or faster than usual, a prediction for the usual state needs so much more room.

        Args:
            reference: what the reference takes now.
        """
        now_ms = reference.ms[-1]
        moved = abs(now_ms / (self.campaign.usual_ms or now_ms) - 1)
        return max(LEAST_MARGIN, _REPEATS * self.repeatability) + max(moved, reference.mixture)


def set_aside(path: Path, setup: Setup, reference_ms: float, tolerance: float) -> float | None:
    """What the reference subnet took in a journal, milliseconds; None where there is none, or where it was moved away.

    Only steady samples count: the others are ratios to the reference, whatever its speed was. The journal becomes
    ``NAME.old.jsonl`` if the reference takes ``reference_ms`` now and that differs by more than ``tolerance``, relative to then: a
    campaign would refuse every further sample.
    """
    expected = setup.to_dict()
    lines = [line for line in read_json_lines(path) if isinstance(line, dict) and line.get("setup") == expected]
    before = [float(line["reference_ms"]) for line in lines if "reference_ms" in line and not line.get("unsteady")]
    if not before:
        return None
    usual = float(np.median(before))
    if abs(reference_ms / usual - 1) <= tolerance:
        return usual
    path.replace(path.with_suffix(".old.jsonl"))
    return None
