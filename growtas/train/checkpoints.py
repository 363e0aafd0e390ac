"""Writes and reads the checkpoints of a training.

A checkpoint is written completely or not at all. The newest few and the best are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growtas.checkpoint import load_model, load_supernet, load_tensors, save_model, save_supernet, save_tensors
from growtas.errors import CheckpointError
from growtas.fields import OBJECT, check_entries, map_of, number, text, whole
from growtas.files import json_text, read_json, remove_folder, replacing, sha256, write_json
from growtas.nn.supernet import Supernet
from growtas.progress import Progress
from growtas.runs import Run
from growtas.train.optimizer import load_optimizer_tensors, optimizer_tensors
from growtas.train.step import Training

FORMAT = "growtas-checkpoint/3"
_OLD_FORMATS = ("growtas-checkpoint/2",)
"""Formats of earlier versions, which recorded no hashes."""
_WEIGHTS = "weights/"


@dataclass
class Place:
    """Progress of a training.

    Attributes:
        epoch: number of complete epochs, which is also the index of the current epoch, from 0.
        batch: number of complete batches of the current epoch.
        step: number of complete optimiser steps since the start of the training.
        sums: sums over the current epoch so far (loss, images, passes, MACs, seconds).
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the checkpoint's folder; the alphabetical order of the names is the order in time."""
        return f"epoch-{self.epoch:04d}" + (f"-batch-{self.batch:06d}" if self.batch else "")


_COUNT = whole(0, 10**12)
_STATE_RULES = {
    "epoch": _COUNT,
    "batch": _COUNT,
    "step": _COUNT,
    "sums": map_of(number().or_null(), "an object of numbers"),
    "files": map_of(text(), "an object of texts"),
    "scaler": OBJECT,
    "strategy": OBJECT,
}
CHECKPOINT_FILES = """``checkpoints/epoch-0010/``: the folder of a checkpoint. It appears whole or not at all.

A checkpoint that can't be read is renamed to ``broken-...``, and the one before it is used.

Fields:
    supernet.safetensors (weights): The supernet, or its moving average where the recipe has an ``ema_decay``. The search and the
        export read it.
    trainer.safetensors (tensors): State of the optimiser (``optimizer/...``, and ``optimizer1/...`` and so on where a method keeps
        several), and the weights in training (``weights/...``) where the first file holds their average.
    teacher.safetensors (weights): The frozen copy of the largest subnet, where the method has one.
    state.json (object): Everything else that a training needs to go on.
"""
STATE_JSON = """``state.json`` of a checkpoint: how far the training has come.

Fields:
    format (text): Always ``growtas-checkpoint/3``.
    sha256 (text): SHA-256 of this object without this entry, as compact JSON, in hexadecimal. A resumed training checks all hashes.
    files (object): SHA-256 of the checkpoint's other files by their names, in hexadecimal.
    epoch (whole number): Epochs that are complete.
    batch (whole number): Batches of the next epoch that are done.
    step (whole number): Optimiser steps that are complete.
    sums (object): What the unfinished epoch has added up so far.
    optimizer (object): ``groups``: the optimiser's numbers for each group of parameters.
    scaler (object): State of the loss scaler of fp16; empty without one.
    strategy (object): State of the training method; empty for methods without one.
"""
BEST_JSON = """``best.json`` in ``checkpoints/best-.../``: why that supernet is the best so far.

Fields:
    score (number): Mean accuracy of the followed subnets in its epoch, 0 to 1.
    checkpoint (text): Name of the checkpoint's folder.
"""


