"""A Triton model repository from an artifact: ``NAME/config.pbtxt``, ``NAME/1/model.onnx`` or ``model.plan``, labels and a README.

Everything in the configuration is written out, so that Triton has nothing to guess or to complete. The field names are those of
Triton's ``model_config.proto``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, ConfigError, OutputError, UsageError, choices
from growtas.export.serving.signature import Signature, read_signature
from growtas.files import replacing, sha256, write_json

PLATFORMS = {".onnx": "onnxruntime_onnx", ".plan": "tensorrt_plan"}
KINDS = ("cpu", "gpu")
LABELS, CONFIG, README, MANIFEST = "labels.txt", "config.pbtxt", "README.md", "manifest.json"
VERSION = "1"
_NO_KERNELS = "ONNX Runtime's CPU provider has no kernels for bf16"
_LEGAL = "fp32, fp16, int8 or fp8, or a plan that TensorRT builds where a GPU is"
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    name: str
    type: str
    dims: tuple[int, ...]


def check_triton(*, name: str, instances: int, max_delay_us: int, precision: str | None, plan_runtime: str | None) -> None:
    """Find before an export what :func:`write_triton` would refuse after it.

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


def write_triton(
    repo: str | Path,
    artifact: str | Path,
    manifest: Mapping[str, Any],
    *,
    name: str | None = None,
    instances: int = 1,
    kind: str | None = None,
    max_delay_us: int = 500,
    preferred_batches: Sequence[int] = (),
) -> Path:
    """Write one model of a Triton model repository; the folder appears whole or not at all, and replaces one written before.

    Args:
        repo: the repository, made if need be.
        artifact: an ``.onnx`` file, or a ``.plan`` of TensorRT.
        manifest: the artifact's; decides inputs, outputs, labels and the largest batch.
        name: the model's; by default the artifact's without suffix.
        instances: how many of the model run beside each other on each device.
        kind: ``cpu`` or ``gpu``; by default a plan's is gpu, and ONNX's is cpu.
        max_delay_us: how long a request may wait for others to share its batch.
        preferred_batches: batch sizes that are run at once; Triton advises none but for plans with several profiles.

    Returns:
        The model's folder, ``repo/name``.

    Raises:
        CheckpointError: the artifact is not what the manifest describes.
        ConfigError: an option is out of range.
        OutputError: the place can't be written, or holds something else.
        UsageError: an artifact that Triton's backends don't load, a plan of TensorRT-RTX or an ONNX file in bf16 among them.
    """
    repo, artifact = Path(repo), Path(artifact)
    if artifact.suffix not in PLATFORMS:
        raise UsageError(f"{artifact}: Triton takes no such artifact from here; legal are files that end in {choices(PLATFORMS)}")
    runtime = (manifest.get("plan") or {}).get("runtime")
    if artifact.suffix == ".plan" and runtime != "tensorrt":
        raise UsageError(
            f"{artifact}: Triton's TensorRT backend loads plans of tensorrt alone, this one is of {runtime}; "
            "serve the ONNX file instead"
        )
    if not artifact.is_file() or manifest.get("artifact", {}).get("sha256") != sha256(artifact):
        raise CheckpointError(f"{artifact}: not the file that its manifest describes; export it again")
    signature = read_signature(manifest, artifact)
    name = artifact.stem if name is None else name
    kind = ("gpu" if artifact.suffix == ".plan" else "cpu") if kind is None else kind
    _check(name, instances, kind, max_delay_us, preferred_batches, signature, artifact)
    if kind == "cpu" and "bf16" in (manifest.get("precision"), (manifest.get("conversion") or {}).get("rest")):
        raise UsageError(f"{artifact}: Triton could not load it, for {_NO_KERNELS}; legal are {_LEGAL}")
    folder = repo / name
    if folder.exists() and not (folder / CONFIG).is_file():
        raise OutputError(f"{folder}: holds something that is no Triton model, which is not written over")
    inputs, outputs = _tensors(artifact, signature)
    config = _config(
        name,
        PLATFORMS[artifact.suffix],
        signature,
        inputs,
        outputs,
        instances=f"count: {instances}\n    kind: KIND_{kind.upper()}",
        max_delay_us=max_delay_us,
        preferred_batches=tuple(sorted(set(preferred_batches))),
    )
    with replacing(folder) as staged:
        version = staged / VERSION
        version.mkdir(parents=True)
        shutil.copyfile(artifact, version / f"model{artifact.suffix}")
        if sha256(version / f"model{artifact.suffix}") != manifest["artifact"]["sha256"]:
            raise CheckpointError(f"{artifact}: changed while it was copied; try again")
        (staged / CONFIG).write_text(config, encoding="utf-8")
        if signature.class_names:
            # A label is a line.
            labels = [" ".join(label.split()) for label in signature.class_names]
            (staged / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        (staged / README).write_text(_readme(name, artifact, signature, outputs), encoding="utf-8")
        write_json(staged / MANIFEST, dict(manifest))
    return folder


def _check(
    name: str,
    instances: int,
    kind: str,
    max_delay_us: int,
    preferred_batches: Sequence[int],
    signature: Signature,
    artifact: Path,
) -> None:
    _check_model(name, instances, max_delay_us)
    if kind not in KINDS:
        raise ConfigError(f"the kind of the instances is {kind!r}; legal are {choices(KINDS)}")
    if kind == "cpu" and artifact.suffix == ".plan":
        raise ConfigError("the kind of the instances is 'cpu', and a TensorRT plan runs on a GPU alone; legal is gpu")
    for batch in preferred_batches:
        if not 1 <= batch <= signature.max_batch:
            raise ConfigError(f"a preferred batch is {batch}; the artifact was exported for 1 to {signature.max_batch}")


def _check_model(name: str, instances: int, max_delay_us: int) -> None:
    if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        raise ConfigError(
            f"the model's name is {name!r}; it must be of letters, digits, dots, hyphens and underscores (set it with --name)"
        )
    if not 1 <= instances <= 64:
        raise ConfigError(f"--instances is {instances}; it must be from 1 to 64")
    if not 0 <= max_delay_us <= 10_000_000:
        raise ConfigError(f"--max-delay-us is {max_delay_us}; it must be from 0 to 10000000 microseconds")


def _tensors(artifact: Path, signature: Signature) -> tuple[_Tensor, list[_Tensor]]:
    """The input and the outputs: of an ONNX file as the file has them, of a plan as its manifest says.

    Raises:
        CheckpointError: the file and the manifest contradict each other.
    """
    said = _Tensor(
        name=signature.input_name,
        type=_TYPES[signature.dtype],
        dims=tuple(-1 if size is None else size for size in signature.shape),
    )
    given = [_Tensor(name=output.name, type=_TYPES[output.dtype], dims=output.shape) for output in signature.outputs]
    if artifact.suffix != ".onnx":
        return said, given
    import onnx

    try:
        graph = onnx.load(artifact, load_external_data=False).graph
    # protobuf's error, and whatever else a broken file raises.
    except Exception as error:
        raise CheckpointError(f"{artifact}: not an ONNX file that can be read ({' '.join(str(error).split())[:100]})") from None
    inputs, outputs = ([_tensor(value) for value in values] for values in (graph.input, graph.output))
    if inputs != [said] or given[0] not in outputs:
        raise CheckpointError(f"{artifact}: its manifest says {said.name} in and {given[0].name} out, its graph has other ends")
    return said, outputs


def _tensor(value: Any) -> _Tensor:
    import onnx

    tensor = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    dims = tuple(each.dim_value if each.HasField("dim_value") else -1 for each in tensor.shape.dim)
    return _Tensor(name=value.name, type=_TYPES.get(dtype, dtype), dims=dims[1:])


def _config(
    name: str,
    platform: str,
    signature: Signature,
    given: _Tensor,
    outputs: Sequence[_Tensor],
    *,
    instances: str,
    max_delay_us: int,
    preferred_batches: Sequence[int],
) -> str:
    preferred = f"  preferred_batch_size: [ {', '.join(map(str, preferred_batches))} ]\n" if preferred_batches else ""
    parts = [
        f"name: {_text(name)}\nplatform: {_text(platform)}\nmax_batch_size: {signature.max_batch}\n",
        _block("input", [(given, None)]),
        _block(
            "output", [(each, LABELS if each.name == signature.output_name and signature.class_names else None) for each in outputs]
        ),
        f"instance_group [\n  {{\n    {instances}\n  }}\n]\n",
        f"dynamic_batching {{\n{preferred}  max_queue_delay_microseconds: {max_delay_us}\n}}\n",
        "model_warmup [\n" + ",\n".join(_warmup(given, signature, batch) for batch in sorted({1, signature.max_batch})) + "\n]\n",
        f"version_policy {{\n  specific {{\n    versions: [ {VERSION} ]\n  }}\n}}\n",
    ]
    return "".join(parts)


def _block(what: str, tensors: Sequence[tuple[_Tensor, str | None]]) -> str:
    entries = []
    for tensor, labels in tensors:
        lines = [f"name: {_text(tensor.name)}", f"data_type: {tensor.type}", f"dims: [ {', '.join(map(str, tensor.dims))} ]"]
        if labels:
            lines.append(f"label_filename: {_text(labels)}")
        entries.append("  {\n" + "".join(f"    {line}\n" for line in lines) + "  }")
    return f"{what} [\n" + ",\n".join(entries) + "\n]\n"


def _warmup(given: _Tensor, signature: Signature, batch: int) -> str:
    """A request of zeros: the first run of a model allocates, and nobody should wait for that."""
    dims = ", ".join(map(str, signature.example()))
    return (
        f'  {{\n    name: "batch-{batch}"\n    batch_size: {batch}\n    inputs {{\n      key: {_text(given.name)}\n      value {{\n'
        f"        data_type: {given.type}\n        dims: [ {dims} ]\n        zero_data: true\n      }}\n    }}\n  }}"
    )


def _text(value: str) -> str:
    """A string of protobuf's text format; names are checked to be plain, so JSON's escapes do."""
    return json.dumps(value)


def _readme(name: str, artifact: Path, signature: Signature, outputs: Sequence[_Tensor]) -> str:
    shape = ", ".join("any" if size is None else str(size) for size in signature.shape)
    lines = [f"# {name}", "", f"Made from `{artifact.name}` by `growtas export`; `manifest.json` is the artifact's manifest.", ""]
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
            f"1. Convert to {'grey' if record['in_chans'] == 1 else 'RGB'}; resize the short side to "
            f"{record['image_size']} / {record['crop_pct']} pixels ({record['interpolation']}), cut out the middle "
            f"{record['image_size']} x {record['image_size']}.",
            f"2. Divide by 255, subtract the mean {record['mean']}, divide by {record['std']}, channel by channel.",
            "3. Put the channels first.",
            "",
            "An artifact that takes pixels does steps 2 and 3 itself: `growtas export --preprocess`.",
        ]
    lines += ["", f"Output `{signature.output_name}`: FP32, (batch, {signature.classes}), logits."]
    for output in outputs:
        if output.name != signature.output_name:
            dims = ", ".join("any" if size < 0 else str(size) for size in output.dims)
            lines += ["", f"Output `{output.name}`: {output.type.removeprefix('TYPE_')}, (batch, {dims})."]
    if signature.class_names:
        lines += [f"`{LABELS}` names the classes; ask for a classification of {signature.output_name} to get them."]
    return "\n".join(lines) + "\n"
