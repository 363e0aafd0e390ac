"""Makes a Triton model repository from an artifact: ``NAME/config.pbtxt``, ``NAME/1/model.onnx`` or ``model.plan``, labels, README.

The configuration states every setting, so that Triton does not have to guess or complete anything. Its field names are those of
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
_LEGAL = "fp32, fp16, int8 or fp8, or a plan that TensorRT builds on a machine with a GPU"
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    name: str
    type: str
    dims: tuple[int, ...]


def check_triton(*, name: str, instances: int, max_delay_us: int, precision: str | None, plan_runtime: str | None) -> None:
    """Checks before an export that :func:`write_triton` will accept its result.

    Args:
        name: name of the model.
        instances, max_delay_us: as for :func:`write_triton`.
        precision: requested precision; None where none was requested.
        plan_runtime: runtime of the plan, if one will be built. Unless it is ``tensorrt``, Triton will serve the ONNX file.

    Raises:
        ConfigError: an option is out of range, or Triton could not load the result.
    """
    _check_model(name, instances, max_delay_us)
    if precision == "bf16" and plan_runtime != "tensorrt":
        raise ConfigError(
            f"--precision bf16 does not go with --triton: an ONNX file would be served, and {_NO_KERNELS}; legal are {_LEGAL}"
        )


def write_triton(repo: str | Path, artifact: Artifact, *, instances: int = 1, max_delay_us: int = 500) -> Path:
    """Writes one model of a Triton model repository. The folder appears complete or not at all, and replaces an earlier one.

    Args:
        repo: folder of the repository; made if it does not exist.
        artifact: an ``.onnx`` file or a TensorRT ``.plan``; its manifest gives inputs, outputs, labels and the largest batch.
        instances: number of copies of the model that run in parallel on each device: on GPUs for a plan, on CPUs for an ONNX file.
        max_delay_us: longest time in microseconds that a request waits for other requests to share its batch.

    Returns:
        The model's folder, ``repo/NAME`` for an artifact ``NAME.onnx``.

    Raises:
        CheckpointError: the artifact does not match its manifest.
        ConfigError: an option is out of range.
        OutputError: the folder can't be written, or holds something other than a Triton model.
        UsageError: Triton's backends can't load the artifact, such as a TensorRT-RTX plan or an ONNX file in bf16.
    """
    path, manifest = artifact.path, artifact.manifest
    entry = artifact.format
    if not entry.triton:
        legal = choices(entry.suffix for entry in FORMATS if entry.triton)
        raise UsageError(f"{path}: Triton can't load such an artifact; legal are files that end in {legal}")
    runtime = manifest.plan and manifest.plan.runtime
    if entry is PLAN and runtime != "tensorrt":
        raise UsageError(
            f"{path}: Triton's TensorRT backend loads only plans of tensorrt, and this plan is of {runtime}; "
            "serve the ONNX file instead"
        )
    check_hash(path, manifest)
    signature, name = read_signature(artifact), path.stem
    _check_model(name, instances, max_delay_us)
    if entry is ONNX and "bf16" in (manifest.precision, manifest.conversion and manifest.conversion.rest):
        raise UsageError(f"{path}: Triton can't load the file, because {_NO_KERNELS}; legal are {_LEGAL}")
    folder = Path(repo) / name
    if folder.exists() and not (folder / CONFIG).is_file():
        raise OutputError(f"{folder}: the folder is not a Triton model, so it is not overwritten")
    images, outputs = _tensors(artifact, signature)
    config = _config(name, entry, signature, images, outputs, instances=instances, max_delay_us=max_delay_us)
    with replacing(folder) as staged:
        version = staged / VERSION
        version.mkdir(parents=True)
        shutil.copyfile(path, version / f"model{path.suffix}")
        if sha256(version / f"model{path.suffix}") != manifest.file.sha256:
            raise CheckpointError(f"{path}: changed while it was copied; try again")
        (staged / CONFIG).write_text(config, encoding="utf-8")
        if signature.class_names:
            # Triton reads one label per line.
            labels = [" ".join(label.split()) for label in signature.class_names]
            (staged / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        (staged / README).write_text(_readme(path, signature, outputs), encoding="utf-8")
        write_json(staged / MANIFEST, manifest.to_dict())
    return folder


def _check_model(name: str, instances: int, max_delay_us: int) -> None:
    if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        raise ConfigError(
            f"the model's name is {name!r}; it may contain only letters, digits, dots, hyphens and underscores (set it with --name)"
        )
    if not 1 <= instances <= 64:
        raise ConfigError(f"--instances is {instances}; it must be from 1 to 64")
    if not 0 <= max_delay_us <= 10_000_000:
        raise ConfigError(f"--max-delay-us is {max_delay_us}; it must be from 0 to 10000000 microseconds")


def _tensors(artifact: Artifact, signature: Signature) -> tuple[_Tensor, list[_Tensor]]:
    """The input and the outputs: from the graph of an ONNX file, or from the manifest of a plan."""
    described = _tensor(signature.input_name, signature.dtype, signature.shape)
    described_outputs = [_tensor(output.name, output.dtype, output.shape) for output in signature.outputs]
    if artifact.format is not ONNX:
        return described, described_outputs
    graph = read_graph(artifact.path)
    inputs, outputs = (
        [_tensor(value["name"], value["dtype"], value["shape"][1:]) for value in graph[end]] for end in ("inputs", "outputs")
    )
    if inputs != [described] or described_outputs[0] not in outputs:
        raise CheckpointError(
            f"{artifact.path}: its manifest names the input {described.name} and the output {described_outputs[0].name}, "
            "but its graph has other ones"
        )
    return described, outputs


def _tensor(name: str, dtype: str, shape: Sequence[int | str | None]) -> _Tensor:
    dims = tuple(size if isinstance(size, int) and size > 0 else -1 for size in shape)
    return _Tensor(name=name, type=_TYPES.get(dtype, dtype), dims=dims)


# _check_model allows only plain names, so JSON's escapes are valid in protobuf's text format.
def _config(
    name: str,
    entry: Format,
    signature: Signature,
    images: _Tensor,
    outputs: Sequence[_Tensor],
    *,
    instances: int,
    max_delay_us: int,
) -> str:
    # Triton finds a score's label by the score's position. In top_scores that is the rank and not the class, so it gets no labels.
    labelled = {output.name for output in signature.outputs if output.per_class} if signature.class_names else set()
    batches = sorted({1, signature.max_batch})
    parts = [
        f"name: {json.dumps(name)}\nplatform: {json.dumps(entry.platform)}\nmax_batch_size: {signature.max_batch}\n",
        f"input [\n{_entry(images)}\n]\n",
        "output [\n" + ",\n".join(_entry(output, labels=output.name in labelled) for output in outputs) + "\n]\n",
        f"instance_group [\n  {{\n    count: {instances}\n    kind: KIND_{'GPU' if entry is PLAN else 'CPU'}\n  }}\n]\n",
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {max_delay_us}\n}}\n",
        "model_warmup [\n" + ",\n".join(_warmup(images, signature.example(), batch) for batch in batches) + "\n]\n",
        f"version_policy {{\n  specific {{\n    versions: [ {VERSION} ]\n  }}\n}}\n",
    ]
    return "".join(parts)


def _entry(tensor: _Tensor, *, labels: bool = False) -> str:
    lines = [f"name: {json.dumps(tensor.name)}", f"data_type: {tensor.type}", f"dims: [ {', '.join(map(str, tensor.dims))} ]"]
    lines += [f"label_filename: {json.dumps(LABELS)}"] if labels else []
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"


def _warmup(images: _Tensor, shape: Sequence[int], batch: int) -> str:
    """A request of zeros for the warm-up, so that no client waits for the allocations of the first run."""
    dims = ", ".join(map(str, shape))
    return (
        f'  {{\n    name: "batch-{batch}"\n    batch_size: {batch}\n    inputs {{\n      key: {json.dumps(images.name)}\n'
        f"      value {{\n"
        f"        data_type: {images.type}\n        dims: [ {dims} ]\n        zero_data: true\n      }}\n    }}\n  }}"
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
        lines += ["The preprocessing is NOT in the graph, and the manifest has no record of it."]
    else:
        lines += [
            "**The preprocessing is NOT in the graph: clients must do it.**",
            "",
            *preprocessing_steps(record),
            "",
            "`growtas export --preprocess` makes an artifact that takes pixels and does the last two steps itself.",
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
            f"`{LABELS}` names the classes, one per line. Request a classification of {scores} to get names with the scores.",
        ]
        if any(output.name == TOP_CLASSES for output in signature.outputs):
            lines += [f"`{TOP_CLASSES}` holds class numbers. Class 0 is the first line of `{LABELS}`."]
    return "\n".join(lines) + "\n"
