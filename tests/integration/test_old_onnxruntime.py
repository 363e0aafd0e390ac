"""The files of an export in old releases of ONNX Runtime: they load there, and answer as in the installed one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from growtas.export.graph.exporter import export_onnx
from growtas.export.graph.pre_post import add_postprocess, add_preprocess
from growtas.export.graph.versions import oldest_onnxruntime
from growtas.export.quantization.convert import convert
from growtas.nn.extract import extract
from tests.export_helpers import DIGITS_PREPROCESS, SUBNET, random_supernet

pytestmark = pytest.mark.slow
SCRIPT = """
import sys, numpy, onnxruntime
onnxruntime.set_default_logger_severity(4)
files, given, out = sys.argv[1:-2], numpy.load(sys.argv[-2]), sys.argv[-1]
answers = {}
for file in files:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0].name
    answers[file] = session.run(["logits"], {taken: given[taken]})[0]
numpy.savez(out, version=onnxruntime.__version__, **answers)
"""
# Of the largest logit. Both round in fp32; kernels of other releases add up in another order, and quantise other halves up.
TOLERANCES = {"fp32": 1e-5, "pixels": 1e-5, "fp16": 5e-3, "int8": 2e-2}


@pytest.fixture(scope="session", params=sorted({str(oldest_onnxruntime(opset, "fp16")) for opset in range(18, 23)}))
def old_python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A release of ONNX Runtime, and the Python of an environment that has it."""
    folder = tmp_path_factory.mktemp("venv")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"onnxruntime=={request.param}", "numpy<2"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"onnxruntime {request.param} can't be installed here: {done.stderr.strip().splitlines()[-1][:200]}")
    return request.param, python


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Path]]:
    """Files of each opset, by what they are."""
    folder, model = tmp_path_factory.mktemp("files"), extract(random_supernet(), SUBNET)
    images = np.random.default_rng(1).standard_normal((16, 3, 16, 16)).astype(np.float32)
    made = {}
    for opset in range(18, 23):
        paths = {name: folder / f"{opset}.{name}.onnx" for name in TOLERANCES}
        export_onnx(model, paths["fp32"], opset=opset, preprocess=DIGITS_PREPROCESS)
        convert(paths["fp32"], paths["fp16"], "fp16", calibration=images)
        add_postprocess(paths["fp32"], paths["pixels"], softmax=True, top_k=3, class_names=None)
        add_preprocess(paths["pixels"], paths["pixels"], DIGITS_PREPROCESS, resize=True)
        if opset <= 20:
            convert(paths["fp32"], paths["int8"], "int8", calibration=images)
        made[opset] = {name: path for name, path in paths.items() if path.exists()}
    return made


def test_an_old_onnxruntime_answers_like_the_installed_one(
    old_python: tuple[str, Path], files: dict[int, dict[str, Path]], tmp_path: Path
) -> None:
    version, python = old_python
    generator = np.random.default_rng(0)
    given = {
        "images": generator.standard_normal((3, 3, 16, 16)).astype(np.float32),
        "pixels": generator.integers(0, 256, (3, 20, 25, 3), dtype=np.uint8),
    }
    np.savez(tmp_path / "given.npz", **given)
    tried = {
        str(path): name
        for opset, paths in files.items()
        for name, path in paths.items()
        if oldest_onnxruntime(opset, name if name in ("fp16", "int8") else "fp32") == version
    }
    assert tried
    subprocess.run([python, "-c", SCRIPT, *tried, tmp_path / "given.npz", tmp_path / "out.npz"], check=True)
    answers = np.load(tmp_path / "out.npz")
    assert str(answers["version"]) == version
    for file, name in tried.items():
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        taken = session.get_inputs()[0].name
        want = session.run(["logits"], {taken: given[taken]})[0]
        error = np.abs(answers[file] - want).max() / np.abs(want).max()
        assert error <= TOLERANCES[name], f"{Path(file).name} in {version}: {error:.1e}"
        assert (answers[file].argmax(1) == want.argmax(1)).all()
    if version == "1.17.0":
        # What an export makes by default.
        assert {name for file, name in tried.items() if Path(file).name.startswith("20.")} == set(TOLERANCES)
