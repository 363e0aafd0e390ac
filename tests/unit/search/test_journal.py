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
