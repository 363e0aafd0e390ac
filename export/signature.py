"""The input and the outputs of an artifact, read from its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from growtas.errors import CheckpointError, GrowtasError, brief, cause, choices
from growtas.export.artifact import Artifact, Manifest, TensorRecord
from growtas.fields import Rule, one_of, real, whole

LOGITS, PROBABILITIES, TOP_SCORES, TOP_CLASSES = "logits", "probabilities", "top_scores", "top_classes"
"""Names that the outputs of an artifact can have."""

_INPUT_DTYPES = ("float32", "uint8")
_PREPROCESS = {
    "image_size": whole(1, 8192),
    "in_chans": Rule(lambda value: value in (1, 3), "1 or 3"),
    "interpolation": one_of("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
    "crop_pct": real(0.1, 1),
}
_OF_CHANNELS = {"mean": (real(-math.inf), "numbers"), "std": (real(0, above=True), "numbers above zero")}
T = TypeVar("T")


def check_preprocess(record: Any, subject: str, error: type[GrowtasError] = CheckpointError) -> Mapping[str, Any]:
    """Returns the record if :mod:`growtas.data.preprocess` can prepare images with it.

    Raises:
        GrowtasError: the record is absent or invalid; raised as ``error``. The message begins with ``subject``, the record's name.
    """
    if not isinstance(record, Mapping):
        raise error(f"{subject} {'is absent' if record is None else 'is not a JSON object'}")
    missing = [key for key in (*_PREPROCESS, *_OF_CHANNELS) if key not in record]
    if missing:
        raise error(f"{subject} lacks {choices(missing)}")
    for key, rule in _PREPROCESS.items():
        if not rule.accepts(record[key]):
            raise error(f"{subject} has the {key} {brief(record[key])}, which must be {rule.legal}")
    channels = record["in_chans"]
    for key, (rule, what) in _OF_CHANNELS.items():
        values = record[key]
        if not isinstance(values, list | tuple) or len(values) != channels or not all(map(rule.accepts, values)):
            legal = f"a list of {channels} {what}, one for each channel"
            raise error(f"{subject} has the {key} {str(values)[:40]}, which must be {legal}")
    return record


@dataclass(frozen=True, kw_only=True)
class Typed:
    """A tensor of one type, an input or an output."""

    dtype: str

    @property
    def datatype(self) -> str:
        """The name of the type in the open inference protocol."""
        return {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}[self.dtype]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy type, little-endian as in HTTP requests."""
        return np.dtype(self.dtype).newbyteorder("<")


@dataclass(frozen=True, kw_only=True)
class Output(Typed):
    """One output of an artifact.

    Attributes:
        name: name of the tensor, such as ``logits`` or ``top_classes``.
        dtype: ``float32`` or ``int64``.
        shape: shape of one image's values, without the batch.
        per_class: whether it holds one score per class, class 0 first.
    """

    name: str
    shape: tuple[int, ...]
    per_class: bool = False


@dataclass(frozen=True, kw_only=True)
class Signature(Typed):
    """An artifact's input and outputs; ``datatype`` and ``numpy_dtype`` are the input's.

    Attributes:
        input_name: ``images`` (float32, normalised, channels first) or ``pixels`` (uint8, channels last, not normalised).
        dtype: ``float32`` or ``uint8``.
        shape: shape of one image, without the batch; None marks a free size.
        max_batch: largest batch that was checked at export, or that a plan accepts.
        outputs: the logits first, then the outputs that the export added.
        class_names: one name per class; None where the export had no names.
        preprocess: the record of :mod:`growtas.data.preprocess`; None where the export had none.
    """

    input_name: str
    shape: tuple[int | None, ...]
    max_batch: int
    outputs: tuple[Output, ...]
    class_names: tuple[str, ...] | None
    preprocess: Mapping[str, Any] | None

    @property
    def output_name(self) -> str:
        """The name of the logits."""
        return self.outputs[0].name

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.outputs[0].shape[-1]

    @property
    def takes_pixels(self) -> bool:
        """Whether the input is uint8 pixels ``(H, W, C)``, which the graph normalises itself."""
        return self.dtype == "uint8"

    @property
    def any_size(self) -> bool:
        """Whether the graph resizes images itself, so that it accepts every height and width."""
        return None in self.shape

    def label(self, index: int) -> str:
        """The name of a class, or its number where the names are unknown."""
        return self.class_names[index] if self.class_names else str(index)

    def example(self) -> tuple[int, ...]:
        """A valid shape of one image, without the batch."""
        size = int(self.preprocess["image_size"]) if self.preprocess else 224
        return tuple(size if axis is None else axis for axis in self.shape)


def read_signature(artifact: Artifact) -> Signature:
    """Reads the signature from an artifact's manifest.

    Raises:
        CheckpointError: the manifest is incomplete, contradicts itself, or describes an input that is not images.
    """
    path, manifest = artifact.path, artifact.manifest
    images = manifest.input or TensorRecord()
    try:
        signature = Signature(
            input_name=_required(images.name, "name"),
            dtype=_required(images.dtype, "dtype"),
            shape=images.sizes,
            max_batch=(manifest.plan and manifest.plan.max_batch) or _required(images.batch.max, "batch"),
            outputs=_outputs(manifest),
            class_names=manifest.class_names or None,
            preprocess=manifest.preprocess,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"no {brief(getattr(error, 'key', error.args[0]))}" if isinstance(error, KeyError) else cause(error)
        raise CheckpointError(f"{path}: its manifest does not describe the input and output ({reason}); export it again") from None
    if signature.dtype not in _INPUT_DTYPES or len(signature.shape) != 3 or signature.max_batch < 1:
        raise CheckpointError(
            f"{path}: its manifest describes an input of type {signature.dtype} and {len(signature.shape) + 1} dimensions, "
            "not images"
        )
    if signature.preprocess is not None:
        check_preprocess(signature.preprocess, f"{path}: the record of the preprocessing in its manifest")
    if signature.class_names is not None and len(signature.class_names) != signature.classes:
        raise CheckpointError(f"{path}: its manifest has {len(signature.class_names)} class names for {signature.classes} classes")
    return signature


def _required(value: T | None, key: str) -> T:
    if value is None:
        raise KeyError(key)
    return value


def _outputs(manifest: Manifest) -> tuple[Output, ...]:
    """The logits, then the outputs that :func:`growtas.export.graph.pre_post.add_postprocess` recorded.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the manifest is incomplete.
    """
    logits = _required(manifest.output, "output")
    name, classes = _required(logits.name, "name"), int(logits.shape[-1])
    outputs = {name: Output(name=name, dtype="float32", shape=(classes,), per_class=True)}
    record = manifest.to_dict().get("postprocess") or {"outputs": []}
    for added in record["outputs"]:
        if added == name:
            continue
        if added == PROBABILITIES:
            outputs[added] = Output(name=added, dtype="float32", shape=(classes,), per_class=True)
        elif added in (TOP_SCORES, TOP_CLASSES):
            top_k = int(record["top_k"])
            if not 1 <= top_k <= classes:
                raise ValueError(f"a top_k of {top_k} for {classes} classes")
            outputs[added] = Output(name=added, dtype="float32" if added == TOP_SCORES else "int64", shape=(top_k,))
        else:
            raise ValueError(f"an output {brief(added)}")
    return tuple(outputs.values())
