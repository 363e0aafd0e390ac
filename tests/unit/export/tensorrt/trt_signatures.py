"""Whether code that calls TensorRT calls what is there: names and numbers of arguments against the module's own signatures.

Neither module ships types, and little of it runs without a GPU. But every method's docstring begins with its signature.
"""

from __future__ import annotations

import ast
import re
from typing import Any

# What the variables of the backends hold.
RECEIVERS = {
    "builder": ("Builder",),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser",),
    "config": ("IBuilderConfig",),
    "profile": ("IOptimizationProfile",),
    "layer": ("ILayer", "IConvolutionLayer"),
    "maker": ("ILayer",),
    "_runtime": ("Runtime",),
    "_engine": ("ICudaEngine",),
    "engine": ("ICudaEngine",),
    "context": ("IExecutionContext",),
    "runtime_config": ("IRuntimeConfig",),
    "_cache": ("IRuntimeCache",),
    "get_timing_cache()": ("ITimingCache",),
    "create_engine_inspector()": ("EngineInspector",),
    "get_error()": ("ParserError",),
    "error": ("ParserError",),
}
MODULES = ("trt", "_trt")
# Names that only TensorRT-RTX has; the code asks first, or is the backend of TensorRT-RTX.
RTX_ONLY = {
    "ComputeCapability",
    "num_compute_capabilities",
    "set_compute_capability",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineValidity",
    "EngineInvalidityDiagnostics",
    "get_engine_validity",
    "cuda_graph_strategy",
    "dynamic_shapes_kernel_specialization_strategy",
    "create_runtime_cache",
    "set_runtime_cache",
    "create_runtime_config",
    "IRuntimeCache",
    "serialize",
    "deserialize",
}


def uses(source: str) -> list[tuple[str, ast.Attribute, ast.Call | None]]:
    """Every attribute that is taken of the module or of one of :data:`RECEIVERS`: receiver, node, and the call if it is called."""
    tree = ast.parse(source)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (receiver := _receiver(node.value)) is not None:
            found.append((receiver, node, called.get(id(node))))
    return found


def problems(source: str, module: Any, *, without: set[str] = frozenset()) -> list[str]:
    """What the module doesn't have, or doesn't take."""
    wrong = []
    for receiver, node, call in uses(source):
        if node.attr in without or receiver in without:
            continue
        owners = _owners(receiver, module)
        owner = next((one for one in owners if hasattr(one, node.attr)), None)
        if owner is None:
            wrong.append(f"{receiver}.{node.attr}: not there")
        elif call is not None and not _takes(getattr(owner, node.attr), call):
            wrong.append(f"{receiver}.{node.attr}: does not take {ast.unparse(call)}")
    return wrong


def _receiver(node: ast.expr) -> str | None:
    """``trt``, ``trt.BuilderFlag``, ``config`` or ``get_timing_cache()``; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = f"{node.func.attr}()"
        return name if name in RECEIVERS else None
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
    if name in MODULES:
        return "trt"
    if isinstance(node, ast.Attribute) and _receiver(node.value) == "trt":
        return f"trt.{node.attr}"
    return name if name in RECEIVERS else None


def _owners(receiver: str, module: Any) -> list[Any]:
    if receiver == "trt":
        return [module]
    if receiver.startswith("trt."):
        return [getattr(module, receiver.removeprefix("trt."), None)]
    return [getattr(module, name) for name in RECEIVERS[receiver] if hasattr(module, name)]


def _takes(function: Any, call: ast.Call) -> bool:
    """Whether some overload takes as many positional arguments, and these keywords."""
    if isinstance(function, type):
        function = function.__init__
    overloads = signatures(function)
    keywords = {keyword.arg for keyword in call.keywords}
    for parameters in overloads:
        names = [name for name, _ in parameters]
        required = [name for name, optional in parameters if not optional]
        given = {*names[: len(call.args)], *keywords}
        if len(call.args) <= len(names) and keywords <= set(names) and set(required) <= given:
            return True
    return False


def signatures(function: Any) -> list[list[tuple[str, bool]]]:
    """Parameters of every overload in a docstring, without ``self``: name, and whether there is a default."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(r"\s*(?:\d+\. )?\w+\((.*)\) -> ", line)
        if match is None or match[1].startswith("*args"):
            continue
        parameters = [part for part in _split(match[1]) if part and not part.startswith("self")]
        found.append([(part.split(":")[0].split("=")[0].strip(), "=" in part) for part in parameters])
    return found


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
