"""Exported artifacts on a page: the gates of each artifact from its manifest, and the report of ``growtas bench``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from growtas.latency.estimate import kind_text, limit_lines
from growtas.units import format_accuracy, format_bytes, format_ms, format_ratio
from growtas.watch.drawing import Bar, bars
from growtas.watch.page import Figure, Part, Row, Text, table


def gates_passed(manifest: Mapping[str, Any]) -> bool | None:
    """Returns whether an artifact passed every gate; None if only the file from which it was compiled was checked."""
    checks = [check for key in ("verification", "parity") if isinstance(check := manifest.get(key), Mapping)]
    return all(check.get("passed", True) for check in checks) if checks else None


def gate_parts(manifests: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """Returns a table of the artifacts' gates; ``manifests`` has the names of the files as keys."""
    numbers = (
        "size",
        "accuracy",
        "of the source",
        "lost (at most)",
        "same class (at least)",
        "relative error (at most)",
        "least cosine",
    )
    rows = [(name, str(manifest["precision"]), *_gates(manifest)) for name, manifest in manifests.items()]
    parts = table(
        "Every file against the network that it was made from", ("file", "precision", "gates", *numbers), rows, right=numbers
    )
    if not parts:
        return []
    for name, manifest in manifests.items():
        if (because := manifest.get("not_executed_because")) and gates_passed(manifest) is None:
            source = (manifest.get("plan") or {}).get("compiled_from") or {}
            parts.append(
                Text(f"{name} was not run: {because}. Its numbers are those of {source.get('file')}, which it was compiled from.")
            )
    images = {str(check["images"]) for manifest in manifests.values() if (check := _check(manifest)) and check.get("images")}
    parts.append(
        Text(
            f"Measured on: {', '.join(sorted(images))}. The relative error and the cosine compare logits. The same class is the "
            "share of images for which the artifact and its source answer alike. Lost are percentage points of accuracy."
        )
    )
    return parts


def bench_cards(bench: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    """Returns the fastest artifact of the run at the smallest measured batch."""
    results = [
        (result["batch"], result["p50_ms"], artifact["label"], result)
        for artifact in (bench or {}).get("artifacts", ())
        for result in artifact["results"]
        if artifact["kind"] != "timm"
    ]
    if results:
        batch, ms, label, result = min(results, key=lambda entry: entry[:2])
        yield "Fastest artifact in the bench", format_ms(ms), f"{_kind(result)}, {label}, batch {batch}, {result['device']}"


def bench_parts(bench: Mapping[str, Any]) -> list[Part]:
    """Returns the measurements of ``bench.json`` as bars and as a table."""
    measured = [(artifact, result) for artifact in bench["artifacts"] for result in artifact["results"]]
    figures: list[Part] = []
    for batch in dict.fromkeys(result["batch"] for _, result in measured):
        of_batch = [(artifact, result) for artifact, result in measured if result["batch"] == batch]
        title = f"Median latency at batch {batch}, ms (measured)"
        figures.append(Figure(title, bars(title, [_latency_bar(*entry) for entry in of_batch], "ms")))
    if measured:
        title = "Throughput, images/s (measured)"
        figures.append(Figure(title, bars(title, [_throughput_bar(*entry) for entry in measured], "images/s")))
    parts: list[Part] = [Row(figures)] if figures else []
    numbers = ("batch", "p50 ms", "p95 ms", "p99 ms", "spread", "images/s", "x baseline", "load ms", "memory")
    parts += table("Measurements", ("artifact", *numbers, "kind"), (_bench_row(*entry) for entry in measured), right=numbers)
    for artifact in bench["artifacts"]:
        if not artifact["runnable"]:
            parts.append(Text(f"{artifact['label']} can't run here: {artifact['not_runnable_because']}."))
    judged = [(artifact["label"], artifact.get("limits") or ()) for artifact in bench["artifacts"]]
    parts += [Text(f"{line[0].upper()}{line[1:]}." if line.startswith("the ") else f"{line}.") for line in limit_lines(judged)]
    if bench.get("interrupted"):
        parts.append(Text("The bench was interrupted: not everything was measured.", warning=True))
    if any(not result["steady"] for _, result in measured):
        parts.append(
            Text("Unsteady: other work was running, or clocks changed. Trust ratios within a round more than times.", warning=True)
        )
    parts.append(
        Text(
            "A bar is the median of all runs, and its line is the range of the rounds' medians. Spread is the coefficient of "
            "variation. Memory is the peak of a process that only loads and runs the artifact."
        )
    )
    return parts


def _check(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the checks of an artifact, or of the file from which it was compiled."""
    source = (manifest.get("plan") or {}).get("compiled_from") or {}
    return manifest.get("verification") or source.get("verification") or manifest.get("parity") or source.get("parity") or {}


def _gates(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Returns the verdict, the size, and each number with its threshold in parentheses."""
    check, passed = _check(manifest), gates_passed(manifest)
    bounds = check.get("thresholds") or ({"relative_error": check["tolerance"]} if "tolerance" in check else {})
    failed = ", ".join(check.get("failed") or ())
    yield "not run" if passed is None else "passed" if passed else f"FAILED: {failed}"
    yield format_bytes(manifest["artifact"]["bytes"])
    for key in ("accuracy", "reference_accuracy"):
        yield "-" if check.get(key) is None else format_accuracy(check[key], check.get("count"))
    for key, bound, form in (
        ("accuracy_drop_points", "accuracy_drop_points", "{:.2f}"),
        ("top1_agreement", "top1_agreement", "{:.2%}"),
        ("relative_error", "relative_error", "{:.1e}"),
        ("cosine_min", "cosine", "{:.7g}"),
    ):
        value, limit = check.get(key), bounds.get(bound)
        yield (
            "-"
            if value is None
            else form.format(value) + ("" if limit is None else f" ({limit:g})" if form != "{:.2%}" else f" ({limit:.1%})")
        )


def _kind(result: Mapping[str, Any]) -> str:
    return kind_text(result["kind"], not result["steady"])


def _latency_bar(artifact: Mapping[str, Any], result: Mapping[str, Any]) -> Bar:
    rounds, ms = result["p50_ms_of_rounds"], result["p50_ms"]
    return Bar(artifact["label"], ms, format_ms(ms), min([ms, *rounds]), max([ms, *rounds]), _look(artifact))


def _throughput_bar(artifact: Mapping[str, Any], result: Mapping[str, Any]) -> Bar:
    rate, batch = result["images_per_second"], result["batch"]
    rates = [rate, *(1000 * batch / ms for ms in result["p50_ms_of_rounds"])]
    return Bar(f"{artifact['label']}, batch {batch}", rate, f"{rate:,.0f}", min(rates), max(rates), _look(artifact))


def _look(artifact: Mapping[str, Any]) -> str:
    return "other" if artifact.get("baseline") or artifact["kind"] == "timm" else "bar"


def _bench_row(artifact: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, ...]:
    ratio, memory = result.get("ratio"), artifact.get("memory") or {}
    return (
        artifact["label"],
        str(result["batch"]),
        *(format_ms(result[key]).removesuffix(" ms") for key in ("p50_ms", "p95_ms", "p99_ms")),
        f"{result['cv']:.0%}",
        f"{result['images_per_second']:,.0f}",
        "1 (baseline)" if artifact.get("baseline") else format_ratio(ratio["median"]) if ratio else "-",
        format_ms(memory["load_ms"]).removesuffix(" ms") if memory else "-",
        format_bytes(memory["peak_rss_bytes"]) if memory else "-",
        _kind(result),
    )
