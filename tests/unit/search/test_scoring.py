from __future__ import annotations

import json
import math

import pytest

from growtas.costs import count_costs
from growtas.progress import SILENT
from growtas.search.evaluation.racing import Racing
from growtas.search.journal import Evaluation, Journal
from growtas.search.scoring import DROPPED, Scorer
from growtas.space import PRESETS
from growtas.subnet import Subnet
from tests.progress_recorder import Recorder

MICRO = PRESETS["micro"]
IMAGES = 8
ONE, TWO, THREE, FOUR = (
    Subnet(width, (2, 2, 2, 2), (2.0, 2.0, 2.0, ratio)) for width, ratio in ((32, 2), (32, 4), (64, 2), (64, 4))
)
ACCURACY = {ONE: 0.75, TWO: 0.5, THREE: 0.25, FOUR: 0.625}


class Evaluator:
    """Drops, after the third image, what will not reach what is needed."""

    def __init__(self):
        self.asked = []

    def __call__(self, subnets, race=None):
        for subnet in subnets:
            self.asked.append((subnet, race.needed if race else None))
            if race and ACCURACY[subnet] * IMAGES < race.needed:
                yield subnet, Evaluation(1 / 3, 1.0, seen=3)
            else:
                yield subnet, Evaluation(ACCURACY[subnet], 1.0, answers=b"\xf0")


def scorer(path, evaluate, *, parents=None, progress=SILENT):
    racing = Racing(parents, IMAGES) if parents else None
    return Scorer(MICRO, evaluate, Journal(path, "c", "d", {}), racing, progress)


def test_a_dropped_subnet_ranks_below_every_complete_one_and_shows_no_accuracy(tmp_path):
    progress = Recorder()
    score = scorer(tmp_path / "j", Evaluator(), parents=1, progress=progress)
    (first,) = score([ONE])
    dropped, also = score([THREE, TWO])
    assert first == (0.75, -1.0, -count_costs(MICRO, ONE).params)
    assert dropped == (DROPPED, -math.inf, -count_costs(MICRO, THREE).params)
    assert also > dropped  # fewer parameters
    assert max(dropped, also) < (0.0, -math.inf, -(10**9))
    assert (score.evaluated, score.dropped, score.reused) == (1, 2, 0)
    assert [event.evaluation.complete for event in progress.events] == [True, False, False]
    assert progress.done == 3
    lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert [line["type"] for line in lines] == ["header", "evaluation", "dropped", "dropped"]
    assert (lines[2]["seen"], lines[2]["needed"], lines[2]["accuracy_of_seen"]) == (3, 6, 1 / 3)
    assert "accuracy" not in lines[2]
    assert "loss" not in lines[2]


def test_subnets_of_one_call_do_not_compete_with_each_other(tmp_path):
    evaluate = Evaluator()
    score = scorer(tmp_path / "j", evaluate, parents=1)
    score([THREE, ONE])
    score([FOUR])
    assert evaluate.asked == [(THREE, None), (ONE, None), (FOUR, 6)]


def test_a_drop_counts_for_races_that_need_as_much(tmp_path):
    score = scorer(tmp_path / "j", Evaluator(), parents=1)
    score([ONE])
    score([FOUR, THREE])
    evaluate = Evaluator()
    score = scorer(tmp_path / "j", evaluate, parents=1)
    score([TWO])
    # Less is needed now: what FOUR did against 6 right answers says nothing about 4.
    assert score([FOUR])[0][0] == 0.625
    assert evaluate.asked == [(TWO, None), (FOUR, 4)]
    evaluate = Evaluator()
    score = scorer(tmp_path / "j", evaluate, parents=1)
    score([ONE])
    assert [found[0] for found in score([FOUR, THREE])] == [DROPPED, DROPPED]
    assert evaluate.asked == []


def test_without_racing_everything_is_complete(tmp_path):
    evaluate = Evaluator()
    scores = scorer(tmp_path / "j", evaluate)([ONE, TWO, THREE, FOUR])
    assert [score[0] for score in scores] == list(ACCURACY.values())
    assert {needed for _, needed in evaluate.asked} == {None}


@pytest.mark.parametrize("parents", [2, 3])
def test_the_kth_best_decides(tmp_path, parents):
    evaluate = Evaluator()
    score = scorer(tmp_path / "j", evaluate, parents=parents)
    score([ONE, FOUR, THREE])
    score([TWO])
    assert evaluate.asked[-1] == (TWO, {2: 5, 3: 2}[parents])
