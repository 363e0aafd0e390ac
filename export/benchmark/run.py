"""Benchmarks artifacts in interleaved rounds: percentiles, throughput, memory, and whether the search's limits hold."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, GrowtasError, UsageError
from growtas.export.artifact import read_manifest, versions
from growtas.export.benchmark.baselines import TIMM
from growtas.export.benchmark.entries import Entry, judge, load, with_graphs
from growtas.export.benchmark.inputs import DESCRIPTION
from growtas.export.benchmark.memory import probe
from growtas.export.benchmark.peaks import PeakMeter
from growtas.export.benchmark.power import Metering, find_meter
from growtas.export.benchmark.report import BenchReport, artifact_report, compare, compare_precisions
from growtas.export.benchmark.subjects import Subject, find_baseline, name_baseline, normalise, subjects_of
from growtas.export.benchmark.timing import clocks, collect, environment, warm_up
from growtas.export.formats import PLAN
from growtas.export.open import check_device
from growtas.progress import SILENT, Progress
from growtas.resources import available_threads, check_threads, other_work

_PART_RUNS = 5


@dataclass(frozen=True)
class TurnBegun:
    """A progress event: the turn of an artifact begins. ``name`` names what is measured, such as ``a.onnx, batch 8``."""

    name: str


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of a benchmark; :func:`growtas.api.bench` describes each of them."""

    batches: tuple[int, ...] = (1, 8)
    threads: int | None = None
    rounds: int = 5
    seconds: float = 1.0
    runtimes: tuple[str, ...] = ()
    baseline: str | None = None
    device: str = "cpu"
    roofline: bool = True

    def __post_init__(self) -> None:
        if not self.batches or any(batch < 1 for batch in self.batches):
            raise ConfigError(f"--batch is {list(self.batches)}; it must be a list of numbers from 1 up, such as 1,8")
        check_threads(self.threads)
        if self.rounds < 1:
            raise ConfigError(f"--rounds is {self.rounds}; it must be 1 or more")
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"--seconds is {self.seconds:g}; it must be above 0 and at most 600")


def bench(artifacts: Sequence[Path | str], options: BenchOptions, progress: Progress = SILENT) -> BenchReport:
    """Measures artifacts in turns on this machine, and writes no files; see :func:`growtas.api.bench`.

    Args:
        artifacts: files, or ``timm:NAME``.
        progress: counts turns; each turn begins with a :class:`TurnBegun`.
    """
    check_device(options.device)
    names = [normalise(name) for name in artifacts]
    if len({name if name.startswith(TIMM) else os.path.realpath(name) for name in names}) < len(names):
        raise UsageError("the same artifact is named twice")
    added = name_baseline(options.baseline, names) if options.baseline else None
    names = [added, *names] if added else names
    # Every manifest is verified before anything is loaded.
    manifests = {name: read_manifest(name) for name in names if not name.startswith(TIMM)}
    subjects = subjects_of(names, manifests, options.runtimes)
    baseline = find_baseline(added or options.baseline, subjects) if options.baseline else None
    threads = options.threads or available_threads()
    for name, manifest in manifests.items():
        if manifest is None:
            progress.note(f"{name}: no manifest beside it, so the file is not verified")
    before = environment()
    if work := other_work():
        progress.note(f"{work}, which disturbs the measurements")
    clocks_before = clocks()
    with contextlib.ExitStack() as stack:
        entries = with_graphs(subjects, stack, progress)
        for entry in entries:
            if entry.not_runnable_because is None:
                weights = options.roofline
                load(entry, stack, batches=options.batches, threads=threads, device=options.device, weights=weights)
        no_baseline_because = judge(entries, baseline, added, progress)
        running = [entry for entry in entries if entry.session is not None]
        for entry in running:
            if entry.input is not None and (entry.input.dtype != "float32" or entry.input.any_size):
                progress.note(f"{entry.subject.label}: measured on images {entry.input}")
        devices = list(dict.fromkeys(entry.device for entry in running))
        metering = Metering({device: find_meter(device) for device in devices})
        peaks = {device: PeakMeter(device, threads) for device in devices} if options.roofline else {}
        interrupted = _rounds(running, options, threads, peaks, metering, progress)
        measured_peaks = {device: peak for device, meter in peaks.items() if (peak := meter.report())}
        reports = [artifact_report(entry, options.batches, measured_peaks) for entry in entries]
    compared_with = baseline.label if baseline and no_baseline_because is None else None
    compare(reports, compared_with)
    compare_precisions(reports, [entry.subject.manifest for entry in entries])
    return BenchReport(
        created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        interrupted=interrupted,
        environment={**before, "threads": threads},
        clocks={"before": clocks_before, "after": clocks()} if clocks_before else None,
        power=metering.report(),
        peaks=list(measured_peaks.values()),
        versions=versions(),
        settings={
            "batches": list(options.batches),
            "rounds": options.rounds,
            "seconds_per_artifact_and_batch": options.seconds,
            "runtimes": list(options.runtimes),
            "baseline": compared_with,
            "no_baseline_because": no_baseline_because,
            "device": options.device,
            "input": DESCRIPTION,
        },
        artifacts=reports,
    )


def _rounds(
    running: list[Entry],
    options: BenchOptions,
    threads: int,
    peaks: Mapping[str, PeakMeter],
    metering: Metering,
    progress: Progress,
) -> bool:
    """Measures memory, then all rounds. Returns whether they were interrupted; re-raises the interrupt if nothing was measured."""
    progress.stage("measuring", options.rounds * len(options.batches) * len(running) + len(running))
    try:
        for entry in running:
            progress.event(TurnBegun(f"memory of {entry.subject.label}"))
            entry.memory = _memory(entry.subject, options, threads, progress)
            progress.advance()
        for round_ in range(options.rounds):
            for meter in peaks.values():
                meter.measure()
            for batch in options.batches:
                # The order alternates, so that an artifact that heats the machine does not always precede the same one.
                for entry in running if round_ % 2 == 0 else running[::-1]:
                    progress.event(TurnBegun(f"{entry.subject.label}, batch {batch}"))
                    _turn(entry, batch, options, metering)
                    progress.advance()
    except KeyboardInterrupt:
        if not any(runs.samples for entry in running for runs in entry.runs.values()):
            raise
        return True
    return False


def _memory(subject: Subject, options: BenchOptions, threads: int, progress: Progress) -> dict[str, Any] | None:
    if subject.path is not None and subject.path.suffix == PLAN.suffix:
        return None  # a plan uses the GPU's memory, which is in its manifest
    target = subject.path or subject.name
    try:
        return probe(target, batch=max(options.batches), threads=threads, runtime=subject.runtime, device=options.device)
    except GrowtasError as error:
        progress.note(f"memory not measured: {error}")
        return None


def _turn(entry: Entry, batch: int, options: BenchOptions, metering: Metering) -> None:
    """Runs one subject's turn at one batch size: a short warm-up, then its share of the time."""
    runs = entry.runs[batch]
    first = not runs.samples
    warm_up(runs.timer, runs=5 if first else 1, seconds=0.2 if first else 0.02)
    metering.begin(entry.device)
    samples = collect(runs.timer, seconds=options.seconds / options.rounds, min_runs=3)
    metering.end(entry.device, runs.power, batch * len(samples))
    runs.samples.append(samples)
    if runs.parts_timer is not None:
        runs.parts += [runs.parts_timer() for _ in range(_PART_RUNS)]
