"""Run folders: the files of a training and of the later steps.

::

    runs/20260101-120000-micro/
        run.json                state, space, recipe, data set, preprocessing, class names, test accuracies, versions
        data.json               report on the data set: sizes, classes and warnings
        split.json              indices of the training images held out for the search
        metrics.jsonl           one JSON object per epoch
        recipe.yaml             the complete recipe, as a file for --config
        init.safetensors        initial weights, if the training started from some
        importance.json         scores of an imported model's heads, neurons and channels, and the order of its blocks
        checkpoints/epoch-0010/ supernet.safetensors, trainer.safetensors, state.json; epoch-0010-batch-000200 within epoch 11
        checkpoints/best-...    supernet.safetensors of the epoch with the highest mean accuracy of the three evaluated subnets
        tensorboard/            event files, with --tensorboard
        search/                 journal.jsonl, result.json, subnet.json, report.html, search.png (with matplotlib), front.json (of a
                                front), DEVICE-timings.jsonl (measured latencies); replay/ has the same files of a --replay
        export/                 model.safetensors, NAME.onnx, NAME.plan, each with its .json manifest
        bench/                  bench.json
        report.html             the page of `growtas report`
"""

from __future__ import annotations

import datetime
import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from growtas.errors import CheckpointError, OutputError, UsageError
from growtas.fields import OBJECT, Rule, check_entries, list_of, map_of, number, real, text, whole
from growtas.files import check_folder, ensure_writable, read_json, read_json_lines, staged, write_json
from growtas.processes import process_alive
from growtas.progress import SILENT, Progress
from growtas.space import SearchSpace
from growtas.subnet import Subnet

RUNS = Path("runs")
FORMAT = "growtas-run/1"
ONE_SUBNET = ("finetune", "single")
"""Training methods whose runs have a single trained subnet."""


