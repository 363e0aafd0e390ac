"""``search_by_proxy``: finds a subnet under limits without any training."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from growtas.errors import ConfigError, choices
from growtas.files import ensure_writable, write_json
from growtas.latency.modelled.profile import BYTES
from growtas.progress import SILENT, Progress
from growtas.search.evolution import EvolutionConfig
from growtas.search.limits import Limits
from growtas.space import SearchSpace, load_space
from growtas.subnet import Subnet

if TYPE_CHECKING:
    from growtas.search.az_nas import Proxies

PROXIES = ("az-nas",)
"""Scores that need no training."""
_GENERATIONS = 10
"""Default number of generations; measuring proxies takes longer than evaluating a small supernet."""


@dataclass(frozen=True)
class ProxySearchResult:
    """Result of a search without training.

    Attributes:
        space: the search space.
        subnet: the subnet with the best score within the limits.
        proxies: its proxies.
        params: number of its parameters.
        measured: number of subnets that were measured.
        seconds: duration of the search.
        file: the file of the subnet, which also has its proxies.
    """

    space: SearchSpace
    subnet: Subnet
    proxies: Proxies
    params: int
    measured: int
    seconds: float
    file: Path

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        facts = {"params": self.params, **asdict(self.proxies), "measured": self.measured, "seconds": self.seconds}
        return {"space": self.space.name, "proxy": PROXIES[0], **facts, "file": str(self.file), "subnet": self.subnet.to_dict()}


def search_by_proxy(
    space: str | SearchSpace,
    *,
    proxy: str = "az-nas",
    max_params: str | int | None = None,
    max_macs: str | int | None = None,
    max_macs_with_relative_position: str | int | None = None,
    max_activation_memory: str | int | None = None,
    max_size: str | int | None = None,
    batch: int = 1,
    precision: str = "fp32",
    generations: int | None = None,
    population: int = EvolutionConfig.population,
    seed: int = 0,
    out: str | Path = "proxy-search",
    progress: Progress = SILENT,
) -> ProxySearchResult:
    """Searches a space for the best subnet under limits by a score that needs no training, images or supernet.

    The score is AZ-NAS (:mod:`growtas.search.az_nas`). It is no accuracy; a search of a trained supernet measures accuracies.

    Args:
        space: the search space: a preset, a YAML file, or a space.
        proxy: the score; ``az-nas`` is the only one.
        max_params, max_macs, max_macs_with_relative_position, max_activation_memory, max_size, batch, precision: limits, as for
            :func:`growtas.api.search`.
        generations: number of generations; by default 10.
        population: number of new subnets per generation.
        seed: seed of all random choices.
        out: folder for ``subnet.json``.
        progress: receives the progress.

    Raises:
        ConfigError, SpaceError: an argument is wrong.
        LimitError: no subnet meets the limits.
        OutputError: the folder can't be written.
    """
    from growtas.costs import count_costs
    from growtas.search.az_nas import AzNas, search_by_proxies

    check_proxy(proxy)
    if precision not in BYTES:
        raise ConfigError(f"--precision is {precision!r}; legal are {choices(BYTES)}")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; it must be 0 or more")
    limits = Limits.parse(
        max_params=max_params,
        max_macs=max_macs,
        max_macs_with_relative_position=max_macs_with_relative_position,
        max_activation_memory=max_activation_memory,
        max_size=max_size,
        batch=batch,
        precision=precision,
    )
    searched = load_space(space) if isinstance(space, str) else space
    limits.check(searched)
    folder, start = ensure_writable(Path(out)), time.perf_counter()
    config = EvolutionConfig(generations=_GENERATIONS if generations is None else generations, population=population)
    rng, measure = np.random.default_rng(seed), AzNas(searched, seed=seed)
    ranked = search_by_proxies(searched, limits.feasible(searched), rng, config, measure, progress)
    subnet, proxies = ranked[0]
    write_json(folder / "subnet.json", {**subnet.to_dict(), "space": searched.name, "proxy": proxy, **asdict(proxies)})
    return ProxySearchResult(
        space=searched,
        subnet=subnet,
        proxies=proxies,
        params=count_costs(searched, subnet).params,
        measured=len(ranked),
        seconds=time.perf_counter() - start,
        file=folder / "subnet.json",
    )


def check_proxy(proxy: str) -> None:
    """Checks the name of a proxy.

    Raises:
        ConfigError: there is no such proxy.
    """
    if proxy not in PROXIES:
        raise ConfigError(f"--proxy is {proxy!r}; legal is {choices(PROXIES)}")
