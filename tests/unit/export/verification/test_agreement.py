from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics.pairwise import cosine_similarity

from growtas.errors import ConfigError
from growtas.export.quantization.thresholds import THRESHOLDS, Thresholds, thresholds_for
from growtas.export.verification.agreement import Verification, measure_artifact
from growtas.export.verification.batches import Logits
from growtas.export.verification.images import VerificationImages

COUNT, CLASSES = 120, 5
NAMES = ("ant", "bee", "cat", "dog", "eel")
LABELS = np.arange(COUNT) % CLASSES
# An image is its own number, so that a function of the images can say anything about each of them.
IMAGES = np.arange(COUNT, dtype=np.float32).reshape(COUNT, 1, 1, 1)
ANY = Thresholds(relative_error=1e9, cosine=-1.0, top1_agreement=0.0, accuracy_drop_points=100.0)
LABELLED = VerificationImages(images=IMAGES, labels=LABELS, class_names=NAMES, description="120 numbers")


def answering(classes: np.ndarray, wrong: float = 1.0) -> np.ndarray:
    """Logits whose largest is that of the given classes."""
    logits = np.full((len(classes), CLASSES), -wrong, np.float32)
    logits[np.arange(len(classes)), classes] = 2.0
    return logits


TRUTH = answering(LABELS)


def says(logits: np.ndarray) -> Logits:
    def function(images: np.ndarray) -> np.ndarray:
        return logits[images.reshape(-1).astype(int)]

    return function


def measure(got: np.ndarray, want: np.ndarray = TRUTH, **options: object) -> Verification:
    arguments = {
        "precision": "fp32",
        "subject": "x.onnx",
        "reference_is": "static ViT",
        "batches": (1, 3, 8),
        "thresholds": ANY,
        **options,
    }
    return measure_artifact(says(got), says(want), LABELLED, **arguments)  # type: ignore[arg-type]


LOGITS = arrays(np.float32, (COUNT, CLASSES), elements=st.integers(-800, 800).map(lambda number: number / 8))


@settings(max_examples=25, deadline=None)
@given(LOGITS, LOGITS)
def test_every_measure_is_its_definition(got: np.ndarray, want: np.ndarray) -> None:
    found = measure(got, want)
    pairs = list(zip(got.astype(float), want.astype(float), strict=True))
    largest = max(abs(float(value)) for value in want.ravel())
    error = max(abs(float(a) - float(b)) for g, w in pairs for a, b in zip(g, w, strict=True))
    assert found.max_abs_error == error
    assert found.relative_error == (pytest.approx(error / largest) if largest else (0 if error == 0 else math.inf))
    if all(g.any() and w.any() for g, w in pairs):
        cosines = cosine_similarity(got.astype(float), want.astype(float)).diagonal()
        assert found.cosine_min == pytest.approx(cosines.min(), abs=1e-6)
        assert found.cosine_mean == pytest.approx(cosines.mean(), abs=1e-6)
    first = [(list(g).index(max(g)), list(w).index(max(w))) for g, w in pairs]
    assert found.top1_agreement == pytest.approx(sum(a == b for a, b in first) / COUNT)
    assert found.accuracy == pytest.approx(sum(a == label for (a, _), label in zip(first, LABELS, strict=True)) / COUNT)
    assert found.reference_accuracy == pytest.approx(sum(b == label for (_, b), label in zip(first, LABELS, strict=True)) / COUNT)
    assert found.finite


def test_an_equal_artifact_passes_every_precision() -> None:
    for precision in ("fp32", "fp16", "bf16", "int8", "fp8"):
        found = measure(TRUTH, precision=precision, thresholds=thresholds_for(precision), batches=(4,))
        assert found.passed
        assert found.summary == ""
        assert (found.accuracy, found.reference_accuracy, found.accuracy_drop_points) == (1.0, 1.0, 0.0)
        assert found.thresholds == THRESHOLDS[precision]


