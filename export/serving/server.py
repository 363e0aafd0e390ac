"""Starting and stopping: an artifact is loaded and tried, the port is bound, and SIGTERM lets what is under way finish."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import re
import socket
from pathlib import Path
from types import FrameType

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


def run_server(artifact: Path, options: ServeOptions, progress: Progress) -> int:
    """Serves an artifact; see :func:`growtas.export.serving.launch.serve`."""
    name = options.name or re.sub(r"[^\w.-]+", "-", artifact.stem)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"--name is {name!r}; it must be of letters, digits, dots, hyphens and underscores")
    with Predictor(artifact, threads=options.threads) as predictor:
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
            progress.note(f"{artifact.name} in {predictor.info.runtime} at http://{shown}:{port}/v2/models/{name}")
            if not ipaddress.ip_address(address).is_loopback:
                progress.note(f"listening on {address}: whoever reaches this machine can use it, nothing asks for a password")
            server = _Server(serving, guarded(options, metrics), options.drain_s, progress)
            server.run([listener])
            return 0 if server.drained else 1


class _Server(uvicorn.Server):
    """uvicorn, which on a signal first answers what is under way while refusing what is new, and only then closes."""

    def __init__(self, serving: Serving, protocol: type[GuardedProtocol], drain_s: float, progress: Progress) -> None:
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
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=5,
        )
        # Requests that are not HTTP are answered; a line on stderr for each would let anyone fill a disk.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        super().__init__(settings)
        self._serving, self._drain_s, self._progress = serving, drain_s, progress
        self.drained = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and sweeping."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._sweeper = self._loop.create_task(self._sweep())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what is open; answers that are being sent are finished."""
        await super().shutdown(sockets)
        self._sweeper.cancel()
        await self._serving.batcher.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends at once. The signal is not raised again, so that the exit code is ours."""
        if self._loop is None:  # nothing has been taken yet
            self.drained = self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._stopping is not None:
            self.drained = False
            self.should_exit = self.force_exit = True
            return
        self._progress.note(f"stopping: {self._serving.under_way} requests are under way")
        self._stopping = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._drain_s):
                await self._serving.drain()
            self.drained = True
        except TimeoutError:
            count = self._serving.under_way
            self._progress.note(f"{count} requests were still under way after {self._drain_s:g} s and are cut off")
        self.should_exit = True

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
        # With the protocol spelled out: asyncio turns Nagle's algorithm off on no other sockets, and answers then take 40 ms more.
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise OutputError(f"can't listen on {host}:{port} ({error.strerror or error}); choose another --host or --port") from None
