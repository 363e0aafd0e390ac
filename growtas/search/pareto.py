"""Pareto fronts over accuracy and costs: their axes, dominance, hypervolume, and the search by NSGA-II (Deb et al., 2002).

pymoo provides the selection by dominance and crowding and the survival. growtas draws, mutates and crosses the subnets and checks
their limits, so that no subnet beyond a limit is evaluated, and none twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.errors import ConfigError, MissingExtra, choices
from growtas.progress import SILENT, Progress
from growtas.sampling import Feasible, crossover, mutate, sample_feasible
from growtas.search.accuracy_predictor import AccuracyPredictor, promising
from growtas.search.evolution import EvolutionConfig, EvolutionResult, beginning, breed, fill_up, run_generations
from growtas.search.scoring import Score
from growtas.search.targets import Target
from growtas.space import SearchSpace
from growtas.subnet import Subnet

OBJECTIVES = ("accuracy", "pareto")
AXES = ("accuracy", "latency", "params", "macs")
_SPREAD = 16


@dataclass(frozen=True)
class Axis:
    """A cost axis of a front; lower values are better.

    Attributes:
        name: name of the cost: ``params``, ``macs``, or ``latency`` followed by the device's name.
        kind: ``counted`` for params and MACs; for a latency the kind of its estimator, such as ``modelled``.
        unit: ``ms`` for latencies, else empty.
        costs: function that returns the costs of a batch of subnets, shape ``(len(batch),)``.
        highest: the limit, or the cost of the largest subnet if that is lower.
        lowest: cost of the smallest subnet.
    """

    name: str
    kind: str
    unit: str
    costs: Callable[[SubnetBatch], NDArray[np.float64]]
    highest: float
    lowest: float


def parse_axes(text: str | None, devices: bool) -> tuple[str, ...]:
    """Parses the axes of ``--front``: accuracy and at least one cost.

    Args:
        text: names separated by commas. None means accuracy, and latency if there is a device, else params.
        devices: whether the search has a device.

    Raises:
        ConfigError: a name is unknown, there is no cost or no accuracy, or latency has no device.
    """
    if text is None:
        return ("accuracy", "latency" if devices else "params")
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in AXES:
            raise ConfigError(f"--front {text}: {name!r} is not an axis; legal are {choices(AXES)}")
    if "accuracy" not in names or len(names) < 2:
        raise ConfigError(f"--front {text}: a front needs accuracy and at least one of {choices(AXES[1:])}")
    if "latency" in names and not devices:
        raise ConfigError(f"--front {text}: a latency needs --device")
    return names


def cost_axes(space: SearchSpace, targets: Sequence[Target], names: Sequence[str], highest: dict[str, int | None]) -> list[Axis]:
    """Returns the cost axes of a front, with a latency axis for each device that has an estimator.

    Args:
        space: the search space.
        targets: the devices.
        names: axes out of :data:`AXES`; accuracy is not a cost and is skipped.
        highest: limits on ``params`` and ``macs``.
    """
    ends = SubnetBatch.from_subnets([space.smallest, space.largest])
    axes: list[Axis] = []

    def add(name: str, kind: str, unit: str, costs: Callable[[SubnetBatch], NDArray[np.float64]], limit: float | None) -> None:
        lowest, largest = (float(value) for value in costs(ends))
        axes.append(Axis(name, kind, unit, costs, min(largest, limit if limit is not None else largest), lowest))

    for name in names:
        if name == "latency":
            for target in targets:
                if (model := target.estimator) is not None:
                    add(f"latency {target.device}", model.kind, "ms", model.predict_ms, target.max_ms)
        elif name != "accuracy":
            add(name, "counted", "", _counter(space, name == "macs"), highest.get(name))
    return axes


def axis_costs(axes: Sequence[Axis], batch: SubnetBatch) -> NDArray[np.float64]:
    """Returns the costs of a batch of subnets, shape ``(len(batch), len(axes))``."""
    return np.column_stack([axis.costs(batch) for axis in axes])


def _counter(space: SearchSpace, index: int) -> Callable[[SubnetBatch], NDArray[np.float64]]:
    return lambda batch: np.asarray(count_costs_batch(space, batch)[index], np.float64)


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tells which points are not dominated; shape ``(n,)``.

    A point is dominated if another one is at least as good in all columns and better in one; equal points are not.

    Args:
        values: the points, lower is better, shape ``(n, objectives)``.
    """
    front = np.ones(len(values), bool)
    for row, point in enumerate(values):
        front[row] = not np.any((values <= point).all(axis=1) & (values < point).any(axis=1))
    return front


