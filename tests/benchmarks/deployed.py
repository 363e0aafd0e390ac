"""The exported network in its runtimes: int8 over fp32, growtas over DeiT-T, and the share of the machine's matrix product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from growtas import timm_vit
from growtas.export.graph.exporter import export_onnx
from growtas.export.quantization.convert import convert
from growtas.export.runtimes.base import Session, is_installed
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.verification.images import noise
from tests.benchmarks.models import DEIT_MACS, PUBLISHED_MACS, deit_tiny, static
from tests.benchmarks.timing import Entry, in_turns, medians, ratio

THREADS, ROUNDS, RUNS, IMAGE = 2, 9, 8, (3, 224, 224)
_PEAK_SIZE = 1024
_IMPORTED = "batch 1, DeiT-T imported from timm / timm's export"


def with_biases(model: nn.Module) -> nn.Module:
    """The network as training leaves it: biases that are zero would fall out of the graph."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05, generator=generator)
    return model.eval()


def _peak() -> float:
    """Multiplications and additions of a float32 matrix product a millisecond, the best of some."""
    torch.set_num_threads(THREADS)
    a, b = torch.randn(_PEAK_SIZE, _PEAK_SIZE), torch.randn(_PEAK_SIZE, _PEAK_SIZE)
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, 1e3 * (time.perf_counter() - start))
    return float(_PEAK_SIZE**3 / best)


def deployed(folder: Path, export: Callable[[nn.Module, Path], None]) -> Iterator[Entry]:
    """Entries of one run; ``export`` writes a network of timm's with the same exporter."""
    ours, deit, low = folder / "ours.onnx", folder / "deit-biased.onnx", folder / "ours.int8.onnx"
    imported = folder / "imported.onnx"
    model = static()
    export_onnx(with_biases(model), ours)
    export(with_biases(deit_tiny()), deit)
    export_onnx(timm_vit.convert(with_biases(deit_tiny()), "DeiT-T"), imported)
    convert(ours, low, "int8", calibration=noise(16, IMAGE), calibration_are="noise")
    sessions: dict[str, Session] = {
        "ONNX Runtime": OnnxRuntimeSession(ours, threads=THREADS),
        "its DeiT-T": OnnxRuntimeSession(deit, threads=THREADS),
        "its imported DeiT-T": OnnxRuntimeSession(imported, threads=THREADS),
        "its int8": OnnxRuntimeSession(low, threads=THREADS),
    }
    if is_installed("openvino"):
        from growtas.export.runtimes.openvino import OpenVINOSession

        sessions |= {
            "OpenVINO": OpenVINOSession(ours, threads=THREADS),
            "OpenVINO's DeiT-T": OpenVINOSession(deit, threads=THREADS),
            "OpenVINO's imported DeiT-T": OpenVINOSession(imported, threads=THREADS),
            "OpenVINO's int8": OpenVINOSession(low, threads=THREADS),
        }
    one = _in_turns(sessions, 1)
    per_mac = DEIT_MACS / PUBLISHED_MACS
    yield _low(one)
    name = "ONNX Runtime batch 1, biases set, growtas / DeiT-T, per MAC"
    yield Entry(name, ratio(one, "ONNX Runtime", "its DeiT-T") * per_mac, 1.15, medians(one))
    yield Entry(f"{_IMPORTED} in ONNX Runtime", ratio(one, "its imported DeiT-T", "its DeiT-T"), 1.02, medians(one))
    if "OpenVINO" in one:
        yield Entry(f"{_IMPORTED} in OpenVINO", ratio(one, "OpenVINO's imported DeiT-T", "OpenVINO's DeiT-T"), 1.02, medians(one))
        name = "OpenVINO batch 1, growtas / DeiT-T, per MAC"
        yield Entry(name, ratio(one, "OpenVINO", "OpenVINO's DeiT-T") * per_mac, 1.15, medians(one))
    eight = _in_turns({name: sessions[name] for name in ("ONNX Runtime", "OpenVINO") if name in sessions}, 8)
    peak = _peak()
    shares = {name: 8 * PUBLISHED_MACS / statistics.median(values) / peak for name, values in eight.items()}
    best = max(shares, key=shares.__getitem__)
    detail = f"{shares[best]:.0%} of {peak / 1e6:.0f} GMAC/s in {best}"
    yield Entry("batch 8, 55 % / share of the matrix product's peak", 0.55 / shares[best], 1.0, detail)


def _low(times: dict[str, list[float]]) -> Entry:
    """The fastest int8 over the fastest fp32; each runtime's own ratio is said."""
    files = {"ONNX Runtime": "its int8", "OpenVINO": "OpenVINO's int8"}
    found = {runtime: name for runtime, name in files.items() if name in times}

    def fastest(names: Iterable[str]) -> str:
        return min(names, key=lambda name: statistics.median(times[name]))

    own = ", ".join(f"{ratio(times, name, runtime):.3f} in {runtime}" for runtime, name in found.items())
    value = ratio(times, fastest(found.values()), fastest(found))
    return Entry("batch 1, int8 / fp32, each in its faster runtime", value, 0.70, f"{own}; {medians(times)}")


def _in_turns(sessions: dict[str, Session], batch: int) -> dict[str, list[float]]:
    images = noise(batch, IMAGE)
    return in_turns({name: session.timer(images) for name, session in sessions.items()}, rounds=ROUNDS, repeats=RUNS, warmup=3)
