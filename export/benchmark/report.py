"""What was measured of each artifact, as JSON data; ``docs/bench.md`` describes the fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from growtas.export.artifact import Manifest
from growtas.export.benchmark.entry import Entry
from growtas.export.benchmark.peaks import roofline
from growtas.export.benchmark.ratios import is_steady, ratio
from growtas.export.benchmark.timing import summarise


def artifact_report(entry: Entry, batches: Sequence[int], peaks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One subject's part of the report; ratios come later, see :func:`compared`.

    Args:
        batches: those that were asked for; one without a finished turn is left out.
        peaks: of :meth:`growtas.export.benchmark.peaks.PeakMeter.report`, by device.
    """
    subject, manifest = entry.subject, entry.subject.manifest or Manifest()
    plan, path = manifest.plan, entry.subject.path
    results = [_result(entry, batch, peaks) for batch in batches if entry.samples.get(batch)]
    return {
        "label": subject.label,
        "file": path.name if path and subject.timm is None else subject.name,
        "path": str(path) if path else None,
        "bytes": path.stat().st_size if path else None,
        "weight_bytes": entry.weight_bytes,
        "kind": manifest.kind or (path.suffix[1:] if path else "timm"),
        "precision": _precision(entry),
        "params": manifest.params,
        "macs": manifest.macs,
        **_input(entry, manifest),
        "verified": path is not None and subject.manifest is not None,
        "runnable": entry.session is not None,
        "not_runnable_because": entry.not_runnable_because,
        "targets": list(plan.targets) if plan else None,
        "max_batch": plan and plan.max_batch,
        "activation_memory_bytes": plan and plan.activation_memory_bytes,
        "memory": entry.memory,
        "results": results,
        # For judging the limit; taken out before the report is given away.
        "manifest": entry.subject.manifest,
    }


def _input(entry: Entry, manifest: Manifest) -> dict[str, Any]:
    """What it was fed; of what can't run the type alone, as its manifest says it."""
    fed = entry.fed
    return {
        "image_shape": list(fed.shape) if fed else None,
        "image_layout": fed.layout if fed else None,
        "any_image_size": fed.any_size if fed else None,
        "input_dtype": fed.dtype if fed else (manifest.input and manifest.input.dtype) or "float32",
    }


def _precision(entry: Entry) -> str:
    if entry.subject.path is None:
        return "fp32"  # a timm model, as timm makes it
    return (entry.subject.manifest and entry.subject.manifest.precision) or "unknown"


def _result(entry: Entry, batch: int, peaks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    assert entry.session is not None
    rounds = entry.samples[batch]
    pooled = [sample for samples in rounds for sample in samples]
    measured = summarise(pooled, entry.session.info, batch=batch, precision=_precision(entry))
    return {
        **measured.to_dict(),
        "p50_ms_of_rounds": [float(np.median(samples)) for samples in rounds],
        "steady": is_steady(measured.cv),
        "parts": _parts(entry.part_samples[batch]),
        "power": entry.power[batch].report(),
        "roofline": _roofline(entry, batch, peaks.get(entry.device), measured.p50_ms),
        "ratio": None,
        "ratio_per_mac": None,
    }


def _parts(samples: Sequence[Any]) -> dict[str, float] | None:
    """Medians of host, transfer and device times, under the names that the session gives them, and how often they were taken."""
    if not samples:
        return None
    names = [field.name for field in dataclasses.fields(samples[0])]
    return {**{name: float(np.median([getattr(one, name) for one in samples])) for name in names}, "samples": len(samples)}


def _roofline(entry: Entry, batch: int, peaks: dict[str, Any] | None, ms: float) -> dict[str, Any] | None:
    macs = entry.subject.manifest and entry.subject.manifest.macs
    if peaks is None or not macs or entry.weight_bytes is None:
        return None
    return roofline(peaks, macs=macs, weight_bytes=entry.weight_bytes, io_bytes=entry.io_bytes[batch], batch=batch, ms=ms)


def compared(artifacts: Sequence[dict[str, Any]], baseline: str | None) -> None:
    """Fill in each result's ratio to the baseline at the same batch, in time and in time per MAC.

    Args:
        artifacts: of :func:`artifact_report`; changed in place, ``baseline`` included.
        baseline: its label; None for no ratios.
    """
    base = next((artifact for artifact in artifacts if artifact["label"] == baseline), None)
    by_batch = {result["batch"]: result for result in base["results"]} if base else {}
    for artifact in artifacts:
        artifact["baseline"] = base is artifact
        for result in artifact["results"]:
            other = by_batch.get(result["batch"])
            if base is None or other is None:
                continue
            result["ratio"] = ratio(result["p50_ms_of_rounds"], other["p50_ms_of_rounds"])
            if result["ratio"] and artifact["macs"] and base["macs"]:
                result["ratio_per_mac"] = result["ratio"]["median"] * base["macs"] / artifact["macs"]
