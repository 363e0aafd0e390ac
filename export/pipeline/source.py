"""The source of an export: a run's newest checkpoint and a subnet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from growtas.errors import SubnetError
from growtas.fields import check_entries
from growtas.files import read_json, sha256
from growtas.latency.estimate import SEARCHED_RULES
from growtas.progress import SILENT, Progress
from growtas.runs import Run
from growtas.subnet import Subnet

_SEARCHED = ("accuracy", "latency", "latencies", "device", "devices", "limits", "checkpoint_sha256")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint of a run, a subnet of its space, and the search's record of the subnet.

    Attributes:
        subnet_file: file that the subnet was read from; None where the subnet was passed as a value.
        search: the search's record of the subnet; None where the subnet was not searched.
    """

    run: Run
    checkpoint: Path
    checkpoint_sha256: str
    subnet: Subnet
    subnet_file: Path | None
    search: dict[str, Any] | None


def find_source(run: Run, subnet: Subnet | Path | None, progress: Progress = SILENT) -> Source:
    """Finds the newest checkpoint of a run and the subnet to extract from it.

    Args:
        subnet: a subnet, its file, or ``smallest`` or ``largest`` for that one of the run's space; by default the one that the
            run's search chose. An equal subnet counts as searched.

    Raises:
        CheckpointError: the run has no checkpoint.
        SubnetError: no subnet was named and none was searched, or the run's search space does not contain it.
    """
    info, checkpoint = run.info, run.supernet_file
    searched = run.path / "search" / "subnet.json"
    path: Path | None
    if str(subnet) in ("smallest", "largest") and not Path(str(subnet)).exists():
        subnet = getattr(run.space, str(subnet))
    if isinstance(subnet, Subnet):
        path = searched if searched.is_file() and Subnet.load(searched) == subnet else None
    else:
        path = subnet or searched
        if subnet is None and not path.is_file():
            raise SubnetError(
                f"{run.path}: no subnet was searched yet; run `growtas search {quote(str(run.path))}`, or name one with --subnet"
            )
        subnet = Subnet.load(path)
    run.space.validate(subnet)
    document = None if path is None else read_json(path, "subnet file")
    digest = sha256(checkpoint)
    search = None
    if isinstance(document, Mapping):
        check_entries(document, SEARCHED_RULES, str(path), SubnetError)
    if isinstance(document, Mapping) and "accuracy" in document:
        search = {key: document.get(key) for key in _SEARCHED}
        if search["checkpoint_sha256"] not in (None, digest):
            progress.note(
                f"{path}: the subnet was searched on another checkpoint; the newest is exported, so search again to be sure"
            )
    if info.get("state") in ("training", "interrupted"):
        progress.note(f"{run.path}: the training is not finished; its newest checkpoint is exported ({checkpoint.parent.name})")
    return Source(run=run, checkpoint=checkpoint, checkpoint_sha256=digest, subnet=subnet, subnet_file=path, search=search)
