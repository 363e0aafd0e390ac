from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growtas.nn.supernet import Supernet
from growtas.sampling import sample
from growtas.search.evaluation import racing
from growtas.search.evaluation.evaluator import SubnetEvaluator
from growtas.search.evaluation.racing import Race, Racing
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.search.journal import Evaluation, Journal
from growtas.search.scoring import DROPPED, Scorer
from growtas.space import PRESETS

SPACE = PRESETS["micro"].replace(image_size=16, in_chans=1, num_classes=5, depth=(2, 3))
CONFIG = EvolutionConfig(generations=5, population=12, parents=4)
IMAGES = 75


class Images:
    """Random images; most labels are what one subnet answers, so that subnets agree on many images, as trained ones do."""

    def __init__(self, supernet):
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(IMAGES, 1, 16, 16, generator=generator)
        with torch.inference_mode():
            answers = supernet(self.pixels, sample(SPACE, np.random.default_rng(5))).argmax(1)
        noise = torch.randint(5, (IMAGES,), generator=generator)
        self.labels = torch.where(torch.rand(IMAGES, generator=generator) < 0.2, noise, answers.clone())

    def __len__(self):
        return IMAGES

    def images(self, start, stop):
        return self.pixels[start:stop]

    def take(self, indices):
        return self.pixels[indices]


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    supernet = Supernet(SPACE)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.normal_(std=0.15)
    return supernet.eval()


@pytest.fixture(scope="module")
def images(supernet):
    return Images(supernet)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(racing, "LEAST_IMAGES", 5)
    monkeypatch.setattr("growtas.search.evaluation.evaluator._TOKENS_A_BATCH", 17 * 10)


@pytest.fixture
def evaluate(supernet, images):
    with SubnetEvaluator(supernet, images, threads=1) as evaluator:
        yield evaluator


class Killed(Exception):
    pass


def search(path, evaluate, seed, *, exact=False, die_after=None):
    """The evolution's result, the scorer, and the journal."""

    def dying(subnets, *race):
        for number, item in enumerate(evaluate(subnets, *race)):
            yield item
            if scorer.evaluated + scorer.dropped == die_after:
                raise Killed(number)

    journal = Journal(path, "c", "d", {})
    scorer = Scorer(SPACE, dying, journal, racing=None if exact else Racing(CONFIG.parents, IMAGES))
    every = lambda batch: np.ones(len(batch), bool)  # noqa: E731
    return evolve(SPACE, scorer, every, np.random.default_rng(seed), CONFIG), scorer, journal


def same(ranked, others):
    """Whether both have the same subnets in the same order with the same accuracies, and losses up to rounding."""
    if [(s, score[0], score[2]) for s, score in ranked] != [(s, score[0], score[2]) for s, score in others]:
        return False
    return [score[1] for _, score in ranked] == pytest.approx([score[1] for _, score in others], rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_racing_finds_what_an_exact_search_finds(tmp_path, evaluate, seed):
    exact, _, full = search(tmp_path / "exact", evaluate, seed, exact=True)
    raced, scorer, journal = search(tmp_path / "raced", evaluate, seed)
    assert same(raced.ranked[: CONFIG.parents], exact.ranked[: CONFIG.parents])
    assert {subnet for subnet, _ in raced.ranked} == {subnet for subnet, _ in exact.ranked}
    assert same([generation.best for generation in raced.history], [generation.best for generation in exact.history])
    dropped = [subnet for subnet, score in raced.ranked if score[0] == DROPPED]
    assert scorer.dropped == len(dropped) > 5
    worst = exact.ranked[CONFIG.parents - 1][1][0]
    for subnet in dropped:
        found = journal.get(subnet, needed=IMAGES)
        assert not found.complete
        assert found.seen < IMAGES
        assert journal.get(subnet) is None
        assert full.get(subnet).accuracy < worst
    # What is not dropped has the numbers of the exact search, and ranks above what is.
    kept = [(subnet, score) for subnet, score in raced.ranked if score[0] != DROPPED]
    assert same(kept, [item for item in exact.ranked if item[0] not in set(dropped)])
    assert list(raced.ranked[: len(kept)]) == kept


def test_a_dropped_subnet_saw_the_hardest_images_and_lost_there_for_certain(tmp_path, evaluate, images):
    _, _, full = search(tmp_path / "exact", evaluate, 0, exact=True)
    seen = []

    def watch(subnets, race=None):
        for subnet, evaluation in evaluate(subnets, *([race] if race else [])):
            seen.append((subnet, evaluation, race))
            yield subnet, evaluation

    search(tmp_path / "raced", watch, 0)
    dropped = [(subnet, evaluation, race) for subnet, evaluation, race in seen if not evaluation.complete]
    assert dropped
    for subnet, evaluation, race in dropped:
        answers = full.get(subnet).right_answers(IMAGES)[race.order]
        right = int(answers[: evaluation.seen].sum())
        assert evaluation.accuracy == right / evaluation.seen
        assert right + IMAGES - evaluation.seen < race.needed
        before = max(part.start for part in race.parts() if part.stop == evaluation.seen)
        assert answers[:before].sum() + IMAGES - before >= race.needed
    assert all(race is None for _, _, race in seen[: CONFIG.population])


@pytest.mark.parametrize("die_after", [40, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 11, 12, 13, 17, 25, 59))])
def test_a_killed_race_goes_on_as_if_it_had_not_been(tmp_path, evaluate, die_after):
    want, _, undisturbed = search(tmp_path / "a", evaluate, 1)
    with pytest.raises(Killed):
        search(tmp_path / "b", evaluate, 1, die_after=die_after)
    got, scorer, journal = search(tmp_path / "b", evaluate, 1)
    assert got == want
    assert scorer.reused >= die_after - 1
    assert scorer.reused + scorer.evaluated + scorer.dropped == 60
    for subnet, _ in want.ranked:
        assert journal.get(subnet, IMAGES) == undisturbed.get(subnet, IMAGES)
        again = journal.get(subnet, IMAGES)
        assert again.answers == undisturbed.get(subnet, IMAGES).answers
    repeated, scorer, _ = search(tmp_path / "b", evaluate, 1)
    assert repeated == want
    assert (scorer.evaluated, scorer.dropped) == (0, 0)


