"""Measures many subnets on one machine, and notices where the machine is busy or throttled.

Subnets are measured in groups, together with a reference subnet that is in every group. A group's blocks are interleaved, so its
numbers are comparable with each other; the reference makes groups comparable. Where the timings are not steady, more rounds
follow, and a subnet is known by its ratio to the reference (:mod:`growtas.latency.measured.paired`); such samples are marked.
What is accepted is journalled at once, and a killed campaign goes on from there.
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

from growtas.errors import ConfigError, GrowtasError, OutputError
from growtas.files import append_json_line, drop_torn_line, ensure_writable, read_json_lines
from growtas.latency.measured.paired import Block, InterleavedTimer, PairedRatio, medians, quiet_ms
from growtas.nn.architecture import Architecture
from growtas.progress import SILENT, Progress
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Role = Literal["fit", "held-out", "repeat"]
"""What a sample is for: fitting a model, testing it, or comparing with another time."""
ATTEMPTS = 2
"""Times that a group is measured for its ratios; where one is to be more precise, its subnet gets more visits."""
PRECISE = 0.04
"""Half width of an unsteady sample's interval, relative to it, from which on no further rounds are taken for it."""
_MOST_INTERRUPTED = 0.35
"""Share of the blocks' time in interrupted runs: up to 0.18 were measured on a quiet machine, 0.55 beside two other programs."""


