"""``predict``: classifies images with an artifact."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from growtas.data.decode import DecodeRules, is_deep, is_turned
from growtas.data.images import file_set, load_as
from growtas.errors import ConfigError, DataError
from growtas.export.serving.image_files import find_images
from growtas.export.serving.predictor import ClassScore, Predictor, newest_artifact
from growtas.progress import SILENT, Progress

if TYPE_CHECKING:
    from growtas.export.artifact import Artifact

_TOP = 5
"""Default number of classes per image."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        file: the image file.
        top: the most probable classes, best first; empty if the image can't be read.
        logits: one logit per class; empty if the image can't be read.
        error: one sentence that says why the image can't be read; None if it was classified.
    """

    file: Path
    top: tuple[ClassScore, ...] = ()
    logits: tuple[float, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        if self.error is not None:
            return {"file": str(self.file), "error": self.error}
        return {"file": str(self.file), "top": [score.to_dict() for score in self.top], "logits": list(self.logits)}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of an artifact, one per image.

    Attributes:
        artifact: the artifact that classified the images.
        runtime: name and version of the runtime that executed it.
        images: the predictions, in the order of the files.
    """

    artifact: Artifact
    runtime: str
    images: tuple[Prediction, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """One sentence for each image that can't be read."""
        return tuple(image.error for image in self.images if image.error is not None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        images = [image.to_dict() for image in self.images]
        return {
            "model": str(self.artifact.path),
            "kind": self.artifact.manifest.kind,
            "runtime": self.runtime,
            "unreadable": len(self.errors),
            "images": images,
        }


def predict(
    artifact: str | os.PathLike[str] | None,
    images: Sequence[str | os.PathLike[str]],
    *,
    top: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Predictions:
    """Classifies images with an artifact and its manifest alone; the run is not needed.

    Args:
        artifact: artifact with its manifest beside it; an ONNX file of growtas needs no manifest. None: an artifact of the newest
            run that runs on this machine.
        images: image files, folders of images, or patterns such as ``shoes/*.png``. A file that can't be read becomes a
            prediction with an error, and the other images are classified.
        top: number of classes for each image; by default five, or all classes if there are fewer.
        batch: images per batch; by default the largest batch size that the export checked.
        threads: CPU threads; by default all that this process may use.
        progress: receives a note on the chosen artifact if ``artifact`` is None, and on skipped files of a folder.

    Raises:
        CheckpointError: The artifact or its manifest is missing or unreadable, or they don't belong together.
        ConfigError: ``top``, ``batch`` or ``threads`` is out of range.
        DataError: A name is a URL, or a folder or pattern holds no images.
        DeviceError: The artifact can't run on this machine; the message gives the reason.
        MissingExtra: The artifact's runtime is not installed.
        UsageError: The file is not an artifact, or there is no run.
    """
    paths = find_images(images, progress)
    if artifact is None:
        artifact = newest_artifact()
        progress.note(f"model: {artifact} (of the newest run)")
    with Predictor(artifact, threads=threads) as predictor:
        max_batch, classes = predictor.signature.max_batch, predictor.signature.classes
        top = min(_TOP, classes) if top is None else top
        if not 1 <= top <= classes:
            raise ConfigError(f"--top is {top}; the artifact has {classes} classes, so it must be from 1 to {classes}")
        if batch is not None and not 1 <= batch <= max_batch:
            raise ConfigError(f"--batch is {batch}; the artifact was exported for batches from 1 to {max_batch}")
        size = batch or max_batch
        reads_all = DecodeRules.of(predictor.signature.preprocess or {}).version > 0
        misread = 0

        def prepare(image: Image.Image) -> NDArray[Any]:
            nonlocal misread
            misread += not reads_all and (is_turned(image) or is_deep(image))
            return predictor.prepare(image)

        # In chunks: a folder of a million images does not fit into memory.
        chunks = (paths[start : start + size] for start in range(0, len(paths), size))
        predictions = tuple(prediction for chunk in chunks for prediction in _classify(predictor, prepare, chunk, top))
        if misread:
            progress.note(
                f"{misread} of the images have an EXIF orientation or more than 8 bits per sample. An older growtas made "
                f"this artifact and ignored both in training, so the orientation is ignored and large values are clipped here too"
            )
        runtime = f"{predictor.info.runtime} {predictor.info.version}"
        return Predictions(artifact=predictor.artifact, runtime=runtime, images=predictions)


def _classify(
    predictor: Predictor, prepare: Callable[[Image.Image], NDArray[Any]], paths: Sequence[Path], top: int
) -> Iterator[Prediction]:
    """Classifies at most one batch of images; the predictions are in the order of the files."""
    files = file_set([str(path) for path in paths], [0] * len(paths))
    predictions: dict[int, Prediction] = {}
    prepared: dict[int, NDArray[Any]] = {}
    for index, path in enumerate(paths):
        try:
            prepared[index] = load_as(files, index, prepare)
        except DataError as error:
            predictions[index] = Prediction(file=path, error=str(error))
    # Only images of the same size can be in one batch.
    for _, neighbours in itertools.groupby(prepared, key=lambda index: prepared[index].shape):
        indices = list(neighbours)
        for index, logits in zip(indices, predictor.run(np.stack([prepared[index] for index in indices])), strict=True):
            predictions[index] = Prediction(file=paths[index], top=predictor.top(logits, top), logits=tuple(logits.tolist()))
    return (predictions[index] for index in range(len(paths)))
