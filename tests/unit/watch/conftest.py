from __future__ import annotations

import json

import pytest

from growtas.runs import create_run
from growtas.space import PRESETS


def line(epoch, **changes):
    """A line of metrics.jsonl with round numbers: an epoch takes 10 s, of which 1 s is nobody's."""
    entry = {
        "epoch": epoch,
        "step": 20 * epoch,
        "stage": 1,
        "loss": 2.0 / epoch,
        "lr": 0.001,
        "accuracy": {"smallest": 0.1, "middle": 0.2, "largest": 0.3},
        "images_per_s": 100.0 * epoch,
        "time": {"data": 1.0, "forward": 2.0, "backward": 5.0, "optimiser": 0.5, "evaluate": 0.25, "save": 0.25},
        "compute": {"macs": 1e9, "extra_macs": 0, "passes": 20},
        "seconds": 10.0,
    }
    return {**entry, **changes}


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run with metrics lines."""

    def make(name="a", lines=(), state="finished", epochs=4, **info):
        record = {
            "state": state,
            "space": PRESETS["micro"].to_dict(),
            "method": "growtas",
            "recipe": {"name": "r", "epochs": epochs, "lr": 0.003, "min_lr": 1e-5, "batch_size": 32, "seed": 0},
            "data": {"name": "digits", "train_size": 1438, "test_size": 359},
            "class_names": list("0123456789"),
            **info,
        }
        run = create_run(tmp_path / "runs", name, record)
        if lines:
            (run.path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        return run

    return make
