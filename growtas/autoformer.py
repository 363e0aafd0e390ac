"""Reads AutoFormer's published checkpoints without running code from them, and renames their weights."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from growtas.checkpoint import check_pickle, check_weights, load_tensors, save_supernet
from growtas.data.decode import DecodeRules
from growtas.errors import CheckpointError, cause
from growtas.files import sha256, write_json
from growtas.nn.supernet import Supernet
from growtas.runs import Run, create_run
from growtas.space import SearchSpace

_RENAMES = (
    (r"^patch_embed_super\.proj\.", "patch_embed."),
    (r"\.attn_layer_norm\.", ".norm1."),
    (r"\.ffn_layer_norm\.", ".norm2."),
    (r"\.rel_pos_embed_k\.", ".relative_key."),
    (r"\.rel_pos_embed_v\.", ".relative_value."),
    (r"\.embeddings_table_v$", ".vertical"),
    (r"\.embeddings_table_h$", ".horizontal"),
)


def rename_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of the public AutoFormer code to growtas' names; shapes and layout stay the same."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def load_autoformer(path: str | Path, space: SearchSpace) -> Supernet:
    """Loads a published AutoFormer checkpoint into a supernet.

    The file is a pickle with ``model`` (the weights) and ``args`` (an ``argparse.Namespace``). Only tensors, plain containers and
    that class are loaded; a file with anything else is rejected, because it could run code.

    Args:
        path: the checkpoint file.
        space: the space that was trained; the number of classes is taken from the checkpoint's head.

    Raises:
        CheckpointError: The file is missing or truncated, contains anything but weights, or does not fit the space.
    """
    state = rename_state(_weights(_load(Path(path)), path))
    head = state.get("head.weight")
    # A head of another width would not fit, and could have more rows than the file has bytes.
    classes = head.shape[0] if head is not None and head.ndim == 2 and head.shape[1] == space.max_embed_dim else space.num_classes
    supernet = Supernet(space.replace(num_classes=int(classes)))
    expected = supernet.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        what = f"{missing[0]} is missing" if missing else f"{unknown[0][:100]} is unknown"
        raise CheckpointError(f"{path}: the weights don't fit {space.name}: {what}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            got, want = tuple(tensor.shape), tuple(expected[name].shape)
            raise CheckpointError(
                f"{path}: the weights don't fit {space.name}: {name} has the shape {got}, but the space needs {want}"
            )
    supernet.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return supernet.eval()


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return load_tensors(path, "file")[0]
    try:
        check_pickle(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: the file is truncated or not a checkpoint ({cause(error)})") from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (no code runs)
    except Exception as error:  # torch raises EOFError, RuntimeError, UnpicklingError, KeyError ...
        text = str(error)
        if "weights_only" in text or "Unsupported" in text or "GLOBAL" in text:
            match = re.search(r"(?:GLOBAL|global|class|function) ([\w.]+)", text)
            more = f"more than weights{f' ({match[1][:60]})' if match else ''}, which could run code"
            raise CheckpointError(f"{path}: the pickle holds {more}; it was not loaded") from None
        raise CheckpointError(f"{path}: the file is truncated or not a checkpoint ({type(error).__name__})") from None


def _weights(loaded: Any, path: str | Path) -> Mapping[str, Tensor]:
    state = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: no weights found; a checkpoint is a state dict, or has a state dict under 'model'")
    check_weights(state, f"{path}: no weights found")
    return state


def import_autoformer(path: str | Path, space: SearchSpace, root: Path, name: str | None = None) -> Run:
    """Loads a published checkpoint and writes it as a run that search and export accept.

    The run records AutoFormer's evaluation preprocessing: bicubic, crop 0.875, ImageNet's mean and standard deviation.

    Args:
        path: the checkpoint file.
        space: the space that was trained.
        root: folder in which the run's folder is created.
        name: name of the run's folder; by default date, time and the space's name.

    Raises:
        CheckpointError: See :func:`load_autoformer`.
        OutputError: The folder can't be written.
    """
    supernet = load_autoformer(path, space)
    info = {
        "state": "imported",
        "space": supernet.space.to_dict(),
        "method": "autoformer",
        "source": {"file": str(path), "sha256": sha256(path)},
        "data": None,
        "preprocess": {
            "image_size": space.image_size,
            "in_chans": space.in_chans,
            "mean": list(IMAGENET_DEFAULT_MEAN),
            "std": list(IMAGENET_DEFAULT_STD),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "decode": DecodeRules().to_dict(),
        },
        "class_names": None,
    }

    def write(folder: Path) -> None:
        checkpoint = folder / "checkpoints" / "epoch-0000"
        save_supernet(checkpoint / "supernet.safetensors", supernet)
        write_json(checkpoint / "state.json", {"epoch": 0, "step": 0})

    return create_run(root, name, info, write)
