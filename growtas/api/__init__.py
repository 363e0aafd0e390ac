"""The Python API: everything that a command does, as functions with typed results. The commands only parse, call these and print.

    from growtas import api

    run = api.train(recipe="digits-demo", epochs=2)
    hit = api.search(run, devices={"a10": "5ms"})
    artifacts = api.export(run, hit.subnet, formats=["onnx", "trt"])
    api.verify(artifacts)
    api.bench(artifacts)
    api.predict(artifacts[0], ["cat.png"])

Every function that takes long has a parameter ``progress`` (:class:`growtas.progress.Progress`). Importing this package imports
neither torch nor onnx: a name is loaded when it is used for the first time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growtas.api.profiling import ProfileResult, profile
    from growtas.api.search_results import SearchResult
    from growtas.api.searching import search
    from growtas.progress import Progress

_MODULES: dict[str, str] = {
    "ProfileResult": "growtas.api.profiling",
    "Progress": "growtas.progress",
    "SearchResult": "growtas.api.search_results",
    "profile": "growtas.api.profiling",
    "search": "growtas.api.searching",
}
"""The module that defines each public name."""

__all__ = [
    "ProfileResult",
    "Progress",
    "SearchResult",
    "profile",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
