"""``python -m tests.benchmarks.steps``: training steps in turns, in a process of their own; prints their ratios as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.benchmarks import models
from tests.benchmarks.timing import in_turns, medians, ratio

MAC_RATIO = models.PUBLISHED_MACS / models.DEIT_MACS
ROUNDS = 7


def training(name: str) -> Callable[[], None]:
    """A training step of one of the networks; everything it holds is allocated here or in the step."""
    make: dict[str, Callable[[], nn.Module]] = {
        "supernet": models.supernet,
        "static": models.static,
        "DeiT-T": models.deit_tiny,
        "naive": lambda: models.naive(models.OracleAttention),
        "public order": lambda: models.naive(models.PublicOrderAttention),
    }
    model = make[name]().train()
    arguments = (models.PUBLISHED,) if name == "supernet" else ()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, labels = torch.randn(16, 3, 224, 224), torch.randint(1000, (16,))

    def step() -> None:
        F.cross_entropy(model(images, *arguments), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    torch.set_num_threads(2)
    times = in_turns({name: training(name) for name in ("supernet", "static", "DeiT-T", "naive")}, rounds=ROUNDS, warmup=2)
    ratios = {f"{name} / DeiT-T": ratio(times, name, "DeiT-T") / MAC_RATIO for name in ("supernet", "static")}
    ratios |= {f"{one} / {other}": ratio(times, one, other) for one, other in (("supernet", "static"), ("static", "naive"))}
    sys.stdout.write(json.dumps({"ratios": ratios, "medians": medians(times)}))


if __name__ == "__main__":
    main()
