"""The paper's recipes on AutoFormer's spaces and ImageNet: GrowTAS, GrowTAS+, the row with a dagger, and the methods compared with.

:data:`ENTRIES` holds the accuracies that the paper reports, after the search.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType

from growtas.errors import ConfigError, choices
from growtas.train.recipe import Recipe
from growtas.train.recipes.entry import Entry

PAPER_SPACES = MappingProxyType({"autoformer-t": (250, 2e-5), "autoformer-s": (225, 2e-5), "autoformer-b": (200, 2e-7)})
"""T_1 in epochs of 500, and the last learning rate."""
_PLUS = {"autoformer-t": (20, 5e-5, 1e-5), "autoformer-s": (20, 5e-5, 1e-5), "autoformer-b": (10, 2e-7, 1e-7)}
"""GrowTAS+: epochs, first and last learning rate."""


def short(space: str) -> str:
    """``autoformer-t`` -> ``t``: the end of a recipe's name.

    Raises:
        ConfigError: not one of AutoFormer's spaces.
    """
    if space not in PAPER_SPACES:
        raise ConfigError(f"the paper has no recipe for the space {space}; it has them for {choices(PAPER_SPACES)}")
    return space.rpartition("-")[2]


def paper(space: str, data: str = "imagenet") -> Recipe:
    """``growtas train --recipe growtas-t --data FOLDER``: the paper's training on ImageNet; also ``-s`` and ``-b``.

    Numbers: the paper, Section 4.1.2; those it doesn't give (warm-up, weight decay, drop path, random erasing, and the strengths of
    Mixup, CutMix and smoothing) are AutoFormer's. The paper's batch is 128 on each of 8 GPUs; here it is 1,024 images a step over
    however many processes there are. Not measured with growtas.

    Raises:
        ConfigError: not one of AutoFormer's spaces.
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

    Numbers: the paper, Section 4.1.2: 20 epochs from 5e-5 to 1e-5 (T, S), 10 epochs from 2e-7 to 1e-7 (B), everything else as in
    the training before. "Initial learning rate" is taken at its word: there is no warm-up. For T the paper reports what it does
    before: those subnets lie in A_1, which GrowTAS+ leaves as it is. Not measured with growtas.

    Args:
        init: the run that is gone on from; by default the one that ``--recipe growtas-t --name growtas-t`` makes.

    Raises:
        ConfigError: not one of AutoFormer's spaces.
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

    The paper marks this row with a dagger and says that PreNAS tunes augmentation and weight decay for the tiny space; it gives no
    numbers. Those here are of PreNAS' published script (github.com/tinyvision/PreNAS, ``02_one_shot_training.sh``, the part headed
    tiny): RandAugment with three operations of magnitude 10, last learning rate 1e-7. That part names the base space's files, so
    its settings may be the base space's. Three things differ: the script mixes images one by one and erases two rectangles,
    here a batch is mixed as a whole and one rectangle erased; and it sets no weight decay, so its default 0.05 stays, whatever
    PreNAS tuned it to. With these differences there is no reason to expect just what the paper reports. Not measured with growtas.
    """
    changes = {"name": "growtas-t-dagger", "auto_augment": "rand-n3-m10-mstd0.5-inc1", "min_lr": 1e-7}
    return paper("autoformer-t").override(changes)


def baseline(method: str, space: str) -> Recipe:
    """``growtas train --recipe uniform-t --data FOLDER``: another method in the place of GrowTAS, all else as in the paper.

    ``uniform`` is AutoFormer's sampling (and SPOS'), ``sandwich`` BigNAS', ``shrinking`` OFA's progressive shrinking, ``prenas``
    trains the subnets that a zero-cost score prefers, ``focusformer`` has a learned sampler. Each takes the same number of
    images; a step of some methods has several passes and costs more, which ``--dry-run`` shows. Not measured with growtas.

    Raises:
        ConfigError: not one of AutoFormer's spaces.
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
