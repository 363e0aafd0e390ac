"""A matplotlib figure without a window system, for pictures of trainings and searches."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from growtas.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "watch", "drawing a picture") from None
    # A canvas of its own rather than pyplot: nothing global, and no window system is looked for.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