def test_a_later_exact_search_evaluates_in_full_what_was_dropped(tmp_path, evaluate):
    raced, first, _ = search(tmp_path / "j", evaluate, 2)
    exact, scorer, journal = search(tmp_path / "j", evaluate, 2, exact=True)
    assert scorer.evaluated == first.dropped > 0
    assert same(exact.ranked[:4], raced.ranked[:4])
    assert same(exact.ranked, search(tmp_path / "alone", evaluate, 2, exact=True)[0].ranked)
    # The race, repeated, goes the same way, though everything is known in full by now.
    again, scorer, _ = search(tmp_path / "j", evaluate, 2)
    assert again == raced
    assert scorer.evaluated == 0
    assert journal.get(raced.ranked[-1][0]).complete


def test_the_number_of_threads_and_the_memory_change_nothing(tmp_path, supernet, images, monkeypatch):
    monkeypatch.setattr("growtas.search.evaluation.evaluator._TOKENS_A_BATCH", 17 * 4)
    monkeypatch.setattr(f"{__name__}.CONFIG", dataclasses.replace(CONFIG, generations=3))
    results = []
    for number, options in enumerate(({}, {"threads": 3}, {"image_bytes": 4 * 16 * 16 * 9}, {"activation_bytes": 0})):
        with SubnetEvaluator(supernet, images, **options) as evaluator:
            result, _, journal = search(tmp_path / str(number), evaluator, 0)
        accuracies = [(subnet, score[0]) for subnet, score in result.ranked if score[0] != DROPPED]
        results.append((accuracies[: CONFIG.parents], [journal.get(subnet).answers for subnet, _ in accuracies[: CONFIG.parents]]))
    assert all(result == results[0] for result in results)


def evaluation(answers):
    return Evaluation(float(np.mean(answers)), 1.0, answers=np.packbits(np.array(answers, bool)).tobytes())


def test_the_order_is_hardest_first_and_needed_is_the_kth_best():
    racing = Racing(2, 4)
    racing.add(evaluation([1, 0, 1, 1]))
    racing.add(Evaluation(0.99, np.inf, seen=2))
    assert racing.race() is None
    racing.add(evaluation([1, 0, 0, 1]))
    race = racing.race()
    assert race.needed == 2
    assert race.order.tolist() == [1, 2, 0, 3]
    # Later ones raise what is needed, and leave the order.
    racing.add(evaluation([0, 1, 1, 1]))
    racing.add(Evaluation(0.25, 1.0))
    assert racing.race().needed == 3
    assert racing.race().order.tolist() == [1, 2, 0, 3]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 41))
def test_lost_means_lost(answers, needed):
    race = Race(needed=needed, order=np.arange(len(answers)))
    lost = [race.is_lost(sum(answers[:seen]), len(answers) - seen) for seen in range(len(answers) + 1)]
    assert lost[-1] == (sum(answers) < needed)
    assert all(after or not before for before, after in itertools.pairwise(lost))


@given(st.integers(1, 20_000))
def test_parts_cover_the_images(images):
    covered = Race(needed=1, order=np.arange(images)).parts()
    assert [row for part in covered for row in (part.start, part.stop)][:: len(covered) * 2 - 1] == [0, images]
    assert all(one.stop == other.start for one, other in itertools.pairwise(covered))
    assert len(covered) <= racing.PARTS
    assert all(part.stop > part.start for part in covered)


def test_a_race_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Race(needed=1, order=np.arange(3)).needed = 2
