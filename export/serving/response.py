"""Encodes inference responses of the open inference protocol: JSON, followed by raw little-endian values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.export.serving.protocol import InferRequest, RequestedOutput, RequestRefused
from growtas.export.signature import Signature


def encode_response(
    request: InferRequest, outputs: Mapping[str, NDArray[Any]], signature: Signature, *, model: str, version: str
) -> tuple[bytes, int | None]:
    """Returns the answer's body, and the length of its JSON if raw values follow (otherwise None).

    Args:
        request: the request.
        outputs: the requested outputs by name, ``(batch, *output.shape)`` each.
        signature: the artifact's signature.
        model: name of the model.
        version: version of the model.

    Raises:
        RequestRefused: some numbers are not finite, which JSON can't express.
    """
    raws: list[bytes] = []
    entries = [_entry(requested, outputs[requested.output.name], signature, raws) for requested in request.outputs]
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    try:
        head = json.dumps(document, allow_nan=False).encode()
    except ValueError:
        raise RequestRefused("some outputs are not finite, which JSON can't express; ask for binary data") from None
    return (b"".join([head, *raws]), len(head)) if raws else (head, None)


def _entry(requested: RequestedOutput, values: NDArray[Any], signature: Signature, raws: list[bytes]) -> dict[str, Any]:
    """One output in the answer's JSON; its raw values are appended to ``raws``."""
    output = requested.output
    entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(values.shape)}
    texts: list[str] = []
    if requested.classification:
        texts = _classes(values, requested.classification, signature)
        entry |= {"datatype": "BYTES", "shape": [len(values), requested.classification]}
    if not requested.binary:
        entry["data"] = texts or values.ravel().tolist()
        return entry
    if texts:
        encoded = [text.encode("utf-8", "replace") for text in texts]
        raw = b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    else:
        raw = np.ascontiguousarray(values, output.numpy_dtype).tobytes()
    entry["parameters"] = {"binary_data_size": len(raw)}
    raws.append(raw)
    return entry


def _classes(scores: NDArray[Any], count: int, signature: Signature) -> list[str]:
    """The best classes as ``value:index:label``, the format of Triton's classification extension."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [
        f"{values[index]:f}:{index}:{signature.label(int(index))}"
        for values, row in zip(scores, best, strict=True)
        for index in row
    ]