def test_every_image_counts_once_whatever_the_batches() -> None:
    seen: list[int] = []

    def artifact(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return says(answering((LABELS + (LABELS == 0)) % CLASSES))(images)

    for batches in ((1,), (7,), (1, 3, 8), (64, 100)):
        seen.clear()
        found = measure_artifact(
            artifact, says(TRUTH), LABELLED, precision="int8", subject="x", reference_is="it", batches=batches, thresholds=ANY
        )
        assert found.accuracy == pytest.approx(0.8)
        assert found.top1_agreement == pytest.approx(0.8)
        # Several run at once, so their order says nothing.
        expected = [batches[i % len(batches)] for i in range(len(seen))]
        assert sorted(seen) == sorted(expected)
        assert sum(expected[:-1]) < COUNT <= sum(expected)


def test_every_batch_size_is_run_even_on_few_images() -> None:
    few = VerificationImages(images=IMAGES[:2], labels=LABELS[:2], class_names=NAMES, description="two")
    seen: list[int] = []

    def artifact(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return says(TRUTH)(images)

    measure_artifact(
        artifact, says(TRUTH), few, precision="fp32", thresholds=ANY, subject="x", reference_is="it", batches=(1, 3, 8)
    )
    assert sorted(seen) == [1, 3, 8]


def test_an_error_at_one_batch_size_is_found_and_told_apart() -> None:
    def artifact(images: np.ndarray) -> np.ndarray:
        return says(TRUTH)(images) * np.float32(1.01 if len(images) == 3 else 1.0)

    limits = thresholds_for("fp32")
    found = measure_artifact(
        artifact, says(TRUTH), LABELLED, precision="fp32", thresholds=limits, subject="x", reference_is="it", batches=(1, 3, 8)
    )
    assert found.relative_error_by_batch == {1: 0.0, 3: pytest.approx(0.01), 8: 0.0}
    assert [failure.measure for failure in found.failures] == ["relative_error"]


def test_the_sentence_names_value_and_threshold() -> None:
    found = measure(TRUTH * np.float32(1.001), thresholds=thresholds_for("fp32"), batches=(8,))
    assert found.summary == (
        "x.onnx: the relative error of the logits is 0.001 (at most 0.0001), compared with the static ViT on 120 numbers"
    )


@settings(deadline=None)
@given(st.integers(0, COUNT), st.floats(0, 1), st.floats(0, 100))
def test_agreement_and_accuracy_pass_at_their_thresholds_and_not_beyond(wrong: int, agreement: float, points: float) -> None:
    answers = LABELS.copy()
    answers[:wrong] = (answers[:wrong] + 1) % CLASSES
    limits = Thresholds(relative_error=10, cosine=-1, top1_agreement=agreement, accuracy_drop_points=points)
    failed = {failure.measure for failure in measure(answering(answers), thresholds=limits).failures} - {"class_order"}
    assert ("top1_agreement" in failed) == ((COUNT - wrong) / COUNT < agreement)
    if abs(100 * wrong / COUNT - points) > 1e-6:
        assert ("accuracy_drop_points" in failed) == (100 * wrong / COUNT > points)


def test_a_drop_of_exactly_the_threshold_passes() -> None:
    answers = LABELS.copy()
    answers[:3] = (answers[:3] + 1) % CLASSES
    for points, passes in ((2.5, True), (2.49, False)):
        limits = Thresholds(relative_error=10, cosine=-1, top1_agreement=0, accuracy_drop_points=points)
        assert measure(answering(answers), thresholds=limits).passed == passes


def test_the_standard_error_of_a_drop_is_that_of_the_pairs() -> None:
    # Nine images are lost and three won: the drop is the mean of 9 times 1, 3 times -1 and 108 times 0.
    won, lost = np.arange(COUNT) < 3, np.arange(COUNT) >= COUNT - 9
    found = measure(answering((LABELS + lost) % CLASSES), answering((LABELS + won) % CLASSES))
    assert found.accuracy_drop_points == pytest.approx(5)
    assert found.accuracy_drop_error_points == pytest.approx(100 * math.sqrt((12 / COUNT - 0.05**2) / COUNT))


def test_a_gain_is_no_drop() -> None:
    worse = answering((LABELS + (np.arange(COUNT) < 6)) % CLASSES)
    found = measure(TRUTH, worse)
    assert found.accuracy_drop_points == pytest.approx(-5)
    assert found.passed


def test_the_worst_measure_is_named_first() -> None:
    # A tenth of the images answered otherwise: 20 times the disagreement that is let pass, and four times the drop.
    answers = LABELS.copy()
    answers[:12] = (answers[:12] + 1) % CLASSES
    limits = Thresholds(relative_error=10, cosine=-1, top1_agreement=0.995, accuracy_drop_points=2.5)
    found = measure(answering(answers), thresholds=limits)
    assert [failure.measure for failure in found.failures] == ["top1_agreement", "accuracy_drop_points"]
    assert found.failures[0].excess == pytest.approx(20)
    assert "the top-1 agreement is 90.0% (at least 99.5%)" in found.summary
    assert "and 1 further measure failed" in found.summary


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes(bad: float) -> None:
    broken = TRUTH.copy()
    broken[5, 2] = bad
    for got, want in ((broken, TRUTH), (TRUTH, broken), (broken, broken)):
        found = measure(got, want)
        assert not found.passed
        assert "not finite" in found.summary
        json.loads(json.dumps(found.to_dict(), allow_nan=False))


def test_another_number_of_classes_never_passes() -> None:
    assert not measure(TRUTH[:, :4]).passed


def test_names_in_another_order_lose_their_accuracy() -> None:
    found = measure(TRUTH, class_names=("bee", "ant", "cat", "dog", "eel"))
    assert (found.accuracy, found.reference_accuracy) == (pytest.approx(0.6), 1.0)
    assert found.top1_agreement == 1.0
    assert set(found.better_order or ()) == {"ant", "bee"}
    assert "the class names are in a wrong order: images that it calls 'ant' are mostly labelled 'bee'" in found.summary
    assert measure(TRUTH, class_names=NAMES).passed


@pytest.mark.parametrize("names", [("ant", "bee"), ("a", "b", "c", "d", "e"), (*NAMES, "fox")])
def test_names_that_the_data_do_not_have(names: tuple[str, ...]) -> None:
    found = measure(TRUTH, class_names=names)
    assert found.accuracy == sum(name in names for name in NAMES) / CLASSES


def test_outputs_that_changed_places_on_both_sides_are_found_without_a_reference() -> None:
    moved = answering((LABELS + 1) % CLASSES)
    found = measure(moved, moved)
    assert found.top1_agreement == 1.0
    assert found.better_order is not None
    assert not found.passed


def test_a_network_that_knows_little_is_not_taken_for_a_wrong_order() -> None:
    for seed in range(20):
        guesses = answering(np.random.default_rng(seed).integers(0, CLASSES, COUNT))
        assert measure(guesses, guesses).better_order is None
    half = answering(np.where(np.random.default_rng(0).random(COUNT) < 0.6, LABELS, 3))
    assert measure(half, half).better_order is None


def test_images_without_labels_have_no_accuracy_and_say_why() -> None:
    images = VerificationImages(images=IMAGES, description="photographs", unlabelled_because="no data")
    wrong = answering((LABELS + 1) % CLASSES)
    limits = thresholds_for("int8")
    found = measure_artifact(
        says(wrong), says(wrong), images, precision="int8", thresholds=limits, subject="x", reference_is="it", batches=(8,)
    )
    assert found.passed
    assert (found.accuracy, found.reference_accuracy, found.accuracy_drop_points) == (None, None, None)
    assert found.to_dict()["unlabelled_because"] == "no data"


def test_the_json_form_says_everything() -> None:
    written = json.loads(json.dumps(measure(TRUTH * np.float32(1.5), thresholds=thresholds_for("fp32")).to_dict(), allow_nan=False))
    assert written["failed"] == ["relative_error"]
    assert written["thresholds"] == {
        "relative_error": 1e-4,
        "cosine": 0.99999,
        "top1_agreement": 0.995,
        "accuracy_drop_points": 0.3,
    }
    assert (written["precision"], written["count"], written["batches"], written["passed"]) == ("fp32", 120, [1, 3, 8], False)
    assert written["relative_error_by_batch"] == {"1": 0.5, "3": 0.5, "8": 0.5}


def test_thresholds_are_replaced_one_by_one() -> None:
    changed = thresholds_for("fp16").override(max_error=0.5, max_accuracy_drop=0.0)
    kept = THRESHOLDS["fp16"]
    assert (changed.relative_error, changed.accuracy_drop_points) == (0.5, 0.0)
    assert (changed.cosine, changed.top1_agreement) == (kept.cosine, kept.top1_agreement)
    assert thresholds_for("fp16").override() == THRESHOLDS["fp16"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_error", -1.0),
        ("max_error", math.nan),
        ("max_error", math.inf),
        ("min_cosine", 1.1),
        ("min_agreement", 99.0),
        ("max_accuracy_drop", 101.0),
    ],
)
def test_a_threshold_out_of_range_names_its_option(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^--{option.replace('_', '-')} is {value:g}; it must be a number from "):
        thresholds_for("int8").override(**{option: value})  # type: ignore[arg-type]


def test_coarser_precisions_have_looser_thresholds() -> None:
    rows = [THRESHOLDS[precision] for precision in ("fp32", "fp16", "bf16", "int8")]
    for finer, coarser in pairwise(rows):
        assert finer.relative_error < coarser.relative_error
        assert finer.cosine > coarser.cosine
        assert finer.top1_agreement > coarser.top1_agreement
        assert finer.accuracy_drop_points <= coarser.accuracy_drop_points


@pytest.mark.parametrize("batches", [(), (0,), (4, -1)])
def test_batch_sizes_below_one_are_refused(batches: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="the batch sizes are"):
        measure(TRUTH, batches=batches)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision is 'int4'; legal are fp32, fp16, bf16, int8 or fp8"):
        thresholds_for("int4")
