"""Uniform sampling: AutoFormer (Chen et al., ICCV 2021, Section 3.3) and SPOS (Guo et al., ECCV 2020, Section 3.1)."""

from __future__ import annotations

from typing import ClassVar

from growtas.train.strategies.base import Strategy


class Uniform(Strategy):
    """Draws one subnet per step uniformly from the whole space."""

    name: ClassVar[str] = "uniform"
