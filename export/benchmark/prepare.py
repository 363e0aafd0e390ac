"""What happens before anything is measured: timm models are exported, what can't run is set aside with its reason."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from growtas.data.cache import cache_folder
from growtas.errors import ConfigError, DeviceError, GrowtasError
from growtas.export.artifact import Artifact, Manifest, PlanRecord
from growtas.export.benchmark import baselines as zoo
from growtas.export.benchmark.entry import Entry
from growtas.export.benchmark.subjects import Subject
from growtas.export.formats import PLAN
from growtas.export.tensorrt import library


def with_graphs(subjects: Sequence[Subject], stack: contextlib.ExitStack, say: Callable[[str], None]) -> list[Entry]:
    """The subjects as entries, timm models exported where a runtime needs their graph, and otherwise described.

    Args:
        stack: removes what is kept nowhere.
        say: told what is being exported.
    """
    graphs: dict[str, Artifact] = {}

    def known(subject: Subject) -> Subject:
        if subject.timm is None:
            return subject
        if not subject.needs_graph:
            return subject.known(None, Manifest.from_dict(zoo.describe(subject.timm)))
        if subject.timm not in graphs:
            say(f"exporting {subject.name}")
            cache = cache_folder()
            folder = cache / "bench" if cache else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="growtas-")))
            graphs[subject.timm] = zoo.exported(subject.timm, folder)
        return subject.known(graphs[subject.timm].path, graphs[subject.timm].manifest)

    entries = []
    for subject in subjects:
        entry = Entry(subject=subject)
        try:
            entry.subject = known(subject)
        except GrowtasError as error:
            entry.failed(error)
        entries.append(entry)
    return entries


def check_plan(entry: Entry, batch: int) -> None:
    """Set a plan aside that is for another GPU than this machine's; anything else passes.

    Args:
        batch: the largest that is asked for.

    Raises:
        ConfigError: the plan was built for smaller batches.
    """
    path, plan = entry.subject.path, (entry.subject.manifest or Manifest()).plan or PlanRecord()
    if path is None or path.suffix != PLAN.suffix:
        return
    # Without a manifest nobody knows what it was built for: only trying tells.
    entry.not_runnable_because = library.why_not_here(plan.targets or (library.local_target() or "",))
    if entry.not_runnable_because is None and batch > (plan.max_batch or batch):
        raise ConfigError(f"{path}: built for batches up to {plan.max_batch}; --batch asks for {batch}")


def judge(entries: Sequence[Entry], baseline: Subject | None, added: str | None, note: Callable[[str], None]) -> str | None:
    """Tell what can't be measured, or refuse to measure where nothing is left that the user named.

    Args:
        baseline: what the others are to be compared with.
        added: its name, where it was not among those that the user named; alone, it is not worth measuring.
        note: told the error of each entry that has one, and that there will be no ratios where the baseline is missing.

    Returns:
        Why the baseline can't be measured; None where it can, and without one.

    Raises:
        GrowtasError: the first error of an entry, where none of those that the user named can be measured. That this machine lacks
            a device is none: such an entry is reported with what is known of it.
    """
    missing = next((entry for entry in entries if baseline and entry.subject.label == baseline.label and not entry.session), None)
    named = [entry for entry in entries if entry.subject.name != added]
    serious = [entry.failure for entry in named if entry.failure is not None and not isinstance(entry.failure, DeviceError)]
    raised = serious[0] if serious and not any(entry.session for entry in named) else None
    for entry in entries:
        if raised is not None and entry.failure is raised:
            continue
        if entry is missing:
            note(f"no ratios: the baseline {entry.subject.label} can't be measured ({entry.not_runnable_because})")
        elif entry.failure is not None:
            note(f"{entry.subject.label}: not measured: {entry.failure}")
    if raised is not None:
        raise raised
    return missing.not_runnable_because if missing else None
