"""Starts and stops the server: loads and tries an artifact, binds the port, and after SIGTERM finishes the requests in progress."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import ipaddress
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from growtas.errors import ConfigError, OutputError
from growtas.export.serving.app import Serving, build_app
from growtas.export.serving.connection_limits import GuardedProtocol, guarded
from growtas.export.serving.metrics import Metrics
from growtas.export.serving.options import ServeOptions
from growtas.export.serving.predictor import Predictor
from growtas.progress import Progress

_KEEP_ALIVE_SECONDS = 65
_SWEEP_SECONDS = 1.0
_LAST_REQUEST_SECONDS = 0.25
"""Time for connections that were made just before the port was closed to send their requests, which are then answered."""
_BACKLOG = 512
"""Number of connections that may wait to be accepted. All are accepted at once, for which there must be file descriptors."""
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that stop a server. SIGHUP means that its terminal was closed; Windows does not have it."""


def run_server(artifact: Path, options: ServeOptions, progress: Progress) -> int:
    """Serves an artifact; see :func:`growtas.export.serving.launch.serve`."""
    name = options.name or re.sub(r"[^\w.-]+", "-", artifact.stem)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"--name is {name!r}; it may contain only letters, digits, dots, hyphens and underscores")
    with _stop_signals() as signals, Predictor(artifact, threads=options.threads) as predictor:
        signature = predictor.signature
        if options.max_batch is not None:
            if not 1 <= options.max_batch <= signature.max_batch:
                raise ConfigError(f"--max-batch is {options.max_batch}; the artifact was exported for 1 to {signature.max_batch}")
            signature = dataclasses.replace(signature, max_batch=options.max_batch)
        predictor.warm_up(signature.max_batch)
        listener = _bind(options.host, options.port)
        with contextlib.closing(listener):
            metrics = Metrics()
            manifest = predictor.artifact.manifest
            about = {"artifact": artifact.name, "sha256": str(manifest.file.sha256), "precision": manifest.precision or "unknown"}
            serving = Serving(
                predictor.run_all,
                signature,
                name=name,
                platform=predictor.artifact.format.platform,
                options=options,
                metrics=metrics,
                about=about,
            )
            address, port = listener.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            server = Server(serving, guarded(options, metrics), options, progress)
            # The handlers are set before the address is printed, because its reader may send a signal at once.
            for number in signals:
                signal.signal(number, server.stop)
            progress.note(f"{artifact.name} in {predictor.info.runtime} at http://{shown}:{port}/v2/models/{name}")
            if not ipaddress.ip_address(address).is_loopback:
                progress.note(f"listening on {address}: everyone who can reach this machine can use it without a password")
            server.run([listener])
            return 1 if server.cut_off else 0


def _end(number: int, frame: FrameType | None) -> None:
    """Ends a command that has no server yet, with exit code 0, or for Ctrl-C as usual."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(0)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Collection[signal.Signals]]:
    """Lets the stop signals end the command, and yields them for the server, which will handle them.

    Ignored signals stay ignored, such as SIGHUP under nohup.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: was for number in STOP_SIGNALS if (was := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _end)
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Server(uvicorn.Server):
    """uvicorn's server. On a signal it refuses new requests, answers those in progress, and then closes.

    Attributes:
        cut_off: whether some requests were not answered completely.
    """

    def __init__(self, serving: Serving, protocol: type[GuardedProtocol], options: ServeOptions, progress: Progress) -> None:
        settings = uvicorn.Config(
            build_app(serving),
            http=protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=5,
        )
        # Data that is not HTTP gets an answer. A line on stderr for each would let everyone fill the disk.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        super().__init__(settings)
        self._protocol = functools.partial(protocol, config=settings, server_state=self.server_state, app_state={})
        self._serving, self._options, self._progress = serving, options, progress
        self.cut_off = False
        self._stop_asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening and sweeping."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._sweeper = self._loop.create_task(self._sweep())
        if self._stop_asked:
            self._stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes all connections, after answering every request that their clients have sent by now."""
        # uvicorn would print a traceback for each request that is ended now.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await self._close_port(sockets or [])
        if self.server_state.connections and not self.force_exit:
            await asyncio.sleep(_LAST_REQUEST_SECONDS)
        await super().shutdown(sockets)
        if unread := len(self.server_state.connections):
            self.cut_off = True
            self._note(f"{unread} clients did not read their answers, which are cut off")
        self._sweeper.cancel()
        await self._serving.batcher.close()

    async def _close_port(self, listeners: Iterable[socket.socket]) -> None:
        """Closes the port, after accepting the connections that wait for it; otherwise the system would reset them."""
        assert self._loop is not None
        accepted = []
        if os.name == "posix":  # elsewhere asyncio's event loop has no readers
            for listener in listeners:
                self._loop.remove_reader(listener)
            # asyncio drops a connection that it has just accepted if the port is closed before the connection's first turn.
            await asyncio.sleep(0)
            for listener in listeners:
                with contextlib.suppress(OSError):  # none is waiting
                    for _ in range(_BACKLOG):
                        connection, _ = listener.accept()
                        accepted.append(self._loop.connect_accepted_socket(self._protocol, connection))
        for server in self.servers:
            server.close()
        await asyncio.gather(*accepted, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does not handle signals, because uvicorn would handle them later and raise them again at the end."""
        yield

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: the first one begins to drain, the second one ends the server at once."""
        if self._loop is None:
            self._stop_asked = True
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._stopping is not None:
            self._cut_off("")
            return
        self._stopping = asyncio.get_running_loop().create_task(self._drain())
        self._note(f"stopping: {self._serving.under_way} requests are in progress")

    async def _drain(self) -> None:
        self._serving.ready = False
        await asyncio.sleep(self._options.shutdown_delay_s)
        try:
            async with asyncio.timeout(self._options.drain_s):
                await self._serving.drain()
        except TimeoutError:
            self._cut_off(f" after {self._options.drain_s:g} s")
        self.should_exit = True

    def _cut_off(self, when: str) -> None:
        count = self._serving.cut_off()
        if count:
            self.cut_off = True
            self._note(f"{count} requests were still in progress{when} and are cut off")
        self.should_exit = self.force_exit = True

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError):  # fails if the terminal is gone; the stop must go on
            self._progress.note(text)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.sweep(now)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # The protocol is given explicitly: otherwise asyncio does not turn Nagle's algorithm off, and answers take 40 ms more.
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener
    # An impossible name, such as one with a part of over 63 letters, raises a UnicodeError.
    except (OSError, UnicodeError) as error:
        reason = "not a valid host name" if isinstance(error, UnicodeError) else error.strerror or error
        raise OutputError(f"can't listen on {host}:{port} ({reason}); choose another --host or --port") from None
