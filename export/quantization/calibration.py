"""Measures the largest values of a graph's tensors on real images, for the scales of int8 and fp8 and the range of fp16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from growtas.errors import BuildError, ConfigError, choices
from growtas.export.graph.edit import to_proto
from growtas.export.graph.tensors import magnitude, session_of_tensors

METHODS = ("minmax", "percentile", "entropy")
# Share of the values that are not clipped.
PERCENTILE = 0.9999
_BINS, _LEVELS = 2048, 128
_BATCH = 8

Array = NDArray[np.float32]
Histogram = NDArray[np.int64]


def largest(model: ir.Model, names: Sequence[str], images: Array) -> dict[str, float]:
    """Returns the largest magnitude of each float tensor on all images.

    Args:
        model: a graph that ONNX Runtime can run, with an input of images.
        images: ``(count, channels, height, width)``, float32; one or more.

    Raises:
        BuildError: ONNX Runtime can't run it.
        ConfigError: no images.
    """
    magnitudes = dict.fromkeys(names, 0.0)
    for values in _run(model, names, images):
        for name, value in values.items():
            magnitudes[name] = max(magnitudes[name], magnitude(value))
    return magnitudes


def clipping_points(model: ir.Model, names: Sequence[str], images: Array, method: str = "minmax") -> dict[str, float]:
    """Returns each tensor's clipping point: the magnitude that the largest quantised number stands for.

    Args:
        method: ``minmax`` clips nothing. ``percentile`` clips the largest of every ten thousand values. ``entropy`` clips so that
            the quantised histogram differs least from the true one (Kullback-Leibler divergence, as in TensorRT's calibration:
            Migacz, "8-bit inference with TensorRT", GTC 2017).

    Raises:
        BuildError, ConfigError: as :func:`largest`; an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"the calibration method is {method!r}; legal are {choices(METHODS)}")
    tops = largest(model, names, images)
    if method == "minmax":
        return tops
    histograms = {name: np.zeros(_BINS, np.int64) for name in names}
    for values in _run(model, names, images):
        for name, value in values.items():
            histograms[name] += np.histogram(np.abs(value), bins=_BINS, range=(0.0, tops[name] or 1.0))[0]
    clip = _percentile if method == "percentile" else _entropy
    return {name: clip(histograms[name]) / _BINS * tops[name] for name in names}


def _percentile(histogram: Histogram) -> int:
    return int(np.searchsorted(np.cumsum(histogram), PERCENTILE * histogram.sum())) + 1


def _entropy(histogram: Histogram) -> int:
    """The number of bins with the least loss when they are merged into int8's levels and larger values are clipped to the last."""
    best, least = _BINS, np.inf
    for bins in range(_LEVELS, _BINS + 1, _LEVELS // 8):
        reference = histogram[:bins].astype(np.float64)
        filled = reference > 0
        # Each level's mass is spread evenly over its bins that are not empty.
        level = np.arange(bins) * _LEVELS // bins
        mass = np.bincount(level, reference, _LEVELS)
        share = np.bincount(level, filled, _LEVELS)
        quantised = np.where(filled, mass[level] / np.maximum(share[level], 1), 0)
        reference[-1] += histogram[bins:].sum()
        p, q = reference / reference.sum(), quantised / max(quantised.sum(), 1)
        # The quantised histogram is empty where only clipped values are.
        q = np.where(p > 0, np.maximum(q, 1e-9), q)
        divergence = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
        if divergence < least:
            best, least = bins, divergence
    return best


def _run(model: ir.Model, names: Sequence[str], images: Array) -> Iterator[dict[str, Array]]:
    if not len(images):
        raise ConfigError("there are no calibration images; give one or more")
    entry = str(model.graph.inputs[0].name)
    outputs = [name for name in names if name != entry]
    try:
        session = session_of_tensors(to_proto(model), outputs, optimised=True) if outputs else None
    except Exception as error:  # the runtime's exceptions share no base class
        raise BuildError(f"calibration: ONNX Runtime can't run the graph ({' '.join(str(error).split())[:160]})") from None
    for start in range(0, len(images), _BATCH):
        batch = np.ascontiguousarray(images[start : start + _BATCH], np.float32)
        values = dict(zip(outputs, session.run(outputs, {entry: batch}), strict=True)) if session else {}
        yield values | ({entry: batch} if entry in names else {})
