"""One search of the command line: from what was asked for to the files that are written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.cli.output import note

if TYPE_CHECKING:
    from growtas.cli.search_plan import Device
    from growtas.runs import Run
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
        """Search, write the results, and return the subnet found and what ``--json`` prints."""
        import torch

        from growtas.checkpoint import load_supernet
        from growtas.cli.search_live import EvolutionTable
        from growtas.data.evaluation import search_set
        from growtas.files import ensure_writable, sha256
        from growtas.search.evaluate import SubnetEvaluator, fingerprint
        from growtas.search.journal import Journal
        from growtas.search.racing import Racing
        from growtas.search.scoring import Scorer

        r = self.request
        ensure_writable(r.out)
        modelled = self._modelled()
        checkpoint = r.run.supernet
        supernet, digest = load_supernet(checkpoint), sha256(checkpoint)
        images = search_set(r.run, data=r.data, data_dir=r.data_dir)
        if r.limit_images is not None:
            images = images.subset(r.limit_images)
        description = {"data": r.data or r.run.info["data"], "preprocess": r.run.info["preprocess"]}
        data_digest = fingerprint(images, description)
        search = self._plan(modelled)
        journal = Journal(r.out / "journal.jsonl", digest, data_digest, self._settings())
        torch_device = "cuda" if torch.cuda.is_available() else "cpu"
        started = time.perf_counter()
        try:
            with (
                SubnetEvaluator(supernet, images, device=torch_device) as evaluate,
                EvolutionTable(r.config.generations, r.config.population, hidden=r.hidden) as table,
            ):
                # A front wants every accuracy, and so do finalists that may miss a measured limit: the next best is wanted then.
                exact = r.exact or bool(r.axes) or any(target.stopwatch and target.max_ms is not None for target in search.targets)
                racing = None if exact else Racing(r.config.parents, len(images))
                scorer = Scorer(r.space, evaluate, journal, table.evaluated, racing)
                outcome = search.run(scorer, r.config, r.seed, table.generation, table.finalist)
        except KeyboardInterrupt:
            note(f"{len(journal)} evaluations are kept in {journal.path}; the same command goes on from there")
            raise
        more = {
            "images": {"split": "search", "count": len(images), "fingerprint": data_digest},
            "exact": exact,
            "evaluated": scorer.evaluated,
            "dropped": scorer.dropped,
            "reused": scorer.reused,
            "evaluated_on": torch_device,
            "seconds": time.perf_counter() - started,
        }
        return outcome.found, self._write(search, outcome, digest, more)

    def replay(self) -> tuple[Found, dict[str, Any]]:
        """Choose among what the journal holds; as :meth:`search`, but nothing is evaluated.

        Raises:
            UsageError: the journal does not hold what is needed.
            LimitError: no recorded subnet meets the limits.
        """
        from growtas.errors import LimitError
        from growtas.files import ensure_writable, sha256
        from growtas.search.replay import ENOUGH, Recorded

        r, started = self.request, time.perf_counter()
        ensure_writable(r.out)
        digest = sha256(r.run.supernet)
        recorded = Recorded.read(r.out / "journal.jsonl", digest)
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
        if not enough:
            note(
                f"the journal holds only {legal} subnets within these limits (of {len(scores)}), fewer than {ENOUGH}: "
                "a search without --replay would likely find a better one"
            )
        more = {
            "images": {"split": "search", "count": None, "fingerprint": recorded.data_fingerprint},
            "evaluated": 0,
            "dropped": 0,
            "reused": len(scores),
            "replay": {"journal": str(recorded.path), "recorded": len(scores), "legal": legal, "enough": enough},
            "seconds": time.perf_counter() - started,
        }
        return outcome.found, self._write(search, outcome, digest, more)

    def _modelled(self) -> dict[str, Target]:
        """Targets that are not at hand; before anything slow, since infeasible limits raise here."""
        from growtas.cli.search_plan import modelled_target
        from growtas.latency.profile import CPU

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

    def _write(self, search: Search, outcome: Outcome, digest: str, more: dict[str, Any]) -> dict[str, Any]:
        from growtas.cli.search_view import latency_note
        from growtas.files import write_json
        from growtas.search.front import front_report
        from growtas.watch.search_report import SearchReport, history

        r, found, settings = self.request, outcome.found, self._settings()
        files: dict[str, Path] = {"result": r.out / "result.json", "subnet": r.out / "subnet.json"}
        report: dict[str, Any] = {
            "run": str(r.run.path),
            "run_chosen": r.said,
            "checkpoint": str(r.run.supernet),
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
        files |= {"report": r.out / "report.html"} | ({"picture": r.out / "search.png"} if drawn.can_draw else {})
        report["files"] = {name: str(path) for name, path in files.items()}
        write_json(files["result"], report)
        subnet = {**found.to_dict(), **{key: settings[key] for key in ("device", "devices", "limits")}}
        write_json(files["subnet"], {**subnet, "space": r.run.space.name, "checkpoint_sha256": digest})
        drawn.write(files["report"], files.get("picture"))
        return report
