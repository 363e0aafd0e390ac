from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from growtas.errors import ConfigError, ParityError
from growtas.export.verification.images import VerificationImages
from growtas.export.verification.parity import compare, gate_batches, run_gate

IMAGES = np.random.default_rng(0).standard_normal((12, 3, 4, 4), np.float32)
NOISE = VerificationImages(images=IMAGES, description="noise", unlabelled_because="it is noise")
WEIGHTS = np.random.default_rng(1).standard_normal((48, 5), np.float32)
LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32))


def reference(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) @ WEIGHTS


def gate(artifact: Callable[[np.ndarray], np.ndarray], **options: float) -> object:
    return run_gate(artifact, {"it": reference}, NOISE, subject="x.onnx", max_batch=8, **options)  # type: ignore[arg-type]


@given(LOGITS, LOGITS)
def test_compare_is_the_definition(got: np.ndarray, want: np.ndarray) -> None:
    result = compare(got, want, against="it")
    errors = [float(abs(np.float32(a - b))) for a, b in zip(got.ravel(), want.ravel(), strict=True)]
    scale = max(abs(float(value)) for value in want.ravel())
    assert result.max_abs_error == max(errors)
    if scale:
        assert result.relative_error == pytest.approx(max(errors) / scale)
    else:
        assert result.relative_error == (0 if max(errors) == 0 else math.inf)
    same = [list(a).index(max(a)) == list(b).index(max(b)) for a, b in zip(got, want, strict=True)]
    assert result.top1_agreement == sum(same) / 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(bad: float) -> None:
    broken = np.ones((2, 5), np.float32)
    broken[1, 1] = bad
    for got, want in ((broken, np.ones_like(broken)), (np.ones_like(broken), broken), (broken, broken)):
        assert compare(got, want, against="it").relative_error == math.inf


def test_another_shape_never_passes() -> None:
    assert compare(np.ones((2, 4), np.float32), np.ones((2, 5), np.float32), against="it").relative_error == math.inf


@pytest.mark.parametrize(("maximum", "batches"), [(1, (1,)), (2, (1, 2)), (3, (1, 3)), (8, (1, 3, 8)), (1024, (1, 3, 1024))])
def test_one_an_odd_batch_and_the_maximum(maximum: int, batches: tuple[int, ...]) -> None:
    assert gate_batches(maximum) == batches


@pytest.mark.parametrize("maximum", [0, -1, 1025])
def test_a_maximum_out_of_range_is_refused(maximum: int) -> None:
    with pytest.raises(ConfigError, match=f"--max-batch is {maximum}; it must be from 1 to 1024"):
        gate_batches(maximum)


def test_the_report_of_an_equal_artifact() -> None:
    seen: list[np.ndarray] = []

    def artifact(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return reference(images)

    report = gate(artifact)
    assert [len(images) for images in seen] == [1, 3, 8]
    # Each batch takes other images, and all were used.
    assert np.array_equal(np.concatenate(seen), IMAGES)
    assert report.passed  # type: ignore[attr-defined]
    written = report.to_dict()  # type: ignore[attr-defined]
    assert (written["relative_error"], written["top1_agreement"], written["tolerance"]) == (0.0, 1.0, 1e-4)
    assert [(entry["against"], entry["batch"]) for entry in written["comparisons"]] == [("it", 1), ("it", 3), ("it", 8)]


def test_an_error_that_shows_only_at_the_odd_batch_is_found() -> None:
    def artifact(images: np.ndarray) -> np.ndarray:
        return reference(images) * (1.01 if len(images) == 3 else 1.0)

    with pytest.raises(
        ParityError, match=r"x\.onnx: logits differ from the it's by 0\.01 relative at batch 3 .*nothing was exported"
    ):
        gate(artifact)


def test_tolerance_decides() -> None:
    def artifact(images: np.ndarray) -> np.ndarray:
        return reference(images) * np.float32(1 + 1e-3)

    with pytest.raises(ParityError):
        gate(artifact)
    assert gate(artifact, tolerance=2e-3).passed  # type: ignore[attr-defined]


def test_swapped_classes_fail_even_where_top1_agrees() -> None:
    def artifact(images: np.ndarray) -> np.ndarray:
        logits = reference(images).copy()
        order = np.argsort(logits, axis=1)
        rows = np.arange(len(logits))
        logits[rows, order[:, 0]], logits[rows, order[:, 1]] = logits[rows, order[:, 1]], logits[rows, order[:, 0]].copy()
        return logits

    with pytest.raises(ParityError, match="top-1 agreement 100%"):
        gate(artifact)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1.0, math.nan])
def test_a_tolerance_that_lets_nothing_or_everything_pass_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match="--tolerance is"):
        gate(reference, tolerance=tolerance)


def test_fewer_images_than_the_batches_need_are_used_again() -> None:
    two = dataclasses.replace(NOISE, images=IMAGES[:2])
    report = run_gate(reference, {"it": reference}, two, subject="x", max_batch=8)
    assert [comparison.batch for comparison in report.comparisons] == [1, 3, 8]
