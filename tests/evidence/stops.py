"""``python -m tests.evidence.stops FOLDER --moments 20``: stops trainings at random moments and continues them.

Stops are Ctrl-C and SIGTERM. The trainings have 1, 2 and 50 steps per epoch, in one and in two processes. After each stop it checks
that at most one more step was begun (two in two processes, which agree once per step), that every complete step was saved, that the
command says how to continue, and that it exits with 130 or 143. The final results must be equal, bit by bit, to those of a training
that was not stopped.

The commands run in forked children of this process, which imports everything once but never computes. With two processes, either
both get the signal, as if torchrun is stopped, or only one of them; then the other one gets SIGTERM, as from torchrun.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from growtas.cli import main, output, training_view
from growtas.files import read_json
from growtas.interrupts import Interrupts, exit_code
from growtas.runs import Run
from growtas.train.events import StepDone
from tests.evidence.kills import finished, outcome

SETTINGS = {1: (1024, 30), 2: (700, 15), 50: (28, 2)}
"""Batch size and epochs by steps per epoch; without the 38 images of the search split, digits has 1,400 training images."""
_STILL_RUNNING = os.WEXITED | os.WNOHANG | os.WNOWAIT
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SLOW_S = 30.0
"""torchrun kills a worker that has not ended this long after a signal."""


@dataclass(frozen=True)
class Trainer:
    """A training command that can be stopped and started again.

    Attributes:
        folder: working folder.
        arguments: arguments of ``growtas train``, without the run's name.
        processes: number of processes.
    """

    folder: Path
    arguments: Sequence[str]
    processes: int

    def start(self, name: str) -> list[int]:
        """Starts or continues the run; returns the process ids by rank."""
        run = self.folder / "runs" / name
        command = ["train", "--resume", str(run)] if (run / "run.json").exists() else ["train", "--name", name, *self.arguments]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for path in self.folder.glob("steps-*"):
            path.unlink()
        return [self._fork(command, rank, port) for rank in range(self.processes)]

    def _fork(self, command: Sequence[str], rank: int, port: int) -> int:
        # Signals are blocked until the child handles them, like a command that has just begun.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            return pid
        code: Any = 1
        try:
            os.chdir(self.folder)
            for number, path in ((1, f"out-{rank}"), (2, f"err-{rank}")):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            if self.processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes, "LOCAL_WORLD_SIZE": self.processes}
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "stops"}
                os.environ.update({key: str(value) for key, value in (ranks | where).items()})
                output.MAIN = rank == 0
            torch.use_deterministic_algorithms(True)
            _log_steps()
            sys.argv = ["growtas", *command]
            with Interrupts():
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                main()
            code = 0
        except SystemExit as ending:
            code = ending.code or 0
        except KeyboardInterrupt:
            code = exit_code()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def steps(self) -> list[tuple[float, int]]:
        """The time and number of each step since the last start."""
        path = self.folder / "steps-0"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(float(when), int(step)) for when, step in (line.split() for line in lines)]


def _log_steps() -> None:
    """Lets this process write a line after each step."""
    event = training_view.TrainingView.event
    path = f"steps-{os.environ.get('RANK', '0')}"

    def logged(view: training_view.TrainingView, what: object) -> None:
        if isinstance(what, StepDone):
            with open(path, "a") as file:
                file.write(f"{time.monotonic()} {what.step}\n")
        event(view, what)

    training_view.TrainingView.event = logged  # type: ignore[method-assign]


def wait(pids: Sequence[int]) -> list[int]:
    """Waits for all processes and returns their exit codes. When one fails, the others get SIGTERM, as from torchrun."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + 300
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    if codes[pid]:
                        for other in pids:
                            if other not in codes:
                                os.kill(other, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise SystemExit("a process does not end")
        time.sleep(0.002)
    return [codes[pid] for pid in pids]


def stop(
    trainer: Trainer, run: Run, delay: float, number: int, targets: Sequence[int], *, in_training: bool
) -> tuple[str, float, list[str]] | None:
    """Starts or continues a run and sends it a signal.

    Args:
        delay: seconds before the signal; with ``in_training`` they begin with the first step.

    Returns:
        The checkpoint at which it stopped, the seconds that this took, and the errors; None if the run ended before the signal.
    """
    pids = trainer.start(run.path.name)
    while in_training and not trainer.steps() and all(os.waitid(os.P_PID, pid, _STILL_RUNNING) is None for pid in pids):
        time.sleep(0.001)
    time.sleep(delay)
    asked = time.monotonic()
    for target in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[target], number)
    codes, seconds = wait(pids), time.monotonic() - asked
    if not any(codes):
        return None
    said, steps = (trainer.folder / "err-0").read_text(), trainer.steps()
    begun = run.path.exists() and "run: " in said
    place = run.checkpoints[-1].name if begun and run.checkpoints else "before the first step"
    wrong = []
    late = sum(when > asked for when, _ in steps)
    if late > trainer.processes:
        wrong.append(f"{late} steps were done after the signal")
    if steps and read_json(run.checkpoints[-1] / "state.json")["step"] != steps[-1][1]:
        wrong.append(f"step {steps[-1][1]} was done, {place} is saved")
    if codes[0] != (128 + number if 0 in targets or steps else 143) and codes[0] not in (130, 143):
        wrong.append(f"the exit code is {codes[0]}")
    if trainer.processes == 1 and codes[0] != 128 + number:
        wrong.append(f"the exit code is {codes[0]}")
    if begun and f"continue with: {'growtas' if trainer.processes == 1 else 'torchrun'}" not in said:
        wrong.append(f"it said {said!r}")
    if "Traceback" in said or "unexpected" in said:
        wrong.append(said)
    if begun and run.info["state"] != "interrupted":
        wrong.append(f"its state is {run.info['state']}")
    if leftovers := [str(path) for path in run.path.rglob(".*.tmp")]:
        wrong.append(f"it left {leftovers}")
    if seconds > _SLOW_S:
        wrong.append(f"it took {seconds:.0f} s")
    return place, seconds, wrong


