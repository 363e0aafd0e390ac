"""A supernet's layers for evaluation, each for all subnets at once that give it the same tokens.

Subnets that differ only in a layer's heads, or hidden channels, share more than the tokens they begin with. The smaller one's
heads are the leading heads of the larger one, and compute the same: in AutoFormer's layout q's weights and biases are the same
entries, k's biases differ but add the same number to a query's logits with all keys, which softmax ignores, and v's biases only
add a constant to the output, since attention weights sum up to one. Likewise the hidden channels. So both halves of a block are
sums over *segments*, from one choice to the next larger one, and a subnet's output is a partial sum.

Every segment is computed by itself and added to the sum of those before it, whoever asks for it: a subnet's numbers do not depend
on its siblings, and a sibling that is already there is where its larger ones go on. They are those of
:class:`growtas.nn.supernet.Supernet` up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from growtas.nn.evaluation import kernels
from growtas.nn.evaluation.attention import HeadsAttention
from growtas.nn.evaluation.weights import Cuts
from growtas.nn.fused.common import LAYER_NORM_EPS, fusable, leading, normalise
from growtas.nn.supernet import Supernet

Begun = tuple[int, Tensor]
"""A choice, and what a layer returned for it."""


class SiblingLayers:
    """The layers of a supernet whose weights don't change any more; for all threads.

    Args:
        supernet: in eval mode.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet, self._space = supernet, supernet.space
        self._cuts = Cuts(supernet)
        self._attend = HeadsAttention(self._cuts, supernet.space.head_dim)

    @property
    def head_choices(self) -> Sequence[int]:
        """The space's numbers of heads, ascending."""
        return sorted(set(self._space.num_heads))

    def hidden_choices(self, dim: int) -> Sequence[int]:
        """The space's numbers of hidden channels at a width, ascending."""
        return sorted({int(dim * ratio) for ratio in self._space.mlp_ratio})

    def attention(
        self, x: Tensor, index: int, num_heads: Sequence[int], into: Sequence[Tensor | None] = (), begun: Begun | None = None
    ) -> list[Tensor]:
        """:meth:`growtas.nn.supernet.Supernet.attention_layer` of the same tokens for several numbers of heads.

        Args:
            x: ``(batch, N, embed_dim)``.
            index: the block.
            num_heads: any; only the space's own choices share work.
            into: tensors like ``x`` to write the results to; None for a new one.
            begun: fewer heads than all of ``num_heads``, and what this returned for them.

        Returns:
            A tensor like ``x`` each, in the order of ``num_heads``.
        """
        block, choices = self._cuts.block(index), self.head_choices
        into = into or [None] * len(num_heads)
        if not block.attn.fusable(x, block.norm1) or not set(num_heads) <= set(choices):
            return _placed([self._supernet.attention_layer(x, index, heads) for heads in num_heads], into)
        batch, tokens, dim = x.shape
        normed = _normalised(x.reshape(-1, dim), block.norm1).view(batch, tokens, dim)

        def add(into: Tensor, before: Tensor, start: int, stop: int) -> None:
            cut = self._cuts.attention(index, dim, start, stop)
            torch.add(before, cut.constant, out=into)
            into.addmm_(self._attend(normed, index, stop - start, cut), cut.projection)

        return _sums(x, choices, num_heads, into, begun, add)

    def mlp(
        self, x: Tensor, index: int, hidden_dims: Sequence[int], into: Sequence[Tensor | None] = (), begun: Begun | None = None
    ) -> list[Tensor]:
        """:meth:`growtas.nn.supernet.Supernet.mlp_layer` of the same tokens for several numbers of hidden channels.

        Args:
            x: ``(batch, N, embed_dim)``.
            index: the block.
            hidden_dims: any; only those of the space's own choices share work.
            into: tensors like ``x`` to write the results to; None for a new one.
            begun: fewer hidden channels than all of ``hidden_dims``, and what this returned for them.

        Returns:
            A tensor like ``x`` each, in the order of ``hidden_dims``.
        """
        block, dim = self._cuts.block(index), x.shape[-1]
        into = into or [None] * len(hidden_dims)
        choices = self.hidden_choices(dim)
        layers = (block.norm2, block.fc1, block.fc2)
        if not fusable(x, layers) or not set(hidden_dims) <= set(choices):
            return _placed([self._supernet.mlp_layer(x, index, hidden) for hidden in hidden_dims], into)
        normed = _normalised(x.reshape(-1, dim), block.norm2)
        first, second = leading(block.fc1.weight, block.fc1.out_features, dim), leading(block.fc2.weight, dim)

        def add(into: Tensor, before: Tensor, start: int, stop: int) -> None:
            if start:
                into.copy_(before)
            else:
                torch.add(before, block.fc2.bias[:dim], out=into)
            into.addmm_(_hidden(normed, first[start:stop], block.fc1.bias[start:stop]), second[:, start:stop].t())

        return _sums(x, choices, hidden_dims, into, begun, add)


def _sums(
    x: Tensor,
    choices: Sequence[int],
    wanted: Sequence[int],
    into: Sequence[Tensor | None],
    begun: Begun | None,
    add: Callable[[Tensor, Tensor, int, int], None],
) -> list[Tensor]:
    """The partial sums at ``wanted``: from ``x``, or from what has begun, segment by segment.

    Args:
        add: writes to its first argument the second one plus the segment from the third to the fourth one; both are
            ``(batch * N, embed_dim)``, and may be the same.
    """
    places = dict(zip(wanted, into, strict=True))
    first, before = begun if begun else (0, x)
    found: dict[int, Tensor] = {}
    before, spare = before.reshape(-1, x.shape[-1]), None
    for start, stop in itertools.pairwise([first, *(choice for choice in choices if first < choice <= max(wanted))]):
        if stop in places:
            place = places[stop]
            found[stop] = torch.empty_like(x) if place is None else place
            rows = found[stop].view(before.shape)
        else:
            rows = spare = torch.empty_like(before) if spare is None else spare
        add(rows, before, start, stop)
        before = rows
    return [found[choice] for choice in wanted]


def _normalised(rows: Tensor, norm: nn.LayerNorm) -> Tensor:
    if kernels.usable(rows.dtype):
        return kernels.layer_norm(rows, norm.weight, norm.bias, LAYER_NORM_EPS)
    return normalise(rows, norm.weight, norm.bias)[0]


def _hidden(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if kernels.usable(rows.dtype):
        return kernels.bias_gelu_(torch.mm(rows, weight.t()), bias)
    hidden = torch.addmm(bias, rows, weight.t())
    return torch.ops.aten.gelu.out(hidden, out=hidden)


def _placed(results: Sequence[Tensor], into: Sequence[Tensor | None]) -> list[Tensor]:
    return [result if place is None else place.copy_(result) for result, place in zip(results, into, strict=True)]
