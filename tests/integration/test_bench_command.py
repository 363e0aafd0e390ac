from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from growtas.export.artifact import manifest_path
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.run import export_subnet
from growtas.runs import Run
from tests.export_helpers import Cli, add_search, make_run, needs_rtx, without_gpu

QUICK = ("--no-roofline", "--seconds", "0.01", "--rounds", "2", "--threads", "1", "--batch", "1,2")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def run(tmp_path: Path, no_probe: None) -> Run:
    """A run with a searched, exported subnet (torch only, which is quick to make)."""
    run = make_run(tmp_path / "runs")
    conditions = {"percentile": "p50", "batch": 1, "precision": "fp32", "runtime": "torch"}
    latency = {"ms": 2.0, "kind": "measured", "device": "cpu", **conditions}
    add_search(run, device="cpu", latency=latency, limits={"max_params": None, "max_macs": None, "max_latency_ms": 10_000.0})
    export_subnet(run, ExportOptions(formats=("torch",)))
    return run


@needs_rtx
@without_gpu
def test_the_line_as_typed_after_an_export(cli: Cli, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    add_search(run, device="a10", limits={"max_latency_ms": 5.0})
    export_subnet(run, ExportOptions(formats=("trt",)))
    code, out, err = cli("bench", *QUICK)
    assert code == 0, err
    assert f"artifacts: all files in {Path('runs/tiny/export')} (the newest run)" in err
    assert "tiny-subnet.fp16.plan: not runnable here (no NVIDIA GPU with a driver on this machine)" in out
    assert "activation memory" in out
    assert "for sm86" in out
    # The modelled promise is called modelled, and what was measured is called measured.
    assert "the search's latency limit 5 ms on a10 (in the search 0.4 ms, modelled) was not checked:" in out
    assert all(
        "measured" in line for line in out.splitlines() if line.startswith(("tiny-subnet.onnx ", "tiny-subnet.safetensors "))
    )
    report = json.loads((run.path / "bench" / "bench.json").read_text())
    by_file = {artifact["file"]: artifact for artifact in report["artifacts"]}
    assert set(by_file) == {f"tiny-subnet.{end}" for end in ("onnx", "fp16.onnx", "fp16.plan", "safetensors")}
    assert by_file["tiny-subnet.fp16.plan"]["runnable"] is False
    assert [result["batch"] for result in by_file["tiny-subnet.onnx"]["results"]] == [1, 2]
    assert all(result["kind"] == "measured" for artifact in report["artifacts"] for result in artifact["results"])


def test_json_is_one_document_and_the_same_as_the_file(cli: Cli, run: Run) -> None:
    code, out, _ = cli("bench", "--json", *QUICK)
    assert code == 0
    assert json.loads(out) == json.loads((run.path / "bench" / "bench.json").read_text())


def test_a_limit_for_this_machine_is_judged(cli: Cli, run: Run) -> None:
    code, out, _ = cli("bench", *QUICK)
    assert code == 0
    assert "the search's latency limit 10000 ms on cpu (in the search 2 ms, measured) holds" in out


def _two_devices(run: Run, *, cpu_limit: float | None = 10_000.0, a10_limit: float | None = 5.0, **changes: object) -> Path:
    """A search for an a10 first and this cpu second, and what was exported of it."""
    conditions = {"percentile": "p50", "batch": 1}
    modelled = {"ms": 0.4, "kind": "modelled", "device": "a10", **conditions, "precision": "fp16", "runtime": "tensorrt"}
    measured = {"ms": 2.0, "kind": "measured", "device": "cpu", **conditions, "precision": "fp32", "runtime": "torch"}
    latencies = [
        {"device": "a10", "max_latency_ms": a10_limit, "predicted": modelled, "measured": None},
        {
            "device": "cpu",
            "max_latency_ms": cpu_limit,
            "predicted": {**measured, "ms": 3.0, "kind": "modelled"},
            "measured": measured,
        },
    ]
    limits = {"max_params": None, "max_macs": None, "max_latency_ms": a10_limit}
    path = add_search(run, device="a10", latency=modelled, limits=limits, latencies=latencies, **changes)
    export_subnet(run, ExportOptions(formats=("torch",)))
    return path


def test_every_device_s_limit_is_judged_on_that_device_alone(cli: Cli, run: Run) -> None:
    path = _two_devices(run)
    code, out, _ = cli("bench", *QUICK)
    assert code == 0
    lines = [line for line in out.splitlines() if "latency limit" in line]
    a10 = "the search's latency limit 5 ms on a10 (in the search 0.4 ms, modelled) was not checked: the limit is for p50, batch 1"
    assert lines[0].startswith(a10)
    cpu = "tiny-subnet.safetensors: the search's latency limit 10000 ms on cpu (in the search 2 ms, measured) holds: "
    assert lines[1].startswith(cpu)
    assert len(lines) == 2
    _two_devices(run, cpu_limit=1e-6)
    _, out, _ = cli("bench", *QUICK, "--json")
    first, second = json.loads(out)["artifacts"][0]["limits"]
    assert (first["device"], first["holds"], first["measured_ms"]) == ("a10", None, None)
    assert (second["device"], second["holds"], second["limit_ms"]) == ("cpu", False, 1e-6)
    assert second["measured_ms"] == json.loads(out)["artifacts"][0]["results"][0]["p50_ms"]
    # A limit is only where one was set.
    _two_devices(run, a10_limit=None)
    _, out, _ = cli("bench", *QUICK, "--json")
    assert [limit["device"] for limit in json.loads(out)["artifacts"][0]["limits"]] == ["cpu"]
    # The manifest knows all of them, whatever became of the subnet file.
    _two_devices(run)
    path.unlink()
    _, out, _ = cli("bench", *QUICK, "--json")
    assert [limit["device"] for limit in json.loads(out)["artifacts"][0]["limits"]] == ["a10", "cpu"]


def test_manifests_that_know_one_device_s_limit_only(cli: Cli, run: Run) -> None:
    path = _two_devices(run)
    manifest = manifest_path(run.path / "export" / "tiny-subnet.safetensors")
    written = json.loads(manifest.read_text())
    del written["search"]["latencies"], written["search"]["devices"]
    manifest.write_text(json.dumps(written))
    # The others' are in the subnet file that was exported, also where the search's folder has another name now.
    for _ in range(2):
        _, out, _ = cli("bench", *QUICK, "--json")
        assert [limit["device"] for limit in json.loads(out)["artifacts"][0]["limits"]] == ["a10", "cpu"]
        if path.parent.exists():
            path.parent.rename(run.path / "search-2")
    # Once another search has taken its place, the first device's limit is what is left.
    moved = run.path / "search-2" / path.name
    moved.write_text(json.dumps({**json.loads(moved.read_text()), "accuracy": 0.125}))
    _, out, _ = cli("bench", *QUICK, "--json")
    assert [limit["device"] for limit in json.loads(out)["artifacts"][0]["limits"]] == ["a10"]


def test_named_artifacts_of_a_run_report_into_that_run(cli: Cli, run: Run) -> None:
    artifact = run.path / "export" / "tiny-subnet.safetensors"
    code, out, _ = cli("bench", artifact, *QUICK)
    assert code == 0
    assert (run.path / "bench" / "bench.json").is_file()
    assert "tiny-subnet.safetensors" in out


def test_artifacts_outside_a_run_write_only_where_they_are_told(cli: Cli, run: Run, tmp_path: Path) -> None:
    source = run.path / "export" / "tiny-subnet.safetensors"
    Path("alone.safetensors").write_bytes(source.read_bytes())
    code, _, err = cli("bench", "alone.safetensors", *QUICK)
    assert code == 0
    assert "alone.safetensors: no manifest beside it" in err
    assert not list(tmp_path.rglob("bench.json"))
    code, _, _ = cli("bench", "alone.safetensors", "--out", "reports/mine.json", *QUICK)
    assert code == 0
    assert json.loads(Path("reports/mine.json").read_text())["artifacts"][0]["verified"] is False


def test_a_changed_artifact_is_refused(cli: Cli, run: Run) -> None:
    artifact = run.path / "export" / "tiny-subnet.safetensors"
    artifact.write_bytes(artifact.read_bytes() + b" ")
    code, sentence = cli.fails("bench", *QUICK)
    assert code == 2
    assert "not the one that its manifest describes" in sentence
    assert not (run.path / "bench" / "bench.json").exists()


def test_a_truncated_artifact_without_a_manifest(cli: Cli, run: Run) -> None:
    artifact = run.path / "export" / "tiny-subnet.safetensors"
    artifact.write_bytes(artifact.read_bytes()[:-64])
    manifest_path(artifact).unlink()
    code, sentence = cli.fails("bench", *QUICK)
    assert code == 2
    assert "truncated" in sentence


def test_nothing_exported_yet(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    code, sentence = cli.fails("bench")
    assert code == 2
    assert "growtas export" in sentence


def test_wrong_options(cli: Cli, run: Run) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    for arguments, match in (
        *(((option, "folder"), "folder: the output file can't be written") for option in ("--out", "--csv", "--png")),
        (("--batch", "1,x"), "--batch is '1,x'"),
        (("--batch", "0"), "from 1 up"),
        (("--rounds", "0"), "--rounds is 0"),
        (("--seconds", "0"), "--seconds is 0"),
        (("--threads", "0"), "--threads is 0"),
        (("--out", "file/x.json"), "can't be written"),
        (("weights.bin",), "not an artifact"),
    ):
        code, sentence = cli.fails("bench", *arguments)
        assert code == 2
        assert match in sentence


def test_threads_are_put_back_for_what_comes_after(cli: Cli, run: Run) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert cli("bench", *QUICK)[0] == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_runtimes_beside_a_baseline_as_table_csv_and_picture(cli: Cli, run: Run) -> None:
    export_subnet(run, ExportOptions(formats=("onnx",)))
    folder = run.path / "export"
    artifacts = (folder / "tiny-subnet.onnx", folder / "tiny-subnet.safetensors")
    files = ("--csv", "out/all.csv", "--png", "out/all.png", "--out", "out/all.json")
    code, out, err = cli("bench", *artifacts, "--runtime", "onnxruntime,eager", "--baseline", "eager", *files, *QUICK)
    assert code == 0, err
    report = json.loads(Path("out/all.json").read_text())
    assert report["settings"]["baseline"] == "tiny-subnet.safetensors"
    by_label = {artifact["label"]: artifact for artifact in report["artifacts"]}
    onnx, eager = by_label["tiny-subnet.onnx"], by_label["tiny-subnet.safetensors"]
    assert [result["runtime"] for result in (onnx["results"][0], eager["results"][0])] == ["onnxruntime", "torch"]
    for batch in (0, 1):
        ratio = onnx["results"][batch]["ratio"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert (eager["results"][batch]["ratio"] or {"median": 1})["median"] == 1
    with Path("out/all.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["label"], line["batch"]) for line in lines] == [(label, batch) for label in by_label for batch in "12"]
    for line in lines:
        (found,) = [result for result in by_label[line["label"]]["results"] if str(result["batch"]) == line["batch"]]
        assert float(line["p50_ms"]) == found["p50_ms"]
        assert line["kind"] == "measured"
    with Image.open("out/all.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
    for name in ("all.csv", "all.png", "all.json"):
        assert name in out


def test_an_interrupt_shows_what_was_measured_and_leaves_the_last_report(
    cli: Cli, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from growtas.export.benchmark import run as bench_module

    assert cli("bench", *QUICK)[0] == 0
    file = run.path / "bench" / "bench.json"
    before, collect, calls = file.read_bytes(), bench_module.collect, itertools.count(1)

    def interrupted(*arguments: Any, **options: Any) -> list[float]:
        # The second turn of each run, at batch 2.
        if next(calls) % 2 == 0:
            raise KeyboardInterrupt
        return collect(*arguments, **options)

    monkeypatch.setattr(bench_module, "collect", interrupted)
    code, out, err = cli("bench", *QUICK, "--out", "part.json")
    assert code == 130
    assert "interrupted: the report covers what was measured so far" in err
    part = json.loads(Path("part.json").read_text())
    assert part["interrupted"] is True
    assert [result["batch"] for result in part["artifacts"][0]["results"]] == [1]
    assert "tiny-subnet.safetensors" in out
    code, _, err = cli("bench", *QUICK)
    assert code == 130
    assert "not replaced, because the measurement is incomplete" in err
    assert file.read_bytes() == before


def test_an_interrupt_before_anything_was_measured(cli: Cli, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from growtas.export.benchmark import run as bench_module

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_module, "collect", interrupted)
    code, out, _ = cli("bench", *QUICK, "--csv", "none.csv")
    assert (code, out) == (130, "")
    assert not Path("none.csv").exists()
    assert not (run.path / "bench" / "bench.json").exists()


def test_a_timm_model_beside(cli: Cli, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWTAS_CACHE", str(run.path / "cache"))
    artifact = run.path / "export" / "tiny-subnet.safetensors"
    code, out, err = cli("bench", artifact, "--runtime", "eager", "--baseline", "test_vit", *QUICK)
    assert code == 0, err
    assert "timm:test_vit" in out
    code, sentence = cli.fails("bench", artifact, "--baseline", "no_such_model", *QUICK)
    assert code == 2
    assert "no_such_model" in sentence
