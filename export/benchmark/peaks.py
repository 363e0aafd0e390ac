"""Measures a machine's peaks (matrix product and memory copy) together with the artifacts, and an artifact's share of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from growtas.export.formats import ONNX, TORCH, format_of, side_files
from growtas.export.graph.contents import read_graph

GEMM_SIZE = 1536
"""Number of rows of the square matrices; four times as many on a GPU."""
COPY_BYTES = 128 << 20
"""Number of bytes that a copy reads and writes, which is more than caches hold."""
_CUDA_SCALE = 4
_REPEATS = 3


class PeakMeter:
    """Measures float32 matrix products and copies on one device, a few in each round. The best round counts as the peak.

    Args:
        device: ``cpu``, or the GPU's name in a session's ``info``.
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
        """Measures one round: the best of a few products, and the best of a few copies."""
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
        """Returns the peaks as JSON data; None before the first round.

        ``kind`` (always ``measured``), ``device``, ``threads``, ``precision`` (always ``fp32``), ``gemm_size`` (rows of the
        matrices), ``gemm_flops_per_s`` and ``copy_bytes_per_s`` (of the best round; a copied byte counts twice), and both of all
        rounds in ``gemm_flops_per_s_of_rounds`` and ``copy_bytes_per_s_of_rounds``.
        """
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
    """Computes the shares of a machine's peaks that a run reached.

    Args:
        peaks: the result of :meth:`PeakMeter.report`.
        macs: multiply-accumulates for one image; each counts as two operations.
        weight_bytes: size of the weights, which are read once per run.
        io_bytes: size of the inputs and outputs of the whole run. Intermediate tensors are not counted, so the share of the
            bandwidth is a lower bound; it can exceed one if the weights stay in a cache.
        batch: images per run.
        ms: median of the run in milliseconds.

    Returns:
        ``flops`` and ``bytes`` of a run, ``flops_per_byte``, the shares of the peaks ``gemm_share`` and ``bandwidth_share``, and
        ``nearer_to``: the peak with the larger share, ``gemm`` or ``bandwidth``.
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
    """Returns the size of an artifact's weights in bytes: the tensors of a safetensors or ONNX file, the ``.bin`` of an IR, and
    otherwise the whole file."""
    if format_of(path) in (TORCH, ONNX):
        return sum(read_graph(path)["bytes_by_type"].values())
    weights = next((file for file in side_files(path) if file.is_file()), path)
    return weights.stat().st_size
