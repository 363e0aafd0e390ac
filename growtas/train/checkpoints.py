"""Checkpoints of a training: written whole or not at all, the last two kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

from growtas.checkpoint import load_supernet, load_tensors, save_supernet, save_tensors
from growtas.errors import CheckpointError
from growtas.files import read_json, replacing, write_json
from growtas.nn.supernet import Supernet
from growtas.runs import Run
from growtas.train.optimizer import load_optimizer_tensors, optimizer_tensors

FORMAT = "growtas-checkpoint/1"
KEEP = 2


def save_checkpoint(run: Run, supernet: Supernet, optimizer: AdamW, epoch: int, step: int) -> Path:
    """Write ``checkpoints/epoch-NNNN`` and remove all but the last two.

    Args:
        epoch: epochs that are complete, so the next is the one of this number (counted from 0).
        step: steps that are complete.
    """
    folder = run.path / "checkpoints" / f"epoch-{epoch:04d}"
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        save_supernet(temporary / "supernet.safetensors", supernet)
        save_tensors(temporary / "trainer.safetensors", optimizer_tensors(supernet, optimizer), {"kind": "adamw"})
        scalars = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.state_dict()["param_groups"]]
        write_json(temporary / "state.json", {"format": FORMAT, "epoch": epoch, "step": step, "optimizer": {"groups": scalars}})
    for old in run.checkpoints[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path, supernet: Supernet, optimizer: AdamW) -> dict[str, Any]:
    """Put a checkpoint's weights and optimiser state in place, and return its ``state.json``.

    Raises:
        CheckpointError: it can't be read or does not fit.
    """
    state = read_json(folder / "state.json", "checkpoint state")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{folder / 'state.json'}: not a training checkpoint of format {FORMAT}")
    supernet.load_state_dict(load_supernet(folder / "supernet.safetensors").state_dict())
    tensors, _ = load_tensors(folder / "trainer.safetensors", "optimiser state")
    try:
        load_optimizer_tensors(supernet, optimizer, tensors)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / 'trainer.safetensors'}: the optimiser state does not fit the network ({error})") from None
    return state


def all_finite(supernet: Supernet) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in supernet.parameters())
