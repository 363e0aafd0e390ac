"""``growtas profile``: this machine's latencies of a space, measured, fitted and tested."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, note, print_json, print_table, progress

if TYPE_CHECKING:
    from growtas.latency.measured.campaign import Bounds
    from growtas.latency.measured.profile import MeasuredProfile
    from growtas.latency.measured.profiling import Plan
    from growtas.space import SearchSpace


def profile(
    device: Annotated[str, typer.Option(help="What this machine is to be called: cpu, or a name for its GPU, such as a10.")],
    new_device: Annotated[
        bool, typer.Option("--new-device", help="The name is meant, though it looks like a slip of a known one.")
    ] = False,
    space: Annotated[str, typer.Option(help="Search space: a preset or a YAML file.")] = "autoformer-t",
    runtime: Annotated[
        str | None,
        typer.Option(
            help="What executes: onnxruntime, tensorrt, tensorrt-rtx or openvino; by default tensorrt for a GPU that has a profile."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of the artifacts.")] = "fp32",
    batch: Annotated[int, typer.Option(help="Images at once.")] = 1,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all that this process may use.")] = None,
    samples: Annotated[int, typer.Option(help="Subnets that the model is fitted to.")] = 60,
    held_out: Annotated[int, typer.Option(help="Random subnets that the model is tested on.")] = 40,
    repeats: Annotated[int, typer.Option(help="Subnets measured again at the end, to see how well measurements repeat.")] = 10,
    seconds: Annotated[float, typer.Option(help="Seconds of a block; every subnet gets nine, spread over time.")] = 0.1,
    max_cv: Annotated[float, typer.Option(help="Largest coefficient of variation of a subnet's blocks.")] = 0.05,
    max_drift: Annotated[float, typer.Option(help="Largest change of the reference subnet between groups.")] = 0.04,
    out: Annotated[
        Path | None, typer.Option(help="Profile to write; by default in the folder that `growtas devices` names.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure this machine's latencies of a space, and fit the model that a search prunes with.

    Subnets that tell the model's terms best apart are built and timed, and others, drawn at random, to test it. Samples of a busy
    or throttled machine are refused. All are journalled beside the profile: the same command goes on where it was stopped.

    Example: growtas profile --device cpu --space micro
    """
    from growtas.errors import ConfigError
    from growtas.export.benchmark.stopwatch import check_runtime
    from growtas.latency.measured.campaign import Bounds
    from growtas.latency.measured.profiling import plan_profile
    from growtas.latency.modelled.profile import shipped_names
    from growtas.space import load_space

    chosen = runtime or ("tensorrt" if device in shipped_names() else "onnxruntime")
    _check_name(device, meant=new_device)
    for option, value in (("--batch", batch), ("--threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}; it must be 1 or more")
    if not 0 < seconds <= 60:
        raise ConfigError(f"--seconds is {seconds:g}; it must be above 0 and at most 60")
    bounds = Bounds(cv=max_cv, drift=max_drift)
    plan = plan_profile(load_space(space), samples=samples, held_out=held_out, repeats=repeats)
    check_runtime(chosen, precision)
    job = _Job(device, load_space(space), chosen, precision, batch, threads, seconds, bounds, out, hidden=json_)
    started = time.perf_counter()
    made, path = job.run(plan)
    report = {
        **made.to_dict(),
        "file": str(path),
        "journal": str(path.with_suffix(".jsonl")),
        "seconds": time.perf_counter() - started,
    }
    if json_:
        print_json(report)
        return
    _print(made, report)


def _check_name(device: str, *, meant: bool) -> None:
    """Refuse a name that is none, or that looks like a slip of a known one; any other new one is noted."""
    import re

    from growtas.errors import ConfigError, DeviceError
    from growtas.latency.catalogue import near_name
    from growtas.latency.modelled.profile import device_names

    if not meant and (near := near_name(device)) is not None:
        raise DeviceError(f"--device is {device!r}, no known device: did you mean {near}? --new-device says that the name is meant")
    if not re.fullmatch(r"[a-z0-9-]+", device):
        raise ConfigError(f"--device is {device!r}; a name is lower-case letters, digits and hyphens, such as a10")
    if device not in device_names():
        note(f"{device} is a new device; search for it later with --device {device}")


class _Job:
    """One profile of the command line."""

    def __init__(
        self,
        device: str,
        space: SearchSpace,
        runtime: str,
        precision: str,
        batch: int,
        threads: int | None,
        seconds: float,
        bounds: Bounds,
        out: Path | None,
        *,
        hidden: bool,
    ) -> None:
        from growtas.latency.catalogue import measured_file_name
        from growtas.latency.modelled.profile import user_folder

        self.device, self.space, self.runtime, self.precision, self.batch = device, space, runtime, precision, batch
        self.threads, self.seconds, self.bounds, self.hidden = threads, seconds, bounds, hidden
        self.path = out or user_folder() / measured_file_name(device, space.name, runtime, precision, batch)

    def run(self, plan: Plan) -> tuple[MeasuredProfile, Path]:
        """Measure, fit, write; returns the profile and its file."""
        from growtas.errors import ConfigError
        from growtas.export.benchmark.stopwatch import ArchitectureTurns, check_device
        from growtas.export.benchmark.timing import clocks, environment
        from growtas.export.runtimes.base import available_threads
        from growtas.files import ensure_writable, write_json
        from growtas.latency.measured.campaign import Campaign
        from growtas.latency.measured.profiling import make_profile, measure_plan
        from growtas.latency.measured.setup import Setup
        from growtas.latency.modelled.profile import shipped_names

        if self.path.suffix != ".json":
            raise ConfigError(f"--out is {self.path}; a profile's file must end in .json")
        ensure_writable(self.path.parent)
        machine = environment()
        threads = self.threads or available_threads()
        if (machine["load_average_1min"] or 0) > machine["cpu_threads_available"] / 2:
            note(f"other work is running here (load average {machine['load_average_1min']:.1f}); samples may be refused")
        with _bar(plan.measurements, hidden=self.hidden) as (say, step):
            say("exporting blocks")
            reference = self.space.middle()
            turns = ArchitectureTurns(
                self.space,
                [*plan.first, reference],
                runtime=self.runtime,
                batch=self.batch,
                threads=threads,
                seconds=self.seconds,
            )
            info = turns.info(reference)
            check_device(self.device, shipped_names(), info.device)
            setup = Setup(
                batch=self.batch,
                threads=info.threads,
                runtime=self.runtime,
                runtime_version=info.version,
                precision=self.precision,
                machine=str(machine["cpu"]) if info.device == "cpu" else info.device,
            )
            say("comparing with the exporter")
            if not turns.check_against_exporter(reference):
                note("graphs put together from blocks differ from exported ones here; exporting each subnet, which takes longer")
            campaign = Campaign(
                self.path.with_suffix(".jsonl"),
                self.space,
                setup,
                turns,
                bounds=self.bounds,
                note=note,
                pause=time.sleep,
            )
            say("measuring")
            try:
                taken = measure_plan(campaign, plan, step)
            except KeyboardInterrupt:
                note(f"the samples so far are kept in {campaign.path}; the same command goes on from there")
                raise
        told = {**{key: value for key, value in machine.items() if value is not None}, **clocks()}
        made = make_profile(self.device, campaign, taken, description=setup.machine, machine=told)
        write_json(self.path, made.to_dict())
        return made, self.path


class _bar:
    """A progress bar on stderr: a function that names the stage, and one that counts samples."""

    def __init__(self, total: int, *, hidden: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress, self._total = progress(*columns, hidden=hidden), total

    def __enter__(self) -> tuple[Callable[[str], None], Callable[[int], None]]:
        self._progress.start()
        task = self._progress.add_task("starting", total=self._total)
        return (
            lambda what: self._progress.update(task, description=what),
            lambda count: self._progress.update(task, advance=count),
        )

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def _print(made: MeasuredProfile, report: dict[str, Any]) -> None:
    from rich.table import Table

    from growtas.units import format_ms

    held_out, repeated = made.held_out, made.repeatability
    times = [sample.p50_ms for _, sample in made.samples]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    rows = {
        "measured": f"{made.conditions}, {made.space.name}",
        "machine": f"{made.description}, {made.threads} threads" if made.threads else made.description,
        "latencies": f"{format_ms(min(times))} to {format_ms(max(times))} (measured)",
        "model": f"{made.basis}, fitted to {len(made.of_role('fit'))} subnets",
        f"error on {held_out.count} held-out": f"median {held_out.median:.2%}, p95 {held_out.p95:.2%}, max {held_out.max:.2%}",
        "rank correlation": f"{held_out.spearman:.4f} (Spearman)",
        "measurements repeat": (
            f"median {repeated.median:.2%}, max {repeated.max:.2%} on {repeated.count} subnets" if repeated.count else "not tried"
        ),
        "variation of blocks": f"at most {max(sample.cv for _, sample in made.samples):.2%}; {made.remeasured} measured again",
        "took": f"{report['seconds']:.0f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    print_table(table)
    console().print(f"written to {report['file']}", soft_wrap=True)
