"""``search``: searches a trained supernet for the best subnet under limits."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from growtas.api.proxy_searching import check_proxy
from growtas.api.search_results import SearchResult, write_results
from growtas.errors import CheckpointError, ConfigError, DeviceError, LimitError, WorkerError, choices
from growtas.files import ensure_writable, sha256
from growtas.latency.at_hand import devices_at_hand
from growtas.latency.estimate import RUNTIMES
from growtas.latency.modelled.profile import BYTES
from growtas.locks import exclusive
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

if TYPE_CHECKING:
    from growtas.search.evaluation.workers import SearchWorld


_PROXY_GENERATIONS = 4
"""Number of generations by proxies before the first generation of a search."""
PREDICTED_GENERATIONS = 10
"""Default number of generations when a predictor chooses the evaluated subnets: half of the paper's."""
REPLAY = "replay"
"""Folder of a replay's results inside the search's folder."""


SETTINGS = """What a search was asked for: in the journal's headers and in ``result.json``.

Fields:
    space (text): Name of the space whose choices were searched.
    objective (text): ``accuracy``, or ``pareto`` for a front.
    limits (object): The limits; null where there is none.
    limits.max_params (whole number or null): Parameters.
    limits.max_macs (whole number or null): Multiply-accumulates for one image, without the relative position.
    limits.max_macs_with_relative_position (whole number or null): The same with it. Absent where there is no such limit.
    limits.max_activation_bytes (whole number or null): Modelled bytes of a plan's activations.
    limits.max_size_bytes (whole number or null): Bytes of the weights.
    limits.batch (whole number): Images at once that activations are meant for.
    limits.precision (text): Precision that activations and weights are meant for.
    limits.max_latency_ms (number or null): Limit on the latency of the first device, in milliseconds.
    device (text or null): The first device.
    devices (list): Every device.
    devices[].device (text): Its name, with runtime and precision where they were named.
    devices[].max_latency_ms (number or null): Limit on the latency there, in milliseconds.
    devices[].precision (text): Precision that its latency is meant for.
    devices[].runtime (text): Runtime that its latency is meant for. Absent for ONNX Runtime.
    batch (whole number): Images at once that latencies are meant for.
    seed (whole number): Seed of all random choices.
    generations (whole number): Generations of the evolution.
    population (whole number): Subnets of a generation.
    predictor (true): Predicted accuracies choose what is evaluated. Absent where they do not.
    proxy (text): The score without training that chose subnets of the first generation. Absent where there is none.
"""
RECORD = """What a search searched, and what it took: in ``result.json``.

Fields:
    run (text): The run's folder.
    run_chosen (text): How the run was chosen.
    data (object or null): The data set, as in ``run.json``.
    command (text or null): The command line; null for a call from Python.
    threads (whole number): CPU threads of the evaluation and of what was timed here.
    checkpoint (text): File of the supernet's weights.
    checkpoint_sha256 (text): SHA-256 of that file, in hexadecimal.
    images (object): The images that subnets were evaluated on.
    images.split (text): Always ``search``: images that are set aside from the training set.
    images.count (whole number or null): How many images; null in a replay, which opens none.
    images.fingerprint (text): Hash of these images.
    exact (true or false): Whether every subnet was evaluated on all images. Absent in a replay.
    evaluated (whole number): Subnets that this search evaluated on all images.
    dropped (whole number): Subnets that it dropped from a race before the last image.
    reused (whole number): Subnets whose evaluation was in a journal.
    reused_from_others (object): How many of these came from other searches' journals, by their path.
    evaluated_on (text): ``cpu`` or ``cuda``. Absent in a replay.
    kernels (text or null): Instructions of the CPU that the evaluation used: ``avx512``, ``avx2`` or ``plain``; null where
        PyTorch's functions did it. Absent in a replay.
    processes (whole number): Processes that evaluated. Absent in a replay.
    replay (object): What a replay chose from. Absent in other searches.
    replay.journal (text): The journal.
    replay.recorded (whole number): Subnets that the journals hold.
    replay.legal (whole number): How many of them are within the limits.
    replay.enough (true or false): Whether these are so many that a new search would hardly find a better one.
    seconds (number): Seconds of the whole search.
    compared_with_fp32 (list): What the precision of the chosen subnet gains over fp32, for each device where that is known.
    compared_with_fp32[].device (text): The device.
    compared_with_fp32[].runtime (text): The runtime of both latencies.
    compared_with_fp32[].precision (text): The precision that is compared with fp32.
    compared_with_fp32[].ms (number): Latency in that precision, in milliseconds.
    compared_with_fp32[].fp32_ms (number): Latency in fp32, in milliseconds.
    compared_with_fp32[].kind (text): Kind of both: ``measured`` or ``modelled``.
    compared_with_fp32[].no_faster (text or null): A sentence where the precision gains nothing; else null.
"""


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
    proxy: str | None = None,
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
    """Searches a trained supernet for the best subnet under limits, with the evolution of the GrowTAS paper (Section 3.3).

    Every evaluation is recorded in a journal: after a stop, a call with the same arguments continues the search. If torchrun
    started several processes, only rank 0 returns; the others evaluate subnets for it and then exit.

    Args:
        run: a run or its folder; by default the newest in ``./runs`` that holds a supernet.
        space: search space, a preset or a YAML file. Without ``run``, the newest run of this space is searched.
        devices: devices whose latency is limited or measured: names with limits (``{"a10": "5ms"}``; a number is in milliseconds),
            or names alone. A name may include runtime and precision: ``cpu:openvino:int8``. The devices of this machine are
            measured; profiles predict the latencies of others.
        max_params: limit on the number of parameters, as a number or as in ``"6M"``.
        max_macs: limit on the multiply-accumulates for one image without the relative position, as a number or as in ``"1.3G"``.
        max_macs_with_relative_position: limit on the multiply-accumulates with the relative position.
        max_latency: limit on the median latency for devices without a limit of their own: ``"5ms"``, or a number in milliseconds.
        max_activation_memory: limit on the modelled peak of activation memory, as in ``"20MB"`` or in bytes.
        max_size: limit on the size of the weights, as in ``"12MB"`` or in bytes.
        batch: batch size that latency and activation memory refer to.
        precision: precision of latency, memory and size; by default the device's. For int8 and fp8, the finalists are converted
            and chosen by their accuracy after that. Several (``"fp32,int8"``) become points of the ``pareto`` front of one device.
        runtime: runtime that executes the network on devices whose names include none; by default ONNX Runtime on ``cpu``, and
            the runtime of the device's profile elsewhere.
        objective: ``accuracy`` for one subnet, or ``pareto`` for a whole front (NSGA-II).
        front: axes of the front, such as ``"accuracy,latency"``.
        replay: choose among the subnets in the journal and evaluate nothing. The results are written to the folder ``replay`` in
            ``out``; the results of the search stay as they are.
        exact: evaluate every subnet on all images, even one that can no longer become a parent.
        predictor: for a front, and when a limited latency is measured, evaluate the subnets with the best predicted accuracy; the
            prediction is fitted to all evaluations so far. Other searches use no predictions.
        proxy: ``az-nas`` begins the search with subnets that score well without training (:mod:`growtas.search.az_nas`). For a
            search without any supernet see :func:`growtas.api.search_by_proxy`.
        strict: raise if the machine is too unsteady to judge a latency limit. By default, the limit is judged on ratios to a
            reference subnet, and the result is marked as unsteady.
        generations: number of generations; by default 20, or 10 when the predictor is used.
        population: number of new subnets per generation.
        seed: seed of all random choices.
        limit_images: number of images of the search split to evaluate on; by default all.
        threads: CPU threads of the evaluation (per process) and of latencies measured on this machine; by default all that this
            process may use.
        data: name of the data set; by default the run's.
        data_dir: folder of the data set; by default the one recorded in the run.
        out: folder for the journal and the results; by default ``RUN/search``.
        command: the command line, for the results.
        progress: receives notes, stages and events (:class:`growtas.search.scoring.Evaluated`,
            :class:`growtas.search.evolution.GenerationResult`).

    Raises:
        UsageError: An argument is wrong, there is no run, no subnet meets the limits, or a replay can't use the journal.
        UnsteadyMachine: This machine is too busy to measure latencies, and ``strict`` is set.
        WorkerError: Another process of this search failed.
        WorkerExit: This process of torchrun isn't rank 0.
    """
    for option, value, lowest in (("--batch", batch, 1), ("--limit-images", limit_images, 1), ("--seed", seed, 0)):
        if value is not None and value < lowest:
            raise ConfigError(f"{option} is {value}; it must be {lowest} or more")
    check_threads(threads)
    if proxy is not None:
        check_proxy(proxy)
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
        "--proxy": proxy is not None,
        "--generations": generations is not None,
        "--population": population != EvolutionConfig.population,
    }
    if replay and (ignored := next((option for option, given in evaluating.items() if given), None)):
        raise ConfigError(f"{ignored} has no effect with --replay, which evaluates nothing; leave it out")
    if batch != 1 and not devices and max_activation_memory is None:
        raise ConfigError("--batch has no effect without --device or --max-activation-memory; leave it out")
    sizes = max_size is not None or max_activation_memory is not None
    several = precision is not None and "," in precision
    if several:
        devices, precision = _one_of_each(devices, str(precision), runtime, objective), None
    parsed = parse_devices(devices, max_latency, precision, runtime, sizes=sizes)
    limits = Limits.parse(
        max_params=max_params,
        max_macs=max_macs,
        max_macs_with_relative_position=max_macs_with_relative_position,
        max_activation_memory=max_activation_memory,
        max_size=max_size,
        batch=batch,
        # For several devices, the precision with the largest values.
        precision=max((device.precision for device in parsed), key=BYTES.__getitem__, default=precision or "fp32"),
    )
    config = EvolutionConfig(generations=EvolutionConfig.generations if generations is None else generations, population=population)
    chosen_run, how = find_supernet(run.path if isinstance(run, Run) else run, space, progress)
    progress.note(f"run: {chosen_run.path} ({how})")
    state = chosen_run.info.get("state")
    if state not in ("finished", "imported"):
        progress.note(f"the training of this run is not finished ({state}); the search uses its newest checkpoint")
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
        proxy=proxy,
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
    """Expands one device into one target per precision."""
    names = [devices] if isinstance(devices, str) else list(devices)
    if objective != "pareto" or len(names) != 1:
        raise ConfigError(f"--precision {precisions}: several precisions need --objective pareto and one --device")
    name, limit = names[0], devices[names[0]] if isinstance(devices, Mapping) else None
    requested = [precision.strip() for precision in precisions.split(",")]
    for precision in requested:
        if precision not in BYTES:
            raise ConfigError(f"--precision {precisions}: {precision!r} is not legal; legal are {choices(BYTES)}")
    if len(set(requested)) < len(requested) or set(name.split(":")) & BYTES.keys():
        raise ConfigError(f"--precision {precisions}: a precision is named twice, or by --device {name} as well")
    base = f"{name}:{runtime}" if runtime in RUNTIMES and RUNTIMES.keys().isdisjoint(name.split(":")) else name
    return {f"{base}:{precision}": limit for precision in requested}


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A search with checked arguments; see :func:`search`.

    Attributes:
        run_chosen: how the run was chosen, in words.
        axes: axes of the front; empty without a front.
        several: whether the devices are one device in several precisions.
        config: settings of the evolution without a predictor.
        generations: the requested number of generations; None for the default.
        load: loads a checkpoint of the run, and the images.
        data: the record of the data set: its name and folder.
        command: the command line; None if it is unknown.
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
    proxy: str | None
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

        with search_world() as world, contextlib.ExitStack() as lock:
            if world.is_main:
                return self._lead(world, lock)
            self._serve(world)
        raise WorkerExit(0)

    def _lead(self, world: SearchWorld, lock: contextlib.ExitStack) -> SearchResult:
        from growtas.api.search_precision import ConvertedEvaluator
        from growtas.nn.evaluation import kernels
        from growtas.search.evaluation.evaluator import SubnetEvaluator
        from growtas.search.evaluation.racing import Racing
        from growtas.search.evaluation.workers import SharedEvaluator
        from growtas.search.precision import ConvertedScorer
        from growtas.search.scoring import Scorer

        progress = self.progress
        try:
            lock.enter_context(exclusive(ensure_writable(self.out), "searching in this folder"))
            remote = self._remote_targets()
            # One checkpoint for the whole search: a running training may write newer ones meanwhile.
            loaded = self.load(self.run.supernet_file)
            if world.size > 1:
                loaded.decode()
            search = self._with_targets(remote)
            config, settings = self._config(search.predicts), self._settings(predicts=search.predicts)
            search = replace(search, first=self._first(search, config))
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
                "evaluation is slower without the C kernels: growtas was installed without a C compiler or Python's headers"
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
        """Evaluates subnets for process 0, on another process. Process 0 reports every failure."""
        from growtas.search.evaluation.evaluator import SubnetEvaluator
        from growtas.search.evaluation.workers import SharedEvaluator, WorkerExit

        try:
            # Waits until process 0 has measured this machine and decoded the images into the cache; only then loads anything.
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
        """Chooses among the evaluations in the run's journals, on process 0 alone.

        Raises:
            UsageError: The journal lacks needed evaluations.
            LimitError: No recorded subnet meets the limits.
        """
        if os.environ.get("RANK", "0") != "0":
            from growtas.search.evaluation.workers import WorkerExit

            raise WorkerExit(0)
        with contextlib.ExitStack() as lock:
            return self._replay(lock)

    def _replay(self, lock: contextlib.ExitStack) -> SearchResult:
        from growtas.search.precision import ConvertedScorer
        from growtas.search.rerank import ENOUGH, Recorded

        started = time.perf_counter()
        checkpoint = self.run.supernet_file
        digest = sha256(checkpoint)
        recorded = Recorded.read(self.out / "journal.jsonl", digest, self._other_journals())
        lock.enter_context(exclusive(ensure_writable(self.out / REPLAY), "replaying this search"))
        search = self._with_targets(self._remote_targets())
        result, scores = recorded.ranked(self.space, search.feasible()), recorded.scores(self.space)

        def recorded_scores(subnets: Sequence[Subnet]) -> list[Score]:
            if any(subnet not in scores for subnet in subnets):
                raise LimitError(
                    f"no recorded subnet meets the limits when measured, and {recorded.path} lacks the smallest subnet; "
                    "search without --replay to evaluate more"
                )
            return [scores[subnet] for subnet in subnets]

        outcome = search.choose(result, recorded_scores, progress=self.progress, converted=ConvertedScorer(recorded))
        shipped = {conversion.precision for conversion in search.ships if conversion is not None}
        if shipped and not search.variants and outcome.chosen.chosen_by == ("fp32",):
            self.progress.note(
                f"chosen by accuracy in fp32, since the accuracy of some finalists in {choices(sorted(shipped))} is not recorded; "
                "search without --replay to evaluate it"
            )
        gains = self._gains(search, outcome)
        legal = len(result.ranked)
        if recorded.lent:
            counts = _counted(recorded.path, len(recorded.evaluations), recorded.lent)
            self.progress.note(f"recorded evaluations: {counts}")
        holder = "the run's journals hold" if recorded.lent else "the journal holds"
        if legal < ENOUGH:
            self.progress.note(
                f"{holder} only {legal} subnets within these limits (of {len(scores)}), fewer than {ENOUGH}; "
                "a search without --replay would probably find a better one"
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
        """Returns the journals of all searches in the run's folder."""
        return sorted(self.run.path.glob("search*/journal.jsonl"))

    def _targets(self, make: Callable[[Device], Target], *, at_hand: bool) -> dict[str, Target]:
        """Makes the targets of this machine's devices, or of all others.

        For one device in several precisions, a precision in which no subnet meets the limit is left out.

        Raises:
            LimitError: No subnet meets the limit.
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
        """Makes the targets of other machines' devices; this comes first, because it is fast and raises for impossible limits."""
        return self._targets(self._remote_target, at_hand=False)

    def _remote_target(self, device: Device) -> Target:
        """Makes a target whose latencies a profile predicts."""
        from growtas.api.search_devices import predicted_target

        return predicted_target(device, self.space, self.limits, profiled_as(self.run))

    def _with_targets(self, targets: dict[str, Target]) -> Search:
        """Returns the search on these targets and on the requested devices of this machine."""
        try:
            targets |= self._targets(partial(self._local_target, predict="latency" in self.axes), at_hand=True)
        except KeyboardInterrupt:
            self.progress.note(f"the measurements so far are kept in {self.out}; the same command goes on from there")
            raise
        if self.devices and not targets:
            raise LimitError(f"no subnet of {self.space.name} meets the limit in any of the precisions")
        return self._shipping(targets)

    def _shipping(self, targets: dict[str, Target]) -> Search:
        """Returns the search on these targets, with the conversion for each target and the precisions of a front."""
        from growtas.api.search_precision import conversion_of, why_not_scored

        devices = [device for device in self.devices if device.label in targets]
        ordered = tuple(targets[device.label] for device in devices)
        ships = tuple(conversion_of(device.precision, device.runtime, halves=self.several) for device in devices)
        if not self.devices:  # the precision that a limit on bytes refers to
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

    def _first(self, search: Search, config: EvolutionConfig) -> tuple[Subnet, ...]:
        """Returns subnets for the first generation: those with the best proxies, and those that the training preferred."""
        preferred = [subnet for subnet in self.run.preferred_subnets() if self.space.holds(subnet)]
        if self.proxy is not None:
            from growtas.search.az_nas import AzNas, search_by_proxies

            few, rng = replace(config, generations=_PROXY_GENERATIONS), np.random.default_rng(self.seed)
            measure = AzNas(self.space, seed=self.seed)
            ranked = search_by_proxies(self.space, search.feasible(), rng, few, measure, self.progress)
            preferred = [*(subnet for subnet, _ in ranked[: config.population // (4 if preferred else 2)]), *preferred]
        return tuple(preferred)

    def _gains(self, search: Search, outcome: Outcome) -> list[dict[str, Any]]:
        """Compares the chosen subnet's latency with its latency in fp32 on each device: measured on this machine, else predicted.

        The gain of fp16 and bf16 is not measured: on a GPU it is hardly in doubt, and it would take one more plan.
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
            in_fp32 = replace(device, precision="fp32", requested="fp32", max_ms=None)
            if target.stopwatch is not None:
                self.progress.stage(f"measuring in fp32: {subnet}")
                fp32 = self._local_target(in_fp32, predict=False)
            else:
                try:
                    fp32 = self._remote_target(in_fp32)
                except DeviceError:  # no profile has this target
                    continue
            if (gain := compare_with_fp32(device.precision, target, fp32, subnet)) is not None:
                gains.append(gain)
        return gains

    def _local_target(self, device: Device, *, predict: bool) -> Target:
        """Makes the target of this machine's device."""
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
        """Returns the evolution's settings; a predictor halves the default number of generations."""
        fewer = predicts and self.generations is None
        return replace(self.config, generations=PREDICTED_GENERATIONS) if fewer else self.config

    def _settings(self, *, predicts: bool = False) -> dict[str, Any]:
        """Returns the request's settings as the journal and the results record them."""
        first, limits = self.devices[0] if self.devices else None, asdict(self.limits)
        if self.limits.max_macs_with_relative_position is None:
            # Older journals lack this key, and a search without the limit must match their headers.
            del limits["max_macs_with_relative_position"]
        return {
            "space": self.space.name,
            "objective": "pareto" if self.axes else "accuracy",
            # For compatibility, the first device's limit is also under the key of searches with one device.
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
            # Without a predictor or proxy, the settings must match those of older journals.
            **({"predictor": True} if predicts else {}),
            **({"proxy": self.proxy} if self.proxy is not None else {}),
        }


def _counted(path: Path, total: int, others: Mapping[Path, int]) -> str:
    counts = {path: total - sum(others.values()), **others}
    return ", ".join(f"{count} from {path}" for path, count in counts.items() if count)
