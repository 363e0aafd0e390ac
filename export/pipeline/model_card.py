"""The model card of an export: a README.md beside the artifacts, made only from their manifests."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.data.decode import DecodeRules
from growtas.errors import CheckpointError, OutputError
from growtas.export.artifact import Manifest, VerificationRecord, manifest_path, read_manifest
from growtas.export.formats import ONNX, artifact_files
from growtas.export.inspection import latencies
from growtas.files import read_bytes, replacing
from growtas.latency.estimate import kind_text
from growtas.units import format_accuracy, format_bytes, format_count, format_ms

CARD = "README.md"
# growtas' cards have this line after the front matter; a README.md without it is not overwritten.
_MARK = "<!-- made by growtas export -->"
_CLASSES = 10


def write_card(folder: str | Path, manifests: Sequence[Manifest], *, licence: str | None = None) -> Path | None:
    """Writes the model card for artifacts of one subnet.

    Args:
        folder: the artifacts' folder.
        manifests: the artifacts' manifests, in the order of the table; at least one.
        licence: licence of the weights and data.

    Returns:
        The card's path; None if the folder has a README.md that growtas did not write. That file is left unchanged.

    Raises:
        OutputError: the card can't be written.
    """
    path = Path(folder) / CARD
    try:
        if path.exists() and _MARK.encode() not in read_bytes(path, f"{path}: the model card", OutputError):
            return None
        with replacing(path) as temporary:
            temporary.write_text(card(manifests, licence=licence), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: the model card can't be written ({error.strerror or error})") from None
    return path


def same_network(folder: str | Path, manifests: Sequence[Manifest]) -> list[Manifest]:
    """Returns the manifests of a folder's other artifacts of the same network, by file name, so that the card lists them too.

    A file that does not match its manifest is left out.
    """
    new = {manifest.file.file for manifest in manifests}
    others = []
    for path in artifact_files(folder):
        if path.name in new or not manifest_path(path).is_file():
            continue
        with contextlib.suppress(CheckpointError, OSError):
            manifest = read_manifest(path)
            if manifest is not None and manifest.network == manifests[0].network:
                others.append(manifest)
    return others


def card(manifests: Sequence[Manifest], *, licence: str | None = None) -> str:
    """Returns the text of the card; see :func:`write_card`."""
    first = manifests[0]
    subnet = first.subnet or {}
    classes = first.output.shape[-1] if first.output else "?"
    front = ["---", "library_name: growtas", "pipeline_tag: image-classification", "tags: [vision-transformer]"]
    front += [f"license: {json.dumps(licence)}"] if licence else []
    rows = "\n".join(_row(manifest) for manifest in manifests)
    parts = [
        "\n".join([*front, "---", _MARK]),
        f"# {Path(first.file.file or '').stem}",
        f"A Vision Transformer for {classes} classes, extracted from the supernet of run `{first.source.run}` "
        f"(space {first.space}).",
        "| | |\n| --- | --- |\n"
        f"| subnet | embed_dim {subnet['embed_dim']}, num_heads {_list(subnet['num_heads'])}, "
        f"mlp_ratio {_list(subnet['mlp_ratio'])} |\n"
        f"| params | {format_count(first.params or 0)} |\n| MACs | {format_count(first.macs or 0)} |\n"
        f"| classes | {class_list(first.class_names)} |\n| licence of weights and data | {licence or 'not stated'} |",
        "## Images",
        _images(manifests),
        "## Files",
        "| file | precision | size | accuracy | accuracy of the source | top-1 agreement | relative error | run at export |\n"
        f"| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |\n{rows}",
        _checked(manifests),
        *_runtimes(manifests),
        "## Latencies",
        _latencies(first),
        "## Use",
        _use(manifests),
        "## Made by",
        ", ".join(f"{name} {version}" for name, version in first.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _row(manifest: Manifest) -> str:
    verified = manifest.verified or VerificationRecord()
    ran = "yes" if manifest.executed else f"no: {manifest.not_executed_because}"
    if manifest.compiled_from is not None:
        ran += f"; the numbers are of `{manifest.compiled_from.file}`, from which it was compiled"
    cells = [
        f"`{manifest.file.file}`",
        manifest.precision,
        format_bytes(manifest.file.total_bytes),
        _accuracy(verified.accuracy, verified.count),
        _accuracy(verified.reference_accuracy, verified.count),
        _percent(verified.top1_agreement),
        "not measured" if verified.relative_error is None else f"{verified.relative_error:.1e}",
        ran,
    ]
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _checked(manifests: Sequence[Manifest]) -> str:
    """Lists the images behind the numbers; precisions are verified on different numbers of images."""
    files: dict[str, list[str]] = {}
    for manifest in manifests:
        if (verified := manifest.verified) is not None:
            why_not = f"; they have no labels ({verified.unlabelled_because}), so accuracies are unknown"
            images = f"{verified.images}{'' if verified.labelled else why_not}"
            files.setdefault(images, []).append(f"`{manifest.file.file}`")
    if not files:
        return "Nothing was verified."
    lines = "\n".join(f"- {', '.join(names)}: {images}." for images, names in files.items())
    return f"Measured on:\n\n{lines}\n\nThe tolerances are in the manifests (`FILE.json`)."


def _images(manifests: Sequence[Manifest]) -> str:
    record = manifests[0].preprocess
    if not record:
        return "The run has no record of how its images were preprocessed."
    parts = ["An image is prepared in these steps:", "\n".join(preprocessing_steps(record))]
    for manifest in manifests:
        if manifest.input and manifest.input.takes_pixels:
            steps = "does all steps itself" if manifest.input.resize else "does the last two steps itself"
            parts.append(f"`{manifest.file.file}` takes uint8 pixels, channels last, and {steps}.")
    if any(manifest.kind == ONNX.kind for manifest in manifests):
        parts.append(
            "The metadata of every ONNX file holds this record (`preprocess`) and the class names (`class_names`) as JSON."
        )
    return "\n\n".join(parts)


def preprocessing_steps(record: Mapping[str, Any]) -> list[str]:
    """Returns the steps from an image file to an artifact's input as numbered lines; :mod:`growtas.data.preprocess` does them."""
    size, crop_pct = record["image_size"], record["crop_pct"]
    short = f"{math.floor(size / crop_pct)} pixels (image_size {size} / crop_pct {crop_pct:g}, rounded down)"
    return [
        f"1. Convert to {'grey' if record['in_chans'] == 1 else 'RGB'} ({DecodeRules.of(record).describe()}).",
        f"2. Resize the short side to {short}, the long side in proportion ({record['interpolation']}, antialiased, in 8 bits).",
        f"3. Crop the centre, {size} x {size} pixels.",
        f"4. Divide by 255, subtract the mean {record['mean']} and divide by the standard deviation {record['std']}, per channel.",
        "5. Move the channels first: (batch, channels, height, width), float32.",
    ]