class UnsteadyMachine(GrowtasError):
    """The machine's timings do not repeat: it is busy, or its clocks change."""


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
    """What a timing depends on beside the architecture; only timings of the same setup are reused.

    Attributes:
        batch: images at once.
        threads: CPU threads; 0 on a GPU.
        runtime, runtime_version: what executes the network.
        precision: ``fp32`` and the like.
        machine: the CPU's name.
        graph: digest of the reference subnet's exported graph: what another exporter writes has other timings. Empty where the
            timings are not reused by a later version.
    """

    batch: int
    threads: int
    runtime: str
    runtime_version: str
    precision: str
    machine: str
    graph: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; with a ``graph`` it says that what was timed so is ``measured``, an empty one is left out."""
        fields = asdict(self)
        return {**fields, "kind": "measured"} if fields["graph"] else {k: v for k, v in fields.items() if k != "graph"}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a measurement must keep to be a steady sample, and what happens where it does not.

    Attributes:
        cv: largest robust coefficient of variation of a subnet's blocks; see :func:`spread`.
        drift: largest relative change of the reference against usual, or against the groups accepted before.
        tries: how often a group is measured at most, if ``strict``; otherwise it is :data:`ATTEMPTS` times.
        group: subnets measured together, beside the reference.
        seconds: time spent on timing after which nothing is measured again to be more precise. Not for ``strict``.
        strict: refuse what is not steady, after pauses, instead of marking it.
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
    """One subnet, timed.

    Attributes:
        subnet: what was timed.
        p50_ms: median over its blocks' medians, milliseconds a batch; of an unsteady sample its paired ratio times
            ``reference_ms``.
        cv: robust coefficient of variation of the blocks.
        reference_ms: what the reference subnet took in the same blocks; of an unsteady sample their lower quartile.
        visit: 0, or a higher number for a repetition at another time.
        half_width: of the interval of the ratio to the reference, relative to it; None for a steady sample.
        mixture: of an unsteady sample with several threads; see :class:`growtas.latency.measured.paired.PairedRatio`.
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
        """Whether other work disturbed the timings too much for their own medians to count."""
        return self.half_width is not None

    @property
    def ratio(self) -> PairedRatio:
        """To the reference subnet; of a steady sample the variation of the blocks tells the error."""
        half_width = 2 * self.cv if self.half_width is None else self.half_width
        return PairedRatio(ratio=self.p50_ms / self.reference_ms, half_width=half_width, mixture=self.mixture)

    @classmethod
    def of(cls, data: Mapping[str, Any], subnet: Subnet, visit: int) -> Sample:
        """A sample from the numbers of its JSON form, and what is read from it apart."""
        numbers = {name: data[name] for name in ("p50_ms", "cv", "reference_ms")}
        marks = {name: data[name] for name in ("half_width", "mixture") if name in data}
        return cls(subnet=subnet, visit=visit, **numbers, **marks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the visit; ``unsteady``, ``half_width`` and ``mixture`` stand in that of an unsteady sample."""
        marks = {"unsteady": True, "half_width": self.half_width, "mixture": self.mixture} if self.unsteady else {}
        fields = {"p50_ms": self.p50_ms, "cv": self.cv, "reference_ms": self.reference_ms}
        return {"subnet": self.subnet.to_dict(), **fields, **marks}


def spread(blocks_ms: Sequence[float] | NDArray[np.float64]) -> float:
    """Robust coefficient of variation: 1.4826 times the median absolute deviation, over the median.

    The factor makes it the standard deviation of normal noise. A single spoiled block does not count.
    """
    blocks = np.asarray(blocks_ms, np.float64)
    median = float(np.median(blocks))
    return float(1.4826 * np.median(np.abs(blocks - median)) / median)


def scatter(blocks: Sequence[Block], bounds: Bounds) -> str:
    """How a subnet's blocks break the bound on their variation, in words; empty where they keep it.

    Of two speeds that alternate, :func:`spread` sees the more frequent one alone. So unless the bounds are strict, the median must
    not lie further above the fastest block than blocks with the allowed variation would. Other work that never pauses makes all
    blocks alike; it shows in the time that goes to interrupted runs.
    """
    blocks_ms = medians(blocks)
    if (cv := spread(blocks_ms)) > bounds.cv:
        return f"vary by {cv:.1%} (allowed are {bounds.cv:.1%})"
    if not bounds.strict and blocks_ms.min() < float(np.median(blocks_ms)) * (1 - 2 * bounds.cv):
        return "are mostly much longer than the shortest one"
    interrupted = float(np.median([block.interrupted for block in blocks]))
    if not bounds.strict and interrupted > _MOST_INTERRUPTED:
        return f"hold interrupted runs for {interrupted:.0%} of their time"
    return ""


class Campaign:
    """Samples of a space's subnets, backed by a JSON-lines file.

    Args:
        path: the journal; lines of other setups are left alone.
        space: geometry of the architectures; its middle subnet is the reference.
        setup: what is measured how; only samples of the same setup are reused.
        timer: times subnets.
        bounds: what is steady. Strict ones leave unsteady samples of the journal alone too.
        usual_ms: what the reference takes while nothing else runs, milliseconds; None where only the samples tell.
        progress: advances with every sample, gets each new :class:`Sample` as an event, and a note when the machine is not steady.

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
        """The journalled sample, if there is one."""
        return self._known.get((str(self._architecture(subnet)), visit))

    @property
    def quiet_reference_ms(self) -> float | None:
        """What the reference takes while nothing else runs; None where that is not known yet.

        As given, unless the samples contradict it: the lower quartile of what it took beside them, where that is clearly less. With
        strict bounds all samples are steady, and nothing can contradict.
        """
        beside = [sample.reference_ms for sample in self._known.values()]
        if not beside or (self.bounds.strict and self.usual_ms is not None):
            return self.usual_ms
        if self.bounds.strict:
            return float(np.median(beside))
        lower = float(np.percentile(beside, 25))
        is_usual = self.usual_ms is not None and lower >= self.usual_ms * (1 - self.bounds.drift)
        return self.usual_ms if is_usual else lower

    def settled(self, sample: Sample) -> Sample:
        """A sample at :attr:`quiet_reference_ms`: the groups that samples are from may have been disturbed differently.

        A steady one stays as it is, unless later samples have shown that the machine was slow, or fast, at its time.
        """
        usual_ms = self.quiet_reference_ms
        if usual_ms is None or self.bounds.strict:
            return sample
        if not sample.unsteady and abs(sample.reference_ms / usual_ms - 1) <= self.bounds.drift:
            return sample
        paired = sample.ratio
        return replace(sample, p50_ms=paired.ratio * usual_ms, reference_ms=usual_ms, half_width=paired.half_width)

    def measure(self, subnets: Iterable[Subnet], *, visit: int = 0) -> list[Sample]:
        """A sample of each subnet, journalled or measured now and :meth:`settled`, in their order.

        Args:
            visit: 1 to measure subnets again that have a sample already.

        Raises:
            UnsteadyMachine: the timings of a group did not settle, and the bounds are strict.
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
        """Whether the bounds leave time to measure a subnet again, for a narrower interval."""
        return self._seconds < self.bounds.seconds

    def _measure_group(self, pending: list[Subnet], visit: int) -> None:
        """Measures a group: steady subnets once, the others until their ratio to the reference is precise, at most ATTEMPTS times.

        With strict bounds the others are measured again, after pauses, until they are steady.
        """
        strict, why = self.bounds.strict, ""
        blocks: dict[Subnet, list[Block]] = {subnet: [] for subnet in pending}
        beside: list[Block] = []
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
            beside += reference
            spoiled = why = self._complaint(reference)
            accepted: list[Sample] = []
            for subnet, times in zip(pending, turns, strict=True):
                blocks[subnet] += times
                scatters = scatter(times, self.bounds)
                why = why or (scatters and f"a subnet's timings {scatters}")
                if not spoiled and not scatters:
                    accepted.append(_steady(subnet, times, reference, visit))
                elif not strict:
                    sample = _unsteady(subnet, blocks[subnet], beside, visit, self.setup.threads)
                    accepted += [sample] if last or sample.ratio.half_width <= PRECISE else []
            self._record(accepted)
            if why and not strict and not self._noted:
                self._noted = True
                self._progress.note(f"this machine is not steady: {why}; latencies are judged on ratios to the reference subnet")
            done = {sample.subnet for sample in accepted}
            pending = [subnet for subnet in pending if subnet not in done]
            if not pending:
                return
        raise UnsteadyMachine(
            f"the machine is too busy, or its clocks change: {why}, {self.bounds.tries} times; nothing was lost: the "
            f"{len(self._known)} good samples are in {self.path}, and the same command goes on from there when it is quiet"
        )

    def _complaint(self, reference: Sequence[Block]) -> str:
        """Why a group's reference is not steady; empty if it is."""
        if scatters := scatter(reference, self.bounds):
            return f"the reference subnet's timings {scatters}"
        usual_ms = self.quiet_reference_ms
        moved = float(np.median(medians(reference))) / usual_ms - 1 if usual_ms else 0.0
        if abs(moved) > self.bounds.drift:
            return f"the reference subnet took {moved:+.1%} against before (allowed are {self.bounds.drift:.1%})"
        return ""

    def _record(self, samples: list[Sample]) -> None:
        for sample in samples:
            architecture = self._architecture(sample.subnet)
            line = {"setup": self.setup.to_dict(), "architecture": architecture, "visit": sample.visit, "kind": "measured"}
            try:
                append_json_line(self.path, line | sample.to_dict())
            except OSError as error:
                raise OutputError(f"{self.path}: the measured latencies can't be written ({error.strerror})") from None
            self._known[str(architecture), sample.visit] = sample
            self._progress.event(sample)
            self._progress.advance()


def _steady(subnet: Subnet, blocks: list[Block], reference: list[Block], visit: int) -> Sample:
    times, beside = medians(blocks), float(np.median(medians(reference)))
    ms, cv = float(np.median(times)), spread(times)
    return Sample(subnet=subnet, p50_ms=ms, cv=cv, reference_ms=beside, visit=visit)


def _unsteady(subnet: Subnet, blocks: list[Block], reference: list[Block], visit: int, threads: int) -> Sample:
    paired, beside = PairedRatio.of_blocks(blocks, reference, threads), quiet_ms(reference, threads)
    return Sample(
        subnet=subnet,
        p50_ms=paired.ratio * beside,
        cv=spread(medians(blocks)),
        reference_ms=beside,
        visit=visit,
        half_width=paired.half_width,
        mixture=paired.mixture,
    )
