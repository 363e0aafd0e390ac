"""Searches of one run share their evaluations."""

from __future__ import annotations

import json

import pytest

from tests.export_helpers import make_run
from tests.integration.test_search_processes import SPACE

QUICK = ("--generations", "2", "--population", "12", "--limit-images", "60")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "runs", space=SPACE).path


def result(growtas, *arguments):
    code, out, err = growtas("search", *QUICK, *arguments, "--json")
    assert code == 0, err
    return json.loads(out), err


def test_a_search_takes_what_other_searches_of_the_run_evaluated(run, growtas):
    first, err = result(growtas)
    assert (first["evaluated"], first["reused_from_others"], "reused" in err) == (24, {}, False)
    other, err = result(growtas, "--out", "runs/tiny/search-2")
    journal = "runs/tiny/search/journal.jsonl"
    assert (other["evaluated"], other["reused"], other["reused_from_others"]) == (0, 24, {journal: 24})
    assert f"evaluations reused: 24 from {journal}" in err
    assert other["best"] == first["best"]
    more, err = result(growtas, "--out", "runs/tiny/search-2", "--generations", "3")
    assert (more["evaluated"] + more["dropped"], more["reused_from_others"]) == (12, {journal: 24})
    # That search's own are named beside the others'; what it has dropped or evaluated since is its own.
    again, err = result(growtas, "--out", "runs/tiny/search-2", "--generations", "3")
    assert again["evaluated"] == again["dropped"] == 0
    assert f"evaluations reused: 12 from runs/tiny/search-2/journal.jsonl, 24 from {journal}" in err
    assert again["history"] == more["history"]


def test_other_images_are_not_reused(run, growtas):
    result(growtas)
    other, err = result(growtas, "--limit-images", "50", "--out", "runs/tiny/search-2")
    assert (other["evaluated"], other["reused_from_others"], "reused" in err) == (24, {}, False)


def test_a_replay_chooses_among_all_searches_of_the_run(run, growtas):
    result(growtas, "--max-params", "110K")
    result(growtas, "--seed", "1", "--max-params", "110K", "--out", "runs/tiny/search-2")
    code, out, err = growtas("search", "--replay", "--max-params", "105K", "--out", "runs/tiny/search-3", "--json")
    assert code == 0, err
    report = json.loads(out)
    counts = report["reused_from_others"]
    assert list(counts) == [f"runs/tiny/{name}/journal.jsonl" for name in ("search", "search-2")]
    assert report["reused"] == report["replay"]["recorded"] == sum(counts.values())
    assert min(counts.values()) > 5
    said = ", ".join(f"{count} from {path}" for path, count in counts.items())
    assert f"recorded evaluations: {said}" in err
    assert f"the run's journals hold only {report['replay']['legal']} subnets" in err
    assert not (run / "search-3" / "journal.jsonl").exists()
