"""Models the memory of a subnet: the bytes of its weights, and the peak memory of the activations of its exported graph.

The peak is the largest sum of tensors that are alive at the same time when the graph of
:mod:`growtas.export.graph.inference_vit` runs node by node: the inputs and outputs of a node, and tensors that later nodes need.
The tensors of a block are the residual, the normalised input, queries, keys and values, logits, attention weights, the hidden layer
before and after its GELU, and with a relative position one-hot columns of the keys and masses on grid lines. The patch convolution
reads the images.
A runtime fuses some nodes and rounds sizes up, so its own number differs: TensorRT-RTX's was close to twice the peak
plus 8.15 MB that every plan has, and that is the number given here. docs/notes/search.md has the comparison. Every tensor grows
with the subnet, hence so does the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import ConfigError, choices
from growtas.latency.modelled.profile import BYTES
from growtas.space import SearchSpace

_FIXED_BYTES, _PER_PEAK = 8_150_000, 2.0
"""Fitted to the memory that TensorRT-RTX 1.7 reports for four fp32 plans at batch 1 and 8 (micro, AutoFormer-T): error <= 10 %."""

_Sizes = dict[str, Any]
_Steps = Sequence[tuple[str, Sequence[str]]]

# The output and the inputs of each node of a block. "x" is the residual stream, which both sums read.
_RELATIVE: _Steps = (
    ("normed", ("x",)),
    ("q", ("normed",)),
    ("v", ("normed",)),
    ("far", ("q",)),
    ("terms", ("far",)),
    ("k", ("normed",)),
    ("keys", ("k",)),
    ("queries", ("q", "terms")),
    ("logits", ("queries", "keys")),
    ("attention", ("logits",)),
    ("masses", ("attention",)),
    ("distances", ("masses",)),
    ("attended", ("attention", "v")),
    ("relative", ("distances",)),
    ("summed", ("attended", "relative")),
    ("rows", ("summed",)),
)
_PLAIN: _Steps = (
    ("normed", ("x",)),
    ("q", ("normed",)),
    ("k", ("normed",)),
    ("logits", ("q", "k")),
    ("attention", ("logits",)),
    ("v", ("normed",)),
    ("attended", ("attention", "v")),
    ("rows", ("attended",)),
)
_REST: _Steps = (
    ("projected", ("rows",)),
    ("x2", ("x", "projected")),
    ("normed2", ("x2",)),
    ("hidden", ("normed2",)),
    ("gelu", ("hidden",)),
    ("out", ("gelu",)),
    ("x3", ("x2", "out")),
)


def activation_bytes(space: SearchSpace, batch: SubnetBatch, images: int = 1, precision: str = "fp32") -> NDArray[np.float64]:
    """Models the peak memory of the activations of each subnet, in bytes, shape ``(len(batch),)``.

    Args:
        space: the search space.
        batch: the subnets.
        images: number of images in the graph's batch.
        precision: precision of the graph. The activations of an int8 graph are in fp16, because only weights and products are
            quantised.

    Raises:
        ConfigError: ``images`` is below 1, or the precision is unknown.
    """
    if images < 1:
        raise ConfigError(f"the batch of the activation memory is {images}; it must be 1 or more")
    _known(precision)
    dim, heads = batch.embed_dim[:, None], batch.num_heads
    hidden = (dim * batch.mlp_ratio).astype(np.int64)
    tokens, grid, rows = space.num_tokens, space.grid_size, images * space.num_tokens
    per_head, width = rows * heads, rows * heads * space.head_dim
    distances = 2 * (2 * grid - 1) + 1
    lines = 2 * grid
    stream = rows * dim
    sizes: _Sizes = dict.fromkeys(("x", "normed", "projected", "x2", "normed2", "out", "x3"), stream)
    sizes |= dict.fromkeys(("q", "v", "k", "attended", "relative", "summed", "rows"), width)
    sizes |= {"far": per_head * distances, "terms": per_head * lines, "masses": per_head * (lines + 1)}
    sizes |= {"distances": per_head * distances, "keys": width + per_head * lines, "queries": width + per_head * lines}
    sizes |= dict.fromkeys(("logits", "attention"), per_head * tokens) | dict.fromkeys(("hidden", "gelu"), rows * hidden)
    steps = (*(_PLAIN if space.max_relative_position is None else _RELATIVE), *_REST)
    blocks = np.where(heads > 0, _peak(steps, sizes, "x3"), 0).max(axis=1)
    patches = images * grid**2 * batch.embed_dim
    stem = images * space.in_chans * space.image_size**2 + patches
    # The patches, their transpose with positions added, and then the tokens with cls and registers.
    stem = np.maximum(stem, 2 * patches + images * space.prefix_tokens * batch.embed_dim)
    peak = np.maximum(blocks, stem) * max(BYTES[precision], 2)
    return np.asarray(_FIXED_BYTES + _PER_PEAK * peak, np.float64)


def weight_bytes(space: SearchSpace, batch: SubnetBatch, precision: str = "fp32") -> NDArray[np.float64]:
    """Models the size of each subnet's parameters at a precision, in bytes, shape ``(len(batch),)``.

    The overhead of a file is not included.

    Raises:
        ConfigError: the precision is unknown.
    """
    _known(precision)
    return np.asarray(count_costs_batch(space, batch)[0] * BYTES[precision], np.float64)


def _known(precision: str) -> None:
    if precision not in BYTES:
        raise ConfigError(f"precision is {precision!r}; legal are {choices(BYTES)}")


def _peak(steps: _Steps, sizes: _Sizes, result: str) -> Any:
    """Returns the largest sum of live tensors over the steps. A tensor is alive from its own step to the last one that reads it."""
    last = {name: index for index, (_, reads) in enumerate(steps) for name in reads} | {result: len(steps)}
    alive, peak = {"x"}, sizes["x"] * 0
    for index, (written, _) in enumerate(steps):
        alive.add(written)
        peak = np.maximum(peak, sum(sizes[name] for name in sorted(alive)))
        alive = {name for name in alive if last.get(name, -1) > index}
    return peak
