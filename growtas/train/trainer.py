"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
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
from growtas.files import append_json_line, replacing
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.progress import SILENT, Progress
from growtas.runs import Run, read_metrics
from growtas.subnet import Subnet
from growtas.train.checkpoints import Place, all_finite, keep_best, load_newest, remove_old, save_checkpoint
from growtas.train.clock import Clock
from growtas.train.events import EpochDone, StepDone, TrainingStarted
from growtas.train.freezing import FrozenEntries, used_regions
from growtas.train.interrupts import TrainingInterrupts
from growtas.train.monitored_subnets import stage_subnets, subnet_accuracies, subnet_losses
from growtas.train.optimizer import make_scheduler
from growtas.train.recipe import Recipe
from growtas.train.step import Stepper, Training
from growtas.train.strategies.base import Strategy
from growtas.train.strategies.growtas_plus import ProgressivePlus
from growtas.train.teacher import Teacher

_INITIAL_WEIGHTS = 2**32
"""Seed stream of the initialisation; larger than any step number, which is the stream of that step's drop path and Mixup."""


METRICS_LINE = """``metrics.jsonl``: a JSON object on a line for each complete epoch.

Fields:
    epoch (whole number): Number of the epoch, from 1.
    step (whole number): Optimiser steps since the start of the training.
    stage (whole number): Number of the open stage, from 1.
    subspace (object): Caps of the open subspace.
    subspace.max_embed_dim (number or null): Largest ``embed_dim`` that is drawn; null for no cap.
    subspace.max_mlp_ratio (number or null): Largest ``mlp_ratio`` that is drawn; null for no cap.
    loss (number or null): Mean training loss of the epoch; null where it is not finite.
    lr (number): Learning rate of the schedule at the last step. The steps of ``dynas`` have other rates.
    accuracy (object): Top-1 accuracy (0 to 1) of the followed subnets on images of the search split: ``smallest``, ``middle`` and
        ``largest``. Absent in epochs that the recipe's ``probe_epochs`` leaves out.
    probes (object): The same for further subnets of the smaller subspaces, such as ``A1 largest``. Absent where ``accuracy`` is.
    images_per_s (number): Training images a second, without the time for measuring accuracies and saving.
    time (object): Seconds of each activity, by its name: ``data`` (waiting for images), ``forward``, ``backward``, ``optimiser``,
        ``method`` (what the training method does beside the steps), ``evaluate`` (accuracies), ``save`` (the checkpoint before).
    compute (object): What the epoch computed.
    compute.passes (number): Passes of a subnet over a batch, forward and backward.
    compute.macs (number): Multiply-accumulates of these passes; a backward pass counts as two forward passes.
    compute.extra_macs (number): Multiply-accumulates of what the training method and a teacher compute beside them.
    seconds (number): Seconds of the whole epoch.
"""


