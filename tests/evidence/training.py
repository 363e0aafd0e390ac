"""``python -m tests.evidence.training FOLDER``: runs and measures one training of the evidence plan.

FOLDER contains ``training.json``: the JSON form of :class:`tests.evidence.plan.Training`, the commit, and the folder of the
training from which it continues. The supernet is trained in FOLDER/run, from its last checkpoint if there is one. The finished line
of the ledger is written to FOLDER/line.json. Progress is reported on standard output as JSON lines.
"""

from __future__ import annotations

import ctypes
import json
import platform
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from growtas import Subnet
from growtas.checkpoint import load_supernet
from growtas.costs import count_costs
from growtas.data.evaluation import EvaluationSet, search_set, test_set
from growtas.errors import GrowtasError
from growtas.files import read_json, read_json_lines, write_json
from growtas.latency.at_hand import cpu_name
from growtas.nn.supernet import Supernet
from growtas.progress import Progress
from growtas.runs import Run
from growtas.search.evaluation.evaluator import SubnetEvaluator
from growtas.search.evolution import EvolutionConfig, evolve
from growtas.search.journal import Evaluation
from growtas.search.limits import Limits
from growtas.train.events import EpochDone, StepDone, TrainingStarted
from growtas.train.recipe import Recipe
from growtas.train.session import resume_session, start_session
from tests.evidence.ledger import SUBNETS
from tests.evidence.plan import Measurements, Training

SEARCH_SEED = 2026
_SAVE_MINUTES = 5.0
_ACTIVATION_BYTES = 1 << 30
_REPORT_SECONDS = 1.0
_WAIT_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


def report(**event: Any) -> None:
    """Reports progress to the process that started this one. This process ends if nobody reads the reports any more."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Reporter(Progress):
    """Reports the training's progress, about once a second."""

    def __init__(self) -> None:
        self._steps, self._next = 0, 0.0

    def event(self, event: object) -> None:
        """See :class:`growtas.progress.Progress`."""
        if isinstance(event, TrainingStarted):
            self._steps = event.steps
            report(step=event.step, steps=event.steps)
        elif isinstance(event, StepDone) and time.monotonic() >= self._next:
            self._next = time.monotonic() + _REPORT_SECONDS
            report(step=event.step, steps=self._steps)
        elif isinstance(event, EpochDone):
            metrics = event.metrics
            report(step=metrics["step"], steps=self._steps, epoch=metrics["epoch"], loss=metrics["loss"])


def train(training: Training, folder: Path, start: str | None) -> Run:
    """Finishes a training and returns its run.

    Args:
        folder: folder of the training.
        start: folder of the run with the initial weights.
    """
    run = Run(folder / "run")
    if not can_continue(run):
        shutil.rmtree(run.path, ignore_errors=True)
        recipe = Recipe(**training.recipe_fields(), init=start, save_minutes=_SAVE_MINUTES)
        start_session(recipe, out=folder, name="run", device="cpu").train(Reporter())
    elif run.info["state"] != "finished":
        resume_session(run, device="cpu").train(Reporter())
    return run


def can_continue(run: Run) -> bool:
    """Whether a run has a checkpoint and complete records of the epochs before it, which a power cut can destroy."""
    if not run.checkpoints:
        return False
    try:
        run.info  # noqa: B018 (reads the file)
        epochs = [line["epoch"] for line in read_json_lines(run.path / "metrics.jsonl")]
        done = read_json(run.checkpoints[-1] / "state.json")["epoch"]
    except GrowtasError:
        return False
    return epochs[:done] == list(range(1, done + 1))


