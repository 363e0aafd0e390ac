from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from growtas.export.artifact import manifest_path, write_manifest
from growtas.export.graph.exporter import export_onnx
from growtas.nn.extract import extract
from tests.export_helpers import SUBNET, Cli, random_supernet


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export_onnx(extract(random_supernet(), SUBNET), path)
    return path


def manifest(**changes: Any) -> dict[str, Any]:
    latency = {"ms": 0.4, "kind": "modelled", "device": "a10", "percentile": "p50", "batch": 1, "precision": "fp16", "runtime": "t"}
    return {
        "precision": "fp32",
        "space": "tiny",
        "subnet": SUBNET.to_dict(),
        "params": 4218,
        "macs": 88000,
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", 3, 16, 16]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", 10]},
        "source": {"run": "first", "checkpoint": "checkpoints/epoch-0001/supernet.safetensors"},
        "search": {"latency": latency},
        "parity": {"relative_error": 2e-7, "top1_agreement": 1.0, "images": "12 test images of digits"},
        "executed": True,
        **changes,
    }


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    shutil.copy(exported, tmp_path / "tiny[1].onnx")
    write_manifest(tmp_path / "tiny[1].onnx", manifest())
    return Path("tiny[1].onnx")


def test_the_line_as_typed(cli: Cli, artifact: Path) -> None:
    code, out, err = cli("inspect", artifact)
    assert (code, err) == (0, "")
    for text in (
        "tiny[1].onnx, onnx",
        "(as in the manifest)",
        "params 4.22K, MACs 88K",
        "fp32 in the manifest, fp32 in the file",
        "images float32 (batch, 3, 16, 16)",
        "opset 20, ",
        "Transpose ",
        "relative error 2.0e-07, top-1 agreement 100.0% on 12 test images of digits",
        "0.4 ms modelled, p50, fp16, batch 1, on a10 (t)",
    ):
        assert text in out
    assert "measured" not in out


def test_as_json(cli: Cli, artifact: Path) -> None:
    code, out, err = cli("inspect", artifact, "--json", "--verify")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary["matches_manifest"] is True
    assert summary["graph"]["layout_operators"]["Transpose"] > 0
    assert summary["manifest"] == json.loads(manifest_path(artifact).read_text())


def test_a_file_without_a_manifest(cli: Cli, exported: Path) -> None:
    code, out, _ = cli("inspect", exported, "--verify")
    assert code == 0
    assert "(no manifest)" in out
    assert "nothing in the manifest, fp32 in the file" in out


def test_another_file_than_the_manifests_is_shown_and_fails(cli: Cli, artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes() + b"\x22\x00")
    for options in ((), ("--json",)):
        code, out, err = cli("inspect", artifact, *options)
        assert code == 2
        assert "SHA-256 differs" in err
        assert err.count("growtas: ") == 1
        assert "SHA-256 differs" in out
    assert json.loads(out)["matches_manifest"] is False


def test_a_contradiction_is_shown_and_fails_only_if_verified(cli: Cli, artifact: Path) -> None:
    write_manifest(artifact, manifest(precision="int8"))
    code, out, err = cli("inspect", artifact)
    assert (code, err) == (0, "")
    assert "the manifest says int8, and the file's weights are fp32" in out
    code, _, err = cli("inspect", artifact, "--verify")
    assert code == 2
    assert "growtas: " in err
    assert "the manifest says int8" in err


def test_a_plan_is_shown_by_its_manifest(cli: Cli, tmp_path: Path) -> None:
    Path("m.plan").write_bytes(b"not to be read")
    plan = {"runtime": "tensorrt-rtx", "runtime_version": "1.7", "targets": ["sm86", "sm89"], "max_batch": 8}
    unrun = {"executed": False, "not_executed_because": "there is no GPU", "parity": None}
    write_manifest("m.plan", manifest(precision="fp16", plan={**plan, "activation_memory_bytes": 2_000_000}, **unrun))
    code, out, _ = cli("inspect", "m.plan")
    assert code == 0
    for text in (
        "fp16 in the manifest, the file was not read",
        "tensorrt-rtx 1.7 for sm86, sm89, batches up to 8",
        "2 MB",
        "there is no GPU",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("absent.onnx", None, "no such artifact"),
        ("m.onnx", b"nonsense", "not a readable .onnx file"),
        ("m.txt", b"text", "not an artifact; legal are"),
    ],
)
def test_what_can_not_be_shown_is_one_sentence(cli: Cli, name: str, content: bytes | None, match: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    code, sentence = cli.fails("inspect", name)
    assert code == 2
    assert match in sentence


def test_odd_manifests_are_one_sentence(cli: Cli, artifact: Path) -> None:
    manifest_path(artifact).write_text('{"format": "other"}')
    code, sentence = cli.fails("inspect", artifact)
    assert code == 2
    assert "not a manifest of format" in sentence


def test_help_does_not_load_torch() -> None:
    code = "import sys, growtas.cli.inspect; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_latency_of_a_busy_machine_is_marked(cli: Cli, artifact: Path) -> None:
    latency = {"ms": 0.4, "kind": "measured", "device": "cpu", "percentile": "p50", "batch": 1, "unsteady": True}
    write_manifest(artifact, manifest(search={"latency": latency}))
    code, out, _ = cli("inspect", artifact)
    assert code == 0
    assert "0.4 ms measured, unsteady, p50, batch 1, on cpu" in out
