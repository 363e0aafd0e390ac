from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.errors import ConfigError
from growtas.export.benchmark.timing import (
    collect,
    environment,
    measure_architecture,
    measure_onnx,
    measure_session,
    summarise,
    warm_up,
)
from growtas.export.runtimes.base import RuntimeInfo
from growtas.nn.architecture import Architecture
from tests.export_helpers import SUBNET, TINY
from tests.fake_runtime import FakeSession

INFO = RuntimeInfo(runtime="fake", version="0", device="cpu", threads=1)


@given(st.lists(st.floats(0.01, 1e3), min_size=1, max_size=40))
def test_summary_is_of_the_samples(samples: list[float]) -> None:
    result = summarise(samples, INFO, batch=2)
    assert result.p50_ms == pytest.approx(statistics.median(samples))
    assert result.mean_ms == pytest.approx(statistics.fmean(samples))
    assert result.cv == pytest.approx(statistics.pstdev(samples) / statistics.fmean(samples), abs=1e-9)
    assert min(samples) <= result.p50_ms <= result.p95_ms <= result.p99_ms <= max(samples)
    assert result.samples == len(samples)
    assert result.images_per_second == pytest.approx(2000 / statistics.median(samples))
    assert result.to_dict()["kind"] == "measured"


def test_percentiles_of_known_samples() -> None:
    result = summarise(list(range(101)), INFO, batch=1)
    assert (result.p50_ms, result.p95_ms, result.p99_ms) == (50, 95, 99)


def test_no_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([], INFO, batch=1)


def test_warm_up_is_not_in_the_samples() -> None:
    # The first runs are slow; a session that is fast from its sixth run on must be measured as fast.
    session = FakeSession(lambda images: images, (100.0,) * 5 + (1.0,) * 100_000)
    result = measure_session(session, batch=4, seconds=0.0, min_runs=10)
    assert result.p99_ms == 1.0
    assert result.samples == 10
    assert result.batch == 4


def test_collecting_goes_on_for_the_time_and_the_runs() -> None:
    assert len(collect(lambda: 1.0, seconds=0.0, min_runs=7)) == 7
    assert len(collect(lambda: 1.0, seconds=0.05, min_runs=1)) > 100
    assert len(collect(lambda: 1.0, seconds=9.0, min_runs=9, max_seconds=0.0)) == 1


def test_warm_up_runs_at_least_the_runs_asked_for() -> None:
    calls: list[int] = []

    def timer() -> float:
        calls.append(1)
        return 1.0

    warm_up(timer, runs=4, seconds=0.0)
    assert len(calls) == 4


def test_an_onnx_file_is_measured(onnx_file: Path) -> None:
    result = measure_onnx(onnx_file, batch=3, threads=1, seconds=0.05, min_runs=20)
    assert (result.runtime, result.device, result.threads, result.batch, result.precision) == ("onnxruntime", "cpu", 1, 3, "fp32")
    assert result.samples >= 20
    assert 0 < result.p50_ms < 100
    assert result.p50_ms <= result.p95_ms <= result.p99_ms


def test_a_larger_batch_takes_longer(onnx_file: Path) -> None:
    one, many = (measure_onnx(onnx_file, batch=batch, threads=1, seconds=0.1) for batch in (1, 256))
    assert many.p50_ms > 4 * one.p50_ms


@pytest.mark.parametrize("batch", [0, -3])
def test_an_empty_batch_is_refused(onnx_file: Path, batch: int) -> None:
    with pytest.raises(ConfigError, match=f"batch is {batch}"):
        measure_onnx(onnx_file, batch=batch)


def test_an_architecture_is_measured_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = measure_architecture(Architecture.of(TINY, SUBNET), threads=1, seconds=0.05)
    assert result.runtime == "onnxruntime"
    assert result.p50_ms > 0
    assert not list(tmp_path.iterdir())


def test_the_environment_names_the_machine() -> None:
    found = environment()
    assert found["cpu"]
    assert 1 <= found["cpu_threads_available"] <= found["cpu_threads_total"]
