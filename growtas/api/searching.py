"""Searches a trained supernet; :func:`search` is what ``growtas search`` calls."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.api.search_results import SearchResult, write_results
from growtas.errors import CheckpointError, ConfigError, DeviceError, LimitError, WorkerError, choices
from growtas.files import ensure_writable, sha256
from growtas.latency.at_hand import devices_at_hand
from growtas.latency.estimate import RUNTIMES
from growtas.latency.modelled.profile import BYTES
from growtas.progress import SILENT, Progress
from growtas.resources import available_threads, check_threads
from growtas.runs import Run
from growtas.search.devices import Device, Devices, parse_devices
from growtas.search.evolution import EvolutionConfig
from growtas.search.journal import Journal
from growtas.search.limits import Limits
from growtas.search.pareto import OBJECTIVES, parse_axes
from growtas.search.precision_front import Variant
from growtas.search.scoring import Score
from growtas.search.search import Outcome, Search
from growtas.search.supernet import LoadedSupernet, find_supernet, profiled_as, searched_space
from growtas.search.targets import Target
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import parse_bytes, parse_count

if TYPE_CHECKING:
    from growtas.search.evaluation.workers import SearchWorld


PREDICTED_GENERATIONS = 10
"""Generations by default, where a predictor chooses what is evaluated: half of the paper's."""
REPLAY = "replay"
"""Folder of a replay's results, in the folder of the search."""


