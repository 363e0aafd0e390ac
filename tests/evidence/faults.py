"""``python -m tests.evidence.faults FOLDER``: kills commands, fills their disk and starts them twice, and checks what is left.

- ``kills``: SIGKILL at file operations that are spread over the command, and at random moments. The same command, or the one that
  its message names, must then succeed with the results of an undisturbed command, and leave no other files than that one.
- ``disk``: the command writes to a file system with too little space (a tmpfs, which only root can mount). It must end with one
  sentence, and after the file system has grown, the command must succeed in the same way.
- ``pairs``: two processes do the same at once, at random offsets. They must never work together, and the results must be the same.
- ``twice``: the same command with the same seed, undisturbed, must write the same bytes, except for times.

Commands run in forked children of this process, which imports everything once and computes nothing: a new interpreter for each
command would spend most of its time on imports.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.evidence.kills import UNSTEADY
from tests.unit.train.conftest import TINY

_MODULES = (
    "growtas.cli.app", "growtas.train.session", "growtas.search.search", "growtas.search.evaluation.evaluator",
    "growtas.api.search_precision", "growtas.export.pipeline.run", "growtas.export.benchmark.run",
    "growtas.export.runtimes.openvino", "onnx", "onnxruntime", "onnxscript", "openvino", "timm", "sklearn.datasets",
    "matplotlib.pyplot",
)  # fmt: skip
_TIMEOUT_S = 300.0
_TIMES = (*UNSTEADY, "created", "process", "sha256")


@dataclass(frozen=True)
class Command:
    """A command whose interruption is tried.

    Attributes:
        name: its name.
        words: its arguments.
        after: names of the commands whose results it needs.
        resume: the arguments that continue it once its run exists, if these are others.
        results: glob patterns of the files whose bytes must be those of the undisturbed command.
    """

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    results: tuple[str, ...] = ()


_TRAINED = ("checkpoints/*/*.safetensors", "split.json", "recipe.yaml")
COMMANDS = {
    command.name: command
    for command in (
        Command(
            "train",
            ("train", "--space", "tiny.yaml", "--name", "r", "--epochs", "3", "--batch-size", "400", "--ema", "0.9",
             "--set", "save_minutes=0.0001", "--set", "warmup_epochs=0.5"),
            resume=("train", "--resume", "runs/r"),
            results=tuple(f"runs/r/{pattern}" for pattern in _TRAINED),
        ),
        Command(
            "search",
            ("search", "runs/r", "--population", "6", "--generations", "3", "--threads", "1"),
            after=("train",),
            results=("runs/r/search/subnet.json",),
        ),
        Command(
            "finetune",
            ("finetune", "runs/r", "--data", "digits", "--name", "f", "--epochs", "2",
             "--batch-size", "400", "--set", "save_minutes=0.0001"),
            after=("train", "search"),
            resume=("train", "--resume", "runs/f"),
            results=tuple(f"runs/f/{pattern}" for pattern in _TRAINED),
        ),
        Command(
            "profile",
            ("profile", "--device", "cpu", "--space", "tiny.yaml", "--out", "cpu.json", "--samples", "8", "--held-out", "4",
             "--repeats", "2", "--seconds", "0.002", "--threads", "1"),
        ),
        Command(
            "export",
            ("export", "runs/r", "--format", "torch,onnx,openvino"),
            after=("train", "search"),
            results=("runs/r/export/*.onnx", "runs/r/export/*.xml", "runs/r/export/*.bin", "runs/r/export/*.safetensors"),
        ),
        Command(
            "bench",
            ("bench", "runs/r/export/tiny-subnet.onnx", "--runtime", "onnxruntime,openvino", "--batch", "1", "--rounds", "2",
             "--seconds", "0.05", "--threads", "1", "--no-roofline", "--out", "bench.json", "--csv", "bench.csv"),
            after=("train", "search", "export"),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), its standard error, and the number of its file operations."""

    code: int
    said: str
    operations: int


