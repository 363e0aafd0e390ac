"""Shows the result of ``growtas bench``: the table and the lines below it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from growtas.cli.output import ProgressBar, new_table, print_line, print_table, print_text
from growtas.export.benchmark.report import CV_BOUND, ArtifactReport, BatchResult, BenchReport
from growtas.export.benchmark.run import TurnBegun
from growtas.latency.estimate import limit_lines, no_faster
from growtas.units import format_bytes, format_ms, format_ratio


def print_report(report: BenchReport) -> None:
    """Prints the table, the lines below it and the names of the written files."""
    table = _table(report)
    if table.row_count:
        print_table(table)
    for line in _lines(report):
        print_text(line)
    for file in report.files:
        print_line(f"written to {file}")


def _table(report: BenchReport) -> Table:
    numbers = ["batch", "p50 ms", "p95 ms", "p99 ms", "cv", "images/s", "load ms", "memory"]
    if report.settings["baseline"]:
        numbers.insert(6, "x baseline")
    table = new_table("artifact", *numbers, "kind", right=numbers)
    for artifact in report.artifacts:
        memory = artifact.memory
        for index, result in enumerate(artifact.results):
            table.add_row(
                artifact.label if index == 0 else "",
                str(result.batch),
                *map(_number, (result.p50_ms, result.p95_ms, result.p99_ms)),
                f"{100 * result.cv:.0f}%" + ("" if result.steady else " !"),
                f"{result.images_per_second:,.0f}",
                *([_ratio(artifact, result)] if report.settings["baseline"] else []),
                _number(memory["load_ms"]) if memory and index == 0 else "",
                format_bytes(memory["peak_rss_bytes"]) if memory and index == 0 else "",
                "measured",
            )
    return table


def _number(ms: float) -> str:
    return f"{ms:.3g}" if ms < 999.5 else f"{ms:,.0f}"


def _ratio(artifact: ArtifactReport, result: BatchResult) -> str:
    if artifact.baseline:
        return "1"
    ratio = result.ratio
    return "{} ({}-{})".format(*(format_ratio(ratio[key]) for key in ("median", "low", "high"))) if ratio else "-"


def _lines(report: BenchReport) -> Iterator[str]:
    artifacts, settings, machine = report.artifacts, report.settings, report.environment
    results = [(artifact, result) for artifact in artifacts for result in artifact.results]
    yield from (_not_runnable_line(artifact) for artifact in artifacts if not artifact.runnable)
    yield from limit_lines((artifact.label, artifact.limits) for artifact in artifacts)
    yield from _no_faster_lines(artifacts)
    unsteady = [f"{artifact.label} batch {result.batch}" for artifact, result in results if not result.steady]
    if unsteady:
        where = "all" if 1 < len(unsteady) == len(results) else ", ".join(unsteady)
        yield (
            f"! unsteady: the coefficient of variation is above {CV_BOUND:.0%} for {where}; other work was running, "
            "or clocks changed. Rely on the ratios, not on the times, or measure again with more --seconds and --rounds"
        )
    if settings["baseline"]:
        yield f"x baseline: latency divided by that of {settings['baseline']}, median of the rounds (smallest-largest)"
        yield from _per_mac_lines(artifacts)
    yield from _shape_lines(artifacts)
    yield from _roofline_lines(report)
    for artifact, result in results:
        if parts := result.parts:
            times = {name.removesuffix("_ms"): ms for name, ms in parts.items() if name.endswith("_ms")}
            listed = ", ".join(f"{name} {format_ms(ms)}" for name, ms in times.items())
            yield f"{artifact.label} batch {result.batch}, parts of the latency (measured): {listed}"
    for artifact in artifacts:
        first_run_ms = (artifact.memory or {}).get("first_run_ms")
        if first_run_ms and any(result.runtime == "torch.compile" for result in artifact.results):
            yield f"{artifact.label}: the first run, which includes compilation, took {first_run_ms / 1e3:.3g} s (measured)"
    for artifact, result in results:
        if power := result.power:
            per_image = f", {power['joules_per_image']:.3g} J per image" if power["joules_per_image"] is not None else ""
            yield f"power: {artifact.label} batch {result.batch} {power['watts']:.3g} W{per_image}"
    for device, meter in report.power.items():
        yield f"power of {device}: " + (meter["by"] if meter["readable"] else f"not readable here ({meter['because']})")
    yield _clock_line(report)
    runtimes = dict.fromkeys(f"{result.runtime} {result.runtime_version} on {result.device}" for _, result in results)
    yield f"{', '.join((*runtimes, machine['cpu']))}, {machine['threads']} of {machine['cpu_threads_total']} threads"
    yield "memory: the peak of a separate process that loads and runs the artifact, including its runtime"


def _per_mac_lines(artifacts: list[ArtifactReport]) -> Iterator[str]:
    for artifact in artifacts:
        texts = [f"{result.ratio_per_mac:.2f} at batch {result.batch}" for result in artifact.results if result.ratio_per_mac]
        if texts and not artifact.baseline:
            yield f"x baseline per MAC: {artifact.label} {', '.join(texts)}"


def _shape_lines(artifacts: list[ArtifactReport]) -> Iterator[str]:
    shapes = {
        artifact.label: "x".join(map(str, artifact.image_shape)) + f" {artifact.input_dtype}"
        for artifact in artifacts
        if artifact.image_shape
    }
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{label} {shape}" for label, shape in shapes.items())
        yield f"inputs differ; each artifact was measured with its own: {listed}"


def _roofline_lines(report: BenchReport) -> Iterator[str]:
    for peak in report.peaks:
        threads = f" at {peak['threads']} threads" if peak["threads"] else ""
        yield (
            f"peaks of {peak['device']}, measured in the same run{threads}: {peak['gemm_flops_per_s'] / 1e9:,.0f} GFLOP/s "
            f"(float32 matrix product), {peak['copy_bytes_per_s'] / 1e9:.3g} GB/s (memory copy)"
        )
    for artifact in report.artifacts if report.peaks else ():
        texts = [
            f"{_share(shares['gemm_share'])} and {_share(shares['bandwidth_share'])} at batch {result.batch}"
            for result in artifact.results
            if (shares := result.roofline)
        ]
        if texts:
            yield f"share of the GEMM peak and of the copy bandwidth: {artifact.label} {', '.join(texts)}"
        elif artifact.results:
            yield f"share of the peaks: unknown for {artifact.label} (no manifest states its MACs)"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else "under 1%"


def _clock_line(report: BenchReport) -> str:
    clocks = report.clocks
    if clocks is None:
        return "clocks: not readable here"
    changes = (
        f"{name} {value}" + (f" -> {clocks['after'][name]}" if clocks["after"].get(name, value) != value else "")
        for name, value in clocks["before"].items()
    )
    return f"clocks: {', '.join(changes)}"


def _not_runnable_line(artifact: ArtifactReport) -> str:
    line = f"{artifact.label}: not runnable here ({artifact.not_runnable_because})"
    if artifact.bytes is not None:
        line += f"; {format_bytes(artifact.bytes)}"
    if artifact.activation_memory_bytes is not None:
        line += f", activation memory {format_bytes(artifact.activation_memory_bytes)} at batch {artifact.max_batch}"
    return line + (f", for {', '.join(artifact.targets)}" if artifact.targets else "")


def _no_faster_lines(artifacts: list[ArtifactReport]) -> Iterator[str]:
    for artifact in artifacts:
        for result in artifact.results:
            if (fp32 := result.fp32) is None:
                continue
            ratio, where = fp32["ratio"]["median"], f"here in {result.runtime}, batch {result.batch}"
            if line := no_faster(artifact.precision, result.p50_ms, fp32["p50_ms"], "measured", where, ratio=ratio):
                yield line


class TurnBar(ProgressBar):
    """A progress bar that counts measurements and names the current artifact."""

    def event(self, event: object) -> None:
        """Names the artifact whose measurement begins."""
        if isinstance(event, TurnBegun):
            self.bar.update(self.task, description=event.name)
