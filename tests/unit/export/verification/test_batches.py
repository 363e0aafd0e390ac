from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growtas.checkpoint import save_model
from growtas.export.open import open_session
from growtas.export.runtimes.base import is_installed
from growtas.export.verification import batches as running
from growtas.export.verification.batches import cut_batches, one_thread, remembering, run_all
from growtas.nn.vit import VisionTransformer


def images_of(*numbers: int) -> list[np.ndarray]:
    return [np.full((number, 1), number, np.float32) for number in numbers]


def test_results_are_in_order_whoever_is_first() -> None:
    def slow_first(images: np.ndarray) -> np.ndarray:
        time.sleep(0.02 if len(images) == 1 else 0)
        return images + 1

    rows = run_all((slow_first, np.square), images_of(1, 2, 3, 4))
    assert [[result.tolist() for result in row] for row in rows] == [[[[n + 1]] * n, [[n * n]] * n] for n in (1, 2, 3, 4)]
    assert run_all((), images_of(1)) == [()]
    assert run_all((np.square,), []) == []


def test_two_threads_compute_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "available_threads", lambda: 2)
    # Passed only by two at a time.
    barrier = threading.Barrier(2, timeout=30)

    def meet(images: np.ndarray) -> np.ndarray:
        barrier.wait()
        return images

    assert len(run_all((meet, meet), images_of(1, 2, 3))) == 3


def test_the_first_error_comes_out_and_the_rest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "available_threads", lambda: 1)
    seen: list[int] = []

    def fail(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        time.sleep(0.01)
        raise ValueError(f"batch {len(images)}")

    with pytest.raises(ValueError, match="batch 1"):
        run_all((fail,), images_of(*range(1, 100)))
    assert len(seen) < 20


def test_a_thread_of_its_own_computes_on_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            rows = run_all((lambda images: np.array(torch.get_num_threads()),), images_of(1, 2, 3))
            assert {int(count) for (count,) in rows} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_was_computed_is_remembered_by_its_content() -> None:
    calls: list[int] = []

    def double(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return images * 2

    remembered = remembering(double)
    for images in (*images_of(1, 2), *images_of(1, 2)):
        assert np.array_equal(remembered(images), images * 2)
    assert calls == [1, 2]


@given(st.integers(1, 12), st.integers(0, 30), st.integers(1, 40))
def test_images_are_taken_around_the_end(length: int, start: int, count: int) -> None:
    images = np.arange(length * 2, dtype=np.float32).reshape(length, 2)
    _, taken = cut_batches(images, [start, count])
    assert taken.tolist() == [[2 * (i % length), 2 * (i % length) + 1] for i in range(start, start + count)]
    assert taken.flags.c_contiguous
    assert np.shares_memory(taken, images) == (start + count <= length)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_a_session_of_two_threads_gives_what_it_gives_one(
    runtime: str, onnx_file: Path, model: VisionTransformer, tmp_path: Path
) -> None:
    if runtime == "openvino" and not is_installed("openvino"):
        pytest.skip("openvino is not installed")
    random = np.random.default_rng(0)
    batches = [random.standard_normal((size, 3, 16, 16), np.float32) for size in (1, 3, 8) * 8]
    path, chosen = (tmp_path / "m.safetensors", None) if runtime == "torch" else (onnx_file, runtime)
    if runtime == "torch":
        save_model(path, model)
    with one_thread(), open_session(path, threads=1, runtime=chosen) as session:
        alone = [session.run(batch) for batch in batches]
        for (got,), want in zip(run_all((session.run,), batches), alone, strict=True):
            assert np.array_equal(got, want)
