"""The packages TensorRT and TensorRT-RTX, their messages, and this machine's GPU, for building and running plans.

Both packages have the same Python API under different module names, so functions take the module as an argument. Only compute
capabilities, caches and CUDA graphs differ.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch

from growtas.errors import MissingExtra
from growtas.export.runtimes.base import is_installed

# The module `tensorrt` or `tensorrt_rtx`; neither ships types.
Module = Any
# The module, the distribution and the extra that installs it, by the runtime's name.
_PACKAGES = {"tensorrt": ("tensorrt", "tensorrt", "gpu"), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13", "trt-rtx")}


def package(runtime: str, purpose: str) -> Module:
    """Imports the Python module of ``tensorrt`` or ``tensorrt-rtx``.

    Args:
        purpose: the reason why it is needed, for the error message.

    Raises:
        MissingExtra: the package is not installed.
    """
    module, distribution, extra = _PACKAGES[runtime]
    if not is_installed(module):
        raise MissingExtra(distribution, extra, purpose)
    return importlib.import_module(module)


def capturing_logger(trt: Module) -> Any:
    """Returns a logger that keeps messages of level INFO and above as ``(severity name, text)`` in ``messages``; prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name != "VERBOSE":
                self.messages.append((severity.name, message))

    return Logger()


def reported_bytes(messages: list[tuple[str, str]], what: str) -> int | None:
    """Returns the number in the last message ``WHAT: N bytes``; None without such a message."""
    matches = (re.search(re.escape(what) + r":\s*(\d+) bytes", text) for _, text in reversed(messages))
    return next((int(match[1]) for match in matches if match), None)


def last_error(logger: Any) -> str:
    """Returns the last error in a logger's messages, on one line."""
    errors = [text for severity, text in logger.messages if severity in ("ERROR", "INTERNAL_ERROR")]
    return _one_line(errors[-1]) if errors else "no reason given"


def parser_error(parser: Any) -> str | None:
    """Returns the parser's first error, with the node that caused it; None without errors."""
    if not parser.num_errors:
        return None
    error = parser.get_error(0)
    return f"{error.node_operator()} {error.node_name()}: {_one_line(error.desc())}"


def _one_line(text: str) -> str:
    text = re.sub(r"\[[\w.:]*\.cpp[^\]]*\]\s*", "", text)
    return " ".join(re.sub(r"^.*?Error Code \d+: ", "", text).split())[:200]


def local_target() -> str | None:
    """Returns the compute capability of this machine's GPU, such as ``sm86``; None without a usable GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def why_not_here(targets: tuple[str, ...]) -> str | None:
    """Returns the reason why plans for these targets can't run on this machine; None if they can."""
    here = local_target()
    if here is None:
        return "no NVIDIA GPU with a driver on this machine"
    if here not in targets:
        return f"the GPU of this machine is {here}, but the plan is for {', '.join(targets)}"
    return None
