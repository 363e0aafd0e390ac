"""``growtas report`` as people and programs call it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from growtas import api
from growtas.errors import OutputError, UsageError
from growtas.runs import create_run
from growtas.space import PRESETS
from tests.report_helpers import Page, write_whole_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_newest_run_is_reported(folder, growtas):
    create_run(
        folder / "runs", "old", {"state": "finished", "space": PRESETS["micro"].to_dict(), "created": "2026-01-01T00:00:00+00:00"}
    )
    run = write_whole_run(folder, "new")
    run.update(created="2099-01-01T00:00:00+00:00")
    assert growtas("report") == (0, "written to runs/new/report.html\n", "")
    page = Page(run.path / "report.html")
    assert "Fastest artifact in the bench" in page.texts
    code, out, _ = growtas("report", "runs/old", "--out", "sub/a.html", "--json")
    assert code == 0
    size = (folder / "sub" / "a.html").stat().st_size
    assert json.loads(out) == {"run": "runs/old", "report": "sub/a.html", "bytes": size}
    (folder / "runs" / "new" / "run.json").write_text("{")
    (folder / "runs" / "new" / "report.html").unlink()
    code, out, err = growtas("report")
    assert (code, out) == (0, "written to runs/old/report.html\n")
    assert "skipped: runs/new/run.json: the run file is not JSON" in err


def test_from_python(folder):
    run = write_whole_run(folder, "r")
    assert api.report() == folder.relative_to(folder) / "runs" / "r" / "report.html"
    assert api.report(run) == run.path / "report.html"
    assert api.report(run.path, out=folder / "b.html") == folder / "b.html"
    with pytest.raises(UsageError, match=r"a\.pdf: the page's name must end in \.html"):
        api.report(run, out="a.pdf")
    (folder / "file").touch()
    with pytest.raises(OutputError):
        api.report(run, out=folder / "file" / "a.html")
    (folder / "c.html").mkdir()
    with pytest.raises(OutputError):
        api.report(run, out=folder / "c.html")
    assert not list((folder / "c.html").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no run in runs/; make one with `growtas train`, or name its folder"),
        (("nowhere",), "nowhere: no run here (a run folder holds a run.json)"),
        (("broken",), "broken/run.json: the run file is not JSON"),
        (("torn",), "metrics.jsonl: line 1 is not JSON"),
        (("torn", "--out", "a.txt"), "--out a.txt: the page's name must end in .html"),
    ],
)
def test_one_sentence_and_nothing_half_written(folder, growtas, arguments, message):
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    run = create_run(folder, "torn", {"state": "finished", "space": PRESETS["micro"].to_dict()})
    (run.path / "metrics.jsonl").write_text("{\n{}\n")
    code, out, err = growtas("report", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not [file for file in folder.rglob("*") if "html" in file.name]


def test_a_page_that_is_there_stays_where_the_new_one_fails(folder, growtas, monkeypatch):
    run = write_whole_run(folder, "r")
    assert growtas("report")[0] == 0
    before = (run.path / "report.html").read_bytes()
    (run.path / "metrics.jsonl").write_text("{\n{}\n")
    assert growtas("report")[0] == 2
    assert (run.path / "report.html").read_bytes() == before
    assert not list(run.path.glob(".report*"))


def test_help_and_use_import_nothing_heavy(folder):
    write_whole_run(folder, "r")
    code = (
        "import sys\nfrom growtas.cli.app import app\n"
        "for arguments in (['report', '--help'], ['report']):\n"
        "    try: app(arguments)\n    except SystemExit: pass\n"
        "heavy = [name for name in ('torch', 'timm', 'matplotlib', 'onnx', 'plotext') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Example: growtas report" in done.stdout
    assert "written to runs/r/report.html" in done.stdout
