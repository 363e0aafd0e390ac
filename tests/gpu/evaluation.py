"""Measures the images per second that a search evaluates, and compares its losses with a plain forward pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from growtas.data.evaluation import EvaluationSet
from growtas.data.images import ReaderSet
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.search.evaluation.evaluator import SubnetEvaluator
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.search.journal import Evaluation
from growtas.space import load_space
from growtas.subnet import Subnet
from tests.gpu.cases import Cases, Outcome
from tests.gpu.hardware import Hardware
from tests.gpu.images import CLASSES, noise

_PLAIN_BATCH = 256
_LOSS_BAR = 1e-3
"""Largest relative difference between a loss and that of the plain forward pass."""


def cases(hardware: Hardware, folder: Path) -> Cases:
    name = hardware.size("autoformer-t", "micro")
    space = load_space(name).replace(num_classes=CLASSES)
    count, config = hardware.size(512, 40), EvolutionConfig(generations=hardware.size(3, 2), population=hardware.size(50, 4))

    def evaluate_search() -> Outcome:
        torch.manual_seed(0)
        supernet = Supernet(space).eval()
        images = ReaderSet(np.arange(count) % CLASSES, lambda index: noise(index, space.image_size), str)
        record = {"image_size": space.image_size, "in_chans": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
        data = EvaluationSet(images, {**record, "interpolation": "bicubic", "crop_pct": 1.0}, tuple(map(str, range(CLASSES))))
        found: dict[Subnet, Evaluation] = {}
        seconds = 0.0
        with SubnetEvaluator(supernet, data, device=hardware.device) as evaluate:
            list(evaluate([space.smallest, space.largest]))  # decodes and warms up

            def score(subnets: Sequence[Subnet]) -> list[tuple[float, float, int]]:
                nonlocal seconds
                start = time.perf_counter()
                found.update(evaluate(subnets))
                seconds += time.perf_counter() - start
                return [(found[subnet].accuracy, -found[subnet].loss, 0) for subnet in subnets]

            evolve(space, score, lambda batch: np.ones(len(batch), bool), np.random.default_rng(0), config)
        searched = len(found) * count / seconds
        plain, error = _plain(hardware, supernet, data, {subnet: found[subnet].loss for subnet in list(found)[:3]})
        text = (
            f"{searched:,.0f} images/s in a search of {len(found)} subnets; {plain:,.0f} images/s one subnet after another; "
            f"losses differ by at most {error:.1e} (limit {_LOSS_BAR:g})"
        )
        numbers = {"images_per_s": searched, "plain_images_per_s": plain, "loss_error": error}
        return Outcome(text, numbers, error <= _LOSS_BAR)

    yield f"evaluation of {name}, {count} images", evaluate_search


@torch.inference_mode()
def _plain(hardware: Hardware, supernet: Supernet, data: EvaluationSet, losses: dict[Subnet, float]) -> tuple[float, float]:
    """Images per second of static ViTs, one after another, and the largest relative difference of their losses from ``losses``."""
    images, labels = data.images(0, len(data)).to(hardware.device), data.labels.to(hardware.device)
    seconds = error = 0.0
    for subnet, expected in losses.items():
        model = extract(supernet, subnet)
        model(images[:_PLAIN_BATCH])
        hardware.wait()
        start = time.perf_counter()
        logits = torch.cat([model(batch) for batch in images.split(_PLAIN_BATCH)])
        hardware.wait()
        seconds += time.perf_counter() - start
        loss = float(F.cross_entropy(logits, labels))
        error = max(error, abs(loss - expected) / loss)
    return len(losses) * len(data) / seconds, error
