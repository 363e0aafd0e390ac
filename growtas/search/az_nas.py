"""A score of subnets without training: AZ-NAS (Lee and Ham, CVPR 2024, Section 3).

Three proxies describe a subnet with random weights, on images of noise:

- **Expressivity**: the entropy of the eigenvalues of the tokens' covariance, which are normalised to the sum 1. It is large if the
  tokens use many directions. It is summed over the residual features after each attention and each MLP.
- **Trainability**: how far gradients keep their size from one residual feature to the one before. With s the spectral norm of
  g_in^T g_out / (B N), for g_out of random signs, it is the mean of -s - 1 / (s + 1e-6) + 2.
- **Complexity**: the multiply-accumulates.

The score of a subnet among others is the sum of the logarithms of its three ranks, each divided by the number of subnets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from growtas.costs import count_costs
from growtas.data.seeding import preserved_globals
from growtas.nn.supernet import Supernet
from growtas.progress import SILENT, Progress
from growtas.sampling import Feasible
from growtas.search.evolution import EvolutionConfig, fill_up, offspring
from growtas.space import SearchSpace
from growtas.subnet import Subnet


@dataclass(frozen=True)
class Proxies:
    """The proxies of a subnet; larger is better.

    Attributes:
        expressivity: summed entropy, in nats.
        trainability: mean over neighbouring features; at most 0.
        macs: multiply-accumulates for one image.
    """

    expressivity: float
    trainability: float
    macs: int


class AzNas:
    """Measures the proxies of a space's subnets. All subnets are slices of one supernet with random weights.

    Args:
        space: the search space.
        images: number of images of noise.
        seed: seed of the weights, of the images and of the signs.
    """

    def __init__(self, space: SearchSpace, images: int = 64, seed: int = 0) -> None:
        self.space = space
        with preserved_globals():
            torch.manual_seed(seed)
            self._supernet = Supernet(space).eval().requires_grad_(False)
            self._images = torch.randn(images, space.in_chans, space.image_size, space.image_size)
        self._seed = seed

    def __call__(self, subnet: Subnet) -> Proxies:
        """Measures the proxies of a subnet of the space."""
        features = self._features(subnet)
        expressivity = sum(_entropy(feature.detach()) for feature in features)
        generator = torch.Generator().manual_seed(self._seed)
        gains = []
        for before, after in pairwise(features):
            signs = torch.randint(2, after.shape, generator=generator).to(after.dtype) * 2 - 1
            (gradient,) = torch.autograd.grad(after, before, signs, retain_graph=True)
            product = gradient.flatten(0, 1).t() @ signs.flatten(0, 1) / (signs.shape[0] * signs.shape[1])
            norm = float(torch.linalg.matrix_norm(product.double(), 2))
            gains.append(-norm - 1 / (norm + 1e-6) + 2)
        return Proxies(float(expressivity), float(np.mean(gains)), count_costs(self.space, subnet).macs)

    def _features(self, subnet: Subnet) -> list[Tensor]:
        """Returns the residual features after each attention and each MLP, ``(images, N, embed_dim)``."""
        x, features = self._supernet.embed(self._images, subnet.embed_dim).requires_grad_(), []
        for place, index in enumerate(self.space.blocks_of(subnet.depth)):
            features.append(x := self._supernet.attention_layer(x, index, subnet.num_heads[place]))
            features.append(x := self._supernet.mlp_layer(x, index, subnet.hidden_dim(place)))
        return features


def _entropy(tokens: Tensor) -> float:
    """Returns the entropy of the normalised eigenvalues of the covariance of tokens ``(images, N, dim)``."""
    flat = tokens.flatten(0, 1).double()
    centred = flat - flat.mean(0)
    values = torch.linalg.eigvalsh(centred.t() @ centred / len(flat)).clamp(min=0)
    shares = values / values.sum()
    return float(-(shares * (shares + 1e-8).log()).sum())


def rank_scores(proxies: Sequence[Proxies]) -> NDArray[np.float64]:
    """Returns the score of each subnet among the others, ``(len(proxies),)``; 0 is the best. Equal values have equal ranks."""
    table = np.array([(one.expressivity, one.trainability, one.macs) for one in proxies], np.float64)
    ranks = np.array([np.searchsorted(np.sort(column), column, side="right") for column in table.T])
    return np.asarray(np.log(ranks / len(table)).sum(axis=0))


def search_by_proxies(
    space: SearchSpace,
    feasible: Feasible,
    rng: Generator,
    config: EvolutionConfig,
    measure: AzNas,
    progress: Progress = SILENT,
) -> list[tuple[Subnet, Proxies]]:
    """Searches the subnet with the best score by an evolution. A subnet's ranks are those among all subnets measured so far.

    Args:
        space: the search space.
        feasible: the monotone predicate of the limits.
        rng: the random generator.
        config: settings of the evolution.
        measure: measures the proxies of a subnet.
        progress: receives the number of measured subnets.

    Returns:
        All measured subnets with their proxies, best first.

    Raises:
        LimitError: no subnet is legal.
    """
    known: dict[Subnet, Proxies] = {}
    progress.stage("measuring proxies", config.generations * config.population)
    for _ in range(config.generations):
        parents = list(known)[: config.parents]
        children = offspring(space, parents, known, feasible, rng, config) if parents else {}
        fill_up(children, space, known, feasible, rng, config.population)
        if not children:
            break
        for child in children:
            known[child] = measure(child)
            progress.advance(1)
        order = np.argsort(-rank_scores(list(known.values())), kind="stable")
        known = dict([list(known.items())[row] for row in order])
    return list(known.items())
