"""``python -m tests.gpu``: all that needs a GPU, in at most eight minutes; docs/GPU_RUNS.md says what it does.

This module needs Python alone. What a step needs is imported by the step's own process, so that a package which is not there
costs that step only, and so does a crash, or a step that does not end.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.gpu.report import FAILED, MEASURED, RUNNING, SKIPPED, Row, add_section, read_rows, table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "GPU_RUNS.md"
BUILD = ROOT / "build"
LIMIT_S = 8 * 60
_LEAST_S = 5
"""A step that has less time is not begun."""
_STAND_IN_HEAD = "# Stand-in run\n\nThe steps of `make test-gpu` on a CPU, with small sizes. Nothing here ran on a GPU.\n"


@dataclass(frozen=True)
class Step:
    """A module of this package, the most seconds that it gets, and what it does."""

    name: str
    seconds: float
    what: str


STEPS = (
    Step("parity", 60, "supernet and static ViT against the CPU in fp32, bf16 and fp16; which attention kernels are chosen"),
    Step("training", 110, "200 training steps of autoformer-t beside DeiT-T and the written-out attention: time and peak memory"),
    Step("evaluation", 45, "images a second that a search evaluates"),
    Step("nccl", 25, "the communication of a training, through NCCL, in a group of one process"),
    Step("resume", 45, "a training that is stopped and continued, compared to the bit in deterministic mode"),
    Step("limit", 80, "growtas profile in the runtime torch, and a search under a latency limit that is judged on it"),
    Step("compiled", 80, "supernet and static ViT against the CPU through torch.compile"),
    Step("plans", 90, "plans of TensorRT and TensorRT-RTX, where one of them is installed"),
)
"""In the order in which their results matter: what is last may run out of time."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("--stand-in", action="store_true", help="run the steps on the CPU with small sizes, to try them")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="run these steps only")
    options = parser.parse_args(arguments)
    steps = [step for step in STEPS if options.only is None or step.name in options.only]
    machine = _machine()
    if not options.stand_in and "GPU" not in machine:
        sys.stderr.write(
            f"There is no GPU here: {machine['no GPU']}. Nothing was run, and docs/GPU_RUNS.md stays as it is.\n"
            + "On a GPU this would run:\n"
            + "".join(f"  {step.name:<11}{step.what} ({step.seconds:g} s at most)\n" for step in steps)
            + "`make test-gpu STAND_IN=1` tries the steps on the CPU.\n"
        )
        return 1
    when = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    return Session(steps, machine, when, stand_in=options.stand_in).run()


