from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.export.benchmark.timing import (
    collect,
    environment,
    summarise,
    warm_up,
)
from growtas.export.runtimes.base import RuntimeInfo
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.verification.images import noise
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
    timer = session.timer(noise(4, session.image_shape))
    warm_up(timer)
    result = summarise(collect(timer, seconds=0.0, min_runs=10), session.info, batch=4)
    assert (result.p99_ms, result.samples, result.batch) == (1.0, 10, 4)


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


def test_a_larger_batch_takes_longer(onnx_file: Path) -> None:
    with OnnxRuntimeSession(onnx_file, threads=1) as session:
        one, many = (min(collect(session.timer(noise(batch, (3, 16, 16))), seconds=0.1)) for batch in (1, 256))
    assert many > 4 * one


def test_the_environment_names_the_machine() -> None:
    found = environment()
    assert found["cpu"]
    assert 1 <= found["cpu_threads_available"] <= found["cpu_threads_total"]
