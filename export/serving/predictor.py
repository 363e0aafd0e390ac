"""Predicts with an artifact and its manifest: computes logits and the best classes of images. The run is not needed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from growtas.data.decode import DecodeRules, middle
from growtas.errors import CheckpointError, GrowtasError, UsageError, cause
from growtas.export.artifact import Artifact, read_manifest
from growtas.export.formats import artifact_files
from growtas.export.graph.contents import load_described, own_description
from growtas.export.open import open_artifact, why_not_here
from growtas.export.runtimes.base import Array, NamedOutputs, RuntimeInfo
from growtas.export.signature import read_signature
from growtas.resources import check_threads
from growtas.runs import find_run


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """The score of one class for an image.

    Attributes:
        index: number of the class. The JSON key is ``class``.
        label: name of the class, or its number where the names are unknown.
        probability: probability of the class by softmax over all logits, 0 to 1.
        logit: logit of the class.
    """

    index: int
    label: str
    probability: float
    logit: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {"class": self.index, "label": self.label, "probability": self.probability, "logit": self.logit}


class Predictor:
    """A loaded artifact. It is a context manager, which frees the runtime's memory at the end.

    Args:
        artifact: the artifact, with its manifest beside it. Its hash is checked before anything is loaded. ONNX files that growtas
            exported also work without a manifest.
        threads: CPU threads; by default all that this process may use.

    Raises:
        CheckpointError: the artifact or its manifest is absent or unreadable, or they don't match.
        ConfigError: ``threads`` is below 1 or above the number of this machine's threads.
        DeviceError: the artifact can't run on this machine, such as a plan without its GPU; the message gives the reason.
        MissingExtra: the runtime is not installed.
        UsageError: the file is not an artifact.
    """

    def __init__(self, artifact: str | os.PathLike[str], *, threads: int | None = None) -> None:
        check_threads(threads)
        self.artifact = load_described(artifact)
        self.signature = read_signature(self.artifact)
        self._session = open_artifact(self.artifact, threads=threads)
        if not isinstance(self._session, NamedOutputs):
            self.signature = dataclasses.replace(self.signature, outputs=self.signature.outputs[:1])

    @property
    def info(self) -> RuntimeInfo:
        """The runtime, its version, device and threads."""
        return self._session.info

    def run(self, images: NDArray[Any]) -> Array:
        """Returns float32 logits ``(n, classes)`` of ``n <= max_batch`` images ``(n, *signature.shape)`` in its type."""
        with self._one_sentence():
            return self._session.run(self._input(images))

    def run_all(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Returns all outputs of at most ``max_batch`` images, by name in the signature's order, ``(n, *output.shape)`` each."""
        outputs = self.signature.outputs
        if len(outputs) == 1 or not isinstance(self._session, NamedOutputs):
            return {outputs[0].name: self.run(images)}
        with self._one_sentence():
            values = self._session.run_named(self._input(images), [output.name for output in outputs])
        return {output.name: np.asarray(values[output.name], output.dtype) for output in outputs}

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Turns a runtime's error into one sentence; a damaged file may load and fail only when it runs."""
        try:
            yield
        except GrowtasError:
            raise
        except Exception as error:  # runtimes' exceptions share no base class
            raise CheckpointError(f"{self.artifact.path}: {self.info.runtime} can't run it ({cause(error)})") from None

    def _input(self, images: NDArray[Any]) -> NDArray[Any]:
        """Prepares images for the runtime: if the graph resizes images, only the centre of very long ones is passed on.

        The graph resizes before it crops, for which an image of 30,000 x 1 pixels would need 9 GB.
        """
        if self.signature.any_size:
            rows, columns = middle(*images.shape[1:3])
            images = images[:, rows, columns]
        return np.ascontiguousarray(images)

    def warm_up(self, batch: int) -> None:
        """Runs ``batch`` images of zeros, which allocates the runtime's memory and checks the manifest's outputs.

        Raises:
            CheckpointError: the artifact lacks an output of its manifest, or an output has another shape.
        """
        path, signature = self.artifact.path, self.signature
        names = [output.name for output in signature.outputs]
        if len(names) > 1 and isinstance(self._session, NamedOutputs):
            available = self._session.output_names
            lacking = [name for name in names if name not in available]
            if lacking:
                raise CheckpointError(f"{path}: its manifest lists an output {lacking[0]}; it has {' and '.join(available)}")
        outputs = self.run_all(np.zeros((batch, *signature.example()), signature.numpy_dtype))
        for output in signature.outputs:
            want, got = [batch, *output.shape], list(outputs[output.name].shape)
            if got != want:
                raise CheckpointError(f"{path}: its output {output.name} has the shape {got}, but its manifest says {want}")

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        """Turns an image of any size and mode into one image of the artifact's input.

        The image is decoded (:mod:`growtas.data.decode`), resized, cropped and normalised by the manifest's record, without the
        steps that the graph does itself.

        Raises:
            DataError: the record's decoding rules refuse the image.
            CheckpointError: the manifest has no preprocessing record.
        """
        from growtas.data.preprocess import color_mode, evaluation_transform, geometry

        record = self.signature.preprocess
        if record is None:
            raise CheckpointError(
                f"{self.artifact.path}: its manifest has no record of the preprocessing, so images can't be prepared"
            )
        if self.signature.any_size:
            pixels = np.asarray(DecodeRules.of(record).apply(image, color_mode(record)), np.uint8)
            return pixels if pixels.ndim == 3 else pixels[..., None]
        if self.signature.takes_pixels:
            return np.ascontiguousarray(geometry(record)(image).permute(1, 2, 0).numpy())
        return evaluation_transform(record)(image).numpy()

    def top(self, logits: Array, count: int) -> tuple[ClassScore, ...]:
        """Returns the ``count`` best classes of one image's logits ``(classes,)``, best first."""
        exact = logits.astype(np.float64)
        shares = np.exp(exact - exact.max())
        shares /= shares.sum()
        # The sort is stable: of several equal logits the first class wins, as with argmax.
        best = map(int, np.argsort(-exact, kind="stable")[:count])
        return tuple(
            ClassScore(index=index, label=self.signature.label(index), probability=float(shares[index]), logit=float(logits[index]))
            for index in best
        )

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._session.__exit__(kind, error, trace)


def newest_artifact(folder: Path | None = None) -> Path:
    """Returns the default artifact: one that was made for this machine.

    A plan for this machine's GPU has priority over ONNX files, IRs, programs and weights, in this order. ONNX files for a GPU (in
    half precision, or int8 for a plan) come last, because they are slower on a CPU. Of several equal ones the newest is returned.

    Args:
        folder: an export folder; by default that of the newest run.

    Raises:
        UsageError: there is no artifact, or none that runs here; the message gives the reasons.
    """
    folder = find_run(None).path / "export" if folder is None else folder
    candidates: list[tuple[tuple[bool, int, float, str], Path]] = []
    refused: list[str] = []
    for path in artifact_files(folder):
        try:
            manifest = read_manifest(path, verify=False) or own_description(path)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        if manifest is None:
            continue
        artifact = Artifact(path=path, manifest=manifest)
        reason = why_not_here(artifact)
        if reason is not None:
            refused.append(f"{path.name} can't run here: {reason}")
            continue
        candidates.append(((manifest.is_for_gpu, artifact.format.default_rank, -path.stat().st_mtime, path.name), path))
    if not candidates:
        reasons = f" ({'; '.join(refused)})" if refused else ""
        raise UsageError(f"{folder}: no artifact here{reasons}; make one with `growtas export`, or name one with --model")
    return min(candidates)[1]
