"""The training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from growtas.data.evaluation import EvaluationSet, count_correct
from growtas.data.loaders import Batch, Loader
from growtas.data.seeding import preserved_globals, seed_globals
from growtas.errors import TrainingError
from growtas.files import append_json_line, read_json_lines, replacing
from growtas.growth import Subspace
from growtas.nn.supernet import Supernet
from growtas.runs import Run
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.train.checkpoints import all_finite, load_checkpoint, save_checkpoint
from growtas.train.optimizer import make_optimizer, make_scheduler
from growtas.train.recipe import Recipe
from growtas.train.strategies import Strategy

_INITIAL_WEIGHTS = 2**32
"""Seed stream of the initialisation: above every step, whose number is the stream of a step's drop path and Mixup."""


class Observer(Protocol):
    """Is told how the training gets on; may raise KeyboardInterrupt to stop it."""

    def on_start(self, first_step: int, steps: int) -> None:
        """The training is about to begin, or to go on, at a step out of ``steps``."""

    def on_step(self, step: int, epoch: int, stage: int, loss: float) -> None:
        """A step is done."""

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch is done and saved; ``metrics`` is its line of ``metrics.jsonl``."""


class Silent:
    """An observer that shows nothing."""

    def on_start(self, first_step: int, steps: int) -> None:
        """Nothing."""

    def on_step(self, step: int, epoch: int, stage: int, loss: float) -> None:
        """Nothing."""

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """Nothing."""


def monitored(space: SearchSpace) -> dict[str, Subnet]:
    """The three subnets whose accuracy is followed."""
    return {"smallest": space.smallest, "middle": space.middle(), "largest": space.largest}


def subnet_accuracies(supernet: Supernet, images: EvaluationSet, device: torch.device) -> dict[str, float]:
    """Accuracy (0..1) of the smallest, a middle and the largest subnet; the supernet is left in eval mode."""
    supernet.eval()

    def logits(batch: Tensor, subnet: Subnet) -> Tensor:
        return supernet(batch.to(device), subnet)

    chosen = monitored(supernet.space).items()
    return {name: count_correct(partial(logits, subnet=subnet), images) / len(images) for name, subnet in chosen}


@dataclass
class _Clock:
    """Seconds an activity; whatever runs inside ``with clock("name")`` counts for it."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - start


