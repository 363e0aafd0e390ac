"""A run as a row of the table of ``growtas runs``, and as the report of ``growtas show``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from growtas.errors import CheckpointError
from growtas.fields import OBJECT, check_entries, real, whole
from growtas.files import finite_or_null, read_json
from growtas.runs import Run, RunState
from growtas.units import standard_error
from growtas.watch.metrics import Metrics

Entry = TypeVar("Entry")


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
        accuracy_images: how many images that were; None where it is not known.
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
    accuracy_images: int | None = None
    contents: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run) -> Overview:
        """Returns the row of a run; if a file can't be read, the row has a ``problem`` and no error is raised."""
        row = cls(run.path.name, run.path, run.created.isoformat(timespec="seconds"), "unreadable", contents=_contents(run))
        try:
            info = run.info
            row = dataclasses.replace(
                row,
                state=str(run.state()),
                space=_entry(info, str, "space", "name"),
                data=_data_name(info),
                method=_entry(info, str, "method"),
                epochs=_entry(info, int, "recipe", "epochs"),
            )
            metrics = Metrics.of(run)
        except CheckpointError as error:
            return dataclasses.replace(row, problem=str(error))
        accuracy, accuracy_on = _accuracies(info, metrics)
        images = _accuracy_images(run, info, accuracy_on)
        return dataclasses.replace(
            row, epochs_done=metrics.done, accuracy=accuracy, accuracy_on=accuracy_on, accuracy_images=images
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        row = {**dataclasses.asdict(self), "path": str(self.path), "contents": list(self.contents)}
        return {**row, "accuracy_standard_error": _standard_errors(self.accuracy, self.accuracy_images)}


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


_RESULT_RULES = {
    "best": OBJECT,
    "best.accuracy": real(0, 1),
    "images": OBJECT,
    "images.count": whole(0, 10**12).or_null(),
    "limits": OBJECT,
}


def read_search_result(file: Path) -> Any:
    """Reads a search's ``result.json``.

    Raises:
        CheckpointError: The file can't be read, or an entry that reports show is not legal.
    """
    result = read_json(file, "search result")
    check_entries(result, _RESULT_RULES, str(file), CheckpointError)
    return result


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
        epochs = _entry(info, int, "recipe", "epochs")
        left = metrics.seconds_left(epochs, now) if epochs is not None and state.name == "training" else None
        return cls(run, info, state, metrics, epochs, _checkpoints(run), left)

    @property
    def accuracy(self) -> tuple[dict[str, float], str | None]:
        """The most informative accuracies of the run (0 to 1), and the images on which they were measured."""
        return _accuracies(self.info, self.metrics)

    @property
    def searched(self) -> dict[str, tuple[float, int | None]]:
        """Accuracies on the search split of the subnet that the run's search chose, by precision, each with the number of images.

        Empty where it was not searched, or where the result can't be read.
        """
        with contextlib.suppress(CheckpointError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
            result = read_search_result(self.run.path / "search" / "result.json")
            best, count = result["best"], result["images"]["count"]
            entries = [{"precision": "fp32", "accuracy": best["accuracy"]}, *best.get("converted", ())]
            return {entry["precision"]: (float(entry["accuracy"]), count) for entry in entries}
        return {}

    @property
    def accuracy_images(self) -> int | None:
        """The number of images behind those accuracies; None if it is unknown."""
        return _accuracy_images(self.run, self.info, self.accuracy[1])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; a number that is not finite is null."""
        metrics = self.metrics
        values, measured_on = self.accuracy
        best, state = metrics.best(), self.state
        return finite_or_null(
            {
                "run": str(self.run.path),
                "state": str(state),
                "process": {"state": state.process, "pid": state.pid, "host": state.host},
                "created": self.run.created.isoformat(timespec="seconds"),
                "epochs": {"done": metrics.done, "total": self.epochs, "seconds_left": self.seconds_left},
                "accuracy": values,
                "accuracy_on": measured_on,
                "accuracy_images": self.accuracy_images,
                "accuracy_standard_error": _standard_errors(values, self.accuracy_images),
                "searched": {
                    precision: {"accuracy": value, "accuracy_standard_error": standard_error(value, count) if count else None}
                    for precision, (value, count) in self.searched.items()
                },
                "best_epoch": None if best is None else {"epoch": best[0], "mean_accuracy": best[1]},
                "stages": [{"stage": stage, "first_epoch": epoch} for stage, epoch in metrics.stages],
                "seconds": metrics.seconds,
                "time": metrics.time(),
                "images_per_s": metrics.images_per_second(),
                "compute": metrics.compute(),
                "not_finite": metrics.not_finite(),
                "checkpoints": [{**vars(checkpoint), "path": str(checkpoint.path)} for checkpoint in self.checkpoints],
                "contents": list(_contents(self.run)),
                "metrics": list(metrics.lines),
                "info": self.info,
            }
        )


def _checkpoints(run: Run) -> tuple[Checkpoint, ...]:
    folders = run.checkpoints
    checkpoints = [Checkpoint(path, "newest" if path == folders[-1] else "kept", None, _size(path)) for path in folders]
    if (best := run.best) is not None:
        checkpoints.append(Checkpoint(best, "best", run.best_score, _size(best)))
    return tuple(checkpoints)


def _size(folder: Path) -> int:
    """Returns the bytes of a folder's files; files that a running training has just removed count as zero."""
    total = 0
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _contents(run: Run) -> tuple[str, ...]:
    """Returns the steps that followed the training: ``searched``, ``exported``, ``benched``."""
    artifacts = ("export/*.safetensors", "export/*.onnx", "export/*.plan")
    files = {"searched": ("search/result.json",), "exported": artifacts, "benched": ("bench/bench.json",)}
    return tuple(step for step, patterns in files.items() if any(any(run.path.glob(pattern)) for pattern in patterns))


def _accuracies(info: Mapping[str, Any], metrics: Metrics) -> tuple[dict[str, float], str | None]:
    """Returns the most informative accuracies of a run, and where they were measured: ``test`` or ``search split``."""
    tested = info.get("test_accuracy")
    if info.get("state") == "finished" and isinstance(tested, Mapping):
        return {str(name): float(value) for name, value in tested.items()}, "test"
    monitored = {series.label: last for series in metrics.group("accuracy") if (last := series.last) is not None}
    return monitored, "search split" if monitored else None


def _data_name(info: Mapping[str, Any]) -> str | None:
    """Returns the name of the run's data set; for a folder, its name without the path."""
    name = _entry(info, str, "data", "name")
    folder = _entry(info, str, "data", "data_dir") if name == "folder" else None
    return Path(folder).name or folder if folder else name


def _accuracy_images(run: Run, info: Mapping[str, Any], measured_on: str | None) -> int | None:
    """The number of images behind accuracies of the test images, or those of every epoch, on a part of the search split."""
    if measured_on == "test":
        return _entry(info, int, "data", "test_size")
    most, split = _entry(info, int, "recipe", "monitor_images"), run.path / "split.json"
    if measured_on is None or most is None or not split.is_file():
        return None
    with contextlib.suppress(CheckpointError):
        if isinstance(content := read_json(split, "search split"), Mapping) and isinstance(content.get("search"), list):
            return min(most, len(content["search"]))
    return None


def _standard_errors(accuracies: Mapping[str, float], images: int | None) -> dict[str, float | None]:
    return {name: standard_error(value, images) if images else None for name, value in accuracies.items()}


def _entry(info: Mapping[str, Any], kind: type[Entry], *path: str) -> Entry | None:
    """Returns an entry of ``run.json``; None if it is absent or has another type."""
    value: Any = info
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, kind) else None
