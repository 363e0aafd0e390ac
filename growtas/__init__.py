"""growtas: Vision-Transformer architecture search that ends in a served engine."""

from __future__ import annotations

import importlib
import os

# Type checkers take it as true. Importing typing here would take most of this module's time, in which nobody answers Ctrl-C yet.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# From 1.29 on ONNX Runtime leaves an identifier of the device in the user's home, and tells its maker over the network which models
# are run (names of files, hashes of weights), unless this is set before it is imported. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
"""The version of growtas."""

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
    # Names load on first use: `growtas --help` must not pay for importing torch.
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'growtas' has no attribute {name!r}")
