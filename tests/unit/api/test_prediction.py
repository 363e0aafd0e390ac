"""Predictions of the Python API, from small artifacts that NumPy computes too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from growtas import api
from growtas.errors import ConfigError
from tests.unit.export.serving.helpers import CLASSES, MAX_BATCH, NAMES, artifact


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for shade in range(MAX_BATCH + 2):
        Image.new("RGB", (20, 16), (40 * shade, 90, 10)).save(folder / f"{shade}.png")
    return folder


def test_every_public_name_is_there_and_documented() -> None:
    for name in api.__all__:
        assert getattr(api, name).__doc__, name


def test_images_are_answered_in_order_and_a_broken_one_says_why(tmp_path: Path, images: Path) -> None:
    (images / "1.png").write_text("no image")
    predictions = api.predict(artifact(tmp_path), [images], top=2, threads=1)
    assert [prediction.file.name for prediction in predictions.images] == [f"{shade}.png" for shade in range(MAX_BATCH + 2)]
    broken, *others = sorted(predictions.images, key=lambda prediction: prediction.error is None)
    assert predictions.errors == (broken.error,)
    assert broken.file.name == "1.png"
    for prediction in others:
        assert len(prediction.logits) == CLASSES
        best, second = prediction.top
        assert best.logit == max(prediction.logits) >= second.logit
        assert best.label == NAMES[best.index]
    record = predictions.to_dict()
    assert (record["kind"], record["images"][1]) == ("onnx", {"file": str(images / "1.png"), "error": broken.error})


def test_an_artifact_stands_for_its_path_and_batches_give_the_same(tmp_path: Path, images: Path) -> None:
    loaded = api.load_artifact(artifact(tmp_path))
    at_once, one_by_one = (api.predict(loaded, [images], batch=batch, threads=1) for batch in (None, 1))
    for together, alone in zip(at_once.images, one_by_one.images, strict=True):
        assert together.logits == pytest.approx(alone.logits, abs=1e-5)


def test_neighbours_of_one_size_run_together(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, ran = iter([(1, 2), (1, 2), (1, 2), (3, 3), (1, 2)]), list[tuple[int, ...]]()

    def run(predictor: api.Predictor, batch: np.ndarray) -> np.ndarray:
        ran.append(batch.shape)
        return np.arange(len(batch) * CLASSES, dtype=np.float32).reshape(len(batch), CLASSES)

    monkeypatch.setattr(api.Predictor, "prepare", lambda predictor, image: np.zeros(next(shapes)))
    monkeypatch.setattr(api.Predictor, "run", run)
    predictions = api.predict(artifact(tmp_path), sorted(images.iterdir())[:5], batch=2, threads=1)
    assert ran == [(2, 1, 2), (1, 1, 2), (1, 3, 3), (1, 1, 2)]
    assert [prediction.logits[0] for prediction in predictions.images] == [0, CLASSES, 0, 0, 0]


@pytest.mark.parametrize(("options", "match"), [({"top": CLASSES + 1}, "--top is"), ({"batch": MAX_BATCH + 1}, "--batch is")])
def test_numbers_out_of_range(tmp_path: Path, images: Path, options: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        api.predict(artifact(tmp_path), [images], **options)  # type: ignore[arg-type]
