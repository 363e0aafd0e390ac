"""Writes a bench report as CSV, with one line per artifact and batch."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from growtas.files import replacing

COLUMNS = (
    "label", "path", "runtime", "runtime_version", "device", "threads", "precision", "batch", "kind", "p50_ms", "p95_ms", "p99_ms",
    "mean_ms", "cv", "steady", "samples", "images_per_second", "ratio", "ratio_low", "ratio_high", "ratio_per_mac", "gemm_share",
    "bandwidth_share", "watts", "joules_per_image", "load_ms", "first_run_ms", "peak_rss_bytes", "not_runnable_because",
)  # fmt: skip


def rows(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the values of :data:`COLUMNS` for each artifact and batch. An artifact that can't run has one row without numbers."""
    for artifact in report["artifacts"]:
        memory = artifact["memory"] or {}
        common = {
            **{name: artifact[name] for name in ("label", "path", "precision", "not_runnable_because")},
            **{name: memory.get(name) for name in ("load_ms", "first_run_ms", "peak_rss_bytes")},
        }
        for result in artifact["results"]:
            ratio = result["ratio"] or {}
            yield {
                **common,
                **result,
                **(result["power"] or {}),
                **(result["roofline"] or {}),
                "ratio": ratio.get("median"),
                "ratio_low": ratio.get("low"),
                "ratio_high": ratio.get("high"),
            }
        if not artifact["results"]:
            yield common


def write_csv(report: dict[str, Any], path: Path) -> None:
    """Writes :func:`rows`. Unknown values are empty, and numbers are not rounded.

    Raises:
        OutputError: the file can't be written.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows(report))
