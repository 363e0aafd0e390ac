"""The layers of a supernet for evaluation: one call computes a layer for all subnets with the same input tokens.

Subnets that differ only in a layer's number of heads, or of hidden channels, share more than the layer's input. The heads of the
smaller one are the leading heads of the larger one and compute the same. In AutoFormer's layout, weights and biases of q are the
same entries. The biases of k differ, but they add the same number to all logits of a query, which softmax ignores. The biases of v
only add a constant to the output, because attention weights sum to one. Hidden channels have the same property. So both halves of a
block are sums over *segments*, from one choice to the next larger one, and the output of a subnet is a partial sum.

Each segment is computed separately and added to the sum of the segments before it. So the result of a subnet does not depend on the
other subnets of a call, and a known output is the starting point for larger subnets. The results equal those of
:class:`growtas.nn.supernet.Supernet` up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from growtas.nn.evaluation import kernels
from growtas.nn.evaluation.attention import SegmentAttention
from growtas.nn.evaluation.weights import EvaluationWeights
from growtas.nn.fused.common import Norm, fusable, leading, normalise
from growtas.nn.supernet import Supernet

PartialSum = tuple[int, Tensor]
"""A number of heads or hidden channels, and the output of a layer for it."""


class EvaluationLayers:
    """The layers of a supernet in eval mode, whose weights must not change. Threads may share them."""

    def __init__(self, supernet: Supernet) -> None:
        self._supernet, self._space = supernet, supernet.space
        self._weights = EvaluationWeights(supernet)
        self._attend = SegmentAttention(self._weights, supernet.space.head_dim)

    @property
    def head_choices(self) -> Sequence[int]:
        """Numbers of heads of the space, ascending."""
        return sorted(set(self._space.num_heads))

    def hidden_choices(self, dim: int) -> Sequence[int]:
        """Returns the numbers of hidden channels of the space at a width, ascending."""
        return sorted({int(dim * ratio) for ratio in self._space.mlp_ratio})

    def attention(
        self,
        x: Tensor,
        index: int,
        num_heads: Sequence[int],
        into: Sequence[Tensor | None] = (),
        smaller: PartialSum | None = None,
    ) -> list[Tensor]:
        """Computes :meth:`growtas.nn.supernet.Supernet.attention_layer` of the same tokens for several numbers of heads.

        Args:
            x: tokens, ``(batch, N, embed_dim)``.
            index: index of the block.
            num_heads: the numbers of heads; only choices of the space share work.
            into: tensors like ``x`` for the results; None for a new tensor.
            smaller: a number of heads below all of ``num_heads``, and the output of this method for it.

        Returns:
            A tensor like ``x`` for each of ``num_heads``, in their order.
        """
        block, choices = self._supernet.block(index), self.head_choices
        into = into or [None] * len(num_heads)
        if not block.attn.fusable(x, block.norm1) or not set(num_heads) <= set(choices):
            return _written([self._supernet.attention_layer(x, index, heads) for heads in num_heads], into)
        batch, tokens, dim = x.shape
        normed = _normalised(x.reshape(-1, dim), block.norm1).view(batch, tokens, dim)

        def add(out: Tensor, before: Tensor, start: int, stop: int) -> None:
            segment = self._weights.segment(index, dim, start, stop)
            torch.add(before, segment.constant, out=out)
            out.addmm_(self._attend(normed, index, stop - start, segment), segment.projection)

        return _partial_sums(x, choices, num_heads, into, smaller, add)

    def mlp(
        self,
        x: Tensor,
        index: int,
        hidden_dims: Sequence[int],
        into: Sequence[Tensor | None] = (),
        smaller: PartialSum | None = None,
    ) -> list[Tensor]:
        """Computes :meth:`growtas.nn.supernet.Supernet.mlp_layer` of the same tokens for several numbers of hidden channels.

        Arguments and result are as for :meth:`attention`, with hidden channels instead of heads.
        """
        block, dim = self._supernet.block(index), x.shape[-1]
        into = into or [None] * len(hidden_dims)
        choices = self.hidden_choices(dim)
        layers = (block.norm2, block.fc1, block.fc2)
        if not fusable(x, layers) or not set(hidden_dims) <= set(choices):
            return _written([self._supernet.mlp_layer(x, index, hidden) for hidden in hidden_dims], into)
        normed = _normalised(x.reshape(-1, dim), self._supernet.scaled(block.norm2, dim))
        first, second = leading(block.fc1.weight, block.fc1.out_features, dim), leading(block.fc2.weight, dim)

        def add(out: Tensor, before: Tensor, start: int, stop: int) -> None:
            if start:
                out.copy_(before)
            else:
                torch.add(before, block.fc2.bias[:dim], out=out)
            out.addmm_(_hidden(normed, first[start:stop], block.fc1.bias[start:stop]), second[:, start:stop].t())

        return _partial_sums(x, choices, hidden_dims, into, smaller, add)


def _partial_sums(
    x: Tensor,
    choices: Sequence[int],
    genes: Sequence[int],
    into: Sequence[Tensor | None],
    smaller: PartialSum | None,
    add: Callable[[Tensor, Tensor, int, int], None],
) -> list[Tensor]:
    """Computes the partial sums at ``genes``, segment by segment, starting from ``x`` or from a known smaller sum.

    ``add(out, before, start, stop)`` writes ``before`` plus the segment from ``start`` to ``stop`` to ``out``. Both are
    ``(batch * N, embed_dim)`` and may be the same tensor.
    """
    targets = dict(zip(genes, into, strict=True))
    first, before = smaller or (0, x)
    sums: dict[int, Tensor] = {}
    before, spare = before.reshape(-1, x.shape[-1]), None
    for start, stop in itertools.pairwise([first, *(choice for choice in choices if first < choice <= max(genes))]):
        if stop in targets:
            target = targets[stop]
            sums[stop] = torch.empty_like(x) if target is None else target
            rows = sums[stop].view(before.shape)
        else:
            rows = spare = torch.empty_like(before) if spare is None else spare
        add(rows, before, start, stop)
        before = rows
    return [sums[gene] for gene in genes]


def _normalised(rows: Tensor, norm: nn.LayerNorm | Norm) -> Tensor:
    if kernels.usable(rows.dtype):
        return kernels.layer_norm(rows, norm.weight, norm.bias, norm.eps)
    return normalise(rows, norm.weight, norm.bias, norm.eps)[0]


def _hidden(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if kernels.usable(rows.dtype):
        return kernels.bias_gelu_(torch.mm(rows, weight.t()), bias)
    hidden = torch.addmm(bias, rows, weight.t())
    return torch.ops.aten.gelu.out(hidden, out=hidden)


def _written(results: Sequence[Tensor], into: Sequence[Tensor | None]) -> list[Tensor]:
    return [result if target is None else target.copy_(result) for result, target in zip(results, into, strict=True)]
