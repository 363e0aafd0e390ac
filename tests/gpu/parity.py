"""Compares supernet and static ViT in float32, bfloat16 and float16 with the CPU, and names their attention kernels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from growtas.space import load_space
from tests.gpu.cases import Cases, Outcome
from tests.gpu.hardware import Hardware
from tests.gpu.networks import NETWORKS, PRECISIONS, Comparison


def cases(hardware: Hardware, folder: Path) -> Cases:
    space = load_space("autoformer-t")
    space = hardware.size(space, space.replace(depth=(2,)))
    # The second family: timm's plain ViTs, whose attention has no relative position.
    plain = space.replace(depth=(2,), max_depth=3, block_order=(2, 0, 1), max_relative_position=None, prefix_tokens=5, qk_norm=True)
    batch = hardware.size(8, 2)
    # By default cuDNN's convolutions use TF32, which the CPU does not have.
    torch.backends.cudnn.allow_tf32 = False
    for family, comparison in (("", Comparison(space, batch)), ("plain ", Comparison(plain, batch))):
        for name in NETWORKS:
            for precision in PRECISIONS:
                yield f"{family}{name} against the CPU, {precision}", partial(comparison.compare, name, hardware.device, precision)
        # On a CPU in float32, growtas does not use scaled_dot_product_attention.
        for precision in hardware.size(tuple(PRECISIONS), ("bf16", "fp16")):
            for training in (False, True):
                what = f"attention kernel of {family}{'training' if training else 'inference'}, {precision}"
                yield what, partial(_kernel, comparison, hardware, precision, training=training)


class _AttentionKernels(TorchDispatchMode):
    """Records the kernels that scaled_dot_product_attention chooses, and the channels of their heads."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()
        self.channels: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name.startswith("_scaled_dot_product") and "backward" not in name:
            self.kernels.add(name.removeprefix("_scaled_dot_product_"))
            self.channels.add(args[0].shape[-1])
        return func(*args, **(kwargs or {}))


def _kernel(comparison: Comparison, hardware: Hardware, precision: str, *, training: bool) -> Outcome:
    """Passes if attention runs in a fused kernel, and not as several operations."""
    module = comparison.module("supernet").to(hardware.device)
    reduced = PRECISIONS[precision]
    with torch.set_grad_enabled(training), torch.autocast(hardware.device, reduced, enabled=reduced is not None):
        images, kernels = comparison.images().to(hardware.device), _AttentionKernels()
        with kernels:
            module(images, *comparison.arguments("supernet"))
    if not kernels.kernels:
        return Outcome("no fused kernel: attention runs as several operations", {"kernels": []}, passed=False)
    channels = ", ".join(map(str, sorted(kernels.channels)))
    return Outcome(f"{', '.join(sorted(kernels.kernels))}, with heads of {channels} channels", {"kernels": sorted(kernels.kernels)})
