from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growtas.errors import CheckpointError, DeviceError, GrowtasError
from growtas.export.artifact import load_artifact, manifest_path, read_manifest, write_manifest
from growtas.export.benchmark.run import BenchOptions
from growtas.export.open import open_artifact, open_session
from growtas.export.pipeline import run as pipeline
from growtas.export.tensorrt import engine, library
from growtas.export.tensorrt.targets import parse_targets
from growtas.export.verification.images import noise
from growtas.files import write_json
from growtas.subnet import Subnet
from tests.bench_helpers import bench
from tests.export_helpers import Cli, add_search, make_run
from tests.fake_runtime import FakeMachine, FakePlanBuilder

MACHINE = FakeMachine(gpu="sm86", version="2.1")


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a fake sm86, and with fakes of NVIDIA's packages."""
    MACHINE.install(monkeypatch)


def write_plan(folder: Path, onnx: Path, *, built_for: tuple[str, ...] = ("sm86", "sm89"), **changes: Any) -> Path:
    """A fake plan with its manifest in a run's export folder; ``changes`` replace parts of the manifest's ``plan``."""
    built = FakePlanBuilder(MACHINE).build(onnx, built_for)
    path = folder / "tiny-run" / "export" / "tiny-subnet.plan"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.parent.parent / "run.json", {})
    path.write_bytes(built.data)
    plan = {
        "runtime": built.runtime,
        "runtime_version": built.runtime_version,
        "targets": list(built.targets),
        "max_batch": built.batches.max,
        "settings": built.settings,
        **changes,
    }
    write_manifest(path, {"precision": built.precision, "space": "tiny", "source": {"run": "tiny-run"}, "plan": plan})
    return path