def stops(folder: Path, steps: int, processes: int, moments: int, options: Sequence[str], rng: random.Random) -> dict[str, Any]:
    """Stops a training ``moments`` times; returns the errors, and the differences from a training that was not stopped."""
    batch, epochs = map(str, SETTINGS[steps])
    arguments = ["--batch-size", batch, "--epochs", epochs, "--set", "search_images=38", "--device", "cpu", *options]
    trainer = Trainer(folder, arguments, processes)
    folder.mkdir(parents=True)
    begun = time.monotonic()
    if any(wait(trainer.start("calm"))):
        raise SystemExit((folder / "err-0").read_text())
    duration, run = time.monotonic() - begun, Run(folder / "runs" / "stopped")
    training = begun + duration - trainer.steps()[0][0]
    targets = [[0]] if processes == 1 else [list(range(processes)), [0], [processes - 1]]
    done: list[tuple[str, float, list[str]]] = []
    while len(done) < moments:
        if finished(run):
            shutil.rmtree(run.path)
        number, in_training = (signal.SIGTERM, signal.SIGINT)[len(done) % 2], len(done) % 4 != 0
        delay, target = rng.uniform(0, training if in_training else duration), targets[len(done) // 2 % len(targets)]
        stopped = stop(trainer, run, delay, number, target, in_training=in_training)
        if stopped is not None:
            done.append(stopped)
    while not finished(run):
        if any(wait(trainer.start(run.path.name))):
            raise SystemExit((folder / "err-0").read_text())
    calm, disturbed = outcome(Run(folder / "runs" / "calm")), outcome(run)
    different = [name for name, value in calm[0].items() if name not in disturbed[0] or not torch.equal(value, disturbed[0][name])]
    return {
        "steps": steps,
        "processes": processes,
        "stops": len(done),
        "places": sorted({place for place, _, _ in done}),
        "seconds": {"median": round(sorted(s for _, s, _ in done)[len(done) // 2], 2), "max": round(max(s for _, s, _ in done), 2)},
        "wrong": [text for _, _, wrong in done for text in wrong],
        "tensors": len(calm[0]),
        "different": different + sorted(disturbed[0].keys() - calm[0].keys()),
        "same_records": calm[1] == disturbed[1],
    }


def run_all() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="All other options are passed to growtas train.")
    parser.add_argument("folder", type=Path, help="Folder for the trainings.")
    parser.add_argument("--moments", type=int, default=20, help="Number of stops of each training (default: 20).")
    parser.add_argument("--steps", type=int, nargs="*", default=list(SETTINGS), choices=list(SETTINGS), help="Steps per epoch.")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="Numbers of processes (default: 1 2).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random moments (default: 0).")
    given, options = parser.parse_known_args()
    good = True
    for steps in given.steps:
        for processes in given.processes:
            rng = random.Random(f"{given.seed} {steps} {processes}")
            report = stops(given.folder.resolve() / f"{steps}-{processes}", steps, processes, given.moments, options, rng)
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()
            good = good and report["same_records"] and not report["different"] and not report["wrong"]
    sys.exit(not good)


if __name__ == "__main__":
    run_all()
