from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.errors import BuildError, CheckpointError, ConfigError
from growtas.export.runtimes.base import is_installed
from growtas.export.tensorrt import builder, library
from growtas.export.tensorrt import cache as caches
from growtas.export.tensorrt.cache import CacheFile, CacheKey
from growtas.export.tensorrt.engine import PlanSession
from growtas.export.tensorrt.plan_precision import Inspection, require_precision
from growtas.export.verification.images import noise
from tests.export_helpers import needs_rtx
from tests.unit.export.tensorrt import trt_signatures
from tests.unit.export.tensorrt.fake_trt import IMAGE, MAX_BATCH, PLAN, Clock, CpuCuda, fake_trt

ROOM = Path(library.__file__).parent
CALLERS = ("library", "builder", "plan_precision", "engine")
KEY = CacheKey(kind="runtime", package="tensorrt-rtx", version="1.0", target="sm86", driver="580.1", plan="ab" * 32)


def open_fake(clock: Clock, *, rtx: bool, data: bytes = PLAN, validity: int = 0, **options) -> PlanSession:
    module = fake_trt(clock, rtx=rtx, validity=validity)
    runtime = "tensorrt-rtx" if rtx else "tensorrt"
    return PlanSession(module, data, runtime=runtime, name="m.plan", cuda=CpuCuda(clock), **options)


def expected(images: np.ndarray) -> np.ndarray:
    return images.sum(axis=(1, 2, 3))[:, None] * np.array([1.0, 2.0, 3.0])


# The calls that the code makes.


@needs_rtx
@pytest.mark.parametrize("caller", CALLERS)
def test_everything_that_is_called_is_in_tensorrt_rtx(caller: str) -> None:
    import tensorrt_rtx

    assert trt_signatures.problems((ROOM / f"{caller}.py").read_text(encoding="utf-8"), tensorrt_rtx) == []


@pytest.mark.skipif(not is_installed("tensorrt"), reason="tensorrt is not installed: its libraries need another index")
@pytest.mark.parametrize("caller", CALLERS)
def test_everything_that_is_called_is_in_tensorrt(caller: str) -> None:
    module = importlib.import_module("tensorrt")
    source = (ROOM / f"{caller}.py").read_text(encoding="utf-8")
    without = {*trt_signatures.RTX_ONLY, "runtime_config", "_cache", *(f"trt.{name}" for name in trt_signatures.RTX_ONLY)}
    assert trt_signatures.problems(source, module, without=without) == []


def test_the_check_of_calls_sees_calls() -> None:
    found = {caller: len(trt_signatures.uses((ROOM / f"{caller}.py").read_text(encoding="utf-8"))) for caller in CALLERS}
    assert min(found.values()) >= 1
    assert sum(found.values()) >= 70


@needs_rtx
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("config.set_flags(trt.BuilderFlag.TF32)", "config.set_flags: not there"),
        ("config.clear_flag(trt.BuilderFlag.FP16)", "trt.BuilderFlag.FP16: not there"),
        ("profile.set_shape('images', 1, 2)", "profile.set_shape: does not take"),
        ("context.execute_async_v3(1, 2)", "context.execute_async_v3: does not take"),
        ("self._trt.Runtime()", "trt.Runtime: does not take"),
        ("config.get_timing_cache().serialise()", "get_timing_cache().serialise: not there"),
        ("config.set_timing_cache(cache, strict=True)", "config.set_timing_cache: does not take"),
    ],
)
def test_the_check_of_calls_finds_what_is_wrong(line: str, problem: str) -> None:
    import tensorrt_rtx

    (found,) = trt_signatures.problems(line, tensorrt_rtx)
    assert found.startswith(problem)


def test_only_tensorrt_10_is_told_that_types_bind() -> None:
    from types import SimpleNamespace

    def module(version: str) -> SimpleNamespace:
        return SimpleNamespace(__version__=version, NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))

    assert builder.network_flags(module("10.13.2"), "tensorrt") == 0b10
    assert builder.network_flags(module("11.0.0"), "tensorrt") == 0
    assert builder.network_flags(module("10.1"), "tensorrt-rtx") == 0


# Running a plan, on a fake module and a fake device.


