"""Tests the communication between processes of a training, through NCCL, in a group of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from growtas.distributed import World
from tests.gpu.cases import Cases, Outcome
from tests.gpu.hardware import Hardware

_WORLD = World(size=2)
"""A world of two in a group of one process, because a world of one would not use the group."""


def cases(hardware: Hardware, folder: Path) -> Cases:
    device, backend = torch.device(hardware.device), hardware.size("nccl", "gloo")
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)

    def case(same: Callable[[], bool], what: str) -> Callable[[], Outcome]:
        return lambda: Outcome(what, passed=True) if same() else Outcome("another value came back", passed=False)

    def join() -> bool:
        if not hardware.stand_in:
            torch.cuda.set_device(0)
        dist.init_process_group(backend, init_method=meeting.absolute().as_uri(), rank=0, world_size=1)
        return dist.get_backend() == backend

    def gradients() -> bool:
        layer, extra = nn.Linear(64, 64, device=device), torch.arange(3.0, device=device)
        layer.weight.grad = torch.randn(64, 64, device=device)
        before = layer.weight.grad.clone()
        _WORLD.sum_gradients(layer.parameters(), extra)
        return torch.equal(layer.weight.grad, before) and extra.tolist() == [0.0, 1.0, 2.0] and layer.bias.grad is None

    def weights() -> bool:
        layer = nn.Linear(64, 64, device=device)
        before = layer.weight.detach().clone()
        _WORLD.share_weights(layer)
        return torch.equal(layer.weight, before)

    def waiting() -> bool:
        _WORLD.wait()
        return True

    yield f"{backend}: a group of one process", case(join, "joined")
    yield f"{backend}: gradients are summed", case(gradients, "equal to what was sent")
    yield f"{backend}: numbers are summed", case(lambda: _WORLD.sum_numbers([3, 4], device) == [3, 4], "equal to what was sent")
    yield f"{backend}: weights are shared", case(weights, "equal to what was sent")
    yield f"{backend}: values are shared", case(lambda: _WORLD.share({"a": [1]}) == {"a": [1]}, "equal to what was sent")
    yield f"{backend}: processes wait for each other", case(waiting, "returned")
    if dist.is_initialized():
        dist.destroy_process_group()
