from __future__ import annotations

import json
import math

import pytest

from growtas.costs import count_costs
from growtas.errors import CheckpointError, LimitError, UsageError
from growtas.search.evolution import EvolutionConfig
from growtas.search.journal import Evaluation, Journal
from growtas.search.limits import Limits
from growtas.search.rerank import Recorded
from growtas.search.scoring import Scorer
from growtas.search.search import Search
from growtas.space import PRESETS
from growtas.subnet import Subnet

MICRO = PRESETS["micro"]
CONFIG = EvolutionConfig(generations=4, population=10)


def evaluate(subnets):
    for subnet in subnets:
        yield subnet, Evaluation(count_costs(MICRO, subnet).macs / 2e7, 1.0)


def search(path, limits=None):
    scorer = Scorer(MICRO, evaluate, Journal(path, "checkpoint", "images", {}))
    return Search(space=MICRO, limits=limits or Limits()).run(scorer, CONFIG, 0)


def test_the_same_limits_give_the_same_ranking(tmp_path):
    outcome = search(tmp_path / "j")
    replayed = Recorded.read(tmp_path / "j", "checkpoint").ranked(MICRO, Limits().feasible(MICRO))
    assert [score for _, score in replayed.ranked] == [score for _, score in outcome.result.ranked]
    assert set(replayed.ranked) == set(outcome.result.ranked)


def test_new_limits_pick_the_best_that_is_recorded_and_legal(tmp_path):
    outcome = search(tmp_path / "j")
    limits = Limits(max_params=100_000)
    legal = [(s, score) for s, score in outcome.result.ranked if count_costs(MICRO, s).params <= 100_000]
    assert 0 < len(legal) < len(outcome.result.ranked)
    replayed = Recorded.read(tmp_path / "j", "checkpoint").ranked(MICRO, limits.feasible(MICRO))
    assert set(replayed.ranked) == set(legal)
    assert replayed.ranked[0][1] == max(score for _, score in legal)


def test_reading_changes_nothing_and_survives_a_torn_line(tmp_path):
    path = tmp_path / "j"
    search(path)
    with open(path, "a") as file:
        file.write('{"type": "evalu')
    before = path.read_bytes()
    assert len(Recorded.read(path, "checkpoint").evaluations) == 40
    assert path.read_bytes() == before


def test_only_the_last_search_s_images_and_the_checkpoint_count(tmp_path):
    path, subnet = tmp_path / "j", MICRO.smallest
    Journal(path, "old", "images", {}).record(subnet, Evaluation(0.1, 1.0))
    Journal(path, "checkpoint", "few images", {}).record(subnet, Evaluation(0.2, 1.0))
    Journal(path, "checkpoint", "images", {}).record(subnet, Evaluation(0.3, math.inf))
    recorded = Recorded.read(path, "checkpoint")
    assert (recorded.evaluations, recorded.data_fingerprint) == ({subnet: Evaluation(0.3, math.inf)}, "images")
    with pytest.raises(UsageError, match="no entries for the run's newest checkpoint"):
        Recorded.read(path, "newer")


def test_subnets_of_other_choices_are_left_out(tmp_path):
    path, foreign = tmp_path / "j", Subnet(40, (2,) * 4, (2.0,) * 4)
    journal = Journal(path, "checkpoint", "images", {})
    journal.record(foreign, Evaluation(0.9, 1.0))
    recorded = Recorded.read(path, "checkpoint")
    assert recorded.scores(MICRO) == {}
    with pytest.raises(LimitError, match="none of the 0 subnets"):
        recorded.ranked(MICRO, Limits().feasible(MICRO))


def test_what_is_no_journal_is_said(tmp_path):
    with pytest.raises(UsageError, match="no journal to replay"):
        Recorded.read(tmp_path / "absent", "checkpoint")
    (tmp_path / "j").write_text(json.dumps({"type": "header", "checkpoint_sha256": "checkpoint"}) + "\n")
    with pytest.raises(CheckpointError, match="not a search journal"):
        Recorded.read(tmp_path / "j", "checkpoint")


def test_other_journals_of_the_same_images_are_read_too(tmp_path):
    paths = [tmp_path / name for name in ("own", "other", "foreign", "damaged", "absent")]
    own, other, foreign = (Journal(path, "checkpoint", images, {}) for path, images in zip(paths, ("i", "i", "j"), strict=False))
    own.record(MICRO.smallest, Evaluation(0.3, 1.0))
    other.record(MICRO.smallest, Evaluation(0.4, 1.0))
    other.record(MICRO.largest, Evaluation(0.5, 1.0))
    foreign.record(MICRO.middle(), Evaluation(0.6, 1.0))
    paths[3].write_text("nonsense\n{}\n")
    recorded = Recorded.read(paths[0], "checkpoint", paths)
    assert recorded.evaluations == {MICRO.smallest: Evaluation(0.3, 1.0), MICRO.largest: Evaluation(0.5, 1.0)}
    assert (recorded.lent, recorded.data_fingerprint) == ({paths[1]: 1}, "i")
    with pytest.raises(LimitError, match="none of the 2 subnets in .*own and other journals of the run meets"):
        recorded.ranked(MICRO, Limits(max_params=1).feasible(MICRO))
    # Without an own one the first other journal that knows the checkpoint says which images.
    recorded = Recorded.read(tmp_path / "new", "checkpoint", [paths[3], paths[2], paths[1]])
    assert (recorded.evaluations, recorded.data_fingerprint) == ({MICRO.middle(): Evaluation(0.6, 1.0)}, "j")
    # The journal itself has to be whole.
    with pytest.raises(CheckpointError):
        Recorded.read(paths[3], "checkpoint", paths)


def test_an_entry_that_is_damaged_is_said_of_the_own_journal_only(tmp_path):
    for name in ("own", "other"):
        Journal(tmp_path / name, "checkpoint", "images", {}).record(MICRO.smallest, Evaluation(0.3, 1.0))
    damaged = tmp_path / "other"
    damaged.write_text(damaged.read_text().replace('"accuracy": 0.3', '"accuracy": "x"'))
    assert Recorded.read(tmp_path / "own", "checkpoint", [damaged]).lent == {}
    with pytest.raises(CheckpointError, match="not a search journal"):
        Recorded.read(damaged, "checkpoint", [tmp_path / "own"])
