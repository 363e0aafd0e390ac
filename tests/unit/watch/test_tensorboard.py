"""The TensorBoard log, read back with TensorBoard's own reader."""

from __future__ import annotations

import math
import sys
from contextlib import closing

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from growtas.errors import MissingExtra
from growtas.progress import SILENT
from growtas.runs import Run
from growtas.train.events import EpochDone, RunReady, TrainingStarted
from growtas.watch.tensorboard import TensorBoardProgress
from tests.unit.watch.conftest import line


def read(folder):
    """{tag: {step: value}} and the tags' numbers of points."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert all(len({point.step for point in points}) == len(points) for points in scalars.values())
    return {tag: {point.step: point.value for point in points} for tag, points in scalars.items()}


def begin(folder, first_step):
    log = TensorBoardProgress(SILENT)
    log.event(RunReady(Run(folder), None, None, "cpu", 1, None))
    log.event(TrainingStarted(first_step, 100))
    return log


def write(folder, first_step, *lines):
    with closing(begin(folder, first_step)) as log:
        for entry in lines:
            log.event(EpochDone(entry))


def test_every_number_of_a_line(tmp_path):
    write(tmp_path, 0, line(1, probes={"A1 largest": 0.25}), line(2, probes={"A1 largest": 0.5}, subspace={"max_embed_dim": 32}))
    scalars = read(tmp_path)
    assert scalars["loss"] == {20: 2.0, 40: 1.0}
    assert scalars["lr"] == {20: pytest.approx(0.001), 40: pytest.approx(0.001)}
    assert scalars["accuracy/middle"] == {20: pytest.approx(0.2), 40: pytest.approx(0.2)}
    assert scalars["probes/A1 largest"] == {20: 0.25, 40: 0.5}
    assert scalars["epoch"] == {20: 1, 40: 2}
    assert set(scalars) == {
        "loss", "lr", "images_per_s", "stage", "epoch", "seconds", "probes/A1 largest",
        *(f"accuracy/{name}" for name in ("smallest", "middle", "largest")),
        *(f"time/{name}" for name in ("data", "forward", "backward", "optimiser", "evaluate", "save")),
        *(f"compute/{name}" for name in ("macs", "extra_macs", "passes")),
    }  # fmt: skip


def test_a_line_is_there_before_the_log_is_closed(tmp_path):
    log = begin(tmp_path, 0)
    log.event(EpochDone(line(1)))
    assert read(tmp_path)["loss"] == {20: 2.0}
    log.close()
    log.close()


def test_epochs_that_are_done_again_are_there_once(tmp_path):
    write(tmp_path, 0, line(1), line(2), line(3, loss=99.0))
    # Stopped after epoch 3, whose checkpoint was not complete: goes on after epoch 2.
    write(tmp_path, 40, line(3, loss=3.0), line(4, loss=4.0))
    assert read(tmp_path)["loss"] == {20: 2.0, 40: 1.0, 60: 3.0, 80: 4.0}


def test_what_was_not_reached_again_is_hidden_too(tmp_path):
    write(tmp_path, 0, line(1), line(2), line(3))
    write(tmp_path, 30)  # from within epoch 2, and stopped before its end
    assert read(tmp_path)["loss"] == {20: 2.0}
    write(tmp_path, 0, line(1, loss=7.0))
    assert read(tmp_path)["loss"] == {20: 7.0}


def test_numbers_that_are_none(tmp_path):
    write(tmp_path, 0, line(1, loss=math.nan, lr=None, probes=None, stage="1", accuracy={"smallest": True, "largest": 0.5}))
    scalars = read(tmp_path)
    assert math.isnan(scalars["loss"][20])
    assert not {"lr", "stage", "accuracy/smallest"} & set(scalars)
    assert scalars["accuracy/largest"] == {20: 0.5}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=r"needs the package tensorboard, .* pip install 'growtas\[watch\]'"):
        begin(tmp_path, 0)
    assert not (tmp_path / "tensorboard").exists()
