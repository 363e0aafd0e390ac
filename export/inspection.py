"""Inspects an artifact: its manifest, the content of the file, and the contradictions between the two."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError
from growtas.export.artifact import Manifest, check_hash, check_side_files, read_manifest
from growtas.export.formats import ONNX, PROGRAM, format_of, side_files
from growtas.export.graph.contents import read_graph
from growtas.files import MAX_WEIGHTS_BYTES, read_bytes, sha256

_LATENCY_KINDS = ("measured", "modelled")
_SAME_LATENCY = ("device", "ms", "kind", "percentile", "batch", "precision", "runtime")


def inspect(path: str | os.PathLike[str], *, thorough: bool = False) -> dict[str, Any]:
    """Describes an artifact. The file is read and never run; a plan is not parsed.

    Args:
        path: the artifact.
        thorough: also check the rules of the format: ONNX's checker, and that loading a program can't run foreign code.

    Returns:
        ``path``, ``kind``, ``bytes`` (with side files), ``sha256``, ``matches_manifest`` (None without a manifest), ``problems``
        (one sentence each; a wrong hash comes first), ``precision`` (``stated`` in the manifest, ``found`` in the file),
        ``params``, ``macs``, ``preprocess``, ``class_names`` (without a manifest, these two come from the file's metadata),
        ``latencies`` (each with its ``kind``), ``parity``, ``verification``, ``graph`` and ``manifest``.

    Raises:
        CheckpointError: the file is absent or damaged, or its manifest can't be read.
        UsageError: the file's suffix is not that of an artifact.
    """
    path = Path(path)
    stored = read_manifest(path, verify=False)
    kind, graph = format_of(path).kind, read_graph(path)
    manifest, metadata = stored or Manifest(), graph.get("described") or {}
    digest = sha256(path)
    mismatch = _problem(lambda: check_hash(path, stored, digest=digest) if stored else check_side_files(path))
    broken_rule = _rule_problem(path) if thorough else None
    problems = [problem for problem in (mismatch, *_contradictions(path, manifest, graph), broken_rule) if problem]
    record = manifest.to_dict()
    return {
        "path": str(path),
        "kind": kind,
        "bytes": sum(file.stat().st_size for file in (path, *side_files(path)) if file.is_file()),
        "sha256": digest,
        "matches_manifest": None if stored is None else mismatch is None,
        "problems": problems,
        "precision": {"stated": manifest.precision, "found": graph.get("precision")},
        "params": graph.get("params") if manifest.params is None else manifest.params,
        "macs": manifest.macs,
        "preprocess": record.get("preprocess") or metadata.get("preprocess"),
        "class_names": record.get("class_names") or metadata.get("class_names"),
        "latencies": latencies(manifest),
        "parity": record.get("parity"),
        "verification": record.get("verification"),
        "graph": graph,
        "manifest": stored and record,
    }


def latencies(manifest: Manifest) -> list[dict[str, Any]]:
    """Every latency in a manifest, with its recorded ``kind``; a latency without a kind is never called measured."""
    search = manifest.search or {}
    listed = search.get("latencies")
    entries: list[Any] = [search.get("latency")]
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, Mapping):
            # A device's entry holds the predicted latency and, if the device was available, the measured one.
            both = [latency for latency in (entry.get("measured"), entry.get("predicted")) if isinstance(latency, Mapping)]
            entries += both or [entry]
    unique: list[dict[str, Any]] = []
    for entry in entries:
        if isinstance(entry, Mapping) and isinstance(entry.get("ms"), int | float):
            kind = entry.get("kind")
            latency = {**entry, "kind": kind if kind in _LATENCY_KINDS else "not stated"}
            # A manifest holds the first device's latency twice, once with more details about its origin.
            if all(any(other.get(key) != latency.get(key) for key in _SAME_LATENCY) for other in unique):
                unique.append(latency)
    return unique


def _contradictions(path: Path, manifest: Manifest, graph: Mapping[str, Any]) -> list[str]:
    """Contradictions between a manifest and its file: precision, parameters, metadata, input and output."""
    problems = []
    precision, params = graph.get("precision"), graph.get("params")
    if manifest.precision and precision and manifest.precision != precision:
        problems.append(f"{path}: the manifest says {manifest.precision}, and the file's weights are {precision}")
    if params is not None and manifest.params not in (None, params):
        problems.append(f"{path}: the manifest says {manifest.params} parameters, and the file holds {params}")
    record, metadata = manifest.to_dict(), graph.get("described", {})
    for key, what in (("preprocess", "preprocessing"), ("class_names", "class names")):
        if record.get(key) and metadata.get(key) not in (None, record[key]):
            problems.append(f"{path}: the {what} in the manifest and in the file's metadata differ")
    for end, described in (("input", manifest.input), ("output", manifest.output)):
        values = graph.get(f"{end}s")
        if not values or described is None:
            continue
        name, dtype, shape = (values[0][key] for key in ("name", "dtype", "shape"))
        if described.name not in (None, name) or described.dtype not in (None, dtype):
            stated = f"{described.name} ({described.dtype})"
            problems.append(f"{path}: the manifest's {end} is {stated}, and the file's is {name} ({dtype})")
        elif described.shape and not _same_shape(described.shape, shape):
            problems.append(
                f"{path}: the manifest's {end} has the shape {str(list(described.shape))[:100]}, and the file's has {shape}"
            )
    return problems


def _same_shape(described: Sequence[int | str], actual: Sequence[int | str]) -> bool:
    """Whether two shapes have the same numbers; the names of free sizes may differ."""
    numbers = [[size if isinstance(size, int) else None for size in shape] for shape in (described, actual)]
    return numbers[0] == numbers[1]


def _problem(check: Callable[[], None]) -> str | None:
    try:
        check()
    except CheckpointError as error:
        return str(error)
    return None


def _rule_problem(path: Path) -> str | None:
    if path.suffix == PROGRAM.suffix:
        from growtas.export.runtimes.torch_export import check_program

        return _problem(lambda: check_program(read_bytes(path, f"{path}: the program", limit=MAX_WEIGHTS_BYTES), str(path)))
    if path.suffix == ONNX.suffix:
        import onnx

        from growtas.export.graph.edit import load_proto

        try:
            onnx.checker.check_model(load_proto(path), full_check=True)
        except CheckpointError as error:
            return str(error)
        except Exception as error:  # the errors of the checker and of shape inference share no base class
            return f"{path}: ONNX's checker refuses it ({' '.join(str(error).split())[:160]})"
    return None
