from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.sampling import sample_batch, sample_feasible
from growtas.search.accuracy_predictor import AccuracyPredictor, legal_shapes, promising
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.search.limits import Limits
from growtas.search.pareto import evolve_front, hypervolume
from growtas.space import PRESETS

MICRO = PRESETS["micro"]


class Hidden:
    """An accuracy of a hidden form: it saturates with what the choices of blocks are worth, and with width and depth.

    Neighbouring blocks may suit each other or not, and a part that no gene explains stands for the few images of an evaluation.
    """

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.seed, self.evaluated = seed, []
        self.heads, self.ratios = rng.random((2, MICRO.max_depth, 3)) / 4
        self.pairs = rng.normal(0, 0.1, (MICRO.max_depth, 3, 3))

    def accuracy(self, subnet):
        heads = [MICRO.num_heads.index(value) for value in subnet.num_heads]
        ratios = [MICRO.mlp_ratio.index(value) for value in subnet.mlp_ratio]
        worth = sum(self.heads[i, head] * (head + 1) for i, head in enumerate(heads))
        worth += sum(self.ratios[i, ratio] * (ratio + 1) for i, ratio in enumerate(ratios))
        worth += sum(self.pairs[i, a, b] for i, (a, b) in enumerate(pairwise(heads)))
        genes = (subnet.embed_dim, *subnet.num_heads, *(int(ratio) for ratio in subnet.mlp_ratio))
        chance = np.random.default_rng([self.seed, *genes]).normal(0, 0.002)
        return float(0.95 - 0.3 * np.exp(-worth / 3) - 3 / subnet.embed_dim + chance)

    def __call__(self, subnets):
        self.evaluated += subnets
        return [(self.accuracy(subnet), 0.0, 0) for subnet in subnets]


def params(batch):
    return count_costs_batch(MICRO, batch)[0].astype(float)[:, None]


def test_unseen_subnets_are_ranked_about_right_and_known_ones_are_not_forgotten():
    for seed in range(3):
        hidden = Hidden(seed)
        subnets = list(dict.fromkeys(sample_batch(MICRO, 500, np.random.default_rng(seed))))
        accuracies = np.array([hidden.accuracy(subnet) for subnet in subnets])
        predictor = AccuracyPredictor(MICRO, subnets[:250], accuracies[:250])
        assert spearmanr(predictor(subnets[250:]), accuracies[250:]).statistic > 0.8
        assert np.abs(predictor(subnets[:250]) - accuracies[:250]).mean() < accuracies.std() / 2


def test_of_two_equal_expectations_the_less_known_one_is_worth_more():
    known = [MICRO.smallest, MICRO.largest]
    predictor = AccuracyPredictor(MICRO, known, [0.5, 0.5])
    assert predictor([MICRO.smallest])[0] <= predictor([MICRO.middle()])[0]
    predictor = AccuracyPredictor(MICRO, known, [0.4, 0.6])
    near, far = predictor(known)
    assert near < far
    assert predictor([MICRO.middle()])[0] > 0.5


def test_a_constant_and_a_single_accuracy_can_be_fitted():
    subnets = list(dict.fromkeys(sample_batch(MICRO, 20, np.random.default_rng(0))))
    for count in (1, 10):
        assert AccuracyPredictor(MICRO, subnets[:count], [0.1] * count)(subnets) == pytest.approx(0.1)


def test_what_is_promising_is_new_legal_and_no_more_than_asked():
    limit = 90_000
    feasible = Limits(max_params=limit).feasible(MICRO)
    known = dict.fromkeys(sample_feasible(MICRO, 60, np.random.default_rng(0), feasible))
    asked = []

    def best(subnets, count):
        asked.extend(subnets)
        return sorted(subnets, key=str)[:count]

    found = promising(MICRO, known, list(known)[:5], best, feasible, np.random.default_rng(1), 30)
    assert len(found) == len(set(found)) == 30
    assert not set(found) & set(known)
    assert (params(SubnetBatch.from_subnets(found)) <= limit).all()
    assert found == sorted(set(asked), key=str)[:30], "it loses none of the best that it has seen"


@pytest.mark.slow
def test_half_of_the_evaluations_find_a_front_as_good_as_twice_as_many_do_without():
    largest = float(params(SubnetBatch.from_subnets([MICRO.largest]))[0, 0])
    gains = []
    for seed in range(5):
        volumes = []
        for predict, generations in ((True, 5), (False, 10), (False, 5)):
            hidden, config = Hidden(seed), EvolutionConfig(generations=generations, population=30)
            rng, feasible = np.random.default_rng(seed), Limits().feasible(MICRO)
            found = evolve_front(MICRO, hidden, params, feasible, rng, config, predict=predict)
            assert len(set(hidden.evaluated)) == len(hidden.evaluated) == len(found.ranked) == 30 * generations
            costs = params(SubnetBatch.from_subnets([subnet for subnet, _ in found.ranked]))
            values = np.column_stack([[-score[0] for _, score in found.ranked], costs])
            volumes.append(hypervolume(values, np.array([-0.6, largest + 1])))
        gains.append((volumes[0] - volumes[1], volumes[0] - volumes[2]))
    against_double, against_equal = np.array(gains).T
    assert np.mean(against_double) > 0, gains
    assert sum(against_equal > 0) == 5, gains


def test_half_of_the_evaluations_find_a_better_subnet_than_twice_as_many_do_without():
    limit = 120_000
    feasible, wins = Limits(max_params=limit).feasible(MICRO), []
    for seed in range(5):
        best = []
        for predict, generations in ((True, 5), (False, 10)):
            hidden, config = Hidden(seed), EvolutionConfig(generations=generations, population=30)
            found = evolve(MICRO, hidden, feasible, np.random.default_rng(seed), config, predict=predict)
            assert len(set(hidden.evaluated)) == len(hidden.evaluated) == 30 * generations
            assert (params(SubnetBatch.from_subnets(hidden.evaluated)) <= limit).all()
            best.append(found.ranked[0][1][0])
        wins.append(best[0] - best[1])
    assert np.mean(wins) > 0, wins
    assert sum(win > -0.002 for win in wins) >= 4, wins


def test_every_legal_width_and_depth_is_evaluated_first():
    limit = int(params(SubnetBatch.from_subnets([MICRO.middle()]))[0, 0])
    feasible = Limits(max_params=limit).feasible(MICRO)
    every = SubnetBatch.from_subnets(list(sample_feasible(MICRO, 5000, np.random.default_rng(0), feasible)))
    shapes = set(zip(every.embed_dim.tolist(), every.depth.tolist(), strict=True))
    assert 3 < len(shapes) < 9
    for search in (evolve, partial(evolve_front, costs=params)):
        hidden, config = Hidden(0), EvolutionConfig(generations=1, population=20)
        search(MICRO, hidden, feasible=feasible, rng=np.random.default_rng(1), config=config, predict=True)
        assert {(subnet.embed_dim, subnet.depth) for subnet in hidden.evaluated} == shapes
        assert len(set(hidden.evaluated)) == len(hidden.evaluated) == 20
    assert len(legal_shapes(MICRO, feasible, 3)) == 3
