"""Nothing is told to a runtime's maker, and nothing is left in the user's home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from growtas.export.runtimes.base import is_installed

RUN = "from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession\nwith OnnxRuntimeSession(sys.argv[1], threads=1): pass\n"
# Also where nothing but growtas itself was imported before.
PLAIN = "import growtas\nimport onnxruntime\nonnxruntime.InferenceSession(sys.argv[1])\n"


@pytest.mark.parametrize("code", [RUN, PLAIN], ids=["session", "plain"])
def test_onnx_runtime_leaves_nothing_in_the_home(onnx_file: Path, tmp_path: Path, code: str) -> None:
    # In CI, and in its own tests, ONNX Runtime is silent by itself.
    silent = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "GITHUB_ACTIONS", "TF_BUILD", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in silent} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import sys\n" + code, str(onnx_file)], check=True, timeout=100, env=environment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_openvino_reports_nothing_to_anyone(onnx_file: Path, tmp_path: Path) -> None:
    # A stand-in for the telemetry package tells whether anything imports it, in a fresh process with a home of its own.
    package = tmp_path / "path" / "openvino_telemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\nraise ImportError\n")
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys; from growtas.export.runtimes.openvino import OpenVINOSession, write_ir\n"
        "with OpenVINOSession(sys.argv[1], threads=1): pass\n"
        "write_ir(*sys.argv[1:])\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
    )
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", code, str(onnx_file), str(tmp_path / "m.xml")]
    subprocess.run(command, check=True, timeout=100, env=environment)
    assert list(home.iterdir()) == []
    assert not (tmp_path / "imported").exists()
