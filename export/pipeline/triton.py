"""A Triton model repository from an artifact: ``NAME/config.pbtxt``, ``NAME/1/model.onnx`` or ``model.plan``, labels and a README.

Everything in the configuration is written out, so that Triton has nothing to guess or to complete. The field names are those of
Triton's ``model_config.proto``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from growtas.errors import CheckpointError, ConfigError, OutputError, UsageError, choices
from growtas.export.artifact import Artifact, check_hash
from growtas.export.formats import FORMATS, ONNX, PLAN, Format
from growtas.export.graph.contents import read_graph
from growtas.export.pipeline.model_card import preprocessing_steps
from growtas.export.signature import TOP_CLASSES, Signature, read_signature
from growtas.files import replacing, sha256, write_json

LABELS, CONFIG, README, MANIFEST = "labels.txt", "config.pbtxt", "README.md", "manifest.json"
VERSION = "1"
_NO_KERNELS = "ONNX Runtime's CPU provider has no kernels for bf16"
_LEGAL = "fp32, fp16, int8 or fp8, or a plan that TensorRT builds where a GPU is"
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}


REPOSITORY = """The folder of a model in a Triton model repository, ``repo/NAME/``.

Fields:
    config.pbtxt (text): Triton's configuration: platform, input and outputs with their types and sizes, largest batch, instances,
        dynamic batching, and a warm-up for batch 1 and the largest batch.
    1/model.onnx (artifact): The artifact as it was exported; ``model.plan`` where it is a plan.
    labels.txt (text): The classes' names, one a line, in the order of the logits. Absent where no names are known.
    manifest.json (object): The artifact's manifest.
    README.md (text): How to call the model: the input, the outputs, and what a client has to do before.
