"""The documentation names files that exist, and the chain runs from Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from growtas import api
from growtas.subnet import Subnet
from tests.export_helpers import TINY

ROOT = Path(__file__).parents[2]


def test_design_names_files_that_exist():
    """In its table of questions a name without a folder lies in the folder of the name before it."""
    text = (ROOT / "docs" / "design.md").read_text()
    rows = [row for row in text.split("## Where is it?")[1].split("\n## ")[0].splitlines() if row.startswith("| ")][2:]
    assert len(rows) > 30
    for row in rows:
        folder = ROOT
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", row.rpartition(" | ")[2]):
            path = ROOT / name if "/" in name.rstrip("/") else folder / name
            assert path.exists() or re.search(r"[A-Z]{3}", name), (row, name)
            folder = path.parent


@pytest.mark.slow
def test_the_chain_from_python(tmp_path, monkeypatch, no_probe):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)).save("cat.png")
    Path("tiny.yaml").write_text(json.dumps(TINY.to_dict()))
    run = api.train(recipe="digits-demo", space="tiny.yaml", epochs=1)
    hit = api.search(run, devices={"a10": "5ms"}, generations=1, population=4, limit_images=50)
    assert isinstance(hit.subnet, Subnet)
    assert hit.latencies[0].predicted.kind == "modelled"
    artifacts = api.export(run, hit.subnet, formats=["onnx", "trt"])
    assert [artifact.format.name for artifact in artifacts] == ["torch", "onnx", "onnx", "trt"]
    checked = api.verify(artifacts)
    assert checked.error is None
    assert [result.passed for result in checked.artifacts] == [True, True, True, None]
    report = api.bench(artifacts, batches=[1], rounds=1, seconds=0.05, roofline=False)
    assert [entry.runnable for entry in report.artifacts] == [True, True, True, False]
    answers = api.predict(artifacts[0], ["cat.png"])
    assert len(answers.images) == 1
