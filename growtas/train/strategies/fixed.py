"""Trains the same subnet in every step: fine-tuning the subnet of a search, or training a subnet alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from growtas.fields import Rule, checked
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.monitored_subnets import monitored
from growtas.train.recipe import Recipe
from growtas.train.strategies.base import Pass, Strategy

_SUBNET = Rule(lambda value: isinstance(value, Mapping), "a subnet as a subnet file holds it")
_NAMED = Rule(
    lambda value: isinstance(value, Mapping) or (isinstance(value, str) and bool(value)),
    "smallest, middle, largest, the path of a subnet file, or a subnet as such a file holds it",
)


@dataclass(frozen=True)
class FixedOptions:
    """Options of ``finetune``.

    Attributes:
        subnet: the subnet to train, in its JSON form; null for the largest subnet of the space.
    """

    subnet: Mapping[str, Any] | None = checked(None, _SUBNET.or_null())


@dataclass(frozen=True)
class SingleOptions:
    """Options of ``single``.

    Attributes:
        subnet: the subnet to train: ``smallest``, ``middle`` or ``largest``, the path of a subnet file, or a subnet in its JSON
            form.
    """

    subnet: Mapping[str, Any] | str = checked("largest", _NAMED)


class Fixed(Strategy):
    """Updates the same subnet in every step; only this subnet has meaningful weights."""

    name: ClassVar[str] = "finetune"
    Options: ClassVar[type[Any]] = FixedOptions

    def __init__(self, space: SearchSpace, recipe: Recipe) -> None:
        super().__init__(space, recipe)
        self.subnet = _subnet(space, self.options.subnet)
        space.validate(self.subnet)

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        return (Pass(self.subnet),)

    def followed(self) -> dict[str, Subnet]:
        """Returns the trained subnet under each of the names ``smallest``, ``middle`` and ``largest`` that tables expect."""
        return dict.fromkeys(("smallest", "middle", "largest"), self.subnet)


class Single(Fixed):
    """Trains one subnet alone, from random weights or those of ``init``. No other subnet is trained."""

    name: ClassVar[str] = "single"
    Options: ClassVar[type[Any]] = SingleOptions


def _subnet(space: SearchSpace, given: Mapping[str, Any] | str | None) -> Subnet:
    if isinstance(given, str):
        return monitored(space).get(given) or Subnet.load(given)
    return space.largest if given is None else Subnet.from_dict(given, source="method_options.subnet")
