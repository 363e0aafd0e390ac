"""Benchmark of artifacts: interleaved rounds, percentiles, throughput, memory, and whether the searched limit holds."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from growtas.errors import ConfigError, DeviceError, GrowtasError, UsageError, choices
from growtas.export.backends import SUFFIXES, nvinfer, open_session
from growtas.export.backends.base import Session, Timer, available_threads
from growtas.export.images import noise
from growtas.export.manifest import read_manifest, versions
from growtas.export.measure import collect, environment, summarise, warm_up
from growtas.export.probe import probe

FORMAT = "growtas-bench/1"


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How to measure.

    Attributes:
        batches: images a run.
        threads: CPU threads; by default all that this process may use.
        rounds: how often every artifact gets its turn; they are interleaved, so that a slow minute hits all.
        seconds: time for each artifact and batch, all rounds together.
    """

    batches: tuple[int, ...] = (1, 8)
    threads: int | None = None
    rounds: int = 5
    seconds: float = 1.0

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
    found = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and not path.name.startswith("."))
    if not found:
        raise UsageError(f"{folder}: no artifacts to bench; make some with `growtas export`, or name files ({choices(SUFFIXES)})")
    return found


@dataclass(kw_only=True)
class _Entry:
    """One artifact under measurement."""

    path: Path
    manifest: dict[str, Any] | None
    session: Session | None = None
    not_runnable_because: str | None = None
    timers: dict[int, Timer] = field(default_factory=dict)
    samples: dict[int, list[list[float]]] = field(default_factory=dict)
    memory: dict[str, Any] | None = None