class Trainer:
    """Trains the supernet of a run, starting from the run's newest checkpoint if there is one.

    On the CPU of one machine the weights depend on recipe and data alone: a run that was stopped or killed at any moment and then
    resumed ends bit-identical to a run without a stop.

    Args:
        run: the run; initial weights are read from its ``init.safetensors``, if that exists.
        recipe: the recipe of the training.
        strategy: the training method, which chooses the subnets of each step.
        loader: this process's share of the training images.
        monitor: images for measuring accuracies after each epoch.
        device: the device of this process.
        interrupts: requests to stop.
        world: the processes of the training.
        progress: receives notes and the events of :mod:`growtas.train.events`; it may raise KeyboardInterrupt to stop.
        teacher: external teacher on ``device`` for all passes that learn from labels.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        strategy: Strategy,
        loader: Loader,
        monitor: EvaluationSet,
        device: torch.device,
        interrupts: TrainingInterrupts,
        world: World = World(),  # noqa: B008 (a frozen value)
        progress: Progress = SILENT,
        teacher: Teacher | None = None,
    ) -> None:
        self.run, self.recipe, self.strategy, self.loader, self.monitor = run, recipe, strategy, loader, monitor
        self.device, self.world, self.progress, self._interrupts = device, world, progress, interrupts
        self.teacher = teacher
        self.space = run.space
        self._probes = stage_subnets(self.space, strategy.subspaces())
        self._extra_macs = 0.0
        self._subsets: dict[int, EvaluationSet] = {}
        self._saved = time.monotonic()
        self._save_seconds = 0.0
        """Time to write the last checkpoint. An epoch's line reports the checkpoint before it, as its own is written later."""
        self._epoch_began = 0.0
        """Start of the epoch, moved back by the time that an interrupted training already spent on it."""

    def train(self) -> Supernet:
        """Trains to the last epoch and saves a checkpoint after each.

        Returns:
            The supernet, or the moving average of its weights if the recipe has one.

        Raises:
            TrainingError: a loss or a weight is not finite; the last checkpoint is kept.
            DataError: an image is unreadable.
            KeyboardInterrupt: the training was stopped. A checkpoint of the last complete step is saved, if that is possible.
        """
        with preserved_globals():
            place, fresh = self._prepare()
            self._interrupts.join()
            try:
                if fresh:
                    self.strategy.prepare(self)
                    # Results may differ in the last bit between GPUs, so all processes take the choices of process 0.
                    self.strategy.load_state(self.world.share(self.strategy.state()))
                elif place.batch == 0:
                    self._keep_best(place)
                scheduler = make_scheduler(self._training.optimizer, self.recipe, self.loader.steps)
                self._report(TrainingStarted(place.step, self.recipe.epochs * self.loader.steps))
                while place.epoch < self.recipe.epochs and not self._ends_early(place.epoch):
                    self._train_epoch(place, scheduler)
            except KeyboardInterrupt:
                # A first request is always answered after a complete step, so `place` is consistent and can be saved.
                saved = place.step == 0 or place.folder in [checkpoint.name for checkpoint in self.run.checkpoints]
                if self._interrupts.requested and not self._interrupts.at_once and not saved:
                    self._save(place)
                raise
        return self._training.result

    def _ends_early(self, epochs: int) -> bool:
        """Whether the method has converged, or the followed subnets have not gained for the recipe's patience in the last stage."""
        if self.strategy.converged(epochs):
            self.progress.note(f"{self.strategy.name} has converged; the training ends after epoch {epochs}")
            return True
        patience = self.recipe.patience
        if patience is None:
            return False
        stalled = False
        if self.world.is_main:
            # Stages of a growing training are its subspaces, because an automatic transition has no epoch in advance.
            last = max(len(self.strategy.subspaces()), self.strategy.stage(self.recipe.epochs) + 1)
            measured = [m for m in read_metrics(self.run.path) if m.get("accuracy") and m["stage"] == last]
            means = {m["epoch"]: fmean(m["accuracy"].values()) for m in measured}
            best = max(means, key=means.__getitem__, default=0)
            stalled = bool(means) and max(means) - best >= patience
            if stalled:
                self.progress.note(f"the subnets have not gained since epoch {best}; the training ends after epoch {max(means)}")
        return bool(self.world.share(stalled))

    def _prepare(self) -> tuple[Place, bool]:
        """Creates the training's objects and loads the newest checkpoint. Returns the progress, and whether there was none."""
        recipe = self.recipe
        seed_globals(recipe.seed, _INITIAL_WEIGHTS)
        supernet = Supernet(self.space, drop_path_rate=recipe.drop_path)
        initial = self.run.path / "init.safetensors"
        if initial.exists():
            supernet.load_state_dict(load_supernet(initial).state_dict())
        self.strategy.adapt(supernet)
        supernet.to(self.device)
        self.world.share_weights(supernet)
        frozen = None
        if isinstance(self.strategy, ProgressivePlus):
            frozen = FrozenEntries(supernet, used_regions(supernet, self.strategy.frozen))
        self._training = Training.of(supernet, recipe, self.device, self.strategy.moment_sets)
        self._stepper = Stepper(self._training, recipe, self.world, self.device, teacher=self.teacher, frozen=frozen)
        if not self.world.is_main:
            self.world.wait()  # until process 0 has renamed unreadable checkpoints
        fresh = not self.run.checkpoints
        place, state = load_newest(self.run, self._training, self.progress)
        if self.world.is_main:
            self.world.wait()
        if not fresh:
            self.strategy.load_state(state)
        if self.world.is_main:
            self._drop_metrics_after(place.epoch)
            remove_old(self.run, self.recipe.keep_checkpoints)  # a killed process may have left some
        return place, fresh

    def _train_epoch(self, place: Place, scheduler: Any) -> None:
        clock, epoch, images_here = Clock(self.device), place.epoch, 0
        training, steps = self._training, self.loader.steps
        training.supernet.train()
        self._epoch_began = time.perf_counter() - place.sums.pop("seconds", 0.0)
        # A training that was stopped after an epoch's last step resumes with the measurement of that epoch.
        for batch in _timed(self.loader.batches(epoch, place.batch), clock) if place.batch < steps else ():
            scheduler.step_update(place.step)
            where = place.step / steps
            self._before_step(place.step, where, clock)
            with self._interrupts.held():
                with clock.step(place.step):
                    passes = self.strategy.draw(place.step, where)
                    scheduled = float(training.optimizer.param_groups[0]["lr"])
                    rate = self.strategy.learning_rate(scheduled, where, passes)
                    training.prepare_step(rate, self.strategy.moments(passes), self.strategy.router_rate(where))
                    result = self._stepper(place.step, batch, passes, clock, self._requests)
                place.step += 1
                place.batch += 1
                images = len(batch[0]) * self.world.size
                images_here += images
                loss = sum(result.losses) / len(passes)
                extra_macs, self._extra_macs = result.extra_macs + self._extra_macs, 0.0
                additions = {"loss": loss, "images": images, "passes": sum(chosen.runs for chosen in passes), "macs": result.macs}
                additions |= {"extra_macs": extra_macs}
                for key, value in additions.items():
                    place.sums[key] = place.sums.get(key, 0.0) + value
                self._report(StepDone(place.step, epoch, self.strategy.stage(where), loss))
            self._answer(result.requests, place)
        if not all_finite(training.supernet):
            raise TrainingError(f"epoch {epoch + 1}: a weight is no longer finite; lower lr ({self.recipe.lr:g}) or set clip_grad")
        scheduler.step_update(place.step - 1)  # sets the rate for the metrics if no step of this epoch was left
        metrics = self._measure(place, images_here, clock)
        with self._interrupts.held():
            metrics["seconds"] = round(time.perf_counter() - self._epoch_began, 3)
            place.epoch, place.batch, place.sums = epoch + 1, 0, {}
            self.strategy.after_epoch(place.epoch, metrics)
            if self.world.is_main:
                # The line is written first: a line without a checkpoint is dropped on resuming, a missing line can't be restored.
                append_json_line(self.run.path / "metrics.jsonl", metrics)
                self._save(place)
                self._keep_best(place, metrics)
            self._report(EpochDone(metrics))
        self._interrupts.check()

    def _report(self, event: object) -> None:
        """Passes an event on. A KeyboardInterrupt of the progress object counts as a request to stop, like Ctrl-C."""
        try:
            self.progress.event(event)
        except KeyboardInterrupt:
            if self._interrupts.requested:
                raise
            self._interrupts.request()

    def _before_step(self, step: int, epoch: float, clock: Clock) -> None:
        """Runs the method's work before a step, and keeps the frozen teacher when the method asks for it."""
        with clock("method"):
            self.strategy.before_step(step, epoch, self)
            if self._training.teacher is None and self.strategy.keeps_teacher(epoch):
                self._training.teacher = extract(self._training.result, self.space.largest).requires_grad_(False)
        if not self._training.supernet.training:
            self._training.supernet.train()

    def _measure(self, place: Place, images: int, clock: Clock) -> dict[str, Any]:
        """Returns the epoch's line of ``metrics.jsonl``; ``images`` counts the epoch's images since this process started."""
        epoch, sums, where = place.epoch + 1, place.sums, (place.step - 1) / self.loader.steps
        metrics: dict[str, Any] = {
            "epoch": epoch,
            "step": place.step,
            "stage": self.strategy.stage(where) + 1,
            "subspace": self.strategy.subspace(where).to_dict(),
            "loss": sums["loss"] / self.loader.steps,
            "lr": self._training.optimizer.param_groups[0]["lr"],
        }
        if epoch % self.recipe.probe_epochs == 0 or epoch == self.recipe.epochs:
            with clock("evaluate"):
                probes = {**self.strategy.followed(), **self._probes}
                accuracies = self._accuracies(self._training.result, self.monitor, probes)
            metrics["accuracy"] = {name: accuracies.pop(name) for name in self.strategy.followed()}
            metrics["probes"] = accuracies
        seconds = clock.seconds()
        busy = clock.step_seconds + seconds.get("data", 0.0) + seconds.get("method", 0.0)
        if not images:
            images, busy = int(sums["images"]), time.perf_counter() - self._epoch_began
        metrics["images_per_s"] = round(images / busy, 1) if busy else 0.0
        metrics["time"] = {**seconds, "save": round(self._save_seconds, 3)}
        metrics["compute"] = {key: sums[key] for key in ("passes", "macs", "extra_macs")}
        return metrics

    def _save(self, place: Place) -> None:
        """Writes a checkpoint on process 0."""
        if not self.world.is_main:
            return
        start = time.monotonic()
        if place.batch:
            place.sums["seconds"] = time.perf_counter() - self._epoch_began
        with self._interrupts.held():
            save_checkpoint(self.run, self._training, place, self.strategy.state(), self.recipe.keep_checkpoints)
        place.sums.pop("seconds", None)
        self._saved = time.monotonic()
        self._save_seconds = self._saved - start

    def _accuracies(self, supernet: Supernet, images: EvaluationSet, subnets: Mapping[str, Subnet]) -> dict[str, float]:
        return subnet_accuracies(supernet, images, self.device, subnets, self.world, self._interrupts.check)

    def _keep_best(self, place: Place, metrics: dict[str, Any] | None = None) -> None:
        """Keeps the epoch's supernet as the best if the mean accuracy of its followed subnets is the highest so far."""
        lines = [metrics] if metrics else [m for m in read_metrics(self.run.path) if m["epoch"] == place.epoch]
        if self.world.is_main and lines and lines[-1].get("accuracy"):
            accuracies = lines[-1]["accuracy"].values()
            keep_best(self.run, self.run.path / "checkpoints" / place.folder, math.fsum(accuracies) / len(accuracies))

    def _requests(self) -> list[bool]:
        """Returns whether this process wants a checkpoint now, and whether it was asked to stop."""
        limit = self.recipe.save_minutes * 60
        return [self.world.is_main and 0 < limit < time.monotonic() - self._saved, *self._interrupts.flags()]

    def _answer(self, requests: list[float], place: Place) -> None:
        """Saves or stops if a process asked for it in the step. After an epoch's last step its checkpoint follows anyway."""
        save, *stop = requests
        if save and place.batch < self.loader.steps:
            self._save(place)
        # A single process can also answer a request that came after the exchange of gradients.
        self._interrupts.answer(stop if self.world.size > 1 else self._interrupts.flags())

    # The rest implements growtas.train.strategies.base.Tools for the training methods.

    @property
    def supernet(self) -> Supernet:
        """The supernet in training."""
        return self._training.supernet

    def accuracy(self, subnet: Subnet, count: int | None = None) -> float:
        """See :class:`growtas.train.strategies.base.Tools`."""
        images = self._monitored(count)
        (accuracy,) = self._accuracies(self.supernet, images, {"subnet": subnet}).values()
        self.count_macs(float(count_costs(self.space, subnet).macs) * len(images))
        return accuracy

    def losses(self, subnets: Sequence[Subnet], count: int | None = None) -> list[float]:
        """See :class:`growtas.train.strategies.base.Tools`."""
        images = self._monitored(count)
        losses = subnet_losses(self.supernet, images, self.device, subnets, self.world, self._interrupts.check)
        self.count_macs(float(sum(count_costs(self.space, subnet).macs for subnet in subnets)) * len(images))
        return losses

    def _monitored(self, count: int | None) -> EvaluationSet:
        """Returns the first images of the search split on which the training measures; by default all of them."""
        size = len(self.monitor) if count is None else count
        if size not in self._subsets:
            self._subsets[size] = self.monitor.subset(size)
        return self._subsets[size]

    def sample_batch(self, index: int) -> tuple[Tensor, Tensor]:
        """See :class:`growtas.train.strategies.base.Tools`."""
        self._interrupts.check()
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
        """Removes the lines of epochs without a checkpoint, because these epochs are trained again."""
        path = self.run.path / "metrics.jsonl"
        lines = [line for line in read_metrics(self.run.path) if line["epoch"] <= epoch]
        if path.exists():
            with replacing(path) as temporary:
                temporary.touch()
                for line in lines:
                    append_json_line(temporary, line)


def _timed(batches: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
    """Yields the batches and counts the wait for each as ``data``."""
    while True:
        with clock("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
