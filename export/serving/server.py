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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from growtas.errors import ConfigError, OutputError
from growtas.export.serving.app import RequestLimits, Serving, build_app, default_body_bytes
from growtas.export.serving.connection_limits import ConnectionLimits, GuardedProtocol, guarded
from growtas.export.serving.metrics import Metrics
from growtas.export.serving.predictor import Predictor

_PLATFORMS = {
    ".onnx": "onnxruntime_onnx",
    ".xml": "openvino_ir",
    ".pt2": "torch_export",
    ".safetensors": "torch",
    ".plan": "tensorrt_plan",
}
_KEEP_ALIVE_SECONDS = 65
_SWEEP_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        name: the model's name; by default the artifact's without suffix.
        threads: CPU threads; by default all that this process may use.
        max_batch: by default, and at most, the manifest's.
        max_delay_us: how long a request may wait for others to share its batch.
        queue: requests that may wait for a batch.
        max_body: bytes of one request; by default enough for the largest batch.
        connections: at the same time.
        timeout_s: for a request's head, for its body, and for its answer to be taken, each.
        drain_s: how long a stop waits for what is under way.
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


def serve(artifact: Path, options: ServeOptions, *, note: Callable[[str], None] = lambda text: None) -> int:
    """Serve an artifact until SIGTERM or SIGINT.

    Args:
        note: told where it listens, and what the user should know.

    Returns:
        The exit code: 0 when everything that was under way was answered, else 1.

    Raises:
        CheckpointError, DeviceError, MissingExtra, UsageError: as :class:`growtas.export.serving.predictor.Predictor`.
        ConfigError: an option is out of range.
    """
    _check(options)
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
            limits = ConnectionLimits(
                connections=options.connections, head_seconds=options.timeout_s, unread_seconds=options.timeout_s
            )
            requests = RequestLimits(
                body_bytes=options.max_body or default_body_bytes(signature),
                body_seconds=options.timeout_s,
                queue=options.queue,
                max_delay_us=options.max_delay_us,
            )
            about = {"artifact": artifact.name, "sha256": str(predictor.manifest["artifact"]["sha256"])}
            about["precision"] = str(predictor.manifest.get("precision", "unknown"))
            serving = Serving(
                predictor.run_all,
                signature,
                name=name,
                platform=_PLATFORMS[artifact.suffix],
                limits=requests,
                metrics=metrics,
                about=about,
            )
            address, port = listener.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            note(f"{artifact.name} in {predictor.info.runtime} at http://{shown}:{port}/v2/models/{name}")
            if not _is_loopback(address):
                note(f"listening on {address}: whoever reaches this machine can use it, nothing asks for a password")
            server = _Server(serving, guarded(limits, metrics), options.drain_s, note)
            server.run([listener])
            return 0 if server.drained else 1


class _Server(uvicorn.Server):
    """uvicorn, which on a signal first answers what is under way while refusing what is new, and only then closes."""

    def __init__(self, serving: Serving, protocol: type[GuardedProtocol], drain_s: float, note: Callable[[str], None]) -> None:
        from growtas import __version__

        app = build_app(serving, server_version=__version__)
        settings = uvicorn.Config(
            app,
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
        self._serving, self._drain_s, self._note = serving, drain_s, note
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
        self._note(f"stopping: {self._serving.under_way} requests are under way")
        self._stopping = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._drain_s):
                await self._serving.drain()
            self.drained = True
        except TimeoutError:
            self._note(f"{self._serving.under_way} requests were still under way after {self._drain_s:g} s and are cut off")
        self.should_exit = True

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.sweep(now)


def _check(options: ServeOptions) -> None:
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port is {options.port}; it must be from 0 to 65535")
    for name, value, least in (
        ("--max-delay-us", options.max_delay_us, 0),
        ("--queue", options.queue, 1),
        ("--max-connections", options.connections, 1),
        ("--max-body", options.max_body, 1),
        ("--threads", options.threads, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    for name, seconds in (("--timeout", options.timeout_s), ("--drain", options.drain_s)):
        if not 0 < seconds <= 3600:
            raise ConfigError(f"{name} is {seconds:g}; it must be above 0 and at most 3600 seconds")


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


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
