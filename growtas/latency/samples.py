"""Measured latencies of subnets on this machine, kept in a file so that no subnet is measured twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from growtas.errors import OutputError
from growtas.files import append_json_line, drop_torn_line, ensure_writable, read_json_lines
from growtas.latency.estimate import PERCENTILE, Conditions
from growtas.nn.architecture import Architecture
from growtas.space import SearchSpace
from growtas.subnet import Subnet


class Measured(Protocol):
    """What a measurement must tell; ``growtas.export.measure.Measurement`` does."""

    @property
    def p50_ms(self) -> float:
        """Median, milliseconds."""

    @property
    def runtime(self) -> str:
        """What executed the network."""

    @property
    def precision(self) -> str:
        """``fp32`` and the like."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""


Measure = Callable[[Architecture], Measured]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a timing depends on beside the architecture; only timings of the same setup are reused.

    Attributes:
        batch: images at once.
        threads: CPU threads.
        runtime, runtime_version: what executes the network.
        precision: ``fp32`` and the like.
        machine: the CPU's name.
    """

    batch: int
    threads: int
    runtime: str
    runtime_version: str
    precision: str
    machine: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class LatencySamples:
    """Measured medians of a space's subnets, backed by a JSON-lines file.

    Args:
        path: the file; made if absent, lines of other setups are left alone.
        space: turns a subnet into the architecture to measure.
        setup: what is measured how.
        measure: builds and times an architecture.

    Raises:
        OutputError: the file can't be written.
    """

    def __init__(self, path: str | Path, space: SearchSpace, setup: Setup, measure: Measure) -> None:
        self.path, self.space, self.setup = Path(path), space, setup
        self._measure = measure
        ensure_writable(self.path.parent)
        drop_torn_line(self.path)
        wanted = setup.to_dict()
        self._known: dict[str, float] = {}
        for line in read_json_lines(self.path):
            if isinstance(line, dict) and line.get("setup") == wanted and isinstance(line.get("p50_ms"), float):
                self._known[str(line.get("architecture"))] = line["p50_ms"]

    @property
    def conditions(self) -> Conditions:
        """What the medians are of."""
        s = self.setup
        return Conditions(device="cpu", percentile=PERCENTILE, batch=s.batch, precision=s.precision, runtime=s.runtime)

    def known_ms(self, subnet: Subnet) -> float | None:
        """The recorded median in milliseconds, if there is one."""
        return self._known.get(str(Architecture.of(self.space, subnet).to_dict()))

    def measure_ms(self, subnet: Subnet) -> float:
        """The median in milliseconds, from the file or measured now.

        Raises:
            OutputError: the file can't be written.
        """
        known = self.known_ms(subnet)
        if known is not None:
            return known
        architecture = Architecture.of(self.space, subnet)
        measured = self._measure(architecture)
        line = {"architecture": architecture.to_dict(), "setup": self.setup.to_dict(), "p50_ms": float(measured.p50_ms)}
        try:
            append_json_line(self.path, {**line, "measurement": measured.to_dict()})
        except OSError as error:
            raise OutputError(f"{self.path}: the measured latencies can't be written ({error.strerror})") from None
        self._known[str(architecture.to_dict())] = float(measured.p50_ms)
        return float(measured.p50_ms)

    def measure_all(self, subnets: Iterable[Subnet], on_sample: Callable[[Subnet, float], None] | None = None) -> list[float]:
        """Medians of several subnets in milliseconds, in their order."""
        values = []
        for subnet in subnets:
            values.append(self.measure_ms(subnet))
            if on_sample:
                on_sample(subnet, values[-1])
        return values
