"""One search of the command line: from what was asked for to the files that are written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from growtas.cli.output import MAIN, note

if TYPE_CHECKING:
    from growtas.cli.search_load import Loaded
    from growtas.cli.search_plan import Device
    from growtas.runs import Run
    from growtas.search.evaluation.workers import Crew
    from growtas.search.evolution import EvolutionConfig
    from growtas.search.finalists import Found
    from growtas.search.limits import Limits
    from growtas.search.search import Outcome, Search
    from growtas.search.targets import Target
    from growtas.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for; paths and options as its help says.

    Attributes:
        said: how the run was chosen.
        axes: of the front; empty without one.
        exact: evaluate every subnet on all images, though it can't become a parent.
        hidden: show no progress.
    """

    run: Run
    said: str
    space: SearchSpace
    limits: Limits
    devices: tuple[Device, ...]
    axes: tuple[str, ...]
    exact: bool
    config: EvolutionConfig
    seed: int
    limit_images: int | None
    data: str | None
    data_dir: str | None
    out: Path
    hidden: bool


class Job:
    """Runs a request."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def search(self) -> tuple[Found, dict[str, Any]]:
        """Search, write the results, and return the subnet found and what ``--json`` prints.

        Of several processes that torchrun started only process 0 returns; the others evaluate for it.

        Raises:
            typer.Exit: on the others, when process 0 is done, or has failed: it has said why.
        """
        from growtas.search.evaluation.workers import crew

        with crew() as world:
            if world.is_main:
                return self._lead(world)
            self._serve(world)
        raise typer.Exit

    def _lead(self, world: Crew) -> tuple[Found, dict[str, Any]]:
        from growtas.cli.search_live import EvolutionTable
        from growtas.errors import WorkerError
        from growtas.files import ensure_writable
        from growtas.nn.evaluation import kernels
        from growtas.search.evaluation.evaluator import make_evaluator
        from growtas.search.evaluation.racing import Racing
        from growtas.search.journal import Journal
        from growtas.search.scoring import Scorer

        r = self.request
        try:
            ensure_writable(r.out)
            modelled = self._modelled()
            # A training that goes on writes newer ones meanwhile.
            loaded = self._load(r.run.supernet_file)
            if world.size > 1:
                loaded.decode()
            search = self._plan(modelled)
            journal = Journal(r.out / "journal.jsonl", loaded.digest, loaded.data_digest, self._settings(), self._others())
            evaluator = make_evaluator(loaded.supernet, loaded.images, device=world.device, world=world)
        except Exception:
            with contextlib.suppress(WorkerError):
                world.share(None)
            raise
        images, started = loaded.images, time.perf_counter()
        on_cpu = world.device == "cpu"
        if on_cpu and kernels.instructions() is None:
            note("evaluation is slower without its kernels: growtas was installed without a C compiler or Python's headers")
        try:
            world.share((loaded.checkpoint, loaded.digest, loaded.data_digest))
            with (
                evaluator as evaluate,
                EvolutionTable(r.config.generations, r.config.population, hidden=r.hidden) as table,
            ):
                # A front wants every accuracy, and so do finalists that may miss a measured limit: the next best is wanted then.
                exact = r.exact or bool(r.axes) or any(target.stopwatch and target.max_ms is not None for target in search.targets)
                racing = None if exact else Racing(r.config.parents, len(images))
                scorer = Scorer(r.space, evaluate, journal, table.evaluated, racing)
                outcome = search.run(scorer, r.config, r.seed, table.generation, table.finalist)
        except (KeyboardInterrupt, WorkerError):
            note(f"{len(journal)} evaluations are kept in {journal.path}; the same command goes on from there")
            raise
        if journal.borrowed:
            counts = {journal.path: scorer.reused - sum(journal.borrowed.values()), **journal.borrowed}
            note(f"evaluations reused: {_counted(counts)}")
        more = {
            "images": {"split": "search", "count": len(images), "fingerprint": loaded.data_digest},
            "exact": exact,
            "evaluated": scorer.evaluated,
            "dropped": scorer.dropped,
            "reused": scorer.reused,
            "reused_from_others": {str(path): count for path, count in journal.borrowed.items()},
            "evaluated_on": world.device.partition(":")[0],
            "kernels": kernels.instructions() if on_cpu else None,
            "processes": world.size,
            "seconds": time.perf_counter() - started,
        }
        return outcome.found, self._write(search, outcome, loaded.checkpoint, loaded.digest, more)

    def _serve(self, world: Crew) -> None:
        """On a process that is not the first: evaluate what process 0 deals out. Every failure is process 0's to tell."""
        from growtas.errors import CheckpointError, WorkerError
        from growtas.search.evaluation.evaluator import make_evaluator
        from growtas.search.evaluation.workers import SharedEvaluator, Unfit

        try:
            # Process 0 may measure this machine first, and decodes the images into the cache: nothing is loaded before it is done.
            message = world.share(None)
            if message is None:
                return
            checkpoint, *digests = message
            try:
                loaded = self._load(checkpoint)
                if [loaded.digest, loaded.data_digest] != digests:
                    raise CheckpointError(f"{checkpoint} or the images differ from those of process 0")
                evaluator = make_evaluator(loaded.supernet, loaded.images, device=world.device, world=world)
            except Exception as error:
                evaluator = SharedEvaluator(Unfit(error), world)
            with evaluator as evaluate:
                evaluate.serve()
        except WorkerError:
            raise typer.Exit(1) from None

    def _load(self, checkpoint: Path) -> Loaded:
        from growtas.cli.search_load import load

        r = self.request
        return load(r.run, checkpoint, data=r.data, data_dir=r.data_dir, limit_images=r.limit_images)

    def _others(self) -> list[Path]:
        """The journals of all searches in the run's folder."""
        return sorted(self.request.run.path.glob("search*/journal.jsonl"))

    def replay(self) -> tuple[Found, dict[str, Any]]:
        """Choose among what the run's journals hold; as :meth:`search`, but nothing is evaluated, by process 0 alone.

        Raises:
            typer.Exit: on the other processes of torchrun.
            UsageError: the journal does not hold what is needed.
            LimitError: no recorded subnet meets the limits.
        """
        from growtas.errors import LimitError
        from growtas.files import ensure_writable, sha256
        from growtas.search.rerank import ENOUGH, Recorded

        if not MAIN:
            raise typer.Exit
        r, started = self.request, time.perf_counter()
        ensure_writable(r.out)
        checkpoint = r.run.supernet_file
        digest = sha256(checkpoint)
        recorded = Recorded.read(r.out / "journal.jsonl", digest, self._others())
        search = self._plan(self._modelled())
        result, scores = recorded.ranked(r.space, search.feasible()), recorded.scores(r.space)

        def known(subnets: Any) -> list[Any]:
            for subnet in subnets:
                if subnet not in scores:
                    raise LimitError(
                        f"no recorded subnet meets the limits as measured, and the smallest one is not in {recorded.path}; "
                        "search without --replay to evaluate more"
                    )
            return [scores[subnet] for subnet in subnets]

        outcome = search.choose(result, known)
        legal = len(result.ranked)
        enough = legal >= ENOUGH
        if recorded.lent:
            counts = {recorded.path: len(recorded.evaluations) - sum(recorded.lent.values()), **recorded.lent}
            note(f"recorded evaluations: {_counted(counts)}")
        holder = "the run's journals hold" if recorded.lent else "the journal holds"
        if not enough:
            note(
                f"{holder} only {legal} subnets within these limits (of {len(scores)}), fewer than {ENOUGH}: "
                "a search without --replay would likely find a better one"
            )
        more = {
            "images": {"split": "search", "count": None, "fingerprint": recorded.data_fingerprint},
            "evaluated": 0,
            "dropped": 0,
            "reused": len(scores),
            "reused_from_others": {str(path): count for path, count in recorded.lent.items()},
            "replay": {"journal": str(recorded.path), "recorded": len(scores), "legal": legal, "enough": enough},
            "seconds": time.perf_counter() - started,
        }
        return outcome.found, self._write(search, outcome, checkpoint, digest, more)

    def _modelled(self) -> dict[str, Target]:
        """Targets that are not at hand; before anything slow, since infeasible limits raise here."""
        from growtas.cli.search_plan import modelled_target
        from growtas.latency.modelled.profile import CPU

        r = self.request
        return {d.name: modelled_target(d, r.space, r.limits.batch) for d in r.devices if d.name != CPU}

    def _plan(self, modelled: dict[str, Target]) -> Search:
        from growtas.cli.search_plan import measured_target
        from growtas.search.search import Search

        r = self.request
        predict = "latency" in r.axes
        targets = tuple(
            modelled.get(d.name) or measured_target(d, r.space, r.limits, r.limits.batch, r.out, predict=predict, hidden=r.hidden)
            for d in r.devices
        )
        return Search(space=r.space, limits=r.limits, targets=targets, front=r.axes)

    def _settings(self) -> dict[str, Any]:
        """What a reader of the journal and the results should know of the search."""
        r = self.request
        first = r.devices[0] if r.devices else None
        return {
            "space": r.space.name,
            "objective": "pareto" if r.axes else "accuracy",
            # The first device's limit is also where one device's has always been.
            "limits": {**r.limits.to_dict(), "max_latency_ms": first.max_ms if first else None},
            "device": first.name if first else None,
            "devices": [{"device": d.name, "max_latency_ms": d.max_ms, "precision": d.precision} for d in r.devices],
            "batch": r.limits.batch,
            "seed": r.seed,
            "generations": r.config.generations,
            "population": r.config.population,
        }

    def _write(self, search: Search, outcome: Outcome, checkpoint: Path, digest: str, more: dict[str, Any]) -> dict[str, Any]:
        from growtas.cli.search_view import latency_note
        from growtas.files import write_json
        from growtas.search.front import front_report
        from growtas.watch.figure import can_draw
        from growtas.watch.search_html import write_search_page
        from growtas.watch.search_plot import draw_search_png
        from growtas.watch.search_report import SearchReport, history

        r, found, settings = self.request, outcome.found, self._settings()
        files: dict[str, Path] = {"result": r.out / "result.json", "subnet": r.out / "subnet.json"}
        report: dict[str, Any] = {
            "run": str(r.run.path),
            "run_chosen": r.said,
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": digest,
            **settings,
            **more,
            "time": outcome.spent.to_dict(),
            "best": found.to_dict(),
            "latency_note": latency_note(found.latencies[0]) if found.latencies else None,
            "finalists": [finalist.to_dict() for finalist in found.finalists],
            "history": history(outcome.result),
        }
        if r.axes:
            files["front"] = r.out / "front.json"
            front = front_report(search, outcome.result)
            write_json(files["front"], front)
            report["front"] = {"subnets": len(front["subnets"]), "hypervolume": front["hypervolume"]}
        drawn = SearchReport.of(search, outcome, report)
        files |= {"report": r.out / "report.html"} | ({"picture": r.out / "search.png"} if can_draw() else {})
        report["files"] = {name: str(path) for name, path in files.items()}
        write_json(files["result"], report)
        subnet = {**found.to_dict(), **{key: settings[key] for key in ("device", "devices", "limits")}}
        write_json(files["subnet"], {**subnet, "space": r.run.space.name, "checkpoint_sha256": digest})
        write_search_page(drawn, files["report"])
        if "picture" in files:
            draw_search_png(drawn, files["picture"])
        return report


def _counted(counts: Mapping[Path, int]) -> str:
    return ", ".join(f"{count} from {path}" for path, count in counts.items() if count)
