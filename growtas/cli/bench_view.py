"""What ``growtas bench`` prints: the table, and the lines under it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from growtas.cli.output import console, note, print_table, progress
from growtas.progress import Progress

if TYPE_CHECKING:
    from growtas.export.benchmark.report import ArtifactReport, BatchResult, BenchReport


def print_report(report: BenchReport) -> None:
    """Prints the table and the lines under it, and names the files that were written."""
    table = _table(report)
    if table.row_count:
        print_table(table)
    for line in (*_lines(report), *(f"written to {file}" for file in report.files)):
        console().print(line, soft_wrap=True)


def _table(report: BenchReport) -> Any:
    from rich.table import Table

    from growtas.units import format_bytes

    baseline = report.settings["baseline"]
    table = Table(box=None, pad_edge=False)
    table.add_column("artifact", overflow="fold")
    headings = ["batch", "p50 ms", "p95 ms", "p99 ms", "cv", "images/s", "load ms", "memory", "kind"]
    if baseline:
        headings.insert(6, "x baseline")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    for artifact in report.artifacts:
        memory = artifact.memory
        for index, result in enumerate(artifact.results):
            table.add_row(
                artifact.label if index == 0 else "",
                str(result.batch),
                *(f"{ms:.3g}" for ms in (result.p50_ms, result.p95_ms, result.p99_ms)),
                f"{100 * result.cv:.0f}%" + ("" if result.steady else " !"),
                f"{result.images_per_second:,.0f}",
                *([_ratio(artifact, result)] if baseline else []),
                f"{memory['load_ms']:.3g}" if memory and index == 0 else "",
                format_bytes(memory["peak_rss_bytes"]) if memory and index == 0 else "",
                "measured",
            )
    return table


def _ratio(artifact: ArtifactReport, result: BatchResult) -> str:
    if artifact.baseline:
        return "1"
    ratio = result.ratio
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "-"


def _lines(report: BenchReport) -> Iterator[str]:
    artifacts, settings = report.artifacts, report.settings
    yield from (_not_runnable_line(artifact) for artifact in artifacts if not artifact.runnable)
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
        f"{result.runtime} {result.runtime_version} on {result.device}" for artifact in artifacts for result in artifact.results
    )
    machine = report.environment
    yield f"{', '.join((*runtimes, machine['cpu']))}, {machine['threads']} of {machine['cpu_threads_total']} threads"
    yield "memory is the peak of a process of its own that loads and runs the artifact, its runtime included"


def _unsteady_lines(artifacts: list[ArtifactReport]) -> Iterator[str]:
    from growtas.export.benchmark.report import CV_BOUND

    unsteady = [
        f"{artifact.label} batch {result.batch}" for artifact in artifacts for result in artifact.results if not result.steady
    ]
    if unsteady:
        all_of_them = len(unsteady) > 1 and all(not result.steady for artifact in artifacts for result in artifact.results)
        where = "all" if all_of_them else ", ".join(unsteady)
        yield (
            f"! unsteady: the coefficient of variation is above {CV_BOUND:.0%} for {where}; other work was running, "
            "or clocks changed: trust ratios within a round more than times, or measure again with more --seconds and --rounds"
        )


def _per_mac_lines(artifacts: list[ArtifactReport]) -> Iterator[str]:
    for artifact in artifacts:
        texts = [
            f"{result.ratio_per_mac:.2f} at batch {result.batch}"
            for result in artifact.results
            if result.ratio_per_mac and not artifact.baseline
        ]
        if texts:
            yield f"x baseline per MAC: {artifact.label} {', '.join(texts)}"


def _shape_lines(artifacts: list[ArtifactReport]) -> Iterator[str]:
    shapes = {
        artifact.label: "x".join(map(str, artifact.image_shape)) + f" {artifact.input_dtype}"
        for artifact in artifacts
        if artifact.image_shape
    }
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{label} {shape}" for label, shape in shapes.items())
        yield f"inputs differ, and each artifact was measured on its own: {listed}"


def _roofline_lines(report: BenchReport) -> Iterator[str]:
    for peak in report.peaks:
        threads = f" at {peak['threads']} threads" if peak["threads"] else ""
        yield (
            f"peaks of {peak['device']}, measured beside them{threads}: {peak['gemm_flops_per_s'] / 1e9:,.0f} GFLOP/s "
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
            yield f"share of the peaks: unknown for {artifact.label} (no manifest tells its MACs)"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else "under 1%"


def _parts_lines(artifacts: list[ArtifactReport]) -> Iterator[str]:
    from growtas.units import format_ms

    for artifact in artifacts:
        for result in artifact.results:
            if parts := result.parts:
                listed = ", ".join(
                    f"{name.removesuffix('_ms')} {format_ms(ms)}" for name, ms in parts.items() if name.endswith("_ms")
                )
                yield f"{artifact.label} batch {result.batch}, times apart (measured): {listed}"


def _compile_lines(artifacts: list[ArtifactReport]) -> Iterator[str]:
    for artifact in artifacts:
        memory = artifact.memory or {}
        if any(result.runtime == "torch.compile" for result in artifact.results) and memory.get("first_run_ms"):
            yield f"{artifact.label}: the first run, which compiles, took {memory['first_run_ms'] / 1e3:.3g} s (measured)"


def _power_lines(report: BenchReport) -> Iterator[str]:
    for artifact in report.artifacts:
        for result in artifact.results:
            if power := result.power:
                per_image = f", {power['joules_per_image']:.3g} J an image" if power["joules_per_image"] is not None else ""
                yield f"power: {artifact.label} batch {result.batch} {power['watts']:.3g} W{per_image}"
    for device, meter in report.power.items():
        yield f"power of {device}: " + (meter["by"] if meter["readable"] else f"not readable here ({meter['because']})")
    clocks = report.clocks
    if clocks is None:
        yield "clocks: not readable here"
    else:
        yield "clocks: " + ", ".join(
            f"{name} {value}" + (f" -> {clocks['after'][name]}" if clocks["after"].get(name, value) != value else "")
            for name, value in clocks["before"].items()
        )


def _not_runnable_line(artifact: ArtifactReport) -> str:
    from growtas.units import format_bytes

    line = f"{artifact.label}: not runnable here ({artifact.not_runnable_because})"
    if artifact.bytes is not None:
        line += f"; {format_bytes(artifact.bytes)}"
    if artifact.activation_memory_bytes is not None:
        line += f", activation memory {format_bytes(artifact.activation_memory_bytes)} at batch {artifact.max_batch}"
    return line + (f", for {', '.join(artifact.targets)}" if artifact.targets else "")


def _limit_lines(artifacts: list[ArtifactReport]) -> list[str]:
    """A verdict for each artifact that a device's limit is about; one line that it was not checked where there is none."""
    lines: list[str] = []
    devices = dict.fromkeys(limit["device"] for artifact in artifacts for limit in artifact.limits)
    for device in devices:
        limited = [(artifact.label, limit) for artifact in artifacts for limit in artifact.limits if limit["device"] == device]
        judged = [item for item in limited if item[1]["holds"] is not None]
        lines += [_limit_line(*item) for item in judged or limited]
    return list(dict.fromkeys(lines))


