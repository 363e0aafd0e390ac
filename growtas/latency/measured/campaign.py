"""Measures many subnets on one machine, and notices where the machine is busy or throttled.

Subnets are measured in groups, together with a reference subnet that is in every group. A group's blocks are interleaved, so its
numbers are comparable with each other; the reference makes groups comparable. What is accepted is journalled at once, and a killed
campaign goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from growtas.errors import ConfigError, GrowtasError, OutputError
from growtas.files import append_json_line, drop_torn_line, ensure_writable, read_json_lines
from growtas.nn.architecture import Architecture
from growtas.progress import SILENT, Progress
from growtas.space import SearchSpace
from growtas.subnet import Subnet

Role = Literal["fit", "held-out", "repeat"]
"""What a sample is for: fitting a model, testing it, or comparing with another time."""
InterleavedTimer = Callable[[Sequence[Subnet]], list[list[float]]]
"""Times subnets in interleaved blocks: the median milliseconds of each subnet in each block, shape ``(subnets, blocks)``."""


class UnsteadyMachine(GrowtasError):
    """The machine's timings do not repeat: it is busy, or its clocks change."""


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
    """What a measurement must keep to be a sample.

    Attributes:
        cv: largest robust coefficient of variation of a subnet's blocks; see :func:`spread`.
        drift: largest relative change of the reference against the groups accepted before.
        tries: how often a group is measured before the campaign stops.
        group: subnets measured together, beside the reference.
    """

    cv: float = 0.05
    drift: float = 0.04
    tries: int = 4
    group: int = 9

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
        p50_ms: median over its blocks' medians, milliseconds a batch.
        cv: robust coefficient of variation of the blocks.
        reference_ms: what the reference subnet took in the same blocks.
        visit: 0, or 1 for a repetition at another time.
    """

    subnet: Subnet
    p50_ms: float
    cv: float
    reference_ms: float
    visit: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the visit."""
        return {"subnet": self.subnet.to_dict(), "p50_ms": self.p50_ms, "cv": self.cv, "reference_ms": self.reference_ms}


def spread(blocks_ms: Sequence[float]) -> float:
    """Robust coefficient of variation: 1.4826 times the median absolute deviation, over the median.

    The factor makes it the standard deviation of normal noise. A single spoiled block does not count.
    """
    blocks = np.asarray(blocks_ms, np.float64)
    median = float(np.median(blocks))
    return float(1.4826 * np.median(np.abs(blocks - median)) / median)


class Campaign:
    """Samples of a space's subnets, backed by a JSON-lines file.

    Args:
        path: the journal; lines of other setups are left alone.
        space: geometry of the architectures; its middle subnet is the reference.
        setup: what is measured how; only samples of the same setup are reused.
        timer: times subnets.
        bounds: what is refused.
        progress: advances with every sample, gets each new :class:`Sample` as an event, and a note when a group is measured again.

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
        progress: Progress = SILENT,
    ) -> None:
        self.path, self.space, self.setup, self.bounds = Path(path), space, setup, bounds or Bounds()
        self._timer, self._progress = timer, progress
        self.reference = space.middle()
        self._known: dict[tuple[str, int], Sample] = {}
        self.remeasured = 0
        ensure_writable(self.path.parent)
        drop_torn_line(self.path)
        expected = setup.to_dict()
        for line in read_json_lines(self.path):
            if isinstance(line, dict) and line.get("setup") == expected and {"subnet", "p50_ms", "reference_ms"} <= line.keys():
                subnet = Subnet.from_dict(line["subnet"], source=str(self.path))
                sample = Sample(
                    subnet=subnet,
                    p50_ms=float(line["p50_ms"]),
                    cv=float(line["cv"]),
                    reference_ms=float(line["reference_ms"]),
                    visit=int(line["visit"]),
                )
                self._known[str(line.get("architecture")), sample.visit] = sample

    def _architecture(self, subnet: Subnet) -> dict[str, Any]:
        return Architecture.of(self.space, subnet).to_dict()

    def known(self, subnet: Subnet, visit: int = 0) -> Sample | None:
        """The journalled sample, if there is one."""
        return self._known.get((str(self._architecture(subnet)), visit))

    def measure(self, subnets: Iterable[Subnet], *, visit: int = 0) -> list[Sample]:
        """A sample of each subnet, journalled or measured now, in their order.

        Args:
            visit: 1 to measure subnets again that have a sample already.

        Raises:
            UnsteadyMachine: the timings of a group did not settle.
            OutputError: the journal can't be written.
        """
        subnets = list(dict.fromkeys(subnets))
        missing = [subnet for subnet in subnets if self.known(subnet, visit) is None]
        self._progress.advance(len(subnets) - len(missing))
        for start in range(0, len(missing), self.bounds.group):
            self._group(missing[start : start + self.bounds.group], visit)
        samples = [self.known(subnet, visit) for subnet in subnets]
        return [sample for sample in samples if sample is not None]

    def _group(self, pending: list[Subnet], visit: int) -> None:
        """Measure a group until every subnet has a sample that keeps the bounds."""
        why = ""
        for attempt in range(self.bounds.tries):
            if attempt:
                self.remeasured += len(pending)
                self._progress.note(f"measuring {len(pending)} subnets again: {why}")
                time.sleep(2.0 * attempt)
            *blocks, reference_blocks = self._timer([*pending, self.reference])
            reference = float(np.median(reference_blocks))
            why = self._complaint(reference, spread(reference_blocks))
            if why:
                continue
            accepted = [
                Sample(subnet=subnet, p50_ms=float(np.median(times)), cv=spread(times), reference_ms=reference, visit=visit)
                for subnet, times in zip(pending, blocks, strict=True)
                if spread(times) <= self.bounds.cv
            ]
            self._record(accepted)
            done = {sample.subnet for sample in accepted}
            worst = max(map(spread, blocks))
            why = f"their timings vary by {worst:.1%} (allowed are {self.bounds.cv:.1%})"
            pending = [subnet for subnet in pending if subnet not in done]
            if not pending:
                return
        raise UnsteadyMachine(
            f"the machine is too busy, or its clocks change: {why}, {self.bounds.tries} times; "
            f"the {len(self._known)} good samples are in {self.path}, and the same command goes on from there when it is quiet"
        )

    def _complaint(self, reference_ms: float, cv: float) -> str:
        """Why a group's reference is not to be trusted; empty if it is."""
        if cv > self.bounds.cv:
            return f"the reference subnet's timings vary by {cv:.1%} (allowed are {self.bounds.cv:.1%})"
        before = [sample.reference_ms for sample in self._known.values()]
        if not before:
            return ""
        moved = reference_ms / float(np.median(before)) - 1
        if abs(moved) > self.bounds.drift:
            return f"the reference subnet took {moved:+.1%} against before (allowed are {self.bounds.drift:.1%})"
        return ""

    def _record(self, samples: list[Sample]) -> None:
        for sample in samples:
            architecture = self._architecture(sample.subnet)
            line = {
                "setup": self.setup.to_dict(),
                "architecture": architecture,
                "subnet": sample.subnet.to_dict(),
                "visit": sample.visit,
                "kind": "measured",
                "p50_ms": sample.p50_ms,
                "cv": sample.cv,
                "reference_ms": sample.reference_ms,
            }
            try:
                append_json_line(self.path, line)
            except OSError as error:
                raise OutputError(f"{self.path}: the measured latencies can't be written ({error.strerror})") from None
            self._known[str(architecture), sample.visit] = sample
            self._progress.event(sample)
            self._progress.advance()
