"""The methods that the paper compares with, on the paper's settings."""

from __future__ import annotations

from functools import partial

from growtas.train.recipe import Recipe
from growtas.train.recipes.entry import Entry
from growtas.train.recipes.imagenet import PAPER_SPACES, paper, short

BASELINES = ("uniform", "sandwich", "shrinking", "prenas", "focusformer")


def baseline(method: str, space: str, data: str = "imagenet") -> Recipe:
    """``growtas train --recipe uniform-t --data FOLDER``: another method in the place of GrowTAS, all else as in the paper.

    ``uniform`` is AutoFormer's sampling (and SPOS'), ``sandwich`` BigNAS', ``shrinking`` OFA's progressive shrinking, ``prenas``
    trains the subnets that a zero-cost score prefers, ``focusformer`` has a learned sampler. Each takes the same number of
    images; a step of some methods has several passes and costs more, which ``--dry-run`` shows.

    Known results: the paper's Table 2 has AutoFormer (its own report, and repeated by the paper's authors), PreNAS and
    FocusFormer (their own settings, not these). Nobody reports BigNAS' or OFA's method on these spaces there. Not measured with
    growtas.

    Raises:
        ConfigError: not one of AutoFormer's spaces.
    """
    return paper(space, data).override({"name": f"{method}-{short(space)}", "method": method})


_METHODS = {
    "uniform": "AutoFormer (Chen et al., ICCV 2021)",
    "sandwich": "BigNAS (Yu et al., ECCV 2020)",
    "shrinking": "OFA (Cai et al., ICLR 2020)",
    "prenas": "PreNAS (Wang et al., ICML 2023)",
    "focusformer": "FocusFormer (Liu et al., 2022)",
}
_REPORTED = {
    "uniform-t": "74.7 % (AutoFormer's report) and 74.9 % (the paper's repetition) at 5.9 M parameters",
    "uniform-s": "81.7 % (AutoFormer's report) and 81.6 % (the paper's repetition) at 22.9 M parameters",
    "uniform-b": "82.4 % (AutoFormer's report) and 82.4 % (the paper's repetition) at 54.0 M parameters",
    "prenas-t": "77.1 % at 5.9 M parameters, with PreNAS' own settings",
    "prenas-s": "81.8 % at 22.9 M parameters, with PreNAS' own settings",
    "prenas-b": "82.6 % at 54.0 M parameters, with PreNAS' own settings",
    "focusformer-t": "75.1 % at 6.2 M parameters, with FocusFormer's own settings",
    "focusformer-s": "81.6 % at 23.7 M parameters, with FocusFormer's own settings",
    "focusformer-b": "81.9 % at 52.8 M parameters, with FocusFormer's own settings",
}
ENTRIES = tuple(
    Entry(
        name := f"{method}-{short(space)}",
        partial(baseline, method, space),
        f"method: {_METHODS[method]}; settings: the paper, Section 4.1.2",
        f"the paper (Table 2): {_REPORTED[name]}" if name in _REPORTED else "not reported",
    )
    for method in BASELINES
    for space in PAPER_SPACES
)
