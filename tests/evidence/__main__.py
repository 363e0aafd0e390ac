"""``make evidence``: train what is missing of the evidence plan, and append a line to the ledger for each finished training.

One training runs at a time, from a clean copy of the checked out commit. A training that was stopped or killed goes on where it
was, from the commit that it was begun with. Ctrl-C stops at the next step. Run it again to go on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from growtas.errors import GrowtasError, TrainingError, UsageError
from growtas.files import ensure_writable, read_json, write_json
from tests.evidence.clean_copy import CleanCopy, clean_copy, has_commit, head, remove_copies
from tests.evidence.ledger import LEDGER, REPOSITORY, Line, append, missing, read_ledger
from tests.evidence.plan import PLAN, Training
from tests.evidence.progress import Progress

DEFAULT_FOLDER = Path("~/.cache/growtas-evidence")
"""Outside the checkout: `make clean`, or a new checkout, must not lose hours of training."""


@dataclass(frozen=True)
class Workshop:
    """Where trainings are done, and with what.

    Attributes:
        folder: of the copies, and of a folder for each training.
        ledger: the file that lines are appended to.
        commit: what new trainings are trained with.
        copy: gives the clean copy of a commit.
        has_commit: whether a commit that a training was begun with can still be copied.
        threads: CPU threads of a training.
        after: called after each line that was appended.
    """

    folder: Path
    ledger: Path
    commit: str
    copy: Callable[[str], CleanCopy]
    has_commit: Callable[[str], bool] = lambda commit: True
    threads: int = 1
    after: Callable[[], None] = lambda: None

    def place(self, training: Training) -> Path:
        """The folder of a training."""
        return self.folder / "trainings" / f"{training.method}-{training.seed}-{training.key}"

    def begun(self) -> set[str]:
        """The commits that unfinished trainings were begun with."""
        files = (path for path in self.folder.glob("trainings/*/training.json") if not (path.parent / "line.json").is_file())
        return {read_json(path)["commit"] for path in files}

    def train(self, training: Training, progress: Progress) -> Line:
        """Train and measure a training, or go on with it; its line.

        Raises:
            TrainingError: the process failed; it has said why on standard error.
            KeyboardInterrupt: it was stopped, and can be continued.
        """
        place = self.place(training)
        if (place / "line.json").is_file():
            line: Line = read_json(place / "line.json")
            return line
        start = None
        if training.starts_from is not None:
            # Its line may be in the ledger while its weights are gone, on another machine for example. Then it is trained again.
            self.train(training.starts_from, progress)
            start = str((self.place(training.starts_from) / "run").absolute())
        commit = self._commit(place)
        copy = self.copy(commit)
        write_json(place / "training.json", {"training": training.to_dict(), "commit": commit, "start": start})
        command = [str(copy.python), "-P", "-m", "tests.evidence.training", str(place.absolute())]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        environment.pop("PYTHONPATH", None)
        progress.begin(training)
        # A session of its own: Ctrl-C reaches it once, from here.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=place, start_new_session=True)
        try:
            assert process.stdout is not None
            for event in process.stdout:
                progress.show(event)
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise TrainingError(
                f"{training.title}: the training ended with exit code {code}; what it said is above, its files are in {place}"
            )
        finished: Line = read_json(place / "line.json")
        return finished

    def _commit(self, place: Path) -> str:
        """The commit of a training: the one that it was begun with, as long as that is known."""
        if (place / "training.json").is_file():
            commit = str(read_json(place / "training.json")["commit"])
            if self.has_commit(commit):
                return commit
            shutil.rmtree(place)
        return self.commit


def run_plan(plan: Sequence[Training], workshop: Workshop, out: TextIO = sys.stderr) -> int:
    """Do what is missing of a plan, and append its lines to the ledger; how many.

    Raises:
        UsageError: another process works in the same folder.
        TrainingError: a training failed.
        KeyboardInterrupt: stopped.
    """
    ensure_writable(workshop.folder)
    lock, owner, count = FileLock(workshop.folder / "lock"), workshop.folder / "process.json", 0
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = read_json(owner)["pid"] if owner.is_file() else "unknown"
        raise UsageError(
            f"{workshop.folder}: another `make evidence` is running (process {pid}); wait for it, or stop it first"
        ) from None
    with lock:
        write_json(owner, {"pid": os.getpid()})
        while waiting := missing(plan, read_ledger(workshop.ledger)):
            line = workshop.train(waiting[0], Progress(plan, read_ledger(workshop.ledger), workshop.threads, out))
            append(line, workshop.ledger)
            workshop.after()
            count += 1
    return count


def redraw_tables() -> None:
    """Draw the tables again in a process of its own: the code that draws them may be in the middle of an edit."""
    done = subprocess.run([sys.executable, "-m", "tests.evidence.tables"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(f"The line is in the ledger, but the tables could not be drawn:\n{done.stderr}")


def main() -> None:
    """Read the options and work on the plan."""
    parser = argparse.ArgumentParser(prog="make evidence", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a training (default: 1)")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"where trainings are kept (default: {DEFAULT_FOLDER})")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the trainings whose name with seed contains TEXT")
    parser.add_argument("--list", action="store_true", help="list the plan and what is done of it, and train nothing")
    options = parser.parse_args()
    plan = [training for training in PLAN if options.only in training.title]
    # What stops a background job asks for the same as Ctrl-C: save and end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not plan:
            raise UsageError(f"--only {options.only!r}: no training of the plan has this in its name; --list shows the names")
        if options.list:
            sys.stdout.write(listing(plan, read_ledger()))
            return
        folder, commit = options.folder.expanduser(), head(REPOSITORY)
        workshop = Workshop(
            folder,
            LEDGER,
            commit,
            lambda wanted: clean_copy(REPOSITORY, wanted, folder / "copies"),
            lambda wanted: has_commit(REPOSITORY, wanted),
            options.threads,
            redraw_tables,
        )
        remove_copies(REPOSITORY, folder / "copies", {commit, *workshop.begun()})
        count = run_plan(plan, workshop)
        sys.stderr.write(f"{count} trainings done; the plan is complete.\n")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; `make evidence` goes on where it was\n")
        sys.exit(130)
    except GrowtasError as error:
        sys.stderr.write(f"make evidence: {error}\n")
        sys.exit(error.exit_code)


def listing(plan: Iterable[Training], lines: Mapping[str, Line]) -> str:
    """The plan, a line each, and what is done."""
    return "".join(f"{'done   ' if training.key in lines else 'missing'}  {training.key}  {training.title}\n" for training in plan)


if __name__ == "__main__":
    main()
