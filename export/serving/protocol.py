"""Parses inference requests of the open inference protocol (KServe v2): JSON, and its binary tensor data extension.

A binary body is JSON followed by the raw little-endian values; the header ``Inference-Header-Content-Length`` is the length of the
JSON. The artifact's signature gives the names, types and shapes of the tensors.
"""

from __future__ import annotations

import json
import math
import reprlib
from array import array
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from growtas.errors import UsageError, choices
from growtas.export.signature import Output, Signature

HEADER_LENGTH = "Inference-Header-Content-Length"
LARGEST_SIDE = 16384
"""Largest height and width in pixels if the graph resizes images."""
_MAX_DIGITS = 18


class RequestRefused(UsageError):
    """A request that gets an error instead of a result.

    Args:
        message: one sentence, sent as ``{"error": message}``.
        status: HTTP status.
        retry_after: seconds after which the client may try again; None if that does not help.
    """

    def __init__(self, message: str, status: int = 400, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    """A requested output.

    Attributes:
        output: the output of the signature.
        binary: whether to send raw values after the JSON.
        classification: number of best classes to send as ``value:index:label`` texts; 0 sends the values.
    """

    output: Output
    binary: bool
    classification: int = 0


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A valid request.

    Attributes:
        id: the client's identifier, which the answer repeats; None without one.
        images: ``(batch, *signature.shape)`` in the signature's type.
        outputs: the outputs to send, in this order.
    """

    id: str | None
    images: NDArray[Any]
    outputs: tuple[RequestedOutput, ...]


def parse_request(body: bytes | bytearray, header_length: str | None, signature: Signature) -> InferRequest:
    """Parses an inference request.

    Args:
        body: the request's body.
        header_length: the value of the header :data:`HEADER_LENGTH`; None without this header.
        signature: the artifact's signature.

    Raises:
        RequestRefused: the request is invalid; status 400.
    """
    end = len(body)
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdigit() and len(header_length) <= _MAX_DIGITS
        if not is_number or int(header_length) > len(body):
            raise RequestRefused(
                f"{HEADER_LENGTH} is {header_length[:40]!r}; it must be a number of bytes of this body ({len(body)})"
            )
        end = int(header_length)
    document = _json(body[:end], signature)
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RequestRefused("id must be a string")
    images = _input(document, memoryview(body)[end:], signature)
    return InferRequest(id=identity, images=images, outputs=_requested_outputs(document, signature))


def accepted(signature: Signature) -> str:
    """Describes a legal inference request, as a part of an error message."""
    return (
        f"legal is a KServe v2 request: JSON with the input {signature.input_name}, {signature.datatype} of shape "
        f"{_legal_shape(signature)}, as numbers or as a binary tensor; `growtas predict` reads image files"
    )


def _legal_shape(signature: Signature) -> str:
    return f"[{', '.join(['batch', *('any' if size is None else str(size) for size in signature.shape)])}]"


def _json(text: bytes | bytearray, signature: Signature) -> dict[str, Any]:
    try:
        document = json.loads(str(text, "utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = {UnicodeDecodeError: "not UTF-8", RecursionError: "nested too deeply"}.get(type(error), str(error)[:80])
        raise RequestRefused(f"the request is not JSON ({reason}); {accepted(signature)}") from None
    if not isinstance(document, dict):
        raise RequestRefused("the request must be a JSON object with inputs")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parameters(entry: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestRefused(f"parameters of {what} must be an object")
    return parameters


def _input(document: dict[str, Any], raw: memoryview, signature: Signature) -> NDArray[Any]:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestRefused(f"inputs must be a list of one object, the input {signature.input_name}")
    entry = inputs[0]
    name = entry.get("name")
    if name != signature.input_name:
        raise RequestRefused(f"the input is named {_short(name)}; legal is {signature.input_name}")
    if entry.get("datatype") != signature.datatype:
        raise RequestRefused(f"datatype of {name} is {_short(entry.get('datatype'))}; legal is {signature.datatype}")
    shape = _shape(entry.get("shape"), signature)
    parameters = _parameters(entry, f"the input {name}")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise RequestRefused(f"the input {name} has neither data nor binary_data_size")
        if len(raw):
            raise RequestRefused(f"{len(raw)} bytes follow the JSON, but the input {name} has no binary_data_size")
        values = _listed(entry["data"], shape, signature)
    else:
        if "data" in entry:
            raise RequestRefused(f"the input {name} has both data and binary_data_size")
        wanted = math.prod(shape) * signature.numpy_dtype.itemsize
        if isinstance(size, bool) or not isinstance(size, int) or size != wanted or len(raw) != wanted:
            raise RequestRefused(
                f"binary_data_size of {name} is {_short(size)} and {len(raw)} bytes follow the JSON; "
                f"{signature.datatype} of shape {list(shape)} is {wanted} bytes"
            )
        # Runtimes need aligned floats, so the values are copied if the length of the JSON leaves them unaligned.
        values = np.require(np.frombuffer(raw, signature.numpy_dtype), requirements="A").reshape(shape)
    if signature.dtype == "float32" and not np.isfinite(values).all():
        raise RequestRefused(f"the input {name} holds numbers that are not finite in 32 bits")
    return values


def _shape(shape: object, signature: Signature) -> tuple[int, ...]:
    legal = f"legal is {_legal_shape(signature)} with a batch from 1 to {signature.max_batch}"
    sizes = [size for size in shape if isinstance(size, int) and not isinstance(size, bool)] if isinstance(shape, list) else []
    if not isinstance(shape, list) or len(sizes) != len(shape) or len(sizes) != 1 + len(signature.shape):
        raise RequestRefused(f"shape of {signature.input_name} is {_short(shape)}; {legal}")
    if signature.any_size:
        sides = [size for size, want in zip(sizes[1:], signature.shape, strict=True) if want is None]
        if not 0 < min(sides) <= max(sides) <= LARGEST_SIDE:
            raise RequestRefused(f"shape of {signature.input_name} is {_short(shape)}; {legal}, and sides from 1 to {LARGEST_SIDE}")
    fits = all(want is None or size == want for size, want in zip(sizes[1:], signature.shape, strict=True))
    if not fits or not 1 <= sizes[0] <= signature.max_batch:
        raise RequestRefused(f"shape of {signature.input_name} is {_short(shape)}; {legal}")
    return tuple(sizes)


def _listed(data: object, shape: tuple[int, ...], signature: Signature) -> NDArray[Any]:
    """Converts JSON numbers, in a flat list or nested like the shape.

    Only numbers are passed to NumPy: it would store texts with the length of the longest one, so a small request could fill
    gigabytes.
    """
    name, whole = signature.input_name, signature.dtype == "uint8"
    if not isinstance(data, list):
        raise RequestRefused(f"data of {name} must be a list of numbers")
    flat = _flattened(data, shape) if data and isinstance(data[0], list) else data
    if flat is None:
        raise RequestRefused(f"data of {name} is not nested like its shape {list(shape)}")
    if len(flat) != math.prod(shape):
        raise RequestRefused(f"data of {name} holds {len(flat)} values; shape {list(shape)} has {math.prod(shape)}")
    # The exact types are compared, because in Python true and false are numbers too.
    if not set(map(type, flat)) <= ({int} if whole else {int, float}):
        raise RequestRefused(f"data of {name} must be {'whole ' if whole else ''}numbers")
    try:
        numbers = array("B" if whole else "d", flat)
    except OverflowError:
        reason = "must be whole numbers from 0 to 255" if whole else "holds numbers that are not finite in 32 bits"
        raise RequestRefused(f"data of {name} {reason}") from None
    with np.errstate(over="ignore"):  # the caller refuses infinite values
        return np.asarray(numbers).astype(signature.numpy_dtype, copy=False).reshape(shape)


def _flattened(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """The values of nested lists; None if they are not nested like the shape."""
    rows = [data]
    for size in shape:
        if not all(type(row) is list and len(row) == size for row in rows):
            return None
        rows = list(chain.from_iterable(rows))
    return rows


def _requested_outputs(document: dict[str, Any], signature: Signature) -> tuple[RequestedOutput, ...]:
    """The requested outputs; all outputs if the request names none."""
    default = _flag(_parameters(document, "the request"), "binary_data_output", default=False)
    entries = document.get("outputs")
    if entries is None:
        return tuple(RequestedOutput(output=output, binary=default) for output in signature.outputs)
    known = {output.name: output for output in signature.outputs}
    if not isinstance(entries, list) or not entries:
        raise RequestRefused(f"outputs must be a list of objects, each naming an output; legal is {choices(known)}")
    requested: dict[str, RequestedOutput] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise RequestRefused(f"outputs holds {_short(entry)}; it must be a list of objects, each naming an output")
        name = entry.get("name")
        if not isinstance(name, str) or name not in known:
            raise RequestRefused(f"the output is named {_short(name)}; legal is {choices(known)}")
        if name in requested:
            raise RequestRefused(f"the output {name} is requested twice; once is legal")
        requested[name] = _requested_output(entry, known[name], signature, default=default)
    return tuple(requested.values())


def _requested_output(entry: dict[str, Any], output: Output, signature: Signature, *, default: bool) -> RequestedOutput:
    name = output.name
    parameters = _parameters(entry, f"the output {name}")
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise RequestRefused(f"classification of {name} is {_short(count)}; it must be a number of classes")
    if count and not output.per_class:
        legal = choices(output.name for output in signature.outputs if output.per_class)
        raise RequestRefused(f"classification of {name} is not possible; legal is that of {legal}")
    return RequestedOutput(
        output=output,
        binary=_flag(parameters, "binary_data", default=default),
        classification=min(count, signature.classes),
    )


def _flag(parameters: dict[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RequestRefused(f"{key} is {_short(value)}; it must be true or false")
    return value


def _short(value: object) -> str:
    """Formats a value from a client for a message, in little time and space."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxlist, shown.maxdict = 3, 8, 4
    text = shown.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
