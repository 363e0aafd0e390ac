"""``torch.export`` programs (``.pt2``): graph and weights in one file, which plain PyTorch can load without growtas.

``torch.export.load`` may run code from the file: tensors and custom objects may be pickled, sizes are Python expressions that SymPy
evaluates, guards are executed, and a node may name any function below ``torch``. Programs of growtas need none of that. ATen
operators can do harm too: ``from_file`` maps any file that its argument names, and ``copy_`` then writes to it. Before anything is
deserialised, :func:`check_program` therefore refuses everything except plain tensors, the operators of :data:`OPERATORS` and a
dynamic batch.
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

from growtas.archives import check_archive
from growtas.checkpoint import check_torch_archive
from growtas.errors import BuildError, CheckpointError, ConfigError, cause
from growtas.export.artifact import check_hash, read_manifest
from growtas.export.runtimes.torch import TorchSession
from growtas.files import MAX_HEADER_BYTES, MAX_WEIGHTS_BYTES, read_bytes, replacing
from growtas.nn.vit import VisionTransformer

# The members that torch.export.save writes, without the archive's name (the first folder); nothing else is loaded.
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
"""The operators, with their overloads, in growtas' programs. None of them changes a tensor in place, opens a file or calls a
function."""
_SYMBOL = r"Symbol\('s\d+', positive=True, integer=True\)"
_SIZE = re.compile(rf"(Mul\()?(Integer\(\d+\), )?{_SYMBOL}\)?|\d+")
_TREE_TYPES = (None, "builtins.tuple", "builtins.dict")


def save_program(model: VisionTransformer, path: str | Path, *, max_batch: int) -> None:
    """Writes a static ViT as a program for batches from 1 to ``max_batch``.

    The weights keep their names, so ``torch.export.load(path).state_dict`` matches the safetensors file. The same model and the
    same torch make the same bytes; locations in the source code are removed.

    Raises:
        BuildError: torch can't export the model.
        ConfigError: ``max_batch`` is below 1.
        OutputError: the file can't be written.
    """
    if max_batch < 1:
        raise ConfigError(f"--max-batch is {max_batch}; it must be 1 or more")
    architecture = model.architecture
    batch = torch.export.Dim("batch", min=1, max=max(max_batch, 2))
    buffer = io.BytesIO()
    try:
        # Traced with gradients, because without them the MLP uses its fused form, which is specialised to one number of rows.
        with torch.inference_mode(False), torch.enable_grad():
            # Traced at two images, so that nothing is specialised to one.
            example = torch.zeros(2, architecture.in_chans, architecture.image_size, architecture.image_size)
            program = torch.export.export(copy.deepcopy(model).cpu().eval(), (example,), dynamic_shapes=({0: batch},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        torch.export.save(program, buffer)
    except Exception as error:  # the exceptions of tracing and serialising share no base class
        raise BuildError(f"{path}: torch can't export the program ({' '.join(str(error).split())[:160]})") from error
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_program(path: str | Path, *, threads: int | None = None, device: str = "cpu") -> TorchSession:
    """Loads a program that :func:`save_program` wrote.

    Args:
        threads: CPU threads; by default all that this process may use.
        device: ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: the file does not match its manifest (it is then not parsed), can't be read, or contains something that
            growtas does not load (:func:`check_program`).
    """
    path = Path(path)
    manifest = read_manifest(path, verify=False)
    # The file is read once, so that the bytes that are checked are the bytes that are loaded.
    data = read_bytes(path, f"{path}: the program", limit=MAX_WEIGHTS_BYTES)
    if manifest is not None:
        check_hash(path, manifest, digest=hashlib.sha256(data).hexdigest())
    check_program(data, str(path))
    # torch logs the real error with its traceback, and raises an error that only refers to the log.
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
    except Exception as error:  # torch's deserialiser raises all kinds of exceptions
        first = next((record.exc_info[1] for record in logged if record.exc_info), error)
        raise CheckpointError(f"{path}: torch can't load the program ({cause(first or error)})") from None
    finally:
        log.removeFilter(keep)
    return TorchSession(module, shape, threads=threads, device=device, max_batch=max_batch, runtime="torch.export")


def check_program(data: bytes, what: str) -> None:
    """Refuses a program whose loading could run code.

    It checks the names of the archive's members, the storage of tensors, the operators, every size expression, the guards, the
    containers of inputs and outputs, and the pickled example inputs, which must be plain tensors (torch's weights-only loading).

    Args:
        data: the file's content.
        what: name of the file in messages.

    Raises:
        CheckpointError: the data is not a ``.pt2`` archive, or contains something that programs of growtas do not contain.
    """
    members = _read_members(data, what)
    odd = next((name for name in members if _MEMBERS.fullmatch(name) is None), None)
    if odd is not None:
        raise CheckpointError(f"{what}: the program holds {odd[:100]!r}, which growtas does not load")
    long = next((name for name in (_GRAPH, *_CONFIGS) if len(members.get(name, b"")) > MAX_HEADER_BYTES), None)
    if long is not None:
        raise CheckpointError(
            f"{what}: the program is not one that growtas loads ({long} has more than {MAX_HEADER_BYTES:,} bytes)"
        )
    missing = [name for name in (_GRAPH, _SAMPLES, *_CONFIGS) if name not in members]
    if missing:
        raise CheckpointError(f"{what}: not a program of torch.export ({missing[0]} is missing)")
    try:
        for config, prefix in _CONFIGS.items():
            for name, payload in json.loads(members[config])["config"].items():
                if payload["use_pickle"] is not False or not payload["path_name"].startswith(prefix):
                    pickled = f"{name[:100]!r} as a pickled object"
                    raise CheckpointError(f"{what}: the program holds {pickled}, which growtas does not load")
        graph = json.loads(members[_GRAPH])
        reason = next(_odd_parts(graph), None)
        if reason is not None:
            raise CheckpointError(f"{what}: the program holds {reason}, which growtas does not load")
        if b"bytearray" in members[_SAMPLES]:
            raise ValueError("its example inputs create a bytearray")
        check_torch_archive(io.BytesIO(members[_SAMPLES]))
        torch.load(io.BytesIO(members[_SAMPLES]), weights_only=True)  # noqa: TID251 (no code runs)
    except CheckpointError:
        raise
    except Exception as error:  # JSON of another structure, or a pickle of something other than tensors
        raise CheckpointError(f"{what}: the program is not one that growtas loads ({cause(error)})") from None


def _read_members(data: bytes, what: str) -> dict[str, bytes]:
    """The members of a ``.pt2`` archive, by name without the archive's own name."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_archive(archive, len(data))
            names = archive.namelist()
            by_zip = {name: archive.read(name) for name in names}
        # torch has its own reader. Both must see the same content, or the checked content would not be the loaded one.
        reader = PyTorchFileReader(io.BytesIO(data))
        by_torch = {name: reader.get_record(name) for name in reader.get_all_records()}
    except Exception as error:  # the exceptions of the two readers share no base class
        raise CheckpointError(f"{what}: the program is truncated or not a .pt2 archive ({cause(error)})") from None
    roots = {name.split("/", 1)[0] for name in names}
    members = {name.split("/", 1)[-1]: content for name, content in by_zip.items()}
    if len(roots) != 1 or len(by_zip) != len(names) or members != by_torch:
        raise CheckpointError(f"{what}: two readers of .pt2 archives find different content in the file")
    return members


def _odd_parts(program: dict[str, Any]) -> Iterator[str]:
    """Describes the parts of a program's JSON that are not known operators, plain sizes or plain containers."""
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
    """Yields every key and value of nested JSON."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield key, value
            yield from _walk(value)
    elif isinstance(data, list):
        for value in data:
            yield from _walk(value)


def _input(program: Any) -> tuple[tuple[int, int, int], int]:
    """The image shape and the largest batch of a loaded program."""
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    _, channels, height, width = node.meta["val"].shape
    (bounds,) = program.range_constraints.values()
    return (int(channels), int(height), int(width)), int(bounds.upper)