def search(
    run: Run | str | Path | None = None,
    *,
    space: str | None = None,
    devices: Devices = (),
    max_params: str | int | None = None,
    max_macs: str | int | None = None,
    max_macs_with_relative_position: str | int | None = None,
    max_latency: str | float | None = None,
    max_activation_memory: str | int | None = None,
    max_size: str | int | None = None,
    batch: int = 1,
    precision: str | None = None,
    runtime: str | None = None,
    objective: str = "accuracy",
    front: str | None = None,
    replay: bool = False,
    exact: bool = False,
    predictor: bool = True,
    strict: bool = False,
    generations: int | None = None,
    population: int = 50,
    seed: int = 0,
    limit_images: int | None = None,
    threads: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    out: str | Path | None = None,
    command: str | None = None,
    progress: Progress = SILENT,
) -> SearchResult:
    """Searches a trained supernet for the best subnet under limits, by the paper's evolution (Section 3.3).

    Every evaluation is journalled: a search that was stopped goes on when it is called with the same arguments again. Of several
    processes that torchrun started only the first one returns; the others evaluate subnets for it, and then end.

    Args:
        run: a run or its folder; by default the newest in ``runs`` that holds a supernet.
        space: choices to search, a preset or a YAML file; without ``run`` also the space of the newest run.
        devices: whose latency is limited or measured: names with limits (``{"a10": "5ms"}``; a number is in milliseconds), or
            names. ``cpu`` is measured on this machine. A name may say the runtime and precision that are meant:
            ``cpu:openvino:int8``.
        max_params, max_macs: limits, as numbers or with a unit: ``"6M"``; MACs are for one image, without the relative position.
        max_macs_with_relative_position: limit on the MACs with it.
        max_latency: limit on the median latency of the devices that have none, ``"5ms"`` or milliseconds.
        max_activation_memory, max_size: limits on the modelled bytes of activations and weights, ``"20MB"`` or bytes.
        batch: images at once that latency and activation memory are meant for.
        precision: of latency, memory and size, and what accuracy is chosen by: int8 and fp8 finalists are converted and scored; by
            default the device's. Several with commas (``"fp32,int8"``) are points of their own on a ``pareto`` front of one device.
        runtime: what executes the network on the devices that name none; by default ONNX Runtime on ``cpu``, elsewhere what a
            device's profile is of.
        objective: ``accuracy``, or ``pareto`` for a whole front (NSGA-II).
        front: axes of the front, such as ``"accuracy,latency"``.
        replay: choose among the journalled subnets; evaluate nothing. The results go into the folder ``replay`` in ``out``, and
            what a search has chosen there stays.
        exact: evaluate every subnet on all images, even if it can't become a parent.
        predictor: for a front, and where a latency limit is judged on measurements, evaluate the subnets whose accuracy is
            predicted to be best, as fitted to all evaluations before. Other searches use no predictions.
        strict: on a machine whose timings are not steady, refuse to judge a latency limit; by default it is judged on ratios to a
            reference subnet, and the result is marked as unsteady.
        generations: of the evolution; by default 20, or 10 where a predictor chooses.
        population: subnets of a generation.
        seed: of all random choices.
        limit_images: evaluate on so many images of the search split only.
        threads: CPU threads of the evaluation, of each process, and of what is timed on this machine; by default all that this
            process may use.
        data, data_dir: the data set, where the run records none.
        out: folder of the journal and the results; by default ``RUN/search``.
        command: the line that was typed, which the results then name.
        progress: gets the notes, stages and events (:class:`growtas.search.scoring.Evaluated`,
            :class:`growtas.search.evolution.GenerationResult`).

    Raises:
        UsageError: a wrong argument, no run, limits that no subnet meets, or a journal that a replay can't use.
        UnsteadyMachine: this machine is too busy to measure latencies, and ``strict``.
        WorkerError: another process of this search failed.
        WorkerExit: on the processes of torchrun that are not the first one.
    """
    for option, value, lowest in (("--batch", batch, 1), ("--limit-images", limit_images, 1), ("--seed", seed, 0)):
        if value is not None and value < lowest:
            raise ConfigError(f"{option} is {value}; it must be {lowest} or more")
    check_threads(threads)
    if objective not in OBJECTIVES:
        raise ConfigError(f"--objective is {objective!r}; legal are {choices(OBJECTIVES)}")
    if front is not None and objective != "pareto":
        raise ConfigError("--front needs --objective pareto")
    evaluating = {
        "--data": data is not None,
        "--data-dir": data_dir is not None,
        "--limit-images": limit_images is not None,
        "--exact": exact,
        "--no-predictor": not predictor,
        "--generations": generations is not None,
        "--population": population != EvolutionConfig.population,
    }
    if replay and (ignored := next((option for option, given in evaluating.items() if given), None)):
        raise ConfigError(f"{ignored} changes nothing with --replay, which evaluates nothing; leave it out")
    if batch != 1 and not devices and max_activation_memory is None:
        raise ConfigError("--batch changes nothing without a --device or --max-activation-memory; leave it out")
    sizes = max_size is not None or max_activation_memory is not None
    several = precision is not None and "," in precision
    if several:
        devices, precision = _one_of_each(devices, str(precision), runtime, objective), None
    parsed = parse_devices(devices, max_latency, precision, runtime, sizes=sizes)
    limits = Limits(
        max_params=_amount(parse_count, max_params, "--max-params", "6M"),
        max_macs=_amount(parse_count, max_macs, "--max-macs", "1.3G"),
        max_macs_with_relative_position=_amount(
            parse_count, max_macs_with_relative_position, "--max-macs-with-relative-position", "1.3G"
        ),
        max_activation_bytes=_amount(parse_bytes, max_activation_memory, "--max-activation-memory", "20MB"),
        max_size_bytes=_amount(parse_bytes, max_size, "--max-size", "12MB"),
        batch=batch,
        # Of several devices' precisions the one with the most bytes.
        precision=max((device.precision for device in parsed), key=BYTES.__getitem__, default=precision or "fp32"),
    )
    config = EvolutionConfig(generations=EvolutionConfig.generations if generations is None else generations, population=population)
    chosen_run, how = find_supernet(run.path if isinstance(run, Run) else run, space, progress)
    progress.note(f"run: {chosen_run.path} ({how})")
    state = chosen_run.info.get("state")
    if state not in ("finished", "imported"):
        progress.note(f"the training of this run is not finished ({state}); searching its newest checkpoint")
    searched = searched_space(chosen_run, space)
    limits.check(searched)
    request = _Request(
        run=chosen_run,
        run_chosen=how,
        space=searched,
        limits=limits,
        devices=parsed,
        axes=parse_axes(front, bool(parsed)) if objective == "pareto" else (),
        several=several,
        exact=exact,
        predictor=predictor,
        strict=strict,
        config=config,
        generations=generations,
        seed=seed,
        threads=threads,
        load=partial(LoadedSupernet.load, chosen_run, data=data, data_dir=data_dir, limit_images=limit_images),
        out=Path(out) if out else chosen_run.path / "search",
        data=chosen_run.images(data, data_dir),
        command=command,
        progress=progress,
    )
    return request.replay() if replay else request.search()