@pytest.mark.parametrize("rtx", [True, False])
def test_batches_in_turn_each_get_their_own_logits(rtx: bool) -> None:
    images = noise(MAX_BATCH, IMAGE)
    with open_fake(Clock(), rtx=rtx) as session:
        for batch in (1, 3, 1, 4, 3):
            np.testing.assert_allclose(session.run(images[-batch:]), expected(images[-batch:]), rtol=1e-5)
        assert session.image_shape == IMAGE
        assert session.batches == (1, MAX_BATCH)
        assert session.info.device == "fake GPU"


def test_logits_are_the_callers_own() -> None:
    with open_fake(Clock(), rtx=True) as session:
        images = noise(2, IMAGE)
        first = session.run(images)
        kept = first.copy()
        session.run(images * 3)
        np.testing.assert_array_equal(first, kept)


def test_tensorrt_launches_a_recorded_graph_after_a_first_run() -> None:
    clock = Clock()
    with open_fake(clock, rtx=False) as session:
        session.run(noise(1, IMAGE))
        session.run(noise(1, IMAGE))
    # Once to warm up, once while recording, and from then on only the graph is launched.
    assert [call for call in clock.calls if "execute" in call or call == "record"] == ["execute on 7", "record", "execute on 8"]


def test_tensorrt_rtx_records_by_itself() -> None:
    clock = Clock()
    with open_fake(clock, rtx=True) as session:
        session.run(noise(1, IMAGE))
        assert clock.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        assert clock.config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert "record" not in clock.calls


@pytest.mark.parametrize("rtx", [True, False])
def test_times_come_from_events_between_the_parts(rtx: bool) -> None:
    with open_fake(Clock(), rtx=rtx) as session:
        parts = session.timer_parts(noise(2, IMAGE))()
        assert (parts.h2d_ms, parts.device_ms, parts.d2h_ms) == (2.0, 5.0, 3.0)
        assert parts.host_ms > 0
        one, two = session.timer(noise(1, IMAGE)), session.timer(noise(2, IMAGE))
        assert [timer() for timer in (one, two, one)] == [5.0] * 3


def test_only_so_many_batch_sizes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growtas.export.tensorrt.engine.MOST_BATCH_SIZES", 2)
    clock = Clock()
    with open_fake(clock, rtx=True) as session:
        for batch in (1, 2, 1, 3):
            session.run(noise(batch, IMAGE))
        assert clock.calls.count("context freed") == 1
        # A new batch size runs once before its first run; the batches 1 and 3 are not new.
        executions = clock.calls.count("execute on 7")
        for batch in (1, 3):
            session.run(noise(batch, IMAGE))
        assert clock.calls.count("execute on 7") == executions + 2


def test_contexts_go_before_their_engine() -> None:
    clock = Clock()
    with open_fake(clock, rtx=True) as session:
        session.run(noise(1, IMAGE))
        session.run(noise(2, IMAGE))
    assert [call for call in clock.calls if "freed" in call] == ["context freed", "context freed", "engine freed"]


@pytest.mark.parametrize("shape", [(0, *IMAGE), (MAX_BATCH + 1, *IMAGE)])
def test_batches_that_the_plan_does_not_take_are_refused(shape: tuple[int, ...]) -> None:
    with (
        open_fake(Clock(), rtx=True) as session,
        pytest.raises(CheckpointError, match=f"takes batches from 1 to 4, not {shape[0]}"),
    ):
        session.run(np.zeros(shape, np.float32))


def test_other_images_are_refused() -> None:
    with open_fake(Clock(), rtx=True) as session, pytest.raises(CheckpointError, match=r"refuses images of shape \(1, 3, 5, 5\)"):
        session.run(np.zeros((1, 3, 5, 5), np.float32))


def test_what_the_runtime_can_not_load_is_one_sentence() -> None:
    with pytest.raises(CheckpointError, match=r"m\.plan: tensorrt 1\.0 can't load the plan \(magic tag does not match\)"):
        open_fake(Clock(), rtx=False, data=b"something")


def test_a_plan_that_tensorrt_rtx_calls_invalid_is_not_loaded() -> None:
    clock = Clock()
    with pytest.raises(CheckpointError, match=r"the plan is not valid here \(version mismatch, unsupported cc\)"):
        open_fake(clock, rtx=True, validity=3)
    assert "deserialise" not in clock.calls


