"""What an artifact takes and gives, decided in one place from its manifest alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growtas.errors import CheckpointError

DATATYPES = {"float32": "FP32", "uint8": "UINT8"}
"""The open inference protocol's names of the types that an input can have."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """An artifact's input and output.

    Attributes:
        input_name: such as ``images`` (float32, normalised, channels first) or ``pixels`` (uint8, channels last, as decoded).
        dtype: ``float32`` or ``uint8``.
        shape: of one image, without the batch; None where any size goes.
        max_batch: the largest batch that was checked at export, or that a plan takes.
        output_name: such as ``logits``.
        classes: their number.
        class_names: one a class, where the export knew them.
        preprocess: the record of :mod:`growtas.data.preprocess`, where the export knew it.
    """

    input_name: str
    dtype: str
    shape: tuple[int | None, ...]
    max_batch: int
    output_name: str
    classes: int
    class_names: tuple[str, ...] | None
    preprocess: Mapping[str, Any] | None

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
        CheckpointError: the manifest lacks something, or describes an input that can't be fed.
    """
    try:
        entry, output = manifest["input"], manifest["output"]
        name, dtype, shape = str(entry["name"]), str(entry["dtype"]), tuple(entry["shape"])[1:]
        sizes = tuple(None if isinstance(size, str) or size < 0 else int(size) for size in shape)
        batch = (manifest.get("plan") or {}).get("max_batch") or entry["batch"]["max"]
        names = manifest.get("class_names")
        found = Signature(
            input_name=name,
            dtype=dtype,
            shape=sizes,
            max_batch=int(batch),
            output_name=str(output["name"]),
            classes=int(output["shape"][-1]),
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


def _what(error: Exception) -> str:
    return f"no {error.args[0]!r}" if isinstance(error, KeyError) else " ".join(str(error).split())
