"""Run folders: what a training leaves behind, and how the later steps find it.

::

    runs/20260101-120000-micro/
        run.json                state, space, recipe, data (with preprocessing and class names), versions
        data.json               what the data set holds, and what is odd about it
        split.json              indices of the training images set aside for the search
        metrics.jsonl           one line an epoch
        recipe.yaml             the whole recipe, as --config reads it
        init.safetensors        weights that the training started from, where it did
        checkpoints/epoch-0010/ supernet.safetensors, trainer.safetensors, state.json; epoch-0010-batch-000200 within epoch 11
        checkpoints/best-...    supernet.safetensors of the epoch with the highest mean accuracy of the three followed subnets
        tensorboard/            event files, where they were asked for
        search/                 journal.jsonl, result.json, subnet.json, report.html, search.png (with matplotlib), front.json (of a
                                front), DEVICE-timings.jsonl (of a --device at hand); replay/ has the same files of a --replay
        export/                 model.safetensors, NAME.onnx, NAME.plan, each with its .json manifest
        bench/                  bench.json
        report.html             the page of `growtas report`
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from growtas.errors import CheckpointError, UsageError
from growtas.files import check_folder, ensure_writable, read_json, write_json
from growtas.progress import SILENT, Progress
from growtas.space import SearchSpace

RUNS = Path("runs")
FORMAT = "growtas-run/1"


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        name: ``finished``, ``imported``, ``interrupted``, ``failed``, ``training``, or ``stopped``: a training whose process is
            gone without having said why.
        process: of ``training``: ``alive``, or why that can't be told: ``elsewhere`` (another machine's), ``unknown`` (not
            recorded, or the system doesn't say); None otherwise.
        pid: the recorded process, where there is one.
        host: the machine that it runs on.
    """

    name: str
    process: Literal["alive", "elsewhere", "unknown"] | None = None
    pid: int | None = None
    host: str | None = None

    @property
    def busy(self) -> bool:
        """Whether another process than this one is known to train the run right now."""
        return self.process == "alive" and self.pid != os.getpid()

    def __str__(self) -> str:
        if self.process == "elsewhere":
            return f"{self.name} (on {self.host})"
        return f"{self.name} (unchecked)" if self.process == "unknown" else self.name


def run_state(info: Mapping[str, Any], written: float | None = None) -> RunState:
    """Where a run stands, by the content of its ``run.json``, which was ``written`` so many seconds after 1970 where that is known.

    Asks the system whether a training's process lives.
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


def this_process() -> dict[str, Any]:
    """What ``run.json`` holds under ``process`` while this process trains the run."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def process_alive(process: Mapping[str, Any], written: float | None = None) -> bool | None:
    """Whether a recorded process of this machine lives; None where that can't be told.

    A process number is used again after a while, in a restarted container at once. So a process that began well after the file
    that names it was written is another one.

    Args:
        process: ``pid`` and ``host``, as :func:`this_process` gives them.
        written: when that was written, in seconds since 1970, where known.
    """
    pid = process["pid"]
    if process["host"] != socket.gethostname() or os.name != "posix":  # elsewhere os.kill(pid, 0) is no question
        return None
    if pid <= 0:  # these would mean groups of processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is there, and somebody else's
    status = _process_status(pid)
    if status is None:
        return True
    letter, began = status
    return letter not in "ZX" and (written is None or began <= written + CLOCK_SLACK_S)


CLOCK_SLACK_S = 60.0
"""How far the times of files and of processes may lie apart, in seconds."""


