"""What an artifact takes and gives, decided in one place from its manifest alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growtas.errors import CheckpointError
from growtas.export.graph.pre_post import PROBABILITIES, TOP_CLASSES, TOP_SCORES

DATATYPES = {"float32": "FP32", "uint8": "UINT8"}
"""The open inference protocol's names of the types that an input can have."""
_OUTPUT_DATATYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output of an artifact.

    Attributes:
        name: such as ``logits`` or ``top_classes``.
        dtype: ``float32`` or ``int64``.
        shape: of one image's values, without the batch.
        per_class: whether it holds a score for each class, class 0 first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    per_class: bool = False

    @property
    def datatype(self) -> str:
        """Its type as the protocol calls it."""
        return _OUTPUT_DATATYPES[self.dtype]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Its type, little-endian as on the wire."""
        return np.dtype(self.dtype).newbyteorder("<")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """An artifact's input and outputs.

    Attributes:
        input_name: such as ``images`` (float32, normalised, channels first) or ``pixels`` (uint8, channels last, as decoded).
        dtype: ``float32`` or ``uint8``.
        shape: of one image, without the batch; None where any size goes.
        max_batch: the largest batch that was checked at export, or that a plan takes.
        outputs: logits, and what the export put after them.
        class_names: one a class, where the export knew them.
        preprocess: the record of :mod:`growtas.data.preprocess`, where the export knew it.
    """

    input_name: str
    dtype: str
    shape: tuple[int | None, ...]
    max_batch: int
    outputs: tuple[Output, ...]
    class_names: tuple[str, ...] | None
    preprocess: Mapping[str, Any] | None

    @property
    def output_name(self) -> str:
        """What the logits are called."""
        return self.outputs[0].name

    @property
    def classes(self) -> int:
        """Their number."""
        return self.outputs[0].shape[-1]

    @property
    def datatype(self) -> str:
        """The input's type as the protocol calls it."""
        return DATATYPES[self.dtype]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The input's type, little-endian as on the wire."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def takes_pixels(self) -> bool:
        """Whether the normalisation is in the graph, so that uint8 ``(H, W, C)`` is what goes in."""
        return self.dtype == "uint8"

    @property
    def any_size(self) -> bool:
        """Whether the resizing is in the graph too, so that every height and width goes in."""
        return None in self.shape

    @property
    def values(self) -> int:
        """Numbers of one image; of a large photograph (4096 x 4096) where any size goes in."""
        return math.prod(4096 if size is None else size for size in self.shape)

    def label(self, index: int) -> str:
        """A class' name, its number where names are unknown."""
        return self.class_names[index] if self.class_names else str(index)

    def example(self) -> tuple[int, ...]:
        """A shape of one image that certainly goes in, without the batch."""
        size = int(self.preprocess["image_size"]) if self.preprocess else 224
        return tuple(size if each is None else each for each in self.shape)


def read_signature(manifest: Mapping[str, Any], artifact: Path) -> Signature:
    """The signature that a manifest records.

    Args:
        artifact: named by errors.

    Raises:
        CheckpointError: the manifest lacks something, contradicts itself, or describes an input that can't be fed.
    """
    try:
        entry = manifest["input"]
        name, dtype, shape = str(entry["name"]), str(entry["dtype"]), tuple(entry["shape"])[1:]
        sizes = tuple(None if isinstance(size, str) or size < 0 else int(size) for size in shape)
        batch = (manifest.get("plan") or {}).get("max_batch") or entry["batch"]["max"]
        names = manifest.get("class_names")
        found = Signature(
            input_name=name,
            dtype=dtype,
            shape=sizes,
            max_batch=int(batch),
            outputs=_outputs(manifest),
            class_names=tuple(map(str, names)) if names else None,
            preprocess=manifest.get("preprocess"),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{artifact}: its manifest does not say what goes in and out ({_what(error)}); export it again"
        ) from None
    if dtype not in DATATYPES or len(sizes) != 3 or found.max_batch < 1:
        raise CheckpointError(
            f"{artifact}: its manifest describes an input of type {dtype} and {len(sizes) + 1} dimensions, not images"
        )
    if found.class_names is not None and len(found.class_names) != found.classes:
        raise CheckpointError(f"{artifact}: its manifest has {len(found.class_names)} class names for {found.classes} classes")
    return found


def _outputs(manifest: Mapping[str, Any]) -> tuple[Output, ...]:
    """Logits, and after them what the record of :func:`growtas.export.graph.pre_post.add_postprocess` lists, where there is one.

    Raises:
        KeyError, TypeError, ValueError, IndexError: the manifest does not say it.
    """
    name, classes = str(manifest["output"]["name"]), int(manifest["output"]["shape"][-1])
    found = {name: Output(name=name, dtype="float32", shape=(classes,), per_class=True)}
    record = manifest.get("postprocess") or {"outputs": []}
    for added in record["outputs"]:
        if added == name:
            continue
        if added == PROBABILITIES:
            found[added] = Output(name=added, dtype="float32", shape=(classes,), per_class=True)
        elif added in (TOP_SCORES, TOP_CLASSES):
            top_k = int(record["top_k"])
            if not 1 <= top_k <= classes:
                raise ValueError(f"a top_k of {top_k} for {classes} classes")
            found[added] = Output(name=added, dtype="float32" if added == TOP_SCORES else "int64", shape=(top_k,))
        else:
            raise ValueError(f"an output {str(added)[:40]!r}")
    return tuple(found.values())


def _what(error: Exception) -> str:
    return f"no {error.args[0]!r}" if isinstance(error, KeyError) else " ".join(str(error).split())
