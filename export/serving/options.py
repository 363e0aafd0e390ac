"""The options of a server: its address and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from growtas.errors import ConfigError
from growtas.resources import check_threads


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The options of a server.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 chooses a free port.
        name: name of the model; by default the artifact's name without suffix.
        threads: CPU threads; by default all that this process may use.
        max_batch: largest batch; by default, and at most, that of the manifest.
        max_delay_us: longest time in microseconds that a request waits for others to share its batch.
        queue: number of requests that may wait for a batch; further ones get status 503.
        max_body: largest size of a request in bytes; by default enough for the largest batch.
        connections: number of connections at the same time. A further one closes the connection that has waited longest without a
            request, with status 503 if it had none so far. If all have a request in progress, the new one gets status 503.
        timeout_s: limit in seconds for receiving a request's head, for receiving its body, and for sending its answer, each.
        drain_s: longest time in seconds that a stop waits for requests in progress.
        shutdown_delay_s: time in seconds that a stopping server still accepts requests while it reports that it is not ready, so
            that load balancers and Kubernetes stop sending requests before they are refused.
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
        """Checks the numbers.

        Raises:
            ConfigError: a number is out of range.
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
