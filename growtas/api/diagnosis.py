"""What this machine has for growtas, and what will and won't work on it.

Whatever a broken driver, package or network disk can hang or crash is asked in a process of its own, ``python -m
growtas.api.diagnosis RUNS``. It prints each answer as a line of JSON as soon as it has it, so that one that hangs costs no other.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from growtas import __version__
from growtas.export.formats import FORMATS, OPENVINO, PLAN
from growtas.latency.at_hand import CPU, cpu_name
from growtas.processes import end_with_parent
from growtas.resources import available_cpus, available_threads, usable_memory
from growtas.runs import RUNS

PATIENCE_S = 8.0
"""Longest time that the answers of drivers, packages and disks are waited for, in seconds."""
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+).*?(;.*extra == ['\"](?P<extra>[\w-]+)['\"].*)?")
_DEVELOPMENT = ("dev", "docs")
"""Extras for work on growtas itself."""


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Something that a user may want to do.

    Attributes:
        what: a command, with the options that matter.
        works: whether it works here; None if that could not be found out.
        because: the reason in words, or a condition.
        remedy: what to do so that it works; None if it works, or if this machine can't do it.
    """

    what: str
    works: bool | None
    because: str
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a machine has, as JSON data, and what works on it.

    Attributes:
        system: versions of growtas, Python and the system, and the interpreter.
        cpu: name, CPUs of the machine and of this process, and instruction sets that matter.
        memory: bytes that this process may use, and those of the machine.
        threads: number of threads that a command uses by default, and ``OMP_NUM_THREADS``.
        kernels: instruction set of the compiled kernels; None if they are missing or could not be loaded.
        gpu: name of the first GPU by the CUDA driver, all GPUs by ``nvidia-smi``, and the CUDA version of PyTorch.
        packages: each required and optional package with its version, or the command that installs it.
        folders: path, state and size of the folders that growtas writes to.
        trainings: runs that are in state ``training``, with process and machine.
        locks: files of locks in the runs, with the process that holds or held each, and whether that is alive (None: unknown).
        abilities: what works here and what doesn't.
        unanswered: what did not answer in time or crashed.
    """

    system: dict[str, Any]
    cpu: dict[str, Any]
    memory: dict[str, Any]
    threads: dict[str, Any]
    kernels: str | None
    gpu: dict[str, Any]
    packages: tuple[dict[str, Any], ...]
    folders: tuple[dict[str, Any], ...]
    trainings: tuple[dict[str, Any], ...]
    locks: tuple[dict[str, Any], ...]
    abilities: tuple[Ability, ...]
    unanswered: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content that ``growtas doctor --json`` prints."""
        return asdict(self)


