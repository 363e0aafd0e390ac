"""Runs the missing trainings of the evidence plan (`make evidence`), and appends a line to the ledger for each finished one.

One training runs at a time, from a clean copy of the checked-out commit. A training that was stopped or killed continues with the
commit with which it began. Ctrl-C stops after the next step; the same command continues from there.
"""

from __future__ import annotations

import argparse
import os
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
from growtas.runs import Run
from tests.evidence.clean_copy import clean_copy, head, remove_copies
from tests.evidence.ledger import LEDGER, REPOSITORY, Line, append, missing, read_if_whole, read_ledger
from tests.evidence.plan import PLAN, Training
from tests.evidence.progress import Progress

DEFAULT_FOLDER = Path("~/.cache/growtas-evidence")
"""Outside the checkout, so that `make clean` or a new checkout does not lose hours of training."""


@dataclass(frozen=True)
class Workshop:
    """The folders, the commit and the settings of trainings.

    Attributes:
        folder: contains one folder per training.
        ledger: the file to which lines are appended.
        commit: the commit for new trainings.
        python: returns the interpreter of a clean copy of a commit.
        threads: CPU threads of a training.
        tidy: called before the first training with the commits whose copies are still needed.
        after: called after each appended line.
    """

    folder: Path
    ledger: Path
    commit: str
    python: Callable[[str], Path]
    threads: int = 1
    tidy: Callable[[set[str]], None] = lambda commits: None
    after: Callable[[], None] = lambda: None

    def place(self, training: Training) -> Path:
        """The folder of a training."""
        return self.folder.absolute() / "trainings" / f"{training.method}-{training.seed}-{training.key}"

    def needed_commits(self) -> set[str]:
        """The commits of new and of unfinished trainings."""
        unfinished = (path for path in self.folder.glob("trainings/*/training.json") if not (path.parent / "line.json").is_file())
        return {self.commit, *(job["commit"] for path in unfinished if (job := read_if_whole(path)))}

    def train(self, training: Training, progress: Progress) -> Line:
        """Starts or continues a training and measures it; returns its line.

        Raises:
            TrainingError: the process failed; it printed the reason on standard error.
            KeyboardInterrupt: the training was stopped and can be continued.
        """
        line = self.place(training) / "line.json"
        if read_if_whole(line) is None:
            self._run(training, progress, self.commit, measure=True)
        found: Line = read_json(line)
        if found["key"] != training.key:
            raise TrainingError(f"{line}: the key is {found['key']}, not {training.key}; remove the folder and train it again")
        return found

    def _run(self, training: Training, progress: Progress, commit: str, *, measure: bool) -> None:
        """Runs a training in its own process to the end, and measures it.

        Args:
            commit: the commit for the training, unless it began with another one.
        """
        place, start = self.place(training), None
        if training.starts_from is not None:
            start = str(self._weights(training.starts_from, progress))
        begun = read_if_whole(place / "training.json")
        commit = str(begun["commit"]) if begun else commit
        python = self.python(commit)
        job = {"training": training.to_dict(), "commit": commit, "start": start, "measure": measure}
        write_json(place / "training.json", job, sync=True)
        command = [str(python), "-P", "-m", "tests.evidence.training", str(place)]
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
            raise TrainingError(f"{training.title}: the training ended with exit code {code}; its files are in {place}")

    def _weights(self, training: Training, progress: Progress) -> Path:
        """Returns the finished run of a training in the ledger.

        If its files are missing, for example on another machine, it is trained again with the commit of its line.
        """
        run = Run(self.place(training) / "run")
        if not run.checkpoints or run.info["state"] != "finished":
            self._run(training, progress, read_ledger(self.ledger)[training.key]["commit"], measure=False)
        return run.path


def run_plan(plan: Sequence[Training], workshop: Workshop, out: TextIO = sys.stderr) -> int:
    """Runs the missing trainings of a plan and appends their lines to the ledger; returns their number.

    Args:
        plan: the trainings; a training comes before those that continue from it.

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
        pid = (read_if_whole(owner) or {"pid": "of unknown number"})["pid"]
        raise UsageError(
            f"{workshop.folder}: another `make evidence` is running (process {pid}); wait for it, or stop it first"
        ) from None
    with lock:
        write_json(owner, {"pid": os.getpid()})
        workshop.tidy(workshop.needed_commits())
        while waiting := missing(plan, read_ledger(workshop.ledger)):
            line = workshop.train(waiting[0], Progress(plan, read_ledger(workshop.ledger), workshop.threads, out))
            append(line, workshop.ledger)
            workshop.after()
            count += 1
    return count


def redraw_tables() -> None:
    """Draws the tables again in a new process, because the code that draws them may just be edited."""
    done = subprocess.run([sys.executable, "-m", "tests.evidence.tables"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(f"The line is in the ledger, but the tables could not be drawn:\n{done.stderr}")


def main() -> None:
    """Reads the options and works on the plan."""
    epilog = 'Options are passed in ARGUMENTS, for example: make evidence ARGUMENTS="--list"'
    parser = argparse.ArgumentParser(prog="make evidence", description=__doc__, epilog=epilog)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a training (default: 1).")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"Folder of the trainings (default: {DEFAULT_FOLDER}).")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="Run only trainings whose name contains TEXT, and those that they continue from. --list shows the names.",
    )
    parser.add_argument("--list", action="store_true", help="List the plan and the finished trainings, and train nothing.")
    options = parser.parse_args()
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}; it must be a whole number above zero")
    chosen = {training.key: training for training in PLAN if options.only in training.title}
    bases = {training.starts_from.key for training in chosen.values() if training.starts_from}
    plan = [training for training in PLAN if training.key in chosen.keys() | bases]
    # What stops a background job asks for the same as Ctrl-C: save and end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not plan:
            raise UsageError(f"--only {options.only!r}: no training of the plan has this in its name; --list shows the names")
        if options.list:
            sys.stdout.write(listing(plan, read_ledger()))
            return
        folder = options.folder.expanduser().absolute()
        workshop = Workshop(
            folder,
            LEDGER,
            head(REPOSITORY),
            lambda commit: clean_copy(REPOSITORY, commit, folder / "copies"),
            options.threads,
            lambda commits: remove_copies(REPOSITORY, folder / "copies", commits),
            redraw_tables,
        )
        count = run_plan(plan, workshop)
        sys.stderr.write(f"{count} trainings were done; every training that was asked for is in the ledger.\n")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; `make evidence` continues from here\n")
        sys.exit(130)
    except GrowtasError as error:
        sys.stderr.write(f"make evidence: {error}\n")
        sys.exit(error.exit_code)


def listing(plan: Iterable[Training], lines: Mapping[str, Line]) -> str:
    """The plan with one line per training, and whether the training is done."""
    return "".join(f"{'done   ' if training.key in lines else 'missing'}  {training.key}  {training.title}\n" for training in plan)


if __name__ == "__main__":
    main()
