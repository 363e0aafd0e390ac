"""The journal of a search: every evaluation as a line, so that a killed search goes on where it was.

A search is a function of its seed, and evaluating a subnet is a function of the checkpoint and the images. So resuming needs no
saved state: the same command runs again, and what the journal knows of the same checkpoint and images is not evaluated again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import CheckpointError, OutputError, SubnetError
from growtas.files import append_json_line, drop_torn_line, ensure_writable, read_json_lines
from growtas.subnet import Subnet


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A subnet on the search split.

    Attributes:
        accuracy: top-1, 0 to 1.
        loss: mean cross-entropy; infinite where it is not a number.
    """

    accuracy: float
    loss: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.loss):
            object.__setattr__(self, "loss", math.inf)


class Journal:
    """An append-only JSON-lines file of evaluations.

    Args:
        path: the file; made if absent. A torn last line, as a killed process leaves it, is dropped.
        checkpoint_sha256, data_fingerprint: what is evaluated, and on which images; only lines of both are reused.
        header: anything else that a reader should know (limits, seed); written as a line of its own.

    Raises:
        CheckpointError: a line in the middle is not the journal's.
        OutputError: the file can't be written.
    """

    def __init__(self, path: str | Path, checkpoint_sha256: str, data_fingerprint: str, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._key = hashlib.sha256(f"{checkpoint_sha256} {data_fingerprint}".encode()).hexdigest()[:16]
        ensure_writable(self.path.parent)
        drop_torn_line(self.path)
        self._known = self._read()
        self._append(
            {
                "type": "header",
                "key": self._key,
                "checkpoint_sha256": checkpoint_sha256,
                "data_fingerprint": data_fingerprint,
                **header,
            }
        )

    def _read(self) -> dict[Subnet, Evaluation]:
        known = {}
        for number, line in enumerate(read_json_lines(self.path), start=1):
            try:
                if line["type"] == "evaluation" and line["key"] == self._key:
                    loss = math.inf if line["loss"] is None else float(line["loss"])
                    known[Subnet.from_dict(line["subnet"])] = Evaluation(float(line["accuracy"]), loss)
            except (KeyError, TypeError, ValueError, SubnetError):
                raise CheckpointError(f"{self.path}: entry {number} is not a journal's; move the file away to start anew") from None
        return known

    def __len__(self) -> int:
        """Evaluations of this checkpoint and these images."""
        return len(self._known)

    def get(self, subnet: Subnet) -> Evaluation | None:
        """The recorded evaluation, if there is one."""
        return self._known.get(subnet)

    def record(self, subnet: Subnet, evaluation: Evaluation, **extra: Any) -> None:
        """Append an evaluation; it is on disk when this returns.

        Raises:
            OutputError: the file can't be written.
        """
        loss = evaluation.loss if math.isfinite(evaluation.loss) else None
        line = {"type": "evaluation", "key": self._key, "subnet": subnet.to_dict(), "accuracy": evaluation.accuracy, "loss": loss}
        self._append({**line, **extra})
        self._known[subnet] = evaluation

    def _append(self, line: dict[str, Any]) -> None:
        try:
            append_json_line(self.path, line)
        except OSError as error:
            raise OutputError(f"{self.path}: the search journal can't be written ({error.strerror})") from None
