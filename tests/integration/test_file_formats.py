"""The files of a run hold the keys that the reference describes, no others, and none fewer."""

from __future__ import annotations

import json

import pytest

from growtas import api
from growtas.api import search_results, searching
from growtas.data import evaluation, preprocess, report, sources
from growtas.docstrings import entries
from growtas.export.artifact import Manifest
from growtas.export.benchmark import limits, memory, peaks, power, timing
from growtas.export.benchmark import report as bench
from growtas.export.pipeline import context, triton
from growtas.export.quantization.convert import PrecisionInfo
from growtas.export.verification.agreement import Verification
from growtas.export.verification.parity import Comparison, ParityReport
from growtas.latency import estimate
from growtas.latency.measured import profile as measured
from growtas.latency.modelled import profile as modelled
from growtas.nn.architecture import Architecture
from growtas.runs import RUN_JSON
from growtas.search import finalists, journal, pareto, search, targets
from growtas.space import PLAIN, SearchSpace, load_space
from growtas.subnet import Subnet
from growtas.train import checkpoints, trainer
from tests.docs.files import artifact_models, field_types
from tests.export_helpers import TINY


def documented(*owners):
    """Names of keys, and those that a file may lack, as their descriptions say."""
    names, optional = set(), set()
    for owner in owners:
        if isinstance(owner, str):
            for entry in entries(owner, "Fields"):
                names |= set(entry.names)
                if "bsent" in entry.text:
                    optional |= set(entry.names)
        else:
            names |= set(field_types(owner))
            if owner in (SearchSpace, Architecture):  # their docstrings say so
                optional |= {*PLAIN, "block_order", "full_width_norms"} & names
    return names, optional


