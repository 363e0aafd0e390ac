"""Modelled latency: a roofline over the kernels of a subnet.

The time of a kernel is the longer of its arithmetic and its memory traffic, plus a launch overhead. A matrix product is divided
into output tiles, and each multiprocessor works on at least one tile. At batch 1 a small network keeps few multiprocessors busy,
which is the main reason why small-batch latencies differ from the datasheet. Nothing here was measured on the device. The
efficiencies were fitted to public latencies (tests/evidence/roofline_calibration.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.errors import ConfigError
from growtas.latency.estimate import Conditions, Kind
from growtas.latency.modelled.profile import BYTES, DeviceProfile
from growtas.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class RooflineLatency:
    """Models the latency of a space's subnets on a device; a :class:`growtas.latency.estimate.LatencyEstimator`.

    It is monotone in every dimension of a subnet, because the work of each kernel grows with it and nothing is subtracted.

    Args:
        profile: profile of the device.
        space: search space, which gives the geometry of images, tokens and heads.
        batch: number of images per batch.
        precision: precision of weights and activations; by default the profile's.

    Raises:
        ConfigError: ``batch`` is below one.
        DeviceError: the device has no peak for the precision.
    """

    profile: DeviceProfile
    space: SearchSpace
    batch: int = 1
    precision: str = ""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}; it must be a whole number above zero")
        object.__setattr__(self, "precision", self.precision or self.profile.precision)
        self.profile.peak_ops(self.precision)

    @property
    def kind(self) -> Kind:
        """Kind of the profile."""
        return self.profile.kind

    @property
    def conditions(self) -> Conditions:
        """Device, median, batch, precision and runtime."""
        profile = self.profile
        return Conditions(device=profile.name, batch=self.batch, precision=self.precision, runtime=profile.runtime)

    @property
    def relative_uncertainty(self) -> float:
        """Uncertainty of the profile."""
        return self.profile.relative_uncertainty

    def predict_ms(self, batch: SubnetBatch) -> NDArray[np.float64]:
        """Returns the modelled milliseconds of each subnet, shape ``(len(batch),)``."""
        dim = batch.embed_dim[:, None].astype(np.float64)
        heads = batch.num_heads.astype(np.float64)
        hidden = np.floor(dim * batch.mlp_ratio)
        blocks = np.where(heads > 0, self._block_s(dim, heads, hidden), 0.0).sum(axis=1)
        return np.asarray(1e3 * (blocks + self._stem_and_head_s(dim[:, 0])))

    def _gemm_s(self, count: Any, m: Any, n: Any, k: Any) -> Any:
        """Seconds of ``count`` matrix products ``(m, k) x (k, n)`` in one kernel."""
        profile, e = self.profile, self.profile.efficiency
        tiles = count * np.maximum(m / e.tile_rows, 1) * np.maximum(n / e.tile_cols, 1)
        tile_ops = 2.0 * e.tile_rows * e.tile_cols * k
        ops = np.maximum(tiles / profile.peaks.sms, 1) * profile.peaks.sms * tile_ops
        arithmetic = ops / (profile.peak_ops(self.precision) * e.compute)
        return np.maximum(arithmetic, self._traffic_s(count * (m * k + k * n + m * n))) + e.launch_us * 1e-6

    def _traffic_s(self, numbers: Any) -> Any:
        """Seconds to read or write ``numbers`` elements."""
        return numbers * BYTES[self.precision] / (self.profile.peaks.memory_gb_s * 1e9 * self.profile.efficiency.memory)

    def _pointwise_s(self, numbers: Any) -> Any:
        """Seconds of a kernel that is limited by memory traffic (normalisation, softmax, gather)."""
        return self._traffic_s(numbers) + self.profile.efficiency.launch_us * 1e-6

    def _block_s(self, dim: Any, heads: Any, hidden: Any) -> Any:
        """Seconds of one block: two LayerNorms, qkv, attention, projection, MLP. GELU and residuals are fused into products."""
        tokens, head_dim, grid = self.space.num_tokens, self.space.head_dim, self.space.grid_size
        rows, width, maps = self.batch * tokens, heads * head_dim, self.batch * heads
        # As plain attention: queries, keys and values get one channel per grid row and column, padded to a multiple of 8.
        relative = self.space.max_relative_position is not None
        lines = 2 * grid if relative else 0
        channels = head_dim + lines + (-(head_dim + lines) % 8 if relative else 0)
        seconds = 2 * self._pointwise_s(2 * rows * dim)
        seconds = seconds + self._gemm_s(1, rows, 3 * width, dim)
        if self.space.qk_norm:
            seconds = seconds + 2 * self._pointwise_s(2 * rows * width)
        seconds = seconds + self._gemm_s(maps, tokens, tokens, channels)
        seconds = seconds + self._pointwise_s(2 * maps * tokens * tokens)
        seconds = seconds + self._gemm_s(maps, tokens, channels, tokens)
        if relative:
            distances = 2 * (2 * grid - 1)
            # Before attention: q times the tables, gather into grid lines. After it: gather into distances, masses times tables.
            seconds = (
                seconds + self._gemm_s(1, rows * heads, distances, head_dim) + self._gemm_s(1, rows * heads, head_dim, distances)
            )
            seconds = seconds + 2 * self._pointwise_s(rows * heads * (lines + distances))
        seconds = seconds + self._gemm_s(1, rows, dim, width)
        return seconds + self._gemm_s(1, rows, hidden, dim) + self._gemm_s(1, rows, dim, hidden)

    def _stem_and_head_s(self, dim: Any) -> Any:
        """Seconds of patch convolution, positions, the last LayerNorm with pooling, and the classifier."""
        space = self.space
        patches, rows = self.batch * space.grid_size**2, self.batch * space.num_tokens
        stem = self._gemm_s(1, patches, dim, space.in_chans * space.patch_size**2) + self._pointwise_s(2 * rows * dim)
        return stem + self._pointwise_s(2 * rows * dim) + self._gemm_s(1, self.batch, space.num_classes, dim)
