"""Trains the same subnet in every step: fine-tuning the subnet of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy


@dataclass(frozen=True)
class FixedOptions:
    """Options of ``finetune``.

    Attributes:
        subnet: the subnet to train, in its JSON form; null for the largest subnet of the space.
    """

    subnet: Mapping[str, Any] | None = None


class Fixed(Strategy):
    """Updates the same subnet in every step; only this subnet has meaningful weights."""

    name: ClassVar[str] = "finetune"
    Options: ClassVar[type[Any]] = FixedOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        given = self.options.subnet
        self.subnet: Subnet = space.largest if given is None else Subnet.from_dict(given, source="method_options.subnet")
        space.validate(self.subnet)

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        return (Pass(self.subnet),)

    def followed(self) -> dict[str, Subnet]:
        """Returns the trained subnet under each of the names ``smallest``, ``middle`` and ``largest`` that tables expect."""
        return dict.fromkeys(("smallest", "middle", "largest"), self.subnet)