def doctor(root: str | Path = RUNS) -> Diagnosis:
    """Finds out what this machine has for growtas, and what will and won't work on it.

    It neither changes nor measures anything, raises no error for what is missing or broken, and ends within seconds.

    Args:
        root: folder that holds the runs.
    """
    smi: list[str | None] = [None]
    fields = "name,driver_version,compute_cap,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    asking = threading.Thread(target=lambda: smi.__setitem__(0, _ask(command)[0]), daemon=True)
    asking.start()
    printed, ended = _ask([sys.executable, "-m", "growtas.api.diagnosis", str(root)])
    asking.join(PATIENCE_S)
    answers = {topic: answer for line in (printed or "").splitlines() for topic, answer in _parsed(line)}
    unanswered = [topic for topic in QUESTIONS if topic not in answers]
    if unanswered and ended is not None:
        unanswered[0] += f" ({ended})"
    unanswered += [f"{topic} ({answer['error']})" for topic, answer in answers.items() if answer.get("error")]
    gpu = {
        "name": answers.get("gpu", {}).get("name"),
        "nvidia_smi": [dict(zip(fields.split(","), _cells(line), strict=False)) for line in (smi[0] or "").splitlines()],
        "torch_cuda": _torch_cuda(),
    }
    packages = tuple(_packages())
    targets = answers.get("targets", {}).get("targets")
    return Diagnosis(
        system={
            "growtas": __version__,
            "python": platform.python_version(),
            "interpreter": sys.executable,
            "system": platform.platform(),
        },
        cpu={
            "name": cpu_name(),
            "machine_cpus": os.cpu_count(),
            "usable_cpus": available_cpus(),
            "instructions": _instructions(),
        },
        memory={"usable_bytes": usable_memory(), "machine_bytes": _machine_memory()},
        threads={"default": available_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        kernels=answers.get("kernels", {}).get("instructions"),
        gpu=gpu,
        packages=packages,
        folders=tuple({"what": topic, **answers[topic]} for topic in QUESTIONS if answers.get(topic, {}).get("path")),
        trainings=tuple(answers.get("trainings", {}).get("trainings", ())),
        locks=tuple(answers.get("locks", {}).get("locks", ())),
        abilities=tuple(_abilities(gpu, packages, targets)),
        unanswered=tuple(unanswered),
    )


def _abilities(gpu: dict[str, Any], packages: Sequence[dict[str, Any]], targets: list[dict[str, Any]] | None) -> Iterator[Ability]:
    """Judges the commands by what was found; ``targets`` are those of ``growtas devices``, None without an answer."""
    installed = {entry["name"] for entry in packages if entry["version"]}
    always = [entry["name"] for entry in packages if entry["required"]]
    yield _needs("train, finetune, search and cost on the CPU", always, None, installed)
    name, cuda = gpu["name"], gpu["torch_cuda"]
    remedy = None if name is None or cuda else "install a PyTorch with CUDA: https://pytorch.org/get-started"
    reason = "no NVIDIA GPU with a driver on this machine" if name is None else f"PyTorch for CUDA {cuda}, {name}"
    if name is not None and not cuda:
        reason = f"the installed PyTorch is for the CPU only, but this machine has {name}"
    yield Ability(what="train --device cuda", works=name is not None and cuda is not None, because=reason, remedy=remedy)
    for entry in FORMATS:
        what = f"export --format {entry.name}"
        if entry is OPENVINO:
            yield _needs(what, ("openvino",), "openvino", installed)
        elif entry is PLAN:
            yield _plans(what, name, installed)
        else:
            yield _needs(what, always, None, installed)
    yield from _benchmarks(targets)
    yield _needs("serve", ("fastapi", "uvicorn", "prometheus-client"), "serve", installed)
    yield _needs("show --png, bench --png, the picture of a search", ("matplotlib",), "watch", installed)
    yield _needs("train --tensorboard", ("tensorboard",), "watch", installed)


def _needs(what: str, names: Sequence[str], extra: str | None, installed: set[str]) -> Ability:
    missing = [name for name in names if name not in installed]
    if not missing:
        return Ability(what=what, works=True, because=f"{', '.join(names)}: installed" if extra else "needs no optional package")
    plural = "are" if len(missing) > 1 else "is"
    return Ability(what=what, works=False, because=f"{', '.join(missing)} {plural} not installed", remedy=_install(extra))


def _plans(what: str, gpu: str | None, installed: set[str]) -> Ability:
    compilers = [name for name in ("tensorrt-rtx-cu13", "tensorrt") if name in installed]
    if not compilers:
        return Ability(
            what=what, works=False, because="neither tensorrt-rtx-cu13 nor tensorrt is installed", remedy=_install("trt-rtx")
        )
    if gpu is not None:
        return Ability(what=what, works=True, because=f"{' and '.join(compilers)}: installed; plans of this GPU run here")
    if "tensorrt-rtx-cu13" not in compilers:
        because = "tensorrt builds only for the GPU of the machine, and there is none"
        return Ability(what=what, works=False, because=because, remedy=_install("trt-rtx"))
    because = "tensorrt-rtx-cu13: installed; plans are built for other machines' GPUs, but can't be run and checked here"
    return Ability(what=what, works=True, because=because)


def _benchmarks(targets: list[dict[str, Any]] | None) -> Iterator[Ability]:
    """Yields a line for each runtime on each device; precisions with different answers are named."""
    if targets is None:
        yield Ability(what="bench and profile", works=None, because="the runtimes did not answer")
        return
    grouped: dict[tuple[str, str], dict[str | None, list[str]]] = {}
    for target in targets:
        place = "the CPU" if target["device"] == CPU else target["device"] or "a GPU"
        grouped.setdefault((target["runtime"], place), {}).setdefault(target["why_not"], []).append(target["precision"])
    for (runtime, place), answers in grouped.items():
        for why_not, precisions in answers.items():
            which = f" in {', '.join(precisions)}" if len(answers) > 1 else ""
            reason, _, remedy = (why_not or "").partition(": pip install ")
            yield Ability(
                what=f"bench --runtime {runtime} on {place}{which}",
                works=why_not is None,
                because=reason or f"precisions {', '.join(precisions)}",
                remedy=f"pip install {remedy}" if remedy else None,
            )


def _packages() -> Iterator[dict[str, Any]]:
    """Yields the packages that growtas names in its metadata, those of its extras included."""
    for requirement in importlib.metadata.requires("growtas") or []:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None or match["extra"] in _DEVELOPMENT:
            continue
        version = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(match["name"])
        install = None if version else _install(match["extra"])
        # A requirement with a condition, such as an operating system, is needed by some commands only.
        required = ";" not in requirement
        yield {"name": match["name"], "extra": match["extra"], "required": required, "version": version, "install": install}


def _install(extra: str | None) -> str:
    return f"pip install 'growtas[{extra}]'" if extra else "pip install growtas"


def _torch_cuda() -> str | None:
    """Returns the CUDA version that PyTorch was built for; None for a PyTorch without CUDA. It is not imported."""
    with contextlib.suppress(OSError, ImportError, AttributeError, TypeError):
        spec = importlib.util.find_spec("torch")
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")  # type: ignore[union-attr, arg-type]
        match = re.search(r"^cuda.*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
        return match[1] if match else None
    return None


def _instructions() -> list[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                flags = set(line.partition(":")[2].split())
                return [name for name in _INSTRUCTIONS if name in flags]
    return []


def _machine_memory() -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")]


def _parsed(line: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the topic and the answer of a line; nothing for what a library printed."""
    with contextlib.suppress(ValueError, TypeError):
        topic, answer = json.loads(line)
        if topic in QUESTIONS and isinstance(answer, dict):
            yield topic, answer


def _ask(command: list[str]) -> tuple[str | None, str | None]:
    """Runs a program for at most :data:`PATIENCE_S`.

    Returns:
        what it printed, None if it can't be started; and how it ended if that was not with exit code 0.
    """
    # A file and not a pipe: the reader of a pipe also waits for the children of a program that was killed.
    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            return None, f"it can't be started: {error.strerror}"
        ended: str | None = f"no answer within {PATIENCE_S:g} s"
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(PATIENCE_S)
                ended = f"it ended with exit code {code}" if code else None
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process that waits for a driver can't be killed
                process.wait(1)
        printed.seek(0)
        return printed.read().decode(errors="replace"), ended


def _kernels() -> dict[str, Any]:
    """The compiled kernels of an evaluation on the CPU."""
    return {"instructions": importlib.import_module("growtas.nn.evaluation._kernels").instructions()}


def _folder(path: Path | None, *, measured: bool = False) -> dict[str, Any]:
    """Describes a folder that growtas writes to; one that is missing is created when it is needed."""
    if path is None:
        return {"path": None}
    place = path.absolute()
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    size = None
    if measured and place.is_dir():
        size = sum(file.lstat().st_size for file in place.rglob("*") if file.is_file())
    return {
        "path": str(place),
        "exists": place.exists(),
        "writable": nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        "free_bytes": shutil.disk_usage(nearest).free,
        "bytes": size,
    }


def _cache() -> dict[str, Any]:
    from growtas.data.cache import cache_folder

    return _folder(cache_folder(), measured=True)


def _profiles() -> dict[str, Any]:
    from growtas.latency.modelled.profile import user_folder

    return _folder(user_folder(), measured=True)


def _trainings(root: Path) -> dict[str, Any]:
    from growtas.errors import GrowtasError
    from growtas.runs import list_runs

    found = []
    for run in list_runs(root) if root.is_dir() else ():
        with contextlib.suppress(GrowtasError, OSError):
            state = run.state()
            if state.name == "training":
                found.append({"run": str(run.path), "state": str(state), "pid": state.pid, "host": state.host})
    return {"trainings": found}


def _locks(root: Path) -> dict[str, Any]:
    from growtas.locks import LOCK, lock_owner
    from growtas.processes import process_alive
    from growtas.runs import list_runs

    found = []
    for run in list_runs(root) if root.is_dir() else ():
        for path in (run.path / LOCK, run.path / "search" / LOCK):
            if (owner := lock_owner(path)) is not None:
                found.append({"lock": str(path), **owner, "alive": process_alive(owner, path.stat().st_mtime)})
    return {"locks": found}


def _gpu() -> dict[str, Any]:
    from growtas.latency.at_hand import gpu_name

    return {"name": gpu_name()}


def _targets() -> dict[str, Any]:
    from growtas.export.benchmark.targets import targets_here

    return {"targets": [asdict(target) for target in targets_here()]}


# In this order, the safest first.
QUESTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "kernels": lambda root: _kernels(),
    "runs": lambda root: _folder(root),
    "temporary files": lambda root: _folder(Path(tempfile.gettempdir())),
    "profiles": lambda root: _profiles(),
    "cache": lambda root: _cache(),
    "trainings": _trainings,
    "locks": _locks,
    "gpu": lambda root: _gpu(),
    "targets": lambda root: _targets(),
}
"""What the process of its own answers."""


def _answer_all(root: Path) -> None:
    end_with_parent()
    for topic, question in QUESTIONS.items():
        try:
            answer = question(root)
        except Exception as error:  # whatever is broken is reported, and the other answers are given
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        sys.stdout.write(json.dumps([topic, answer]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _answer_all(Path(sys.argv[1]))