def _limit_line(file: str, limit: dict[str, Any]) -> str:
    from growtas.units import format_ms

    promised = limit["promised"]
    line = f"the search's latency limit {format_ms(limit['limit_ms'])} on {limit['device']}"
    if promised:
        line += f" (then {format_ms(promised['ms'])}, {promised['kind']})"
    if limit["holds"] is None:
        return f"{line}: not checked here; {limit['unchecked_because']}"
    verdict = "holds" if limit["holds"] else "does NOT hold"
    return f"{file}: {line} {verdict}: {format_ms(limit['measured_ms'])}, measured"


class TurnBar(Progress):
    """A progress bar of the turns on stderr; it shows nothing where stderr is no terminal. Notes are printed in any case."""

    def __init__(self, *, hidden: bool) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

        self._bar = progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), hidden=hidden)

    def __enter__(self) -> TurnBar:
        self._bar.start()
        self._task = self._bar.add_task("loading", total=None)
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """Names what is being done."""
        self._bar.update(self._task, description=name, total=total, completed=0)

    def advance(self, count: int = 1) -> None:
        """Moves the bar by a turn."""
        self._bar.advance(self._task, count)

    def event(self, event: object) -> None:
        """Names the artifact whose turn begins."""
        from growtas.export.benchmark.run import TurnBegun

        if isinstance(event, TurnBegun):
            self._bar.update(self._task, description=event.name)

    def note(self, text: str) -> None:
        """Prints a note."""
        note(text)
