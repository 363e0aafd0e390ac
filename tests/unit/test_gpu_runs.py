"""What `make test-gpu` does on a machine without a GPU, and what it writes when steps go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from unittest import mock

import pytest

from tests.export_helpers import without_gpu
from tests.gpu import __main__ as gpu
from tests.gpu.cases import Outcome, Skipped, run_cases
from tests.gpu.hardware import Hardware
from tests.gpu.report import FAILED, MEASURED, RUNNING, SKIPPED, Row, add_section, append_row, read_rows, table


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A page with an older table, and a folder for all that is built."""
    page = tmp_path / "GPU_RUNS.md"
    page.write_text("# What ran on a GPU\n\nHead.\n\n## Yesterday\n\nOld.\n")
    monkeypatch.setattr(gpu, "BUILD", tmp_path / "build")
    monkeypatch.setattr(gpu, "PAGE", page)
    return tmp_path


@without_gpu
def test_without_a_gpu_it_says_so_and_lists_what_it_would_run():
    page = gpu.PAGE.read_bytes()
    done = subprocess.run([sys.executable, "-m", "tests.gpu"], cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("There is no GPU here: PyTorch ")
    assert all(f"\n  {step.name} " in done.stderr for step in gpu.STEPS)
    assert gpu.PAGE.read_bytes() == page


def test_a_python_without_pytorch_is_named(monkeypatch, capsys):
    machine = {"no GPU": "/usr/bin/python3 can't import PyTorch (No module named 'torch')"}
    monkeypatch.setattr(gpu, "_machine", lambda: machine)
    assert gpu.main([]) == 1
    assert "There is no GPU here: /usr/bin/python3 can't import PyTorch" in capsys.readouterr().err


def cases_that_go_wrong():
    def out_of_memory():
        raise RuntimeError("out of\nmemory")

    def refused():
        raise Skipped("the command refused")

    def absent():
        raise ModuleNotFoundError("No module named 'pydantic'", name="pydantic")

    yield "good", lambda: Outcome("3 ms", {"ms": 3})
    yield "bad", lambda: Outcome("too far off", passed=False)
    yield "memory", out_of_memory
    yield "refused", refused
    yield "absent", absent
    raise ImportError("the next case can't be prepared")


def test_a_case_that_raises_costs_its_own_row_only(tmp_path):
    run_cases("s", cases_that_go_wrong, tmp_path / "rows")
    rows = {row.case: (row.outcome, row.result) for row in read_rows(tmp_path / "rows")}
    assert rows == {
        "good": (MEASURED, "3 ms"),
        "bad": (FAILED, "too far off"),
        "memory": (FAILED, "RuntimeError: out of memory"),
        "refused": (SKIPPED, "the command refused"),
        "absent": (SKIPPED, "pydantic is not installed"),
        "preparing s": (FAILED, "ImportError: the next case can't be prepared"),
    }


def test_a_killed_step_leaves_what_it_had_written(tmp_path):
    path = tmp_path / "rows"
    append_row(path, Row(step="s", case="one", outcome=RUNNING))
    append_row(path, Row(step="s", case="one", outcome=MEASURED, result="1 ms"))
    append_row(path, Row(step="s", case="two", outcome=RUNNING))
    with path.open("a") as file:
        file.write('{"step": "s", "ca')
    assert [(row.case, row.outcome) for row in read_rows(path)] == [("one", MEASURED), ("two", RUNNING)]


def test_a_step_that_does_not_end_loses_nothing_else(folder, monkeypatch):
    monkeypatch.setattr(gpu, "install", lambda folder: "not at all")
    steps = [gpu.Step("nccl", 0.01, "too slow"), gpu.Step("nothing", 30, "no such step")]
    assert gpu.Session(steps, {"GPU": "NVIDIA A10"}, "today", stand_in=False).run() == 1
    rows = json.loads((folder / "build" / "gpu_runs.json").read_text())["rows"]
    assert [(row["step"], row["outcome"]) for row in rows] == [("install", MEASURED), ("nccl", FAILED), ("nothing", FAILED)]
    assert rows[1]["result"] == "stopped after 0 s"
    page = (folder / "GPU_RUNS.md").read_text()
    assert page.startswith("# What ran on a GPU\n\nHead.\n\n## today, NVIDIA A10\n\nGPU NVIDIA A10\n\n| step |")
    assert page.endswith("\n## Yesterday\n\nOld.\n")


def test_steps_that_have_no_time_left_are_skipped(folder, monkeypatch):
    monkeypatch.setattr(gpu, "install", lambda folder: "not at all")
    monkeypatch.setattr(gpu, "LIMIT_S", 1)
    gpu.Session([gpu.Step("nccl", 30, "the rest")], {"GPU": "NVIDIA A10"}, "today", stand_in=False).run()
    assert "| nccl | the rest | skipped | the 0 minutes were used up |" in (folder / "GPU_RUNS.md").read_text()


def test_a_table_has_a_line_for_every_row_whatever_its_text():
    rows = [Row(step="s", case="a|b", outcome=FAILED, result="two\nlines")]
    assert table({"GPU": "X", "torch": "2"}, rows).splitlines()[-1] == "| s | a/b | **failed** | two lines |"
    assert add_section("# Head\n", "one", "text\n") == "# Head\n\n## one\n\ntext\n"


def test_peak_memory_on_a_gpu_counts_what_came_on_top():
    with (
        mock.patch("torch.cuda.empty_cache", autospec=True),
        mock.patch("torch.cuda.synchronize", autospec=True),
        mock.patch("torch.cuda.reset_peak_memory_stats", autospec=True) as reset,
        mock.patch("torch.cuda.memory_allocated", autospec=True, return_value=100),
        mock.patch("torch.cuda.max_memory_allocated", autospec=True, return_value=350),
    ):
        program = mock.Mock(side_effect=lambda: reset.assert_called_once())
        assert Hardware(stand_in=False).peak_bytes(lambda: program, calls=3) == 250
    assert program.call_count == 3


@pytest.mark.slow
def test_all_steps_run_on_stand_ins(folder):
    """So that no typo is left for a GPU; nothing that it writes speaks of a GPU's results."""
    before = gpu.PAGE.read_bytes()
    assert gpu.main(["--stand-in"]) == 0
    made = json.loads((folder / "build" / "stand_in.json").read_text())
    outcomes = {step.name: {row["outcome"] for row in made["rows"] if row["step"] == step.name} for step in gpu.STEPS}
    assert outcomes.pop("plans") == {SKIPPED}
    assert all(found == {MEASURED} for found in outcomes.values()), made["rows"]
    assert made["stand_in"] is True
    assert "GPU" not in made["machine"]
    assert (folder / "build" / "stand_in.md").read_text().startswith("# Stand-in run\n")
    assert sorted(path.name for path in (folder / "build").iterdir()) == ["stand_in", "stand_in.json", "stand_in.md"]
    assert gpu.PAGE.read_bytes() == before
