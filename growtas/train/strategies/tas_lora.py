"""Low-rank experts on a trained supernet: TAS-LoRA (CVPR 2026, Section 3); see :mod:`growtas.nn.experts`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from growtas.fields import checked, real, whole
from growtas.nn.experts import Experts
from growtas.nn.supernet import Supernet
from growtas.train.strategies.base import Strategy


@dataclass(frozen=True, kw_only=True)
class TasLoraOptions:
    """Options of ``tas-lora``.

    Attributes:
        rank: rank of the experts.
        start: share of the training (0 to 1) in which the router does not learn.
        router_lr: learning rate of the router after that; it falls to zero along a cosine.
    """

    rank: int = checked(8, whole(1, 1024))
    start: float = checked(0.1, real(0, 1))
    router_lr: float = checked(0.1, real(0, 1000))


class TasLora(Strategy):
    """Draws one subnet per step uniformly and trains the experts; all weights of the supernet itself are frozen.

    The recipe's learning rate is that of the experts. The router learns by plain gradient descent.
    """

    name: ClassVar[str] = "tas-lora"
    Options: ClassVar[type[TasLoraOptions]] = TasLoraOptions

    def adapt(self, supernet: Supernet) -> None:
        supernet.requires_grad_(False)
        supernet.experts = Experts(self.space, self.options.rank)

    def router_rate(self, epoch: float) -> float:
        first = self.options.start * self.recipe.epochs
        if epoch < first:
            return 0.0
        passed: float = (epoch - first) / (self.recipe.epochs - first)
        return float(self.options.router_lr * (1 + math.cos(math.pi * passed)) / 2)