class Session:
    """One run of some steps. What is known is written after each of them.

    A stand-in run writes ``build/stand_in.json`` and ``build/stand_in.md``, and nothing that speaks of a GPU.
    """

    def __init__(self, steps: Sequence[Step], machine: Mapping[str, str], when: str, *, stand_in: bool) -> None:
        self._steps, self._machine, self._when, self._stand_in = steps, machine, when, stand_in
        name = "stand_in" if stand_in else "gpu_runs"
        self._folder, self._json = BUILD / name, BUILD / f"{name}.json"
        self._page = BUILD / "stand_in.md" if stand_in else PAGE
        self._before = _STAND_IN_HEAD if stand_in else PAGE.read_text(encoding="utf-8")
        self._rows: list[Row] = []

    def run(self) -> int:
        """1 where a row failed, or none was measured."""
        began = time.monotonic()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        start = time.perf_counter()
        how = install(self._folder)
        seconds = {"seconds": round(time.perf_counter() - start, 2)}
        self._add([Row(step="install", case="growtas without its dependencies", outcome=MEASURED, result=how, numbers=seconds)])
        for step in self._steps:
            left = LIMIT_S - (time.monotonic() - began)
            if self._stand_in:  # a CPU may be slow, and nobody waits for it
                left = LIMIT_S
            if left < _LEAST_S:
                reason = f"the {LIMIT_S // 60} minutes were over"
                self._add([Row(step=step.name, case=step.what, outcome=SKIPPED, result=reason)])
                continue
            self._add(self._run_step(step, left if self._stand_in else min(step.seconds, left)))
        outcomes = [row.outcome for row in self._rows]
        counts = ", ".join(f"{outcomes.count(word)} {word}" for word in (MEASURED, FAILED, SKIPPED))
        sys.stdout.write(f"{counts}: {os.path.relpath(self._page)}, {os.path.relpath(self._json)}\n")
        return int(FAILED in outcomes or outcomes.count(MEASURED) < 2)

    def _run_step(self, step: Step, seconds: float) -> list[Row]:
        """The step's rows; a process that ended otherwise than it should leaves the rows that it had written."""
        rows, log = self._folder / f"{step.name}.jsonl", self._folder / f"{step.name}.log"
        command = [sys.executable, "-m", "tests.gpu.step", step.name, str(rows), str(self._folder)]
        command += ["--stand-in"] if self._stand_in else []
        sys.stdout.write(f"{step.name}: {step.what}\n")
        sys.stdout.flush()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self._folder, env=self._environment(), stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = process.wait(seconds)
                ending = f"the process ended with exit code {code}"
                reason = "" if code == 0 else f"{ending} ({_last_line(log)})"
            except subprocess.TimeoutExpired:
                reason = f"stopped after {seconds:.0f} s"
            finally:
                # What the process has started, such as compilers, ends with it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = read_rows(rows)
        done = [
            Row(step=row.step, case=row.case, outcome=FAILED, result=reason or "did not end") if row.outcome == RUNNING else row
            for row in found
        ]
        if reason and not any(row.outcome == RUNNING for row in found):
            done.append(Row(step=step.name, case="what was left of the step", outcome=FAILED, result=reason))
        return done or [Row(step=step.name, case=step.what, outcome=FAILED, result="the step had no row")]

    def _environment(self) -> dict[str, str]:
        """Python finds growtas where it was installed, and the tests in this folder; never growtas in the working folder."""
        paths = [str(self._folder / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            "GROWTAS_CACHE": str(self._folder / "cache"),
            "GROWTAS_PROFILES": str(self._folder / "profiles"),
        }

    def _add(self, rows: Sequence[Row]) -> None:
        """Shows more rows and writes all files."""
        for row in rows:
            sys.stdout.write(f"  {row.outcome:<9}{row.case}: {row.result}\n")
        sys.stdout.flush()
        self._rows += rows
        facts = {key: value for key, value in self._machine.items() if key != "no GPU"}
        content = {"when": self._when, "stand_in": self._stand_in, "machine": facts, "rows": [asdict(row) for row in self._rows]}
        _write(self._json, json.dumps(content, indent=2) + "\n")
        title = self._when if self._stand_in else f"{self._when}, {self._machine['GPU']}"
        _write(self._page, add_section(self._before, title, table(facts, self._rows)))


def install(folder: Path) -> str:
    """Puts growtas into ``folder/site``, without dependencies and without a network; how it was done.

    Where pip or setuptools is absent or too old, the sources are copied to where an installation has them: without kernels in C.
    """
    source, site = folder / "source", folder / "site"
    for name in ("growtas", "export", "profiles"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--target", str(site), str(source)]
    try:
        done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options], capture_output=True, text=True, timeout=90)
        errors = [line.strip() for line in done.stderr.splitlines() if "rror" in line]
        problem = "" if done.returncode == 0 else errors[-1] if errors else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        problem = "it took more than 90 s"
    if not problem:
        kernels = "with" if list(site.glob("growtas/nn/evaluation/_kernels*.so")) else "without"
        return f"installed by pip, {kernels} kernels in C"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(source / "growtas", site / "growtas")
    for name in ("export", "profiles"):
        shutil.copytree(source / name, site / "growtas" / name)
    return f"copied, since pip could not install it ({problem[:200]})"


def _machine() -> dict[str, str]:
    """What :func:`tests.gpu.hardware.machine` finds, in a process of its own: a broken PyTorch may take its process along."""
    done = subprocess.run([sys.executable, "-m", "tests.gpu.hardware"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return dict(json.loads(lines[-1])) if done.returncode == 0 and lines else {"no GPU": f"{sys.executable} can't look for one"}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def _write(path: Path, text: str) -> None:
    """Replaces a file at once: whoever ends this process leaves a whole one."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
