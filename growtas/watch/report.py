"""The state of one run, as ``growtas show`` prints it and as JSON."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.files import read_json
from growtas.runs import Run, RunState
from growtas.watch.metrics import Metrics
from growtas.watch.overview import accuracies, contents, planned_epochs


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its folder.
        kind: ``newest``, ``best``, or ``kept`` for the others.
        score: mean accuracy of the followed subnets, of the best only.
        bytes: size of the folder's files.
    """

    path: Path
    kind: str
    score: float | None
    bytes: int


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        run: its folder.
        info: the content of ``run.json``.
        state: where it stands.
        metrics: its epochs.
        epochs: epochs of the whole training, None for an imported run.
        checkpoints: those on disk, oldest first, the best last.
        seconds_left: until the training is done; None where it doesn't run, or before its first epoch.
    """

    run: Run
    info: dict[str, Any]
    state: RunState
    metrics: Metrics
    epochs: int | None
    checkpoints: tuple[Checkpoint, ...]
    seconds_left: float | None

    @classmethod
    def of(cls, run: Run, now: float | None = None) -> Report:
        """The report of a run as it is on disk now.

        Args:
            now: seconds since 1970; the clock's by default.

        Raises:
            CheckpointError: ``run.json`` or ``metrics.jsonl`` can't be read.
        """
        info, metrics, state = run.info, Metrics.of(run), run.state()
        epochs = planned_epochs(info)
        left = metrics.seconds_left(epochs, now) if epochs is not None and state.name == "training" else None
        return cls(run, info, state, metrics, epochs, _checkpoints(run), left)

    @property
    def accuracy(self) -> tuple[dict[str, float], str | None]:
        """See :func:`growtas.watch.overview.accuracies`."""
        return accuracies(self.info, self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; a number that is not finite is null."""
        metrics = self.metrics
        values, measured_on = self.accuracy
        best, state = metrics.best(), self.state
        return _finite(
            {
                "run": str(self.run.path),
                "state": str(state),
                "process": {"state": state.process, "pid": state.pid, "host": state.host},
                "created": self.run.created.isoformat(timespec="seconds"),
                "epochs": {"done": metrics.done, "total": self.epochs, "seconds_left": self.seconds_left},
                "accuracy": values,
                "accuracy_on": measured_on,
                "best_epoch": None if best is None else {"epoch": best[0], "mean_accuracy": best[1]},
                "stages": [{"stage": stage, "first_epoch": epoch} for stage, epoch in metrics.stages],
                "seconds": metrics.seconds,
                "time": metrics.time(),
                "images_per_s": metrics.images_per_second(),
                "compute": metrics.compute(),
                "not_finite": metrics.not_finite(),
                "checkpoints": [{**vars(checkpoint), "path": str(checkpoint.path)} for checkpoint in self.checkpoints],
                "contents": list(contents(self.run)),
                "metrics": list(metrics.lines),
                "info": self.info,
            }
        )


def _checkpoints(run: Run) -> tuple[Checkpoint, ...]:
    folders = run.checkpoints
    checkpoints = [Checkpoint(path, "newest" if path == folders[-1] else "kept", None, _size(path)) for path in folders]
    if (best := run.best) is not None:
        score = read_json(best / "best.json", "best checkpoint").get("score")
        checkpoints.append(Checkpoint(best, "best", score, _size(best)))
    return tuple(checkpoints)


def _size(folder: Path) -> int:
    """Bytes of a folder's files; those that a running training has just removed count nothing."""
    total = 0
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
