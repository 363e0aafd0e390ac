"""Benchmark of artifacts: interleaved rounds, percentiles, throughput, memory, and whether the searched limit holds."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, GrowtasError, UsageError, choices
from growtas.export.artifact import read_manifest, versions
from growtas.export.benchmark.baselines import TIMM
from growtas.export.benchmark.entries import Entry, judge, load, with_graphs
from growtas.export.benchmark.inputs import DESCRIPTION
from growtas.export.benchmark.memory import probe
from growtas.export.benchmark.peaks import PeakMeter
from growtas.export.benchmark.power import Metering
from growtas.export.benchmark.report import BenchReport, artifact_report, compare
from growtas.export.benchmark.subjects import Subject, find_baseline, name_baseline, normalise, subjects_of
from growtas.export.benchmark.timing import clocks, collect, environment, warm_up
from growtas.export.formats import PLAN, SUFFIXES, artifact_files
from growtas.export.open import check_device
from growtas.export.runtimes.base import available_threads
from growtas.progress import SILENT, Progress

_PART_RUNS = 5


@dataclass(frozen=True)
class TurnBegun:
    """An artifact's turn begins, as an event of the progress.

    Attributes:
        name: what is measured, such as ``a.onnx, batch 8``.
    """

    name: str


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How to measure.

    Attributes:
        batches: images a run.
        threads: CPU threads; by default all that this process may use.
        rounds: how often every artifact gets its turn; they are interleaved, so that a slow minute hits all.
        seconds: time for each artifact and batch, all rounds together.
        runtimes: of :data:`growtas.export.benchmark.subjects.RUNTIMES`; by default each artifact's own.
        baseline: what the others are compared with: one of the artifacts, a runtime, or a timm model that is benched beside.
        device: ``cpu`` or ``cuda``, for PyTorch and ONNX Runtime.
        roofline: measure this machine's peaks too.
    """

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
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads is {self.threads}; it must be 1 or more")
        if self.rounds < 1:
            raise ConfigError(f"--rounds is {self.rounds}; it must be 1 or more")
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"--seconds is {self.seconds:g}; it must be above 0 and at most 600")


def find_artifacts(folder: Path) -> list[Path]:
    """All artifacts in a folder, by name.

    Raises:
        UsageError: there are none.
    """
    paths = artifact_files(folder)
    if not paths:
        raise UsageError(f"{folder}: no artifacts to bench; make some with `growtas export`, or name files ({choices(SUFFIXES)})")
    return paths


def bench(
    artifacts: Sequence[Path | str],
    options: BenchOptions,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measures artifacts against each other on this machine.

    An artifact that can't run here (a plan without a GPU) is reported with its size and the activation memory from its manifest,
    one that can't be loaded or fails in its first run with its error; the others are measured.
    A KeyboardInterrupt ends the measuring; what was measured until then is reported, with ``interrupted`` set.

    Args:
        artifacts: files, or ``timm:NAME``.
        progress: each of its units is a turn; a :class:`TurnBegun` says whose.

    Raises:
        CheckpointError: an artifact is absent, or is not what its manifest says.
        DeviceError: a device that isn't at hand.
        UsageError: a file that is no artifact, the same twice, a runtime that takes none of them, or an unknown timm model.
        GrowtasError: none of the artifacts can be measured; the first one's error, such as a :class:`~growtas.errors.MissingExtra`.
        KeyboardInterrupt: before anything was measured.
    """
    check_device(options.device)
    names = [normalise(name) for name in artifacts]
    if len({name if name.startswith(TIMM) else Path(name).resolve() for name in names}) < len(names):
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
            progress.note(f"{name}: no manifest beside it, so it is taken as it is")
    before = environment()
    if (before["load_average_1min"] or 0) > before["cpu_threads_available"] / 2:
        progress.note(
            f"other work is running here (load average {before['load_average_1min']:.1f}); expect the numbers to be disturbed"
        )
    clocks_before = clocks()
    with contextlib.ExitStack() as stack:
        entries = with_graphs(subjects, stack, progress)
        for entry in entries:
            if entry.not_runnable_because is None:
                load(
                    entry,
                    stack,
                    batches=options.batches,
                    threads=threads,
                    device=options.device,
                    weights=options.roofline,
                )
        no_baseline_because = judge(entries, baseline, added, progress)
        running = [entry for entry in entries if entry.session is not None]
        for entry in running:
            if entry.fed is not None and (entry.fed.dtype != "float32" or entry.fed.any_size):
                progress.note(f"{entry.subject.label}: measured on images {entry.fed}")
        devices = list(dict.fromkeys(entry.device for entry in running))
        metering = Metering(devices)
        peaks = {device: PeakMeter(device, threads) for device in devices} if options.roofline else {}
        interrupted = _rounds(running, options, threads, peaks, metering, progress)
        measured_peaks = {device: peak for device, meter in peaks.items() if (peak := meter.report())}
        reports = [artifact_report(entry, options.batches, measured_peaks) for entry in entries]
    compared_with = baseline.label if baseline and no_baseline_because is None else None
    compare(reports, compared_with)
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
    """Measures memory first, then all rounds. Returns whether they were interrupted; raises it where nothing was measured yet."""
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
                # Back and forth: what heats the machine for its successor changes sides.
                for entry in running if round_ % 2 == 0 else running[::-1]:
                    progress.event(TurnBegun(f"{entry.subject.label}, batch {batch}"))
                    _turn(entry, batch, options, metering)
                    progress.advance()
    except KeyboardInterrupt:
        if not any(samples for entry in running for samples in entry.samples.values()):
            raise
        return True
    return False


def _memory(subject: Subject, options: BenchOptions, threads: int, progress: Progress) -> dict[str, Any] | None:
    if subject.path is not None and subject.path.suffix == PLAN.suffix:
        return None  # its memory is the GPU's; the manifest has it
    target: Path | str = subject.path or subject.name
    try:
        return probe(target, batch=max(options.batches), threads=threads, runtime=subject.runtime, device=options.device)
    except GrowtasError as error:
        progress.note(f"memory not measured: {error}")
        return None


def _turn(entry: Entry, batch: int, options: BenchOptions, metering: Metering) -> None:
    """One subject's turn at one batch: a short warm-up, then its share of the time."""
    timer = entry.timers[batch]
    first = not entry.samples[batch]
    warm_up(timer, runs=5 if first else 1, seconds=0.2 if first else 0.02)
    metering.begin(entry.device)
    samples = collect(timer, seconds=options.seconds / options.rounds, min_runs=3)
    metering.end(entry.device, entry.power[batch], batch * len(samples))
    entry.samples[batch].append(samples)
    if batch in entry.parts:
        entry.part_samples[batch] += [entry.parts[batch]() for _ in range(_PART_RUNS)]
