"""A run's metrics, against numbers worked out by hand."""

from __future__ import annotations

import math
import os

import pytest

from growtas.errors import CheckpointError
from growtas.watch.metrics import Metrics
from tests.unit.watch.conftest import line


def test_curves(make_run):
    lines = [line(1, probes={"A1 largest": 0.5}), line(2), line(3, probes={"A1 largest": 0.7, "A2 largest": 0.6})]
    metrics = Metrics.of(make_run(lines=lines))
    assert metrics.done == 3
    assert metrics.series("loss").values == (2.0, 1.0, 2.0 / 3)
    assert [series.label for series in metrics.group("accuracy")] == ["smallest", "middle", "largest"]
    first, second = metrics.group("probes")
    assert (first.label, first.epochs, first.values, first.last) == ("A1 largest", (1, 3), (0.5, 0.7), 0.7)
    assert (second.label, second.epochs, second.values) == ("A2 largest", (3,), (0.6,))


def test_sums(make_run):
    metrics = Metrics.of(make_run(lines=[line(1), line(2), line(3)]))
    assert metrics.seconds == 30
    expected = {"backward": 15.0, "forward": 6.0, "data": 3.0, "other": 3.0, "optimiser": 1.5, "evaluate": 0.75, "save": 0.75}
    assert metrics.time() == pytest.approx(expected)
    assert list(metrics.time()) == list(expected)
    assert metrics.images_per_second() == {"last": 300.0, "median": 200.0}
    assert metrics.compute() == {"macs": 3e9, "extra_macs": 0.0, "passes": 60.0}


def test_time_that_is_all_accounted_for_has_no_other(make_run):
    metrics = Metrics.of(make_run(lines=[line(1, seconds=9.05)]))
    assert "other" not in metrics.time()
    assert "other" in Metrics.of(make_run("b", lines=[line(1, seconds=9.2)])).time()


def test_stages_begin_where_the_number_changes(make_run):
    stages = [1, 1, 2, 2, 2, 3]
    metrics = Metrics.of(make_run(lines=[line(epoch, stage=stage) for epoch, stage in enumerate(stages, 1)]))
    assert metrics.stages == ((1, 1), (2, 3), (3, 6))
    assert Metrics.of(make_run("b", lines=[line(1, stage=2)])).stages == ((2, 1),)


def test_what_is_not_finite_is_a_hole(make_run):
    lines = [line(1), line(2, loss=math.nan), line(3, loss=math.inf), line(4, loss=None), line(5)]
    metrics = Metrics.of(make_run(lines=lines))
    assert metrics.not_finite() == [2, 3, 4]
    assert [math.isnan(value) for value in metrics.series("loss").values] == [False, True, True, True, False]
    assert Metrics.of(make_run("b", lines=lines[:3])).series("loss").last == 2.0


def test_the_best_epoch_has_the_highest_mean(make_run):
    accuracies = [(0.1, 0.2, 0.9), (0.5, 0.5, 0.5), (0.6, 0.4, 0.5), (1.0, math.nan, 1.0)]
    lines = [
        line(epoch, accuracy=dict(zip(("smallest", "middle", "largest"), values, strict=True)))
        for epoch, values in enumerate(accuracies, 1)
    ]
    epoch, mean = Metrics.of(make_run(lines=lines)).best()
    assert (epoch, mean) == (2, pytest.approx(0.5))
    assert Metrics().best() is None


def test_the_time_left_follows_the_last_five_epochs(make_run):
    run = make_run(lines=[line(epoch, seconds=seconds) for epoch, seconds in enumerate([500, 10, 10, 10, 20, 20], 1)])
    os.utime(run.path / "metrics.jsonl", (1000.0, 1000.0))
    metrics = Metrics.of(run)
    assert metrics.seconds_left(10, now=1000.0) == pytest.approx(4 * 14)
    assert metrics.seconds_left(10, now=1006.0) == pytest.approx(4 * 14 - 6)
    assert metrics.seconds_left(10, now=9000.0) == 0
    assert metrics.seconds_left(6, now=1000.0) == 0
    assert Metrics().seconds_left(10) is None


def test_odd_lines(make_run):
    run = make_run(lines=[line(2), line(1), line(2, loss=7.0), {"epoch": 3}, {"loss": 1}, [1], {"epoch": "4"}])
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')  # a process that was killed in the middle of a line
    metrics = Metrics.of(run)
    assert [entry["epoch"] for entry in metrics.lines] == [1, 2, 3]
    assert metrics.series("loss").values == (2.0, 7.0)
    assert metrics.done == 3


def test_a_run_without_metrics_and_one_with_broken_ones(make_run):
    metrics = Metrics.of(make_run())
    assert (metrics.done, metrics.lines, metrics.seconds, metrics.time(), metrics.stages) == (0, (), 0, {}, ())
    assert metrics.series("loss").last is None
    run = make_run("b")
    (run.path / "metrics.jsonl").write_text('{"epoch": 1\n{"epoch": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 1 is not JSON"):
        Metrics.of(run)
