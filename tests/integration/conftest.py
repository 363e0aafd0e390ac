from __future__ import annotations

import sys

import pytest

from growtas.cli.main import main
from tests.search_helpers import Timing, fake_ms


@pytest.fixture
def growtas(monkeypatch, capsys):
    """Runs a command line: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["growtas", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def stopwatch(monkeypatch):
    """Stands for the measuring of the export: milliseconds in proportion to MACs."""
    timed = []

    def measure(architecture, *, batch, threads):
        timed.append(architecture.subnet)
        return Timing(fake_ms(architecture.subnet) * batch)

    monkeypatch.setattr("growtas.export.measure.measure_architecture", measure)
    return timed
