"""What an export starts from: a run's newest checkpoint and a subnet file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import SubnetError
from growtas.files import read_json, sha256
from growtas.runs import Run
from growtas.subnet import Subnet

_SEARCHED = ("accuracy", "latency", "latencies", "device", "devices", "limits", "checkpoint_sha256")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is exported: a checkpoint of a run and a subnet of its space."""

    run: Run
    checkpoint: Path
    checkpoint_sha256: str
    subnet: Subnet
    subnet_file: Path
    search: dict[str, Any] | None


def find_source(run: Run, subnet_file: Path | None, note: Callable[[str], None] = lambda text: None) -> Source:
    """The newest checkpoint of a run, and the subnet to cut from it.

    Raises:
        CheckpointError: the run has no checkpoint.
        SubnetError: no subnet was named and none was searched, or the run's space does not hold it.
    """
    info, checkpoint = run.info, run.supernet_file
    path = subnet_file or run.path / "search" / "subnet.json"
    if subnet_file is None and not path.is_file():
        raise SubnetError(f"{run.path}: no subnet was searched yet; run `growtas search {run.path}`, or name one with --subnet")
    subnet = run.space.validate(Subnet.load(path))
    written = read_json(path, "subnet file")
    digest = sha256(checkpoint)
    search = None
    if isinstance(written, Mapping) and "accuracy" in written:
        search = {key: written.get(key) for key in _SEARCHED}
        if search["checkpoint_sha256"] not in (None, digest):
            note(f"{path}: the subnet was searched on another checkpoint; the newest is exported, so search again to be sure")
    if info.get("state") in ("training", "interrupted"):
        note(f"{run.path}: the training is not finished; its newest checkpoint is exported ({checkpoint.parent.name})")
    return Source(run=run, checkpoint=checkpoint, checkpoint_sha256=digest, subnet=subnet, subnet_file=path, search=search)
