"""``growtas serve``: serves an artifact over the KServe v2 inference protocol."""

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
        Argument(help="Artifact beside its manifest. Default: an artifact of the newest run that runs on this machine."),
    ] = None,
    host: Annotated[str, Option(help="Address to listen on; the default is reachable from this machine only.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen on; 0 chooses a free one.")] = 8000,
    name: Annotated[str | None, Option(help="Name of the model. Default: the artifact's file name without suffix.")] = None,
    threads: options.Threads = None,
    max_batch: Annotated[
        int | None, Option(help="Largest batch size. Default and maximum: the one that the export checked.")
    ] = None,
    max_delay_us: Annotated[int, Option(help="Microseconds that a request waits for others to share its batch.")] = 0,
    queue: Annotated[int, Option(help="Number of requests that may wait for a batch; further ones are answered with 503.")] = 128,
    max_body: Annotated[
        int | None, Option(help="Largest size of a request in bytes. Default: enough for the largest batch.")
    ] = None,
    max_connections: Annotated[
        int, Option(help="Number of simultaneous connections; above it, those that wait longest without a request are closed.")
    ] = 256,
    timeout: Annotated[
        float, Option(help="Seconds that each may take: a request's head, its body, and reading the answer.")
    ] = 20.0,
    drain: Annotated[float, Option(help="Seconds that a stop waits for running requests.")] = 30.0,
    shutdown_delay: Annotated[
        float, Option(help="Seconds after a stop signal in which requests are still accepted, with readiness 503.")
    ] = 0.0,
) -> None:
    """Serve an artifact over HTTP with the KServe v2 protocol.

    The server offers health, metadata, inference (JSON and binary tensors) and Prometheus metrics. After SIGTERM it finishes the
    running requests, answers new ones with 503, and exits with code 0, or with code 1 if it had to cut off requests.

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
    # The server has stopped; a signal that arrives while Python exits must not change the exit code.
    from growtas.export.serving.server import STOP_SIGNALS

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if code:
        raise typer.Exit(code)
