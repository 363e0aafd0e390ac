"""The paper's recipes for AutoFormer's spaces on ImageNet: GrowTAS, GrowTAS+, the row with a dagger, and the compared methods.

:data:`ENTRIES` contains the accuracies that the paper reports after the search.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType

from growtas.errors import ConfigError, choices
from growtas.train.recipe import Recipe
from growtas.train.recipes.entry import Entry

PAPER_SPACES = MappingProxyType({"autoformer-t": (250, 2e-5), "autoformer-s": (225, 2e-5), "autoformer-b": (200, 2e-7)})
"""Transition T_1 in epochs (of 500), and the last learning rate."""
_PLUS = {"autoformer-t": (20, 5e-5, 1e-5), "autoformer-s": (20, 5e-5, 1e-5), "autoformer-b": (10, 2e-7, 1e-7)}
"""GrowTAS+: number of epochs, first and last learning rate."""


def short(space: str) -> str:
    """Returns the letter that ends the names of a space's recipes, such as ``t`` for ``autoformer-t``.

    Raises:
        ConfigError: the space is not one of AutoFormer's.
    """
    if space not in PAPER_SPACES:
        raise ConfigError(f"the paper has no recipe for the space {space}, only for {choices(PAPER_SPACES)}")
    return space.rpartition("-")[2]


def paper(space: str, data: str = "imagenet") -> Recipe:
    """``growtas train --recipe growtas-t --data FOLDER``: the paper's training on ImageNet; also ``-s`` and ``-b``.

    Numbers: the paper, Section 4.1.2. Numbers that it does not state (warm-up, weight decay, drop path, random erasing, and the
    strengths of Mixup, CutMix and smoothing) are AutoFormer's. The paper uses 128 images on each of 8 GPUs; this recipe uses 1,024
    images per step over any number of processes. Not measured with growtas.

    Raises:
        ConfigError: the space is not one of AutoFormer's.
    """
    name = f"growtas-{short(space)}"
    transition, min_lr = PAPER_SPACES[space]
    return Recipe(
        name=name,
        space=space,
        data=data,
        epochs=500,
        batch_size=1_024,
        lr=1e-3,
        min_lr=min_lr,
        warmup_epochs=20,
        weight_decay=0.05,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        drop_path=0.1,
        augment="paper",
        auto_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.25,
        repeated_aug=3,
        transitions=(transition,),
        workers=8,
    )


def paper_plus(space: str, data: str = "imagenet", init: str | None = None) -> Recipe:
    """``growtas train --recipe growtas-plus-t --data FOLDER --init RUN``: GrowTAS+ after :func:`paper`; also ``-s`` and ``-b``.

    Numbers: the paper, Section 4.1.2: 20 epochs from 5e-5 to 1e-5 (T, S), 10 epochs from 2e-7 to 1e-7 (B). Everything else is as in
    the first training. The paper calls the first number the initial learning rate, so there is no warm-up. For T the paper reports
    the same accuracy as without GrowTAS+, because those subnets lie in A_1, which stays unchanged. Not measured with growtas.

    Args:
        space: a space of AutoFormer.
        data: as for ``--data``.
        init: the run whose supernet is trained further; by default the one of ``--recipe growtas-t --name growtas-t``.

    Raises:
        ConfigError: the space is not one of AutoFormer's.
    """
    letter = short(space)
    epochs, lr, min_lr = _PLUS[space]
    return paper(space, data).override(
        {
            "name": f"growtas-plus-{letter}",
            "method": "growtas-plus",
            "init": init or f"runs/growtas-{letter}",
            "epochs": epochs,
            "lr": lr,
            "min_lr": min_lr,
            "warmup_epochs": 0,
        }
    )


def paper_dagger() -> Recipe:
    """``growtas train --recipe growtas-t-dagger --data FOLDER``: GrowTAS-T with PreNAS' training settings.

    The paper marks this row with a dagger and says that PreNAS tunes augmentation and weight decay for the tiny space, without
    numbers. The numbers here come from the section "tiny" of PreNAS' published script (github.com/tinyvision/PreNAS,
    ``02_one_shot_training.sh``): RandAugment with three operations of magnitude 10, last learning rate 1e-7. That section names
    files of the base space, so its settings may belong to the base space. Two things differ here: the script mixes image by image
    and erases two rectangles, growtas mixes whole batches and erases one. The script sets no weight decay, so its default of 0.05
    is used, which may not be PreNAS' tuned value. The paper's accuracy should not be expected exactly. Not measured with growtas.
    """
    changes = {"name": "growtas-t-dagger", "auto_augment": "rand-n3-m10-mstd0.5-inc1", "min_lr": 1e-7}
    return paper("autoformer-t").override(changes)


def baseline(method: str, space: str) -> Recipe:
    """``growtas train --recipe uniform-t --data FOLDER``: another method in place of GrowTAS, everything else as in the paper.

    ``uniform`` is the sampling of AutoFormer and SPOS, ``sandwich`` that of BigNAS, ``shrinking`` is OFA's progressive shrinking,
    ``prenas`` trains the subnets that a zero-cost score prefers, and ``focusformer`` learns its sampler. All use the same number of
    images. Some methods run several passes per step, which costs more; ``--dry-run`` shows the cost. Not measured with growtas.

    Raises:
        ConfigError: the space is not one of AutoFormer's.
    """
    return paper(space).override({"name": f"{method}-{short(space)}", "method": method})


_SOURCE = "the paper, Section 4.1.2; what it leaves open as in AutoFormer"
BASELINES = {
    "uniform": "AutoFormer (Chen et al., ICCV 2021)",
    "sandwich": "BigNAS (Yu et al., ECCV 2020)",
    "shrinking": "OFA (Cai et al., ICLR 2020)",
    "prenas": "PreNAS (Wang et al., ICML 2023)",
    "focusformer": "FocusFormer (Liu et al., 2022)",
}
_REPORTED = {
    "growtas-t": "75.19 % at 5.9 M parameters",
    "growtas-s": "81.59 % at 22.9 M parameters",
    "growtas-b": "82.60 % at 53.2 M parameters",
    "growtas-plus-t": "75.19 % at 5.9 M parameters",
    "growtas-plus-s": "81.75 % at 22.9 M parameters",
    "growtas-plus-b": "82.67 % at 53.3 M parameters",
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
ENTRIES = (
    *(
        Entry(name := f"{prefix}-{short(space)}", partial(build, space), _SOURCE, f"the paper (Table 2): {_REPORTED[name]}")
        for prefix, build in (("growtas", paper), ("growtas-plus", paper_plus))
        for space in PAPER_SPACES
    ),
    Entry(
        "growtas-t-dagger",
        paper_dagger,
        "PreNAS' published script, as far as growtas can do it (see its docstring)",
        "the paper (Table 2): 77.06 % at 5.9 M parameters, with PreNAS' whole setting",
    ),
    *(
        Entry(
            name := f"{method}-{short(space)}",
            partial(baseline, method, space),
            f"method: {description}; settings: the paper, Section 4.1.2",
            f"the paper (Table 2): {_REPORTED[name]}" if name in _REPORTED else "not reported",
        )
        for method, description in BASELINES.items()
        for space in PAPER_SPACES
    ),
)
