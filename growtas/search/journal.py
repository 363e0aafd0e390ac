"""The journal of a search: every evaluation as a line, so that a killed search goes on where it was.

A search is a function of its seed, and evaluating a subnet is a function of the checkpoint and the images. So resuming needs no
saved state: the same command runs again, and what the journal knows of the same checkpoint and images is not evaluated again.

Other journals can lend theirs. What was in them when a search began is written in its header, and only that is lent when it goes
on: a subnet that the search would have dropped from a race ranks otherwise once its whole accuracy is known.

Lines of a third type hold accuracies in the precision that ships (:mod:`growtas.search.precision`), each with what it depends on
beside the checkpoint and the images.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
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


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a subnet is converted to, and what runs it then; an accuracy of the same conversion is the same.

    Attributes:
        precision: ``int8`` and the like.
        runtime: ``onnxruntime`` or ``openvino``.
        rest: precision of what surrounds quantised layers; see :func:`growtas.export.quantization.convert.convert`.
        made: what else the accuracy depends on: calibration, and the versions of the converter and of the runtime.
    """

    precision: str
    runtime: str
    rest: str
    made: str


Converted = dict[tuple[Subnet, Conversion], Evaluation]


JOURNAL_HEADER = """A line of type ``header`` in ``journal.jsonl``: a search began, or went on, here.

Fields:
    type (text): Always ``header``.
    key (text): Digest of the two values that follow. Lines of another key are of other weights or images.
    checkpoint_sha256 (text): SHA-256 of the supernet's file, in hexadecimal.
    data_fingerprint (text): Hash of the images that subnets are evaluated on, and of how many they are.
    others (object): Bytes of other journals whose evaluations count, by their path as seen from this file's folder. Absent where
        there are none.
"""
JOURNAL_EVALUATION = """A line of type ``evaluation``: a subnet on all images of the search split.

Fields:
    type (text): Always ``evaluation``.
    key (text): As in the header.
    subnet (object): The subnet, as in a subnet's file.
    accuracy (number): Top-1 accuracy in fp32, 0 to 1.
    loss (number or null): Mean cross-entropy; null where it is not finite.
    params (whole number): Parameters.
    macs (whole number): Multiply-accumulates for one image.
    answers (text): A bit for each image, 1 where the answer was right: bytes as ``numpy.packbits`` gives them, in Base64. Absent where
        they are not known.
"""
JOURNAL_DROPPED = """A line of type ``dropped``: a subnet that was dropped from a race before it had seen all images.

Fields:
    type (text): Always ``dropped``.
    key (text): As in the header.
    subnet (object): The subnet, as in a subnet's file.
    seen (whole number): Images that it had seen.
    accuracy_of_seen (number): Top-1 accuracy on these alone, 0 to 1.
    needed (whole number): Right answers on all images that the race asked for.
    params (whole number): Parameters.
    macs (whole number): Multiply-accumulates for one image.
"""
JOURNAL_CONVERTED = """A line of type ``converted``: a subnet in the precision that ships.

Fields:
    type (text): Always ``converted``.
    key (text): As in the header.
    subnet (object): The subnet, as in a subnet's file.
    accuracy (number): Top-1 accuracy of the converted subnet, 0 to 1.
    loss (number or null): Mean cross-entropy; null where it is not finite.
"""