def bench(
    artifacts: Sequence[Path],
    options: BenchOptions,
    *,
    note: Callable[[str], None] = lambda text: None,
    step: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure artifacts against each other on this machine.

    An artifact that can't run here (a plan without a GPU) is reported with its size and the activation memory from its manifest.

    Args:
        note: told what the user should know.
        step: told what is being measured, how many turns are done, and how many there are.

    Returns:
        The report as JSON data; see :func:`_report`.

    Raises:
        CheckpointError: an artifact is absent, can't be loaded, or is not what its manifest says.
        ConfigError: a batch above what a plan was built for.
        UsageError: a file that is no artifact, or the same twice.
    """
    paths = [Path(path) for path in artifacts]
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise UsageError(f"{path}: not an artifact; legal are files that end in {choices(SUFFIXES)}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("the same artifact is named twice")
    # Every manifest is verified before anything is loaded.
    entries = [_Entry(path=path, manifest=read_manifest(path)) for path in paths]
    threads = options.threads or available_threads()
    for entry in entries:
        if entry.manifest is None:
            note(f"{entry.path}: no manifest beside it, so it is taken as it is")
    before = environment()
    if (before["load_average_1min"] or 0) > before["cpu_threads_available"] / 2:
        note(f"other work is running here (load average {before['load_average_1min']:.1f}); expect the numbers to be disturbed")
    with contextlib.ExitStack() as stack:
        for entry in entries:
            _load(entry, options, threads, stack)
        running = [entry for entry in entries if entry.session is not None]
        total = options.rounds * len(options.batches) * len(running) + len(running)
        done = 0
        for entry in running:
            step(f"memory of {entry.path.name}", done, total)
            if entry.path.suffix != ".plan":
                entry.memory = _memory(entry.path, max(options.batches), threads, note)
            done += 1
        for round_ in range(options.rounds):
            for batch in options.batches:
                # Back and forth: what heats the machine for its successor changes sides.
                for entry in running if round_ % 2 == 0 else running[::-1]:
                    step(f"{entry.path.name}, batch {batch}", done, total)
                    _turn(entry, batch, options)
                    done += 1
        report = [_report(entry, options) for entry in entries]
    return {
        "format": FORMAT,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "environment": {**before, "threads": threads},
        "versions": versions(),
        "settings": {
            "batches": list(options.batches),
            "rounds": options.rounds,
            "seconds_per_artifact_and_batch": options.seconds,
            "input": "normal noise, always the same",
        },
        "artifacts": report,
    }


def _load(entry: _Entry, options: BenchOptions, threads: int, stack: contextlib.ExitStack) -> None:
    manifest = entry.manifest or {}
    plan = manifest.get("plan") or {}
    if entry.path.suffix == ".plan":
        targets = tuple(plan.get("targets") or ())
        # Without a manifest nobody knows what it was built for: only trying tells.
        entry.not_runnable_because = nvinfer.why_not_here(targets or (nvinfer.local_target() or "",))
        if entry.not_runnable_because is not None:
            return
        if max(options.batches) > plan.get("max_batch", max(options.batches)):
            raise ConfigError(f"{entry.path}: built for batches up to {plan['max_batch']}; --batch asks for {max(options.batches)}")
    try:
        session = open_session(entry.path, threads=threads, runtime=plan.get("runtime"))
    except DeviceError as error:
        entry.not_runnable_because = str(error)
        return
    entry.session = stack.enter_context(session)
    for batch in options.batches:
        entry.timers[batch] = session.timer(noise(batch, session.image_shape))
        entry.samples[batch] = []


def _memory(path: Path, batch: int, threads: int, note: Callable[[str], None]) -> dict[str, Any] | None:
    try:
        return probe(path, batch=batch, threads=threads)
    except GrowtasError as error:
        note(f"memory not measured: {error}")
        return None


def _turn(entry: _Entry, batch: int, options: BenchOptions) -> None:
    """One artifact's turn at one batch: a short warm-up, then its share of the time."""
    timer = entry.timers[batch]
    first = not entry.samples[batch]
    warm_up(timer, runs=5 if first else 1, seconds=0.2 if first else 0.02)
    share = options.seconds / options.rounds
    entry.samples[batch].append(collect(timer, seconds=share, min_runs=3))


def _report(entry: _Entry, options: BenchOptions) -> dict[str, Any]:
    """One artifact's part of the report."""
    manifest = entry.manifest or {}
    plan = manifest.get("plan") or {}
    precision = str(manifest.get("precision", "unknown"))
    results = []
    if entry.session is not None:
        for batch in options.batches:
            rounds = entry.samples[batch]
            pooled = [sample for samples in rounds for sample in samples]
            measurement = summarise(pooled, entry.session.info, batch=batch, precision=precision)
            results.append({**measurement.to_dict(), "p50_ms_of_rounds": [float(np.median(samples)) for samples in rounds]})
    return {
        "file": entry.path.name,
        "path": str(entry.path),
        "bytes": entry.path.stat().st_size,
        "kind": manifest.get("kind") or entry.path.suffix[1:],
        "precision": precision,
        "verified": entry.manifest is not None,
        "runnable": entry.session is not None,
        "not_runnable_because": entry.not_runnable_because,
        "targets": plan.get("targets"),
        "max_batch": plan.get("max_batch"),
        "activation_memory_bytes": plan.get("activation_memory_bytes"),
        "memory": entry.memory,
        "results": results,
        "limit": check_limit(manifest.get("search"), results),
    }


def check_limit(search: Mapping[str, Any] | None, results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Whether the latency limit of the search holds in what was measured.

    Args:
        search: the manifest's ``search``.
        results: measurements, as :meth:`growtas.export.measure.Measurement.to_dict` gives them.

    Returns:
        None where the search had no latency limit. Otherwise ``limit_ms``, ``device``, ``promised`` (the search's latency with its
        ``kind``), ``measured_ms`` and ``holds``; both None, with the reason, where these measurements can't tell.
    """
    limit_ms = ((search or {}).get("limits") or {}).get("max_latency_ms")
    if search is None or limit_ms is None:
        return None
    promised = search.get("latency") or {}
    percentile, batch = str(promised.get("percentile") or "p50"), int(promised.get("batch") or 1)
    answer = {
        "limit_ms": limit_ms,
        "device": search.get("device"),
        "promised": promised or None,
        "measured_ms": None,
        "holds": None,
    }
    result = next((result for result in results if result["batch"] == batch), None)
    if result is None or not _is_device(search.get("device"), result["device"]) or not _agree(promised, result):
        asked = f"{percentile}, batch {batch}, {promised.get('precision') or 'any precision'} on {search.get('device')}"
        return {**answer, "unchecked_because": f"the limit is for {asked}, which was not measured here"}
    measured = result.get(f"{percentile}_ms")
    return {**answer, "measured_ms": measured, "holds": measured is not None and measured <= limit_ms}


def _is_device(searched: object, measured: str) -> bool:
    """Whether ``a10`` is what the runtime calls ``NVIDIA A10``."""
    return str(searched).lower() in re.split(r"[^a-z0-9]+", measured.lower())


def _agree(promised: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether a measurement is of what the search spoke of, as far as it said."""
    return all(promised.get(key) in (None, result[key]) for key in ("precision", "runtime"))
