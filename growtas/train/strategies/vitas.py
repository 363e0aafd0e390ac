"""Leading and trailing slices: ViTAS (Su et al., ECCV 2022, Section 3), with the pairs of BCNet (Su et al., CVPR 2021, Section 3).

If all subnets use leading slices, the first channels are trained in each step and the last ones rarely. Here each step runs its
subnet on the leading and on the trailing slices of all weights, so that all channels are trained equally often.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from growtas.costs import block_macs, stem_and_head_macs
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy


class Vitas(Strategy):
    """Draws one subnet per step, runs it on leading and on trailing slices, and adds the logits.

    As in the paper, each block is left out with a probability that makes the mean MACs of the drawn subnets the middle of the
    space's range. The depth is then limited to the choices of the space. Width, heads and MLP ratios are uniform.

    Differences from the paper: all widths share the class token and the positions, of which a supernet has one set. The exported
    subnet has the leading slices alone, while the paper trains its result again from random weights. In spaces with a relative
    position the bias of queries, keys and values has no trailing slices of its own, because its layout is AutoFormer's.

    Attributes:
        depth_shares: probabilities of the depths of the space.
    """

    name: ClassVar[str] = "vitas"

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        self.depth_shares = depth_shares(space)

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        rng = self.rng(step)
        depth = int(rng.choice(self.space.depth, p=self.depth_shares))
        return (Pass(sample(self.space.replace(depth=(depth,)), rng), both_ends=True),)


def depth_shares(space: SearchSpace) -> NDArray[np.float64]:
    """Returns the probabilities of the depths with which the mean MACs are the middle of the space's range, shape ``(depths,)``.

    If even the smallest or the largest depth misses the middle, that depth has nearly all of the probability.
    """
    stems = [stem_and_head_macs(space, dim) for dim in space.embed_dim]
    blocks = [
        block_macs(space, dim, heads, int(dim * ratio))
        for dim in space.embed_dim
        for heads in space.num_heads
        for ratio in space.mlp_ratio
    ]
    macs = np.mean(stems) + np.mean(blocks) * np.array(space.depth)
    ends = [
        stems[end] + space.depth[end] * block_macs(space, dim, space.num_heads[end], int(dim * space.mlp_ratio[end]))
        for end, dim in ((0, space.embed_dim[0]), (-1, space.embed_dim[-1]))
    ]
    most = space.depth[-1]
    ways = np.array([math.comb(most, depth) for depth in space.depth], float)

    def shares(kept: float) -> NDArray[np.float64]:
        """The probabilities of the depths if each of the blocks is kept with a probability."""
        weights = ways * kept ** np.array(space.depth) * (1 - kept) ** (most - np.array(space.depth))
        return np.asarray(weights / weights.sum())

    low, high = 1e-3, 1 - 1e-3
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if shares(middle) @ macs < sum(ends) / 2 else (low, middle)
    return shares((low + high) / 2)
