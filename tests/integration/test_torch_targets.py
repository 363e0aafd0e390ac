"""PyTorch as the runtime of a target: measured without any package of ONNX, here on the CPU, which stands in for a GPU."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.export_helpers import TINY, make_run

QUICK = ("--generations", "2", "--population", "5", "--limit-images", "30", "--threads", "1")
COUNTS = ("--samples", "6", "--held-out", "4", "--repeats", "2", "--seconds", "0.001", "--threads", "1")
LENIENT = ("--max-cv", "1", "--max-drift", "1")
WITHOUT_ONNX = """
import json, sys
for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
    sys.modules[name] = None
from growtas.cli.main import main
from growtas.export.benchmark.stopwatch import ArchitectureTurns
ArchitectureTurns.__init__.__kwdefaults__["seconds"] = 0.001
for command in json.loads(sys.argv[1]):
    sys.argv = ["growtas", *command]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
"""
"""Runs commands one after the other; a subnet is timed for an instant."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROWTAS_PROFILES", str(tmp_path / "mine"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY.to_dict(), "name": "tiny"}))
    return make_run(tmp_path / "runs").path


@pytest.mark.slow
def test_a_profile_and_a_search_in_pytorch_need_no_onnx(project):
    profile = ("profile", "--device", "cpu", "--runtime", "torch", "--space", "tiny.yaml", *COUNTS, *LENIENT)
    commands = json.dumps([profile, ("search", "--device", "cpu:torch:900ms", *QUICK)])
    done = subprocess.run([sys.executable, "-c", WITHOUT_ONNX, commands], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = (project.parent.parent / "mine").glob("cpu.tiny.torch-fp32-b1.*-t1.json")
    made = json.loads(file.read_text())
    assert (made["runtime"], made["precision"], made["threads"]) == ("torch", "fp32", 1)
    (latency,) = json.loads((project / "search" / "result.json").read_text())["best"]["latencies"]
    assert (latency["measured"]["runtime"], latency["measured"]["kind"], latency["judged_on"]) == ("torch", "measured", "measured")
    assert 0 < latency["measured"]["ms"] < 900


@pytest.mark.slow
def test_export_and_bench_judge_it_in_pytorch(project, growtas):
    code, out, err = growtas("search", "--device", "cpu:900ms", "--runtime", "torch", *QUICK)
    assert code == 0, err
    assert shlex.split(out.partition("next: ")[2].splitlines()[0])[-2:] == ["--format", "torch"]
    # Made on the way to the ONNX file, which runs in another runtime: the limit is not its.
    code, out, err = growtas("export", "--format", "onnx", "--images", "20", "--json")
    assert code == 0, err
    artifacts = {artifact["kind"]: artifact for artifact in json.loads(out)["artifacts"]}
    judged = {kind: artifact["limits"][0] for kind, artifact in artifacts.items()}
    assert {kind: limit["holds"] for kind, limit in judged.items()} == {"torch": True, "onnx": None}
    assert (judged["torch"]["promised"]["runtime"], 0 < judged["torch"]["measured_ms"] < 900) == ("torch", True)
    assert judged["onnx"]["unchecked_because"] == "the limit is for p50, batch 1, fp32 on cpu, which was not measured here"
    short = ("--batch", "1", "--rounds", "1", "--seconds", "0.05", "--no-roofline")
    code, out, err = growtas("bench", artifacts["torch"]["path"], *short)
    assert code == 0, err
    assert "the search's latency limit 900 ms on cpu (in the search" in out
    assert "measured) holds: " in out