_COUNT = whole(0, 10**12)
_ACCURACIES = map_of(real(0, 1), "an object of numbers from 0 to 1")
_METRICS_RULES = {"epoch": whole(1, 10**9), "seconds": real(0).or_null(), "accuracy": _ACCURACIES}
_RULES = {
    "state": text(),
    "space": OBJECT,
    "method": text(),
    "recipe": OBJECT.or_null(),
    "data": OBJECT.or_null(),
    "data.name": text(),
    "data.data_dir": text().or_null(),
    "data.train_size": _COUNT,
    "data.test_size": _COUNT,
    "data.sha256": text(),
    "data.rules": _COUNT,
    "preprocess": OBJECT,
    "preprocess.image_size": whole(1, 4096),
    "preprocess.in_chans": whole(1, 3),
    "preprocess.mean": list_of(number(), "a list of numbers"),
    "preprocess.std": list_of(real(0, above=True), "a list of numbers above zero"),
    "preprocess.interpolation": text(),
    "preprocess.crop_pct": real(0, 10, above=True),
    "preprocess.decode": OBJECT,
    "class_names": list_of(text(), "a list of texts", empty=True).or_null(),
    "starts_from": OBJECT.or_null(),
    "starts_from.path": text(),
    "starts_from.sha256": text(),
    "teacher": OBJECT.or_null(),
    "teacher.accuracy": real(0, 1),
    "teacher.images": whole(1),
    "teacher.chance": real(0, 1),
    "finetune": OBJECT.or_null(),
    "finetune.subnet": OBJECT,
    "test_accuracy": _ACCURACIES,
    "seconds": real(0),
    "versions": OBJECT.or_null(),
    "machine": OBJECT.or_null(),
}
"""Rules of the entries of ``run.json``, for :func:`growtas.fields.check_entries`."""
_POOLED = Rule(
    lambda entry: isinstance(entry, list) and len(entry) == 3 and number().accepts(entry[1]), "a subnet, its loss and its epoch"
)
_PREFERRED_RULES = {
    "strategy": OBJECT,
    "strategy.preferred": list_of(OBJECT, "a list of subnets", empty=True),
    "strategy.pool": list_of(list_of(_POOLED, "a list of entries", empty=True), "a list of lists of pooled subnets", empty=True),
}
"""The same for the state of a checkpoint."""


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        name: ``finished``, ``imported``, ``interrupted``, ``failed``, ``training``, or ``stopped`` (a training whose process ended
            without recording a reason).
        process: for ``training``: ``alive``, ``elsewhere`` (on another machine), or ``unknown`` (not recorded, or the system
            doesn't tell); None for other states.
        pid: number of the recorded process; None if there is none.
        host: name of the machine that the process runs on.
    """

    name: str
    process: Literal["alive", "elsewhere", "unknown"] | None = None
    pid: int | None = None
    host: str | None = None

    def __str__(self) -> str:
        if self.process == "elsewhere":
            return f"{self.name} (on {self.host})"
        return f"{self.name} (unchecked)" if self.process == "unknown" else self.name


def run_state(info: Mapping[str, Any], written: float | None = None) -> RunState:
    """Determines the state of a run. For a training, it asks the system whether the process is alive.

    Args:
        info: the content of ``run.json``.
        written: time at which ``run.json`` was written, in seconds since 1970; None if it is unknown.
    """
    name, process = info.get("state"), info.get("process")
    if name != "training":
        return RunState(str(name) if name else "unknown")
    if not isinstance(process, Mapping) or not isinstance(process.get("pid"), int) or not isinstance(process.get("host"), str):
        return RunState("training", "unknown")
    pid, host = process["pid"], process["host"]
    if host != socket.gethostname():
        return RunState("training", "elsewhere", pid, host)
    lives = process_alive(process, written)
    if lives is None:
        return RunState("training", "unknown", pid, host)
    return RunState("training", "alive", pid, host) if lives else RunState("stopped", None, pid, host)


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a caller from Python may give a text

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``.

        Raises:
            CheckpointError: The file is missing, or does not belong to a run.
        """
        info = read_json(self.path / "run.json", "run file")
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise CheckpointError(f"{self.path / 'run.json'}: not a growtas run of format {FORMAT}")
        check_entries(info, _RULES, str(self.path / "run.json"), CheckpointError)
        return info

    def update(self, **changes: Any) -> None:
        """Changes entries of ``run.json``, atomically."""
        write_json(self.path / "run.json", {**self.info, **changes})

    @property
    def space(self) -> SearchSpace:
        """The space that was trained, with the data's number of classes."""
        return SearchSpace.from_dict(self.info["space"], source=str(self.path / "run.json"))

    def state(self) -> RunState:
        """Returns the state of the run; see :func:`run_state`.

        Raises:
            CheckpointError: See :attr:`info`.
        """
        return run_state(self.info, (self.path / "run.json").stat().st_mtime)

    @property
    def created(self) -> datetime.datetime:
        """Start of the run, with time zone; if ``run.json`` doesn't record it, the time of that file or of the folder.

        Raises:
            CheckpointError: There is no ``run.json``.
        """
        file = self.path / "run.json"
        try:
            return datetime.datetime.fromisoformat(self.info["created"]).astimezone()
        except (CheckpointError, KeyError, TypeError, ValueError):
            try:
                return datetime.datetime.fromtimestamp(file.stat().st_mtime).astimezone()
            except PermissionError:
                return datetime.datetime.fromtimestamp(self.path.stat().st_mtime).astimezone()
            except OSError:
                raise CheckpointError(f"{file}: the run file can't be read") from None

    def images(self, data: str | None = None, data_dir: str | Path | None = None) -> Mapping[str, Any] | None:
        """Returns the record of the data set to use: the run's, unless the arguments name another set or a new folder.

        Returns None if neither the run nor the arguments name a data set.
        """
        record = self.info.get("data") if data is None else {"name": data, "data_dir": None}
        if record is None or data_dir is None:
            return record
        return {**record, "data_dir": str(Path(data_dir).expanduser().absolute())}

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoint folders, oldest first."""
        return sorted(path.parent for path in self.path.glob("checkpoints/epoch-*/state.json"))

    def preferred_subnets(self) -> list[Subnet]:
        """Returns the subnets that the training preferred; an empty list for most methods.

        They are the subnets that ``prenas`` chose, by ascending parameters, or the pool of ``greedynas``: first the best subnet of
        each interval of parameters, then the second ones, and so on.

        Raises:
            CheckpointError: the state of the newest checkpoint can't be read.
            SubnetError: it contains something else than subnets.
        """
        if not self.checkpoints:
            return []
        file = self.checkpoints[-1] / "state.json"
        state = read_json(file, "checkpoint state")
        check_entries(state, _PREFERRED_RULES, str(file), CheckpointError)
        strategy = state.get("strategy") or {}
        intervals = (sorted(part, key=lambda entry: entry[1]) for part in strategy.get("pool", ()))
        pool = [entry[0] for rank in zip_longest(*intervals) for entry in rank if entry is not None]
        entries = [*strategy.get("preferred", ()), *pool]
        return [Subnet.from_dict(entry, source=str(file)) for entry in entries]

    @property
    def best(self) -> Path | None:
        """The folder of the best supernet so far; None if no epoch was evaluated."""
        return max((path.parent for path in self.path.glob("checkpoints/best-*/best.json")), default=None)

    @property
    def best_score(self) -> float | None:
        """The score of the best supernet so far; None if there is none, or ``best.json`` can't be read."""
        if (best := self.best) is None:
            return None
        try:
            record = read_json(best / "best.json", "best checkpoint")
            check_entries(record, {"score": real(0, 1)}, str(best / "best.json"), CheckpointError)
            return float(record["score"])
        except CheckpointError:
            return None

    @property
    def supernet_file(self) -> Path:
        """The file of the newest supernet's weights.

        Raises:
            CheckpointError: The run has no checkpoint yet.
        """
        folders = self.checkpoints
        if not folders:
            raise CheckpointError(
                f"{self.path}: the run has no checkpoint yet; continue it with `growtas train --resume {quote(str(self.path))}`"
            )
        return folders[-1] / "supernet.safetensors"


RUN_JSON = """``run.json``: what a run is, and where it stands. Entries that say ``absent`` are left out where they do not apply.

Fields:
    format (text): Always ``growtas-run/1``.
    created (text): When the run was begun, ISO 8601 with the time zone.
    state (text): ``training``, ``finished``, ``interrupted`` or ``imported``.
    error (text or null): Why the training ended; null or absent where it did not fail.
    process (object or null): The process that trains the run; null once it has ended. Absent in an imported run.
    process.pid (whole number): Number of that process.
    process.host (text): Name of its machine.
    space (object): The search space, as in a space's file, with the number of classes of the data.
    method (text): The training method; ``autoformer`` or ``timm`` in an imported run.
    recipe (object): Every field of the recipe. Absent in an imported run.
    seed (whole number): The recipe's seed. Absent in an imported run.
    data (object or null): The data set; null in a run that was imported without one.
    preprocess (object): How images become the network's input.
    class_names (list or null): A name for each class, in the order of the logits; null where they are not known.
    versions (object): Versions of ``growtas``, ``torch`` and ``numpy`` that began the run. Absent in an imported run.
    machine (object): Full names of the CPU and the GPU that the training began on, by their names for ``--device``. Absent in an
        imported run, and in runs of earlier versions.
    starts_from (object or null): The weights that the training started from; null where they are random, empty where a fine-tuning
        took them from its model. Absent in an imported run.
    starts_from.path (text): File of those weights.
    starts_from.sha256 (text): SHA-256 of that file, in hexadecimal.
    teacher (object): The teacher. Absent where there is none.
    finetune (object): What was fine-tuned. Absent in other runs.
    source (object): The imported checkpoint: its ``file``, or the ``model`` of timm with its ``weights`` and ``options``, and the
        ``sha256`` of the file. Absent in other runs.
    importance (object): How the parts of a model of timm were ordered: ``order``, and the number of ``images``. The scores are in
        ``importance.json``. Absent in other runs.
    test_accuracy (object): Top-1 accuracy (0 to 1) on the test set, by subnet: ``smallest``, ``middle`` and ``largest``. Absent
        until the training is finished.
    seconds (number): Seconds of all epochs and of the test. Absent until the training is finished.
"""


def read_metrics(folder: Path) -> list[Mapping[str, Any]]:
    """Reads the lines of a run's ``metrics.jsonl`` for a training that goes on.

    Raises:
        CheckpointError: The file can't be read, or a line is not an epoch's.
    """
    path = folder / "metrics.jsonl"
    lines = read_json_lines(path)
    for number_of_line, line in enumerate(lines, start=1):
        check_entries(line, _METRICS_RULES, f"{path}: line {number_of_line}", CheckpointError)
        _ = line["epoch"]  # raises if it is missing
    return lines


def read_model_manifest(model: Path) -> dict[str, Any]:
    """Reads what the manifest beside an exported model records about its images and classes; empty without a manifest.

    Raises:
        CheckpointError: The manifest can't be read, or one of these entries is not legal.
    """
    path = model.with_name(f"{model.name}.json")
    if not os.path.lexists(path):
        return {}
    manifest: dict[str, Any] = read_json(path, "manifest")
    rules = {name: rule for name, rule in _RULES.items() if name.startswith(("preprocess", "class_names"))}
    rules |= {"preprocess": OBJECT.or_null(), "space": text().or_null()}
    check_entries(manifest, rules, str(path), CheckpointError)
    return manifest


def create_run(root: Path, name: str | None, info: dict[str, Any], write: Callable[[Path], None] | None = None) -> Run:
    """Creates a run folder with its ``run.json``, all at once: after a kill or on a full disk the name is still free.

    Args:
        root: the folder in which the run's folder is created.
        name: the run's name; by default date, time and the space's name.
        info: the content of ``run.json``.
        write: writes the run's other first files into the folder that it is given.

    Raises:
        OutputError: The folder can't be written.
        UsageError: See :func:`check_run_name`.
    """
    check_run_name(root, name)
    now = datetime.datetime.now()
    base = name or f"{now:%Y%m%d-%H%M%S}-{info['space']['name']}"
    ensure_writable(root)
    with staged(root / base) as folder:
        write_json(folder / "run.json", {"format": FORMAT, "created": now.astimezone().isoformat(timespec="seconds"), **info})
        if write is not None:
            write(folder)
        path, count = root / base, 1
        while not _renamed(folder, path):
            check_run_name(root, name)  # another process has just taken it
            count += 1
            path = root / f"{base}-{count}"
    return Run(path)


def _renamed(folder: Path, path: Path) -> bool:
    """Renames a folder unless ``path`` exists; an empty folder there, as a killed earlier version leaves, is replaced."""
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise OutputError(f"{path}: can't be written ({error.strerror or error})") from None
        return False
    return True


def check_run_name(root: Path, name: str | None) -> None:
    """Checks that a name is legal for a new run; None stands for the default name.

    Raises:
        UsageError: The name is not a plain folder name, or a run with that name exists.
    """
    if name is None:
        return
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(f"the run's name {name!r} must be a plain folder name, without slashes or a leading dot")
    path = root / name
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            f"{path}: a run of this name exists; choose another --name, or continue it with --resume {quote(str(path))}"
        )


