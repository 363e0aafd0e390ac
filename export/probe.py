"""Loads one artifact in a fresh process, runs it a few times, and prints load time and peak memory as JSON.

A process of its own, because memory that other artifacts and the measuring itself took can't be told apart within one.
Run as ``python -m growtas.export.probe ARTIFACT BATCH THREADS``.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from growtas.errors import BuildError

_RUNS = 3
_TIMEOUT_SECONDS = 300


def probe(artifact: Path, *, batch: int, threads: int) -> dict[str, Any]:
    """Load time and memory of an artifact, measured in a process of its own.

    Args:
        batch: images a run.
        threads: CPU threads.

    Returns:
        ``load_ms``; ``rss_imported_bytes`` once the runtime is imported; ``peak_rss_bytes`` after a few runs; ``batch``.

    Raises:
        BuildError: the process failed.
    """
    command = [sys.executable, "-m", "growtas.export.probe", str(artifact), str(batch), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{artifact}: loading and running it took longer than {_TIMEOUT_SECONDS} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BuildError(f"{artifact}: it can't be loaded in a fresh process ({reason[:200]})")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _peak_rss() -> int:
    # Not getrusage where there is /proc: Linux keeps a parent's peak across fork and exec there.
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _probe_here(artifact: Path, batch: int, threads: int) -> dict[str, Any]:
    from growtas.export.backends import open_session
    from growtas.export.images import noise

    if artifact.suffix == ".onnx":
        import onnxruntime  # noqa: F401  (its import is not part of the load time)
    else:
        import growtas.export.backends.pytorch  # noqa: F401
    imported = _peak_rss()
    start = time.perf_counter()
    session = open_session(artifact, threads=threads)
    load_ms = (time.perf_counter() - start) * 1e3
    with session:
        images = noise(batch, session.image_shape)
        for _ in range(_RUNS):
            session.run(images)
    return {"load_ms": load_ms, "rss_imported_bytes": imported, "peak_rss_bytes": _peak_rss(), "batch": batch}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_probe_here(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))) + "\n")
