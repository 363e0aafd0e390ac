"""A subject under measurement: its session, its timers, and what they gave so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from growtas.errors import GrowtasError
from growtas.export.benchmark.inputs import Fed
from growtas.export.benchmark.power import Consumption
from growtas.export.benchmark.subjects import Subject
from growtas.export.runtimes.base import Session, Timer


@dataclass(kw_only=True)
class Entry:
    """One subject under measurement.

    Attributes:
        not_runnable_because: why nothing is measured; None where ``session`` is open.
        failure: the error that says so; None where no error did, as for a plan of a GPU that isn't at hand.
        fed: what the session is fed.
        timers, samples: by batch; ``samples`` has a list of milliseconds for each round that is done.
        parts, part_samples: by batch, where the session tells host, transfer and device time apart.
        io_bytes: inputs and outputs of a run, by batch.
        weight_bytes: None where the roofline isn't asked for.
    """

    subject: Subject
    session: Session | None = None
    not_runnable_because: str | None = None
    failure: GrowtasError | None = None
    fed: Fed | None = None
    timers: dict[int, Timer] = field(default_factory=dict)
    samples: dict[int, list[list[float]]] = field(default_factory=dict)
    parts: dict[int, Callable[[], Any]] = field(default_factory=dict)
    part_samples: dict[int, list[Any]] = field(default_factory=dict)
    power: dict[int, Consumption] = field(default_factory=dict)
    io_bytes: dict[int, int] = field(default_factory=dict)
    weight_bytes: int | None = None
    memory: dict[str, Any] | None = None

    def failed(self, error: GrowtasError) -> None:
        """Nothing is measured, for this reason."""
        self.not_runnable_because, self.failure, self.fed = str(error), error, None
        for kept in (self.timers, self.samples, self.parts, self.part_samples, self.power, self.io_bytes):
            kept.clear()

    @property
    def device(self) -> str:
        """What the loaded session runs on."""
        assert self.session is not None
        return self.session.info.device
