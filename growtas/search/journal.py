"""The journal of a search: one line per evaluation, so that a killed search can be resumed.

A search depends on its seed alone, and an evaluation depends on the checkpoint and the images alone. So resuming needs no saved
state: the same command runs again, and evaluations of the same checkpoint and images are read from the journal.

A search can also reuse evaluations from other journals. Its header records their sizes at the start of the search, and a resumed
search reuses only these parts. Otherwise a subnet that was dropped from a race could rank differently, once its full accuracy
becomes known.

Lines of type ``converted`` contain accuracies in the precision of the export (:mod:`growtas.search.precision`), with everything
that they depend on besides the checkpoint and the images.
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

from growtas.errors import CheckpointError, SubnetError
from growtas.files import append_json_line, drop_torn_line, ensure_writable, read_json_lines
from growtas.subnet import Subnet


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Evaluation of a subnet on the search split, or on the first images of a race.

    Attributes:
        accuracy: top-1 accuracy on the images seen, 0 to 1.
        loss: mean cross-entropy; infinite if it is not finite, or if not all images were seen.
        seen: number of images after which the subnet was dropped from a race; None if it saw all images.
        answers: one bit per image in the order of the split, 1 for a right answer, packed by ``np.packbits``; None if unknown.
            Comparisons ignore it.
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
        """Whether the subnet saw all images, so that ``accuracy`` is its full accuracy."""
        return self.seen is None

    def right_answers(self, images: int) -> NDArray[np.uint8] | None:
        """Returns ``answers`` as 0 and 1, ``(images,)``; None if they are unknown or belong to another number of images."""
        if self.answers is None or len(self.answers) != -(-images // 8):
            return None
        return np.unpackbits(np.frombuffer(self.answers, np.uint8), count=images)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The conversion of a subnet to a precision. Equal conversions give equal accuracies.

    Attributes:
        precision: precision after the conversion, such as ``int8``.
        runtime: runtime that executes the converted network, ``onnxruntime`` or ``openvino``.
        rest: precision of the layers that are not quantised; see :func:`growtas.export.quantization.convert.convert`.
        made: everything else that the accuracy depends on: calibration, and the versions of the converter and of the runtime.
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
    answers (text): A bit for each image, 1 where the answer was right: bytes as ``numpy.packbits`` gives them, in Base64. Absent
        where they are not known.
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

    A subnet that was dropped from a race has a line of type ``dropped``, with the number of images that it saw and the right
    answers that the race required. Only a race that requires at least as many right answers reuses it.

    Args:
        path: the file; it is created if absent. An incomplete last line, as a killed process leaves it, is dropped.
        checkpoint_sha256: hash of the evaluated checkpoint.
        data_fingerprint: digest of the images. Only lines with the same checkpoint and images are reused.
        header: further information for readers, such as limits and seed, written as a separate line. A search with the same header
            is the same search and is resumed.
        others: journals of other searches whose complete evaluations are reused too. An unreadable one counts as empty. A resumed
            search reuses only what they contained when it began.

    Raises:
        CheckpointError: a line other than the last is invalid.
        OutputError: the file can't be written.

    Attributes:
        converted: the evaluations of converted subnets, including those of other journals.
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
        # Converted to JSON and back, so that it can be compared with the lines of the file.
        self._header: dict[str, Any] = json.loads(json.dumps({**head, **header}))
        lines = read_json_lines(self.path)
        self._known, self._dropped, self.converted = parse_evaluations(self.path, lines, self._key)
        self._lent: dict[Subnet, tuple[Evaluation, Path]] = {}
        self._borrowed: dict[Subnet, Path] = {}
        lenders = self._lenders(lines, [Path(other) for other in others])
        for other, size in lenders.items():
            with contextlib.suppress(CheckpointError, OSError, UnicodeDecodeError):
                known, _, converted = parse_evaluations(other, read_json_lines(other, size), self._key)
                for subnet, evaluation in known.items():
                    self._lent.setdefault(subnet, (evaluation, other))
                self.converted = converted | self.converted
        lent = {"others": {self._name(path): size for path, size in lenders.items()}} if lenders else {}
        self._append({**self._header, **lent})

    def _lenders(self, lines: Iterable[Any], others: Iterable[Path]) -> dict[Path, int]:
        """Returns the other journals and the number of bytes to read of each: all, or as many as when a resumed search began."""
        here = {self._name(path): path for path in others if path.resolve() != self.path.resolve()}
        for line in lines:
            if isinstance(line, Mapping) and all(line.get(key) == value for key, value in self._header.items()):
                began = line.get("others")
                if not isinstance(began, dict):
                    return {}
                return {path: size for name, path in here.items() if isinstance(size := began.get(name), int)}
        return {path: size for path in here.values() if path.is_file() and (size := path.stat().st_size)}

    def _name(self, other: Path) -> str:
        """Returns another journal's name in the header: a path relative to this journal's folder, because a run may be moved."""
        return Path(os.path.relpath(other.resolve(), self.path.parent.resolve())).as_posix()

    def __len__(self) -> int:
        """Number of subnets evaluated, or dropped from a race, in this journal for this checkpoint and these images."""
        return len(self._known.keys() | self._dropped.keys())

    @property
    def borrowed(self) -> dict[Path, int]:
        """Number of evaluations that :meth:`get` returned from each of the other journals."""
        return dict(Counter(self._borrowed.values()))

    def get(self, subnet: Subnet, needed: int | None = None) -> Evaluation | None:
        """Returns the recorded evaluation of a subnet, or None.

        Args:
            subnet: the subnet.
            needed: right answers that a race requires. A subnet that was dropped because it could not reach this number is dropped
                again, even if a complete evaluation came later. So a repeated search takes the same course.
        """
        if needed is not None and subnet in self._dropped and self._dropped[subnet][0] <= needed:
            return self._dropped[subnet][1]
        if subnet in self._known or subnet not in self._lent:
            return self._known.get(subnet)
        evaluation, self._borrowed[subnet] = self._lent[subnet]
        return evaluation

    def record(self, subnet: Subnet, evaluation: Evaluation, *, needed: int | None = None, **extra: Any) -> None:
        """Appends an evaluation. It is on disk when this returns.

        Args:
            subnet: the subnet.
            evaluation: its evaluation.
            needed: right answers that the race required, if the subnet was dropped from one.
            extra: further entries of the line, such as costs.

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
        """Appends the evaluation of a converted subnet. It is on disk when this returns.

        Raises:
            OutputError: the file can't be written.
        """
        line = {"type": "converted", "key": self._key, "subnet": subnet.to_dict(), **asdict(conversion)}
        loss = evaluation.loss if math.isfinite(evaluation.loss) else None
        self._append({**line, "accuracy": evaluation.accuracy, "loss": loss})
        self.converted[subnet, conversion] = evaluation

    def _append(self, line: dict[str, Any]) -> None:
        append_json_line(self.path, line)


_Dropped = dict[Subnet, tuple[int, Evaluation]]


def parse_evaluations(path: Path, lines: Iterable[Any], key: str) -> tuple[dict[Subnet, Evaluation], _Dropped, Converted]:
    """Collects a journal's evaluations of one checkpoint on one set of images.

    Args:
        path: path of the journal, for error messages.
        lines: the parsed lines of the journal.
        key: key of the checkpoint and the images, from the journal's header.

    Returns:
        The complete evaluations; the subnets dropped from a race, with the right answers that it required; and the evaluations of
        converted subnets.

    Raises:
        CheckpointError: a line is invalid.
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
        except (KeyError, TypeError, ValueError, OverflowError, SubnetError):
            raise CheckpointError(f"{path}: entry {number} is not valid in a journal; move the file away to start again") from None
    return known, dropped, converted


def _note_dropped(dropped: _Dropped, subnet: Subnet, needed: int, evaluation: Evaluation) -> None:
    """Keeps the drop from the race with the fewest required right answers, because it also holds for all stricter races."""
    if subnet not in dropped or needed < dropped[subnet][0]:
        dropped[subnet] = needed, evaluation
