"""One artifact at a glance: what its manifest says, what the file holds, and where the two contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, UsageError, choices
from growtas.export.artifact import KINDS
from growtas.export.contents import read_graph
from growtas.export.side_files import check_companions, companions
from growtas.files import sha256

KINDS_OF_LATENCY = ("measured", "modelled")

_SAME_LATENCY = ("device", "ms", "kind", "percentile", "batch", "precision", "runtime")


def summarise(path: Path, manifest: Mapping[str, Any] | None, *, thorough: bool = False) -> dict[str, Any]:
    """What is known of an artifact; the file is read, never run, and a plan not even read.

    Args:
        path: the artifact.
        manifest: what lies beside it, unverified; None where there is none.
        thorough: check the format's own rules too (ONNX's checker; that a program holds nothing that loading would run).

    Returns:
        ``path``, ``kind``, ``bytes`` (companions included), ``sha256``, ``matches_manifest`` (None without one), ``problems`` (one
        sentence each; the first is the hash where that differs), ``precision`` (``stated``, ``found``), ``params``, ``macs``,
        ``latencies`` (each with its ``kind``), ``parity``, ``verification``, ``graph`` and ``manifest``.

    Raises:
        CheckpointError: the file is absent or damaged.
        UsageError: the suffix is no artifact's.
    """
    if path.suffix not in KINDS:
        raise UsageError(f"{path}: not an artifact; legal are files that end in {choices(KINDS)}")
    graph = read_graph(path)
    said = manifest or {}
    digest = sha256(path)
    problem = _incomplete(path) if manifest is None else _hash_problem(path, said, digest)
    problems = ([problem] if problem else []) + contradictions(path, said, graph) + (_rule_problems(path) if thorough else [])
    return {
        "path": str(path),
        "kind": KINDS[path.suffix],
        "bytes": path.stat().st_size + sum(other.stat().st_size for other in companions(path) if other.is_file()),
        "sha256": digest,
        "matches_manifest": None if manifest is None else problem is None,
        "problems": problems,
        "precision": {"stated": said.get("precision"), "found": graph.get("precision")},
        "params": said.get("params", graph.get("params")),
        "macs": said.get("macs"),
        "latencies": latencies(said),
        "parity": said.get("parity"),
        "verification": said.get("verification"),
        "graph": graph,
        "manifest": manifest,
    }


def latencies(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every latency that a manifest holds, as it says them: what does not say that it was measured is never called so."""
    search = manifest.get("search")
    if not isinstance(search, Mapping):
        return []
    listed = search.get("latencies")
    found: list[Any] = [search.get("latency")]
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, Mapping):
            # A device's entry holds what was predicted and, where it was at hand, measured.
            both = [each for each in (entry.get("measured"), entry.get("predicted")) if isinstance(each, Mapping)]
            found += both or [entry]
    unique: list[dict[str, Any]] = []
    for entry in found:
        if isinstance(entry, Mapping) and isinstance(entry.get("ms"), int | float):
            kind = entry.get("kind")
            latency = {**entry, "kind": kind if kind in KINDS_OF_LATENCY else "not stated"}
            # The first device's latency stands twice in a manifest, once with more about where it comes from.
            if all(any(each.get(key) != latency.get(key) for key in _SAME_LATENCY) for each in unique):
                unique.append(latency)
    return unique


def contradictions(path: Path, manifest: Mapping[str, Any], graph: Mapping[str, Any]) -> list[str]:
    """Where a file holds something else than its manifest says: precision, parameters, the names and shapes of its ends."""
    found = []
    stated, held = manifest.get("precision"), graph.get("precision")
    if stated and held and stated != held:
        found.append(f"{path}: the manifest says {stated}, and the file's weights are {held}")
    params = graph.get("params")
    if params is not None and manifest.get("params") not in (None, params):
        found.append(f"{path}: the manifest says {manifest['params']} parameters, and the file holds {params}")
    for end, values in (("input", graph.get("inputs")), ("output", graph.get("outputs"))):
        described = manifest.get(end)
        if not values or not isinstance(described, Mapping):
            continue
        value = values[0]
        if described.get("name") not in (None, value["name"]) or described.get("dtype") not in (None, value["dtype"]):
            want = f"{described.get('name')} ({described.get('dtype')})"
            found.append(f"{path}: the manifest's {end} is {want}, and the file's is {value['name']} ({value['dtype']})")
        elif not _same_shape(described.get("shape"), value["shape"]):
            found.append(f"{path}: the manifest's {end} has the shape {described['shape']}, and the file's has {value['shape']}")
    return found


def _same_shape(described: Any, held: list[Any]) -> bool:
    """Whether two shapes agree where both have numbers; names of dynamic sizes may differ."""
    if not isinstance(described, list):
        return True
    if len(described) != len(held):
        return False
    return all(
        isinstance(a, int) == isinstance(b, int) and (not isinstance(a, int) or a == b)
        for a, b in zip(described, held, strict=True)
    )


def _hash_problem(path: Path, manifest: Mapping[str, Any], digest: str) -> str | None:
    recorded = manifest.get("artifact")
    if not isinstance(recorded, Mapping) or recorded.get("sha256") != digest:
        return f"{path}: the file is not the one that its manifest describes (SHA-256 differs); export it again"
    try:
        check_companions(path, manifest)
    except CheckpointError as error:
        return str(error)
    return None


def _incomplete(path: Path) -> str | None:
    absent = [other.name for other in companions(path) if not other.is_file()]
    return f"{path}: {absent[0]} is missing beside it" if absent else None


def _rule_problems(path: Path) -> list[str]:
    if path.suffix == ".pt2":
        from growtas.export.runtimes.torch_export import check_program

        try:
            check_program(path.read_bytes(), str(path))
        except CheckpointError as error:
            return [str(error)]
    if path.suffix == ".onnx":
        import onnx

        try:
            onnx.checker.check_model(onnx.load(path), full_check=True)
        except Exception as error:  # the checker's and shape inference's errors share no base class
            return [f"{path}: ONNX's checker refuses it ({' '.join(str(error).split())[:160]})"]
    return []
