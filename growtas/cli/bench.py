"""``growtas bench``: artifacts measured against each other on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, note, print_json, print_table, progress


def bench(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(help="Files (.onnx, .safetensors, .plan); by default all in the newest run's export folder."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8",
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all that this process may use.")] = None,
    rounds: Annotated[int, typer.Option(help="How often every artifact gets its turn; turns are interleaved.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds for each artifact and batch, all rounds together.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report; by default RUN/bench/bench.json.")] = None,
    json_: JsonOption = False,
) -> None:
    """Measure latency, throughput, load time and memory of artifacts.

    ONNX files run in ONNX Runtime, safetensors in eager PyTorch, plans in TensorRT where a GPU is at hand; elsewhere a plan is
    listed with its size and activation memory.

    Example: growtas bench --batch 1,8
    """
    from growtas.export.bench import BenchOptions, find_artifacts
    from growtas.export.bench import bench as run_bench
    from growtas.files import ensure_writable, write_json
    from growtas.runs import find_run

    options = BenchOptions(batches=_batches(batch), threads=threads, rounds=rounds, seconds=seconds)
    if artifacts:
        paths, run_folder = list(artifacts), _run_of(artifacts[0])
    else:
        run_folder = find_run(None).path
        note(f"artifacts: all in {run_folder / 'export'} (the newest run)")
        paths = find_artifacts(run_folder / "export")
    report_file = out or (run_folder / "bench" / "bench.json" if run_folder else None)
    if report_file is not None:
        ensure_writable(report_file.parent)
    with _progress(hidden=json_) as step:
        report = run_bench(paths, options, note=note, step=step)
    report["run"] = str(run_folder) if run_folder else None
    for artifact, path in zip(report["artifacts"], paths, strict=True):
        artifact["limits"] = _limits(path, _run_of(path), artifact)
    if report_file is not None:
        write_json(report_file, report)
    if json_:
        print_json(report)
        return
    _print(report)
    if report_file is not None:
        console().print(f"written to {report_file}")


def _batches(text: str) -> tuple[int, ...]:
    from growtas.errors import ConfigError

    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"--batch is {text!r}; it must be a list of numbers from 1 up, such as 1,8") from None


def _run_of(artifact: Path) -> Path | None:
    """The run folder that an artifact lies in, if it does."""
    folder = artifact.resolve().parent.parent
    return artifact.parent.parent if (folder / "run.json").is_file() else None


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    from growtas.units import format_bytes

    table = Table(box=None, pad_edge=False)
    table.add_column("artifact", overflow="fold")
    for heading in ("batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "load ms", "memory", "kind"):
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    lines = []
    for artifact in report["artifacts"]:
        memory = artifact["memory"]
        for index, result in enumerate(artifact["results"]):
            table.add_row(
                artifact["file"] if index == 0 else "",
                str(result["batch"]),
                *(f"{result[f'{percentile}_ms']:.3g}" for percentile in ("p50", "p95", "p99")),
                f"{result['images_per_second']:,.0f}",
                f"{memory['load_ms']:.3g}" if memory and index == 0 else "",
                format_bytes(memory["peak_rss_bytes"]) if memory and index == 0 else "",
                result["kind"],
            )
        if not artifact["runnable"]:
            lines.append(_not_runnable_line(artifact))
    lines += _limit_lines(report["artifacts"])
    if table.row_count:
        print_table(table)
    runtimes = dict.fromkeys(
        f"{result['runtime']} {result['runtime_version']} on {result['device']}"
        for artifact in report["artifacts"]
        for result in artifact["results"]
    )
    machine = report["environment"]
    lines += [
        f"{', '.join((*runtimes, machine['cpu']))}, {machine['threads']} of {machine['cpu_threads_total']} threads",
        "memory is the peak of a process of its own that loads and runs the artifact, its runtime included",
    ]
    for line in lines:
        console().print(line, soft_wrap=True)


def _not_runnable_line(artifact: dict[str, Any]) -> str:
    from growtas.units import format_bytes

    said = f"{artifact['file']}: not runnable here ({artifact['not_runnable_because']}); {format_bytes(artifact['bytes'])}"
    if artifact["activation_memory_bytes"] is not None:
        said += f", activation memory {format_bytes(artifact['activation_memory_bytes'])} at batch {artifact['max_batch']}"
    return said + (f", for {', '.join(artifact['targets'])}" if artifact["targets"] else "")


def _limits(path: Path, run: Path | None, artifact: dict[str, Any]) -> list[dict[str, Any]]:
    """The search's latency limits, one a device, each compared with what was measured on that device alone.

    A manifest knows the first device's; the others are in the subnet file that was exported, where it still lies in the run.
    """
    from growtas.export.bench import check_limit
    from growtas.export.manifest import read_manifest

    manifest = read_manifest(path, verify=False) or {}
    search = manifest.get("search")
    if not isinstance(search, dict):
        return []
    latencies = search.get("latencies") or (_subnet_file(run, manifest, search) if run else {}).get("latencies")
    if not latencies:
        return [artifact["limit"]] if artifact["limit"] else []
    asked = [
        {
            "limits": {"max_latency_ms": latency["max_latency_ms"]},
            "device": latency["device"],
            "latency": latency["measured"] or latency["predicted"],
        }
        for latency in latencies
    ]
    return [found for one in asked if (found := check_limit(one, artifact["results"])) is not None]


def _subnet_file(run: Path, manifest: dict[str, Any], search: dict[str, Any]) -> dict[str, Any]:
    """The searched subnet that a manifest is of, as it was written; empty where another search took its place."""
    from growtas.errors import CheckpointError
    from growtas.files import read_json

    for path in sorted(run.glob("search*/subnet.json")):
        try:
            written = read_json(path, "subnet file")
        except CheckpointError:
            continue
        same = isinstance(written, dict) and all(written.get(key) == value for key, value in search.items())
        if same and all(written.get(key) == value for key, value in manifest["subnet"].items()):
            return dict(written)
    return {}


def _limit_lines(artifacts: list[dict[str, Any]]) -> list[str]:
    """A verdict for each artifact that a device's limit is about; one line that it was not checked where there is none."""
    lines: list[str] = []
    devices = dict.fromkeys(limit["device"] for artifact in artifacts for limit in artifact["limits"])
    for device in devices:
        limited = [(artifact["file"], limit) for artifact in artifacts for limit in artifact["limits"] if limit["device"] == device]
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


class _progress:
    """A progress bar on stderr; silent where stderr is no terminal."""

    def __init__(self, *, hidden: bool) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

        self._progress = progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), hidden=hidden)

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._progress.start()
        task = self._progress.add_task("loading", total=None)
        return lambda what, done, total: self._progress.update(task, description=what, completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
