"""Measures subnets for a search on this machine: the median latency, and a margin that covers later measurements.

A single median describes one moment of the machine. So a subnet whose latency is compared with a limit is timed at two visits with
new sessions, in blocks that are interleaved with the reference subnet (:mod:`growtas.latency.measured.campaign`). The margin states
how much longer the subnet may take at another time.

On a machine that other work disturbs, the latency is the subnet's ratio to the reference times the latency of the reference on the
idle machine. The margin is then the interval of the ratio, plus the mixture with several threads
(:mod:`growtas.latency.measured.paired`). While the interval contains the limit, more visits follow, up to :data:`MAX_VISITS` and as
long as the campaign's bounds leave time.
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
"""Largest number of visits of a subnet whose interval contains a limit on an unsteady machine."""
LEAST_MARGIN = 0.02
"""Smallest margin: twice the difference of about 1 % between two measurements of a subnet on an idle machine."""
_REPEATS = 1.5


@dataclass(frozen=True, kw_only=True)
class MeasuredLatency:
    """A subnet's latency, measured on this machine.

    Attributes:
        ms: median latency of a batch in milliseconds, averaged over the visits.
        margin: how much longer the subnet may take at another time, relative to ``ms``.
        unsteady: whether other work disturbed a visit, so that ``ms`` comes from ratios to the reference subnet.
        mixture: part of the margin that more measurements don't reduce.
    """

    ms: float
    margin: float
    unsteady: bool = False
    mixture: float = 0.0

    @property
    def upper_ms(self) -> float:
        """Milliseconds that are compared with a limit."""
        return self.ms * (1 + self.margin)

    def crosses(self, limit_ms: float) -> bool:
        """Whether the limit is so near that more measurements may decide whether :attr:`upper_ms` meets it."""
        return self.ms * (1 + 2 * self.mixture - self.margin) <= limit_ms < self.upper_ms


def combine_visits(samples: Sequence[Sample], *, reference_ms: float | None, repeatability: float) -> MeasuredLatency:
    """Combines a subnet's samples into one latency with a margin, which is the sum of two parts.

    The first part is the largest of :data:`LEAST_MARGIN`, twice the variation of the subnet's blocks, the difference between its
    visits, and one and a half times the largest difference of repeated measurements in the profile. The second part is how much
    faster than usual the machine was, judged by the reference subnet; it is 0 if the machine was slower.

    If a sample is unsteady, the latency is the ratio to the reference times the reference's latency. The half width of the ratio's
    interval then replaces the variation of blocks and visits. The second part is already in the ratio, and the mixture is added.

    Args:
        samples: the samples of one subnet, one per visit.
        reference_ms: usual latency of the reference subnet in milliseconds; None if unknown.
        repeatability: largest relative difference of repeated measurements in a profile; 0 without a profile.
    """
    reference_now_ms = float(np.mean([sample.reference_ms for sample in samples]))
    if any(sample.unsteady for sample in samples):
        paired = PairedRatio.of_visits([sample.ratio for sample in samples])
        margin = max(LEAST_MARGIN, paired.half_width, _REPEATS * repeatability) + paired.mixture
        return MeasuredLatency(ms=paired.ratio * reference_now_ms, margin=margin, unsteady=True, mixture=paired.mixture)
    values = [sample.p50_ms for sample in samples]
    visits = max(values) / min(values) - 1
    blocks = max(sample.ratio.half_width for sample in samples)
    spread = max(LEAST_MARGIN, blocks, visits, _REPEATS * repeatability)
    faster = max((reference_ms or reference_now_ms) / reference_now_ms - 1, 0.0)
    return MeasuredLatency(ms=float(np.mean(values)), margin=spread + faster)


class LocalStopwatch:
    """Measures and journals a space's subnets on this machine.

    Args:
        campaign: measures subnets and stores the samples.
        device: name of the device for ``--device``.
        repeatability: see :func:`combine_visits`.
    """

    def __init__(self, campaign: Campaign, *, device: str = CPU, repeatability: float = 0.0) -> None:
        self.campaign, self.device, self.repeatability = campaign, device, repeatability

    @property
    def conditions(self) -> Conditions:
        """Conditions of the measured latencies."""
        s = self.campaign.setup
        return Conditions(device=self.device, batch=s.batch, precision=s.precision, runtime=s.runtime)

    def known(self, subnet: Subnet) -> MeasuredLatency | None:
        """Returns the journalled latency; None if a visit is missing."""
        samples = self._samples(subnet)
        if len(samples) < VISITS:
            return None
        return combine_visits(samples, reference_ms=self.campaign.usual_ms, repeatability=self.repeatability)

    def measure(self, subnet: Subnet, limit_ms: float | None = None) -> MeasuredLatency:
        """Returns the journalled latency, or measures it now.

        Args:
            subnet: the subnet.
            limit_ms: limit in milliseconds. While the interval of an unsteady latency contains it, the subnet is measured again, up
                to :data:`MAX_VISITS` times and as long as the campaign's bounds leave time.

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
        """Returns the settled samples of the visits so far."""
        samples: list[Sample] = []
        while (sample := self.campaign.known(subnet, len(samples))) is not None:
            samples.append(self.campaign.settled(sample))
        return samples

    def expected_margin(self, reference: Timed) -> float:
        """Returns the smallest margin that a measurement can have now.

        If the machine is slower or faster than usual, predictions, which are for its usual state, need this difference as room too.

        Args:
            reference: the current timing of the reference subnet.
        """
        now_ms = reference.ms[-1]
        moved = abs(now_ms / (self.campaign.usual_ms or now_ms) - 1)
        return max(LEAST_MARGIN, _REPEATS * self.repeatability) + max(moved, reference.mixture)


def set_aside(path: Path, setup: Setup, reference_ms: float, tolerance: float) -> float | None:
    """Moves a journal away if the machine's speed has changed since. Returns the reference's latency in it, in milliseconds.

    Only steady samples count, because the others are ratios to the reference at any speed. The journal is renamed to
    ``NAME.old.jsonl`` if ``reference_ms``, the reference's latency now, differs by more than ``tolerance`` (relative), because a
    campaign would then refuse all further samples. Returns None without a journal and after moving it.
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
