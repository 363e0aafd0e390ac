"""A supernet's layers for evaluation: one call computes a layer for all subnets that give it the same tokens.

Subnets that differ only in a layer's heads, or in its hidden channels, share more than the layer's input. The smaller one's heads
are the leading heads of the larger one, and compute the same: in AutoFormer's layout q's weights and biases are the same entries,
k's biases differ but add the same number to a query's logits with all keys, which softmax ignores, and v's biases only add a
constant to the output, since attention weights sum up to one. The same holds for the hidden channels. So both halves of a block
are sums over *segments*, from one choice to the next larger one, and a subnet's output is a partial sum.

Every segment is computed by itself and added to the sum of those before it. So a subnet's numbers do not depend on the other
subnets of a call, and an output that is already known is where the larger ones go on. The numbers are those of
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
from growtas.nn.fused.common import LAYER_NORM_EPS, fusable, leading, normalise
from growtas.nn.supernet import Supernet

PartialSum = tuple[int, Tensor]
"""A choice of heads or hidden channels, and what a layer returned for it."""


class EvaluationLayers:
    """The layers of a supernet in eval mode whose weights don't change any more; all threads may share them."""

    def __init__(self, supernet: Supernet) -> None:
        self._supernet, self._space = supernet, supernet.space
        self._weights = EvaluationWeights(supernet)
        self._attend = SegmentAttention(self._weights, supernet.space.head_dim)

    @property
    def head_choices(self) -> Sequence[int]:
        """The space's numbers of heads, ascending."""
        return sorted(set(self._space.num_heads))

    def hidden_choices(self, dim: int) -> Sequence[int]:
        """The space's numbers of hidden channels at a width, ascending."""
        return sorted({int(dim * ratio) for ratio in self._space.mlp_ratio})

    def attention(
        self,
        x: Tensor,
        index: int,
        num_heads: Sequence[int],
        into: Sequence[Tensor | None] = (),
        smaller: PartialSum | None = None,
    ) -> list[Tensor]:
        """:meth:`growtas.nn.supernet.Supernet.attention_layer` of the same tokens for several numbers of heads.

        Args:
            x: ``(batch, N, embed_dim)``.
            index: the block.
            num_heads: any; only the space's choices share work.
            into: tensors like ``x`` to write the results to; None for a new one.
            smaller: fewer heads than all of ``num_heads``, and what this method returned for them.

        Returns:
            For each of ``num_heads``, in their order, a tensor like ``x``.
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
        """:meth:`growtas.nn.supernet.Supernet.mlp_layer` of the same tokens for several numbers of hidden channels.

        Arguments and result as for :meth:`attention`, with hidden channels for heads.
        """
        block, dim = self._supernet.block(index), x.shape[-1]
        into = into or [None] * len(hidden_dims)
        choices = self.hidden_choices(dim)
        layers = (block.norm2, block.fc1, block.fc2)
        if not fusable(x, layers) or not set(hidden_dims) <= set(choices):
            return _written([self._supernet.mlp_layer(x, index, hidden) for hidden in hidden_dims], into)
        normed = _normalised(x.reshape(-1, dim), block.norm2)
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
    """The partial sums at ``genes``, segment by segment, starting from ``x`` or from a known smaller sum.

    ``add`` writes to its first argument the second one plus the segment from the third to the fourth one; both are
    ``(batch * N, embed_dim)``, and may be the same.
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


def _normalised(rows: Tensor, norm: nn.LayerNorm) -> Tensor:
    if kernels.usable(rows.dtype):
        return kernels.layer_norm(rows, norm.weight, norm.bias, LAYER_NORM_EPS)
    return normalise(rows, norm.weight, norm.bias)[0]


def _hidden(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if kernels.usable(rows.dtype):
        return kernels.bias_gelu_(torch.mm(rows, weight.t()), bias)
    hidden = torch.addmm(bias, rows, weight.t())
    return torch.ops.aten.gelu.out(hidden, out=hidden)


def _written(results: Sequence[Tensor], into: Sequence[Tensor | None]) -> list[Tensor]:
    return [result if target is None else target.copy_(result) for result, target in zip(results, into, strict=True)]
