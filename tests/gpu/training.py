"""Compares training steps of autoformer-t with timm's DeiT-T and with plain attention: ratios of step times and of peak memory."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from growtas.distributed import World
from growtas.sampling import sample
from growtas.train.clock import Clock
from growtas.train.recipe import Recipe
from growtas.train.step import Stepper, Training, autocast_type
from growtas.train.strategies.base import Pass
from tests.benchmarks import models
from tests.benchmarks.timing import in_turns, ratio
from tests.gpu.cases import Cases, Outcome
from tests.gpu.hardware import Hardware

ROUNDS = 10
Program = Callable[[], None]
_RECIPE = Recipe(space="autoformer-t", batch_size=128, label_smoothing=0.0)
_DEIT, _SUPERNET = "DeiT-T", "supernet, the published subnet"
_SLOW = ("formulas written out", "the public code's order")
"""These are slow, so a fifth of the steps is enough."""
_PLAIN: dict[str, Callable[[], nn.Module]] = {
    _DEIT: models.deit_tiny,
    _SLOW[0]: lambda: models.naive(models.OracleAttention),
    _SLOW[1]: lambda: models.naive(models.PublicOrderAttention),
    "static ViT": models.static,
}


def cases(hardware: Hardware, folder: Path) -> Cases:
    batch = hardware.size(_RECIPE.batch_size, 2)
    shape = (batch, 3, 224, 224)
    images, labels = torch.randn(shape, device=hardware.device), torch.randint(1000, (batch,), device=hardware.device)
    programs: dict[str, Callable[[], Program]] = {
        **{name: partial(_plain, hardware, make, images, labels) for name, make in _PLAIN.items()},
        _SUPERNET: partial(_stepper, hardware, images, labels, sampled=False),
        "supernet, sampled subnets": partial(_stepper, hardware, images, labels, sampled=True),
    }
    peaks: dict[str, int] = {}
    for name, prepare in programs.items():
        yield f"peak memory of a step at batch {batch}: {name}", partial(_memory, hardware, name, prepare, peaks)
    rounds = hardware.size(ROUNDS, 2)
    # Networks that ran out of memory are left out.
    fitting = {name: programs[name] for name in peaks}
    count = rounds * _steps(hardware, _DEIT)
    yield f"step time at batch {batch}, {count} steps in turns", partial(_times, hardware, fitting, rounds)


def _steps(hardware: Hardware, name: str) -> int:
    """The number of steps of a network in a round."""
    return hardware.size(4 if name in _SLOW else 20, 1)


def _stepper(hardware: Hardware, images: torch.Tensor, labels: torch.Tensor, *, sampled: bool) -> Program:
    """Training steps of growtas."""
    device, rng = torch.device(hardware.device), np.random.default_rng(0)
    supernet = models.supernet().to(device).train()
    stepper, clock = Stepper(Training.of(supernet, _RECIPE, device), _RECIPE, World(), device), Clock(device)
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        subnet = sample(models.SPACE, rng) if sampled else models.PUBLISHED
        stepper(number, (images, labels), [Pass(subnet)], clock)

    return step


def _plain(hardware: Hardware, make: Callable[[], nn.Module], images: torch.Tensor, labels: torch.Tensor) -> Program:
    """Training steps of a network with the same precision, optimiser and loss. Like growtas, they read the loss."""
    model = make().to(hardware.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RECIPE.lr, fused=True)
    reduced = autocast_type(_RECIPE.amp, torch.device(hardware.device))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(hardware.device, reduced, enabled=reduced is not None):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def _memory(hardware: Hardware, name: str, prepare: Callable[[], Program], peaks: dict[str, int]) -> Outcome:
    gc.collect()
    size = peaks[name] = hardware.peak_bytes(prepare, calls=2)
    compared = {other: size / peaks[other] for other in (_DEIT, *_SLOW) if other in peaks and other != name and name not in _SLOW}
    text = "".join(f"; {value:.2f} x {other}" for other, value in compared.items())
    return Outcome(f"{size / 1e9:.2f} GB{text}", {"bytes": size, **{f"over {other}": value for other, value in compared.items()}})


def _times(hardware: Hardware, programs: dict[str, Callable[[], Program]], rounds: int) -> Outcome:
    """Measures milliseconds per step; ratios are medians over the rounds."""
    steps = {name: _steps(hardware, name) for name in programs}

    def repeated(step: Program, count: int) -> Program:
        def run() -> None:
            for _ in range(count):
                step()
            hardware.wait()

        return run

    times = in_turns({name: repeated(prepare(), steps[name]) for name, prepare in programs.items()}, rounds=rounds)
    times = {name: [value / steps[name] for value in values] for name, values in times.items()}
    numbers = {name: {"step_ms": statistics.median(values)} for name, values in times.items()}
    texts = [f"{name} {value['step_ms']:.1f} ms" for name, value in numbers.items()]
    for other in (_DEIT, *_SLOW):
        if _SUPERNET in times and other in times:
            value = numbers[_SUPERNET][f"over {other}"] = ratio(times, _SUPERNET, other)
            texts.append(f"the supernet takes {value:.2f} x {other}")
    if f"over {_DEIT}" in numbers.get(_SUPERNET, {}):
        per_mac = numbers[_SUPERNET][f"over {_DEIT}"] * models.DEIT_MACS / models.PUBLISHED_MACS
        numbers[_SUPERNET]["over DeiT-T per MAC"] = per_mac
        texts.append(f"{per_mac:.2f} x per multiply-accumulate")
    return Outcome("; ".join(texts), numbers)