class Place:
    """A folder in which commands run: ``work`` is their working folder, ``tmp`` the folder for temporary files."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.folder, self.work, self.tmp = folder, folder / "work", folder / "tmp"
        self.records = folder if template is None else template.parent  # not on the folder's own disk, which may be full
        if template is not None:
            shutil.copytree(template / "work", self.work)
        else:
            self.work.mkdir(parents=True)
            (self.work / "tiny.yaml").write_text(TINY)
        self.tmp.mkdir()

    def start(self, words: Sequence[str], *, kill_at: int | None = None) -> int:
        """Starts a command in a forked child that leads a process group, and returns its process id.

        Args:
            kill_at: number of the file operation before which the child kills itself.
        """
        pid = os.fork()
        if pid:
            return pid
        os.setsid()
        code = 70
        try:
            os.chdir(self.work)
            os.environ |= {"TMPDIR": str(self.tmp), "OMP_NUM_THREADS": "1"}
            tempfile.tempdir = None
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.records / f"{name}.{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o644), number)
            counter = _count_operations(self.folder, kill_at)
            sys.argv = ["growtas", *words]
            from growtas.cli.main import main

            try:
                main()
                code = 0
            except SystemExit as ending:
                code = int(ending.code or 0)
            finally:
                (self.records / f"operations.{os.getpid()}").write_text(str(counter[0]))
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self, pid: int) -> Ended:
        """Waits until a command and the processes that it started have ended."""
        deadline, status = time.monotonic() + _TIMEOUT_S, 0
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                raise SystemExit(f"a command ran for more than {_TIMEOUT_S:.0f} s")
            time.sleep(0.005)
        for _ in range(200):  # processes that it started must follow it soon
            try:
                os.killpg(pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            os.killpg(pid, signal.SIGKILL)
            raise SystemExit("a process of a killed command outlived it by more than ten seconds")
        files = {name: self.records / f"{name}.{pid}" for name in ("err", "out", "operations")}
        operations = files["operations"]
        said = files["err"].read_text(errors="replace") if files["err"].exists() else ""  # killed before it was opened
        count = int(operations.read_text() or 0) if operations.exists() else 0
        for file in files.values():
            file.unlink(missing_ok=True)
        return Ended(os.waitstatus_to_exitcode(status), said, count)

    def run(self, words: Sequence[str]) -> Ended:
        """Runs a command to its end."""
        return self.wait(self.start(words))

    def again(self, command: Command) -> Ended:
        """Starts a command again as its user would: the same command, or the one that the message of a refusal names."""
        ended = self.run(command.words)
        if ended.code == 2 and command.resume and "--resume" in ended.said:
            ended = self.run(command.resume)
            if ended.code == 2 and "is finished, so there is nothing to resume" in ended.said:
                return Ended(0, "", 0)
        return ended

    def files(self) -> set[str]:
        """The names of all files, including those in the folder for temporary files."""
        return {
            str(path.relative_to(self.folder))
            for root in (self.work, self.tmp)
            for path in root.rglob("*")
            if not path.is_dir() or not any(path.iterdir())
        }


def _count_operations(folder: Path, kill_at: int | None) -> list[int]:
    """Counts the operations of this process that change files below a folder, and kills it before the given one."""
    counter, root, writing = [0], str(folder), os.O_WRONLY | os.O_RDWR | os.O_CREAT
    changes = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate", "os.symlink"}
    working = [False]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if working[0] or (event not in changes and event != "open"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & writing):
            return
        try:
            path = os.path.abspath(os.fsdecode(arguments[0]))
        except TypeError:  # a file descriptor
            return
        if not path.startswith(root) or os.path.dirname(path) == root:
            return
        counter[0] += 1
        if counter[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return counter


def digests(place: Place, command: Command) -> dict[str, str]:
    """The SHA-256 of a command's results; records are compared without times."""
    found = {}
    for pattern in command.results:
        for path in place.work.glob(pattern):
            found[str(path.relative_to(place.work))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in [*place.work.rglob("metrics.jsonl"), *place.work.rglob("run.json"), *place.work.rglob("state.json")]:
        entries = [_without_times(json.loads(line)) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
        record = json.dumps(entries or _without_times(json.loads(path.read_text())))
        found[str(path.relative_to(place.work))] = record.replace(str(place.work), "")
    for path in place.work.rglob("journal.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        evaluated = [json.dumps(line["subnet"]) for line in lines if line["type"] == "evaluation"]
        twice = [subnet for subnet, count in Counter(evaluated).items() if count > 1]
        found[str(path.relative_to(place.work))] = f"evaluated twice: {twice}" if twice else "each subnet was evaluated once"
    return found


def _without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_times(value) for key, value in data.items() if key not in _TIMES}
    return [_without_times(item) for item in data] if isinstance(data, list) else data


@dataclass(frozen=True)
class Calm:
    """An undisturbed command: the state before it, its results, its files, its seconds and its number of file operations."""

    command: Command
    before: Path
    results: dict[str, str]
    files: set[str]
    seconds: float
    operations: int


def calm(folder: Path, names: Sequence[str]) -> Iterator[Calm]:
    """Runs the commands undisturbed, each in a copy of what the commands before it made."""
    done: dict[tuple[str, ...], Path] = {}

    def state_after(commands: tuple[str, ...]) -> Path:
        if commands not in done:
            place = Place(folder / ("-".join(commands) or "nothing"), state_after(commands[:-1]) if commands else None)
            if commands:
                _expect(place.run(COMMANDS[commands[-1]].words), commands[-1])
            done[commands] = place.folder
        return done[commands]

    for name in names:
        command = COMMANDS[name]
        before, start = state_after(command.after), time.perf_counter()
        place = Place(folder / f"calm-{name}", before)
        ended = place.run(command.words)
        seconds = time.perf_counter() - start
        _expect(ended, name)
        yield Calm(command, before, digests(place, command), place.files(), seconds, ended.operations)


def _expect(ended: Ended, name: str) -> None:
    if ended.code:
        raise SystemExit(f"the undisturbed {name} ended with exit code {ended.code}: {ended.said}")


def judge(place: Place, calm: Calm, ended: Ended, started: str) -> list[str]:
    """What is wrong after a disturbed command was started again; empty if nothing is."""
    if ended.code:
        return [f"dead end: exit code {ended.code} ({ended.said.strip()[-300:]}) after {started}"]
    wrong = []
    if different := [name for name, value in calm.results.items() if digests(place, calm.command).get(name) != value]:
        wrong.append(f"other results: {', '.join(different)} after {started}")
    if left := place.files() - calm.files:
        wrong.append(f"left over: {', '.join(sorted(left))} after {started}")
    if lost := calm.files - place.files():
        wrong.append(f"lost: {', '.join(sorted(lost))} after {started}")
    return wrong


def kills(folder: Path, calm: Calm, count: int, rng: random.Random) -> dict[str, Any]:
    """Kills a command ``count`` times, half of them at file operations, and starts it again each time."""
    wrong, killed, late = [], 0, 0
    points = sorted(rng.sample(range(1, calm.operations + 1), min(count // 2, calm.operations)))
    moments: list[int | None] = [*points, *[None] * (count - len(points))]
    for index, point in enumerate(moments):
        place = Place(folder / f"kill-{calm.command.name}-{index}", calm.before)
        moment = rng.uniform(0, calm.seconds)
        pid = place.start(calm.command.words, kill_at=point)
        if point is None:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
        ended = place.wait(pid)
        killed += ended.code == -signal.SIGKILL
        late += ended.code == 0
        if ended.code not in (0, -signal.SIGKILL):
            wrong.append(f"exit code {ended.code} ({ended.said.strip()[-300:]})")
        where = f"a kill at file operation {point} of {calm.operations}" if point else f"a kill after {moment:.2f} s"
        wrong += judge(place, calm, place.again(calm.command), where)
        _forget(place, wrong)
    return {"killed": killed, "had ended before the kill": late, "wrong": wrong}


def full_disk(folder: Path, calm: Calm, count: int) -> dict[str, Any]:
    """Runs a command on ``count`` file systems with too little space, and again after they have grown."""
    wrong, refused, enough = [], 0, 0
    with _mounted(folder / "room", 1 << 30):
        place = Place(folder / "room" / "x", calm.before)
        before = _used(place.folder)
        _expect(place.run(calm.command.words), calm.command.name)
        need = _used(place.folder) - before
    for index in range(count):
        disk = folder / f"disk-{calm.command.name}-{index}"
        with _mounted(disk, before + need * index // count) as grow:
            try:
                place = Place(disk / "x", calm.before)
            except OSError:  # there is not even room for the state before
                continue
            ended = place.run(calm.command.words)
            enough += ended.code == 0
            refused += ended.code == 2
            lines = [line for line in ended.said.splitlines() if line.startswith("growtas: ")]
            if ended.code not in (0, 2) or "Traceback" in ended.said or "unexpected" in ended.said:
                wrong.append(f"exit code {ended.code}: {ended.said.strip()[-400:]}")
            elif ended.code == 2 and (len(lines) != 1 or "can't be written (No space left on device)" not in lines[0]):
                wrong.append(f"the message does not name the reason: {ended.said.strip()[-400:]}")
            grow()
            wrong += judge(place, calm, place.again(calm.command), f"a full disk ({index} of {count})")
    return {"refused": refused, "had enough space": enough, "wrong": wrong}


def pairs(folder: Path, calm: Calm, count: int, rng: random.Random) -> dict[str, Any]:
    """Starts a command twice at ``count`` offsets; the second start is the resuming one half of the time, where there is one."""
    wrong, codes = [], Counter[str]()
    for index in range(count):
        place = Place(folder / f"pair-{calm.command.name}-{index}", calm.before)
        offset = rng.uniform(0, calm.seconds) * (index % 4 > 0)
        second = calm.command.resume if calm.command.resume and index % 2 else calm.command.words
        one = place.start(calm.command.words)
        time.sleep(offset)
        two = place.start(second)
        ends = [place.wait(pid) for pid in (one, two)]
        codes[" and ".join(str(end.code) for end in ends)] += 1
        for end in ends:
            if end.code and (end.code != 2 or "Traceback" in end.said):
                wrong.append(f"exit code {end.code}: {end.said.strip()[-300:]}")
        wrong += judge(place, calm, place.again(calm.command), f"two processes {offset:.2f} s apart, exit codes {codes}")
        _forget(place, wrong)
    return {"exit codes": dict(codes), "wrong": wrong}


def twice(folder: Path, calm: Calm) -> dict[str, Any]:
    """Runs a command once more, undisturbed."""
    place = Place(folder / f"twice-{calm.command.name}", calm.before)
    return {"files": len(calm.results), "wrong": judge(place, calm, place.run(calm.command.words), "the second time")}


def _forget(place: Place, wrong: list[str]) -> None:
    if not wrong:
        shutil.rmtree(place.folder)


def _used(folder: Path) -> int:
    """Used space of the file system that a folder is on, in bytes."""
    system = os.statvfs(folder)
    return (system.f_blocks - system.f_bfree) * system.f_frsize


@contextlib.contextmanager
def _mounted(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """Mounts a file system of a size in bytes; yields a function that lets it grow."""
    folder.mkdir(parents=True)

    def mount(size: int, *options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)], check=True)

    mount(size)
    try:
        yield lambda: mount(1 << 30, "remount")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder for the commands' files; it must not exist.")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="Commands, separated by commas (default: all).")
    parser.add_argument("--kills", type=int, default=0, help="Kills of each command (default: 0).")
    parser.add_argument("--disk", type=int, default=0, help="Full disks of each command (default: 0).")
    parser.add_argument("--pairs", type=int, default=0, help="Pairs of processes of train, search and finetune (default: 0).")
    parser.add_argument("--twice", action="store_true", help="Run each command twice and compare the bytes.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random moments (default: 0).")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True)
    for module in _MODULES:
        with contextlib.suppress(ImportError):  # an extra that is not installed
            import_module(module)
    # Not shared with the commands that other people run on this machine.
    os.environ |= {"GROWTAS_CACHE": str(folder / "cache"), "XDG_CACHE_HOME": str(folder / "cache")}
    rng, report, failed = random.Random(options.seed), dict[str, Any](), False
    for calm_command in calm(folder, options.commands.split(",")):
        name = calm_command.command.name
        tried: dict[str, Any] = {}
        if options.twice:
            tried["twice"] = twice(folder, calm_command)
        if options.kills:
            tried["kills"] = kills(folder, calm_command, options.kills, rng)
        if options.disk and not os.geteuid():
            tried["disk"] = full_disk(folder, calm_command, options.disk)
        if options.pairs and name in ("train", "search", "finetune"):
            tried["pairs"] = pairs(folder, calm_command, options.pairs, rng)
        report[name] = {"seconds": round(calm_command.seconds, 1), "operations": calm_command.operations, **tried}
        sys.stderr.write(json.dumps({name: report[name]}) + "\n")
        failed = failed or any(one["wrong"] for one in tried.values())
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
