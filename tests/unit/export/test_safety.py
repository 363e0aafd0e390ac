from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growtas.errors import CheckpointError, DeviceError, GrowtasError
from growtas.export import safety
from growtas.export.backends import fake, nvinfer, open_session, plans
from growtas.export.backends.fake import FakeMachine, FakePlanBuilder
from growtas.export.bench import BenchOptions, bench
from growtas.export.images import noise
from growtas.export.manifest import manifest_path, write_manifest
from growtas.export.safety import check_plan


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a fake sm86, and with neither package of NVIDIA's."""
    monkeypatch.setattr(fake, "MACHINE", FakeMachine(gpu="sm86", version="2.1"))
    monkeypatch.setattr(nvinfer, "local_target", lambda: "sm86")

    def refuse(runtime: str) -> Any:
        raise AssertionError(f"{runtime} was loaded")

    monkeypatch.setattr(plans, "module", refuse)


def write_plan(folder: Path, onnx: Path, *, built_for: tuple[str, ...] = ("sm86", "sm89"), **changes: Any) -> Path:
    """A fake plan with its manifest; ``changes`` replace parts of the manifest's ``plan``."""
    built = FakePlanBuilder().build(onnx, built_for, max_batch=4)
    path = folder / "m.plan"
    path.write_bytes(built.data)
    plan = {
        "runtime": built.runtime,
        "runtime_version": built.runtime_version,
        "targets": list(built.targets),
        "max_batch": built.batches.max,
        "settings": built.settings,
        **changes,
    }
    write_manifest(path, {"precision": built.precision, "source": {"run": "tiny-run"}, "plan": plan})
    return path


def version_of(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(safety, "_installed_version", lambda runtime: version)


def test_a_plan_that_fits_is_loaded(tmp_path: Path, onnx_file: Path) -> None:
    path = write_plan(tmp_path, onnx_file)
    images = noise(2, (3, 16, 16))
    with open_session(path) as session, open_session(onnx_file, threads=1) as reference:
        np.testing.assert_array_equal(session.run(images), reference.run(images))
        assert (session.info.runtime, session.info.version, session.info.device) == ("fake", "2.1", "fake sm86")
        assert session.image_shape == (3, 16, 16)
        parts = session.timer_parts(images)()
        assert (parts.h2d_ms, parts.device_ms, parts.d2h_ms) == (1.0, 2.0, 0.25)


def test_what_was_hashed_is_what_is_loaded(tmp_path: Path, onnx_file: Path) -> None:
    path = write_plan(tmp_path, onnx_file)
    checked = check_plan(path)
    assert checked.data == path.read_bytes()
    assert checked.sha256 == json.loads(manifest_path(path).read_text())["artifact"]["sha256"]


REBUILD = "build it anew: growtas export tiny-run --format trt --target "


@pytest.mark.parametrize(
    ("machine", "match"),
    [
        (FakeMachine(gpu="sm80", version="2.1"), f"built for sm86 or sm89, the GPU of this machine is sm80; {REBUILD}sm80$"),
        (FakeMachine(gpu="sm86", version="2.2"), f"built with fake 2.1, installed is 2.2; {REBUILD}sm86$"),
        (FakeMachine(gpu="sm86", version="2.1.0"), "built with fake 2.1, installed is 2.1.0"),
        (FakeMachine(gpu=None, version="2.1"), "can't run here: no NVIDIA GPU"),
    ],
)
def test_a_mismatch_names_both_sides_and_the_line_that_rebuilds(
    tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, machine: FakeMachine, match: str
) -> None:
    path = write_plan(tmp_path, onnx_file)
    monkeypatch.setattr(fake, "MACHINE", machine)
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
    monkeypatch.setattr(fake, "MACHINE", FakeMachine(gpu=None))
    monkeypatch.setattr(fake, "FakePlanSession", None)
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
    with pytest.raises(CheckpointError, match=r"m\.plan\.json is missing; export it again \(growtas export RUN --format trt\)"):
        open_session(path)
    with open_session(path, runtime="fake", trusted=True) as session:
        assert session.run(noise(1, (3, 16, 16))).shape == (1, 10)


def test_a_manifest_that_says_nothing_of_a_plan_is_refused(tmp_path: Path, onnx_file: Path) -> None:
    path = write_plan(tmp_path, onnx_file)
    manifest = json.loads(manifest_path(path).read_text())
    del manifest["plan"]
    manifest_path(path).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="says nothing of a plan"):
        open_session(path)