class Journal:
    """An append-only JSON-lines file of evaluations.

    A subnet that was dropped from a race has a line of another type, with the number of images that it saw and what it was dropped
    for: it is no evaluation, and only a race against as many right answers or more takes it for an answer.

    Args:
        path: the file; made if absent. A torn last line, as a killed process leaves it, is dropped.
        checkpoint_sha256, data_fingerprint: what is evaluated, and on which images; only lines of both are reused.
        header: anything else that a reader should know (limits, seed); written as a line of its own. The same header again is the
            same search, which goes on.
        others: journals of other searches, whose complete evaluations are reused too. One that can't be read counts as empty. A
            search that goes on borrows what they held when it began.

    Raises:
        CheckpointError: a line in the middle is not the journal's.
        OutputError: the file can't be written.

    Attributes:
        converted: the evaluations of converted subnets, those of other journals too.
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
        head = {"type": "header", "key": self._key, "checkpoint_sha256": checkpoint_sha256, "data_fingerprint": data_fingerprint}
        # As JSON gives it back, to be compared with what is in the file.
        self._header: dict[str, Any] = json.loads(json.dumps({**head, **header}))
        lines = read_json_lines(self.path)
        self._known, self._dropped, self.converted = parse_evaluations(self.path, lines, self._key)
        self._lent: dict[Subnet, tuple[Evaluation, Path]] = {}
        self._borrowed: dict[Subnet, Path] = {}
        lenders = self._lenders(lines, [Path(other) for other in others])
        for other, size in lenders.items():
            with contextlib.suppress(CheckpointError, OSError, UnicodeDecodeError):
                known, _, converted = parse_evaluations(other, _lines_within(other, size), self._key)
                for subnet, evaluation in known.items():
                    self._lent.setdefault(subnet, (evaluation, other))
                self.converted = converted | self.converted
        lent = {"others": {self._name(path): size for path, size in lenders.items()}} if lenders else {}
        self._append({**self._header, **lent})

    def _lenders(self, lines: Iterable[Any], others: Iterable[Path]) -> dict[Path, int]:
        """The other journals, and how many of their bytes count: all that are there, or were when a search that goes on began."""
        here = {self._name(path): path for path in others if path.resolve() != self.path.resolve()}
        for line in lines:
            if all(line.get(key) == value for key, value in self._header.items()):
                began = line.get("others")
                if not isinstance(began, dict):
                    return {}
                return {path: size for name, path in here.items() if isinstance(size := began.get(name), int)}
        return {path: size for path in here.values() if path.is_file() and (size := path.stat().st_size)}

    def _name(self, other: Path) -> str:
        """Another journal as the header names it, from this one's folder on: a run may be moved."""
        return Path(os.path.relpath(other.resolve(), self.path.parent.resolve())).as_posix()

    def __len__(self) -> int:
        """Subnets evaluated, or dropped from a race, with this checkpoint and these images; without what others lend."""
        return len(self._known.keys() | self._dropped.keys())

    @property
    def borrowed(self) -> dict[Path, int]:
        """How many subnets :meth:`get` has answered from each of the other journals."""
        return dict(Counter(self._borrowed.values()))

    def get(self, subnet: Subnet, needed: int | None = None) -> Evaluation | None:
        """The recorded evaluation, if there is one.

        Args:
            needed: right answers that a race asks for. A subnet that was dropped for not reaching so many is dropped again, even
                where a complete evaluation came later: so the same search, repeated, goes the same way.
        """
        if needed is not None and subnet in self._dropped and self._dropped[subnet][0] <= needed:
            return self._dropped[subnet][1]
        if subnet in self._known or subnet not in self._lent:
            return self._known.get(subnet)
        evaluation, self._borrowed[subnet] = self._lent[subnet]
        return evaluation

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
            _note_dropped(self._dropped, subnet, needed, evaluation)
            return
        line |= {"accuracy": evaluation.accuracy, "loss": evaluation.loss if math.isfinite(evaluation.loss) else None}
        answers = {} if evaluation.answers is None else {"answers": base64.b64encode(evaluation.answers).decode()}
        self._append({**line, **extra, **answers})
        self._known[subnet] = evaluation

    def record_converted(self, subnet: Subnet, conversion: Conversion, evaluation: Evaluation) -> None:
        """Append the evaluation of a converted subnet; it is on disk when this returns.

        Raises:
            OutputError: the file can't be written.
        """
        line = {"type": "converted", "key": self._key, "subnet": subnet.to_dict(), **asdict(conversion)}
        loss = evaluation.loss if math.isfinite(evaluation.loss) else None
        self._append({**line, "accuracy": evaluation.accuracy, "loss": loss})
        self.converted[subnet, conversion] = evaluation

    def _append(self, line: dict[str, Any]) -> None:
        try:
            append_json_line(self.path, line)
        except OSError as error:
            raise OutputError(f"{self.path}: the search journal can't be written ({error.strerror})") from None


_Dropped = dict[Subnet, tuple[int, Evaluation]]


def parse_evaluations(path: Path, lines: Iterable[Any], key: str) -> tuple[dict[Subnet, Evaluation], _Dropped, Converted]:
    """What a journal holds of a checkpoint and images.

    Args:
        path: of the journal, for the message.
        key: of the checkpoint and the images, as the journal's header has it.

    Returns:
        The complete evaluations, the subnets dropped from a race with the right answers it asked for, and the evaluations of
        converted subnets.

    Raises:
        CheckpointError: a line is not a journal's.
    """
    known, dropped, converted = dict[Subnet, Evaluation](), _Dropped(), Converted()
    for number, line in enumerate(lines, start=1):
        try:
            if (kind := line["type"]) not in ("evaluation", "dropped", "converted") or line["key"] != key:
                continue
            subnet = Subnet.from_dict(line["subnet"])
            if kind == "dropped":
                evaluation = Evaluation(float(line["accuracy_of_seen"]), math.inf, seen=int(line["seen"]))
                _note_dropped(dropped, subnet, int(line["needed"]), evaluation)
                continue
            answers = base64.b64decode(line["answers"], validate=True) if "answers" in line else None
            loss = math.inf if line["loss"] is None else float(line["loss"])
            evaluation = Evaluation(float(line["accuracy"]), loss, answers=answers)
            if kind == "evaluation":
                known[subnet] = evaluation
            else:
                converted[subnet, Conversion(**{part.name: str(line[part.name]) for part in fields(Conversion)})] = evaluation
        except (KeyError, TypeError, ValueError, SubnetError):
            raise CheckpointError(f"{path}: entry {number} is not a journal's; move the file away to start anew") from None
    return known, dropped, converted


def _note_dropped(dropped: _Dropped, subnet: Subnet, needed: int, evaluation: Evaluation) -> None:
    """Keeps the drop from the race that was easiest to stay in: it says most."""
    if subnet not in dropped or needed < dropped[subnet][0]:
        dropped[subnet] = needed, evaluation


def _lines_within(path: Path, size: int) -> list[Any]:
    """The whole lines within a file's first bytes."""
    with open(path, "rb") as file:
        content = file.read(size)
    try:
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].decode().split("\n") if line]
    except json.JSONDecodeError:
        raise CheckpointError(f"{path}: a line is not JSON") from None
