"""How fast a search evaluates the subnets of an evolution, against one subnet at a time in a plain loop over image files.

Twice: micro on small pictures, whose files are read at once and whose 50 tokens leave the relative position little to cost; and
autoformer-t, 224 px, on photographs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from growtas import Subnet, Supernet, extract, load_space
from growtas.batch import SubnetBatch
from growtas.data.evaluation import EvaluationSet, cut_search_split, search_indices
from growtas.data.images import ImageSet, ReaderSet, Subset
from growtas.data.preprocess import evaluation_transform, preprocess_record
from growtas.data.sources import Data
from growtas.sampling import sample
from growtas.search.evaluation.evaluator import SubnetEvaluator
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.space import SearchSpace
from tests.benchmarks.feeding import fashion_mnist
from tests.benchmarks.models import OracleAttention, PublicOrderAttention
from tests.benchmarks.timing import Entry

IMAGES, GENERATIONS, POPULATION, PLAIN_BATCH = 300, 20, 50, 256
"""As many images as the search split of digits has, and the evolution that `growtas search` runs."""
PLAIN_SUBNETS = 2
"""Subnets of a generation that a plain loop evaluates: it takes as long for each."""
PHOTOGRAPHS, LARGE_GENERATIONS = 40, 8
"""What autoformer-t has the time for: its 197 tokens cost twenty times as much an image."""
TILE = 500, 375
"""Pixels of a picture as ImageNet's mostly are."""


def generations(space: SearchSpace, count: int = GENERATIONS) -> list[list[Subnet]]:
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

    evolve(space, score, every, np.random.default_rng(0), EvolutionConfig(generations=count, population=POPULATION))
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


def _write_photographs(folder: Path) -> list[Path]:
    """JPEG files cut at random places from the photographs that scikit-learn ships."""
    generator = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    files = [folder / f"{index:04d}.jpg" for index in range(PHOTOGRAPHS)]
    for index, file in enumerate(files):
        whole = photographs[index % len(photographs)]
        left, top = (int(generator.integers(0, size - part + 1)) for size, part in zip(whole.size, TILE, strict=True))
        whole.crop((left, top, left + TILE[0], top + TILE[1])).save(file, quality=92)
    return files


def evaluation() -> Iterator[Entry]:
    """Seconds a subnet of the evaluator over those of two plain loops, in turns: a generation, then some of its subnets plainly.

    Every generation is evaluated once, so that what is kept from one to the next is what a search would keep.
    """
    data, named = fashion_mnist()
    space = load_space("micro").replace(num_classes=len(data.class_names))
    images = Subset(data.train, search_indices(cut_search_split(data, 0, IMAGES)))
    with tempfile.TemporaryDirectory() as folder:
        files = _write(images, Path(folder))
        title = f"{len(images)} PNG files of {named}"
        yield from _compared(space, images, preprocess_record(space, data), data.class_names, files, GENERATIONS, title)


def evaluation_of_photographs() -> Iterator[Entry]:
    """:func:`evaluation` for autoformer-t at 224 px, on photographs in JPEG files."""
    space = load_space("autoformer-t").replace(num_classes=10)
    names = tuple(map(str, range(10)))
    with tempfile.TemporaryDirectory() as folder:
        files = _write_photographs(Path(folder))
        images = ReaderSet(np.arange(len(files)) % 10, lambda index: Image.open(files[index]), lambda index: files[index].name)
        record = preprocess_record(space, Data("photographs", folder, images, images, names))
        title = f"{len(files)} JPEG files of {TILE[0]} x {TILE[1]}, autoformer-t"
        yield from _compared(space, images, record, names, files, LARGE_GENERATIONS, title)


def _compared(
    space: SearchSpace,
    images: ImageSet,
    record: dict[str, Any],
    class_names: tuple[str, ...],
    files: Sequence[Path],
    count: int,
    title: str,
) -> Iterator[Entry]:
    torch.manual_seed(0)
    supernet = Supernet(space).eval()
    plain = {
        "formulas": PlainLoop(supernet, files, images.labels, record, OracleAttention),
        "public order": PlainLoop(supernet, files, images.labels, record, PublicOrderAttention),
    }
    times: dict[str, list[float]] = {name: [] for name in ("growtas", *plain)}
    with SubnetEvaluator(supernet, EvaluationSet(images, record, class_names)) as evaluate:
        list(evaluate([sample(space, np.random.default_rng(9))]))
        for children in generations(space, count):
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
    for name, attention in (("formulas", "the formulas' attention"), ("public order", "the public code's order")):
        ratio = statistics.median(a / b for a, b in zip(times["growtas"], times[name], strict=True))
        yield Entry(
            f"evaluating an evolution of {space.name}, growtas / plain loop with {attention}", ratio, 0.2, f"{title}; {detail}"
        )
