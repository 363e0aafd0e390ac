"""Compares the latency limits of a search with the measured latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, GrowtasError
from growtas.export.artifact import Artifact, Manifest
from growtas.export.benchmark.inputs import image_input
from growtas.export.benchmark.timing import collect, summarise, warm_up
from growtas.export.formats import PLAN, PROGRAM
from growtas.export.open import open_artifact
from growtas.fields import check_entries
from growtas.files import read_json
from growtas.latency.at_hand import CPU, device_name, devices_at_hand
from growtas.latency.estimate import SEARCHED_RULES
from growtas.runs import run_of

LIMIT = """``limit``, and an entry of ``limits``, of an artifact in ``bench.json``: does a search's latency limit hold?

Fields:
    limit_ms (number): The limit in milliseconds.
    device (text): The device that it is for.
    promised (object or null): The latency of the search, with its kind.
    measured_ms (number or null): The median that was measured here; null where these measurements can't tell.
    holds (true, false or null): Whether that is within the limit.
    unchecked_because (text): Why these measurements can't tell. Absent where they can.
"""


def check_limit(search: Mapping[str, Any] | None, results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Compares the latency limit of a search with measurements.

    Args:
        search: the manifest's ``search``.
        results: measurements from :meth:`growtas.export.benchmark.timing.Measurement.to_dict`.

    Returns:
        None if the search had no latency limit. Otherwise ``limit_ms``, ``device``, ``promised`` (the search's latency with its
        ``kind``), ``measured_ms`` and ``holds``. If the measurements don't include the conditions of the limit, the last two are
        None and ``unchecked_because`` gives the reason.
    """
    limit_ms = ((search or {}).get("limits") or {}).get("max_latency_ms")
    if search is None or limit_ms is None:
        return None
    promised = search.get("latency") or {}
    percentile, batch = str(promised.get("percentile") or "p50"), int(promised.get("batch") or 1)
    label = search.get("device")
    # If a search has several targets on one device, each target has its own name.
    device = promised.get("device") or label
    answer = {"limit_ms": limit_ms, "device": label, "promised": promised or None, "measured_ms": None, "holds": None}
    result = next(
        (
            result
            for result in results
            if (result["batch"], device_name(result["device"])) == (batch, device)
            # A search without a precision or runtime is valid for all of them.
            and all(promised.get(key) in (None, result[key]) for key in ("precision", "runtime"))
        ),
        None,
    )
    if result is None:
        conditions = f"{percentile}, batch {batch}, {promised.get('precision') or 'any precision'} on {device}"
        return {**answer, "unchecked_because": f"the limit is for {conditions}, which was not measured here"}
    measured = result.get(f"{percentile}_ms")
    return {**answer, "measured_ms": measured, "holds": measured is not None and measured <= limit_ms}


def check_limits(path: Path, manifest: Manifest, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares the search's latency limits, one per device, each with the measurements on that device.

    The limits of several devices are in the manifest, or for older manifests in the exported subnet file, if the run still has it.
    """
    run, search = run_of(path), manifest.search
    if search is None:
        return []
    latencies = search.get("latencies") or (_subnet_file(run, manifest, search) if run else {}).get("latencies")
    searches = [
        {
            "limits": {"max_latency_ms": latency["max_latency_ms"]},
            "device": latency["device"],
            "latency": latency["measured"] or latency["predicted"],
        }
        for latency in latencies or ()
    ]
    limits = [check_limit(limited, results) for limited in searches or (search,)]
    return [limit for limit in limits if limit is not None]


def judge_limits(artifact: Artifact) -> list[dict[str, Any]]:
    """Measures an artifact, and compares the search's latency limits by :func:`check_limits`.

    The artifact is timed for a second for each limit on an available device, if runtime and precision match the artifact. For every
    other limit ``unchecked_because`` gives the reason.
    """
    results, reasons = list[dict[str, Any]](), dict[str, dict[str, str]]()
    for limit in check_limits(artifact.path, artifact.manifest, results):
        promised = limit["promised"] or {}
        runtime, device = _runtime_for(promised, artifact), promised.get("device") or limit["device"]
        if runtime is None or device not in devices_at_hand():
            continue
        try:
            results.append(_time(artifact, int(promised.get("batch") or 1), runtime, str(device)))
        except GrowtasError as error:
            reasons[limit["device"]] = {"unchecked_because": str(error)}
    return [{**limit, **reasons.get(limit["device"], {})} for limit in check_limits(artifact.path, artifact.manifest, results)]


def _runtime_for(promised: Mapping[str, Any], artifact: Artifact) -> str | None:
    """The runtime for ``growtas bench`` in which an artifact matches a search's latency; None if it does not match."""
    runtime, plan = str(promised.get("runtime")), artifact.manifest.plan
    if artifact.format is PROGRAM:  # no search measures the runtime of programs
        return None
    name = {"torch": "eager", "torch.compile": "compile"}.get(runtime, runtime)
    # An ONNX file would first have to be compiled for TensorRT; the limit is checked with the plan instead.
    runtimes = (plan.runtime,) if plan else tuple(name for name in artifact.format.runtimes if name not in PLAN.runtimes)
    return name if name in runtimes and promised.get("precision") in (None, artifact.manifest.precision) else None


def _time(artifact: Artifact, batch: int, runtime: str, device: str) -> dict[str, Any]:
    with open_artifact(artifact, runtime=runtime, device="cpu" if device == CPU else "cuda") as session:
        timer = session.timer(image_input(artifact.path, artifact.manifest, session).images(batch))
        warm_up(timer)
        measured = summarise(collect(timer, seconds=1.0), session.info, batch=batch, precision=artifact.manifest.precision or "")
    return measured.to_dict()


def _subnet_file(run: Path, manifest: Manifest, search: Mapping[str, Any]) -> dict[str, Any]:
    """The subnet file with the manifest's subnet and search; empty if the run has none, for example after another search."""
    expected = {**(manifest.subnet or {}), **search}
    for path in sorted(run.glob("search*/subnet.json")):
        try:
            document = read_json(path, "subnet file")
            check_entries(document, SEARCHED_RULES, str(path), CheckpointError)
        except CheckpointError:
            continue
        if all(document.get(key) == value for key, value in expected.items()):
            return dict(document)
    return {}
