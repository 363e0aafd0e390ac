"""Reads AutoFormer's published checkpoints without running code from the file, and renames their weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from growtas.checkpoint import load_tensors, save_supernet
from growtas.data.decode import DecodeRules
from growtas.errors import CheckpointError
from growtas.files import replacing, sha256, write_json
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
    """A state dict of the public AutoFormer code under growtas' names; shapes and layout stay."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def load_autoformer(path: str | Path, space: SearchSpace) -> Supernet:
    """A supernet with the weights of a published AutoFormer checkpoint.

    The file is a pickle with ``model`` (the weights) and ``args`` (an ``argparse.Namespace``). Only tensors, plain containers
    and that one class are allowed in it; anything else, which could run code, is refused.

    Args:
        space: the space that was trained; the number of classes is taken from the file's head.

    Raises:
        CheckpointError: the file is absent, truncated, holds anything but weights, or does not fit the space.
    """
    state = rename_state(_weights(_load(Path(path)), path))
    classes = state["head.weight"].shape[0] if "head.weight" in state else space.num_classes
    supernet = Supernet(space.replace(num_classes=int(classes)))
    expected = supernet.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        what = f"{missing[0]} is missing" if missing else f"{unknown[0]} has no place in it"
        raise CheckpointError(f"{path}: the weights don't fit {space.name}: {what}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            got, want = tuple(tensor.shape), tuple(expected[name].shape)
            raise CheckpointError(f"{path}: the weights don't fit {space.name}: {name} is {got}, the space has {want}")
    supernet.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return supernet.eval()


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return load_tensors(path, "file")[0]
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 (no code runs)
    except Exception as error:  # torch raises many types here: EOFError, RuntimeError, UnpicklingError, KeyError ...
        text = str(error)
        if "weights_only" in text or "Unsupported" in text or "GLOBAL" in text:
            match = re.search(r"(?:GLOBAL|global|class|function) ([\w.]+)", text)
            more = f"more than weights{f' ({match[1]})' if match else ''}, which could run code"
            raise CheckpointError(f"{path}: the pickle holds {more}; it was not loaded") from None
        raise CheckpointError(f"{path}: the file is truncated or no checkpoint ({type(error).__name__})") from None


def _weights(loaded: Any, path: str | Path) -> Mapping[str, Tensor]:
    state = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: no weights found; a checkpoint holds a state dict, or one under 'model'")
    return state


def import_autoformer(path: str | Path, space: SearchSpace, root: Path, name: str | None = None) -> Run:
    """Load a published checkpoint and write it as a run that search and export take.

    ImageNet's preprocessing is recorded, as AutoFormer evaluates: bicubic, crop 0.875, ImageNet mean and deviation.

    Raises:
        CheckpointError: as :func:`load_autoformer`.
        OutputError: the folder can't be written.
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
    run = create_run(root, name, info)
    folder = run.path / "checkpoints" / "epoch-0000"
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_supernet(temporary / "supernet.safetensors", supernet)
        write_json(temporary / "state.json", {"epoch": 0, "step": 0})
    return run