def save_checkpoint(run: Run, training: Training, place: Place, strategy: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint and removes all but the newest ``keep`` checkpoints.

    Args:
        strategy: state of the training method.

    Returns:
        The checkpoint's folder.
    """
    folder = run.path / "checkpoints" / place.folder
    with replacing(folder, sync=True) as temporary:
        temporary.mkdir(parents=True)
        save_supernet(temporary / "supernet.safetensors", training.result)
        tensors: dict[str, Tensor] = {}
        for number, moments in enumerate(training.moments):
            training.optimizer.state = moments
            named = optimizer_tensors(training.supernet, training.optimizer)
            tensors |= {_optimizer(number) + name: value for name, value in named.items()}
        if training.average is not None:
            tensors |= {_WEIGHTS + name: value for name, value in training.supernet.state_dict().items()}
        save_tensors(temporary / "trainer.safetensors", tensors, {"kind": "trainer"})
        if training.teacher is not None:
            save_model(temporary / "teacher.safetensors", training.teacher)
        scalars = [{k: v for k, v in group.items() if k != "params"} for group in training.optimizer.state_dict()["param_groups"]]
        state = {
            "format": FORMAT,
            "epoch": place.epoch,
            "batch": place.batch,
            "step": place.step,
            "files": {path.name: sha256(path) for path in sorted(temporary.iterdir())},
            "sums": place.sums,
            "optimizer": {"groups": scalars},
            "scaler": training.scaler.state_dict(),
            "strategy": strategy,
        }
        write_json(temporary / "state.json", {**state, "sha256": _digest(state)})
    remove_old(run, keep)
    return folder


def remove_old(run: Run, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints, and all but the newest of the best supernets."""
    best = sorted(path.parent for path in run.path.glob("checkpoints/best-*/best.json"))
    for old in (*run.checkpoints[:-keep], *best[:-1]):
        with contextlib.suppress(OSError):
            remove_folder(old)


def keep_best(run: Run, checkpoint: Path, score: float) -> bool:
    """Keeps a checkpoint's supernet as the best one if its score is the highest so far. Returns whether it is.

    The old best is removed only after the new one is complete.
    """
    best = run.best
    if (known := run.best_score) is not None and known >= score:
        return False
    with replacing(run.path / "checkpoints" / f"best-{checkpoint.name}") as temporary:
        temporary.mkdir(parents=True)
        try:
            os.link(checkpoint / "supernet.safetensors", temporary / "supernet.safetensors")
        except OSError:  # a file system without links
            shutil.copyfile(checkpoint / "supernet.safetensors", temporary / "supernet.safetensors")
        write_json(temporary / "best.json", {"score": score, "checkpoint": checkpoint.name})
    if best is not None:
        with contextlib.suppress(OSError):
            remove_folder(best)
    return True


def load_newest(run: Run, training: Training, progress: Progress) -> tuple[Place, dict[str, Any]]:
    """Loads the newest readable checkpoint into ``training``.

    An unreadable checkpoint is renamed to ``broken-NAME``, reported with a note, and the one before it is loaded.

    Returns:
        The progress of the training and the state of its method; the start of a training if there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
    folders = run.checkpoints
    for folder in reversed(folders):
        try:
            return _load(folder, training)
        except CheckpointError as error:
            if folder == folders[0]:
                raise
            folder.rename(folder.with_name(f"broken-{folder.name}"))
            progress.note(f"{error}; the checkpoint is renamed to broken-{folder.name}, and the one before it is loaded")
    return Place(), {}


def _load(folder: Path, training: Training) -> tuple[Place, dict[str, Any]]:
    state = read_json(folder / "state.json", "checkpoint state")
    if not isinstance(state, dict) or state.get("format") not in (FORMAT, *_OLD_FORMATS):
        raise CheckpointError(f"{folder / 'state.json'}: not a training checkpoint of format {FORMAT}")
    check_entries(state, _STATE_RULES, str(folder / "state.json"), CheckpointError)
    if state["format"] == FORMAT or "sha256" in state:
        recorded = state.pop("sha256", None)
        if recorded != _digest(state):
            raise CheckpointError(f"{folder / 'state.json'}: the file has changed since it was written (it has another SHA-256)")
    place = Place(state["epoch"], state["batch"], state["step"])
    place.sums |= {key: math.nan if value is None else value for key, value in state["sums"].items()}
    strategy: dict[str, Any] = state["strategy"]
    result = load_supernet(folder / "supernet.safetensors").state_dict()
    tensors, _ = load_tensors(folder / "trainer.safetensors", "optimiser state")
    weights = _under(_WEIGHTS, tensors) or result
    teacher = load_model(folder / "teacher.safetensors") if (folder / "teacher.safetensors").exists() else None
    try:
        training.supernet.load_state_dict(weights)
        if training.average is not None:
            training.average.module.load_state_dict(result)
        for number in range(len(training.moments)):
            load_optimizer_tensors(training.supernet, training.optimizer, _under(_optimizer(number), tensors))
            training.moments[number] = training.optimizer.state
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / 'trainer.safetensors'}: the state does not fit the network ({str(error).splitlines()[0]})"
        ) from None
    if state["scaler"]:
        try:
            training.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder / 'state.json'}: scaler is not the state of a loss scaler ({error})") from None
    if teacher is not None:
        training.teacher = teacher.to(training.supernet.cls_token.device).requires_grad_(False)
    return place, strategy


def _optimizer(number: int) -> str:
    """Returns the prefix of the tensors of one of the optimiser's states."""
    return f"optimizer{number or ''}/"


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(state).encode()).hexdigest()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def all_finite(supernet: Supernet) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in supernet.parameters())