def _process_status(pid: int) -> tuple[str, float] | None:
    """A process's state letter and when it began, in seconds since 1970; None where there is no Linux /proc."""
    try:
        # The second field is the program's name in parentheses, which may hold anything, spaces and parentheses too.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        # The clock, not /proc/uptime: some containers fake that file, but not the 20th field here.
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return fields[0], boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``.

        Raises:
            CheckpointError: it is missing or not a run's.
        """
        info = read_json(self.path / "run.json", "run file")
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise CheckpointError(f"{self.path / 'run.json'}: not a growtas run of format {FORMAT}")
        return info

    def update(self, **changes: Any) -> None:
        """Change entries of ``run.json``, atomically."""
        write_json(self.path / "run.json", {**self.info, **changes})

    @property
    def space(self) -> SearchSpace:
        """The space that was trained, with the data's number of classes."""
        return SearchSpace.from_dict(self.info["space"], source=str(self.path / "run.json"))

    def state(self) -> RunState:
        """Where the run stands, as :func:`run_state` tells.

        Raises:
            CheckpointError: as :attr:`info`.
        """
        return run_state(self.info, (self.path / "run.json").stat().st_mtime)

    @property
    def created(self) -> datetime.datetime:
        """When the run was begun, with its time zone; the time of ``run.json``, or of its folder, where that doesn't say.

        Raises:
            CheckpointError: there is no ``run.json``.
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
        """The record of the images that are used where ``data`` and ``data_dir`` name others than the run's, or their new place.

        None where neither the run nor anybody names images.
        """
        record = self.info.get("data") if data is None else {"name": data, "data_dir": None}
        if record is None or data_dir is None:
            return record
        return {**record, "data_dir": str(Path(data_dir).expanduser().absolute())}

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoint folders, oldest first."""
        return sorted(path.parent for path in self.path.glob("checkpoints/epoch-*/state.json"))

    @property
    def best(self) -> Path | None:
        """The folder of the best supernet so far, if an epoch was measured."""
        return max((path.parent for path in self.path.glob("checkpoints/best-*/best.json")), default=None)

    @property
    def supernet_file(self) -> Path:
        """The file of the newest supernet's weights.

        Raises:
            CheckpointError: no checkpoint was written yet.
        """
        folders = self.checkpoints
        if not folders:
            raise CheckpointError(
                f"{self.path}: the run has no checkpoint yet; continue it with `growtas train --resume {quote(str(self.path))}`"
            )
        return folders[-1] / "supernet.safetensors"


def create_run(root: Path, name: str | None, info: dict[str, Any]) -> Run:
    """A new run folder with its ``run.json``.

    Args:
        root: the folder that holds the runs.
        name: the folder's name; by default the time and the space's name.

    Raises:
        OutputError: the folder can't be written.
        UsageError: see :func:`check_run_name`.
    """
    check_run_name(root, name)
    now = datetime.datetime.now()
    base = name or f"{now:%Y%m%d-%H%M%S}-{info['space']['name']}"
    path, count = root / base, 1
    while path.exists():
        count += 1
        path = root / f"{base}-{count}"
    ensure_writable(path)
    write_json(path / "run.json", {"format": FORMAT, "created": now.astimezone().isoformat(timespec="seconds"), **info})
    return Run(path)


def check_run_name(root: Path, name: str | None) -> None:
    """Make sure that a name can be a new run's; None, for the default name, can.

    Raises:
        UsageError: it is no plain folder name, or a run of that name exists.
    """
    if name is None:
        return
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(f"the run's name {name!r} must be a plain folder name")
    if (path := root / name).exists():
        raise UsageError(
            f"{path}: a run of this name exists; choose another --name, or continue it with --resume {quote(str(path))}"
        )


def find_run(given: str | Path | None, root: Path = RUNS) -> Run:
    """The run that was named, or the newest in ``root``; one whose ``run.json`` can't be read is as old as that file.

    Raises:
        UsageError: there is none.
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
    """The run in whose export folder an artifact lies, named as the artifact's path names it where it does; None for others."""
    named, real = artifact.parent.parent, artifact.resolve().parent.parent
    if not (real / "run.json").is_file():
        return None
    return named if named.resolve() == real else real


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
            progress.note(f"passed over: {error}")
            continue
        return run
    return find_run(given, root)


def list_runs(root: Path = RUNS) -> list[Run]:
    """All runs in a folder, newest first; those whose ``run.json`` is unreadable too.

    Raises:
        UsageError: the folder does not exist, or can't be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no folder of runs here; make a run with `growtas train`, or name another folder")
    check_folder(root)
    runs = [Run(path) for path in root.iterdir() if path.is_dir() and _may_be_run(path)]
    return sorted(runs, key=lambda run: (run.created, run.path.name), reverse=True)


def data_title(record: Mapping[str, Any] | None) -> str:
    """What people call the data set that a run records: its name, or the path of a folder."""
    name = (record or {}).get("name")
    folder = record.get("data_dir") if record and name == "folder" else None
    return str(folder or name or "the run's data")


def _may_be_run(folder: Path) -> bool:
    """Whether a folder holds a run, or is closed to this user, who is told so where runs are listed."""
    try:
        return (folder / "run.json").exists()
    except PermissionError:
        return True
