"""The report of a benchmark: what was measured of each artifact; ``docs/bench.md`` describes its JSON."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growtas.export.artifact import Manifest
from growtas.export.benchmark.entries import Entry
from growtas.export.benchmark.limits import check_limit, check_limits
from growtas.export.benchmark.peaks import roofline
from growtas.export.benchmark.timing import Measurement, summarise
from growtas.export.runtimes.base import TimerParts

FORMAT = "growtas-bench/1"
CV_BOUND = 0.10
"""Coefficient of variation above which a measurement is called unsteady: on an idle machine all runtimes stay below 5 %."""


SETTINGS = """``settings`` in ``bench.json``: how the artifacts were measured.

Fields:
    batches (list of whole numbers): Batch sizes.
    rounds (whole number): Turns of each artifact.
    seconds_per_artifact_and_batch (number): Seconds for each artifact and batch, all rounds together.
    runtimes (list of texts): The runtimes that were asked for; empty for each artifact's own.
    baseline (text or null): Label of the artifact that the others are compared with.
    no_baseline_because (text or null): Why the baseline that was asked for could not be measured.
    device (text): ``cpu`` or ``cuda``.
    input (text): What the images are, in words.
"""
RATIO = """``ratio`` of a result in ``bench.json``, and in its ``fp32``: how many times the other's latency it took.

Fields:
    median (number): Median over the rounds of this artifact's latency divided by the other's in the same round.
    low (number): The smallest ratio of a round.
    high (number): The largest ratio of a round.
    rounds (whole number): Rounds in which both were measured.
"""


@dataclass(kw_only=True)
class BatchResult(Measurement):
    """Latency of one artifact at one batch size, and what follows from it.

    Attributes:
        p50_ms_of_rounds: median milliseconds of each round.
        steady: whether ``cv`` is at most :data:`CV_BOUND`.
        parts: medians of host, transfer and device times in milliseconds, and how often they were taken; None where the runtime
            doesn't tell them apart.
        power: see :meth:`growtas.export.benchmark.power.Consumption.report`.
        roofline: see :func:`growtas.export.benchmark.peaks.roofline`; None where the MACs are unknown, or none was asked for.
        ratio: to the baseline at the same batch; see :func:`ratio`.
        ratio_per_mac: the median of that, times the baseline's MACs over the artifact's.
        fp32: of another precision the fp32 artifact of the same network in the same runtime, where it was measured beside it: its
            label (``artifact``), its ``p50_ms``, and the ``ratio`` to it.
    """

    p50_ms_of_rounds: list[float]
    steady: bool
    parts: dict[str, float] | None
    power: dict[str, float | None] | None
    roofline: dict[str, Any] | None
    ratio: dict[str, Any] | None = None
    ratio_per_mac: float | None = None
    fp32: dict[str, Any] | None = None


@dataclass(kw_only=True)
class ArtifactReport:
    """One artifact in one runtime.

    Attributes:
        label: unique in the report.
        file: the file's name, or ``timm:NAME``.
        path: of the file; None for a timm model in PyTorch.
        bytes, weight_bytes: of the file, and of the weights in it; None where unknown.
        kind: as manifests call the format, or ``timm``.
        precision: such as ``fp32``; ``unknown`` without a manifest.
        params, macs: of the manifest.
        image_shape, image_layout, any_image_size, input_dtype: the images that it was timed on.
        verified: whether it is the file that its manifest describes.
        runnable, not_runnable_because: whether it was measured here, or why not.
        targets, max_batch, activation_memory_bytes: of a plan.
        memory: see :func:`growtas.export.benchmark.memory.probe`.
        results: a measurement for each batch.
        baseline: whether it is what the others are compared with.
        limit, limits: the search's latency limits; see :mod:`growtas.export.benchmark.limits`.
    """

    label: str
    file: str
    path: Path | None
    bytes: int | None
    weight_bytes: int | None
    kind: str
    precision: str
    params: int | None
    macs: int | None
    image_shape: tuple[int, ...] | None
    image_layout: str | None
    any_image_size: bool | None
    input_dtype: str
    verified: bool
    runnable: bool
    not_runnable_because: str | None
    targets: list[str] | None
    max_batch: int | None
    activation_memory_bytes: int | None
    memory: dict[str, Any] | None
    results: list[BatchResult]
    baseline: bool = False
    limit: dict[str, Any] | None = None
    limits: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path) if self.path else None,
            "image_shape": list(self.image_shape) if self.image_shape else None,
        }


@dataclass(kw_only=True)
class BenchReport:
    """What was measured, and on which machine.

    Attributes:
        created: date and time.
        interrupted: whether the measuring was stopped before its end.
        environment, clocks, power, peaks, versions, settings: the machine and how it was measured, as JSON data.
        artifacts: in the order in which they were named, a baseline that was added first.
        run: folder of the run that they are of, if there is one.
        files: what was written of it, the report first.
    """

    created: str
    interrupted: bool
    environment: dict[str, Any]
    clocks: dict[str, Any] | None
    power: dict[str, Any]
    peaks: list[dict[str, Any]]
    versions: dict[str, Any]
    settings: dict[str, Any]
    artifacts: list[ArtifactReport]
    run: Path | None = None
    files: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without ``files``."""
        record = {"format": FORMAT, **dataclasses.asdict(self)}
        del record["files"]
        return {**record, "artifacts": [artifact.to_dict() for artifact in self.artifacts], "run": self.run and str(self.run)}


