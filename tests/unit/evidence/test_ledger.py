import json

from tests.evidence.ledger import append, missing, read_ledger
from tests.evidence.plan import PLAN


def test_a_line_is_written_once_and_its_training_is_not_missing(tmp_path, make_line):
    ledger = tmp_path / "deeper" / "trainings.jsonl"
    assert read_ledger(ledger) == {}
    assert missing(PLAN, {}) == list(PLAN)
    for _ in range(2):
        append(make_line(PLAN[3]), ledger)
    assert len(ledger.read_text().splitlines()) == 1
    assert missing(PLAN, read_ledger(ledger)) == [*PLAN[:3], *PLAN[4:]]


def test_half_a_line_is_not_continued(tmp_path, make_line):
    ledger = tmp_path / "trainings.jsonl"
    append(make_line(PLAN[0]), ledger)
    ledger.write_text(ledger.read_text() + json.dumps(make_line(PLAN[1]))[:50])
    append(make_line(PLAN[2]), ledger)
    assert list(read_ledger(ledger)) == [PLAN[0].key, PLAN[2].key]
