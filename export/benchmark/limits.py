"""Compares the latency limits of a search with the measured latencies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError
from growtas.export.artifact import Manifest
from growtas.files import read_json
from growtas.runs import run_of


def check_limit(search: Mapping[str, Any] | None, results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Compares the latency limit of the search with what was measured.

    Args:
        search: the manifest's ``search``.
        results: measurements, as :meth:`growtas.export.benchmark.timing.Measurement.to_dict` gives them.

    Returns:
        None where the search had no latency limit. Otherwise ``limit_ms``, ``device``, ``promised`` (the search's latency with its
        ``kind``), ``measured_ms`` and ``holds``; both None, with the reason, where these measurements can't tell.
    """
    limit_ms = ((search or {}).get("limits") or {}).get("max_latency_ms")
    if search is None or limit_ms is None:
        return None
    promised = search.get("latency") or {}
    percentile, batch = str(promised.get("percentile") or "p50"), int(promised.get("batch") or 1)
    label = search.get("device")
    # Several targets of one device have names of their own.
    device = promised.get("device") or label
    answer = {"limit_ms": limit_ms, "device": label, "promised": promised or None, "measured_ms": None, "holds": None}
    result = next((result for result in results if result["batch"] == batch), None)
    # `a10` is what the runtime calls `NVIDIA A10`.
    same_device = result and str(device).lower() in re.split(r"[^a-z0-9]+", result["device"].lower())
    # A search that names no precision or runtime speaks of any.
    if not (result and same_device and all(promised.get(key) in (None, result[key]) for key in ("precision", "runtime"))):
        asked = f"{percentile}, batch {batch}, {promised.get('precision') or 'any precision'} on {device}"
        return {**answer, "unchecked_because": f"the limit is for {asked}, which was not measured here"}
    measured = result.get(f"{percentile}_ms")
    return {**answer, "measured_ms": measured, "holds": measured is not None and measured <= limit_ms}


def check_limits(path: Path, manifest: Manifest, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares the search's latency limits, one a device, each with what was measured on that device alone.

    A manifest knows the first device's; the others are in the subnet file that was exported, where it still lies in the run.
    """
    run, search = run_of(path), manifest.search
    if search is None:
        return []
    latencies = search.get("latencies") or (_subnet_file(run, manifest, search) if run else {}).get("latencies")
    searches = [
        {
            "limits": {"max_latency_ms": latency["max_latency_ms"]},
            "device": latency["device"],
            "latency": latency["measured"] or latency["predicted"],
        }
        for latency in latencies or ()
    ]
    limits = [check_limit(one, results) for one in searches or (search,)]
    return [limit for limit in limits if limit is not None]


def _subnet_file(run: Path, manifest: Manifest, search: Mapping[str, Any]) -> dict[str, Any]:
    """The searched subnet that a manifest is of, as it was written; empty where another search took its place."""
    expected = {**(manifest.subnet or {}), **search}
    for path in sorted(run.glob("search*/subnet.json")):
        try:
            written = read_json(path, "subnet file")
        except CheckpointError:
            continue
        if isinstance(written, dict) and all(written.get(key) == value for key, value in expected.items()):
            return dict(written)
    return {}
