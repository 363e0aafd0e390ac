"""``torch.export`` programs (``.pt2``): the graph and the weights in one file that plain PyTorch loads, without growtas.

Loading one by ``torch.export.load`` runs code that the file holds, where it holds any: tensors and custom objects may be pickled,
sizes are Python expressions that SymPy evaluates, guards are executed, and a node may name any function below ``torch``. A program
of growtas needs none of that. ATen operators are not harmless either: ``from_file`` maps any file that its argument names, and
``copy_`` then writes it. :func:`check_program` therefore refuses whatever is not plain tensors, an operator of :data:`OPERATORS`
and a dynamic batch, before anything is deserialised.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._C import PyTorchFileReader
from torch.export.passes import move_to_device_pass

from growtas.errors import BuildError, CheckpointError, ConfigError
from growtas.export.artifact import check_hash, read_manifest
from growtas.export.runtimes.torch import TorchSession
from growtas.files import replacing
from growtas.nn.vit import VisionTransformer

# What torch.export.save writes, the archive's own name (the first folder) left out; nothing else is loaded.
_MEMBERS = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"
)
_CONFIGS = {"data/weights/model_weights_config.json": "weight_", "data/constants/model_constants_config.json": "tensor_"}
_GRAPH, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
OPERATORS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "_assert_tensor_metadata.default", "add.Tensor", "cat.default", "conv2d.default", "expand.default", "flatten.using_ints",
        "gather.default", "gelu.default", "index.Tensor", "layer_norm.default", "linear.default", "matmul.default", "mean.dim",
        "pad.default", "permute.default", "repeat.default", "reshape.default", "scaled_dot_product_attention.default",
        "select.int", "slice.Tensor", "sub.Tensor", "sym_size.int", "to.dtype", "transpose.int", "unbind.int", "view.default",
    )
)  # fmt: skip
"""The operators, with their overloads, that a program of growtas consists of. None of them changes a tensor in place, reads or
writes a file, or calls a function."""
_SYMBOL = r"Symbol\('s\d+', positive=True, integer=True\)"
_SIZE = re.compile(rf"(Mul\()?(Integer\(\d+\), )?{_SYMBOL}\)?|\d+")
_TREE_TYPES = (None, "builtins.tuple", "builtins.dict")


def save_program(model: VisionTransformer, path: str | Path, *, max_batch: int) -> None:
    """Writes a static ViT as a program for batches from 1 to ``max_batch``.

    Its weights keep their names, so ``torch.export.load(path).state_dict`` fits the safetensors file. The same model and version of
    torch make the same bytes; no trace of the source is kept.

    Raises:
        BuildError: torch can't export the model.
        ConfigError: a maximum below 1.
        OutputError: the file can't be written.
    """
    if max_batch < 1:
        raise ConfigError(f"--max-batch is {max_batch}; it must be 1 or more")
    architecture = model.architecture
    batch = torch.export.Dim("batch", min=1, max=max(max_batch, 2))
    buffer = io.BytesIO()
    try:
        # With gradients: without them the MLP takes its fused form, which is specialised to a number of rows.
        with torch.inference_mode(False), torch.enable_grad():
            # Traced at two images, so that nothing is specialised to one.
            example = torch.zeros(2, architecture.in_chans, architecture.image_size, architecture.image_size)
            program = torch.export.export(copy.deepcopy(model).cpu().eval(), (example,), dynamic_shapes=({0: batch},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        torch.export.save(program, buffer)
    except Exception as error:  # tracing and serialising each have their own exceptions
        raise BuildError(f"{path}: torch can't export the program ({' '.join(str(error).split())[:160]})") from error
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_program(path: str | Path, *, threads: int | None = None, device: str = "cpu") -> TorchSession:
    """Loads a program that :func:`save_program` wrote.

    Args:
        threads: CPU threads; by default all that this process may use.
        device: ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: the file is not the one that its manifest describes (nothing of it was read then), can't be read, or holds
            what growtas does not load (:func:`check_program`).
    """
    path = Path(path)
    manifest = read_manifest(path, verify=False)
    # Read once: what is hashed and checked is what is loaded.
    data = path.read_bytes()
    if manifest is not None:
        check_hash(path, manifest, digest=hashlib.sha256(data).hexdigest())
    check_program(data, str(path))
    # torch logs what it stumbled over, with its traceback, and raises an error that only points there.
    logged: list[logging.LogRecord] = []
    log = logging.getLogger("torch.export")

    def keep(record: logging.LogRecord) -> bool:
        logged.append(record)
        return False

    log.addFilter(keep)
    try:
        program = torch.export.load(io.BytesIO(data))
        shape, max_batch = _input(program)
        if device != "cpu":
            program = move_to_device_pass(program, device)
        module = program.module()
    except Exception as error:  # torch's deserialiser raises whatever it stumbles over
        first = next((record.exc_info[1] for record in logged if record.exc_info), error)
        reason = " ".join(str(first).split())[:160]
        raise CheckpointError(f"{path}: torch can't load the program ({reason})") from None
    finally:
        log.removeFilter(keep)
    return TorchSession(module, shape, threads=threads, device=device, max_batch=max_batch, runtime="torch.export")


def check_program(data: bytes, what: str) -> None:
    """Refuses a program whose loading could run code.

    Looked at are the names of the archive's members, how tensors are stored, the operators, every size expression, the guards, the
    containers of inputs and outputs, and the pickled example inputs, which must be plain tensors (torch's weights-only loading).

    Args:
        data: the file's content.
        what: how messages name the file.

    Raises:
        CheckpointError: not a ``.pt2`` archive, or one that holds more than a program of growtas does.
    """
    members = _read_members(data, what)
    odd = next((name for name in members if _MEMBERS.fullmatch(name) is None), None)
    if odd is not None:
        raise CheckpointError(f"{what}: the program holds {odd!r}, which growtas does not load")
    missing = [name for name in (_GRAPH, _SAMPLES, *_CONFIGS) if name not in members]
    if missing:
        raise CheckpointError(f"{what}: not a program of torch.export ({missing[0]} is missing)")
    try:
        for config, prefix in _CONFIGS.items():
            for name, payload in json.loads(members[config])["config"].items():
                if payload["use_pickle"] is not False or not payload["path_name"].startswith(prefix):
                    raise CheckpointError(f"{what}: the program holds {name!r} as a pickled object, which growtas does not load")
        graph = json.loads(members[_GRAPH])
        reason = next(_odd_parts(graph), None)
        if reason is not None:
            raise CheckpointError(f"{what}: the program holds {reason}, which growtas does not load")
        torch.load(io.BytesIO(members[_SAMPLES]), weights_only=True)  # noqa: TID251 (no code runs)
    except CheckpointError:
        raise
    except Exception as error:  # JSON of another form, or a pickle of something else than tensors
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise CheckpointError(f"{what}: the program is not one that growtas loads ({reason})") from None


def _read_members(data: bytes, what: str) -> dict[str, bytes]:
    """The members of a ``.pt2`` archive, by their names below the archive's own."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            by_zip = {name: archive.read(name) for name in names}
        # torch has a reader of its own: both must see the same, or what is checked is not what is loaded.
        reader = PyTorchFileReader(io.BytesIO(data))
        by_torch = {name: reader.get_record(name) for name in reader.get_all_records()}
    except Exception as error:  # two readers with their own exceptions
        reason = " ".join(str(error).split())[:100]
        raise CheckpointError(f"{what}: the program is truncated or no .pt2 archive ({reason})") from None
    roots = {name.split("/", 1)[0] for name in names}
    members = {name.split("/", 1)[-1]: content for name, content in by_zip.items()}
    if len(roots) != 1 or len(by_zip) != len(names) or members != by_torch:
        raise CheckpointError(f"{what}: not a .pt2 archive that reads the same in every reader")
    return members


def _odd_parts(program: dict[str, Any]) -> Iterator[str]:
    """What a program's JSON holds beside known operators, plain sizes and plain containers."""
    if program["guards_code"]:
        yield "guards to be executed"
    module = program["graph_module"]
    if module["graph"]["custom_obj_values"] or module["treespec_namedtuple_fields"]:
        yield "custom objects"
    for key, value in _walk(program):
        if key == "target" and value not in OPERATORS:
            yield f"the operator {str(value)[:60]!r}"
        elif key == "expr_str" and _SIZE.fullmatch(str(value)) is None:
            yield f"the size {str(value)[:60]!r}"
        elif key in ("in_spec", "out_spec") and any(
            inner == "type" and kind not in _TREE_TYPES for inner, kind in _walk(json.loads(value))
        ):
            yield "inputs or outputs in containers of other types"
        elif isinstance(value, dict) and {"as_graph", "as_custom_obj", "as_operator"} & set(value):
            yield "arguments that are functions or objects"


def _walk(data: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield key, value
            yield from _walk(value)
    elif isinstance(data, list):
        for value in data:
            yield from _walk(value)


def _input(program: Any) -> tuple[tuple[int, int, int], int]:
    """Image shape and largest batch of a loaded program."""
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    _, channels, height, width = node.meta["val"].shape
    (bounds,) = program.range_constraints.values()
    return (int(channels), int(height), int(width)), int(bounds.upper)
