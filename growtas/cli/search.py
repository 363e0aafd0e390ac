"""``growtas search``: the best subnet under limits."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, note, print_json

if TYPE_CHECKING:
    from growtas.runs import Run
    from growtas.search.limits import Limits
    from growtas.search.search import Found, Search
    from growtas.space import SearchSpace


def search(
    run: Annotated[Path | None, typer.Argument(help="Run folder; by default the newest in ./runs.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Choices to search: a preset or YAML file; without RUN, the newest run of this space.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Whose latency: cpu (measured here) or a profile; see `growtas devices`.")
    ] = None,
    max_params: Annotated[str | None, typer.Option(help="Limit on parameters, with a unit: 6M.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Limit on multiply-accumulates for one image, with a unit: 1.3G.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Limit on the median latency, with a unit: 5ms.")] = None,
    batch: Annotated[int, typer.Option(help="Images at once that the latency is meant for.")] = 1,
    precision: Annotated[
        str | None, typer.Option(help="Precision that the latency is meant for: fp32, tf32, fp16 or int8; by default the device's.")
    ] = None,
    generations: Annotated[int, typer.Option(help="Generations of the evolution.")] = 20,
    population: Annotated[int, typer.Option(help="New subnets a generation.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    limit_images: Annotated[int | None, typer.Option(help="Evaluate on so many images of the search split only.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set, where the run records none: a name as `growtas train` takes it.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for journal and results; by default RUN/search.")] = None,
    json_: JsonOption = False,
) -> None:
    """Search a trained supernet for the best subnet under limits.

    The paper's evolution: accuracy on images set aside from the training set, never the test set. Limits are hard. Every
    evaluation is journalled: a search that was stopped goes on when the same command runs again.

    Example: growtas search --device a10 --max-latency 5ms
    """
    from growtas.cli.search_view import show_found
    from growtas.errors import ConfigError, DeviceError, UsageError, choices
    from growtas.latency.profile import CPU, device_names, load_profile
    from growtas.search.evolution import EvolutionConfig
    from growtas.search.limits import Limits
    from growtas.units import parse_count, parse_latency_ms

    limits = Limits(
        max_params=parse_count(max_params, "--max-params", "6M") if max_params is not None else None,
        max_macs=parse_count(max_macs, "--max-macs", "1.3G") if max_macs is not None else None,
        max_latency_ms=parse_latency_ms(max_latency, "--max-latency", "5ms") if max_latency is not None else None,
    )
    config = EvolutionConfig(generations=generations, population=population)
    for option, value, lowest in (("--batch", batch, 1), ("--limit-images", limit_images, 1), ("--seed", seed, 0)):
        if value is not None and value < lowest:
            raise ConfigError(f"{option} is {value}; it must be {lowest} or more")
    if device is None and (limits.max_latency_ms is not None or precision is not None):
        option = "--max-latency" if limits.max_latency_ms is not None else "--precision"
        raise DeviceError(f"{option} needs --device: cpu to measure on this machine, or {choices(device_names()[1:])}")
    if device not in (None, CPU):
        load_profile(str(device)).peak_ops(precision or load_profile(str(device)).precision)
    elif device == CPU and precision not in (None, "fp32"):
        raise DeviceError(f"cpu is measured in fp32, not {precision!r}; leave --precision out, or name a GPU with --device")
    chosen, said = _find(run, space)
    note(f"run: {chosen.path} ({said})")
    state = chosen.info.get("state")
    if chosen.info.get("method") == "finetune":
        raise UsageError(f"{chosen.path}: a fine-tuned run holds one subnet and nothing to search; go on with growtas export")
    if state not in ("finished", "imported"):
        note(f"the training of this run is not finished ({state}); searching its newest checkpoint")
    searched = _search_space(chosen, space)
    limits.check(searched)
    job = _Job(chosen, said, searched, limits, device, batch, precision, out or chosen.path / "search", hidden=json_)
    found, report = job.go(config, seed, limit_images, data, data_dir)
    if json_:
        print_json(report)
        return
    show_found(found, limits, report)
    named = f" {chosen.path}" if run is not None or space is not None else ""
    console().print(f"next: growtas export{named} --format trt", soft_wrap=True)


def _find(run: Path | None, space: str | None) -> tuple[Run, str]:
    """The run, and how it was chosen."""
    from growtas.errors import UsageError
    from growtas.runs import RUNS, Run, find_run
    from growtas.space import load_space

    if run is not None:
        return find_run(run), "named"
    if space is None:
        return find_run(None), f"the newest in {RUNS}/"
    name = load_space(space).name
    runs = [found for path in RUNS.glob("*/run.json") if (found := Run(path.parent)).info["space"]["name"] == name]
    if not runs:
        raise UsageError(
            f"no run of the space {name} in {RUNS}/; make one with `growtas train --space {space}`, or name its folder"
        )
    return max(runs, key=lambda r: (r.info.get("created", ""), r.path.name)), f"the newest of {name} in {RUNS}/"


def _search_space(run: Run, space: str | None) -> SearchSpace:
    """The run's space, with the choices of ``--space`` where it is given; the supernet's bounds and geometry stay."""
    from growtas.errors import SpaceError
    from growtas.space import load_space

    trained = run.space
    if space is None:
        return trained
    wanted = load_space(space)
    dimensions = ("embed_dim", "num_heads", "mlp_ratio", "depth")
    for field in dimensions:
        highest, bound = getattr(wanted, field)[-1], getattr(trained, f"max_{field}")
        if highest > bound:
            raise SpaceError(f"--space {space}: {field} goes up to {highest:g}, but the supernet of {run.path} only to {bound:g}")
    return trained.replace(name=wanted.name, **{field: getattr(wanted, field) for field in dimensions})


class _Job:
    """One search of the command line: what it needs to know, what it prints and writes."""

    def __init__(
        self,
        run: Run,
        said: str,
        space: SearchSpace,
        limits: Limits,
        device: str | None,
        batch: int,
        precision: str | None,
        out: Path,
        *,
        hidden: bool,
    ) -> None:
        self.run, self.said, self.space, self.limits = run, said, space, limits
        self.device, self.batch, self.precision, self.out, self.hidden = device, batch, precision, out, hidden

    def go(
        self, config: Any, seed: int, limit_images: int | None, data: str | None, data_dir: str | None
    ) -> tuple[Found, dict[str, Any]]:
        """Search and write the results; returns the subnet found and what ``--json`` prints."""
        import torch

        from growtas.checkpoint import load_supernet
        from growtas.cli.search_view import EvolutionBar, latency_note
        from growtas.data.evaluation import search_set
        from growtas.files import ensure_writable, sha256, write_json
        from growtas.latency.profile import CPU
        from growtas.search.evaluate import SubnetEvaluator, fingerprint
        from growtas.search.journal import Journal
        from growtas.search.search import Scorer

        ensure_writable(self.out)
        plan = None if self.device == CPU else self._modelled_plan()
        checkpoint = self.run.supernet
        supernet, digest = load_supernet(checkpoint), sha256(checkpoint)
        images = search_set(self.run, data=data, data_dir=data_dir)
        if limit_images is not None:
            images = images.subset(limit_images)
        description = {"data": data or self.run.info["data"], "preprocess": self.run.info["preprocess"]}
        data_digest = fingerprint(images, description)
        plan = plan or self._measured_plan()
        settings = {"space": self.space.name, "limits": self.limits.to_dict(), "device": self.device, "batch": self.batch}
        settings |= {"seed": seed, "generations": config.generations, "population": config.population}
        journal = Journal(self.out / "journal.jsonl", digest, data_digest, settings)
        torch_device = "cuda" if torch.cuda.is_available() else "cpu"
        started = time.perf_counter()
        try:
            with (
                SubnetEvaluator(supernet, images, device=torch_device) as evaluate,
                EvolutionBar(config.generations, config.population, hidden=self.hidden) as bar,
            ):
                scorer = Scorer(self.space, evaluate, journal, bar.evaluated)
                found, result = plan.run(scorer, config, seed, bar.generation, bar.finalist)
        except KeyboardInterrupt:
            note(f"{len(journal)} evaluations are kept in {journal.path}; the same command goes on from there")
            raise
        seconds = time.perf_counter() - started
        report = {
            "run": str(self.run.path),
            "run_chosen": self.said,
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": digest,
            **settings,
            "images": {"split": "search", "count": len(images), "fingerprint": data_digest},
            "evaluated": scorer.evaluated,
            "reused": scorer.reused,
            "evaluated_on": torch_device,
            "seconds": seconds,
            "best": found.to_dict(),
            "latency_note": latency_note(found.latency, self.limits.max_latency_ms),
            "measured_finalists": [{"subnet": s.to_dict(), "ms": ms} for s, ms in found.measured_finalists],
            "history": [
                {
                    "generation": generation.number,
                    "subnets": len(generation.ranked),
                    "best_accuracy": generation.best[1][0],
                    "generation_best_accuracy": generation.ranked[0][1][0],
                    "median_accuracy": statistics.median(score[0] for _, score in generation.ranked),
                }
                for generation in result.history
            ],
        }
        subnet = {**found.to_dict(), "device": self.device, "limits": self.limits.to_dict()}
        files = {"result": self.out / "result.json", "subnet": self.out / "subnet.json"}
        write_json(files["result"], report)
        write_json(files["subnet"], {**subnet, "space": self.run.space.name, "checkpoint_sha256": digest})
        return found, {**report, "files": {name: str(path) for name, path in files.items()}}

    def _modelled_plan(self) -> Search:
        """The search under the profile's modelled latency, if a device was named; infeasible limits raise here."""
        from growtas.latency.profile import load_profile
        from growtas.latency.roofline import RooflineLatency
        from growtas.search.search import Search

        latency = None
        if self.device is not None:
            latency = RooflineLatency(
                profile=load_profile(self.device), space=self.space, batch=self.batch, precision=self.precision or ""
            )
        self.limits.check(self.space, latency)
        return Search(space=self.space, limits=self.limits, latency=latency)

    def _measured_plan(self) -> Search:
        """Measure some subnets here and fit the model that prunes; without a latency limit only the winner will be measured."""
        import onnxruntime

        from growtas.cli.search_view import measuring_bar
        from growtas.export.backends.base import available_threads
        from growtas.export.measure import environment, measure_architecture
        from growtas.latency.fitted import fit_latency, sample_subnets
        from growtas.latency.samples import LatencySamples, Setup
        from growtas.search.limits import Limits
        from growtas.search.search import Search

        threads = available_threads()
        setup = Setup(
            batch=self.batch,
            threads=threads,
            runtime="onnxruntime",
            runtime_version=onnxruntime.__version__,
            precision="fp32",
            machine=str(environment()["cpu"]),
        )
        samples = LatencySamples(
            self.out / "cpu-latency.jsonl",
            self.space,
            setup,
            lambda architecture: measure_architecture(architecture, batch=self.batch, threads=threads),
        )
        if self.limits.max_latency_ms is None:
            return Search(space=self.space, limits=self.limits, samples=samples)
        costs_only = Limits(max_params=self.limits.max_params, max_macs=self.limits.max_macs)
        subnets = sample_subnets(self.space, costs_only.feasible(self.space))
        with measuring_bar(len(subnets), hidden=self.hidden) as step:
            smallest_ms = samples.measure_ms(self.space.smallest)
            self.limits.check_latency(self.space, smallest_ms, "measured", samples.conditions)
            values = samples.measure_all(subnets, step)
        latency = fit_latency(self.space, subnets, values, samples.conditions)
        note(f"latency model for pruning: {len(subnets)} subnets measured here, held-out error up to {latency.held_out_error:.0%}")
        return Search(space=self.space, limits=self.limits, latency=latency, samples=samples, fitted_to=tuple(subnets))
