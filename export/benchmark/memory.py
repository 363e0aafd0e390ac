"""Loads one artifact in a new process, runs it a few times, and prints load time and peak memory as JSON.

It needs its own process, because within one process the artifact's memory can't be separated from that of other artifacts and of
the benchmark. Run as ``python -m growtas.export.benchmark.memory ARTIFACT BATCH THREADS RUNTIME DEVICE``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from growtas.errors import BuildError
from growtas.files import scratch_folder
from growtas.processes import end_with_parent

_RUNS = 3
_TIMEOUT_SECONDS = 300


MEMORY = """``memory`` of an artifact in ``bench.json``: measured in a process of its own.

Fields:
    kind (text): Always ``measured``.
    load_ms (number): Milliseconds to load the artifact, once the runtime is imported.
    first_run_ms (number): Milliseconds of the first run, which compiles where a runtime does so then.
    rss_imported_bytes (whole number): Memory of the process, in bytes, when the runtime was imported.
    peak_rss_bytes (whole number): Its largest memory, in bytes, after a few runs.
    batch (whole number): Images a run.
"""


def probe(artifact: Path | str, *, batch: int, threads: int, runtime: str, device: str) -> dict[str, Any]:
    """Measures the load time and memory of an artifact in a new process.

    Args:
        artifact: a file, or ``timm:NAME`` for a timm model in PyTorch.
        batch: images per run.
        threads: CPU threads.
        runtime: one of :data:`growtas.export.benchmark.subjects.RUNTIMES`.
        device: ``cpu`` or ``cuda``.

    Returns:
        ``kind`` (always ``measured``); ``load_ms``, without importing the runtime; ``first_run_ms``, with the compilation of
        ``torch.compile`` (its cache is empty); ``rss_imported_bytes``, the peak memory after importing the runtime;
        ``peak_rss_bytes``, the peak memory after a few runs; ``batch``.

    Raises:
        BuildError: the process failed.
    """
    command = [sys.executable, "-m", "growtas.export.benchmark.memory", *map(str, (artifact, batch, threads, runtime, device))]
    with scratch_folder() as folder:
        # With the cache of an earlier process, the first run would not compile.
        cold = {"TORCHINDUCTOR_CACHE_DIR": str(folder)} if runtime == "compile" else {}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False, env={**os.environ, **cold}
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"{artifact}: loading and running took longer than {_TIMEOUT_SECONDS} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BuildError(f"{artifact}: it can't be loaded in a new process ({reason[:200]})")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _peak_rss() -> int:
    # On Linux getrusage is wrong: it includes the parent's peak before fork and exec. /proc does not.
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _import_runtime(runtime: str) -> None:
    """Imports the runtime's package, so that the import is not part of the load time."""
    if runtime == "onnxruntime":
        import onnxruntime  # noqa: F401
    elif runtime == "openvino":
        from growtas.export.runtimes import openvino

        openvino._module("loading a model")
    elif runtime in ("eager", "compile"):
        import growtas.export.runtimes.torch  # noqa: F401


def _probe_here(artifact: str, batch: int, threads: int, runtime: str, device: str) -> dict[str, Any]:
    from growtas.export.artifact import read_manifest
    from growtas.export.benchmark.baselines import TIMM
    from growtas.export.benchmark.inputs import image_input
    from growtas.export.benchmark.sessions import open_subject
    from growtas.export.benchmark.subjects import Subject

    path = None if artifact.startswith(TIMM) else Path(artifact)
    manifest = read_manifest(path, verify=False) if path else None
    subject = Subject(name=artifact, runtime=runtime, label=artifact, path=path, manifest=manifest)
    _import_runtime(runtime)
    imported = _peak_rss()
    start = time.perf_counter()
    session = open_subject(subject, threads=threads, device=device, batches=(batch,))
    load_ms = (time.perf_counter() - start) * 1e3
    with session:
        images = image_input(path, manifest, session).images(batch)
        start = time.perf_counter()
        session.run(images)
        first_run_ms = (time.perf_counter() - start) * 1e3
        for _ in range(_RUNS - 1):
            session.run(images)
    return {
        "kind": "measured",
        "load_ms": load_ms,
        "first_run_ms": first_run_ms,
        "rss_imported_bytes": imported,
        "peak_rss_bytes": _peak_rss(),
        "batch": batch,
    }


if __name__ == "__main__":
    end_with_parent()
    _, name, images, cpu_threads, *rest = sys.argv
    sys.stdout.write(json.dumps(_probe_here(name, int(images), int(cpu_threads), *rest)) + "\n")
