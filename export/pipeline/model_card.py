"""The model card of an export: README.md beside the artifacts, from their manifests alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, OutputError
from growtas.export.artifact import KINDS, network_of, read_manifest
from growtas.export.inspection import latencies
from growtas.export.side_files import recorded_bytes
from growtas.files import replacing
from growtas.units import format_bytes, format_count, format_ms

CARD = "README.md"
# What a card of ours begins with, behind the front matter: another README is not written over.
_MARK = "<!-- made by growtas export -->"
_CLASSES = 10


def write_card(folder: str | Path, manifests: Sequence[Mapping[str, Any]], *, licence: str | None = None) -> Path | None:
    """Write the card of artifacts of one subnet.

    Args:
        folder: where the artifacts lie.
        manifests: theirs, in the order of the table; not empty.
        licence: of weights and data, as the user names it.

    Returns:
        The card; None where there is a README.md that growtas did not write, which stays.

    Raises:
        OutputError: it can't be written.
    """
    path = Path(folder) / CARD
    try:
        if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
            return None
        with replacing(path) as temporary:
            temporary.write_text(card(manifests, licence=licence), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: the model card can't be written ({error.strerror or error})") from None
    return path


def same_network(folder: str | Path, manifests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Manifests of a folder's other artifacts that hold the network of ``manifests``, by file name: the card goes on naming them.

    A file that is not the one its manifest describes is left out.
    """
    fresh = {manifest["artifact"]["file"] for manifest in manifests}
    found = []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix not in KINDS or path.name in fresh or path.name.startswith("."):
            continue
        try:
            manifest = read_manifest(path)
        except (CheckpointError, OSError):
            continue
        if manifest is not None and network_of(manifest) == network_of(manifests[0]):
            found.append(manifest)
    return found


def card(manifests: Sequence[Mapping[str, Any]], *, licence: str | None = None) -> str:
    """The card's text; see :func:`write_card`."""
    first = manifests[0]
    subnet, preprocess = first["subnet"], first.get("preprocess") or {}
    front = ["---", "library_name: growtas", "pipeline_tag: image-classification", "tags: [vision-transformer]"]
    front += [f"license: {json.dumps(licence)}"] if licence else []
    rows = "\n".join(_row(manifest) for manifest in manifests)
    parts = [
        "\n".join([*front, "---", _MARK]),
        f"# {Path(first['artifact']['file']).stem}",
        f"A Vision Transformer for {first['output']['shape'][-1]} classes, cut out of the supernet of run "
        f"`{first['source']['run']}` (space {first['space']}).",
        "| | |\n| --- | --- |\n"
        f"| subnet | embed_dim {subnet['embed_dim']}, num_heads {_list(subnet['num_heads'])}, "
        f"mlp_ratio {_list(subnet['mlp_ratio'])} |\n"
        f"| params | {format_count(first['params'])} |\n| MACs | {format_count(first['macs'])} |\n"
        f"| images | {preprocess.get('image_size', '?')} px, mean {preprocess.get('mean')}, std {preprocess.get('std')}, "
        f"{preprocess.get('interpolation', '?')} |\n"
        f"| classes | {_classes(first.get('class_names'))} |\n| licence of weights and data | {licence or 'not stated'} |",
        "## Files",
        "| file | precision | size | accuracy here | of the source | top-1 agreement | rel. error | run when exported |\n"
        f"| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |\n{rows}",
        _checked(manifests),
        "## Latencies",
        _latencies(first),
        "## Use",
        _use(manifests),
        "## Made by",
        ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def _row(manifest: Mapping[str, Any]) -> str:
    found, stands_for = _verification(manifest), _compiled_from(manifest)
    ran = "yes" if manifest.get("executed") else f"no: {manifest.get('not_executed_because')}"
    if stands_for is not None:
        ran += f"; the numbers are those of `{stands_for['file']}`, which it was compiled from"
    cells = [
        f"`{manifest['artifact']['file']}`",
        manifest["precision"],
        format_bytes(recorded_bytes(manifest)),
        _percent(found.get("accuracy")),
        _percent(found.get("reference_accuracy")),
        _percent(found.get("top1_agreement")),
        "not measured" if found.get("relative_error") is None else f"{found['relative_error']:.1e}",
        ran,
    ]
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _compiled_from(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The verified file that a plan was compiled from, where its numbers stand for those of a plan that was not run."""
    source: Mapping[str, Any] = (manifest.get("plan") or {}).get("compiled_from") or {}
    return None if manifest.get("verification") or not source.get("verification") else source


def _verification(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The numbers of a row; empty where there are none."""
    return manifest.get("verification") or (_compiled_from(manifest) or {}).get("verification") or {}


def _checked(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Which images the numbers are from: precisions are verified on different numbers of them."""
    files: dict[str, list[str]] = {}
    for manifest in manifests:
        found = _verification(manifest)
        if found:
            labels = (
                "" if found["labelled"] else f"; they have no labels ({found['unlabelled_because']}), so accuracies are unknown"
            )
            files.setdefault(f"{found['images']}{labels}", []).append(f"`{manifest['artifact']['file']}`")
    if not files:
        return "Nothing was verified."
    lines = [f"- {', '.join(names)}: {images}." for images, names in files.items()]
    said = "\n".join(["Measured on:", "", *lines])
    return f"{said}\n\nThe tolerances are in the manifests (`FILE.json`)."


def _latencies(manifest: Mapping[str, Any]) -> str:
    rows = []
    for each in latencies(manifest):
        conditions = [
            str(each.get("percentile") or ""),
            f"batch {each['batch']}" if each.get("batch") else "",
        ]
        conditions += [str(each.get(key)) for key in ("precision", "runtime") if each.get(key)]
        device = each.get("device") or (manifest.get("search") or {}).get("device") or "?"
        rows.append(f"| {device} | {format_ms(each['ms'])} | **{each['kind']}** | {', '.join(filter(None, conditions))} |")
    if not rows:
        return "The search had no latency limit. `growtas bench` measures on the machine at hand."
    return (
        "What the search went by; modelled numbers come from datasheets and were not measured.\n\n"
        "| device | latency | kind | conditions |\n| --- | ---: | --- | --- |\n" + "\n".join(rows)
    )


def _use(manifests: Sequence[Mapping[str, Any]]) -> str:
    parts = ["`growtas predict IMAGE --model FILE` answers from a file and its manifest; `growtas serve FILE` serves it."]
    module = next((each["module"]["file"] for each in manifests if each.get("module")), None)
    if module is not None:
        parts.append(
            f"`{module}` is the network in plain PyTorch, which needs neither growtas nor timm:\n\n"
            f"```python\nfrom {Path(module).stem} import load\n\nmodel = load()\n```"
        )
    onnx = next((each for each in manifests if each["kind"] == "onnx" and each["input"]["dtype"] == "float32"), None)
    if onnx is not None:
        _, *shape = onnx["input"]["shape"]
        parts.append(
            "```python\nimport numpy, onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{onnx["artifact"]["file"]}", providers=["CPUExecutionProvider"])\n'
            f"images = numpy.zeros((1, {', '.join(map(str, shape))}), numpy.float32)  # normalised as above\n"
            f'logits = session.run(["{onnx["output"]["name"]}"], {{"{onnx["input"]["name"]}": images}})[0]\n```'
        )
    return "\n\n".join(parts)


def _classes(names: Sequence[str] | None) -> str:
    if not names:
        return "no names"
    more = f" and {len(names) - _CLASSES} more" if len(names) > _CLASSES else ""
    return (", ".join(names[:_CLASSES]) + more).replace("|", "/")


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.2f} %"