def artifact_report(entry: Entry, batches: Sequence[int], peaks: Mapping[str, dict[str, Any]]) -> ArtifactReport:
    """One subject's part of the report, without ratios; a batch without a finished turn is left out.

    Args:
        peaks: of :meth:`growtas.export.benchmark.peaks.PeakMeter.report`, by device.
    """
    subject, manifest, images = entry.subject, entry.subject.manifest or Manifest(), entry.input
    plan, path = manifest.plan, entry.subject.path
    results = [_result(entry, batch, peaks) for batch in batches if batch in entry.runs and entry.runs[batch].samples]
    measured = [result.to_dict() for result in results]
    return ArtifactReport(
        label=subject.label,
        file=path.name if path and subject.timm is None else subject.name,
        path=path,
        bytes=path.stat().st_size if path else None,
        weight_bytes=entry.weight_bytes,
        kind=manifest.kind or (path.suffix[1:] if path else "timm"),
        precision=_precision(entry),
        params=manifest.params,
        macs=manifest.macs,
        image_shape=images.shape if images else None,
        image_layout=images.layout if images else None,
        any_image_size=images.any_size if images else None,
        # Of what can't run, the manifest says the type alone.
        input_dtype=images.dtype if images else (manifest.input and manifest.input.dtype) or "float32",
        verified=path is not None and subject.manifest is not None,
        runnable=entry.session is not None,
        not_runnable_because=entry.not_runnable_because,
        targets=list(plan.targets) if plan else None,
        max_batch=plan.max_batch if plan else None,
        activation_memory_bytes=plan.activation_memory_bytes if plan else None,
        memory=entry.memory,
        results=results,
        limit=check_limit(manifest.search, measured),
        limits=check_limits(path, manifest, measured) if path else [],
    )


def _precision(entry: Entry) -> str:
    if entry.subject.path is None:
        return "fp32"  # a timm model, as timm makes it
    return (entry.subject.manifest and entry.subject.manifest.precision) or "unknown"


def _result(entry: Entry, batch: int, peaks: Mapping[str, dict[str, Any]]) -> BatchResult:
    assert entry.session is not None
    runs, macs, peak = entry.runs[batch], entry.subject.manifest and entry.subject.manifest.macs, peaks.get(entry.device)
    pooled = [sample for samples in runs.samples for sample in samples]
    measured = summarise(pooled, entry.session.info, batch=batch, precision=_precision(entry))
    shares = None
    if peak is not None and macs and entry.weight_bytes is not None:
        shares = roofline(peak, macs=macs, weight_bytes=entry.weight_bytes, io_bytes=runs.io_bytes, batch=batch, ms=measured.p50_ms)
    return BatchResult(
        **measured.to_dict(),
        p50_ms_of_rounds=[float(np.median(samples)) for samples in runs.samples],
        steady=measured.cv <= CV_BOUND,
        parts=_parts(runs.parts),
        power=runs.power.report(),
        roofline=shares,
    )


def _parts(samples: Sequence[TimerParts]) -> dict[str, float] | None:
    """Medians under the names that the session gives the parts, and how often they were taken."""
    if not samples:
        return None
    names = [item.name for item in dataclasses.fields(samples[0])]
    return {**{name: float(np.median([getattr(one, name) for one in samples])) for name in names}, "samples": len(samples)}


def compare(artifacts: Sequence[ArtifactReport], baseline: str | None) -> None:
    """Fills in each result's ratio to the baseline, a label, at the same batch: in time and in time per MAC."""
    base = next((artifact for artifact in artifacts if artifact.label == baseline), None)
    if base is None:
        return
    base.baseline = True
    by_batch = {result.batch: result for result in base.results}
    for artifact in artifacts:
        for result in artifact.results:
            if result.batch not in by_batch:
                continue
            result.ratio = ratio(result.p50_ms_of_rounds, by_batch[result.batch].p50_ms_of_rounds)
            if result.ratio and base.macs and artifact.macs:
                result.ratio_per_mac = result.ratio["median"] * (base.macs / artifact.macs)


def compare_precisions(artifacts: Sequence[ArtifactReport], manifests: Sequence[Manifest | None]) -> None:
    """Fills in what each result is compared with in fp32; ``manifests`` are those of the artifacts, in their order."""
    known = [(artifact, manifest) for artifact, manifest in zip(artifacts, manifests, strict=True) if manifest and manifest.subnet]
    for low, of_low in known:
        for fp32, of_fp32 in known:
            same = of_low.network == of_fp32.network and (low.image_shape, low.input_dtype) == (fp32.image_shape, fp32.input_dtype)
            if not same or fp32.precision != "fp32" or low.precision == "fp32":
                continue
            for result, twin in itertools.product(low.results, fp32.results):
                if (result.batch, result.runtime, result.device) == (twin.batch, twin.runtime, twin.device):
                    between = ratio(result.p50_ms_of_rounds, twin.p50_ms_of_rounds)
                    result.fp32 = between and {"artifact": fp32.label, "p50_ms": twin.p50_ms, "ratio": between}


def ratio(rounds: Sequence[float], baseline: Sequence[float]) -> dict[str, Any] | None:
    """How many times the baseline's latency a subject takes, from what the two took in the same rounds.

    A slow minute hits both of a round, so it cancels out of their ratio, though not out of the ratio of two overall medians.

    Args:
        rounds, baseline: median milliseconds of each round, in order; rounds that only one of them had are left out.

    Returns:
        ``median``, ``low`` and ``high`` (the smallest and the largest round's), and ``rounds``; None without a common round.
    """
    paired = [mine / theirs for mine, theirs in zip(rounds, baseline, strict=False)]
    if not paired:
        return None
    return {"median": float(np.median(paired)), "low": min(paired), "high": max(paired), "rounds": len(paired)}
