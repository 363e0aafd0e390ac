"""One subnet for the whole training: fine-tuning what a search found."""

from __future__ import annotations

from typing import ClassVar

from growtas.subnet import Subnet
from growtas.train.strategies.base import Pass, Strategy


class Fixed(Strategy):
    """The space's largest subnet, or the one that ``set_subnet`` names."""

    name: ClassVar[str] = "finetune"

    def draw(self, step: int, epoch: float) -> tuple[Pass, ...]:
        """See :class:`Strategy`."""
        del step, epoch
        return (Pass(self.subnet),)

    @property
    def subnet(self) -> Subnet:
        """The subnet in training: the recipe's ``subnet``."""
        return Subnet.from_dict(self.recipe.method_options["subnet"]) if self.recipe.method_options else self.space.largest