def version_of(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    FakeMachine(gpu="sm86", version=version).install(monkeypatch)


def test_a_plan_that_fits_is_loaded(tmp_path: Path, onnx_file: Path) -> None:
    path = write_plan(tmp_path, onnx_file)
    images = noise(2, (3, 16, 16))
    with open_session(path) as session, open_session(onnx_file, threads=1) as reference:
        np.testing.assert_array_equal(session.run(images), reference.run(images))
        assert (session.info.runtime, session.info.version, session.info.device) == ("tensorrt-rtx", "2.1", "fake sm86")
        assert session.image_shape == (3, 16, 16)
        parts = session.timer_parts(images)()
        assert (parts.h2d_ms, parts.device_ms, parts.d2h_ms) == (1.0, 2.0, 0.25)


def test_what_was_hashed_is_what_is_loaded(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan(tmp_path, onnx_file)
    opened: list[bytes] = []
    monkeypatch.setattr(engine, "PlanSession", lambda trt, data, **options: opened.append(data))
    open_session(path)
    assert hashlib.sha256(opened[0]).hexdigest() == json.loads(manifest_path(path).read_text())["artifact"]["sha256"]


REBUILD = r"build it again: growtas export \S+/tiny-run --format trt --target "


@pytest.mark.parametrize(
    ("machine", "match"),
    [
        (FakeMachine(gpu="sm80", version="2.1"), f"built for sm86 or sm89, but the GPU of this machine is sm80; {REBUILD}sm80$"),
        (FakeMachine(gpu="sm86", version="2.2"), f"built with tensorrt-rtx 2.1, but 2.2 is installed; {REBUILD}sm86$"),
        (FakeMachine(gpu="sm86", version="2.1.0"), "built with tensorrt-rtx 2.1, but 2.1.0 is installed"),
        (FakeMachine(gpu=None, version="2.1"), "can't run here: no NVIDIA GPU"),
    ],
)
def test_a_mismatch_names_both_sides_and_the_line_that_rebuilds(
    tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, machine: FakeMachine, match: str
) -> None:
    path = write_plan(tmp_path, onnx_file)
    machine.install(monkeypatch)
    with pytest.raises(DeviceError, match=match) as caught:
        open_session(path)
    assert "\n" not in str(caught.value)


def test_another_file_is_refused_before_anything_else_is_looked_at(
    tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_plan(tmp_path, onnx_file)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    FakeMachine(gpu=None).install(monkeypatch)
    monkeypatch.setattr(engine, "PlanSession", None)
    with pytest.raises(CheckpointError, match=rf"SHA-256 .*; {REBUILD}sm86,sm89$"):
        open_session(path)
    # Trusted means without a manifest, not against it.
    with pytest.raises(CheckpointError, match="SHA-256"):
        open_session(path, trusted=True)


def test_a_manifest_of_another_plan_is_refused(tmp_path: Path, onnx_file: Path) -> None:
    (tmp_path / "other").mkdir()
    path, other = write_plan(tmp_path, onnx_file), write_plan(tmp_path / "other", onnx_file, built_for=("sm86",))
    manifest_path(path).write_text(manifest_path(other).read_text())
    with pytest.raises(CheckpointError, match="is not the one that its manifest describes"):
        open_session(path)


def test_a_plan_without_a_manifest_is_refused_unless_trusted(tmp_path: Path, onnx_file: Path) -> None:
    path = write_plan(tmp_path, onnx_file)
    manifest_path(path).unlink()
    with pytest.raises(
        CheckpointError, match=r"tiny-subnet\.plan\.json is missing; export it again \(growtas export RUN --format trt\)"
    ):
        open_session(path)
    with open_session(path, runtime="tensorrt", trusted=True) as session:
        assert session.run(noise(1, (3, 16, 16))).shape == (1, 10)


def test_a_manifest_that_says_nothing_of_a_plan_is_refused(tmp_path: Path, onnx_file: Path) -> None:
    path = write_plan(tmp_path, onnx_file)
    manifest = json.loads(manifest_path(path).read_text())
    del manifest["plan"]
    manifest_path(path).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="does not describe a plan"):
        open_session(path)
    with pytest.raises(CheckpointError, match="does not describe a plan"):
        open_artifact(load_artifact(path))


@pytest.mark.parametrize("change", [{"targets": []}, {"targets": None}])
def test_a_manifest_without_targets_fits_no_gpu(tmp_path: Path, onnx_file: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="built for no GPU, but the GPU of this machine is sm86"):
        open_session(write_plan(tmp_path, onnx_file, **change))


@pytest.mark.parametrize("runtime", ["tvm", "fake"])
def test_unknown_runtimes_are_refused(tmp_path: Path, onnx_file: Path, runtime: str) -> None:
    with pytest.raises(DeviceError, match=f"runtime is '{runtime}'; legal are tensorrt or tensorrt-rtx"):
        open_session(write_plan(tmp_path, onnx_file, runtime=runtime))


def test_a_runtime_that_the_caller_names_must_be_the_plans(tmp_path: Path, onnx_file: Path) -> None:
    path = write_plan(tmp_path, onnx_file, runtime="tensorrt-rtx")
    with pytest.raises(DeviceError, match="built with tensorrt-rtx and can't be loaded by tensorrt; build it again"):
        open_session(path, runtime="tensorrt")


@pytest.mark.parametrize(
    ("runtime", "settings", "built", "installed", "fits"),
    [
        ("tensorrt", {}, "10.13.2.6", "10.13.2.6", True),
        ("tensorrt", {}, "10.13.2.6", "10.13.3.9", False),
        # Whatever a manifest says: such a plan brings native code for the CPU along.
        ("tensorrt", {"version_compatible": True}, "10.9.0.34", "10.13.2.6", False),
        ("tensorrt-rtx", {}, "1.7.1.116", "1.7.1.116", True),
        ("tensorrt-rtx", {}, "1.7.0.40", "1.7.1.116", False),
        ("tensorrt-rtx", {"version_compatible": True}, "1.7.0.40", "1.7.1.116", False),
    ],
)
def test_versions_of_each_runtime(
    tmp_path: Path,
    onnx_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    settings: dict[str, Any],
    built: str,
    installed: str,
    fits: bool,
) -> None:
    path = write_plan(tmp_path, onnx_file, runtime=runtime, runtime_version=built, settings=settings)
    version_of(monkeypatch, installed)
    if fits:
        assert open_session(path).info.runtime == runtime
    else:
        with pytest.raises(DeviceError, match=f"built with {runtime} {built}, but {installed} is installed"):
            open_session(path)


def test_the_rebuild_line_keeps_the_precision(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan(tmp_path, onnx_file)
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**manifest, "precision": "fp16"}))
    FakeMachine(gpu="sm120", version="2.1").install(monkeypatch)
    with pytest.raises(DeviceError, match=f"{REBUILD}sm120 --precision fp16$"):
        open_session(path)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The real command line in an empty folder, with the fake builder behind it."""
    monkeypatch.chdir(tmp_path)

    def choose_builder(**asked: Any) -> tuple[FakePlanBuilder, tuple[str, ...]]:
        return FakePlanBuilder(library.package("tensorrt-rtx", "building").machine), parse_targets(asked["target"])

    monkeypatch.setattr(pipeline, "choose_builder", choose_builder)
    return Cli(monkeypatch, capsys)


OTHER = Subnet(24, (1, 2), (2.0, 2.0))
EVERYTHING = "--precision fp16 --max-batch 4 --opt-batch 2 --subnet other.json --name mine --out made --min-agreement 0.5"


@pytest.mark.parametrize(
    ("options", "plan", "from_folder", "searched_since", "said"),
    [
        ("", "runs/my run/export/tiny-subnet.plan", ".", False, ""),
        ("--opt-batch 8", "export/tiny-subnet.plan", "runs/my run", False, "--opt-batch 8"),
        ("", "tiny-subnet.plan", "runs/my run/export", True, "--subnet tiny-subnet.plan.json"),
        ("--max-batch 2 --tolerance 0.01", "runs/my run/export/tiny-subnet.plan", ".", False, "--max-batch 2 --tolerance 0.01"),
        (
            EVERYTHING,
            "made/mine.fp16.plan",
            ".",
            False,
            "--precision fp16 --max-batch 4 --opt-batch 2 --min-agreement 0.5 "
            "--subnet made/mine.fp16.plan.json --name mine --out made",
        ),
        (EVERYTHING, "../made/mine.fp16.plan", "elsewhere", False, None),
        ("--precision fp16 --softmax --top-k 2", None, ".", False, None),
        ("--preprocess", None, ".", False, None),
    ],
)
def test_the_rebuild_line_makes_the_same_plan(
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    plan: str | None,
    from_folder: str,
    searched_since: bool,
    said: str | None,
) -> None:
    """It is taken from the message and typed: where the plan was asked for, or, where the run is out of sight, beside runs/."""
    run = make_run(tmp_path / "runs", name="my run")
    add_search(run)
    write_json("other.json", OTHER.to_dict())
    (tmp_path / "elsewhere").mkdir()
    code, out, err = cli("export", "runs/my run", "--format", "trt", "--target", "sm86", *shlex.split(options), "--json")
    assert code == 0, err
    made = next(Path(each["path"]).resolve() for each in json.loads(out)["artifacts"] if each["kind"] == "plan")
    before = read_manifest(made)
    if searched_since:
        add_search(run, OTHER)
    FakeMachine(gpu="sm86", version="2.2").install(monkeypatch)
    monkeypatch.chdir(from_folder)
    with pytest.raises(DeviceError, match="built with tensorrt-rtx 2.1, but 2.2 is installed; build it again: ") as caught:
        open_session(plan or made)
    words = shlex.split(str(caught.value).partition("build it again: ")[2])
    if said is not None:
        assert " ".join(words).partition(" --target sm86")[2].strip() == said
    if from_folder == "elsewhere":
        monkeypatch.chdir(tmp_path)
    made.unlink()
    code, _, err = cli(*words[1:])
    assert code == 0, err
    assert words[:2] == ["growtas", "export"]
    open_session(made)
    after = read_manifest(made)
    assert before is not None
    assert after is not None
    before, after = before.to_dict(), after.to_dict()
    for key in ("precision", "subnet", "input", "output", "postprocess", "kind"):
        assert after.get(key) == before.get(key), key
    for key in ("runtime", "targets", "max_batch", "optimised_for_batch", "settings"):
        assert after["plan"][key] == before["plan"][key], key
    assert after["artifact"]["file"] == before["artifact"]["file"]
    assert after["verification"]["thresholds"] == before["verification"]["thresholds"]


def test_the_rebuild_line_points_nowhere_but_into_runs(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest came with the plan, from wherever that came from; what it says is quoted for a shell."""
    path = write_plan(tmp_path, onnx_file)
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**manifest, "source": {"run": "../../a; reboot"}}))
    (path.parent.parent / "run.json").unlink()
    monkeypatch.chdir(tmp_path)
    FakeMachine(gpu="sm80", version="2.1").install(monkeypatch)
    with pytest.raises(DeviceError, match="growtas export 'runs/a; reboot' --format trt --target sm80 --out "):
        open_session(path)


def test_bench_passes_through(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan(tmp_path, onnx_file, runtime="tensorrt-rtx", runtime_version="1.6.0")
    version_of(monkeypatch, "1.7.1")
    options = BenchOptions(seconds=0.01, rounds=1, batches=(1,))
    (artifact,) = bench([path], options)["artifacts"]
    assert artifact["runnable"] is False
    assert "built with tensorrt-rtx 1.6.0, but 1.7.1 is installed; build it again" in artifact["not_runnable_because"]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(GrowtasError, match="SHA-256"):
        bench([path], options)


def test_where_compiled_kernels_are_kept(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(engine, "PlanSession", lambda trt, data, **options: opened.append(options))
    path = write_plan(tmp_path, onnx_file)
    open_session(path)
    open_session(write_plan(tmp_path, onnx_file, runtime="tensorrt"))
    manifest_path(path).unlink()
    open_session(path, trusted=True)
    folders = [options["runtime_cache"] and options["runtime_cache"].path.parent for options in opened]
    assert folders == [path.parent, None, None]
    key = opened[0]["runtime_cache"].key
    assert (key.kind, key.version, key.target, key.plan) == (
        "runtime",
        "2.1",
        "sm86",
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
