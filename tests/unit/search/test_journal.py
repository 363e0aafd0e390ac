from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest

from growtas.costs import count_costs
from growtas.errors import CheckpointError, OutputError
from growtas.search.evaluation.racing import Racing
from growtas.search.evolution import EvolutionConfig
from growtas.search.journal import Evaluation, Journal
from growtas.search.limits import Limits
from growtas.search.scoring import Scorer
from growtas.search.search import Search
from growtas.space import PRESETS
from tests.progress_recorder import Recorder

MICRO = PRESETS["micro"]
SMALLEST, LARGEST = MICRO.smallest, MICRO.largest


def _journal(path, checkpoint="c", data="d"):
    return Journal(path, checkpoint, data, {"seed": 0})


def test_what_is_recorded_is_there_again(tmp_path):
    path = tmp_path / "search" / "journal.jsonl"
    journal = _journal(path)
    assert journal.get(SMALLEST) is None
    journal.record(SMALLEST, Evaluation(0.5, 1.25), params=3)
    journal.record(LARGEST, Evaluation(0.25, math.nan))
    again = _journal(path)
    assert (again.get(SMALLEST), again.get(LARGEST), len(again)) == (Evaluation(0.5, 1.25), Evaluation(0.25, math.inf), 2)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [line["type"] for line in lines] == ["header", "evaluation", "evaluation", "header"]
    assert (lines[0]["checkpoint_sha256"], lines[0]["data_fingerprint"], lines[0]["seed"]) == ("c", "d", 0)
    assert lines[1]["params"] == 3


def test_another_checkpoint_or_other_images_share_nothing(tmp_path):
    _journal(tmp_path / "j").record(SMALLEST, Evaluation(0.5, 1.0))
    assert _journal(tmp_path / "j", checkpoint="other").get(SMALLEST) is None
    assert _journal(tmp_path / "j", data="other").get(SMALLEST) is None
    assert _journal(tmp_path / "j").get(SMALLEST) is not None


@pytest.mark.parametrize("cut", [1, 20, 80])
def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(tmp_path, cut):
    path = tmp_path / "j"
    journal = _journal(path)
    journal.record(SMALLEST, Evaluation(0.5, 1.0))
    journal.record(LARGEST, Evaluation(0.75, 1.0))
    path.write_bytes(path.read_bytes()[:-cut])
    again = _journal(path)
    assert again.get(SMALLEST) == Evaluation(0.5, 1.0)
    # Only a missing newline loses nothing.
    assert (again.get(LARGEST) is not None) == (cut == 1)
    again.record(LARGEST, Evaluation(0.75, 1.0))
    assert len(_journal(path)) == 2
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "j"
    _journal(path).record(SMALLEST, Evaluation(0.5, 1.0))
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(CheckpointError, match="line 1"):
        _journal(path)
    path.write_text('{"type": "evaluation", "key": 3}\n{}\n')
    with pytest.raises(CheckpointError, match="entry 2"):
        _journal(path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        _journal(tmp_path / "file" / "journal.jsonl")


def test_answers_and_drops_are_there_again(tmp_path):
    path = tmp_path / "j"
    journal = _journal(path)
    journal.record(SMALLEST, Evaluation(0.5, 1.0, answers=b"\xa0\x80"))
    journal.record(LARGEST, Evaluation(0.25, 1.0, seen=4), needed=7)
    journal.record(LARGEST, Evaluation(0.5, 1.0, seen=6), needed=9)
    again = _journal(path)
    assert again.get(SMALLEST).right_answers(10).tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    assert again.get(SMALLEST).right_answers(20) is None
    assert again.get(LARGEST) is None
    assert again.get(LARGEST, 6) is None
    for known in (journal, again):
        assert known.get(LARGEST, 7) == known.get(LARGEST, 9) == Evaluation(0.25, math.inf, seen=4)
    assert len(again) == 2
    # A complete evaluation does not undo the drop for a race that would drop it again.
    again.record(LARGEST, Evaluation(0.5, 1.5))
    for known in (again, _journal(path)):
        assert known.get(LARGEST) == known.get(LARGEST, 6) == Evaluation(0.5, 1.5)
        assert known.get(LARGEST, 8) == Evaluation(0.25, math.inf, seen=4)
        assert len(known) == 2


@pytest.mark.parametrize("damage", [{"answers": "?"}, {"accuracy": "x"}, {"type": "dropped"}])
def test_a_damaged_field_is_an_error(tmp_path, damage):
    path = tmp_path / "j"
    _journal(path).record(SMALLEST, Evaluation(0.5, 1.0, answers=b"\xa0"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[1] | damage)))
    with pytest.raises(CheckpointError, match="entry 2"):
        _journal(path)


def test_other_journals_lend_their_complete_evaluations(tmp_path):
    other = _journal(tmp_path / "other")
    other.record(SMALLEST, Evaluation(0.5, 1.0))
    other.record(LARGEST, Evaluation(0.25, 1.0, seen=4), needed=7)
    (tmp_path / "damaged").write_text("nonsense\n{}\n")
    others = [tmp_path / name for name in ("other", "damaged", "absent", "j")]
    before = (tmp_path / "other").read_bytes()
    journal = Journal(tmp_path / "j", "c", "d", {}, others)
    assert journal.get(SMALLEST) == Evaluation(0.5, 1.0)
    assert journal.get(LARGEST, 9) is None
    assert Journal(tmp_path / "k", "c", "elsewhere", {}, others).get(SMALLEST) is None
    assert (tmp_path / "other").read_bytes() == before
    # Its own line goes first.
    journal.record(SMALLEST, Evaluation(0.75, 1.0))
    assert Journal(tmp_path / "j", "c", "d", {}, others).get(SMALLEST) == Evaluation(0.75, 1.0)


