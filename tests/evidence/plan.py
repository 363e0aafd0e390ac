"""The plan of the evidence: the supernets to train, in order, and the measurements of each.

If a setting in this file changes, the training gets another key and so another line in the ledger. Recipe fields and method options
that are not in this file have the defaults of the training's commit. Every line contains the complete recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

EPOCHS = 20
SEEDS = (0, 1, 2)
RATE = 8e-3
"""Peak learning rate of every method: the best of RATES for ``uniform``, the method of AutoFormer and SPOS."""
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
DYNAS = {"dynas": {}, "dynas without its parts": {"smallest": 1.0, "largest": 1.0, "moments": "shared"}}
"""Method options of DYNAS and of its control, which has the same linear schedule for all subnets."""
DYNAS_RATES = (4e-3, 8e-3, 16e-3)
"""Rates that are tried for both, because their schedule falls differently."""
TUNING_SEED = 100
"""Seed of the trainings by which RATE was chosen; the tables of methods don't use it."""
SETTINGS: Mapping[str, Any] = {
    "space": "micro",
    "data": "fashion-mnist",
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": RATE,
    "min_lr": 1e-5,
    "warmup_epochs": 1.0,
    "weight_decay": 0.05,
    "label_smoothing": 0.0,
    "augment": "light",
    "crop_padding": 1,
    "hflip": 0.5,
    "search_images": 10_000,
    "monitor_images": 1_000,
    "amp": "fp32",
}
"""Recipe fields of all trainings."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of a supernet.

    Attributes:
        name: the method and its variant, for people; the same for every seed.
        group: ``steps`` (as many steps as ``uniform``), ``compute`` (about as many multiply-accumulates as ``uniform``), or
            ``rate`` (a trial of a learning rate).
        method: a name that ``growtas train --method`` takes.
        seed: of everything random.
        epochs: passes over the training images.
        options: all other recipe fields that are not left at their defaults.
        starts_from: the training whose weights this one goes on from.
        measure: what is measured besides the probes; see :class:`Measurements`.
    """

    name: str
    group: str
    method: str
    seed: int
    epochs: int = EPOCHS
    options: Mapping[str, Any] = field(default_factory=dict)
    starts_from: Training | None = None
    measure: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A hash of everything that determines the weights, without name, group and measurements."""
        start = self.starts_from.key if self.starts_from else None
        facts = [self.method, self.seed, self.epochs, dict(self.options), start]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """The name with group and seed, which is unique."""
        return f"{self.name}{' at equal compute' if self.group == 'compute' else ''}, seed {self.seed}"

    @property
    def work(self) -> float:
        """Its approximate duration in epochs of ``uniform``, for estimates of the remaining time."""
        return EPOCHS if self.group == "compute" else self.epochs

    def recipe_fields(self) -> dict[str, Any]:
        """The recipe's fields, without the path of the weights to start from."""
        return {**self.options, "name": "evidence", "method": self.method, "seed": self.seed, "epochs": self.epochs}

    @property
    def identity(self) -> dict[str, Any]:
        """The part of its ledger line that is known before the training."""
        names = ("key", "name", "group", "method", "seed", "epochs")
        start = self.starts_from.key if self.starts_from else None
        return {**{name: getattr(self, name) for name in names}, "options": dict(self.options), "starts_from": start}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, read back by :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Training:
        """The training of a JSON form."""
        start = data["starts_from"]
        return cls(**{**data, "starts_from": cls.from_dict(start) if start else None})


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The measurements of a trained supernet in addition to the probes.

    Attributes:
        limits: parameter limits. Evolution searches the best subnet under each limit, with images of the search split.
        generations: generations of the evolution.
        population: population of the evolution.
        search_images: number of images of the search split for the evolution; its winners are measured on all of them.
        band: whether to measure the accuracies of the 200 subnets in the parameter band.
    """

    limits: tuple[int, ...] = (60_000, 80_000, 110_000, 150_000, 200_000, 260_000)
    generations: int = 10
    population: int = 20
    search_images: int = 1_000
    band: bool = False


def _equal_compute(seed: int) -> list[Training]:
    """Trainings with about as many multiply-accumulates as ``uniform`` in EPOCHS epochs.

    The number of epochs is whole, so the compute is not exactly equal; each line of the ledger contains the actual compute.
    """
    epochs = {"prenas": 14, "focusformer": 17, "sandwich": 4, "shrinking": 9, "growtas": 24}
    trainings = [
        Training(
            name="growtas, T_1 at 0.5" if method == "growtas" else method,
            group="compute",
            method=method,
            seed=seed,
            epochs=count,
            options={**SETTINGS, "transitions": [count / 2]} if method == "growtas" else SETTINGS,
            measure={"band": method in ("prenas", "growtas")},
        )
        for method, count in epochs.items()
    ]
    # Scores on few images, because with batches of 64 the defaults would spend most of the compute on scores.
    options: dict[str, tuple[str, int, dict[str, Any]]] = {
        "prenas as published": ("prenas", 14, {"per_budget": 1, "draw": "groups"}),
        "greedynas": ("greedynas", 12, {"images": 64, "turnover": 0.0}),
        "shiftnas": ("shiftnas", 13, {"every": 200, "images": 250}),
        "vitas": ("vitas", 8, {}),
    }
    for name, (method, count, of_method) in options.items():
        fields = {**SETTINGS, "method_options": of_method}
        trainings.append(Training(name=name, group="compute", method=method, seed=seed, epochs=count, options=fields))
    return trainings


def _dynas(seed: int, name: str, rate: float, group: str = "steps") -> Training:
    """DYNAS, or its control."""
    fields = {**SETTINGS, "lr": rate, "method_options": DYNAS[name]}
    title, measure = (name, {}) if group == "steps" else (f"{name}, rate {rate:g}", {"limits": []})
    return Training(name=title, group=group, method="dynas", seed=seed, options=fields, measure=measure)


def _with_experts(first: Training, name: str) -> Training:
    """TAS-LoRA after another training, with a fifth of its epochs and the paper's rates."""
    epochs = EPOCHS // 5
    rates = {"lr": 5e-4, "min_lr": 1e-5, "warmup_lr": 1e-5, "warmup_epochs": epochs / 10}
    return Training(
        name=f"tas-lora on {name}",
        group="steps",
        method="tas-lora",
        seed=first.seed,
        epochs=epochs,
        options={**SETTINGS, **rates},
        starts_from=first,
    )