def find_run(given: str | Path | None, root: Path = RUNS) -> Run:
    """Returns the run in the folder ``given``, or the newest in ``root``; the age of an unreadable ``run.json`` is the file's.

    Raises:
        UsageError: There is no such run.
    """
    if given is not None:
        if not (Path(given) / "run.json").is_file():
            raise UsageError(f"{given}: no run here (a run folder holds a run.json)")
        return Run(Path(given))
    runs = list_runs(root) if root.is_dir() else []
    if not runs:
        raise UsageError(f"no run in {root}/; make one with `growtas train`, or name its folder")
    return runs[0]


def run_of(artifact: Path) -> Path | None:
    """Returns the run whose export folder holds an artifact, by the artifact's own path if possible; None for other artifacts."""
    named, real = artifact.parent.parent, Path(os.path.realpath(artifact)).parent.parent
    if not (real / "run.json").is_file():
        return None
    return named if os.path.realpath(named) == str(real) else real


def find_readable_run(given: str | Path | None, progress: Progress = SILENT, root: Path = RUNS) -> Run:
    """The run that was named, or the newest in ``root`` whose ``run.json`` can be read.

    Args:
        progress: gets a note for each run that is passed over.

    Raises:
        UsageError: there is none.
    """
    for run in list_runs(root) if given is None and root.is_dir() else ():
        try:
            _ = run.info
        except CheckpointError as error:
            progress.note(f"skipped: {error}")
            continue
        return run
    return find_run(given, root)


def list_runs(root: Path = RUNS) -> list[Run]:
    """Lists all runs in a folder, newest first, including those with an unreadable ``run.json``.

    Args:
        root: the folder that holds the runs.

    Raises:
        UsageError: The folder does not exist, or can't be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no folder of runs here; make a run with `growtas train`, or name another folder")
    check_folder(root)
    runs = [Run(path) for path in root.iterdir() if path.name[0] != "." and path.is_dir() and _may_be_run(path)]
    return sorted(runs, key=lambda run: (run.created, run.path.name), reverse=True)


def data_title(record: Mapping[str, Any] | None) -> str:
    """Returns the title of a recorded data set for messages: its name, or the path of a folder."""
    name = (record or {}).get("name")
    folder = record.get("data_dir") if record and name == "folder" else None
    return str(folder or name or "the run's data")


def _may_be_run(folder: Path) -> bool:
    """Returns whether a folder is a run, or can't be read; unreadable folders are listed, so that the user notices them."""
    try:
        return (folder / "run.json").exists()
    except PermissionError:
        return True
