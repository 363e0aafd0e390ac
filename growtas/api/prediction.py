"""Predicting the classes of images with an artifact."""

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
"""Classes that are given for an image where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image.

    Attributes:
        file: the image.
        top: the best classes, best first; empty where the image can't be read.
        logits: ``(classes,)``; empty where the image can't be read.
        error: why the image can't be read, one sentence; None where it was answered.
    """

    file: Path
    top: tuple[ClassScore, ...] = ()
    logits: tuple[float, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        if self.error is not None:
            return {"file": str(self.file), "error": self.error}
        return {"file": str(self.file), "top": [score.to_dict() for score in self.top], "logits": list(self.logits)}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The answers of an artifact, one an image.

    Attributes:
        artifact: what answered; ``runtime`` is what ran it, with its version.
        images: in the order of the files.
    """

    artifact: Artifact
    runtime: str
    images: tuple[Prediction, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """Why images can't be read, one sentence each."""
        return tuple(image.error for image in self.images if image.error is not None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
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
    """The best classes of images, from an artifact and its manifest alone; the run may be gone.

    Args:
        artifact: its manifest lies beside it, which an ONNX file of growtas doesn't need; None for one of the newest run that was
            made for this machine.
        images: image files, folders of images, or patterns such as ``shoes/*.png``. A file that can't be read becomes a
            prediction with an error, and the others are answered.
        top: how many classes to give for each image; by default five, or all of a model with fewer.
        batch: images to run at once; by default the most that the export checked.
        threads: CPU threads; by default all that this process may use.
        progress: gets a note where ``artifact`` is None, and of the files of a folder that are left out.

    Raises:
        CheckpointError: the artifact or its manifest is absent or unreadable, or they don't belong together.
        ConfigError: ``top``, ``batch`` or ``threads`` is out of range.
        DataError: a name is a URL, or a folder or pattern holds no images.
        DeviceError: the artifact can't run on this machine; the message has the reason.
        MissingExtra: the artifact's runtime is not installed.
        UsageError: not an artifact, or there is no run.
    """
    paths = find_images(images, progress)
    if artifact is None:
        artifact = newest_artifact()
        progress.note(f"model: {artifact} (of the newest run)")
    with Predictor(artifact, threads=threads) as predictor:
        most, classes = predictor.signature.max_batch, predictor.signature.classes
        top = min(_TOP, classes) if top is None else top
        if not 1 <= top <= classes:
            raise ConfigError(f"--top is {top}; the artifact has {classes} classes, so it must be from 1 to {classes}")
        if batch is not None and not 1 <= batch <= most:
            raise ConfigError(f"--batch is {batch}; the artifact was exported for batches from 1 to {most}")
        size = batch or most
        heeds_all = DecodeRules.of(predictor.signature.preprocess or {}).version > 0
        unheeded = 0

        def prepare(image: Image.Image) -> NDArray[Any]:
            nonlocal unheeded
            unheeded += not heeds_all and (is_turned(image) or is_deep(image))
            return predictor.prepare(image)

        # Not all at once: a folder of a million images must not lie in memory.
        chunks = (paths[start : start + size] for start in range(0, len(paths), size))
        predictions = tuple(prediction for chunk in chunks for prediction in _answers(predictor, prepare, chunk, top))
        if unheeded:
            progress.note(
                f"{unheeded} of the images have an EXIF orientation or more than 8 bits a sample; the artifact is of an older "
                f"growtas, whose training heeded neither, so they are read without the orientation and with large values clipped"
            )
        runtime = f"{predictor.info.runtime} {predictor.info.version}"
        return Predictions(artifact=predictor.artifact, runtime=runtime, images=predictions)


def _answers(
    predictor: Predictor, prepare: Callable[[Image.Image], NDArray[Any]], paths: Sequence[Path], top: int
) -> Iterator[Prediction]:
    """The answers for at most a batch of images, in the order of their files."""
    files = file_set([str(path) for path in paths], [0] * len(paths))
    answers: dict[int, Prediction] = {}
    prepared: dict[int, NDArray[Any]] = {}
    for index, path in enumerate(paths):
        try:
            prepared[index] = load_as(files, index, prepare)
        except DataError as error:
            answers[index] = Prediction(file=path, error=str(error))
    # Only images of one size can run together.
    for _, neighbours in itertools.groupby(prepared, key=lambda index: prepared[index].shape):
        indices = list(neighbours)
        for index, logits in zip(indices, predictor.run(np.stack([prepared[index] for index in indices])), strict=True):
            answers[index] = Prediction(file=paths[index], top=predictor.top(logits, top), logits=tuple(logits.tolist()))
    return (answers[index] for index in range(len(paths)))
