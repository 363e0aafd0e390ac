"""Limits on connections that uvicorn lacks: how many, how long a request's head may take, how long an answer may lie unread.

Each connection notes since when it waits; a sweep over all of them once a second ends those that wait too long. That costs no
timer a request, and catches what a timer on one stage would miss, such as a closed connection whose last bytes nobody takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from growtas.export.serving.metrics import Metrics
from growtas.export.serving.options import ServeOptions

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux alone


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which knows since when its client keeps it waiting.

    A request's head is timed from its first byte or the connection's beginning. ``options`` and ``metrics`` are set by subclasses.
    """

    options: ServeOptions
    metrics: Metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; one too many is answered and closed at once."""
        super().connection_made(transport)
        self.head_since: float | None = self.loop.time()
        self.unread_since: float | None = None
        if len(self.connections) > self.options.connections:
            self._refuse(503, "Service Unavailable", "too many connections; try again later", "connections", "Retry-After: 1\r\n")

    def data_received(self, data: bytes) -> None:
        """Note when a request's head begins, and that it is whole."""
        if self.transport.is_closing():
            return
        if self.head_since is None and self._between():
            self.head_since = self.loop.time()
        super().data_received(data)
        if not self._between():
            self.head_since = None
            if self.conn.their_state is h11.SEND_BODY:
                self._acknowledge()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as every other error is answered; where another answer is being sent, only close."""
        if self._between():
            self._refuse(400, "Bad Request", "this is no HTTP request that can be read", "no http")
        else:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """End the connection if its client is too slow.

        Args:
            now: the loop's time.
        """
        if not self.transport.get_write_buffer_size():
            self.unread_since = None
        elif self.unread_since is None:
            self.unread_since = now
        elif now - self.unread_since > self.options.timeout_s:
            self.metrics.dropped.labels("unread answer").inc()
            self.transport.abort()
            return
        if self.head_since is None or self.transport.is_closing() or now - self.head_since <= self.options.timeout_s:
            return
        if self.conn.our_state is h11.IDLE:
            self._refuse(408, "Request Timeout", f"no whole request within {self.options.timeout_s:g} s", "slow head")
        else:  # answered already, and the client still sends that request's body
            self.metrics.dropped.labels("slow rest").inc()
            self.transport.close()

    def _acknowledge(self) -> None:
        """Tell the client at once that its request's head is here.

        Clients that write head and body apart and leave Nagle's algorithm on hold the body back until then, and Linux would take
        40 ms, which is most of a request's time.
        """
        connection = self.transport.get_extra_info("socket")
        if _QUICKACK is not None and connection is not None:
            with contextlib.suppress(OSError):  # the client may have left
                connection.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _between(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, status: int, phrase: str, message: str, reason: str, headers: str = "") -> None:
        """Answer past the state machine, which has no request to answer, and close."""
        body = json.dumps({"error": message})
        head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}"
        self.metrics.dropped.labels(reason).inc()
        self.transport.write(f"{head}Connection: close\r\n\r\n{body}".encode())
        self.transport.close()


def guarded(options: ServeOptions, metrics: Metrics) -> type[GuardedProtocol]:
    """The protocol with limits, as a class for uvicorn's ``http`` setting."""
    return type("LimitedProtocol", (GuardedProtocol,), {"options": options, "metrics": metrics})
