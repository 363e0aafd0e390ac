from __future__ import annotations

import io

import pytest

from growtas.cli.output import ProgressBar
from growtas.cli.screen import Screen
from growtas.cli.search_live import SearchDisplay
from growtas.search.evolution import GenerationResult
from growtas.search.journal import Evaluation
from growtas.search.scoring import DROPPED, Evaluated
from growtas.space import PRESETS

SUBNET = PRESETS["micro"].smallest


def feed(table, accuracies, reused=False):
    for accuracy in accuracies:
        table.event(Evaluated(SUBNET, Evaluation(accuracy, 1.0), reused))


def generation(number, accuracies, best):
    ranked = tuple((SUBNET, (accuracy, 0.0, 0)) for accuracy in sorted(accuracies, reverse=True))
    return GenerationResult(number, ranked, (SUBNET, (best, 0.0, 0)))


def rows(table):
    screen = Screen(file=io.StringIO(), width=200)
    screen.print(table.table())
    return [line.split() for line in screen.file.getvalue().splitlines()[1:]]


def test_a_row_for_each_generation_and_one_for_the_present():
    with SearchDisplay(50, hidden=True) as table:
        table.stage("searching", 1000)
        feed(table, [0.1, 0.3, 0.2])
        table.event(generation(1, [0.1, 0.3, 0.2], 0.3))
        feed(table, [0.25, 0.15], reused=True)
        first, second = rows(table)
    assert first[:5] == ["1/20", "3", "30.00%", "30.00%", "20.00%"]
    assert float(first[5]) > 0
    assert second == ["2/20", "2", "30.00%", "25.00%", "20.00%", "journal"]


def test_what_was_dropped_from_a_race_has_no_accuracy():
    with SearchDisplay(50, hidden=True) as table:
        table.stage("searching", 1000)
        feed(table, [0.2])
        table.event(Evaluated(SUBNET, Evaluation(0.9, 1.0, seen=32), False))
        assert rows(table)[0][:5] == ["1/20", "1", "20.00%", "20.00%", "20.00%"]
        table.event(generation(1, [0.2, DROPPED], 0.2))
        assert rows(table)[0][:5] == ["1/20", "1", "20.00%", "20.00%", "20.00%"]


def test_a_generation_that_was_left_early_has_no_best_and_no_median():
    with SearchDisplay(50, hidden=True) as table:
        table.stage("searching", 1000)
        table.event(generation(1, [0.2], 0.2))
        table.event(generation(2, [DROPPED, DROPPED], 0.2))
        assert rows(table)[1][:5] == ["2/20", "0", "20.00%", "-", "-"]


def test_a_narrow_terminal_shows_every_number_whole(monkeypatch):
    screen = Screen(file=io.StringIO(), force_terminal=True, width=60)
    for module in ("output", "search_live"):
        monkeypatch.setattr(f"growtas.cli.{module}.console", lambda stderr: screen)
    with SearchDisplay(50, hidden=False) as table:
        table.stage("searching", 1000)
        table.stage("searching", 1000)
        feed(table, [0.125, 0.25])
        table.event(generation(1, [0.125, 0.25], 0.25))
        table.stage(f"measuring a finalist: {SUBNET}")
        screen.print(table.table())
    shown = screen.file.getvalue()
    assert "\u2026" not in shown
    assert all(text in shown for text in ("1/20", "25.00%", "18.75%", "evals/s", "measuring a finalist", "0/1000"))


def test_only_the_last_generations_stay():
    with SearchDisplay(50, hidden=True) as table:
        table.stage("searching", 1000)
        for number in range(1, 13):
            feed(table, [number / 100])
            table.event(generation(number, [number / 100], number / 100))
        assert [row[0] for row in rows(table)] == [f"{number}/20" for number in range(5, 13)]


@pytest.mark.parametrize(("terminal", "hidden"), [(True, False), (True, True), (False, False)])
def test_it_is_shown_on_a_terminal_only(monkeypatch, terminal, hidden):
    screen = Screen(file=io.StringIO(), force_terminal=terminal, width=120)
    monkeypatch.setattr("growtas.cli.output.console", lambda stderr: screen)
    monkeypatch.setattr("growtas.cli.search_live.console", lambda stderr: screen)
    with SearchDisplay(50, hidden=hidden) as table:
        table.stage("searching", 1000)
        table.stage("searching", 60)
        feed(table, [0.5])
        table.stage(f"measuring a finalist: {SUBNET}")
    assert ("evals/s" in screen.file.getvalue()) is (terminal and not hidden)
    assert ("measuring a finalist" in screen.file.getvalue()) is (terminal and not hidden)


def test_finalists_do_not_count_beyond_the_total():
    with SearchDisplay(50, hidden=True) as table:
        table.stage("searching", 1000)
        table.stage("searching", 60)
        table.advance(60)
        for _ in range(3):
            table.stage(f"measuring a finalist: {SUBNET}")
            table.advance()
        (task,) = table.bar.tasks
        assert (task.completed, task.total) == (60, 60)


def test_a_note_stands_above_the_bar(monkeypatch, capsys):
    screen = Screen(file=io.StringIO(), force_terminal=True, width=60)
    monkeypatch.setattr("growtas.cli.output.console", lambda stderr: screen)
    with ProgressBar(hidden=False) as bar:
        bar.stage("working", 3)
        bar.note("one [of] many, and longer than the terminal is wide, which nobody has to fold")
        bar.advance()
    drawn = screen.file.getvalue()
    assert capsys.readouterr().err == "", "it would have been written into the bar's line"
    assert drawn.index("one [of] many") < drawn.rindex("working")
    assert "which nobody has to fold" in drawn
