"""``growtas export --format onnx`` of AutoFormer-T's published subnet, verified, as a user runs it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.models import PUBLISHED, SPACE
from tests.benchmarks.timing import Entry
from tests.export_helpers import add_search, make_run

ROUNDS, BAR_SECONDS = 3, 25.0


def export_time() -> Iterator[Entry]:
    """From the command's start to its end: tracing, every gate, and the files in place; weights are random, images are digits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = make_run(folder / "runs", space=SPACE.replace(num_classes=10), name="t")
        add_search(run, PUBLISHED)
        command = [sys.executable, "-c", "from growtas.cli.main import main; main()", "export", "--format", "onnx", "--json"]
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
    each = " ".join(f"{value:.1f}" for value in seconds)
    yield Entry("export to ONNX, verified, seconds / 25 s", statistics.median(seconds) / BAR_SECONDS, 1.0, f"seconds: {each}")