def hypervolume(values: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Computes the hypervolume: the volume between the points and a reference that the points dominate. Larger is better.

    The computation slices along the first objective. It is exact for any number of objectives, and fast for two to four.

    Args:
        values: the points, lower is better, shape ``(n, objectives)``; points that are not below the reference are ignored.
        reference: the reference point, shape ``(objectives,)``.
    """
    points = values[(values < reference).all(axis=1)]
    if not len(points):
        return 0.0
    points = np.unique(points[non_dominated(points)], axis=0)  # sorted by the first objective
    if points.shape[1] == 1:
        return float(reference[0] - points[0, 0])
    ends = np.append(points[1:, 0], reference[0])
    slabs = ((end - point[0], row) for row, (point, end) in enumerate(zip(points, ends, strict=True)))
    return float(sum(width * hypervolume(points[: row + 1, 1:], reference[1:]) for width, row in slabs if width > 0))


FRONT_NUMBERS = """The numbers of a whole front in ``front.json``.

Fields:
    axes (list): The axes of the front, accuracy first.
    axes[].name (text): ``accuracy``, ``params``, ``macs``, or ``latency`` with the name of the device.
    axes[].kind (text): Where its numbers come from: ``evaluated``, ``counted``, or ``modelled`` for predicted latencies.
    axes[].unit (text): Unit of a cost. Absent for accuracy.
    axes[].reference (number): The worst value, from which the hypervolume is counted.
    axes[].ideal (number): The best value.
    hypervolume (number): Share of the box between reference and ideal that the front dominates, 0 to 1.
"""


def front_numbers(axes: Sequence[Axis], accuracies: NDArray[np.float64], costs: NDArray[np.float64]) -> dict[str, Any]:
    """Returns the axes and the hypervolume of a front for ``front.json``.

    The hypervolume is relative: 1 means accuracy 1 at the cost of the smallest subnet. The reference point is accuracy 0 at the
    limit, or at the cost of the largest subnet without a limit.

    Args:
        axes: the cost axes.
        accuracies: accuracies of the front's points, 0 to 1, shape ``(n,)``.
        costs: costs of the front's points, shape ``(n, len(axes))``.
    """
    low, high = (np.array([getattr(axis, end) for axis in axes]) for end in ("lowest", "highest"))
    scaled = np.column_stack([1 - accuracies, (costs - low) / np.maximum(high - low, np.finfo(float).tiny)])
    return {
        "axes": [
            {"name": "accuracy", "kind": "evaluated", "reference": 0.0, "ideal": 1.0},
            *({"name": a.name, "kind": a.kind, "unit": a.unit, "reference": a.highest, "ideal": a.lowest} for a in axes),
        ],
        "hypervolume": hypervolume(scaled, np.ones(scaled.shape[1])),
    }


def evolve_front(
    space: SearchSpace,
    evaluate: Callable[[Sequence[Subnet]], Sequence[Score]],
    costs: Callable[[SubnetBatch], NDArray[np.float64]],
    feasible: Feasible,
    rng: Generator,
    config: EvolutionConfig | None = None,
    progress: Progress = SILENT,
    *,
    predict: bool = False,
    first: Sequence[Subnet] = (),
) -> EvolutionResult:
    """Searches a front over accuracy (the first entry of a score) and costs with NSGA-II.

    Args:
        space, evaluate, feasible, rng, progress, predict, first: as for :func:`growtas.search.evolution.evolve`. With ``predict``,
            a generation consists of the best subnets by predicted accuracy and known costs.
        costs: returns the costs of a batch, lower is better, shape ``(n, costs)``.
        config: generations, population and mutation probability. NSGA-II takes its parents from the whole population.

    Returns:
        All evaluated subnets, best accuracy first.

    Raises:
        MissingExtra: pymoo is not installed.
        LimitError: no subnet is legal.
    """
    config = config or EvolutionConfig()
    selection = _Nsga2(rng, config.population)

    def propose(scores: Mapping[Subnet, Score]) -> list[Subnet]:
        if not scores:
            start = beginning(space, feasible, config.population // 2, first, predict=predict)
            return _first(start, space, costs, feasible, rng, config.population)
        children: dict[Subnet, None] = {}
        if predict:
            predictor = AccuracyPredictor(space, list(scores), [score[0] for score in scores.values()])
            known = objectives(list(scores), np.array([float(score[0]) for score in scores.values()]))

            def best(subnets: Sequence[Subnet], count: int) -> list[Subnet]:
                return [subnets[row] for row in _most_improving(objectives(subnets, predictor(subnets)), known, count)]

            children = dict.fromkeys(promising(space, scores, selection.survivors(), best, feasible, rng, config.population))
        pairs = selection.pairs()

        def make() -> Subnet:
            first, second = next(pairs)
            if rng.random() < 0.5:
                return mutate(space, first, rng, config.mutation_probability)
            return crossover(first, second, rng)

        breed(children, make, config.population - len(children), scores, feasible)
        fill_up(children, space, scores, feasible, rng, config.population)
        return list(children)

    def objectives(subnets: Sequence[Subnet], accuracies: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([-accuracies, costs(SubnetBatch.from_subnets(subnets))])

    def evaluate_and_select(children: Sequence[Subnet]) -> Sequence[Score]:
        scores = evaluate(children)
        selection.survive(children, objectives(children, np.array([float(score[0]) for score in scores])))
        return scores

    return run_generations(propose, evaluate_and_select, config.generations, progress)


def _first(
    start: Sequence[Subnet],
    space: SearchSpace,
    costs: Callable[[SubnetBatch], NDArray[np.float64]],
    feasible: Feasible,
    rng: Generator,
    size: int,
) -> list[Subnet]:
    """Returns the first generation: the subnets in ``start``, the smallest one, and random ones spread evenly over each cost.

    Uniformly drawn subnets would have mostly medium costs, but a front reaches from the lowest to the highest cost.
    """
    draws = list(dict.fromkeys([space.smallest, *sample_feasible(space, _SPREAD * size, rng, feasible)]))
    values = costs(SubnetBatch.from_subnets(draws))
    children = dict.fromkeys(start)
    share = -(-(size - len(start)) // values.shape[1])
    for column in values.T:
        order = np.argsort(column, kind="stable")
        picks = order[np.linspace(0, len(order) - 1, min(share, len(order))).round().astype(np.int64)]
        children.update(dict.fromkeys(draws[pick] for pick in picks))
    children = dict.fromkeys(list(children)[:size])
    fill_up(children, space, {}, feasible, rng, size)
    return list(children)


def _most_improving(values: NDArray[np.float64], known: NDArray[np.float64], count: int) -> list[int]:
    """Returns the rows of at most ``count`` points that improve a front most, chosen one after the other.

    The improvement is the difference between the lowest first objective of all known or already chosen points that cost no more,
    and the point's own. So a single good prediction does not lead to many points of nearly the same cost.

    Args:
        values: the points to choose from, lower is better, shape ``(n, objectives)``; the first objective is at most 0.
        known: the evaluated points in the same form.
        count: largest number of rows.
    """

    def lowest(points: NDArray[np.float64]) -> NDArray[np.float64]:
        cheaper = (points[:, 1:] <= values[:, None, 1:]).all(axis=2)
        return np.asarray(np.where(cheaper, points[:, 0], 0.0).min(axis=1))

    reached, rows = lowest(known), list[int]()
    for _ in range(min(count, len(values))):
        gains = reached - values[:, 0]
        gains[rows] = -np.inf
        rows.append(int(np.argmax(gains)))
        reached = np.minimum(reached, lowest(values[rows[-1:]]))
    return rows


class _Nsga2:
    """A population of ``size`` subnets with pymoo's selection of parents and survivors; ``rng`` seeds pymoo's generator."""

    def __init__(self, rng: Generator, size: int) -> None:
        try:
            from pymoo.algorithms.moo.nsga2 import binary_tournament
            from pymoo.core.population import Population
            from pymoo.core.problem import Problem
            from pymoo.operators.selection.tournament import TournamentSelection
            from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
        except ImportError:
            raise MissingExtra("pymoo", "pareto", "a search for a Pareto front") from None
        self._new, self._problem, self._size = Population.new, Problem(n_var=1, n_obj=2), size
        self._merge, self._survival = Population.merge, RankAndCrowding()
        self._selection = TournamentSelection(func_comp=binary_tournament)
        self._random = np.random.default_rng(int(rng.integers(2**32)))
        self._population: Any = None

    def survive(self, children: Sequence[Subnet], objectives: NDArray[np.float64]) -> None:
        """Adds evaluated children (lower objectives are better), and keeps the best fronts, the last one thinned by crowding."""
        values = np.empty((len(children), 1), object)
        values[:, 0] = children
        new = self._new("X", values, "F", objectives)
        everyone = new if self._population is None else self._merge(self._population, new)
        self._population = self._survival.do(self._problem, everyone, n_survive=self._size, random_state=self._random)

    def survivors(self) -> list[Subnet]:
        """Returns the subnets of the population."""
        return [individual.X[0] for individual in self._population]

    def pairs(self) -> Iterator[tuple[Subnet, Subnet]]:
        """Yields pairs of parents chosen by binary tournaments, without end."""
        rules = SimpleNamespace(tournament_type="comp_by_dom_and_crowding", random_state=self._random)
        while True:
            rows = self._selection.do(
                self._problem, self._population, self._size, n_parents=2, to_pop=False, algorithm=rules, random_state=self._random
            )
            yield from ((self._population[int(a)].X[0], self._population[int(b)].X[0]) for a, b in rows)
