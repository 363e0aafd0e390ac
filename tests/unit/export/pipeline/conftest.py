"""A run to export from; plans are the fake builder's."""

from __future__ import annotations

from pathlib import Path

import pytest

from growtas.export.pipeline import run as pipeline
from growtas.runs import Run
from tests.export_helpers import add_search, make_run
from tests.fake_runtime import FakePlanBuilder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path)
    add_search(run, device="a10")
    return run


@pytest.fixture(autouse=True)
def fake_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "choose_builder", lambda **options: (FakePlanBuilder(), ("sm86",)))