def end_with_parent() -> None:
    """Lets Linux interrupt this process when the process that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def measure(training: Training, run: Run) -> dict[str, Any]:
    """Measures a trained supernet; returns the measured part of a ledger line."""
    start = time.perf_counter()
    wanted, subnets = Measurements(**training.measure), read_json(SUBNETS)
    supernet, search, test = load_supernet(run.supernet_file), search_set(run), test_set(run)
    probes = {name: Subnet.from_dict(entry) for name, entry in subnets["probes"].items()}
    found = best_subnets(supernet, search.subset(wanted.search_images), wanted, preferred(run))
    winners = list(dict.fromkeys(found.values()))
    on_search = accuracies(supernet, search, [*probes.values(), *winners], "the search split")
    on_test = accuracies(supernet, test, [*probes.values(), *winners], "the test set")
    line: dict[str, Any] = {
        "probes": {name: {"search": on_search[probe], "test": on_test[probe]} for name, probe in probes.items()},
        "searched": [
            {
                "max_params": limit,
                "params": count_costs(run.space, best).params,
                "subnet": best.to_dict(),
                "search": on_search[best],
                "test": on_test[best],
            }
            for limit, best in found.items()
        ],
        "band": None,
    }
    if wanted.band:
        band = [Subnet.from_dict(entry) for entry in subnets["band"]["subnets"]]
        values = accuracies(supernet, test, band, "the parameter band")
        line["band"] = [values[subnet] for subnet in band]
    return {**line, "search_images": len(search), "test_images": len(test), "measure_seconds": time.perf_counter() - start}


def accuracies(supernet: Supernet, images: EvaluationSet, subnets: Sequence[Subnet], what: str) -> dict[Subnet, float]:
    """Measures the accuracy (0 to 1) of subnets on images."""
    found: dict[Subnet, float] = {}
    with evaluator(supernet, images) as evaluate:
        for subnet, evaluation in evaluate(subnets):
            found[subnet] = evaluation.accuracy
            report(measuring=what, done=len(found), of=len(subnets))
    return found


def best_subnets(
    supernet: Supernet, images: EvaluationSet, wanted: Measurements, candidates: Sequence[Subnet]
) -> dict[int, Subnet]:
    """Finds the best subnet under each parameter limit, by the paper's evolution and among some candidates."""
    space, best = supernet.space, {}
    config = EvolutionConfig(generations=wanted.generations, population=wanted.population)
    known: dict[Subnet, Evaluation] = {}
    with evaluator(supernet, images) as evaluate:

        def scores(subnets: Sequence[Subnet]) -> list[tuple[float, float, int]]:
            known.update(evaluate([subnet for subnet in subnets if subnet not in known]))
            report(measuring="the searches", done=len(best), of=len(wanted.limits))
            return [(known[s].accuracy, -known[s].loss, -count_costs(space, s).params) for s in subnets]

        for limit in wanted.limits:
            feasible = Limits(max_params=limit).feasible(space)
            evolved = evolve(space, scores, feasible, np.random.default_rng(SEARCH_SEED), config).ranked
            legal = [subnet for subnet in candidates if count_costs(space, subnet).params <= limit]
            ranked = [*evolved, *zip(legal, scores(legal), strict=True)]
            best[limit] = max(ranked, key=lambda pair: pair[1])[0]
            report(measuring="the searches", done=len(best), of=len(wanted.limits))
    return best


def preferred(run: Run) -> list[Subnet]:
    """The subnets that PreNAS trains and searches; empty for other methods."""
    return [Subnet.from_dict(entry) for entry in _state(run).get("preferred", [])]


def evaluator(supernet: Supernet, images: EvaluationSet) -> SubnetEvaluator:
    """Returns an evaluator with little memory, because it runs beside other work."""
    return SubnetEvaluator(supernet, images, activation_bytes=_ACTIVATION_BYTES)


def transitions(run: Run) -> dict[str, Any]:
    """The epochs at which the training opened its subspaces, with the reasons if the training chose them."""
    recipe, state = Recipe.from_dict(run.info["recipe"]), _state(run)
    if "transitions" in state:
        return {"epochs": state["transitions"], "reasons": state["reasons"]}
    return {"epochs": list(recipe.growth(run.space).transitions) if recipe.method == "growtas" else []}


def _state(run: Run) -> dict[str, Any]:
    """The state of the training's method at the end."""
    state: dict[str, Any] = read_json(run.checkpoints[-1] / "state.json")["strategy"]
    return state


def facts(training: Training, run: Run) -> dict[str, Any]:
    """The part of a ledger line about the training itself."""
    metrics = read_json_lines(run.path / "metrics.jsonl")
    split = read_json(run.path / "split.json")
    compute = {name: sum(line["compute"][name] for line in metrics) for name in ("macs", "extra_macs")}
    return {
        **training.identity,
        "recipe": {key: value for key, value in run.info["recipe"].items() if key != "init"},
        "images": split["train_size"] - len(split["search"]),
        "steps": metrics[-1]["step"],
        **compute,
        "transitions": transitions(run),
        "seconds": sum(line["seconds"] for line in metrics),
    }


def machine(run: Run) -> dict[str, Any]:
    """The versions, the CPU, and the number of used threads."""
    return {
        "versions": {"python": platform.python_version(), **run.info["versions"]},
        "cpu": f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Trains and measures; returns the exit code, 0 or that of the error."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with_parent()
    folder = Path(sys.argv[1])
    job: Mapping[str, Any] = read_json(folder / "training.json")
    training = Training.from_dict(job["training"])
    try:
        # An earlier process may need a moment to end, when the one that started it was killed.
        with FileLock(folder / "lock", timeout=_WAIT_SECONDS):
            run = train(training, folder, job["start"])
            if job["measure"]:
                line = {**facts(training, run), **measure(training, run), "commit": job["commit"], **machine(run)}
                write_json(folder / "line.json", line, sync=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except Timeout:
        sys.stderr.write(f"{training.title}: another process still trains it in {folder}\n")
        sys.exit(1)
    except GrowtasError as error:
        sys.stderr.write(f"{training.title}: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
