"""Growth: the nested subspaces A_1 c ... c A_K = A, and which of them is open at an epoch (the paper, Section 3.2).

Subspaces are bounded by caps on ``embed_dim`` and ``mlp_ratio``, which mostly determine a subnet's size. By default A_1 holds
the smallest ``embed_dim`` with every ``mlp_ratio``: only so do all subnets of AutoFormer-T below 6 M parameters fall into A_1,
as the paper says they do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from growtas.errors import ConfigError, choices
from growtas.space import SearchSpace
from growtas.subnet import Subnet


@dataclass(frozen=True, slots=True)
class Subspace:
    """All subnets of a space with ``embed_dim`` and every ``mlp_ratio`` at or below a cap."""

    max_embed_dim: float = math.inf
    max_mlp_ratio: float = math.inf

    def holds(self, subnet: Subnet) -> bool:
        """Whether the subnet lies within the caps."""
        return subnet.embed_dim <= self.max_embed_dim and max(subnet.mlp_ratio) <= self.max_mlp_ratio

    def within(self, other: Subspace) -> bool:
        """Whether every subnet of this subspace is one of ``other``'s."""
        return self.max_embed_dim <= other.max_embed_dim and self.max_mlp_ratio <= other.max_mlp_ratio

    def to_dict(self) -> dict[str, float | None]:
        """The JSON form: the caps, None for no cap."""
        return {key: None if math.isinf(cap) else cap for key, cap in dataclasses.asdict(self).items()}

    def restrict(self, space: SearchSpace) -> SearchSpace:
        """The space with only the choices below the caps; the supernet's bounds stay.

        Raises:
            ConfigError: no choice is left.
        """
        dims = tuple(dim for dim in space.embed_dim if dim <= self.max_embed_dim)
        ratios = tuple(ratio for ratio in space.mlp_ratio if ratio <= self.max_mlp_ratio)
        if not dims or not ratios:
            field, legal = ("embed_dim", space.embed_dim) if not dims else ("mlp_ratio", space.mlp_ratio)
            cap = self.max_embed_dim if not dims else self.max_mlp_ratio
            raise ConfigError(f"a subspace capped at {field} {cap:g} is empty; {field} of {space.name} is {choices(legal)}")
        return space.replace(embed_dim=dims, mlp_ratio=ratios)


@dataclass(frozen=True)
class GrowthSchedule:
    """Which subspace is sampled when: P(t) = U(A_k) for T_{k-1} <= t < T_k (the paper, Eq. 4).

    Attributes:
        subspaces: A_1 to A_K, each inside the next.
        transitions: T_1 to T_{K-1}, in epochs, ascending; T_0 is zero and T_K the end of training.
    """

    subspaces: tuple[Subspace, ...]
    transitions: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.subspaces or len(self.transitions) != len(self.subspaces) - 1:
            raise ConfigError(
                f"transitions has {len(self.transitions)} epochs ({_epochs(self.transitions)}); a training of "
                f"{len(self.subspaces)} stages has {max(len(self.subspaces) - 1, 0)}"
            )
        if any(b <= a for a, b in zip((0.0, *self.transitions), self.transitions, strict=False)):
            raise ConfigError(f"transitions ({_epochs(self.transitions)}) must ascend from above zero")
        for inner, outer in zip(self.subspaces, self.subspaces[1:], strict=False):
            if not inner.within(outer):
                raise ConfigError(f"subspaces must be nested, but {inner} is not inside {outer}")

    def stage(self, epoch: float) -> int:
        """Index (from 0) of the open subspace at an epoch; fractions of an epoch are legal."""
        return sum(epoch >= transition for transition in self.transitions)


def default_subspaces(space: SearchSpace, stages: int = 2) -> tuple[Subspace, ...]:
    """A_1 to A_K from caps on ``embed_dim`` alone, spread over its choices; A_K is the whole space.

    Raises:
        ConfigError: more stages than ``embed_dim`` has choices.
    """
    if not 1 <= stages <= len(space.embed_dim):
        raise ConfigError(
            f"stages is {stages}; {space.name} has {len(space.embed_dim)} choices of embed_dim, so legal are "
            f"1 to {len(space.embed_dim)} (name the caps to have more)"
        )
    last = len(space.embed_dim) - 1
    picks = [round(k * last / (stages - 1)) for k in range(stages - 1)] if stages > 1 else []
    return (*(Subspace(max_embed_dim=space.embed_dim[pick]) for pick in picks), Subspace())


def growth_schedule(
    space: SearchSpace,
    epochs: float,
    *,
    transitions: Sequence[float] | None = None,
    subspaces: Sequence[Subspace] | None = None,
    stages: int = 2,
) -> GrowthSchedule:
    """The paper's schedule: by default two subspaces and T_1 at half of the epochs.

    Raises:
        ConfigError: subspaces that are empty or not nested, or transitions outside the training.
    """
    spaces = tuple(subspaces) if subspaces is not None else default_subspaces(space, stages)
    for subspace in spaces:
        subspace.restrict(space)
    steps = len(spaces)
    times = tuple(transitions) if transitions is not None else tuple(epochs * k / steps for k in range(1, steps))
    if any(not 0 < time < epochs for time in times):
        raise ConfigError(f"transitions ({_epochs(times)}) must lie inside the training of {epochs:g} epochs")
    return GrowthSchedule(spaces, times)


def _epochs(times: Sequence[float]) -> str:
    return ", ".join(f"{time:g}" for time in times) or "none"
