"""Writes a Python module with one static ViT, which needs only torch and safetensors and loads the weights beside it.

Users can fine-tune the network, change its head, or read what it computes, all without growtas. The module is written for readers;
:mod:`growtas.nn.vit` and the exported graphs are faster.
"""

from __future__ import annotations

import inspect
import json
import keyword
from pathlib import Path
from types import ModuleType
from typing import Any

from growtas.errors import BuildError
from growtas.export.pipeline import standalone_vit
from growtas.files import replacing, sha256
from growtas.nn.architecture import Architecture
from growtas.space import PLAIN

_CONFIG = "CONFIG: dict[str, Any] = {}\n"


def module_name(name: str) -> str:
    """Turns an artifact's name into one that Python can import: ``micro-subnet`` becomes ``micro_subnet``."""
    plain = "".join(character if character.isalnum() else "_" for character in name)
    return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"vit_{plain}"


def write_module(path: Path, architecture: Architecture, *, weights: Path, preprocess: Any, class_names: Any) -> None:
    """Writes the module of an architecture.

    Args:
        weights: the safetensors file beside the module. If it is renamed, the module finds it by its hash.
        preprocess: the run's preprocessing record, for readers; None where there is none.
        class_names: one name per output; None where there are none.

    Raises:
        OutputError: the module can't be written.
    """
    subnet = architecture.subnet
    config = {
        "image_size": architecture.image_size,
        "patch_size": architecture.patch_size,
        "in_chans": architecture.in_chans,
        "num_classes": architecture.num_classes,
        "embed_dim": subnet.embed_dim,
        "head_dim": architecture.head_dim,
        "num_heads": list(subnet.num_heads),
        "hidden_dims": [subnet.hidden_dim(index) for index in range(subnet.depth)],
        "max_relative_position": architecture.max_relative_position,
        **{field: getattr(architecture, field) for field in PLAIN},
        "weights": weights.name,
        "weights_sha256": sha256(weights),
        "preprocess": preprocess,
        "class_names": None if class_names is None else list(class_names),
    }
    # The module reads the configuration with json.loads, so that no value of a run can become code.
    text = json.dumps(config, indent=4, ensure_ascii=True)
    quoted = text.replace("\\", "\\\\").replace("'''", "\\'\\'\\'")
    source = inspect.getsource(standalone_vit)
    with replacing(path) as temporary:
        temporary.write_text(source.replace(_CONFIG, f"CONFIG: dict[str, Any] = json.loads('''{quoted}''')\n"), encoding="utf-8")


def load_module(path: Path) -> ModuleType:
    """Executes a module's file. Only for files that :func:`write_module` has just written.

    Raises:
        BuildError: the file is not valid Python.
    """
    module = ModuleType(f"_growtas_{path.stem}")
    module.__file__ = str(path)
    try:
        # Unlike an import, this leaves no compiled copy beside the file.
        exec(compile(path.read_text(encoding="utf-8"), path, "exec", dont_inherit=True), module.__dict__)
    except SyntaxError as error:
        raise BuildError(f"{path.name} is not valid Python ({error})") from None
    return module