def _growtas(seed: int, share: float) -> Training:
    """GrowTAS with its transition at a share of the epochs."""
    return Training(
        name=f"growtas, T_1 at {share:g}",
        group="steps",
        method="growtas",
        seed=seed,
        options={**SETTINGS, "transitions": [share * EPOCHS]},
        measure={"band": share == 0.5},
    )


def _growtas_plus(first: Training) -> Training:
    """GrowTAS+ after a training of GrowTAS, with the paper's ratios of learning rates (Section 4.1.2)."""
    rates = {"lr": RATE / 20, "min_lr": RATE / 100, "warmup_epochs": 0.0}
    return Training(
        name="growtas-plus",
        group="steps",
        method="growtas-plus",
        seed=first.seed,
        epochs=EPOCHS // 10,
        options={**SETTINGS, **rates},
        starts_from=first,
    )


def _seed(seed: int) -> list[Training]:
    """All trainings of a seed, in order."""
    uniform = Training(name="uniform", group="steps", method="uniform", seed=seed, options=SETTINGS, measure={"band": True})
    half = _growtas(seed, 0.5)
    auto = Training(
        name="growtas, T_1 chosen by the training",
        group="steps",
        method="growtas",
        seed=seed,
        options={**SETTINGS, "transitions": "auto"},
    )
    plus = _growtas_plus(half)
    first = [uniform, half, _growtas(seed, 0.4), _growtas(seed, 0.8), auto, plus, *_equal_compute(seed)]
    experts = [_with_experts(uniform, "uniform"), _with_experts(half, "growtas"), _with_experts(plus, "growtas-plus")]
    return [*first, *(_dynas(seed, name, RATE) for name in DYNAS), *experts]


def _rates() -> list[Training]:
    """The trainings by which RATE was chosen. Only the probes are measured."""
    return [
        Training(
            name=f"uniform, rate {rate:g}",
            group="rate",
            method="uniform",
            seed=TUNING_SEED,
            options={**SETTINGS, "lr": rate},
            measure={"limits": []},
        )
        for rate in RATES
    ]


def _dynas_rates() -> list[Training]:
    """Trials of learning rates for DYNAS and its control."""
    return [_dynas(TUNING_SEED, name, rate, "rate") for name in DYNAS for rate in DYNAS_RATES]


PLAN: tuple[Training, ...] = (*_rates(), *(training for seed in SEEDS for training in _seed(seed)), *_dynas_rates())
"""All trainings, in the order in which they are run."""