def test_what_is_lent_is_counted_and_not_kept(tmp_path):
    for name, subnet in (("a", SMALLEST), ("b", LARGEST)):
        _journal(tmp_path / name).record(subnet, Evaluation(0.5, 1.0))
    journal = Journal(tmp_path / "j", "c", "d", {}, [tmp_path / "a", tmp_path / "b"])
    assert (journal.borrowed, len(journal)) == ({}, 0)
    for _ in range(2):
        journal.get(SMALLEST)
    assert (journal.borrowed, len(journal)) == ({tmp_path / "a": 1}, 0)
    journal.get(LARGEST, 3)
    assert journal.borrowed == {tmp_path / "a": 1, tmp_path / "b": 1}


def test_a_search_that_goes_on_borrows_what_it_could_when_it_began(tmp_path):
    path, early, late = (tmp_path / folder / "journal.jsonl" for folder in ("search", "search-early", "search-late"))
    middle = MICRO.middle()
    before = _journal(early)
    before.record(SMALLEST, Evaluation(0.5, 1.0))
    others = [early, late]
    Journal(path, "c", "d", {"seed": 0, "limits": (1, 2)}, others)
    before.record(LARGEST, Evaluation(0.75, 1.0))
    _journal(late).record(middle, Evaluation(0.25, 1.0))
    goes_on = Journal(path, "c", "d", {"seed": 0, "limits": (1, 2)}, others)
    assert [goes_on.get(subnet) is not None for subnet in (SMALLEST, LARGEST, middle)] == [True, False, False]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in (path, early, late):
        file.parent.rename(moved / file.parent.name)
    path, *others = (moved / file.parent.name / file.name for file in (path, early, late))
    goes_on = Journal(path, "c", "d", {"seed": 0, "limits": (1, 2)}, others)
    assert [goes_on.get(subnet) is not None for subnet in (SMALLEST, LARGEST, middle)] == [True, False, False]
    # Another search begins now, and borrows all that is there.
    another = Journal(path, "c", "d", {"seed": 1, "limits": (1, 2)}, others)
    assert [another.get(subnet) is not None for subnet in (SMALLEST, LARGEST, middle)] == [True, True, True]


def test_a_torn_line_of_another_journal_is_not_lent(tmp_path):
    other = _journal(tmp_path / "other")
    other.record(SMALLEST, Evaluation(0.5, 1.0))
    other.record(LARGEST, Evaluation(0.75, 1.0))
    (tmp_path / "other").write_bytes((tmp_path / "other").read_bytes()[:-1])
    journal = Journal(tmp_path / "j", "c", "d", {}, [tmp_path / "other"])
    assert (journal.get(SMALLEST), journal.get(LARGEST)) == (Evaluation(0.5, 1.0), None)


IMAGES = 400


def answers_of(subnet):
    """Right answers of a made-up network: the larger the better, on images of which the last are the hardest."""
    own = np.random.default_rng(zlib.crc32(repr(subnet).encode())).normal(0, 0.1, IMAGES)
    return (own + count_costs(MICRO, subnet).params / 4e5 > np.linspace(0, 1, IMAGES)).astype(np.uint8)


def evaluate(subnets, race=None):
    """As the real one does, told by the docstring of a race: in order, a part at a time, until it is lost."""
    for subnet in subnets:
        right = answers_of(subnet)
        for part in race.parts() if race else []:
            correct = int(right[race.order[: part.stop]].sum())
            if part.stop < IMAGES and race.is_lost(correct, IMAGES - part.stop):
                yield subnet, Evaluation(correct / part.stop, math.inf, seen=part.stop)
                break
        else:
            yield subnet, Evaluation(right.mean(), 1.0, answers=np.packbits(right).tobytes())


def search(path, others=(), stop_after=10**6):
    """A search that is killed after some evaluations."""
    journal = Journal(path, "c", "d", {"seed": 0}, others)

    class Killing(Recorder):
        def event(self, event):
            super().event(event)
            if len(self.events) >= stop_after:
                raise KeyboardInterrupt

    scorer = Scorer(MICRO, evaluate, journal, Racing(5, IMAGES), Killing())
    config = EvolutionConfig(generations=6, population=15, parents=5)
    return Search(space=MICRO, limits=Limits(max_params=150_000)).run(scorer, config, 0), scorer, journal


@pytest.mark.parametrize("stop_after", [1, 20, 50])
def test_a_killed_search_ends_the_same_though_another_journal_has_appeared(tmp_path, stop_after):
    calm, scorer, _ = search(tmp_path / "calm")
    assert scorer.dropped > 20
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "j", [tmp_path / "new"], stop_after)
    new = _journal(tmp_path / "new")
    for subnet, evaluation in evaluate([subnet for subnet, _ in calm.result.ranked]):
        new.record(subnet, evaluation)
    outcome, scorer, journal = search(tmp_path / "j", [tmp_path / "new"])
    assert (outcome.result, outcome.chosen) == (calm.result, calm.chosen)
    assert (scorer.reused, journal.borrowed) == (stop_after, {})
    # Lent from the start, it saves all evaluations, with the same parents and the same find.
    lent, scorer, journal = search(tmp_path / "k", [tmp_path / "new"])
    assert (scorer.evaluated, scorer.dropped, list(journal.borrowed.values())) == (0, 0, [90])
    assert (lent.chosen, lent.result.ranked[:5]) == (calm.chosen, calm.result.ranked[:5])
    assert lent.result != calm.result
