"""A run as a row, as data and on the screen."""

from __future__ import annotations

import io
import json
import math
import os

import pytest
from rich.console import Console  # noqa: TID251

from growtas.processes import this_process
from growtas.units import format_seconds
from growtas.watch.chart import charts
from growtas.watch.report import Overview, Report
from growtas.watch.terminal import print_report
from tests.unit.watch.conftest import line

TESTED = {"smallest": 0.5, "middle": 0.6, "largest": 0.7}


def screen(report, width=80, encoding="utf-8", terminal=False):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_report(report, Console(file=file, width=width, force_terminal=terminal, highlight=False))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def checkpoint(run, name, size):
    folder = run.path / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "supernet.safetensors").write_bytes(b"x" * size)
    (folder / "state.json").write_text("{}")
    return folder


def test_a_finished_run_shows_its_test_accuracy_and_another_its_last_epoch(make_run):
    row = Overview.of(make_run(lines=[line(1), line(2)], test_accuracy=TESTED))
    assert (row.name, row.state, row.space, row.data, row.method) == ("a", "finished", "micro", "digits", "growtas")
    assert (row.epochs_done, row.epochs, row.accuracy, row.accuracy_on) == (2, 4, TESTED, "test")
    later = line(2, accuracy={"smallest": 0.4, "middle": 0.5, "largest": 0.6})
    row = Overview.of(make_run("b", [line(1), later], "interrupted", test_accuracy=TESTED))
    assert (row.accuracy, row.accuracy_on) == (later["accuracy"], "search split")


def test_what_is_in_a_run(make_run):
    run = make_run()
    assert Overview.of(run).contents == ()
    for file in ("search/journal.jsonl", "export/x.onnx.json"):  # a search under way, and no artifact
        (run.path / file).parent.mkdir()
        (run.path / file).touch()
    assert Overview.of(run).contents == ()
    for file in ("search/result.json", "export/x.onnx", "bench/bench.json"):
        (run.path / file).parent.mkdir(exist_ok=True)
        (run.path / file).touch()
    assert Overview.of(run).contents == ("searched", "exported", "benched")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"format": "other"}', "\xff\x00"])
def test_an_unreadable_run_is_a_row(make_run, content):
    run = make_run()
    (run.path / "run.json").write_bytes(content.encode("latin-1"))
    row = Overview.of(run)
    assert (row.name, row.state, row.epochs, row.accuracy) == ("a", "unreadable", None, {})
    assert "run.json" in row.problem


def test_unreadable_metrics_are_a_row_with_the_rest(make_run):
    run = make_run()
    (run.path / "metrics.jsonl").write_text("{\n{}\n")
    row = Overview.of(run)
    assert (row.state, row.space) == ("finished", "micro")
    assert "line 1 is not JSON" in row.problem


def test_checkpoints(make_run):
    run = make_run(lines=[line(1)])
    for name, size in (("epoch-0001", 10), ("epoch-0002", 20), ("epoch-0002-batch-000007", 30)):
        checkpoint(run, name, size)
    best = run.path / "checkpoints" / "best-epoch-0001"
    best.mkdir()
    (best / "best.json").write_text('{"score": 0.625, "checkpoint": "epoch-0001"}')
    found = Report.of(run).checkpoints
    assert [(kept.path.name, kept.kind, kept.score) for kept in found] == [
        ("epoch-0001", "kept", None),
        ("epoch-0002", "kept", None),
        ("epoch-0002-batch-000007", "newest", None),
        ("best-epoch-0001", "best", 0.625),
    ]
    assert found[1].bytes == 22
    text = screen(Report.of(run))
    assert "62.50%" in text
    assert "epoch-0002-batch-000007  newest" in text


