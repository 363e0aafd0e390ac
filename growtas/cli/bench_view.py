"""What ``growtas bench`` prints: the table, and the lines under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from growtas.cli.output import console, print_table, progress


def print_report(report: dict[str, Any], files: list[Path]) -> None:
    """The table and what is to be said of it.

    Args:
        report: of :func:`growtas.export.benchmark.run.bench`, with each artifact's ``limits``.
        files: what was written.
    """
    table = _table(report)
    if table.row_count:
        print_table(table)
    for line in (*_lines(report), *(f"written to {file}" for file in files)):
        console().print(line, soft_wrap=True)


def _table(report: dict[str, Any]) -> Any:
    from rich.table import Table

    from growtas.units import format_bytes

    baseline = report["settings"]["baseline"]
    table = Table(box=None, pad_edge=False)
    table.add_column("artifact", overflow="fold")
    headings = ["batch", "p50 ms", "p95 ms", "p99 ms", "cv", "images/s", "load ms", "memory", "kind"]
    if baseline:
        headings.insert(6, "x baseline")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    for artifact in report["artifacts"]:
        memory = artifact["memory"]
        for index, result in enumerate(artifact["results"]):
            table.add_row(
                artifact["label"] if index == 0 else "",
                str(result["batch"]),
                *(f"{result[f'{percentile}_ms']:.3g}" for percentile in ("p50", "p95", "p99")),
                f"{100 * result['cv']:.0f}%" + ("" if result["steady"] else " !"),
                f"{result['images_per_second']:,.0f}",
                *([_ratio(artifact, result)] if baseline else []),
                f"{memory['load_ms']:.3g}" if memory and index == 0 else "",
                format_bytes(memory["peak_rss_bytes"]) if memory and index == 0 else "",
                result["kind"],
            )
    return table


def _ratio(artifact: dict[str, Any], result: dict[str, Any]) -> str:
    if artifact["baseline"]:
        return "1"
    found = result["ratio"]
    return f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f})" if found else "-"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    artifacts, settings = report["artifacts"], report["settings"]
    yield from (_not_runnable_line(artifact) for artifact in artifacts if not artifact["runnable"])
    yield from _limit_lines(artifacts)
    yield from _unsteady_lines(artifacts)
    if settings["baseline"]:
        yield f"x baseline: times the latency of {settings['baseline']}, median of the rounds (smallest-largest)"
        yield from _per_mac_lines(artifacts)
    yield from _shape_lines(artifacts)
    yield from _roofline_lines(report)
    yield from _parts_lines(artifacts)
    yield from _compile_lines(artifacts)
    yield from _power_lines(report)
    runtimes = dict.fromkeys(
        f"{result['runtime']} {result['runtime_version']} on {result['device']}"
        for artifact in artifacts
        for result in artifact["results"]
    )
    machine = report["environment"]
    yield f"{', '.join((*runtimes, machine['cpu']))}, {machine['threads']} of {machine['cpu_threads_total']} threads"
    yield "memory is the peak of a process of its own that loads and runs the artifact, its runtime included"


def _unsteady_lines(artifacts: list[dict[str, Any]]) -> Iterator[str]:
    from growtas.export.benchmark.ratios import CV_BOUND

    unsteady = [
        f"{artifact['label']} batch {result['batch']}"
        for artifact in artifacts
        for result in artifact["results"]
        if not result["steady"]
    ]
    if unsteady:
        all_of_them = len(unsteady) > 1 and all(not result["steady"] for artifact in artifacts for result in artifact["results"])
        told = "all" if all_of_them else ", ".join(unsteady)
        yield (
            f"! unsteady: the coefficient of variation is above {CV_BOUND:.0%} for {told}; other work was running, "
            "or clocks changed: trust ratios within a round more than times, or measure again with more --seconds and --rounds"
        )


def _per_mac_lines(artifacts: list[dict[str, Any]]) -> Iterator[str]:
    for artifact in artifacts:
        told = [
            f"{result['ratio_per_mac']:.2f} at batch {result['batch']}"
            for result in artifact["results"]
            if result["ratio_per_mac"] and not artifact["baseline"]
        ]
        if told:
            yield f"x baseline per MAC: {artifact['label']} {', '.join(told)}"


def _shape_lines(artifacts: list[dict[str, Any]]) -> Iterator[str]:
    shapes = {
        artifact["label"]: "x".join(map(str, artifact["image_shape"])) + f" {artifact['input_dtype']}"
        for artifact in artifacts
        if artifact["image_shape"]
    }
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{label} {shape}" for label, shape in shapes.items())
        yield f"inputs differ, and each artifact was measured on its own: {told}"


def _roofline_lines(report: dict[str, Any]) -> Iterator[str]:
    for peak in report["peaks"]:
        threads = f" at {peak['threads']} threads" if peak["threads"] else ""
        yield (
            f"peaks of {peak['device']}, measured beside them{threads}: {peak['gemm_flops_per_s'] / 1e9:,.0f} GFLOP/s "
            f"(float32 matrix product), {peak['copy_bytes_per_s'] / 1e9:.3g} GB/s (memory copy)"
        )
    for artifact in report["artifacts"] if report["peaks"] else ():
        told = [
            f"{_share(found['gemm_share'])} and {_share(found['bandwidth_share'])} at batch {result['batch']}"
            for result in artifact["results"]
            if (found := result["roofline"])
        ]
        if told:
            yield f"share of the GEMM peak and of the copy bandwidth: {artifact['label']} {', '.join(told)}"
        elif artifact["results"]:
            yield f"share of the peaks: unknown for {artifact['label']} (no manifest tells its MACs)"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else "under 1%"


def _parts_lines(artifacts: list[dict[str, Any]]) -> Iterator[str]:
    from growtas.units import format_ms

    for artifact in artifacts:
        for result in artifact["results"]:
            if parts := result["parts"]:
                told = ", ".join(
                    f"{name.removesuffix('_ms')} {format_ms(ms)}" for name, ms in parts.items() if name.endswith("_ms")
                )
                yield f"{artifact['label']} batch {result['batch']}, times apart (measured): {told}"


def _compile_lines(artifacts: list[dict[str, Any]]) -> Iterator[str]:
    for artifact in artifacts:
        memory = artifact["memory"] or {}
        if any(result["runtime"] == "torch.compile" for result in artifact["results"]) and memory.get("first_run_ms"):
            yield f"{artifact['label']}: the first run, which compiles, took {memory['first_run_ms'] / 1e3:.3g} s (measured)"


def _power_lines(report: dict[str, Any]) -> Iterator[str]:
    for artifact in report["artifacts"]:
        for result in artifact["results"]:
            if power := result["power"]:
                each = f", {power['joules_per_image']:.3g} J an image" if power["joules_per_image"] is not None else ""
                yield f"power: {artifact['label']} batch {result['batch']} {power['watts']:.3g} W{each}"
    for device, found in report["power"].items():
        yield f"power of {device}: " + (found["by"] if found["readable"] else f"not readable here ({found['because']})")
    clocks = report["clocks"]
    if clocks is None:
        yield "clocks: not readable here"
    else:
        yield "clocks: " + ", ".join(
            f"{name} {value}" + (f" -> {clocks['after'][name]}" if clocks["after"].get(name, value) != value else "")
            for name, value in clocks["before"].items()
        )


def _not_runnable_line(artifact: dict[str, Any]) -> str:
    from growtas.units import format_bytes

    said = f"{artifact['label']}: not runnable here ({artifact['not_runnable_because']})"
    if artifact["bytes"] is not None:
        said += f"; {format_bytes(artifact['bytes'])}"
    if artifact["activation_memory_bytes"] is not None:
        said += f", activation memory {format_bytes(artifact['activation_memory_bytes'])} at batch {artifact['max_batch']}"
    return said + (f", for {', '.join(artifact['targets'])}" if artifact["targets"] else "")


def _limit_lines(artifacts: list[dict[str, Any]]) -> list[str]:
    """A verdict for each artifact that a device's limit is about; one line that it was not checked where there is none."""
    lines: list[str] = []
    devices = dict.fromkeys(limit["device"] for artifact in artifacts for limit in artifact["limits"])
    for device in devices:
        limited = [
            (artifact["label"], limit) for artifact in artifacts for limit in artifact["limits"] if limit["device"] == device
        ]
        judged = [item for item in limited if item[1]["holds"] is not None]
        lines += [_limit_line(*item) for item in judged or limited]
    return list(dict.fromkeys(lines))


def _limit_line(file: str, limit: dict[str, Any]) -> str:
    from growtas.units import format_ms

    promised = limit["promised"]
    said = f"the search's latency limit {format_ms(limit['limit_ms'])} on {limit['device']}"
    if promised:
        said += f" (then {format_ms(promised['ms'])}, {promised['kind']})"
    if limit["holds"] is None:
        return f"{said}: not checked here; {limit['unchecked_because']}"
    verdict = "holds" if limit["holds"] else "does NOT hold"
    return f"{file}: {said} {verdict}: {format_ms(limit['measured_ms'])}, measured"


class progress_bar:
    """A progress bar on stderr; silent where stderr is no terminal. Entering gives the function that moves it."""

    def __init__(self, *, hidden: bool) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

        self._progress = progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), hidden=hidden)

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._progress.start()
        task = self._progress.add_task("loading", total=None)
        return lambda what, done, total: self._progress.update(task, description=what, completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
