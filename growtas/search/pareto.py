"""Fronts over accuracy and costs: their axes, which subnets no other one beats, how good such a set is, and NSGA-II to find one.

Of NSGA-II (Deb et al. 2002), selection by dominance and crowding and survival are pymoo's. How subnets are drawn, mutated and
crossed, and which are legal, is ours, so that no subnet beyond a limit is ever evaluated, and none twice.
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
from growtas.search.accuracy_predictor import AccuracyPredictor, legal_shapes, promising
from growtas.search.evolution import EvolutionConfig, EvolutionResult, breed, fill_up, run_generations
from growtas.search.scoring import Score
from growtas.search.targets import Target
from growtas.space import SearchSpace
from growtas.subnet import Subnet

OBJECTIVES = ("accuracy", "pareto")
AXES = ("accuracy", "latency", "params", "macs")
_SPREAD = 16


@dataclass(frozen=True)
class Axis:
    """A cost that a front is drawn over; lower is better.

    Attributes:
        name: ``params``, ``macs``, or ``latency`` with the device's name.
        kind: ``modelled`` for a predicted latency, ``counted`` for params and MACs.
        unit: ``ms``, or empty.
        costs: values of many subnets, shape ``(len(batch),)``.
        highest: the limit, or the cost of the largest subnet.
        lowest: the cost of the smallest subnet.
    """

    name: str
    kind: str
    unit: str
    costs: Callable[[SubnetBatch], NDArray[np.float64]]
    highest: float
    lowest: float


def parse_axes(text: str | None, devices: bool) -> tuple[str, ...]:
    """The names of ``--front``: accuracy and at least one cost; by default latency where a device is named, else params.

    Raises:
        ConfigError: an unknown name, no cost, or latency without a device.
    """
    if text is None:
        return ("accuracy", "latency" if devices else "params")
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in AXES:
            raise ConfigError(f"--front {text}: {name!r} is no axis; legal are {choices(AXES)}")
    if "accuracy" not in names or len(names) < 2:
        raise ConfigError(f"--front {text}: a front is over accuracy and at least one of {choices(AXES[1:])}")
    if "latency" in names and not devices:
        raise ConfigError(f"--front {text}: a latency needs --device")
    return names


def cost_axes(space: SearchSpace, targets: Sequence[Target], names: Sequence[str], highest: dict[str, int | None]) -> list[Axis]:
    """The costs of a front, a latency for each device that predicts one.

    Args:
        names: of :data:`AXES`; accuracy is no cost and left out.
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
    """The costs of many subnets, shape ``(len(batch), len(axes))``."""
    return np.column_stack([axis.costs(batch) for axis in axes])


def _counter(space: SearchSpace, index: int) -> Callable[[SubnetBatch], NDArray[np.float64]]:
    return lambda batch: np.asarray(count_costs_batch(space, batch)[index], np.float64)


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points no other one dominates: none is as good in all columns and better in one. Of equal points all stay.

    Args:
        values: lower is better, shape ``(n, objectives)``; the result has the shape ``(n,)``.
    """
    front = np.ones(len(values), bool)
    for row, point in enumerate(values):
        front[row] = not np.any((values <= point).all(axis=1) & (values < point).any(axis=1))
    return front


def hypervolume(values: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The volume that points dominate below a reference; lower values are better, so a larger volume is.

    By slicing: exact for any number of objectives, and quick for the two to four of a search.

    Args:
        values: shape ``(n, objectives)``; points that are not below the reference count nothing.
        reference: shape ``(objectives,)``.
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
    """The axes and the hypervolume of a front, as ``front.json`` has them.

    The hypervolume is relative: 1 would be accuracy 1 at the cost of the smallest subnet, and the reference point is accuracy 0 at
    the limit, or at the cost of the largest subnet where there is none.

    Args:
        accuracies, costs: of the front's points, shapes ``(n,)`` and ``(n, len(axes))``.
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
) -> EvolutionResult:
    """NSGA-II over accuracy, the first entry of a score, and costs.

    Args:
        evaluate, feasible, rng, progress, predict: as for :func:`growtas.search.evolution.evolve`. With ``predict``, a generation
            is the best by predicted accuracies and by costs, which are known.
        costs: what else counts, lower is better, shape ``(n, costs)``.
        config: generations, population and mutation probability; NSGA-II takes its parents from the whole population.

    Returns:
        Every evaluated subnet, best accuracy first.

    Raises:
        MissingExtra: pymoo is not installed.
        LimitError: no subnet is legal.
    """
    config = config or EvolutionConfig()
    selection = _Nsga2(rng, config.population)

    def propose(scores: Mapping[Subnet, Score]) -> list[Subnet]:
        if not scores:
            start = legal_shapes(space, feasible, config.population // 2) if predict else []
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
    """The first generation: the given subnets, the smallest one, and random ones spread over each cost in turn.

    Uniform draws crowd in the middle of the costs; a front has two ends.
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
    """Rows of points that would improve a front most, one after the other; ``count`` at most.

    A point improves it by how much lower its first objective is than that of all points that cost no more, be they known or chosen
    before it. So many points of one cost are not chosen for one good prediction.

    Args:
        values, known: lower is better, shape ``(n, objectives)``; the first objective is at most 0.
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
    """The population of ``size`` subnets, and pymoo's choice of who mates in it and who survives; ``rng`` seeds pymoo's own."""

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
        """Add evaluated children, lower objectives being better, and keep the best fronts, the sparsest of the last one."""
        values = np.empty((len(children), 1), object)
        values[:, 0] = children
        new = self._new("X", values, "F", objectives)
        everyone = new if self._population is None else self._merge(self._population, new)
        self._population = self._survival.do(self._problem, everyone, n_survive=self._size, random_state=self._random)

    def survivors(self) -> list[Subnet]:
        """The population's subnets."""
        return [individual.X[0] for individual in self._population]

    def pairs(self) -> Iterator[tuple[Subnet, Subnet]]:
        """Parents by binary tournaments, without end."""
        rules = SimpleNamespace(tournament_type="comp_by_dom_and_crowding", random_state=self._random)
        while True:
            rows = self._selection.do(
                self._problem, self._population, self._size, n_parents=2, to_pop=False, algorithm=rules, random_state=self._random
            )
            yield from ((self._population[int(a)].X[0], self._population[int(b)].X[0]) for a, b in rows)
