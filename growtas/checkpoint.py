"""Saves and loads weights as safetensors files with JSON metadata. Nothing is pickled."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models import load_state_dict as timm_state_dict
from torch import Tensor

from growtas.archives import check_archive
from growtas.errors import CheckpointError, OutputError, brief, cause
from growtas.fields import whole
from growtas.files import MAX_HEADER_BYTES, open_regular, parse_json, read_json, replacing, sha256
from growtas.nn.architecture import Architecture
from growtas.nn.experts import Experts
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer
from growtas.space import SearchSpace

_Network = TypeVar("_Network", bound=torch.nn.Module)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> None:
    """Writes tensors and JSON metadata to one safetensors file, atomically.

    Raises:
        OutputError: The file can't be written, for example because the disk is full.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # The library makes files that only their owner can read; these get the permissions of the process's other files.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(state, temporary, {"growtas": json.dumps(metadata or {})})
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            reason = os.strerror(int(number[1])) if number else error
            raise OutputError(f"{path}: can't be written ({reason})") from None
        temporary.chmod(mode)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads the metadata of a file that :func:`save_tensors` wrote; an empty dict for other safetensors files.

    Raises:
        CheckpointError: The metadata is not a JSON object.
        SafetensorError, OSError, ValueError: The file is not a safetensors file.
    """
    with open_regular(path) as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("growtas", "{}")
    metadata = parse_json(text, f"{path}: its metadata is", source=str(path))
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its metadata is {brief(metadata)}; it must be an object")
    return metadata


def load_tensors(path: str | Path, what: str = "checkpoint") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads tensors (to the CPU) and metadata of a file that :func:`save_tensors` wrote.

    Args:
        path: the file.
        what: the name of the file's content in error messages.

    Raises:
        CheckpointError: The file is missing, truncated, not a safetensors file, or not the one of the ``state.json`` beside it.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such {what}")
    try:
        _check_hash(Path(path))
        metadata = read_metadata(path)
        return load_file(path), metadata
    except PermissionError as error:
        raise CheckpointError(f"{path}: the {what} can't be read ({error.strerror or error})") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the {what} is truncated or not a safetensors file ({cause(error)})") from None


def _check_hash(path: Path) -> None:
    """Compares a file of a training's checkpoint with its SHA-256 in ``state.json``; other files have no record."""
    try:
        recorded = read_json(path.with_name("state.json"))["files"][path.name]
    except (CheckpointError, LookupError, TypeError):  # another kind of folder, or a checkpoint of an earlier version
        return
    if sha256(path) != recorded:
        raise CheckpointError(f"{path}: the file has changed since it was written (its SHA-256 is not the one in state.json)")


def save_supernet(path: str | Path, supernet: Supernet) -> None:
    """Writes a supernet's weights, with its space as metadata."""
    experts = {"experts": {"rank": supernet.experts.rank}} if supernet.experts is not None else {}
    save_tensors(path, supernet.state_dict(), {"kind": "supernet", "space": supernet.space.to_dict(), **experts})


def load_supernet(path: str | Path) -> Supernet:
    """Loads a supernet that :func:`save_supernet` wrote, on the CPU and in eval mode.

    Raises:
        CheckpointError: The file can't be read, or does not contain a supernet.
    """
    tensors, metadata = load_tensors(path, "supernet checkpoint")
    if metadata.get("kind") != "supernet":
        raise CheckpointError(f"{path}: the file is not a growtas supernet")
    space = SearchSpace.from_dict(metadata.get("space"), source=str(path))  # type: ignore[arg-type] # checked there
    experts = metadata.get("experts")
    if experts is None:
        return _build(lambda: Supernet(space), tensors, path)
    rank = experts.get("rank") if isinstance(experts, dict) else None
    if not isinstance(rank, int) or not whole(1, 1024).accepts(rank):
        raise CheckpointError(f"{path}: experts is {brief(experts)}; it must be an object with a rank from 1 to 1024")
    return _build(lambda: Supernet(space, experts=Experts(space, rank)), tensors, path)


def save_model(path: str | Path, model: VisionTransformer) -> None:
    """Writes a static ViT's weights, with its architecture as metadata."""
    save_tensors(path, model.state_dict(), {"kind": "model", "architecture": model.architecture.to_dict()})


