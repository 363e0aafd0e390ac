"""``growtas inspect``: describes an artifact from its manifest and from the file itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import print_facts, print_json, print_text

if TYPE_CHECKING:
    from growtas.export.artifact import Manifest


def inspect(
    artifact: Annotated[Path, Argument(help="Artifact file (.onnx, .safetensors, .pt2, .xml or .plan).")],
    verify: Annotated[
        bool, Option("--verify", help="Also fail if the file's content contradicts its manifest or the rules of its format.")
    ] = False,
    json_: options.Json = False,
) -> None:
    """Show an artifact: manifest, graph, precision found in the file, costs, parity and latencies.

    Nothing is executed. Of a plan only the manifest is read. The command fails if the file's hash differs from its manifest's.

    Example: growtas inspect runs/first/export/micro-subnet.onnx
    """
    from growtas import api
    from growtas.errors import CheckpointError

    summary = api.inspect(artifact, thorough=verify)
    if json_:
        print_json(summary)
    else:
        print_facts(_facts(summary))
        for problem in summary["problems"]:
            print_text(problem)
    if summary["problems"] and (verify or summary["matches_manifest"] is False):
        raise CheckpointError(summary["problems"][0])


def _facts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from growtas.export.artifact import Manifest
    from growtas.units import format_bytes, format_count

    manifest = Manifest.from_dict(summary["manifest"] or {})
    matches = {None: "no manifest", True: "as in the manifest", False: "NOT as in the manifest"}[summary["matches_manifest"]]
    yield "file", f"{summary['path']}, {summary['kind']}, {format_bytes(summary['bytes'])}"
    yield "SHA-256", f"{summary['sha256']} ({matches})"
    if manifest.created:
        yield "made", f"{manifest.created} from run {manifest.source.run}, {manifest.source.checkpoint}"
    if manifest.subnet is not None:
        heads, ratios = (_compact(manifest.subnet.get(key)) for key in ("num_heads", "mlp_ratio"))
        yield "subnet", f"{manifest.space}: embed_dim {manifest.subnet.get('embed_dim')}, num_heads {heads}, mlp_ratio {ratios}"
    if summary["params"] is not None:
        macs = "" if summary["macs"] is None else f", MACs {format_count(summary['macs'])}"
        yield "costs", f"params {format_count(summary['params'])}{macs}"
    yield "precision", _precision(summary)
    for end, described in (("input", manifest.input), ("output", manifest.output)):
        for value in summary["graph"].get(f"{end}s") or ([described.model_dump()] if described else []):
            yield end, f"{value.get('name')} {value.get('dtype')} ({', '.join(map(str, value.get('shape', [])))})"
    yield from _images(summary)
    yield from _graph(summary["graph"])
    yield from _checks(manifest)
    plan = manifest.plan
    if plan is not None:
        targets = ", ".join(plan.targets)
        yield "plan", f"{plan.runtime} {plan.runtime_version} for {targets}, batches up to {plan.max_batch}"
        if plan.activation_memory_bytes is not None:
            yield "", f"activation memory {format_bytes(plan.activation_memory_bytes)}"
    for index, latency in enumerate(summary["latencies"]):
        yield "" if index else "latency", latency_text(latency)


def latency_text(latency: Mapping[str, Any]) -> str:
    """Formats a latency with its kind and conditions: ``4.21 ms modelled, p50, fp16, batch 1, on a10 (tensorrt)``."""
    from growtas.latency.estimate import kind_text
    from growtas.units import format_ms

    kind = latency["kind"] if latency["kind"] != "not stated" else "of a kind that is not stated"
    kind = kind_text(kind, latency.get("unsteady"))
    conditions = [str(latency[key]) for key in ("percentile", "precision") if latency.get(key)]
    conditions += [f"batch {latency['batch']}"] if latency.get("batch") else []
    where = f", on {latency['device']}" if latency.get("device") else ""
    runtime = f" ({latency['runtime']})" if latency.get("runtime") else ""
    return ", ".join([f"{format_ms(latency['ms'])} {kind}", *conditions]) + where + runtime


def _precision(summary: Mapping[str, Any]) -> str:
    from growtas.units import format_bytes

    stated, actual = summary["precision"]["stated"], summary["precision"]["found"]
    sizes = summary["graph"].get("bytes_by_type", {})
    weights = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in sizes.items())
    quantised = summary["graph"].get("quantised_to")
    notes = [f"weights and constants: {weights}"] if weights else []
    notes += [f"quantised to {', '.join(quantised)}"] if quantised else []
    actual_text = (
        f"{actual} in the file" if actual else "the file was not read" if summary["kind"] == "plan" else "unknown in the file"
    )
    return "; ".join([f"{stated or 'nothing'} in the manifest, {actual_text}", *notes])


def _images(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from growtas.export.pipeline.model_card import class_list

    record, names = summary["preprocess"], summary["class_names"]
    where = "" if summary["manifest"] else " (the file's metadata)"
    if isinstance(record, Mapping):
        yield "preprocess", ", ".join(f"{key} {value}" for key, value in record.items()) + where
    if isinstance(names, list):
        yield "classes", class_list(list(map(str, names))) + where


def _graph(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not graph.get("operators"):
        return
    version = f"opset {graph['opset']}, " if graph.get("opset") else ""
    layout = graph.get("layout_operators", {})
    counts = ", ".join(f"{name} {count}" for name, count in layout.items())
    yield "graph", f"{version}{graph['nodes']} nodes" + (f" ({counts})" if counts else "")
    yield "operators", ", ".join(f"{name} {count}" for name, count in graph["operators"].items())


def _checks(manifest: Manifest) -> Iterator[tuple[str, str]]:
    from growtas.units import format_accuracy

    parity, verified = manifest.parity, manifest.verification
    if parity is not None:
        error, agreement = _number(parity.relative_error, ".1e"), _number(parity.top1_agreement, ".1%")
        yield "parity", f"relative error {error}, top-1 agreement {agreement} on {parity.images}"
    if verified is not None:
        error, agreement = _number(verified.relative_error, ".1e"), _number(verified.top1_agreement, ".1%")
        text = f"relative error {error}, top-1 agreement {agreement}"
        if verified.accuracy is not None:
            accuracies = (verified.accuracy, verified.reference_accuracy)
            accuracy, reference = ("unknown" if x is None else format_accuracy(x, verified.count) for x in accuracies)
            text += f", accuracy {accuracy} ({verified.reference}: {reference})"
        yield "verified", f"{text} on {verified.images}"
    if manifest.executed is False:
        yield "not run", str(manifest.not_executed_because)


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def _compact(values: Any) -> str:
    """Formats equal values briefly (``[3, 3, 3]`` as ``3 x3``) and other values in full."""
    if not isinstance(values, list) or not values:
        return str(values)
    return f"{values[0]} x{len(values)}" if values.count(values[0]) == len(values) else " ".join(map(str, values))