def _runtimes(manifests: Sequence[Manifest]) -> list[str]:
    """A table with the oldest ONNX Runtime for each ONNX file; empty without ONNX files."""
    rows = []
    for manifest in manifests:
        graph = manifest.to_dict().get("onnx")
        if manifest.kind == ONNX.kind and isinstance(graph, Mapping):
            oldest = graph.get("oldest_onnxruntime") or "none was tried"
            rows.append(f"| `{manifest.file.file}` | {graph.get('opset')} | {graph.get('ir_version')} | {oldest} |")
    if not rows:
        return []
    return [
        "| file | ONNX opset | IR version | oldest ONNX Runtime tried with such files |\n| --- | ---: | ---: | --- |\n"
        + "\n".join(rows)
    ]


def _latencies(manifest: Manifest) -> str:
    rows = []
    for latency in latencies(manifest):
        batch = latency.get("batch") and f"batch {latency['batch']}"
        conditions = ", ".join(
            str(condition)
            for condition in (latency.get("percentile"), batch, latency.get("precision"), latency.get("runtime"))
            if condition
        )
        device = latency.get("device") or (manifest.search or {}).get("device") or "?"
        kind = kind_text(latency["kind"], latency.get("unsteady"))
        rows.append(f"| {device} | {format_ms(latency['ms'])} | **{kind}** | {conditions} |")
    if not rows:
        return "The search had no latency limit. `growtas bench` measures latencies on your machine."
    return (
        "The search used these latencies. Modelled latencies come from datasheets and were not measured.\n\n"
        "| device | latency | kind | conditions |\n| --- | ---: | --- | --- |\n" + "\n".join(rows)
    )


def _use(manifests: Sequence[Manifest]) -> str:
    parts = ["`growtas predict IMAGE --model FILE` classifies an image with one of the files; `growtas serve FILE` serves it."]
    module = next((manifest.module.file for manifest in manifests if manifest.module), None)
    if module is not None:
        parts.append(
            f"`{module}` is the network in plain PyTorch. It needs neither growtas nor timm:\n\n"
            f"```python\nfrom {Path(module).stem} import load\n\nmodel = load()\n```"
        )
    for manifest in manifests:
        images, logits = manifest.input, manifest.output
        if manifest.kind == "onnx" and images and logits and images.dtype == "float32":
            parts.append(
                "```python\nimport numpy, onnxruntime\n\n"
                f'session = onnxruntime.InferenceSession("{manifest.file.file}", providers=["CPUExecutionProvider"])\n'
                f"images = numpy.zeros((1, {', '.join(map(str, images.shape[1:]))}), numpy.float32)  # normalised as above\n"
                f'logits = session.run(["{logits.name}"], {{"{images.name}": images}})[0]\n```'
            )
            break
    return "\n\n".join(parts)


def class_list(names: Sequence[str] | None) -> str:
    """Returns the first class names, and how many more there are."""
    if not names:
        return "no names"
    more = f" and {len(names) - _CLASSES} more" if len(names) > _CLASSES else ""
    return (", ".join(names[:_CLASSES]) + more).replace("|", "/")


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _accuracy(value: float | None, count: int | None) -> str:
    return "not measured" if value is None else format_accuracy(value, count)


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.2f} %"
