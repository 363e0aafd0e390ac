"""How fast a search evaluates the subnets of an evolution, against one subnet at a time in a plain loop over image files."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from growtas import Subnet, Supernet, extract, load_space
from growtas.batch import SubnetBatch
from growtas.data.evaluation import EvaluationSet, cut_search_split, search_indices
from growtas.data.images import Subset
from growtas.data.preprocess import evaluation_transform, preprocess_record
from growtas.sampling import sample
from growtas.search.evaluate import SubnetEvaluator
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.space import SearchSpace
from tests.benchmarks.feeding import fashion_mnist
from tests.benchmarks.models import OracleAttention, PublicOrderAttention
from tests.benchmarks.timing import Entry

IMAGES, GENERATIONS, POPULATION, PLAIN_BATCH = 300, 20, 50, 256
"""As many images as the search split of digits has, and the evolution that `growtas search` runs."""
PLAIN_SUBNETS = 2
"""Subnets of a generation that a plain loop evaluates: it takes as long for each."""


def generations(space: SearchSpace) -> list[list[Subnet]]:
    """The children of an evolution, generation by generation, whose aim is a random linear function of the genes.

    So its children inherit as a search's do, and no image is needed to make them.
    """
    weights = np.random.default_rng(1).standard_normal(2 * space.max_depth)
    found: list[list[Subnet]] = []

    def score(subnets: Sequence[Subnet]) -> list[float]:
        found.append(list(subnets))
        genes = ([*subnet.num_heads, *subnet.mlp_ratio] for subnet in subnets)
        return [float(np.dot(weights[: len(row)], row)) for row in genes]

    def every(batch: SubnetBatch) -> NDArray[np.bool_]:
        return np.ones(len(batch), bool)

    evolve(space, score, every, np.random.default_rng(0), EvolutionConfig(generations=GENERATIONS, population=POPULATION))
    return found


class PlainLoop:
    """A subnet's accuracy as it is written first: image files, decoded and transformed anew, and the attention's formulas.

    On as many threads as the evaluator has, which divides the images and sets torch's own number to 1 meanwhile.
    """

    def __init__(
        self,
        supernet: Supernet,
        files: Sequence[Path],
        labels: NDArray[np.int64],
        record: dict[str, object],
        attention: type[nn.Module],
    ) -> None:
        self._supernet, self._files, self._labels, self._attention = supernet, files, torch.from_numpy(labels), attention
        self._transform, self._threads = evaluation_transform(record), torch.get_num_threads()

    def __call__(self, subnet: Subnet) -> float:
        torch.set_num_threads(self._threads)
        try:
            return self._accuracy(subnet)
        finally:
            torch.set_num_threads(1)

    @torch.inference_mode()
    def _accuracy(self, subnet: Subnet) -> float:
        model = extract(self._supernet, subnet).eval()
        for block in model.blocks:
            block.attn = self._attention(block.attn)
        correct = 0
        for start in range(0, len(self._files), PLAIN_BATCH):
            batch = torch.stack([self._transform(_decoded(file)) for file in self._files[start : start + PLAIN_BATCH]])
            correct += int((model(batch).argmax(1) == self._labels[start : start + PLAIN_BATCH]).sum())
        return correct / len(self._files)


def _decoded(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _write(images: Subset, folder: Path) -> list[Path]:
    """The images as PNG files, as a data set of small images mostly lies on disk."""
    files = [folder / f"{index:04d}.png" for index in range(len(images.labels))]
    for index, file in enumerate(files):
        images.load(index).save(file)
    return files


def evaluation() -> Iterator[Entry]:
    """Seconds a subnet of the evaluator over those of two plain loops, in turns: a generation, then some of its subnets plainly.

    Every generation is evaluated once, so that what is kept from one to the next is what a search would keep.
    """
    data, named = fashion_mnist()
    torch.manual_seed(0)
    space = load_space("micro").replace(num_classes=len(data.class_names))
    supernet, record = Supernet(space).eval(), preprocess_record(space, data)
    indices = search_indices(cut_search_split(data, 0, IMAGES))
    images = Subset(data.train, indices)
    with tempfile.TemporaryDirectory() as folder:
        files = _write(images, Path(folder))
        plain = {
            "formulas": PlainLoop(supernet, files, images.labels, record, OracleAttention),
            "public order": PlainLoop(supernet, files, images.labels, record, PublicOrderAttention),
        }
        yield from _compared(supernet, EvaluationSet(images, record, data.class_names), plain, named)


def _compared(supernet: Supernet, images: EvaluationSet, plain: dict[str, PlainLoop], named: str) -> Iterator[Entry]:
    space = supernet.space
    times: dict[str, list[float]] = {name: [] for name in ("growtas", *plain)}
    with SubnetEvaluator(supernet, images) as evaluate:
        list(evaluate([sample(space, np.random.default_rng(9))]))
        for children in generations(space):
            start = time.perf_counter()
            found = dict(evaluate(children))
            times["growtas"].append((time.perf_counter() - start) / len(children))
            for name, loop in plain.items():
                start = time.perf_counter()
                for subnet in children[-PLAIN_SUBNETS:]:
                    if abs(loop(subnet) - found[subnet].accuracy) > 2 / len(images):
                        raise AssertionError(f"{subnet} got another accuracy in the plain loop")
                times[name].append((time.perf_counter() - start) / PLAIN_SUBNETS)
    detail = ", ".join(f"{name} {1 / statistics.median(seconds):.3g} subnets/s" for name, seconds in times.items())
    for name, title in (("formulas", "the formulas' attention"), ("public order", "the public code's order")):
        ratio = statistics.median(a / b for a, b in zip(times["growtas"], times[name], strict=True))
        yield Entry(
            f"evaluating an evolution, growtas / plain loop with {title}",
            ratio,
            0.2,
            f"{len(images)} PNG files of {named}; {detail}",
        )
