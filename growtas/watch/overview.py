"""One run as a row of the table that ``growtas runs`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError
from growtas.runs import Run
from growtas.watch.metrics import Metrics


@dataclass(frozen=True)
class Overview:
    """One row.

    Attributes:
        name: the folder's name.
        path: the folder.
        created: when the run was begun, ISO 8601 with the time zone.
        state: as :class:`growtas.runs.RunState` writes it, or ``unreadable``.
        problem: what can't be read, or None.
        space, data, method: their names; None where they are not known.
        epochs_done: epochs that are complete.
        epochs: epochs of the whole training; None for an imported run.
        accuracy: of the followed subnets (0..1), in the order smallest, middle, largest; empty where none was measured.
        accuracy_on: ``test`` (a finished training) or ``search split`` (the last epoch's); None without accuracies.
        contents: which of ``searched``, ``exported`` and ``benched`` the run is.
    """

    name: str
    path: Path
    created: str
    state: str
    problem: str | None = None
    space: str | None = None
    data: str | None = None
    method: str | None = None
    epochs_done: int = 0
    epochs: int | None = None
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    accuracy_on: str | None = None
    contents: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run) -> Overview:
        """The row of a run; what can't be read becomes the row's ``problem``, not an error."""
        row = cls(run.path.name, run.path, run.created.isoformat(timespec="seconds"), "unreadable", contents=contents(run))
        try:
            info = run.info
            row = dataclasses.replace(
                row,
                state=str(run.state()),
                space=_text(info, "space", "name"),
                data=_text(info, "data", "name"),
                method=_text(info, "method"),
                epochs=planned_epochs(info),
            )
            metrics = Metrics.of(run)
        except CheckpointError as error:
            return dataclasses.replace(row, problem=str(error))
        accuracy, accuracy_on = accuracies(info, metrics)
        return dataclasses.replace(row, epochs_done=metrics.done, accuracy=accuracy, accuracy_on=accuracy_on)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**dataclasses.asdict(self), "path": str(self.path), "contents": list(self.contents)}


def contents(run: Run) -> tuple[str, ...]:
    """What was done with a run: ``searched``, ``exported``, ``benched``."""
    artifacts = ("export/*.safetensors", "export/*.onnx", "export/*.plan")
    files = {"searched": ("search/result.json",), "exported": artifacts, "benched": ("bench/bench.json",)}
    return tuple(step for step, patterns in files.items() if any(any(run.path.glob(pattern)) for pattern in patterns))


def planned_epochs(info: Mapping[str, Any]) -> int | None:
    """Epochs of the whole training, None where ``run.json`` doesn't say (an imported run)."""
    recipe = info.get("recipe")
    epochs = recipe.get("epochs") if isinstance(recipe, Mapping) else None
    return epochs if isinstance(epochs, int) else None


def accuracies(info: Mapping[str, Any], metrics: Metrics) -> tuple[dict[str, float], str | None]:
    """The accuracies that tell most about a run, and on which images they were measured: ``test`` or ``search split``."""
    tested = info.get("test_accuracy")
    if info.get("state") == "finished" and isinstance(tested, Mapping):
        return {str(name): float(value) for name, value in tested.items()}, "test"
    monitored = {series.label: last for series in metrics.group("accuracy") if (last := series.last) is not None}
    return monitored, "search split" if monitored else None


def _text(info: Mapping[str, Any], *path: str) -> str | None:
    value: Any = info
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None
