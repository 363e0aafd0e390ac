"""The options of a server: where it listens, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from growtas.errors import ConfigError
from growtas.resources import check_threads


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        name: the model's name; by default the artifact's without suffix.
        threads: CPU threads; by default all that this process may use.
        max_batch: by default, and at most, the manifest's.
        max_delay_us: how long a request may wait for others to share its batch.
        queue: requests that may wait for a batch; more are told 503.
        max_body: bytes of one request; by default enough for the largest batch.
        connections: at the same time; more are told 503 and closed.
        timeout_s: for a request's head, for its body, and for its answer to be taken, each.
        drain_s: how long a stop waits for what is under way.
        shutdown_delay_s: how long a stop goes on taking requests, while readiness is already false, so that load balancers and
            Kubernetes send no more of them before they are refused.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    threads: int | None = None
    max_batch: int | None = None
    max_delay_us: int = 0
    queue: int = 128
    max_body: int | None = None
    connections: int = 256
    timeout_s: float = 20.0
    drain_s: float = 30.0
    shutdown_delay_s: float = 0.0

    def check(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is out of range.
        """
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}; it must be from 0 to 65535")
        for name, value, least in (
            ("--max-delay-us", self.max_delay_us, 0),
            ("--queue", self.queue, 1),
            ("--max-connections", self.connections, 1),
            ("--max-body", self.max_body, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        check_threads(self.threads)
        for name, seconds in (("--timeout", self.timeout_s), ("--drain", self.drain_s)):
            if not 0 < seconds <= 3600:
                raise ConfigError(f"{name} is {seconds:g}; it must be above 0 and at most 3600 seconds")
        if not 0 <= self.shutdown_delay_s <= 3600:
            raise ConfigError(f"--shutdown-delay is {self.shutdown_delay_s:g}; it must be from 0 to 3600 seconds")