def test_code_for_the_cpu_that_a_plan_brings_along_is_not_run() -> None:
    clock = Clock()
    with open_fake(clock, rtx=False):
        assert clock.runtime.engine_host_code_allowed is False


# Caches.


def test_compiled_kernels_are_kept_for_the_next_session(tmp_path: Path) -> None:
    for expected_content in (b"+", b"++"):
        with open_fake(Clock(), rtx=True, runtime_cache=CacheFile(tmp_path, KEY)):
            pass
        assert CacheFile(tmp_path, KEY).read() == expected_content
    assert [path.name for path in tmp_path.iterdir()] == ["runtime-tensorrt_rtx-1.0-sm86-580.1-abababababab.cache"]


@given(content=st.binary(max_size=300))
def test_a_cache_gives_back_what_was_written(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = CacheFile(tmp_path_factory.mktemp("caches"), KEY)
    assert cache.read() == b""
    assert cache.write(content)
    assert cache.read() == content


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_damaged_cache_counts_as_absent(position: int, flip: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = CacheFile(tmp_path_factory.mktemp("caches"), KEY)
    cache.write(b"kernels, kernels")
    data = bytearray(cache.path.read_bytes())
    data[position % len(data)] ^= flip
    cache.path.write_bytes(data)
    # A space in the header may become a tab: then nothing is damaged.
    assert cache.read() in (b"", b"kernels, kernels")
    cache.path.write_bytes(cache.path.read_bytes()[:-1])
    assert cache.read() == b""


@pytest.mark.parametrize("change", [{"version": "1.1"}, {"target": "sm89"}, {"driver": "590.2"}, {"plan": "cd" * 32}])
def test_a_cache_of_something_else_is_not_read(tmp_path: Path, change: dict[str, str]) -> None:
    from dataclasses import replace

    cache, other = CacheFile(tmp_path, KEY), CacheFile(tmp_path, replace(KEY, **change))
    cache.write(b"kernels")
    assert other.read() == b""
    # Not even under the other's name.
    cache.path.rename(other.path)
    assert other.read() == b""


def test_a_folder_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = CacheFile(tmp_path / "file", KEY)
    assert cache.write(b"kernels") is False
    assert cache.read() == b""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("something else", None),
    ],
)
def test_the_drivers_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, version: str | None) -> None:
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(caches, "DRIVER_FILE", tmp_path / "version")
    assert caches.driver_version() == version
    monkeypatch.setattr(caches, "DRIVER_FILE", tmp_path / "absent")
    assert caches.driver_version() is None


# Precision, as far as no compiler is needed; the rest is in test_backends.py.


def inspection(**weights: int) -> Inspection:
    return Inspection(products=dict.fromkeys(weights, 1), weights=weights, layers=9)


@pytest.mark.parametrize(
    ("weights", "precision"),
    [({"fp32": 9}, "fp32"), ({"fp16": 5, "fp32": 5}, "fp16"), ({"int8": 6, "fp16": 2, "fp32": 2}, "int8"), ({"fp8": 1}, "fp8")],
)
def test_sensitive_layers_may_stay_higher(weights: dict[str, int], precision: str) -> None:
    require_precision(inspection(**weights), precision, "m.onnx")


@pytest.mark.parametrize(
    ("weights", "precision", "match"),
    [
        ({"fp32": 9}, "fp16", "not in fp16: its products are 1 in fp32, and 0% of the weights are in fp16"),
        ({"fp16": 4, "fp32": 6}, "fp16", "40% of the weights are in fp16"),
        ({"fp32": 9, "fp16": 1}, "fp32", "some are in fp16"),
        ({"fp16": 9, "bf16": 1}, "fp16", "some are in bf16"),
        ({"int8": 9}, "fp8", "some are in int8"),
        ({}, "fp16", "its products are none"),
    ],
)
def test_another_precision_than_asked_for_fails(weights: dict[str, int], precision: str, match: str) -> None:
    with pytest.raises(BuildError, match=match):
        require_precision(inspection(**weights), precision, "m.onnx")


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="legal are fp32, fp16, bf16, int8 or fp8"):
        require_precision(inspection(fp32=1), "fp4", "m.onnx")