@pytest.mark.parametrize("change", [{"targets": []}, {"targets": None}])
def test_a_manifest_without_targets_fits_no_gpu(tmp_path: Path, onnx_file: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="built for no GPU, the GPU of this machine is sm86"):
        open_session(write_plan(tmp_path, onnx_file, **change))


def test_unknown_runtimes_are_refused(tmp_path: Path, onnx_file: Path) -> None:
    with pytest.raises(DeviceError, match="runtime is 'tvm'; legal are tensorrt or tensorrt-rtx"):
        open_session(write_plan(tmp_path, onnx_file, runtime="tvm"))


def test_a_runtime_that_the_caller_names_must_be_the_plans(tmp_path: Path, onnx_file: Path) -> None:
    path = write_plan(tmp_path, onnx_file, runtime="tensorrt-rtx")
    with pytest.raises(DeviceError, match="built with tensorrt-rtx and can't be loaded by tensorrt; build it anew"):
        open_session(path, runtime="tensorrt")


@pytest.mark.parametrize(
    ("runtime", "settings", "built", "installed", "fits"),
    [
        ("tensorrt", {}, "10.13.2.6", "10.13.2.6", True),
        ("tensorrt", {}, "10.13.2.6", "10.13.3.9", False),
        ("tensorrt", {"version_compatible": True}, "10.9.0.34", "10.13.2.6", True),
        ("tensorrt", {"version_compatible": True}, "10.13.2.6", "11.0.0.1", True),
        ("tensorrt", {"version_compatible": True}, "10.13.2.6", "10.9.0.34", False),
        ("tensorrt", {"version_compatible": True}, "None", "10.9.0.34", False),
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
        checked = check_plan(path)
        assert (checked.runtime, checked.version_compatible) == (runtime, bool(settings))
    else:
        with pytest.raises(DeviceError, match=f"built with {runtime} {built}, installed is {installed}"):
            check_plan(path)


def test_the_rebuild_line_keeps_the_precision(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan(tmp_path, onnx_file)
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**manifest, "precision": "fp16"}))
    monkeypatch.setattr(fake, "MACHINE", FakeMachine(gpu="sm120", version="2.1"))
    with pytest.raises(DeviceError, match=f"{REBUILD}sm120 --precision fp16$"):
        open_session(path)


def test_bench_passes_through(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan(tmp_path, onnx_file, runtime="tensorrt-rtx", runtime_version="1.6.0")
    version_of(monkeypatch, "1.7.1")
    options = BenchOptions(seconds=0.01, rounds=1, batches=(1,))
    (artifact,) = bench([path], options)["artifacts"]
    assert artifact["runnable"] is False
    assert "built with tensorrt-rtx 1.6.0, installed is 1.7.1; build it anew" in artifact["not_runnable_because"]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(GrowtasError, match="SHA-256"):
        bench([path], options)


def test_where_compiled_kernels_are_kept(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from growtas.export.backends import nvsession

    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(nvsession, "PlanSession", lambda trt, data, **options: opened.append(options))
    monkeypatch.setattr(plans, "module", lambda runtime: SimpleNamespace(__version__="2.1"))
    path = write_plan(tmp_path, onnx_file, runtime="tensorrt-rtx")
    plans.open_plan(path)
    plans.open_plan(path, cache_dir=tmp_path / "caches")
    plans.open_plan(write_plan(tmp_path, onnx_file, runtime="tensorrt"), cuda_graph=False)
    manifest_path(path).unlink()
    plans.open_plan(path, trusted=True)
    folders = [options["runtime_cache"] and options["runtime_cache"].path.parent for options in opened]
    assert folders == [tmp_path, tmp_path / "caches", None, None]
    assert [options["cuda_graph"] for options in opened] == [True, True, False, True]
    key = opened[0]["runtime_cache"].key
    assert (key.kind, key.version, key.target, key.plan) == (
        "runtime",
        "2.1",
        "sm86",
        safety.hashlib.sha256(path.read_bytes()).hexdigest(),
    )
