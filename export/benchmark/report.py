"""The report of a benchmark, ``bench.json``: the measurements of each artifact, ratios and latency limits."""

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
"""Largest coefficient of variation of a steady measurement. On an idle machine all runtimes stay below 5 %."""


@dataclass(kw_only=True)
class BatchResult(Measurement):
    """The latency of one artifact at one batch size, and values computed from it.

    Attributes:
        p50_ms_of_rounds: median of each round, in milliseconds.
        steady: whether ``cv`` is at most 0.10.
        parts: medians of the host, transfer and device times in milliseconds, and their number (``samples``); None if the runtime
            can't separate them.
        power: mean power in ``watts`` and energy in ``joules_per_image``; None if the power is not readable.
        roofline: shares of the machine's peaks (:func:`growtas.export.benchmark.peaks.roofline`); None if the MACs are unknown or
            the roofline was not requested.
        ratio: latency relative to the baseline at the same batch size, paired by round: ``median``, ``low``, ``high`` and the
            number of ``rounds``; None without a baseline.
        ratio_per_mac: the ratio's median, multiplied by the baseline's MACs and divided by the artifact's MACs.
        fp32: for a lower precision, the fp32 artifact of the same network that was measured in the same runtime: its label
            (``artifact``), its ``p50_ms``, and the ``ratio`` to it; otherwise None.
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
    """One artifact, or timm model, in one runtime.

    Attributes:
        label: name of the artifact, unique in the report.
        file: file name, or ``timm:NAME``.
        path: path of the file; None for a timm model in PyTorch.
        bytes: size of the file in bytes; None without a file.
        weight_bytes: size of the weights in bytes; None if unknown.
        kind: file format as in manifests, or ``timm``.
        precision: precision of the artifact, such as ``fp32``; ``unknown`` without a manifest.
        params: number of parameters, from the manifest.
        macs: multiply-accumulates for one image, from the manifest.
        image_shape: shape of one image in the input's own order; None if the artifact was not run.
        image_layout: order of the input's axes, ``NCHW`` or ``NHWC``; None if the artifact was not run.
        any_image_size: whether the input's height and width are free; None if the artifact was not run.
        input_dtype: type of the input, such as ``float32`` or ``uint8``.
        verified: whether the file has a manifest. Its hash was then checked.
        runnable: whether the artifact was measured.
        not_runnable_because: the reason why it was not measured; None if it was.
        targets: compute capabilities that a plan was built for; None for other formats.
        max_batch: largest batch of a plan; None for other formats.
        activation_memory_bytes: a plan's GPU memory for activations in bytes, from its manifest; None for other formats.
        memory: load time, first run and peak memory (:func:`growtas.export.benchmark.memory.probe`); None if not measured.
        results: one measurement per batch size.
        baseline: whether this artifact is the baseline.
        limit: the latency limit of the search on its first device, and whether it holds
            (:func:`growtas.export.benchmark.limits.check_limit`); None without a limit.
        limits: the same for every device of the search.
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
        """Returns the JSON form."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path) if self.path else None,
            "image_shape": list(self.image_shape) if self.image_shape else None,
        }


@dataclass(kw_only=True)
class BenchReport:
    """The measurements of a benchmark and their conditions. The JSON adds ``format``, always ``growtas-bench/1``.

    Attributes:
        created: time of the benchmark, ISO 8601 with the time zone.
        interrupted: whether the benchmark was stopped before its end.
        environment: the machine: CPU, GPU, threads, load average before the benchmark, operating system and Python.
        clocks: clocks and driver ``before`` and ``after`` the benchmark; None if the system does not report them.
        power: for each device whether its power is readable, by which counter, or why not.
        peaks: measured peaks of matrix product and memory copy, one entry per device.
        versions: versions of growtas, Python and the packages, by name.
        settings: options of the benchmark: ``batches``, ``rounds``, ``seconds_per_artifact_and_batch``, ``runtimes``, ``baseline``
            (its label, or None), ``no_baseline_because`` (why the requested baseline was not measured), ``device`` and ``input``.
        artifacts: the artifacts in the order in which they were named; a baseline that was only named as such comes first.
        run: folder of the run that the artifacts belong to; None without one.
        files: files that were written, the report first; not in the JSON.
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
        """Returns the JSON form, without ``files``."""
        record = {"format": FORMAT, **dataclasses.asdict(self)}
        del record["files"]
        return {**record, "artifacts": [artifact.to_dict() for artifact in self.artifacts], "run": self.run and str(self.run)}


def artifact_report(entry: Entry, batches: Sequence[int], peaks: Mapping[str, dict[str, Any]]) -> ArtifactReport:
    """Makes one subject's part of the report, without ratios. A batch size without a finished turn is left out.

    Args:
        peaks: the results of :meth:`growtas.export.benchmark.peaks.PeakMeter.report`, by device.
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
        # For an artifact that can't run, only the type is known, from its manifest.
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
        return "fp32"  # the precision of timm models
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
    """The medians of the parts, by name, and the number of samples."""
    if not samples:
        return None
    names = [item.name for item in dataclasses.fields(samples[0])]
    medians = {name: float(np.median([getattr(sample, name) for sample in samples])) for name in names}
    return {**medians, "samples": len(samples)}


def compare(artifacts: Sequence[ArtifactReport], baseline: str | None) -> None:
    """Sets each result's ratio to the baseline at the same batch size, in time and in time per MAC; ``baseline`` is a label."""
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
    """Sets each result's comparison with fp32; ``manifests`` are those of the artifacts, in the same order."""
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
    """Computes the ratio of a subject's latency to the baseline's, paired by round.

    Other work on the machine slows down both subjects of a round, so it cancels out of the round's ratio, but not out of the ratio
    of two overall medians.

    Args:
        rounds, baseline: median milliseconds of each round, in order; rounds that only one of them has are left out.

    Returns:
        ``median``, ``low`` and ``high`` (the smallest and the largest ratio of a round), and the number of ``rounds``; None without
        a common round.
    """
    paired = [subject_ms / baseline_ms for subject_ms, baseline_ms in zip(rounds, baseline, strict=False)]
    if not paired:
        return None
    return {"median": float(np.median(paired)), "low": min(paired), "high": max(paired), "rounds": len(paired)}
