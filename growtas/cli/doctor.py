"""``growtas doctor``: shows what this machine has for growtas, and what will and won't work on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from growtas.cli import options
from growtas.cli.output import new_table, print_facts, print_json, print_line, print_table

if TYPE_CHECKING:
    from growtas.api.diagnosis import Diagnosis


def doctor(
    root: Annotated[Path, Argument(help="Folder that holds the runs.")] = Path("runs"),
    json_: options.Json = False,
) -> None:
    """Show what this machine has for growtas, and what will and won't work on it.

    It shows versions, CPU, memory, threads, GPU, driver, runtimes, packages that are missing with the command that installs them,
    disk space, caches, locks, and the trainings that run here. It changes and measures nothing. What is missing or broken is part
    of the answer, so the exit code is 0.

    Example: growtas doctor
    """
    from growtas import api

    diagnosis = api.doctor(root)
    if json_:
        print_json(diagnosis.to_dict())
        return
    print_facts(_facts(diagnosis))
    print_line()
    table = new_table("what", "works here", "why", "what to do", fold="why")
    for ability in diagnosis.abilities:
        word = {True: "yes", False: "no", None: "unknown"}[ability.works]
        table.add_row(ability.what, word, ability.because, ability.remedy or "-")
    print_table(table)


def _facts(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    from growtas.units import format_bytes

    system, cpu, memory, threads = diagnosis.system, diagnosis.cpu, diagnosis.memory, diagnosis.threads
    yield "growtas", f"{system['growtas']}, Python {system['python']} ({system['interpreter']}), {system['system']}"
    instructions = ", ".join(cpu["instructions"]) or "neither AVX2 nor AVX-512"
    yield "CPU", f"{cpu['name']}; {cpu['usable_cpus']} of {cpu['machine_cpus']} CPUs are usable; {instructions}"
    whole = f" of {format_bytes(memory['machine_bytes'])}" if memory["machine_bytes"] else ""
    yield "memory", f"{format_bytes(memory['usable_bytes'])}{whole} are usable"
    yield "threads", f"{threads['default']} by default; OMP_NUM_THREADS is {threads['OMP_NUM_THREADS'] or 'not set'}"
    yield "kernels", diagnosis.kernels or "none: growtas was installed without a C compiler, and evaluation is slower"
    yield from _gpu_facts(diagnosis)
    have = [f"{entry['name']} {entry['version']}" for entry in diagnosis.packages if entry["version"]]
    yield "packages", ", ".join(dict.fromkeys(have))
    for entry in diagnosis.packages:
        if not entry["version"]:
            yield "missing", f"{entry['name']}: {entry['install']}"
    for folder in diagnosis.folders:
        state = "" if folder["exists"] else "; it does not exist yet"
        size = "" if folder["bytes"] is None else f"; {format_bytes(folder['bytes'])} in it"
        writable = "writable" if folder["writable"] else "NOT writable"
        yield folder["what"], f"{folder['path']}: {writable}, {format_bytes(folder['free_bytes'])} free{size}{state}"
    for training in diagnosis.trainings:
        yield "training", f"{training['run']}: {training['state']}, process {training['pid']} on {training['host']}"
    if not diagnosis.trainings:
        yield "training", "none is running"
    for lock in diagnosis.locks:
        state = {True: "is alive", False: "has ended, so the lock is free", None: "can't be checked from here"}[lock["alive"]]
        yield "lock", f"{lock['lock']}: process {lock['pid']} on {lock['host']} {state}"
    for problem in diagnosis.unanswered:
        yield "no answer", problem


def _gpu_facts(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    gpu = diagnosis.gpu
    for listed in gpu["nvidia_smi"]:
        yield "GPU", ", ".join(f"{name} {value}" for name, value in listed.items())
    if not gpu["nvidia_smi"]:
        yield "GPU", gpu["name"] or "none that the NVIDIA driver shows"
    yield "CUDA", f"PyTorch is for CUDA {gpu['torch_cuda']}" if gpu["torch_cuda"] else "PyTorch is for the CPU only"
