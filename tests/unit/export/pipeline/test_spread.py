"""A data set that is sorted by class: what looks at a few images only has to see all of its classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growtas.errors import ParityError, UsageError
from growtas.export.pipeline import run as pipeline
from growtas.export.pipeline.formats import onnx as onnx_format
from growtas.export.pipeline.options import ExportOptions
from growtas.export.pipeline.run import export_subnet
from growtas.export.quantization import sensitivity
from growtas.export.runtimes.base import Array
from growtas.export.verification import agreement
from growtas.export.verification import run as verification
from growtas.export.verification.images import VerificationImages, run_images
from growtas.export.verification.run import verify
from growtas.runs import Run

ALL = set(range(10))


class Seen:
    """Which class every image belongs to."""

    def __init__(self) -> None:
        self._classes: dict[bytes, int] = {}

    def sorted(self, run: Run, count: int, **options: Any) -> VerificationImages:
        """The run's images as a class-sorted test set gives them."""
        found = run_images(run, count, **options)
        assert found.labels is not None
        if not options.get("stratified", True):
            return found
        order = np.argsort(found.labels, kind="stable")
        images, labels = np.ascontiguousarray(found.images[order]), found.labels[order]
        self._classes |= {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
        return dataclasses.replace(found, images=images, labels=labels)

    def classes(self, images: Array) -> list[int]:
        return [self._classes[image.tobytes()] for image in np.ascontiguousarray(images)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    monkeypatch.setattr(pipeline, "run_images", found.sorted)
    monkeypatch.setattr(verification, "run_images", found.sorted)
    return found


def test_the_range_of_fp16_is_looked_at_on_every_class(run: Run, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[list[int]] = []
    check = agreement.check_half_range

    def record(path: Path, images: Array, **options: Any) -> Any:
        looked_at.append(seen.classes(images))
        return check(path, images, **options)

    monkeypatch.setattr(agreement, "check_half_range", record)
    half = export_subnet(run, ExportOptions(precision="fp16", calibration_images=16))[-1]
    (result,) = verify([half], run=run).artifacts
    assert result.passed
    assert [len(classes) for classes in looked_at] == [16, 16]
    assert [set(classes) for classes in looked_at] == [ALL, ALL]


def test_layers_are_ranked_on_every_class(run: Run, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[int] = []

    class Recording:
        def __enter__(self) -> Recording:
            return self

        def __exit__(self, *exception: object) -> None: ...

        def run(self, images: Array) -> Array:
            ranked.extend(seen.classes(images))
            return np.zeros((len(images), 10), np.float32)

    def rank_once(source: Path, out: Path, *arguments: Any, error: Any, **options: Any) -> None:
        monkeypatch.setattr(onnx_format, "open_session", lambda path, **options: Recording())
        error(out)

    monkeypatch.setattr(sensitivity, "find_sensitive", rank_once)
    with pytest.raises(ParityError, match="int8"):
        export_subnet(run, ExportOptions(precision="int8", calibration_images=16, images=200, min_cosine=0.999999))
    assert len(ranked) == sensitivity.RANKING_IMAGES
    assert set(ranked) == ALL


def test_layers_are_compared_on_as_many_classes_as_images(run: Run, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def bisect(path: Path, model: Any, images: Array, **options: Any) -> Any:
        compared.extend(seen.classes(images))
        raise UsageError("enough")

    monkeypatch.setattr(verification, "bisect_artifact", bisect)
    made = export_subnet(run, ExportOptions())[-1]
    verify([made], run=run, bisect=True)
    assert len(set(compared)) == len(compared) == 8
