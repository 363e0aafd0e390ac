"""Measures many subnets on one machine, and detects when the machine is busy or throttled.

Subnets are measured in groups, and each group contains the same reference subnet. The timing blocks of a group are interleaved, so
its latencies are comparable with each other; the reference makes groups comparable. If the timings are not steady, more rounds
follow, and the latency comes from the ratio to the reference (:mod:`growtas.latency.measured.paired`). Such samples are marked as
unsteady. Accepted samples are journalled immediately, and a killed campaign continues from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from growtas.errors import ConfigError, GrowtasError
from growtas.files import append_json_line, drop_torn_line, ensure_writable, read_json_lines
from growtas.latency.measured.paired import Block, InterleavedTimer, PairedRatio, medians, quiet_ms
from growtas.nn.architecture import Architecture
from growtas.progress import SILENT, Progress
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Role = Literal["fit", "held-out", "repeat"]
"""Purpose of a sample: fitting the model, testing it on held-out subnets, or a repetition at another time."""
ATTEMPTS = 2
"""Largest number of measurements of an unsteady group. A subnet that needs a more precise ratio gets more visits."""
PRECISE = 0.04
"""Relative half width of an unsteady sample's interval that is narrow enough, so that no further rounds follow."""
_MOST_INTERRUPTED = 0.35
"""Share of a block's time in interrupted runs: up to 0.18 was measured on an idle machine, 0.55 beside two other programs."""


class UnsteadyMachine(GrowtasError):
    """The timings of the machine are not repeatable: it is busy, or its clocks change."""