def is_model(path: str | Path) -> bool:
    """Returns whether a safetensors file says that :func:`save_model` wrote it; a file that can't be read does not."""
    try:
        return read_metadata(path).get("kind") == "model"
    except (CheckpointError, SafetensorError, OSError, ValueError):
        return False


def load_model(path: str | Path) -> VisionTransformer:
    """Loads a static ViT that :func:`save_model` wrote, on the CPU and in eval mode.

    Raises:
        CheckpointError: The file can't be read, or does not contain a static ViT.
    """
    tensors, metadata = load_tensors(path, "model")
    if metadata.get("kind") != "model":
        raise CheckpointError(f"{path}: the file is not a growtas model")
    architecture = Architecture.from_dict(metadata.get("architecture"), source=str(path))  # type: ignore[arg-type] # checked there
    return _build(lambda: VisionTransformer(architecture), tensors, path)


def check_pickle(path: str | Path) -> None:
    """Checks a file of ``torch.save`` before torch loads its tensors: a plain regular file whose objects can't outgrow it.

    Raises:
        OSError: The file can't be opened, or is not a regular file.
        ValueError: The archive is one that torch doesn't write, or its pickle would allocate memory; the message is the reason.
    """
    with open_regular(path) as file:
        check_torch_archive(file)
        file.seek(0, 2)
        if file.tell():
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # torch's weights-only loading calls bytearray with any size that the pickle names.
                if content.find(b"bytearray") >= 0:
                    raise ValueError("its pickle creates a bytearray, which weights don't need")


def check_torch_archive(file: BinaryIO) -> None:
    """Checks the members of a file of torch, if it is an archive; see :func:`growtas.archives.check_archive`.

    Raises:
        ValueError: A rule is broken.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, file.seek(0, 2))


def check_weights(state: Mapping[Any, Any], subject: str) -> None:
    """Checks that a mapping holds named tensors with values of their own, as a ``state_dict`` does.

    Raises:
        CheckpointError: An entry is something else; the message is ``subject`` and the reason.
    """

    def refuse(reason: str) -> NoReturn:
        raise CheckpointError(f"{subject} ({reason})")

    for name, tensor in state.items():
        if not isinstance(name, str):
            refuse(f"an entry is called {str(name)[:40]}, which is not a text")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            refuse(f"{name[:60]} is not a plain tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            refuse(f"{name[:60]} repeats its values, so that it is larger than the file says")


def read_weights(path: str | Path, what: str) -> dict[str, Tensor]:
    """Reads the tensors of a file that timm or ``torch.save`` wrote, or of a safetensors file. Runs no code from the file.

    Args:
        path: the file.
        what: the tensors in words, for messages.

    Raises:
        CheckpointError: the file can't be read, or contains more than tensors.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: there is no such file of weights")
    try:
        check_pickle(path)
        state = timm_state_dict(str(path), weights_only=True)
    except (AttributeError, EOFError):  # the file contains a list or another value, or is empty
        state = {}
    except Exception as error:  # safetensors, torch and zipfile raise different exceptions
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            why = "it contains more than weights, and such files are not loaded because they can run code; save a state_dict"
        else:
            why = cause(error)
        raise CheckpointError(f"{path}: {what} can't be read ({why})") from None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: {what} can't be read (the file contains no state_dict of a model)")
    check_weights(state, f"{path}: {what} can't be read")
    return state


def _build(create: Callable[[], _Network], tensors: dict[str, Tensor], path: str | Path) -> _Network:
    """Creates a network and loads its weights; before it takes memory, its shapes are compared with those of the tensors."""
    try:
        with torch.device("meta"):
            expected = create().state_dict()
    except Exception as error:  # sizes that no tensor can have raise different exceptions
        raise CheckpointError(f"{path}: its metadata describes no network that can be built ({cause(error)})") from None
    wrong = next((name for name in expected if name not in tensors or tensors[name].shape != expected[name].shape), None)
    wrong = wrong or next((name for name in tensors if name not in expected), None)
    if wrong is not None:
        got, want = (tuple(state[wrong].shape) if wrong in state else "absent" for state in (tensors, expected))
        raise CheckpointError(f"{path}: the weights don't fit the network: {wrong[:60]} is {got}, but the network's is {want}")
    odd = next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None)
    if odd is not None:
        raise CheckpointError(f"{path}: the weights don't fit the network: {odd[:60]} holds {tensors[odd].dtype}, not real numbers")
    network = create()
    network.load_state_dict(tensors)
    return network.eval()