def _one_of_each(devices: Devices, precisions: str, runtime: str | None, objective: str) -> dict[str, str | float | None]:
    """One device as a target in each of several precisions."""
    names = [devices] if isinstance(devices, str) else list(devices)
    if objective != "pareto" or len(names) != 1:
        raise ConfigError(f"--precision {precisions}: several precisions need --objective pareto and one --device")
    name, limit = names[0], devices[names[0]] if isinstance(devices, Mapping) else None
    given = [precision.strip() for precision in precisions.split(",")]
    for precision in given:
        if precision not in BYTES:
            raise ConfigError(f"--precision {precisions}: {precision!r} is not legal; legal are {choices(BYTES)}")
    if len(set(given)) < len(given) or set(name.split(":")) & BYTES.keys():
        raise ConfigError(f"--precision {precisions}: a precision is named twice, or by --device {name} as well")
    own_runtime = f"{name}:{runtime}" if runtime in RUNTIMES and RUNTIMES.keys().isdisjoint(name.split(":")) else name
    return {f"{own_runtime}:{precision}": limit for precision in given}


def _amount(parse: Callable[[str, str, str], int], limit: str | int | None, option: str, example: str) -> int | None:
    return parse(limit, option, example) if isinstance(limit, str) else limit


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A search with checked arguments; see :func:`search`.

    Attributes:
        run_chosen: how the run was chosen.
        axes: of the front; empty without one.
        several: the devices are one device in several precisions.
        config: of the evolution, where no predictor chooses.
        generations: what was asked for; None where it was left open.
        load: loads a checkpoint of the run, and its images.
        data: the name of the data set and what else is recorded of it.
        command: the line that was typed, None where that is not known.
    """

    run: Run
    run_chosen: str
    space: SearchSpace
    limits: Limits
    devices: tuple[Device, ...]
    axes: tuple[str, ...]
    several: bool
    exact: bool
    predictor: bool
    strict: bool
    config: EvolutionConfig
    generations: int | None
    seed: int
    threads: int | None
    load: Callable[[Path], LoadedSupernet]
    out: Path
    data: Mapping[str, Any] | None
    command: str | None
    progress: Progress

    def search(self) -> SearchResult:
        from growtas.search.evaluation.workers import WorkerExit, search_world

        with search_world() as world:
            if world.is_main:
                return self._lead(world)
            self._serve(world)
        raise WorkerExit(0)

    def _lead(self, world: SearchWorld) -> SearchResult:
        from growtas.api.search_precision import ConvertedEvaluator
        from growtas.nn.evaluation import kernels
        from growtas.search.evaluation.evaluator import SubnetEvaluator
        from growtas.search.evaluation.racing import Racing
        from growtas.search.evaluation.workers import SharedEvaluator
        from growtas.search.precision import ConvertedScorer
        from growtas.search.scoring import Scorer

        progress = self.progress
        try:
            ensure_writable(self.out)
            remote = self._remote_targets()
            # A training that goes on writes newer ones meanwhile.
            loaded = self.load(self.run.supernet_file)
            if world.size > 1:
                loaded.decode()
            search = self._with_targets(remote)
            config, settings = self._config(search.predicts), self._settings(predicts=search.predicts)
            path, others = self.out / "journal.jsonl", self._other_journals()
            journal = Journal(path, loaded.digest, loaded.data_digest, settings, others)
            local = SubnetEvaluator(loaded.supernet, loaded.images, device=world.device, threads=self.threads)
        except Exception:
            with contextlib.suppress(WorkerError):
                world.share(None)
            raise
        images, started = loaded.images, time.perf_counter()
        on_cpu = world.device == "cpu"
        if on_cpu and kernels.instructions() is None:
            progress.note(
                "evaluation is slower without its kernels: growtas was installed without a C compiler or Python's headers"
            )
        try:
            world.share((loaded.checkpoint, loaded.digest, loaded.data_digest))
            with SharedEvaluator(local, world) as evaluate:
                exact = self.exact or search.wants_every_accuracy
                racing = None if exact else Racing(config.parents, len(images))
                scorer = Scorer(self.space, evaluate, journal, racing, progress)
                convert = ConvertedEvaluator(loaded.supernet, images, loaded.split, local.threads)
                outcome = search.run(scorer, config, self.seed, progress, ConvertedScorer(journal, convert, progress))
                gains = self._gains(search, outcome)
        except (KeyboardInterrupt, WorkerError):
            progress.note(f"{len(journal)} evaluations are kept in {journal.path}; the same command goes on from there")
            raise
        if journal.borrowed:
            progress.note(f"evaluations reused: {_counted(journal.path, scorer.reused, journal.borrowed)}")
        record = {
            **self._record(loaded.checkpoint, loaded.digest, settings),
            "images": {"split": "search", "count": len(images), "fingerprint": loaded.data_digest},
            "exact": exact,
            "evaluated": scorer.evaluated,
            "dropped": scorer.dropped,
            "reused": scorer.reused,
            "reused_from_others": {str(path): count for path, count in journal.borrowed.items()},
            "evaluated_on": world.device.partition(":")[0],
            "kernels": kernels.instructions() if on_cpu else None,
            "processes": world.size,
            "threads": local.threads,
            "seconds": time.perf_counter() - started,
            "compared_with_fp32": gains,
        }
        return write_results(self.run, self.out, search, outcome, record)

    def _serve(self, world: SearchWorld) -> None:
        """Evaluates what process 0 distributes, on another process. Process 0 reports every failure."""
        from growtas.search.evaluation.evaluator import SubnetEvaluator
        from growtas.search.evaluation.workers import SharedEvaluator, WorkerExit

        try:
            # Process 0 may measure this machine first, and decodes the images into the cache: nothing is loaded before it is done.
            message = world.share(None)
            if message is None:
                return
            checkpoint, *digests = message
            local: SubnetEvaluator | Exception
            try:
                loaded = self.load(checkpoint)
                if [loaded.digest, loaded.data_digest] != digests:
                    raise CheckpointError(f"{checkpoint} or the images differ from those of process 0")
                local = SubnetEvaluator(loaded.supernet, loaded.images, device=world.device, threads=self.threads)
            except Exception as error:
                local = error
            with SharedEvaluator(local, world) as evaluate:
                evaluate.serve()
        except WorkerError:
            raise WorkerExit(1) from None

    def replay(self) -> SearchResult:
        """Chooses among what the run's journals hold, on process 0 alone.

        Raises:
            UsageError: the journal does not hold what is needed.
            LimitError: no recorded subnet meets the limits.
        """
        from growtas.search.precision import ConvertedScorer
        from growtas.search.rerank import ENOUGH, Recorded

        if os.environ.get("RANK", "0") != "0":
            from growtas.search.evaluation.workers import WorkerExit

            raise WorkerExit(0)
        started = time.perf_counter()
        checkpoint = self.run.supernet_file
        digest = sha256(checkpoint)
        recorded = Recorded.read(self.out / "journal.jsonl", digest, self._other_journals())
        ensure_writable(self.out / REPLAY)
        search = self._with_targets(self._remote_targets())
        result, scores = recorded.ranked(self.space, search.feasible()), recorded.scores(self.space)

        def recorded_scores(subnets: Sequence[Subnet]) -> list[Score]:
            if any(subnet not in scores for subnet in subnets):
                raise LimitError(
                    f"no recorded subnet meets the limits as measured, and the smallest one is not in {recorded.path}; "
                    "search without --replay to evaluate more"
                )
            return [scores[subnet] for subnet in subnets]

        outcome = search.choose(result, recorded_scores, progress=self.progress, converted=ConvertedScorer(recorded))
        shipped = {conversion.precision for conversion in search.ships if conversion is not None}
        if shipped and not search.variants and outcome.chosen.chosen_by == ("fp32",):
            self.progress.note(
                f"chosen by accuracy in fp32: that of some finalists in {choices(sorted(shipped))} is not recorded, and a replay "
                "evaluates nothing; search without --replay to choose by it"
            )
        gains = self._gains(search, outcome)
        legal = len(result.ranked)
        if recorded.lent:
            counts = _counted(recorded.path, len(recorded.evaluations), recorded.lent)
            self.progress.note(f"recorded evaluations: {counts}")
        holder = "the run's journals hold" if recorded.lent else "the journal holds"
        if legal < ENOUGH:
            self.progress.note(
                f"{holder} only {legal} subnets within these limits (of {len(scores)}), fewer than {ENOUGH}: "
                "a search without --replay would likely find a better one"
            )
        record = {
            **self._record(checkpoint, digest, self._settings()),
            "images": {"split": "search", "count": None, "fingerprint": recorded.data_fingerprint},
            "evaluated": 0,
            "dropped": 0,
            "reused": len(scores),
            "reused_from_others": {str(path): count for path, count in recorded.lent.items()},
            "replay": {"journal": str(recorded.path), "recorded": len(scores), "legal": legal, "enough": legal >= ENOUGH},
            "seconds": time.perf_counter() - started,
            "compared_with_fp32": gains,
        }
        return write_results(self.run, self.out / REPLAY, search, outcome, record)

    def _other_journals(self) -> list[Path]:
        """The journals of all searches in the run's folder."""
        return sorted(self.run.path.glob("search*/journal.jsonl"))

    def _targets(self, make: Callable[[Device], Target], *, at_hand: bool) -> dict[str, Target]:
        """The targets of the devices that are at hand, or of the others.

        Of one device in several precisions those are left out in which no subnet meets the limit.

        Raises:
            LimitError: no subnet meets the limit.
        """
        targets: dict[str, Target] = {}
        for device in self.devices:
            if (device.name in devices_at_hand()) != at_hand:
                continue
            try:
                targets[device.label] = make(device)
            except LimitError as error:
                if not self.several:
                    raise
                self.progress.note(f"{device.precision} is left out: {error}")
        return targets

    def _remote_targets(self) -> dict[str, Target]:
        """Targets that are not at hand; made before anything slow, since limits that no subnet meets raise here."""
        return self._targets(self._remote_target, at_hand=False)

    def _remote_target(self, device: Device) -> Target:
        """A target whose latencies a profile predicts."""
        from growtas.api.search_devices import predicted_target

        return predicted_target(device, self.space, self.limits, profiled_as(self.run))

    def _with_targets(self, targets: dict[str, Target]) -> Search:
        """The search, with the devices of this machine as targets too where they are asked for."""
        try:
            targets |= self._targets(partial(self._local_target, predict="latency" in self.axes), at_hand=True)
        except KeyboardInterrupt:
            self.progress.note(f"what was measured is kept in {self.out}; the same command goes on from there")
            raise
        if self.devices and not targets:
            raise LimitError(f"no subnet of {self.space.name} meets the limit in any of the precisions")
        return self._shipping(targets)

    def _shipping(self, targets: dict[str, Target]) -> Search:
        """The search under these targets, with what is converted for each: on a front of one device a point for each precision."""
        from growtas.api.search_precision import conversion_of, why_not_scored

        devices = [device for device in self.devices if device.label in targets]
        ordered = tuple(targets[device.label] for device in devices)
        ships = tuple(conversion_of(device.precision, device.runtime, halves=self.several) for device in devices)
        if not self.devices:  # a limit on bytes is for files of a precision
            ships = (conversion_of(self.limits.precision, None),)
        variants: tuple[Variant, ...] = ()
        if self.several or (self.axes and len(devices) == 1 and ships[0] is not None):
            variants = tuple(
                Variant(
                    target=target,
                    precision=device.precision,
                    conversion=conversion,
                    unscored_because=why_not_scored(device.precision),
                )
                for target, device, conversion in zip(ordered, devices, ships, strict=True)
            )
        return Search(
            space=self.space,
            limits=self.limits,
            targets=ordered,
            front=self.axes,
            ships=ships,
            variants=variants,
            predictor=self.predictor,
        )

    def _gains(self, search: Search, outcome: Outcome) -> list[dict[str, Any]]:
        """What the precisions of the chosen subnet gain over fp32, on each device: measured where it is at hand, else predicted.

        Of fp16 and bf16 nothing is measured: that would be one more plan to build, for what is hardly in doubt on a GPU.
        """
        from growtas.api.search_precision import FULL, compare_with_fp32
        from growtas.export.quantization.precisions import QUANTISED

        subnet, gains = outcome.chosen.subnet, []
        targets = {target.device: target for target in search.targets}
        devices = {device.label: device for device in self.devices}
        for latency in outcome.chosen.latencies:
            device, target = devices[latency.device], targets[latency.device]
            if device.precision in FULL or (target.stopwatch is not None and device.precision not in QUANTISED):
                continue
            asked = replace(device, precision="fp32", requested="fp32", max_ms=None)
            if target.stopwatch is not None:
                self.progress.stage(f"measuring in fp32: {subnet}")
                twin = self._local_target(asked, predict=False)
            else:
                try:
                    twin = self._remote_target(asked)
                except DeviceError:  # no profile knows it
                    continue
            if (gain := compare_with_fp32(device.precision, target, twin, subnet)) is not None:
                gains.append(gain)
        return gains

    def _local_target(self, device: Device, *, predict: bool) -> Target:
        """This machine as a target."""
        from growtas.api.search_devices import local_target

        return local_target(
            device,
            self.space,
            self.limits,
            self.out,
            self.threads,
            predict=predict,
            profile_of=profiled_as(self.run),
            strict=self.strict,
            progress=self.progress,
        )

    def _record(self, checkpoint: Path, digest: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        run = {
            "run": str(self.run.path),
            "run_chosen": self.run_chosen,
            "data": self.data,
            "command": self.command,
            "threads": self.threads or available_threads(),
            "machine": devices_at_hand(),
        }
        return {**run, "checkpoint": str(checkpoint), "checkpoint_sha256": digest, **settings}

    def _config(self, predicts: bool) -> EvolutionConfig:
        """The evolution's settings, with fewer generations by default where a predictor chooses."""
        fewer = predicts and self.generations is None
        return replace(self.config, generations=PREDICTED_GENERATIONS) if fewer else self.config

    def _settings(self, *, predicts: bool = False) -> dict[str, Any]:
        """What the journal and the results record of the request."""
        first, limits = self.devices[0] if self.devices else None, asdict(self.limits)
        if self.limits.max_macs_with_relative_position is None:
            # The headers of older journals don't have it, and the same search must find itself in them.
            del limits["max_macs_with_relative_position"]
        return {
            "space": self.space.name,
            "objective": "pareto" if self.axes else "accuracy",
            # The first device's limit is also where one device's has always been.
            "limits": {**limits, "max_latency_ms": first.max_ms if first else None},
            "device": first.name if first else None,
            "devices": [
                {"device": d.label, "max_latency_ms": d.max_ms, "precision": d.precision}
                | ({"runtime": d.runtime} if d.runtime not in (None, "onnxruntime") else {})
                for d in self.devices
            ],
            "batch": self.limits.batch,
            "seed": self.seed,
            "generations": self._config(predicts).generations,
            "population": self.config.population,
            # A search without it is the same as those of journals that know of none.
            **({"predictor": True} if predicts else {}),
        }


def _counted(path: Path, total: int, others: Mapping[Path, int]) -> str:
    counts = {path: total - sum(others.values()), **others}
    return ", ".join(f"{count} from {path}" for path, count in counts.items() if count)
