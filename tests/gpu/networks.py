"""Compares logits and gradients of a network on a device and in a precision with those of the CPU in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.space import SearchSpace
from tests.gpu.cases import Outcome

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NETWORKS = ("supernet", "static ViT")
_BARS = {"fp32": (1e-4, 1e-3), "bf16": (5e-2, 1e-1), "fp16": (1e-2, 2e-2)}
"""Largest legal relative errors of logits and of gradients."""
_LOSS_SCALE = 1024.0
"""Keeps gradients within float16's range, like a loss scaler."""

Wrap = Callable[[nn.Module], nn.Module]
"""Wraps a module before it is called, such as ``torch.compile``."""
Tensors = tuple[Tensor, Tensor]
"""Logits and gradients, on the CPU in float32."""


def _itself(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class Comparison:
    """Networks of a space with random weights, tables and biases, and their images.

    Attributes:
        space: search space, whose middle subnet is run.
        batch: number of images.
    """

    space: SearchSpace
    batch: int

    def module(self, name: str) -> nn.Module:
        """Returns the network on the CPU, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        supernet = Supernet(self.space)
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
        return supernet.eval() if name == "supernet" else extract(supernet, self.space.middle())

    def arguments(self, name: str) -> tuple[object, ...]:
        """Returns the network's arguments after the images."""
        return (self.space.middle(),) if name == "supernet" else ()

    def images(self) -> Tensor:
        """Returns noise, the same at every call."""
        shape = self.batch, self.space.in_chans, self.space.image_size, self.space.image_size
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def run(self, name: str, device: str, precision: str, wrap: Wrap = _itself) -> Tensors:
        """Runs one forward and one backward pass; returns logits and gradients."""
        module = self.module(name).to(device)
        called, reduced = wrap(module), PRECISIONS[precision]
        labels = torch.arange(self.batch, device=device) % self.space.num_classes
        with torch.autocast(device, reduced, enabled=reduced is not None):
            logits = called(self.images().to(device), *self.arguments(name)).float()
        (F.cross_entropy(logits, labels) * _LOSS_SCALE).backward()
        gradients = [parameter.grad.flatten() / _LOSS_SCALE for parameter in module.parameters() if parameter.grad is not None]
        return logits.detach().cpu(), torch.cat(gradients).cpu()

    @functools.cache  # noqa: B019 (a value, as long as the process)
    def reference(self, name: str) -> Tensors:
        """:meth:`run` on the CPU in float32."""
        return self.run(name, "cpu", "fp32")

    def compare(self, name: str, device: str, precision: str, wrap: Wrap = _itself) -> Outcome:
        """Computes the relative errors of logits and gradients, from Euclidean norms."""
        ours, theirs = self.run(name, device, precision, wrap), self.reference(name)
        errors = [float((one - other).norm() / other.norm()) for one, other in zip(ours, theirs, strict=True)]
        logits, gradients = errors
        for_logits, for_gradients = _BARS[precision]
        text = (
            f"relative error of logits {logits:.1e} (limit {for_logits:g}), of gradients {gradients:.1e} (limit {for_gradients:g})"
        )
        numbers = {"logits_error": logits, "gradients_error": gradients}
        return Outcome(text, numbers, logits <= for_logits and gradients <= for_gradients)
