"""The journal of a search: every evaluation as a line, so that a killed search goes on where it was.

A search is a function of its seed, and evaluating a subnet is a function of the checkpoint and the images. So resuming needs no
saved state: the same command runs again, and what the journal knows of the same checkpoint and images is not evaluated again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.errors import CheckpointError, OutputError, SubnetError
from growtas.files import append_json_line, drop_torn_line, ensure_writable, read_json_lines
from growtas.subnet import Subnet


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A subnet on the search split, or on the first images of a race.

    Attributes:
        accuracy: top-1, 0 to 1; of the images seen.
        loss: mean cross-entropy; infinite where it is not a number, or where not all images were seen.
        seen: images after which it was dropped from a race; None where it saw all.
        answers: a bit an image, 1 where the answer was right, in the split's order, packed as ``np.packbits`` does; None where they
            are not known. Not part of comparisons.
    """

    accuracy: float
    loss: float
    seen: int | None = None
    answers: bytes | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.loss) or self.seen is not None:
            object.__setattr__(self, "loss", math.inf)

    @property
    def complete(self) -> bool:
        """Whether all images were seen, so that ``accuracy`` is the subnet's."""
        return self.seen is None

    def right_answers(self, images: int) -> NDArray[np.uint8] | None:
        """``answers`` as 0 and 1, ``(images,)``; None where they are not known, or belong to another number of images."""
        if self.answers is None or len(self.answers) != -(-images // 8):
            return None
        return np.unpackbits(np.frombuffer(self.answers, np.uint8), count=images)


class Journal:
    """An append-only JSON-lines file of evaluations.

    A subnet that was dropped from a race has a line of another type, with the number of images that it saw and what it was dropped
    for: it is no evaluation, and only a race against as many right answers or more takes it for an answer.

    Args:
        path: the file; made if absent. A torn last line, as a killed process leaves it, is dropped.
        checkpoint_sha256, data_fingerprint: what is evaluated, and on which images; only lines of both are reused.
        header: anything else that a reader should know (limits, seed); written as a line of its own.
        others: journals of other searches, from which complete evaluations of both are reused too; only read. One that can't be
            read counts as empty.

    Raises:
        CheckpointError: a line in the middle is not the journal's.
        OutputError: the file can't be written.
    """

    def __init__(
        self,
        path: str | Path,
        checkpoint_sha256: str,
        data_fingerprint: str,
        header: Mapping[str, Any],
        others: Iterable[str | Path] = (),
    ) -> None:
        self.path = Path(path)
        self._key = hashlib.sha256(f"{checkpoint_sha256} {data_fingerprint}".encode()).hexdigest()[:16]
        ensure_writable(self.path.parent)
        drop_torn_line(self.path)
        self._known: dict[Subnet, Evaluation] = {}
        self._dropped: dict[Subnet, tuple[int, Evaluation]] = {}
        for other in others:
            if Path(other).resolve() != self.path.resolve():
                with contextlib.suppress(CheckpointError, OSError, UnicodeDecodeError):
                    self._known |= self._read(Path(other))[0]
        known, self._dropped = self._read(self.path)
        self._known |= known
        self._append(
            {
                "type": "header",
                "key": self._key,
                "checkpoint_sha256": checkpoint_sha256,
                "data_fingerprint": data_fingerprint,
                **header,
            }
        )

    def _read(self, path: Path) -> tuple[dict[Subnet, Evaluation], dict[Subnet, tuple[int, Evaluation]]]:
        known, dropped = dict[Subnet, Evaluation](), dict[Subnet, tuple[int, Evaluation]]()
        for number, line in enumerate(read_json_lines(path), start=1):
            try:
                if line["type"] not in ("evaluation", "dropped") or line["key"] != self._key:
                    continue
                subnet = Subnet.from_dict(line["subnet"])
                if line["type"] == "evaluation":
                    loss = math.inf if line["loss"] is None else float(line["loss"])
                    answers = base64.b64decode(line["answers"], validate=True) if "answers" in line else None
                    known[subnet] = Evaluation(float(line["accuracy"]), loss, answers=answers)
                else:
                    evaluation = Evaluation(float(line["accuracy_of_seen"]), math.inf, seen=int(line["seen"]))
                    self._note_dropped(dropped, subnet, int(line["needed"]), evaluation)
            except (KeyError, TypeError, ValueError, SubnetError):
                raise CheckpointError(f"{path}: entry {number} is not a journal's; move the file away to start anew") from None
        return known, dropped

    @staticmethod
    def _note_dropped(dropped: dict[Subnet, tuple[int, Evaluation]], subnet: Subnet, needed: int, evaluation: Evaluation) -> None:
        """Keep the drop from the race that was easiest to stay in: it says most."""
        if subnet not in dropped or needed < dropped[subnet][0]:
            dropped[subnet] = needed, evaluation

    def __len__(self) -> int:
        """Subnets evaluated, or dropped from a race, with this checkpoint and these images."""
        return len(self._known.keys() | self._dropped.keys())

    def get(self, subnet: Subnet, needed: int | None = None) -> Evaluation | None:
        """The recorded evaluation, if there is one.

        Args:
            needed: right answers that a race asks for. A subnet that was dropped for not reaching so many is dropped again, even
                where a complete evaluation came later: so the same search, repeated, goes the same way.
        """
        if needed is not None and subnet in self._dropped and self._dropped[subnet][0] <= needed:
            return self._dropped[subnet][1]
        return self._known.get(subnet)

    def record(self, subnet: Subnet, evaluation: Evaluation, *, needed: int | None = None, **extra: Any) -> None:
        """Append an evaluation; it is on disk when this returns.

        Args:
            needed: right answers that the race asked for, where the subnet was dropped from one.

        Raises:
            OutputError: the file can't be written.
        """
        line: dict[str, Any] = {"type": "evaluation", "key": self._key, "subnet": subnet.to_dict()}
        if evaluation.seen is not None:
            assert needed is not None
            line |= {"type": "dropped", "seen": evaluation.seen, "accuracy_of_seen": evaluation.accuracy, "needed": needed}
            self._append({**line, **extra})
            self._note_dropped(self._dropped, subnet, needed, evaluation)
            return
        line |= {"accuracy": evaluation.accuracy, "loss": evaluation.loss if math.isfinite(evaluation.loss) else None}
        answers = {} if evaluation.answers is None else {"answers": base64.b64encode(evaluation.answers).decode()}
        self._append({**line, **extra, **answers})
        self._known[subnet] = evaluation

    def _append(self, line: dict[str, Any]) -> None:
        try:
            append_json_line(self.path, line)
        except OSError as error:
            raise OutputError(f"{self.path}: the search journal can't be written ({error.strerror})") from None
