"""Measures latency: warm-up, samples, percentiles, and a description of the machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growtas.export.runtimes.base import RuntimeInfo, Timer
from growtas.latency.at_hand import cpu_name
from growtas.latency.measured.paired import Block
from growtas.resources import available_threads

WARMUP_RUNS = 5
WARMUP_SECONDS = 0.2
MAX_SECONDS = 30.0


@dataclass(kw_only=True)
class Measurement:
    """The measured latency of one artifact at one batch size. All times are milliseconds for one run of the whole batch.

    Attributes:
        kind: always ``measured``.
        p50_ms: median.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        mean_ms: mean.
        cv: coefficient of variation: standard deviation divided by the mean.
        samples: number of timed runs.
        batch: images per run.
        threads: CPU threads; 0 on a GPU.
        runtime: name of the runtime, such as ``onnxruntime``.
        runtime_version: version of the runtime.
        device: ``cpu``, or the GPU's name.
        precision: precision of the artifact, such as ``fp32``.
        images_per_second: batch size divided by the median latency.
    """

    kind: str = "measured"
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    cv: float
    samples: int
    batch: int
    threads: int
    runtime: str
    runtime_version: str
    device: str
    precision: str
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)


def summarise(samples_ms: Sequence[float], info: RuntimeInfo, *, batch: int, precision: str = "fp32") -> Measurement:
    """Summarises timed runs; percentiles are interpolated linearly between samples.

    Raises:
        ValueError: there are no samples.
    """
    times = np.asarray(samples_ms, np.float64)
    if not times.size:
        raise ValueError("no samples to summarise")
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    mean = float(times.mean())
    return Measurement(
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        mean_ms=mean,
        cv=float(times.std() / mean) if mean else 0.0,
        samples=times.size,
        batch=batch,
        threads=info.threads,
        runtime=info.runtime,
        runtime_version=info.version,
        device=info.device,
        precision=precision,
        images_per_second=batch * 1e3 / float(p50),
    )


def warm_up(timer: Timer, *, runs: int = WARMUP_RUNS, seconds: float = WARMUP_SECONDS) -> None:
    """Runs without timing until both numbers are reached. First runs allocate memory, choose kernels and raise the clock."""
    start, count = time.perf_counter(), 0
    while count < runs or time.perf_counter() - start < seconds:
        timer()
        count += 1
        if time.perf_counter() - start > MAX_SECONDS:
            return


def collect(timer: Timer, *, seconds: float, min_runs: int = 1, max_seconds: float = MAX_SECONDS) -> list[float]:
    """Times runs for at least ``seconds`` and ``min_runs``, but at most for ``max_seconds`` (and at least once)."""
    start, samples = time.perf_counter(), []
    while True:
        samples.append(timer())
        elapsed = time.perf_counter() - start
        if elapsed >= max_seconds or (elapsed >= seconds and len(samples) >= min_runs):
            return samples


def measure_in_turns(timers: Sequence[Timer], *, rounds: int, seconds: float, min_runs: int = 3) -> list[list[Block]]:
    """Times several subjects in turns; returns the blocks of each timer in each round, shape ``(len(timers), rounds)``.

    Every timer gets one short block per round, so that a second of other work on the machine spoils single blocks and not all
    blocks of one timer. A block takes at least ``seconds`` and ``min_runs``. The order alternates between rounds, so that a subject
    that heats the machine does not always precede the same one.
    """
    blocks: list[list[Block]] = [[] for _ in timers]
    for round_ in range(rounds):
        order = range(len(timers)) if round_ % 2 == 0 else reversed(range(len(timers)))
        for index in order:
            # Since its last block, the weights of the other subjects have filled the caches.
            warm_up(timers[index], runs=2 if round_ else WARMUP_RUNS, seconds=0.0 if round_ else WARMUP_SECONDS)
            blocks[index].append(Block.of_runs(collect(timers[index], seconds=seconds, min_runs=min_runs)))
    return blocks


def environment() -> dict[str, Any]:
    """Describes this machine: CPU, threads, load, GPU, operating system and Python."""
    import torch

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu_name(),
        "cpu_threads_available": available_threads(),
        "cpu_threads_total": os.cpu_count(),
        "load_average_1min": load,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def clocks() -> dict[str, Any]:
    """Returns clocks and driver, as far as the system reports them, as texts or numbers; a measured profile records them.

    For the first CPU ``governor``, ``mhz`` and ``max_mhz``. For the first GPU ``driver``, ``sm_mhz``, ``memory_mhz``,
    ``power_limit_w`` and ``throttled`` (a bit mask, ``0x0...0`` if the GPU is not throttled).
    """
    readings: dict[str, Any] = {}
    folder = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    for name, file in (("governor", "scaling_governor"), ("mhz", "scaling_cur_freq"), ("max_mhz", "cpuinfo_max_freq")):
        try:
            text = (folder / file).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        readings[name] = round(int(text) / 1e3) if text.isdigit() else text
    queries = {
        "driver": "driver_version",
        "sm_mhz": "clocks.sm",
        "memory_mhz": "clocks.mem",
        "power_limit_w": "power.limit",
        "throttled": "clocks_throttle_reasons.active",
    }
    try:
        return readings | dict(zip(queries, query_gpu(*queries.values()), strict=False))
    except OSError:
        return readings


def query_gpu(*fields: str) -> list[str]:
    """Returns the values of ``nvidia-smi`` for the first GPU, possibly fewer than there are fields.

    Raises:
        OSError: there is no ``nvidia-smi``, or it failed.
    """
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except subprocess.SubprocessError as error:
        raise OSError(f"nvidia-smi: {error}") from None
    return [value.strip() for line in answer.strip().splitlines()[:1] for value in line.split(",")]
