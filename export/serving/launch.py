"""Starts the server of an artifact, if the needed packages are installed."""

from __future__ import annotations

import os
from pathlib import Path

from growtas.errors import MissingExtra
from growtas.export.runtimes.base import is_installed
from growtas.export.serving.options import ServeOptions
from growtas.export.serving.predictor import newest_artifact
from growtas.progress import SILENT, Progress


def serve(
    artifact: str | os.PathLike[str] | None = None, options: ServeOptions | None = None, *, progress: Progress = SILENT
) -> int:
    """Serves an artifact over HTTP (KServe v2) until SIGTERM or SIGINT; must be called in the main thread.

    Args:
        artifact: the artifact, with its manifest beside it; by default one of the newest run that was made for this machine.
        options: the address and the limits; by default those of :class:`ServeOptions`.
        progress: receives notes: the address, and warnings.

    Returns:
        The exit code: 0 if all requests in progress were answered at the end, otherwise 1.

    Raises:
        CheckpointError, DeviceError, MissingExtra, UsageError: as :class:`growtas.export.serving.predictor.Predictor`.
        ConfigError: an option is out of range.
    """
    for package, module in (("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("prometheus-client", "prometheus_client")):
        if not is_installed(module):
            raise MissingExtra(package, "serve", "serving")
    from growtas.export.serving.server import run_server

    options = options or ServeOptions()
    path = newest_artifact() if artifact is None else Path(artifact)
    options.check()
    return run_server(path, options, progress)
