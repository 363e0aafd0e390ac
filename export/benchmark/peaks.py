"""A machine's own peaks, measured beside the artifacts: matrix product and memory copy; and an artifact's share of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from growtas.export.formats import ONNX, TORCH, format_of, side_files
from growtas.export.graph.contents import read_graph

GEMM_SIZE = 1536
"""Rows of the square matrices (four times as many on a GPU)."""
COPY_BYTES = 128 << 20
"""Bytes that are read, and again written, in a copy: more than caches hold."""
_CUDA_SCALE = 4
_REPEATS = 3


PEAKS = """An entry of ``peaks`` in ``bench.json``: what this machine reached beside the artifacts.

Fields:
    kind (text): Always ``measured``.
    device (text): ``cpu``, or the GPU's name.
    threads (whole number): CPU threads; 0 on a GPU.
    precision (text): Always ``fp32``.
    gemm_size (whole number): Rows and columns of the matrices that were multiplied.
    gemm_flops_per_s (number): Floating-point operations a second of the best round.
    gemm_flops_per_s_of_rounds (list of numbers): The same of each round.
    copy_bytes_per_s (number): Bytes a second, read and written, of the best copy.
    copy_bytes_per_s_of_rounds (list of numbers): The same of each round.
"""
ROOFLINE = """``results[].roofline`` in ``bench.json``: which share of these peaks a run reached.

Fields:
    flops (whole number): Floating-point operations of a run: two for a multiply-accumulate.
    bytes (whole number): Bytes of weights, input and output. Tensors between them are not counted.
    flops_per_byte (number): The first divided by the second.
    gemm_share (number): Operations a second, as a share of the peak.
    bandwidth_share (number): Bytes a second, as a share of the peak. It is a lower bound; weights in a cache can take it above 1.
    nearer_to (text): The peak of which the larger share was reached: ``gemm`` or ``bandwidth``.
"""


class PeakMeter:
    """Measures float32 matrix products and copies on one device, a little each round; the best round counts as the peak.

    Args:
        device: ``cpu``, or what a session calls its GPU.
        threads: CPU threads; ignored on a GPU.
    """

    def __init__(self, device: str, threads: int) -> None:
        import torch

        self.device, self.threads = device, 0 if device != "cpu" else threads
        placed = "cpu" if device == "cpu" else "cuda"
        self._size = GEMM_SIZE if placed == "cpu" else GEMM_SIZE * _CUDA_SCALE
        generator = torch.Generator().manual_seed(0)
        self._a, self._b = (torch.randn(self._size, self._size, generator=generator).to(placed) for _ in range(2))
        self._product = torch.empty_like(self._a)
        self._from = torch.ones(COPY_BYTES // 4, device=placed)
        self._to = torch.empty_like(self._from)
        self.gemm_flops_per_s: list[float] = []
        self.copy_bytes_per_s: list[float] = []

    def measure(self) -> None:
        """One round: the best of a few products, and of a few copies."""
        import torch

        before = torch.get_num_threads()
        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                seconds = self._best(lambda: torch.mm(self._a, self._b, out=self._product))
                self.gemm_flops_per_s.append(2 * self._size**3 / seconds)
                seconds = self._best(lambda: self._to.copy_(self._from))
                self.copy_bytes_per_s.append(2 * self._from.nbytes / seconds)
        finally:
            torch.set_num_threads(before)

    def _best(self, work: Callable[[], object]) -> float:
        import torch

        wait = torch.cpu.synchronize if self.device == "cpu" else torch.cuda.synchronize
        best = float("inf")
        for _ in range(_REPEATS):
            wait()
            start = time.perf_counter()
            work()
            wait()
            best = min(best, time.perf_counter() - start)
        return best

    def report(self) -> dict[str, Any] | None:
        """The peaks as JSON data; None before the first round."""
        if not self.gemm_flops_per_s:
            return None
        return {
            "kind": "measured",
            "device": self.device,
            "threads": self.threads,
            "precision": "fp32",
            "gemm_size": self._size,
            "gemm_flops_per_s": max(self.gemm_flops_per_s),
            "gemm_flops_per_s_of_rounds": self.gemm_flops_per_s,
            "copy_bytes_per_s": max(self.copy_bytes_per_s),
            "copy_bytes_per_s_of_rounds": self.copy_bytes_per_s,
        }


def roofline(peaks: dict[str, Any], *, macs: int, weight_bytes: int, io_bytes: int, batch: int, ms: float) -> dict[str, Any]:
    """What share of a machine's peaks a run reached.

    Args:
        peaks: of :meth:`PeakMeter.report`.
        macs: of one image; two operations each.
        weight_bytes: read once a run, however many images it has.
        io_bytes: inputs and outputs of the whole run. Intermediate tensors are not counted, so the share of the bandwidth is
            a lower bound; weights that stay in a cache can take it above one.
        batch: images a run.
        ms: the run's median.

    Returns:
        ``flops``, ``bytes``, ``flops_per_byte``, ``gemm_share``, ``bandwidth_share``, and ``nearer_to``: the peak, ``gemm`` or
        ``bandwidth``, of which the larger share is used.
    """
    flops, moved, seconds = 2 * macs * batch, weight_bytes + io_bytes, ms / 1e3
    gemm, bandwidth = flops / seconds / peaks["gemm_flops_per_s"], moved / seconds / peaks["copy_bytes_per_s"]
    return {
        "flops": flops,
        "bytes": moved,
        "flops_per_byte": flops / moved,
        "gemm_share": gemm,
        "bandwidth_share": bandwidth,
        "nearer_to": "gemm" if gemm >= bandwidth else "bandwidth",
    }


def weight_bytes(path: Path) -> int:
    """Bytes of an artifact's weights: tensors of a safetensors or ONNX file, an IR's ``.bin``, otherwise the whole file."""
    if format_of(path) in (TORCH, ONNX):
        return sum(read_graph(path)["bytes_by_type"].values())
    weights = next((file for file in side_files(path) if file.is_file()), path)
    return weights.stat().st_size
