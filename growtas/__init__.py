"""growtas: Vision-Transformer architecture search that ends in a served engine."""

from __future__ import annotations

import importlib
import os

# Type checkers assume True. Importing typing would take most of this module's import time, in which Ctrl-C is not handled yet.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# From version 1.29 on, ONNX Runtime writes a device identifier to the user's home folder, and reports executed models (file names,
# hashes of weights) to its maker over the network, unless this is set before its import. Users who want the reports set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_EXPORTS = {
    "Architecture": "growtas.nn.architecture",
    "Costs": "growtas.costs",
    "GrowtasError": "growtas.errors",
    "SearchSpace": "growtas.space",
    "Subnet": "growtas.subnet",
    "Supernet": "growtas.nn.supernet",
    "VisionTransformer": "growtas.nn.vit",
    "count_costs": "growtas.costs",
    "extract": "growtas.nn.extract",
    "load_space": "growtas.space",
}

__all__ = [
    "Architecture",
    "Costs",
    "GrowtasError",
    "SearchSpace",
    "Subnet",
    "Supernet",
    "VisionTransformer",
    "__version__",
    "count_costs",
    "extract",
    "load_space",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Each name is loaded on first use, so that `growtas --help` does not import torch.
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'growtas' has no attribute {name!r}")