def paths(value, prefix=""):
    """Every key of a JSON value, as ``outer.inner`` and ``list[].inner``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield prefix + key
            yield from paths(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{prefix.removesuffix('.')}[].")


def check(value, *owners, but=()):
    """Compares the keys of a JSON object with their descriptions. What is described as an object alone may hold anything."""
    names, optional = documented(*owners)
    names, optional = names | set(but), optional | set(but)
    assert names
    containers = {name.rpartition(".")[0].removesuffix("[]") for name in names}
    for path in paths(value):
        outer = path
        while outer not in names and "." in outer:
            outer = outer.rpartition(".")[0].removesuffix("[]")
        assert outer in names, f"{path} is not described"
        assert outer == path or outer not in containers, f"{path} is not described"
    missing = {name for name in names - optional if "." not in name} - value.keys()
    assert not missing, f"described, but not there: {missing}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was trained, searched, exported and benched."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "tiny.yaml").write_text(json.dumps(TINY.to_dict()))
    few = {"epochs": 1, "batch_size": 256, "settings": {"monitor_images": 20}}
    run = api.train(recipe="digits-demo", space=str(folder / "tiny.yaml"), out=folder, **few)
    api.search(run, devices={"a10": "5ms"}, objective="pareto", generations=1, population=4, limit_images=20)
    lax = {"max_error": 10, "min_cosine": -1, "min_agreement": 0, "max_accuracy_drop": 100}
    few = {"images": 16, "calibration_images": 8, "max_batch": 2}
    artifacts = api.export(run, formats=["onnx"], precision="int8", triton=folder / "repo", **few, **lax)
    api.bench(artifacts[-1:], batches=[1], rounds=1, seconds=0.02, baseline=artifacts[-1].path.name)
    return run


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def test_run_folder(run):
    info = read(run.path / "run.json")
    check(info, RUN_JSON)
    check(info["data"], sources.DATA_RECORD)
    check(info["preprocess"], preprocess.PREPROCESS)
    check(info["space"], SearchSpace)
    check(read(run.path / "split.json"), evaluation.SPLIT_JSON)
    data = read(run.path / "data.json")
    check({key: value for key, value in data.items() if key != "splits"}, report.DataReport, but=("splits",))
    for split in data["splits"]:
        check(split, report.SplitReport)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 1
    for line in lines:
        check(line, trainer.METRICS_LINE)


def test_checkpoints(run):
    (folder,) = run.path.glob("checkpoints/epoch-0001")
    check(read(folder / "state.json"), checkpoints.STATE_JSON)
    check(read(run.best / "best.json"), checkpoints.BEST_JSON)
    names, _ = documented(checkpoints.CHECKPOINT_FILES)
    assert {file.name for file in folder.iterdir()} == names - {"teacher.safetensors"}


def test_search_folder(run):
    folder = run.path / "search"
    result = read(folder / "result.json")
    check(result, search_results.RESULT_JSON, searching.SETTINGS, searching.RECORD)
    check(result["best"], finalists.CHOSEN)
    for finalist in result["finalists"]:
        check(finalist, finalists.FINALIST)
    for latency in result["best"]["latencies"]:
        check(latency, targets.DEVICE_LATENCY, but=("predicted", "measured", *(f"predicted.{key}" for key in latency["predicted"])))
        check({key: value for key, value in latency["predicted"].items() if key != "provenance"}, estimate.LATENCY)
    check(read(folder / "subnet.json"), search_results.SUBNET_JSON, finalists.CHOSEN)
    check(read(folder / "front.json"), search.FRONT_JSON, pareto.FRONT_NUMBERS)
    assert Subnet.load(folder / "subnet.json") == Subnet.from_dict(result["best"])


def test_journal(run):
    kinds = {"header": (journal.JOURNAL_HEADER, searching.SETTINGS), "evaluation": (journal.JOURNAL_EVALUATION,)}
    kinds |= {"dropped": (journal.JOURNAL_DROPPED,), "converted": (journal.JOURNAL_CONVERTED, journal.Conversion)}
    lines = [json.loads(line) for line in (run.path / "search" / "journal.jsonl").read_text().splitlines()]
    assert {line["type"] for line in lines} >= {"header", "evaluation"}
    for line in lines:
        check(line, *kinds[line["type"]])


def test_manifests(run):
    own = {field.alias or name for name, field in Manifest.model_fields.items()}
    parts = {"architecture": Architecture, "parity": ParityReport, "verification": Verification, "conversion": PrecisionInfo}
    manifests = [read(file) for file in (run.path / "export").glob("*.json")]
    assert {manifest["kind"] for manifest in manifests} == {"torch", "onnx"}
    more, _ = documented(context.MORE_OF_THE_MANIFEST)
    for manifest in manifests:
        assert not manifest.keys() - own - more, manifest.keys() - own - more
        for key, owner in parts.items():
            if manifest.get(key) is not None:
                names, optional = documented(owner)
                names |= {name.split(".")[1] for name in more if name.startswith(f"{key}.")}
                assert names - optional <= manifest[key].keys() <= names, key
        for comparison in (manifest["parity"] or {}).get("comparisons", ()):
            check(comparison, Comparison)
        for name in ("input", "output", "source", "postprocess", "module", "plan"):
            (model,) = [one for one in artifact_models() if one.__name__ in str(Manifest.__annotations__[name])]
            inner = {field.alias or key for key, field in model.model_fields.items()}
            inner |= {key.split(".")[1] for key in more if key.startswith(f"{name}.")}
            assert not (manifest.get(name) or {}).keys() - inner, name


def test_bench_report(run):
    record = read(run.path / "bench" / "bench.json")
    artifacts = record.pop("artifacts")
    parts = ("clocks", "power", "peaks", "settings", "environment")
    rest = {key: value for key, value in record.items() if key not in parts}
    check(rest, bench.BenchReport, but=("format", "files", *parts, "artifacts"))
    check(record["settings"], bench.SETTINGS)
    check(record["environment"], timing.ENVIRONMENT)
    for peak in record["peaks"]:
        check(peak, peaks.PEAKS)
    for moment in (record["clocks"] or {}).values():
        assert moment.keys() <= documented(timing.CLOCKS)[0]
    for meter in record["power"].values():
        assert {f"power.DEVICE.{key}" for key in meter} <= documented(power.POWER)[0]
    for artifact in artifacts:
        results = artifact.pop("results")
        assert {*artifact, "results"} == field_types(bench.ArtifactReport).keys()
        check(artifact["memory"], memory.MEMORY)
        for limit in artifact["limits"]:
            check(limit, limits.LIMIT)
        for result in results:
            assert result.keys() == field_types(bench.BatchResult).keys()
            check(result["ratio"], bench.RATIO)
            check(result["roofline"], peaks.ROOFLINE)


def test_triton_repository(run):
    (folder,) = (run.path.parent / "repo").iterdir()
    names, _ = documented(triton.REPOSITORY)
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} == names


def test_profiles():
    for _, profile in measured_profiles():
        record = profile.to_dict()
        samples = record.pop("samples")
        claims = "".join(line + "\n" for line in measured.CLAIMS.splitlines() if "samples[]" not in line)
        apart = ("format", "samples", "adapted_from", "held_out", "repeatability", "machine")
        check(record, measured.MeasuredProfile, claims, but=apart)
        check(record["held_out"], measured.HeldOut)
        check(record["repeatability"], measured.Repeatability)
        described = documented(measured.CLAIMS)[0] | {f"samples[].{name}" for name in field_types(measured.Sample)}
        assert {f"samples[].{key}" for sample in samples for key in sample} <= described
    for _, profile in api.modelled_profiles():
        record = profile.to_dict()
        check(record, modelled.DeviceProfile, but=("format", "peaks", "efficiency", "calibration"))
        for part in (modelled.Peaks, modelled.Efficiency, modelled.Calibration):
            check(record[part.__name__.lower()], part)


def measured_profiles():
    found = list(api.measured_profiles())
    assert found
    return found


def test_a_run_that_was_imported_from_timm(tmp_path):
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1, "num_classes": 10}
    run = api.import_timm("vit_tiny_patch16_224", "random", data="digits", images=20, options=size, out=tmp_path)
    info = read(run.path / "run.json")
    check(info, RUN_JSON)
    check(info["space"], SearchSpace)
    assert info["space"]["block_order"]


def test_a_space_that_is_written_out_is_the_space():
    check(load_space("micro").to_dict(), SearchSpace)
