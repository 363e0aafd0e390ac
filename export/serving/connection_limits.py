"""Limits on connections that uvicorn lacks: their number, the time for a request's head, and the time for reading an answer.

Each connection records since when it waits for its client. Once a second a sweep ends the connections that wait too long. This
needs no timer per request, and also finds connections that a timer of one stage would miss, such as a closed one with unread bytes.

If there are too many connections, those that have waited longest for a request are closed. So clients that send one are served
beside any number of connections that send nothing.
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

_RETRY = "Retry-After: 1\r\n"
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # only on Linux


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which also records since when it waits for its client.

    The time for a request's head begins with its first byte, or with the connection. Subclasses set ``options`` and ``metrics``.
    """

    options: ServeOptions
    metrics: Metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection, and refuses it if there are too many."""
        super().connection_made(transport)
        self.head_since: float | None = self.loop.time()
        self.idle_since = self.head_since
        self.unread_since: float | None = None
        if len(self.connections) > self.options.connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Records when a request's head begins, and when it is complete."""
        if self.transport.is_closing():
            return
        if self.head_since is None and self._between():
            self.head_since = self.loop.time()
        super().data_received(data)
        if not self._between():
            self.head_since = None
            if self.conn.their_state is h11.SEND_BODY:
                self._acknowledge()

    def on_response_complete(self) -> None:
        """Records since when the connection has no request."""
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Closes the connection when the server stops: after the request in progress, or after one that has arrived unread."""
        if self.transport.is_closing():
            return
        if self.conn.our_state is not h11.IDLE or not self._between():
            super().shutdown()
        elif self._unread():
            self.loop.call_soon(self.shutdown)
        elif self.conn.trailing_data[0]:
            self._refuse(503, "Service Unavailable", "the server is stopping", "stopping", _RETRY)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answers data that is not HTTP with an error; if another answer is being sent, only closes the connection."""
        if self._between() or not self.cycle.response_started:
            self._refuse(400, "Bad Request", "this is not a readable HTTP request", "no http")
        else:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Ends the connection if its client is too slow.

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
            self._refuse(408, "Request Timeout", f"no complete request arrived within {self.options.timeout_s:g} s", "slow head")
        else:  # the request was answered, but the client still sends its body
            self.metrics.dropped.labels("slow rest").inc()
            self.transport.close()

    def _make_room(self) -> None:
        """Closes the connection that has waited longest for its first request, or else for its next one, or else this new one."""
        others = [one for one in self.connections if isinstance(one, GuardedProtocol) and not one.transport.is_closing()]
        others.remove(self)
        if len(others) < self.options.connections:
            return
        waiting = [one for one in others if one._between() and one.conn.our_state is h11.IDLE and not one._unread()]
        last = min(waiting, key=lambda one: (one.cycle is not None, one.idle_since), default=self)
        if last.cycle is None:
            last._refuse(503, "Service Unavailable", "too many connections; try again later", "connections", _RETRY)
        else:  # its client would take an answer for that to its next request
            self.metrics.dropped.labels("connections").inc()
            last.transport.close()

    def _unread(self) -> bool:
        """Whether the system holds data of the client that was not read yet."""
        try:
            with self.transport.get_extra_info("socket").dup() as connection:
                return bool(connection.recv(1, socket.MSG_PEEK))
        except OSError:  # there is none, or the client has left
            return False

    def _acknowledge(self) -> None:
        """Acknowledges a request's head at once.

        Clients that write head and body separately, with Nagle's algorithm on, send the body only after the acknowledgement. Linux
        would delay it by 40 ms, which is most of a request's time.
        """
        connection = self.transport.get_extra_info("socket")
        if _QUICKACK is not None and connection is not None:
            with contextlib.suppress(OSError):  # fails if the client has left
                connection.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _between(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, status: int, phrase: str, message: str, reason: str, headers: str = "") -> None:
        """Sends an answer without the state machine, which has no request yet, and closes the connection."""
        body = json.dumps({"error": message})
        head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}"
        self.metrics.dropped.labels(reason).inc()
        self.transport.write(f"{head}Connection: close\r\n\r\n{body}".encode())
        self.transport.close()


def guarded(options: ServeOptions, metrics: Metrics) -> type[GuardedProtocol]:
    """Returns the protocol with limits, as a class for uvicorn's ``http`` setting."""
    return type("LimitedProtocol", (GuardedProtocol,), {"options": options, "metrics": metrics})