"""


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    name: str
    type: str
    dims: tuple[int, ...]


def check_triton(*, name: str, instances: int, max_delay_us: int, precision: str | None, plan_runtime: str | None) -> None:
    """Finds before an export what :func:`write_triton` would refuse after it.

    Args:
        name, instances, max_delay_us: as for :func:`write_triton`.
        precision: of what is going to be exported, as far as it was named.
        plan_runtime: what the plan will be for, where one is going to be built; any but ``tensorrt`` leaves the ONNX file to serve.

    Raises:
        ConfigError: one of them is out of range, or Triton could not load what is made.
    """
    _check_model(name, instances, max_delay_us)
    if precision == "bf16" and plan_runtime != "tensorrt":
        raise ConfigError(
            f"--precision bf16 does not go with --triton: an ONNX file would be served, and {_NO_KERNELS}; legal are {_LEGAL}"
        )


def write_triton(repo: str | Path, artifact: Artifact, *, instances: int = 1, max_delay_us: int = 500) -> Path:
    """Writes one model of a Triton model repository; the folder appears whole or not at all, and replaces one written before.

    Args:
        repo: the repository, made if need be.
        artifact: an ``.onnx`` file, or a ``.plan`` of TensorRT; its manifest decides inputs, outputs, labels and the largest batch.
        instances: how many of the model run beside each other on each device: a plan on GPUs, an ONNX file on CPUs.
        max_delay_us: microseconds that a request may wait for others to share its batch.

    Returns:
        The model's folder, ``repo/NAME`` for an artifact ``NAME.onnx``.

    Raises:
        CheckpointError: the artifact is not what the manifest describes.
        ConfigError: an option is out of range.
        OutputError: the place can't be written, or holds something else.
        UsageError: an artifact that Triton's backends don't load, a plan of TensorRT-RTX or an ONNX file in bf16 among them.
    """
    path, manifest = artifact.path, artifact.manifest
    entry = artifact.format
    if not entry.triton:
        legal = choices(entry.suffix for entry in FORMATS if entry.triton)
        raise UsageError(f"{path}: Triton takes no such artifact from here; legal are files that end in {legal}")
    runtime = manifest.plan and manifest.plan.runtime
    if entry is PLAN and runtime != "tensorrt":
        raise UsageError(
            f"{path}: Triton's TensorRT backend loads plans of tensorrt alone, this one is of {runtime}; "
            "serve the ONNX file instead"
        )
    check_hash(path, manifest)
    signature, name = read_signature(artifact), path.stem
    _check_model(name, instances, max_delay_us)
    if entry is ONNX and "bf16" in (manifest.precision, manifest.conversion and manifest.conversion.rest):
        raise UsageError(f"{path}: Triton could not load it, for {_NO_KERNELS}; legal are {_LEGAL}")
    folder = Path(repo) / name
    if folder.exists() and not (folder / CONFIG).is_file():
        raise OutputError(f"{folder}: holds something that is no Triton model, which is not written over")
    given, outputs = _tensors(artifact, signature)
    config = _config(name, entry, signature, given, outputs, instances=instances, max_delay_us=max_delay_us)
    with replacing(folder) as staged:
        version = staged / VERSION
        version.mkdir(parents=True)
        shutil.copyfile(path, version / f"model{path.suffix}")
        if sha256(version / f"model{path.suffix}") != manifest.file.sha256:
            raise CheckpointError(f"{path}: changed while it was copied; try again")
        (staged / CONFIG).write_text(config, encoding="utf-8")
        if signature.class_names:
            # A label is a line.
            labels = [" ".join(label.split()) for label in signature.class_names]
            (staged / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        (staged / README).write_text(_readme(path, signature, outputs), encoding="utf-8")
        write_json(staged / MANIFEST, manifest.to_dict())
    return folder


def _check_model(name: str, instances: int, max_delay_us: int) -> None:
    if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        raise ConfigError(
            f"the model's name is {name!r}; it must be of letters, digits, dots, hyphens and underscores (set it with --name)"
        )
    if not 1 <= instances <= 64:
        raise ConfigError(f"--instances is {instances}; it must be from 1 to 64")
    if not 0 <= max_delay_us <= 10_000_000:
        raise ConfigError(f"--max-delay-us is {max_delay_us}; it must be from 0 to 10000000 microseconds")


def _tensors(artifact: Artifact, signature: Signature) -> tuple[_Tensor, list[_Tensor]]:
    """The input and the outputs: of an ONNX file as the file has them, of a plan as its manifest says."""
    described = _tensor(signature.input_name, signature.dtype, signature.shape)
    given = [_tensor(output.name, output.dtype, output.shape) for output in signature.outputs]
    if artifact.format is not ONNX:
        return described, given
    graph = read_graph(artifact.path)
    inputs, outputs = (
        [_tensor(value["name"], value["dtype"], value["shape"][1:]) for value in graph[end]] for end in ("inputs", "outputs")
    )
    if inputs != [described] or given[0] not in outputs:
        raise CheckpointError(
            f"{artifact.path}: its manifest says {described.name} in and {given[0].name} out, its graph has other ends"
        )
    return described, outputs


def _tensor(name: str, dtype: str, shape: Sequence[int | str | None]) -> _Tensor:
    dims = tuple(size if isinstance(size, int) and size > 0 else -1 for size in shape)
    return _Tensor(name=name, type=_TYPES.get(dtype, dtype), dims=dims)


# Names are checked to be plain, so JSON's escapes do for the strings of protobuf's text format.
def _config(
    name: str, entry: Format, signature: Signature, given: _Tensor, outputs: Sequence[_Tensor], *, instances: int, max_delay_us: int
) -> str:
    # Triton reads a label by a score's place: in top_scores that is the rank, not the class.
    labelled = {output.name for output in signature.outputs if output.per_class} if signature.class_names else set()
    batches = sorted({1, signature.max_batch})
    parts = [
        f"name: {json.dumps(name)}\nplatform: {json.dumps(entry.platform)}\nmax_batch_size: {signature.max_batch}\n",
        f"input [\n{_entry(given)}\n]\n",
        "output [\n" + ",\n".join(_entry(output, labels=output.name in labelled) for output in outputs) + "\n]\n",
        f"instance_group [\n  {{\n    count: {instances}\n    kind: KIND_{'GPU' if entry is PLAN else 'CPU'}\n  }}\n]\n",
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {max_delay_us}\n}}\n",
        "model_warmup [\n" + ",\n".join(_warmup(given, signature.example(), batch) for batch in batches) + "\n]\n",
        f"version_policy {{\n  specific {{\n    versions: [ {VERSION} ]\n  }}\n}}\n",
    ]
    return "".join(parts)


def _entry(tensor: _Tensor, *, labels: bool = False) -> str:
    lines = [f"name: {json.dumps(tensor.name)}", f"data_type: {tensor.type}", f"dims: [ {', '.join(map(str, tensor.dims))} ]"]
    lines += [f"label_filename: {json.dumps(LABELS)}"] if labels else []
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"


def _warmup(given: _Tensor, shape: Sequence[int], batch: int) -> str:
    """A request of zeros: the first run of a model allocates, and nobody should wait for that."""
    dims = ", ".join(map(str, shape))
    return (
        f'  {{\n    name: "batch-{batch}"\n    batch_size: {batch}\n    inputs {{\n      key: {json.dumps(given.name)}\n'
        f"      value {{\n"
        f"        data_type: {given.type}\n        dims: [ {dims} ]\n        zero_data: true\n      }}\n    }}\n  }}"
    )


def _readme(artifact: Path, signature: Signature, outputs: Sequence[_Tensor]) -> str:
    shape = ", ".join("any" if size is None else str(size) for size in signature.shape)
    lines = [f"# {artifact.stem}", ""]
    lines += [f"Made from `{artifact.name}` by `growtas export`; `manifest.json` is the artifact's manifest.", ""]
    lines += [f"Input `{signature.input_name}`: {signature.datatype}, (batch, {shape}), batches up to {signature.max_batch}.", ""]
    record = signature.preprocess
    if signature.takes_pixels:
        size = "of any height and width" if signature.any_size else "of exactly this size"
        lines += [f"The normalisation is in the graph: clients send decoded pixels, channels last, 0 to 255, {size}."]
    elif record is None:
        lines += ["The pre-processing is NOT in the graph, and the manifest has no record of it."]
    else:
        lines += [
            "**The pre-processing is NOT in the graph: clients do it.**",
            "",
            *preprocessing_steps(record),
            "",
            "An artifact that takes pixels does the last two steps itself: `growtas export --preprocess`.",
        ]
    lines += ["", f"Output `{signature.output_name}`: FP32, (batch, {signature.classes}), logits."]
    for output in outputs:
        if output.name != signature.output_name:
            dims = ", ".join("any" if size < 0 else str(size) for size in output.dims)
            lines += ["", f"Output `{output.name}`: {output.type.removeprefix('TYPE_')}, (batch, {dims})."]
    if signature.class_names:
        scores = choices(output.name for output in signature.outputs if output.per_class)
        lines += [
            "",
            f"`{LABELS}` names the classes, a line each; ask for a classification of {scores} to get them with the scores.",
        ]
        if any(output.name == TOP_CLASSES for output in signature.outputs):
            lines += [f"`{TOP_CLASSES}` holds numbers of classes: class 0 is the first line of `{LABELS}`."]
    return "\n".join(lines) + "\n"
