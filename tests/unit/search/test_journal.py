from __future__ import annotations

import json
import math

import pytest

from growtas.errors import CheckpointError, OutputError
from growtas.search.journal import Evaluation, Journal
from growtas.space import PRESETS

SMALLEST, LARGEST = PRESETS["micro"].smallest, PRESETS["micro"].largest


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
