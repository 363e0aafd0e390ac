"""Compares a training that was stopped and continued, bit by bit, with one that was not, in torch's deterministic mode."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growtas import api
from growtas.checkpoint import load_tensors
from growtas.progress import Progress
from growtas.runs import Run
from growtas.train.events import StepDone
from tests.gpu.cases import Cases, Outcome
from tests.gpu.hardware import Hardware
from tests.gpu.images import write_folder

_STOP_AFTER = 7
_OPTIONS: dict[str, Any] = {"space": "micro", "epochs": 3, "batch_size": 32, "ema_decay": 0.9}
_SETTINGS = {"mixup": 0.2, "drop_path": 0.1}


def cases(hardware: Hardware, folder: Path) -> Cases:
    # cuBLAS reads this variable when CUDA starts.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    images = write_folder(folder / "images", hardware.size(400, 200), 28)
    for amp in ("fp32", "bf16", "fp16"):
        yield f"resume to the bit, {amp}", partial(_compare, hardware, folder / "resume", images, amp)


class _Stop(Progress):
    def event(self, event: object) -> None:
        if isinstance(event, StepDone) and event.step == _STOP_AFTER:
            raise KeyboardInterrupt


def _compare(hardware: Hardware, folder: Path, images: Path, amp: str) -> Outcome:
    shutil.rmtree(folder / amp, ignore_errors=True)

    def train(name: str, progress: Progress) -> None:
        where = {"data": str(images), "out": folder / amp, "name": name, "device": hardware.device}
        api.train(settings=_SETTINGS, amp=amp, progress=progress, **where, **_OPTIONS)

    train("whole", Progress())
    try:
        train("stopped", _Stop())
    except KeyboardInterrupt:
        api.resume(folder / amp / "stopped", device=hardware.device)
    else:
        return Outcome(f"the training was over before step {_STOP_AFTER}", passed=False)
    whole, resumed = (_tensors(Run(folder / amp / name)) for name in ("whole", "stopped"))
    different = sorted(name for name in whole.keys() | resumed.keys() if not _equal(whole.get(name), resumed.get(name)))
    text = (
        f"{len(different)} of {len(whole)} tensors differ, such as {different[0]}" if different else f"all {len(whole)} are equal"
    )
    numbers = {"tensors": len(whole), "different": len(different)}
    return Outcome(f"tensors: {text}; stopped after step {_STOP_AFTER}", numbers, not different)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _tensors(run: Run) -> dict[str, Tensor]:
    """The weights, averages and optimiser state of a run's last checkpoint."""
    files = sorted(run.checkpoints[-1].glob("*.safetensors"))
    return {f"{file.name} {name}": value for file in files for name, value in load_tensors(file)[0].items()}