def test_the_time_left_is_only_said_of_a_training(make_run):
    running = make_run("a", [line(1), line(2)], "training", process=this_process())
    os.utime(running.path / "metrics.jsonl", (1000.0, 1000.0))
    assert Report.of(running, now=1005.0).seconds_left == 15
    assert "training, 2 of 4 epochs, 20 s, about 15 s left" in screen(Report.of(running, now=1005.0))
    for state in ("finished", "interrupted", "failed"):
        assert Report.of(make_run(state, [line(1)], state)).seconds_left is None
    gone = make_run("gone", [line(1)], "training", process={**this_process(), "pid": 2**70})
    assert Report.of(gone).seconds_left is None
    assert "state     stopped, 1 of 4 epochs" in screen(Report.of(gone))


def test_json_has_no_nan_and_everything(make_run):
    report = Report.of(make_run(lines=[line(1), line(2, loss=math.nan), line(3, stage=2)]))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["metrics"][1]["loss"] is None
    assert (data["not_finite"], data["epochs"]["done"]) == ([2], 3)
    assert data["stages"] == [{"stage": 1, "first_epoch": 1}, {"stage": 2, "first_epoch": 3}]
    assert data["time"]["backward"] == 15.0
    assert data["info"]["recipe"]["name"] == "r"


def test_the_screen(make_run):
    probes = {"A1 largest": 0.4}
    text = screen(Report.of(make_run(lines=[line(1, probes=probes), line(2, stage=2, probes=probes)], test_accuracy=TESTED)))
    for part in (
        "finished, 2 of 4 epochs, 20 s",
        "micro, method growtas",
        "digits, 1,438 training images, 359 test images, 10 classes",
        "r: 4 epochs, lr 0.003 to 1e-05, batch 32, seed 0",
        "test accuracy  smallest 50.0 ± 2.6 %, middle 60.0 ± 2.6 %, largest 70.0 ± 2.4 %",
        "learning rate",
        "accuracy of the probes",
        "stage 2",
        "largest 30.0%",
        "backward   50.0%",
        "other      10.0%",
        "150 images/s (median; last epoch 200), 2G MACs of training, 40 passes",
    ):
        assert part in text, part


SHAPES = {
    "no epoch": [],
    "one epoch": [line(1)],
    "nothing finite": [line(1, loss=math.nan, lr=math.inf, accuracy={"largest": math.nan})],
    "many epochs": [line(epoch, stage=1 + epoch // 200, probes={"A1 [red]largest[/red]": 0.5}) for epoch in range(1, 701)],
    "almost empty lines": [{"epoch": 1}, {"epoch": 2, "accuracy": None, "time": [1]}],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [80, 120])
def test_every_run_fits_and_has_no_colour_codes_where_there_are_no_colours(make_run, shape, width):
    report = Report.of(make_run("[bold]a[blink]", SHAPES[shape]))
    text = screen(report, width)
    assert "\x1b" not in text
    path, *others = text.splitlines()
    assert path == str(report.run.path)
    assert path.endswith("[bold]a[blink]")
    assert max(map(len, others)) <= width
    assert "A1 [red]larges" in text or shape != "many epochs"
    assert screen(report, width, "ascii").isascii()
    assert "\x1b" in screen(report, width, terminal=True)


def test_an_imported_run(make_run):
    run = make_run(state="imported", recipe=None, data=None, class_names=None, method="autoformer", source={"file": "x.pth"})
    text = screen(Report.of(run))
    assert "not known (the run was not trained here)" in text
    assert "x.pth" in text
    assert "epochs" not in text
    assert charts(Report.of(run)) == []
    assert Overview.of(run).epochs is None


def test_why_a_run_failed(make_run):
    assert "step 7: the loss is nan" in screen(Report.of(make_run(state="failed", error="step 7: the loss is nan")))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (61, "1 min 1 s"), (599.9, "10 min"),
        (600, "10 min"), (3599, "1 h 0 min"), (3660, "1 h 1 min"), (90000, "25 h 0 min"), (200000, "2 d 8 h"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
