from __future__ import annotations

import shutil
import sys

import pytest

from growtas.api import search_results
from growtas.cli.main import main
from growtas.export.benchmark import run as benchmark
from growtas.export.benchmark.stopwatch import ArchitectureTurns
from growtas.latency.measured.paired import Block
from tests.export_helpers import export_networks_once
from tests.search_helpers import fake_ms, make_run


@pytest.fixture(scope="session", autouse=True)
def _quick_exporter(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        export_networks_once(patch, tmp_path_factory)
        yield


@pytest.fixture(autouse=True)
def _empty_pictures(monkeypatch):
    """Drawing takes half of the time of a small search; the test that is about it puts the function back."""
    monkeypatch.setattr(search_results, "draw_search_png", lambda plane, space, images, path: path.write_bytes(b""))


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
def no_probe(monkeypatch):
    """Without the fresh process of each artifact, whose import of torch takes seconds; the first test of the benchmark has it."""
    monkeypatch.setattr(benchmark, "probe", lambda path, **options: {"load_ms": 1.0, "peak_rss_bytes": 2, **options})


class Stopwatch(list):
    """Stands for the measuring of exported graphs: milliseconds in proportion to MACs; lists what was timed beside the reference.

    ``speed`` multiplies the milliseconds of a turn, by its number.
    """

    def __init__(self, monkeypatch):
        self.turns, self.speed = 0, lambda turn: 1.0
        monkeypatch.setattr(ArchitectureTurns, "__call__", lambda turns, subnets: self.take(turns, subnets))
        monkeypatch.setattr(ArchitectureTurns, "check_against_exporter", lambda turns, subnet, progress: None)
        monkeypatch.setattr(ArchitectureTurns, "signature", lambda turns, subnet: f"graph of {subnet}")
        monkeypatch.setattr("time.sleep", lambda seconds: None)

    def take(self, turns, subnets):
        assert len(subnets) == 1 or subnets[-1] == turns.space.middle()
        self += [subnet for subnet in subnets[:-1] if subnet not in self]
        speed = turns.batch * self.speed(self.turns)
        self.turns += 1
        return [[Block.of_runs([fake_ms(subnet) * speed])] * 5 for subnet in subnets]


@pytest.fixture
def stopwatch(monkeypatch):
    return Stopwatch(monkeypatch)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(tmp_path, template, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template.path, tmp_path / "runs" / "first")
    return tmp_path / "runs" / "first"
