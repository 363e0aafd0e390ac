"""Saves and loads weights as safetensors files with JSON metadata. Nothing is pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from growtas.errors import CheckpointError, OutputError, brief
from growtas.files import open_regular, parse_json, replacing
from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer
from growtas.space import SearchSpace


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
            raise OutputError(f"{path}: can't be written ({error})") from None
        temporary.chmod(mode)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads the metadata of a file that :func:`save_tensors` wrote; an empty dict for other safetensors files.

    Raises:
        SafetensorError, OSError, ValueError: The file is not a safetensors file.
        CheckpointError: The metadata is not a JSON object.
    """
    open_regular(path).close()
    with safe_open(path, "pt") as file:
        metadata = parse_json((file.metadata() or {}).get("growtas", "{}"), f"{path}: its metadata is", source=str(path))
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its metadata is {brief(metadata)}; it must be an object")
    return metadata


def load_tensors(path: str | Path, what: str = "checkpoint") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads tensors (to the CPU) and metadata of a file that :func:`save_tensors` wrote.

    Args:
        path: the file.
        what: the name of the file's content in error messages.

    Raises:
        CheckpointError: The file is missing, truncated, or not a safetensors file.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such {what}")
    try:
        metadata = read_metadata(path)
        return load_file(path), metadata
    except PermissionError as error:
        raise CheckpointError(f"{path}: the {what} can't be read ({error.strerror or error})") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the {what} is truncated or not a safetensors file ({error})") from None


def save_supernet(path: str | Path, supernet: Supernet) -> None:
    """Writes a supernet's weights, with its space as metadata."""
    save_tensors(path, supernet.state_dict(), {"kind": "supernet", "space": supernet.space.to_dict()})


def load_supernet(path: str | Path) -> Supernet:
    """Loads a supernet that :func:`save_supernet` wrote, on the CPU and in eval mode.

    Raises:
        CheckpointError: The file can't be read, or does not contain a supernet.
    """
    tensors, metadata = load_tensors(path, "supernet checkpoint")
    if metadata.get("kind") != "supernet":
        raise CheckpointError(f"{path}: the file is not a growtas supernet")
    supernet = Supernet(SearchSpace.from_dict(metadata["space"], source=str(path)))
    _load_state(supernet, tensors, path)
    return supernet.eval()


def save_model(path: str | Path, model: VisionTransformer) -> None:
    """Writes a static ViT's weights, with its architecture as metadata."""
    save_tensors(path, model.state_dict(), {"kind": "model", "architecture": model.architecture.to_dict()})


def load_model(path: str | Path) -> VisionTransformer:
    """Loads a static ViT that :func:`save_model` wrote, on the CPU and in eval mode.

    Raises:
        CheckpointError: The file can't be read, or does not contain a static ViT.
    """
    tensors, metadata = load_tensors(path, "model")
    if metadata.get("kind") != "model":
        raise CheckpointError(f"{path}: the file is not a growtas model")
    model = VisionTransformer(Architecture.from_dict(metadata["architecture"], source=str(path)))
    _load_state(model, tensors, path)
    return model.eval()


def _load_state(module: torch.nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights don't fit the network: {str(error).splitlines()[-1].strip()}") from None
