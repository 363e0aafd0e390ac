"""Growth: the nested subspaces A_1 c ... c A_K = A, and the subspace that is trained at each epoch (the paper, Section 3.2).

Subspaces are limited by caps on ``embed_dim`` and ``mlp_ratio``, which mostly determine a subnet's size. By default, A_1 has the
smallest ``embed_dim`` with every ``mlp_ratio``: with this choice, all subnets of AutoFormer-T below 6 M parameters are in A_1, as
the paper states.
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
    """All subnets of a space whose ``embed_dim`` and ``mlp_ratio`` are at most the caps.

    Attributes:
        max_embed_dim: cap on ``embed_dim``; infinite for no cap.
        max_mlp_ratio: cap on every block's ``mlp_ratio``; infinite for no cap.
    """

    max_embed_dim: float = math.inf
    max_mlp_ratio: float = math.inf

    def holds(self, subnet: Subnet) -> bool:
        """Returns whether the subnet is within the caps."""
        return subnet.embed_dim <= self.max_embed_dim and max(subnet.mlp_ratio) <= self.max_mlp_ratio

    def within(self, other: Subspace) -> bool:
        """Returns whether ``other`` contains every subnet of this subspace."""
        return self.max_embed_dim <= other.max_embed_dim and self.max_mlp_ratio <= other.max_mlp_ratio

    def to_dict(self) -> dict[str, float | None]:
        """Returns the JSON form: the caps, with None for no cap."""
        return {key: None if math.isinf(cap) else cap for key, cap in dataclasses.asdict(self).items()}

    def restrict(self, space: SearchSpace) -> SearchSpace:
        """Returns the space with only the choices within the caps; the supernet's bounds stay the same.

        Raises:
            ConfigError: No choice is left.
        """
        dims = tuple(dim for dim in space.embed_dim if dim <= self.max_embed_dim)
        ratios = tuple(ratio for ratio in space.mlp_ratio if ratio <= self.max_mlp_ratio)
        if not dims or not ratios:
            field, legal = ("embed_dim", space.embed_dim) if not dims else ("mlp_ratio", space.mlp_ratio)
            cap = self.max_embed_dim if not dims else self.max_mlp_ratio
            raise ConfigError(f"a subspace with {field} up to {cap:g} is empty; {field} of {space.name} is {choices(legal)}")
        return space.replace(embed_dim=dims, mlp_ratio=ratios)


@dataclass(frozen=True)
class GrowthSchedule:
    """The subspace that is sampled at each time: P(t) = U(A_k) for T_{k-1} <= t < T_k (the paper, Eq. 4).

    Attributes:
        subspaces: A_1 to A_K; each contains the one before.
        transitions: T_1 to T_{K-1} in epochs, ascending; T_0 is zero, and T_K is the end of the training.
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
        """Returns the index (from 0) of the sampled subspace at an epoch; fractions of an epoch are legal."""
        return sum(epoch >= transition for transition in self.transitions)


def default_subspaces(space: SearchSpace, stages: int = 2) -> tuple[Subspace, ...]:
    """Returns A_1 to A_K with caps on ``embed_dim`` alone, spread over its choices; A_K is the whole space.

    Raises:
        ConfigError: There are more stages than choices of ``embed_dim``.
    """
    if not 1 <= stages <= len(space.embed_dim):
        raise ConfigError(
            f"stages is {stages}; {space.name} has {len(space.embed_dim)} choices of embed_dim, so legal are "
            f"1 to {len(space.embed_dim)} (set subspaces to have more)"
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
    """Makes the paper's schedule: by default two subspaces, with T_1 at half of the epochs.

    Args:
        space: the search space.
        epochs: length of the training.
        transitions: T_1 to T_{K-1} in epochs; by default evenly spaced.
        subspaces: A_1 to A_K; by default those of :func:`default_subspaces`.
        stages: K, if ``subspaces`` is None.

    Raises:
        ConfigError: Subspaces are empty or not nested, or transitions are outside the training.
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