TIMINGS_LINE = """A line of ``DEVICE-timings.jsonl`` of a search, and of a profile's ``.jsonl``: a subnet that was timed.

Fields:
    setup (object): What the timing depends on besides the network.
    architecture (object): What was timed, with its geometry: two spaces' subnets of the same architecture share their timings.
    visit (whole number): 0, or a higher number for a repetition at another time.
    kind (text): Always ``measured``.
    subnet (object): The subnet, as in a subnet's file.
    p50_ms (number): Median in milliseconds; of an unsteady sample its ratio to the reference times ``reference_ms``.
    cv (number): Robust coefficient of variation of the timed blocks.
    reference_ms (number): Milliseconds that the reference subnet took in the same blocks.
    unsteady (true): Other work disturbed the timings. Absent in a steady sample, as are the next two.
    half_width (number): Half width of the interval of the ratio to the reference, relative to it.
    mixture (number): With several threads: how far the middle lies from the undisturbed and from the disturbed runs.
"""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that a timing depends on besides the architecture. Only timings of the same setup are reused.

    Attributes:
        batch: number of images per batch.
        threads: number of CPU threads; 0 on a GPU.
        runtime: runtime that executes the network.
        runtime_version: version of the runtime.
        precision: precision of the network, such as ``fp32``.
        machine: name of the CPU or GPU.
        graph: digest of the reference subnet's exported graph, because graphs of another exporter have other timings. Empty if the
            timings are not reused by later versions.
    """

    batch: int
    threads: int
    runtime: str
    runtime_version: str
    precision: str
    machine: str
    graph: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form. With a ``graph`` it includes the kind ``measured``; an empty ``graph`` is left out."""
        fields = asdict(self)
        return {**fields, "kind": "measured"} if fields["graph"] else {k: v for k, v in fields.items() if k != "graph"}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds that a steady sample keeps, and the treatment of samples that don't.

    Attributes:
        cv: largest robust coefficient of variation of a subnet's blocks; see :func:`spread`.
        drift: largest relative change of the reference's latency from its usual value, or from the groups accepted before.
        tries: largest number of measurements of a group if ``strict``; otherwise it is :data:`ATTEMPTS`.
        group: number of subnets measured together, besides the reference.
        seconds: time spent on timing, in seconds, after which no measurement is repeated for more precision. ``strict`` ignores it.
        strict: whether to measure unsteady samples again after a pause, and to fail in the end, instead of marking them.
    """

    cv: float = 0.05
    drift: float = 0.04
    tries: int = 4
    group: int = 9
    seconds: float = math.inf
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("cv", "drift"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name):g}; it must be above 0 and at most 1")
        for name in ("tries", "group"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The measured latency of one subnet.

    Attributes:
        subnet: the measured subnet.
        p50_ms: median over the medians of its blocks, in milliseconds per batch. For an unsteady sample it is the ratio to the
            reference times ``reference_ms``.
        cv: robust coefficient of variation of the blocks.
        reference_ms: latency of the reference subnet in the same blocks, in milliseconds; for an unsteady sample the lower quartile
            of its blocks.
        visit: 0, or a higher number for a repetition at another time.
        half_width: half width of the interval of the ratio to the reference, relative to it; None for a steady sample.
        mixture: uncertainty of an unsteady sample with several threads; see
            :class:`growtas.latency.measured.paired.PairedRatio`.
    """

    subnet: Subnet
    p50_ms: float
    cv: float
    reference_ms: float
    visit: int = 0
    half_width: float | None = None
    mixture: float = 0.0

    @property
    def unsteady(self) -> bool:
        """Whether other work disturbed the timings so much that their medians can't be used."""
        return self.half_width is not None

    @property
    def ratio(self) -> PairedRatio:
        """Ratio to the reference subnet. The error of a steady sample comes from the variation of its blocks."""
        half_width = 2 * self.cv if self.half_width is None else self.half_width
        return PairedRatio(ratio=self.p50_ms / self.reference_ms, half_width=half_width, mixture=self.mixture)

    @classmethod
    def of(cls, data: Mapping[str, Any], subnet: Subnet, visit: int) -> Sample:
        """Builds a sample from the numbers in its JSON form, the subnet and the visit."""
        numbers = {name: data[name] for name in ("p50_ms", "cv", "reference_ms")}
        marks = {name: data[name] for name in ("half_width", "mixture") if name in data}
        return cls(subnet=subnet, visit=visit, **numbers, **marks)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form without the visit. ``unsteady``, ``half_width`` and ``mixture`` are only in unsteady samples."""
        marks = {"unsteady": True, "half_width": self.half_width, "mixture": self.mixture} if self.unsteady else {}
        fields = {"p50_ms": self.p50_ms, "cv": self.cv, "reference_ms": self.reference_ms}
        return {"subnet": self.subnet.to_dict(), **fields, **marks}


def spread(blocks_ms: Sequence[float] | NDArray[np.float64]) -> float:
    """Returns the robust coefficient of variation: 1.4826 times the median absolute deviation, divided by the median.

    The factor makes it equal to the standard deviation for normal noise. A single disturbed block does not change it.
    """
    blocks = np.asarray(blocks_ms, np.float64)
    median = float(np.median(blocks))
    return float(1.4826 * np.median(np.abs(blocks - median)) / median)


def scatter(blocks: Sequence[Block], bounds: Bounds) -> str:
    """Describes how a subnet's blocks break the bound on their variation; returns an empty string if they keep it.

    If two speeds alternate, :func:`spread` sees only the more frequent one. So unless the bounds are strict, the median must not
    lie further above the fastest block than the allowed variation. Other work that never pauses makes all blocks equally slow; it
    is detected by the time spent in interrupted runs.
    """
    blocks_ms = medians(blocks)
    if (cv := spread(blocks_ms)) > bounds.cv:
        return f"vary by {cv:.1%} (the limit is {bounds.cv:.1%})"
    if not bounds.strict and blocks_ms.min() < float(np.median(blocks_ms)) * (1 - 2 * bounds.cv):
        return "are mostly much longer than the shortest one"
    interrupted = float(np.median([block.interrupted for block in blocks]))
    if not bounds.strict and interrupted > _MOST_INTERRUPTED:
        return f"spend {interrupted:.0%} of their time in interrupted runs"
    return ""


class Campaign:
    """Measures samples of a space's subnets and stores them in a JSON-lines file.

    Args:
        path: the journal; lines of other setups are ignored.
        space: the search space; its middle subnet is the reference.
        setup: conditions of the measurement; only samples of the same setup are reused.
        timer: times subnets.
        bounds: bounds of steady samples. With strict bounds, unsteady samples in the journal are ignored too.
        usual_ms: latency of the reference on the idle machine, in milliseconds; None if only the samples tell.
        progress: advances with every sample, and receives each new :class:`Sample` as an event, and a note on an unsteady machine.

    Raises:
        OutputError: the journal can't be written.
    """

    def __init__(
        self,
        path: str | Path,
        space: SearchSpace,
        setup: Setup,
        timer: InterleavedTimer,
        *,
        bounds: Bounds | None = None,
        usual_ms: float | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.path, self.space, self.setup, self.bounds = Path(path), space, setup, bounds or Bounds()
        self.usual_ms = usual_ms
        self._timer, self._progress = timer, progress
        self._noted, self._seconds = False, 0.0
        self.reference = space.middle()
        self._known: dict[tuple[str, int], Sample] = {}
        self.remeasured = 0
        ensure_writable(self.path.parent)
        drop_torn_line(self.path)
        expected = setup.to_dict()
        for line in read_json_lines(self.path):
            if isinstance(line, dict) and line.get("setup") == expected and {"subnet", "p50_ms", "reference_ms"} <= line.keys():
                sample = Sample.of(line, Subnet.from_dict(line["subnet"], source=str(self.path)), int(line["visit"]))
                if not (sample.unsteady and self.bounds.strict):
                    self._known[str(line.get("architecture")), sample.visit] = sample

    def _architecture(self, subnet: Subnet) -> dict[str, Any]:
        return Architecture.of(self.space, subnet).to_dict()

    def known(self, subnet: Subnet, visit: int = 0) -> Sample | None:
        """Returns the journalled sample, or None."""
        return self._known.get((str(self._architecture(subnet)), visit))

    @property
    def quiet_reference_ms(self) -> float | None:
        """Latency of the reference on the idle machine, in milliseconds; None if it is not known yet.

        It is ``usual_ms``, unless the samples contradict it: if the lower quartile of the reference's latencies beside the samples
        is clearly lower, that is used. With strict bounds all samples are steady and can't contradict it.
        """
        references_ms = [sample.reference_ms for sample in self._known.values()]
        if not references_ms or (self.bounds.strict and self.usual_ms is not None):
            return self.usual_ms
        if self.bounds.strict:
            return float(np.median(references_ms))
        lower = float(np.percentile(references_ms, 25))
        is_usual = self.usual_ms is not None and lower >= self.usual_ms * (1 - self.bounds.drift)
        return self.usual_ms if is_usual else lower

    def settled(self, sample: Sample) -> Sample:
        """Converts a sample to the speed of :attr:`quiet_reference_ms`, because groups may have been disturbed differently.

        A steady sample stays unchanged, unless later samples have shown that the machine was slower or faster at its time.
        """
        usual_ms = self.quiet_reference_ms
        if usual_ms is None or self.bounds.strict:
            return sample
        if not sample.unsteady and abs(sample.reference_ms / usual_ms - 1) <= self.bounds.drift:
            return sample
        paired = sample.ratio
        return replace(sample, p50_ms=paired.ratio * usual_ms, reference_ms=usual_ms, half_width=paired.half_width)

    def measure(self, subnets: Iterable[Subnet], *, visit: int = 0) -> list[Sample]:
        """Returns a :meth:`settled` sample of each subnet in their order, from the journal or measured now.

        Args:
            subnets: the subnets.
            visit: number of the visit; 1 measures subnets again that already have a sample.

        Raises:
            UnsteadyMachine: the timings of a group stayed unsteady, and the bounds are strict.
            OutputError: the journal can't be written.
        """
        subnets = list(dict.fromkeys(subnets))
        missing = [subnet for subnet in subnets if self.known(subnet, visit) is None]
        self._progress.advance(len(subnets) - len(missing))
        for start in range(0, len(missing), self.bounds.group):
            self._measure_group(missing[start : start + self.bounds.group], visit)
        samples = [self.known(subnet, visit) for subnet in subnets]
        return [self.settled(sample) for sample in samples if sample is not None]

    @property
    def may_repeat(self) -> bool:
        """Whether the bounds leave time to measure a subnet again for a narrower interval."""
        return self._seconds < self.bounds.seconds

    def _measure_group(self, pending: list[Subnet], visit: int) -> None:
        """Measures a group: steady subnets once, the others until their ratio to the reference is precise, at most ATTEMPTS times.

        With strict bounds the others are measured again after pauses until they are steady.
        """
        strict, why = self.bounds.strict, ""
        blocks: dict[Subnet, list[Block]] = {subnet: [] for subnet in pending}
        reference_blocks: list[Block] = []
        attempts = self.bounds.tries if strict else ATTEMPTS
        for attempt in range(attempts):
            if attempt and strict:
                self.remeasured += len(pending)
                self._progress.note(f"measuring again: {why}")
                time.sleep(2.0 * attempt)
            started = time.monotonic()
            *turns, reference = self._timer([*pending, self.reference])
            self._seconds += time.monotonic() - started
            last = attempt == attempts - 1 or not self.may_repeat
            reference_blocks += reference
            spoiled = why = self._complaint(reference)
            accepted: list[Sample] = []
            for subnet, times in zip(pending, turns, strict=True):
                blocks[subnet] += times
                scatters = scatter(times, self.bounds)
                why = why or (scatters and f"a subnet's timings {scatters}")
                if not spoiled and not scatters:
                    accepted.append(_steady(subnet, times, reference, visit))
                elif not strict:
                    sample = _unsteady(subnet, blocks[subnet], reference_blocks, visit, self.setup.threads)
                    accepted += [sample] if last or sample.ratio.half_width <= PRECISE else []
            self._record(accepted)
            if why and not strict and not self._noted:
                self._noted = True
                self._progress.note(f"this machine is unsteady: {why}; latencies are computed from ratios to the reference subnet")
            done = {sample.subnet for sample in accepted}
            pending = [subnet for subnet in pending if subnet not in done]
            if not pending:
                return
        raise UnsteadyMachine(
            f"the machine is too busy, or its clocks change: {why}, {self.bounds.tries} times; the {len(self._known)} good samples "
            f"are saved in {self.path}, and the same command continues from there when the machine is idle"
        )

    def _complaint(self, reference: Sequence[Block]) -> str:
        """Describes why the reference of a group is not steady; returns an empty string if it is."""
        if scatters := scatter(reference, self.bounds):
            return f"the reference subnet's timings {scatters}"
        usual_ms = self.quiet_reference_ms
        moved = float(np.median(medians(reference))) / usual_ms - 1 if usual_ms else 0.0
        if abs(moved) > self.bounds.drift:
            return f"the reference subnet's latency changed by {moved:+.1%} (the limit is {self.bounds.drift:.1%})"
        return ""

    def _record(self, samples: list[Sample]) -> None:
        for sample in samples:
            architecture = self._architecture(sample.subnet)
            line = {"setup": self.setup.to_dict(), "architecture": architecture, "visit": sample.visit, "kind": "measured"}
            append_json_line(self.path, line | sample.to_dict())
            self._known[str(architecture), sample.visit] = sample
            self._progress.event(sample)
            self._progress.advance()


def _steady(subnet: Subnet, blocks: list[Block], reference: list[Block], visit: int) -> Sample:
    times, reference_ms = medians(blocks), float(np.median(medians(reference)))
    ms, cv = float(np.median(times)), spread(times)
    return Sample(subnet=subnet, p50_ms=ms, cv=cv, reference_ms=reference_ms, visit=visit)


def _unsteady(subnet: Subnet, blocks: list[Block], reference: list[Block], visit: int, threads: int) -> Sample:
    paired, reference_ms = PairedRatio.of_blocks(blocks, reference, threads), quiet_ms(reference, threads)
    return Sample(
        subnet=subnet,
        p50_ms=paired.ratio * reference_ms,
        cv=spread(medians(blocks)),
        reference_ms=reference_ms,
        visit=visit,
        half_width=paired.half_width,
        mixture=paired.mixture,
    )
