"""Run folders: what a training leaves behind, and how the later steps find it.

::

    runs/20260101-120000-micro/
        run.json                state, space, recipe, data (with preprocessing and class names), versions
        split.json              indices of the training images set aside for the search
        metrics.jsonl           one line an epoch
        checkpoints/epoch-0010/ supernet.safetensors, trainer.safetensors, state.json
        search/                 journal.jsonl, result.json, subnet.json
        export/                 model.safetensors, NAME.onnx, NAME.plan, each with its .json manifest
        bench/                  bench.json
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, UsageError
from growtas.files import ensure_writable, read_json, write_json
from growtas.space import SearchSpace

RUNS = Path("runs")
FORMAT = "growtas-run/1"


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

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoint folders, oldest first."""
        return sorted(path.parent for path in self.path.glob("checkpoints/epoch-*/state.json"))

    @property
    def supernet(self) -> Path:
        """The newest supernet's weights.

        Raises:
            CheckpointError: no checkpoint was written yet.
        """
        folders = self.checkpoints
        if not folders:
            raise CheckpointError(
                f"{self.path}: the run has no checkpoint yet; continue it with `growtas train --resume {self.path}`"
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
        raise UsageError(f"{path}: a run of this name exists; choose another --name, or continue it with --resume {path}")


def find_run(given: str | Path | None, root: Path = RUNS) -> Run:
    """The run that was named, or the newest in ``root``.

    Raises:
        UsageError: there is none.
    """
    if given is not None:
        if not (Path(given) / "run.json").is_file():
            raise UsageError(f"{given}: no run here (a run folder holds a run.json)")
        return Run(Path(given))
    runs = [path.parent for path in root.glob("*/run.json")]
    if not runs:
        raise UsageError(f"no run in {root}/; make one with `growtas train`, or name its folder")
    return Run(max(runs, key=lambda path: (Run(path).info.get("created", ""), path.name)))
