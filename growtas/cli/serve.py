"""``growtas serve``: an artifact behind the open inference protocol."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import Notes


def serve(
    artifact: Annotated[
        Path | None,
        Argument(help="Artifact with its manifest; by default one of the newest run that was made for this machine."),
    ] = None,
    host: Annotated[str, Option(help="Address to listen on; the default is reached from this machine only.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[str | None, Option(help="The model's name; by default the artifact's without suffix.")] = None,
    threads: options.Threads = None,
    max_batch: Annotated[int | None, Option(help="Largest batch; by default, and at most, what the export checked.")] = None,
    max_delay_us: Annotated[int, Option(help="Microseconds that a request may wait for others to share its batch.")] = 0,
    queue: Annotated[int, Option(help="Requests that may wait for a batch; more are answered 503.")] = 128,
    max_body: Annotated[int | None, Option(help="Bytes of one request; by default enough for the largest batch.")] = None,
    max_connections: Annotated[int, Option(help="Connections at the same time; more are answered 503.")] = 256,
    timeout: Annotated[float, Option(help="Seconds for a request's head, its body, and for taking its answer, each.")] = 20.0,
    drain: Annotated[float, Option(help="Seconds that a stop waits for requests under way.")] = 30.0,
    shutdown_delay: Annotated[
        float, Option(help="Seconds that a stop still takes requests, with readiness 503, before it refuses them.")
    ] = 0.0,
) -> None:
    """Serve an artifact over HTTP: KServe v2, with health, metadata, inference (JSON and binary tensors) and Prometheus metrics.

    SIGTERM finishes what is under way, refuses what is new with 503, and exits 0; it exits 1 where requests were cut off.

    Example: growtas serve runs/first/export/micro-subnet.onnx --port 8000
    """
    from growtas import api

    options = api.ServeOptions(
        host=host,
        port=port,
        name=name,
        threads=threads,
        max_batch=max_batch,
        max_delay_us=max_delay_us,
        queue=queue,
        max_body=max_body,
        connections=max_connections,
        timeout_s=timeout,
        drain_s=drain,
        shutdown_delay_s=shutdown_delay,
    )
    code = api.serve(artifact, options, progress=Notes())
    # The server has stopped; a signal that comes while Python ends must not change the exit code.
    from growtas.export.serving.server import STOP_SIGNALS

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if code:
        raise typer.Exit(code)