class Trainer:
    """Trains a supernet in a run's folder, from its last checkpoint on where there is one.

    On one machine's CPU the weights are a function of recipe and data alone: a run that was stopped and continued ends
    bit-identical to one that wasn't.

    Args:
        run: the folder, with its ``run.json``.
        recipe: what to do.
        strategy: which subnets a step updates.
        loader: the training images.
        monitor: images for the accuracies after each epoch.
        device: where to compute.
        observer: is told of the progress.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        strategy: Strategy,
        loader: Loader,
        monitor: EvaluationSet,
        device: torch.device,
        observer: Observer | None = None,
    ) -> None:
        self.run, self.recipe, self.strategy, self.loader, self.monitor = run, recipe, strategy, loader, monitor
        self.device, self.observer = device, observer or Silent()
        self.space = run.space
        self._mixup = self._make_mixup()

    def train(self) -> Supernet:
        """Train to the last epoch, saving after each.

        Raises:
            TrainingError: a loss or a weight is not finite; the last checkpoint stays.
            DataError: an image is unreadable.
            KeyboardInterrupt: the training was stopped; the last checkpoint stays.
        """
        with preserved_globals():
            seed_globals(self.recipe.seed, _INITIAL_WEIGHTS)
            supernet = Supernet(self.space, drop_path_rate=self.recipe.drop_path).to(self.device)
            optimizer = make_optimizer(supernet, self.recipe)
            first_epoch = 0
            if checkpoints := self.run.checkpoints:
                first_epoch = load_checkpoint(checkpoints[-1], supernet, optimizer)["epoch"]
            self._drop_metrics_after(first_epoch)
            scheduler = make_scheduler(optimizer, self.recipe, self.loader.steps)
            self.observer.on_start(first_epoch * self.loader.steps, self.recipe.epochs * self.loader.steps)
            for epoch in range(first_epoch, self.recipe.epochs):
                self._train_epoch(epoch, supernet, optimizer, scheduler)
        return supernet

    def _train_epoch(self, epoch: int, supernet: Supernet, optimizer: torch.optim.AdamW, scheduler: Any) -> None:
        start, clock, losses, images_seen = time.perf_counter(), _Clock(), 0.0, 0
        supernet.train()
        step, place = epoch * self.loader.steps, float(epoch)
        for batch in _timed(self.loader.batches(epoch), clock):
            place = step / self.loader.steps
            with clock("train"):
                scheduler.step_update(step)
                loss = self._step(step, place, batch, supernet, optimizer)
            step += 1
            losses += loss
            images_seen += len(batch[0])
            self.observer.on_step(step, epoch, self.strategy.stage(place), loss)
        if not all_finite(supernet):
            raise TrainingError(
                f"epoch {epoch + 1}: a weight is not finite any more; lower lr ({self.recipe.lr:g}) or set clip_grad"
            )
        with clock("evaluate"):
            accuracies = subnet_accuracies(supernet, self.monitor, self.device)
        metrics = {
            "epoch": epoch + 1,
            "step": step,
            "stage": self.strategy.stage(place) + 1,
            "subspace": _caps(self.strategy.subspace(place)),
            "loss": losses / self.loader.steps,
            "lr": optimizer.param_groups[0]["lr"],
            "accuracy": accuracies,
            "images_per_s": round(images_seen / (clock.seconds["data"] + clock.seconds["train"]), 1),
            "time": {activity: round(seconds, 3) for activity, seconds in clock.seconds.items()},
            "seconds": round(time.perf_counter() - start, 3),
        }
        # The line goes first: a line without its checkpoint is dropped on resuming, the other way round it would be missing.
        append_json_line(self.run.path / "metrics.jsonl", metrics)
        save_checkpoint(self.run, supernet, optimizer, epoch + 1, step)
        self.observer.on_epoch(metrics)

    def _step(self, step: int, epoch: float, batch: Batch, supernet: Supernet, optimizer: torch.optim.AdamW) -> float:
        """One optimiser step over the strategy's subnets; returns the mean loss."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        seed_globals(self.recipe.seed, step)
        smoothing, target = self.recipe.label_smoothing, labels
        if self._mixup is not None:
            images, target = self._mixup(images, labels)
            smoothing = 0.0  # Mixup's targets are smoothed already
        optimizer.zero_grad(set_to_none=True)
        subnets = [chosen.subnet for chosen in self.strategy.draw(step, epoch)]
        total = 0.0
        for subnet in subnets:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp == "bf16"):
                loss = F.cross_entropy(supernet(images, subnet).float(), target, label_smoothing=smoothing)
            value = float(loss.detach())
            if not abs(value) < float("inf"):
                raise TrainingError(
                    f"step {step + 1}: the loss is {value} for the subnet ({subnet}); lower lr ({self.recipe.lr:g}) "
                    f"or set clip_grad; the last checkpoint in {self.run.path / 'checkpoints'} is kept"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            total += value
        if self.recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(supernet.parameters(), self.recipe.clip_grad)
        optimizer.step()
        return total / len(subnets)

    def _make_mixup(self) -> Mixup | None:
        if not (self.recipe.mixup or self.recipe.cutmix):
            return None
        return Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=self.recipe.mixup,
            cutmix_alpha=self.recipe.cutmix,
            label_smoothing=self.recipe.label_smoothing,
            num_classes=self.space.num_classes,
        )

    def _drop_metrics_after(self, epoch: int) -> None:
        """Remove the lines of epochs that have no checkpoint: they are trained again."""
        path = self.run.path / "metrics.jsonl"
        lines = read_json_lines(path)
        kept = [line for line in lines if line["epoch"] <= epoch]
        if path.exists():
            with replacing(path) as temporary:
                temporary.touch()
                for line in kept:
                    append_json_line(temporary, line)


def _timed(batches: Iterator[Batch], clock: _Clock) -> Iterator[Batch]:
    """The batches, with the wait for each counted as ``data``."""
    while True:
        with clock("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _caps(subspace: Subspace) -> dict[str, float | None]:
    """A subspace in JSON, where there is no infinity."""
    caps = {"max_embed_dim": subspace.max_embed_dim, "max_mlp_ratio": subspace.max_mlp_ratio}
    return {key: None if cap == float("inf") else cap for key, cap in caps.items()}
