"""A run's picture, looked at through its pixels."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from PIL import Image

from growtas.errors import MissingExtra, OutputError, UsageError
from growtas.watch.pictures import draw_png
from growtas.watch.report import Report
from tests.unit.watch.conftest import line

GREEN, ORANGE, RED, BLUE = (27, 120, 55), (217, 136, 28), (178, 24, 43), (33, 102, 172)


def colours(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    return {
        name: (pixels == colour).all(-1).sum()
        for name, colour in (("green", GREEN), ("orange", ORANGE), ("red", RED), ("blue", BLUE))
    }


def test_curves_of_every_subnet_are_there(make_run, tmp_path):
    run = make_run("a$b$", lines=[line(epoch, stage=1 + epoch // 3) for epoch in range(1, 6)])
    draw_png(Report.of(run), tmp_path / "a.png")
    found = colours(tmp_path / "a.png")
    assert min(found["green"], found["orange"], found["red"]) > 20
    assert found["blue"] == 0
    probes = {f"A{number} largest": number / 10 for number in range(1, 5)}
    draw_png(Report.of(make_run("b", lines=[line(1, probes=probes), line(2, probes=probes)])), tmp_path / "new" / "b.PNG")
    assert colours(tmp_path / "new" / "b.PNG")["blue"] > 20


@pytest.mark.parametrize("lines", [[line(1)], [line(1, loss=math.nan)], [line(1, loss=math.nan, time={}, seconds=0.0), line(2)]])
def test_few_epochs_and_holes(make_run, tmp_path, lines):
    draw_png(Report.of(make_run(lines=lines)), tmp_path / "a.png")
    assert colours(tmp_path / "a.png")["orange"] > 5


def test_what_can_not_be_drawn(make_run, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="the run has no epoch to draw"):
        draw_png(Report.of(make_run("empty")), tmp_path / "a.png")
    report = Report.of(make_run(lines=[line(1)]))
    with pytest.raises(UsageError, match=r"a\.pdf: the picture's name must end in \.png"):
        draw_png(report, tmp_path / "a.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        draw_png(report, tmp_path / "file" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"needs the package matplotlib, .* pip install 'growtas\[watch\]'"):
        draw_png(report, tmp_path / "a.png")
    assert not list(tmp_path.glob("*.p*"))
