"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from growtas.checkpoint import load_supernet
from growtas.costs import count_costs
from growtas.data.evaluation import EvaluationSet
from growtas.data.loaders import Batch, Loader
from growtas.data.seeding import preserved_globals, seed_globals
from growtas.distributed import World
from growtas.errors import TrainingError
from growtas.files import append_json_line, read_json_lines, replacing
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.progress import SILENT, Progress
from growtas.runs import Run
from growtas.subnet import Subnet
from growtas.train.checkpoints import Place, all_finite, keep_best, load_newest, save_checkpoint
from growtas.train.clock import Clock
from growtas.train.events import EpochDone, StepDone, TrainingStarted
from growtas.train.freezing import FrozenEntries, used_regions
from growtas.train.interrupts import Interrupts
from growtas.train.monitored_subnets import stage_subnets, subnet_accuracies
from growtas.train.optimizer import make_scheduler
from growtas.train.recipe import Recipe
from growtas.train.step import Stepper, Training
from growtas.train.strategies.base import Strategy
from growtas.train.strategies.growtas_plus import ProgressivePlus
from growtas.train.teacher import Teacher

_INITIAL_WEIGHTS = 2**32
"""Seed stream of the initialisation: above every step, whose number is the stream of a step's drop path and Mixup."""


class Trainer:
    """Trains a supernet in a run's folder, from its last checkpoint on where there is one.

    On one machine's CPU the weights are a function of recipe and data alone: a run that was stopped, or killed at any moment, and
    continued ends bit-identical to one that wasn't.

    Args:
        run: the folder, with its ``run.json``; weights to start from lie in its ``init.safetensors``.
        recipe: what to do.
        strategy: which subnets a step updates.
        loader: the training images, this process's share.
        monitor: images for the accuracies after each epoch.
        device: where to compute.
        world: the processes that train together.
        progress: gets remarks and the events of :mod:`growtas.train.events`; it may raise KeyboardInterrupt to stop.
        teacher: from which passes that learn from labels learn too; on ``device``.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        strategy: Strategy,
        loader: Loader,
        monitor: EvaluationSet,
        device: torch.device,
        world: World = World(),  # noqa: B008 (a frozen value)
        progress: Progress = SILENT,
        teacher: Teacher | None = None,
    ) -> None:
        self.run, self.recipe, self.strategy, self.loader, self.monitor = run, recipe, strategy, loader, monitor
        self.device, self.world, self.progress, self.teacher = device, world, progress, teacher
        self.space = run.space
        self._probes = stage_subnets(self.space, strategy.subspaces())
        self._extra_macs = 0.0
        self._subsets: dict[int, EvaluationSet] = {}
        self._saved = time.monotonic()
        self._save_seconds = 0.0
        """Of the last checkpoint; an epoch's line has that of the one before, its own comes after it."""

    def train(self) -> Supernet:
        """Train to the last epoch, saving after each; the supernet, or its average where the recipe has one.

        Raises:
            TrainingError: a loss or a weight is not finite; the last checkpoint stays.
            DataError: an image is unreadable.
            KeyboardInterrupt: the training was stopped; a checkpoint of where it was, or the last one, stays.
        """
        with preserved_globals(), Interrupts(self.world) as self._interrupts:
            place, fresh = self._prepare()
            training, strategy = self._training, self.strategy
            if fresh:
                strategy.prepare(self)
                # GPUs may differ in a last bit, and so may what was chosen by it.
                strategy.load_state(self.world.share(strategy.state()))
            elif place.batch == 0:
                self._keep_best(place)
            scheduler = make_scheduler(training.optimizer, self.recipe, self.loader.steps)
            self.progress.event(TrainingStarted(place.step, self.recipe.epochs * self.loader.steps))
            while place.epoch < self.recipe.epochs:
                self._train_epoch(place, scheduler)
        return training.result

    def _prepare(self) -> tuple[Place, bool]:
        """Network, optimiser and what goes with them, from the newest checkpoint where there is one; and whether there was none."""
        recipe = self.recipe
        seed_globals(recipe.seed, _INITIAL_WEIGHTS)
        supernet = Supernet(self.space, drop_path_rate=recipe.drop_path)
        initial = self.run.path / "init.safetensors"
        if initial.exists():
            supernet.load_state_dict(load_supernet(initial).state_dict())
        supernet.to(self.device)
        self.world.share_weights(supernet)
        frozen = None
        if isinstance(self.strategy, ProgressivePlus):
            frozen = FrozenEntries(supernet, used_regions(supernet, self.strategy.frozen))
        self._training = Training.of(supernet, recipe, self.device)
        self._stepper = Stepper(self._training, recipe, self.world, self.device, teacher=self.teacher, frozen=frozen)
        if not self.world.is_main:
            self.world.wait()  # until process 0 has set aside what can't be read
        fresh = not self.run.checkpoints
        place, state = load_newest(self.run, self._training, self.progress)
        if self.world.is_main:
            self.world.wait()
        if not fresh:
            self.strategy.load_state(state)
        if self.world.is_main:
            self._drop_metrics_after(place.epoch)
        return place, fresh

    def _train_epoch(self, place: Place, scheduler: Any) -> None:
        start, clock, epoch, images_here = time.perf_counter(), Clock(self.device), place.epoch, 0
        training = self._training
        training.supernet.train()
        earlier = place.sums.pop("seconds", 0.0)
        where = float(epoch)
        for batch in _timed(self.loader.batches(epoch, place.batch), clock):
            where = place.step / self.loader.steps
            scheduler.step_update(place.step)
            self._before_step(place.step, where, clock)
            with clock.step(place.step):
                passes = self.strategy.draw(place.step, where)
                result = self._stepper(place.step, batch, passes, clock, self._requests())
            place.step += 1
            place.batch += 1
            images = len(batch[0]) * self.world.size
            images_here += images
            loss = sum(result.losses) / len(passes)
            extra_macs, self._extra_macs = result.extra_macs + self._extra_macs, 0.0
            additions = {"loss": loss, "images": images, "passes": len(passes), "macs": result.macs, "extra_macs": extra_macs}
            for key, value in additions.items():
                place.sums[key] = place.sums.get(key, 0.0) + value
            self.progress.event(StepDone(place.step, epoch, self.strategy.stage(where), loss))
            self._answer(result.requests, place, earlier + time.perf_counter() - start)
        if not all_finite(training.supernet):
            raise TrainingError(
                f"epoch {epoch + 1}: a weight is not finite any more; lower lr ({self.recipe.lr:g}) or set clip_grad"
            )
        sums, place.sums = place.sums, {}
        place.epoch, place.batch = epoch + 1, 0
        metrics = self._measure(place, where, sums, images_here, clock)
        metrics["seconds"] = round(earlier + time.perf_counter() - start, 3)
        self.strategy.after_epoch(place.epoch, metrics)
        if self.world.is_main:
            # The line goes first: a line without its checkpoint is dropped on resuming, the other way round it would be missing.
            append_json_line(self.run.path / "metrics.jsonl", metrics)
            self._save(place)
            self._keep_best(place, metrics)
        self.progress.event(EpochDone(metrics))

    def _before_step(self, step: int, epoch: float, clock: Clock) -> None:
        """What the method does before a step, and keeping the teacher that it asks for."""
        with clock("method"):
            self.strategy.before_step(step, epoch, self)
            if self._training.teacher is None and self.strategy.keeps_teacher(epoch):
                self._training.teacher = extract(self._training.result, self.space.largest).requires_grad_(False)
        if not self._training.supernet.training:
            self._training.supernet.train()

    def _measure(self, place: Place, where: float, sums: dict[str, float], images: int, clock: Clock) -> dict[str, Any]:
        """The epoch's line of ``metrics.jsonl``."""
        epoch, last = place.epoch, place.epoch == self.recipe.epochs
        metrics: dict[str, Any] = {
            "epoch": epoch,
            "step": place.step,
            "stage": self.strategy.stage(where) + 1,
            "subspace": self.strategy.subspace(where).to_dict(),
            "loss": sums["loss"] / self.loader.steps,
            "lr": self._training.optimizer.param_groups[0]["lr"],
        }
        if epoch % self.recipe.probe_epochs == 0 or last:
            with clock("evaluate"):
                probes = {**self.strategy.followed(), **self._probes}
                accuracies = subnet_accuracies(self._training.result, self.monitor, self.device, probes, self.world)
            metrics["accuracy"] = {name: accuracies.pop(name) for name in self.strategy.followed()}
            metrics["probes"] = accuracies
        seconds = clock.seconds()
        busy = clock.step_seconds + seconds.get("data", 0.0) + seconds.get("method", 0.0)
        metrics["images_per_s"] = round(images / busy, 1) if busy else 0.0
        metrics["time"] = {**seconds, "save": round(self._save_seconds, 3)}
        metrics["compute"] = {key: sums[key] for key in ("passes", "macs", "extra_macs")}
        return metrics

    def _save(self, place: Place) -> None:
        start = time.monotonic()
        save_checkpoint(self.run, self._training, place, self.strategy.state(), self.recipe.keep_checkpoints)
        self._saved = time.monotonic()
        self._save_seconds = self._saved - start

    def _keep_best(self, place: Place, metrics: dict[str, Any] | None = None) -> None:
        """Keep the epoch's supernet if its followed subnets are the best on average so far."""
        lines = [metrics] if metrics else [m for m in read_json_lines(self.run.path / "metrics.jsonl") if m["epoch"] == place.epoch]
        if self.world.is_main and lines and "accuracy" in lines[-1]:
            accuracies = lines[-1]["accuracy"].values()
            keep_best(self.run, self.run.path / "checkpoints" / place.folder, math.fsum(accuracies) / len(accuracies))

    def _requests(self) -> tuple[bool, bool]:
        """Whether this process wants a checkpoint now, and whether it wants to stop."""
        limit = self.recipe.save_minutes * 60
        return self.world.is_main and 0 < limit < time.monotonic() - self._saved, self._interrupts.requested

    def _answer(self, requests: list[float], place: Place, seconds: float) -> None:
        """Save, or save and stop, when any process asked for it before the step; at an epoch's end that is done anyway."""
        save, stop = requests
        if (save or stop) and place.batch < self.loader.steps:
            place.sums["seconds"] = seconds
            if self.world.is_main:
                self._save(place)
            del place.sums["seconds"]
            if stop:
                raise KeyboardInterrupt

    # What strategies may ask for: growtas.train.strategies.base.Tools.

    @property
    def supernet(self) -> Supernet:
        """The supernet in training."""
        return self._training.supernet

    def accuracy(self, subnet: Subnet, count: int | None = None) -> float:
        """See :class:`growtas.train.strategies.base.Tools`."""
        size = len(self.monitor) if count is None else count
        if size not in self._subsets:
            self._subsets[size] = self.monitor.subset(size)
        images = self._subsets[size]
        (accuracy,) = subnet_accuracies(self.supernet, images, self.device, {"subnet": subnet}, self.world).values()
        self.count_macs(float(count_costs(self.space, subnet).macs) * len(images))
        return accuracy

    def sample_batch(self, index: int) -> tuple[Tensor, Tensor]:
        """See :class:`growtas.train.strategies.base.Tools`."""
        batches = self.loader.batches(0, index % self.num_parts)
        images, labels = self.world.share(next(batches))
        batches.close()  # type: ignore[attr-defined]
        return images.to(self.device), labels.to(self.device)

    @property
    def num_parts(self) -> int:
        """See :class:`growtas.train.strategies.base.Tools`."""
        return self.loader.steps

    def count_macs(self, macs: float) -> None:
        """See :class:`growtas.train.strategies.base.Tools`."""
        self._extra_macs += macs

    def _drop_metrics_after(self, epoch: int) -> None:
        """Remove the lines of epochs that have no checkpoint: they are trained again."""
        path = self.run.path / "metrics.jsonl"
        lines = [line for line in read_json_lines(path) if line["epoch"] <= epoch]
        if path.exists():
            with replacing(path) as temporary:
                temporary.touch()
                for line in lines:
                    append_json_line(temporary, line)


def _timed(batches: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
    """The batches, with the wait for each counted as ``data``."""
    while True:
        with clock("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
