"""Probabilities that shift between sizes: ShiftNAS (Zhang et al., ICCV 2023, Section 3).

Uniform sampling trains subnets of medium size most, because most subnets have medium size. Here the training learns how often to
draw subnets of each size: more often where the training still lowers the loss on held-out images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from growtas.costs import count_costs
from growtas.fields import checked, real, whole
from growtas.sampling import sample
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy, Tools

_LEAST_SPREAD = 1e-9
"""Gains whose standard deviation is smaller than this are equal; their differences are rounding errors."""


@dataclass(frozen=True, kw_only=True)
class ShiftNasOptions:
    """Options of ``shiftnas``.

    Attributes:
        bins: number of equal intervals into which the space's range of MACs is divided.
        start: share of the training (0 to 1) in which subnets are drawn uniformly from the space.
        every: number of steps between two measurements of all intervals.
        samples: number of subnets of each interval that are measured before and after these steps.
        images: number of images of the search split on which each of them is measured; at most the recipe's ``monitor_images``.
        lr: change of an interval's logit when its loss falls by one standard deviation more than the mean over the intervals.
        least: probability of each interval at least, as a share of an equal probability.
    """

    bins: int = checked(6, whole(2, 1000))
    start: float = checked(0.1, real(0, 1))
    every: int = checked(100, whole(1, 10_000_000))
    samples: int = checked(2, whole(1, 1000))
    images: int = checked(500, whole(1, 100_000_000))
    lr: float = checked(0.1, real(0, 100, above=True))
    least: float = checked(0.2, real(0, 1))


class ShiftNas(Strategy):
    """Draws an interval of MACs with learned probabilities, and then a subnet of this interval.

    Some subnets of each interval are measured before and after every so many steps. The logit of an interval rises with the fall of
    its subnets' loss, compared with the other intervals.

    Differences from the paper: the probabilities follow this rule instead of a gradient through a Gumbel softmax. The paper's
    generator of architectures is left out, because :meth:`subnet` can make a subnet of each interval directly.

    Attributes:
        logits: logits of the intervals, from small to large subnets, shape ``(bins,)``.
        measured_at: the step before which subnets were measured last; -1 before the first time.
    """

    name: ClassVar[str] = "shiftnas"
    Options: ClassVar[type[ShiftNasOptions]] = ShiftNasOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        low, high = (count_costs(space, subnet).macs for subnet in (space.smallest, space.largest))
        self.edges: NDArray[np.float64] = np.linspace(low, high, self.options.bins + 1)
        self.logits: NDArray[np.float64] = np.zeros(self.options.bins)
        # Each width and depth with the fewest and the most MACs of its subnets.
        self._shapes = [
            (dim, depth, *(self._macs(dim, [end] * depth, [end] * depth) for end in (0, -1)))
            for dim in space.embed_dim
            for depth in space.depth
        ]
        # The subnets that were measured last, interval by interval, with their losses.
        self._measured: list[tuple[Subnet, float]] = []
        self.measured_at = -1

    def probabilities(self) -> NDArray[np.float64]:
        """Returns the probability of each interval, from small to large subnets, shape ``(bins,)``."""
        shares = np.exp(self.logits - self.logits.max())
        return np.asarray(self.options.least / len(shares) + (1 - self.options.least) * shares / shares.sum())

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        rng = self.rng(step)
        if epoch < self.options.start * self.recipe.epochs:
            return (Pass(sample(self.space, rng)),)
        return (Pass(self.subnet(int(rng.choice(self.options.bins, p=self.probabilities())), rng)),)

    def before_step(self, step: int, epoch: float, tools: Tools) -> None:
        # A training that was stopped after this and before the step calls it again.
        if step % self.options.every or step == self.measured_at or epoch < self.options.start * self.recipe.epochs:
            return
        # A separate random stream; otherwise the measurement would draw the same numbers as the step.
        rng = np.random.default_rng((self.recipe.seed, step, 1))
        new = [self.subnet(number, rng) for number in range(self.options.bins) for _ in range(self.options.samples)]
        losses = tools.losses([*(subnet for subnet, _ in self._measured), *new], self.options.images)
        self.measured_at = step
        if self._measured:
            self.learn(np.array([before - now for (_, before), now in zip(self._measured, losses, strict=False)]))
        self._measured = list(zip(new, losses[len(self._measured) :], strict=True))

    def learn(self, gains: NDArray[np.float64]) -> None:
        """Moves the logits by the gains of the measured subnets, ``(bins * samples,)``. A gain that is not finite counts as 0."""
        means = np.nan_to_num(gains, nan=0.0, posinf=0.0, neginf=0.0).reshape(self.options.bins, -1).mean(axis=1)
        spread = means.std()
        if spread > _LEAST_SPREAD:
            self.logits += self.options.lr * np.clip((means - means.mean()) / spread, -3, 3)

    def subnet(self, number: int, rng: Generator) -> Subnet:
        """Draws a subnet of an interval of MACs.

        Width and depth are uniform among those that have subnets in the interval. Heads and MLP ratios are uniform at first. Then
        random ones of them move by one choice towards the interval, until the subnet is inside.
        """
        low, high = self.edges[number], self.edges[number + 1]
        gaps = [max(least - high, low - most, 0) for _, _, least, most in self._shapes]
        nearest = [shape[:2] for shape, gap in zip(self._shapes, gaps, strict=True) if gap == min(gaps)]
        dim, depth = nearest[int(rng.integers(len(nearest)))]
        sizes = (len(self.space.num_heads), len(self.space.mlp_ratio))
        picks = [rng.integers(size, size=depth).tolist() for size in sizes]
        for _ in range(depth * sum(sizes)):
            macs = self._macs(dim, *picks)
            move = int(macs < low) - int(macs > high)
            legal = [(kind, block) for kind in (0, 1) for block in range(depth) if 0 <= picks[kind][block] + move < sizes[kind]]
            if not move or not legal:
                break
            kind, block = legal[int(rng.integers(len(legal)))]
            picks[kind][block] += move
        return self._subnet(dim, *picks)

    def _subnet(self, dim: int, heads: Sequence[int], ratios: Sequence[int]) -> Subnet:
        """Returns the subnet with these indices of the choices of heads and MLP ratios."""
        return Subnet(
            dim, tuple(self.space.num_heads[index] for index in heads), tuple(self.space.mlp_ratio[index] for index in ratios)
        )

    def _macs(self, dim: int, heads: Sequence[int], ratios: Sequence[int]) -> int:
        return count_costs(self.space, self._subnet(dim, heads, ratios)).macs

    def state(self) -> dict[str, Any]:
        measured = [[subnet.to_dict(), loss] for subnet, loss in self._measured]
        return {"logits": self.logits.tolist(), "measured": measured, "measured_at": self.measured_at}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.logits, self.measured_at = np.array(state["logits"], np.float64), state["measured_at"]
        self._measured = [(Subnet.from_dict(subnet), np.nan if loss is None else loss) for subnet, loss in state["measured"]]
