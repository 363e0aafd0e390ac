"""``python -m tests.gpu``: runs everything that needs a GPU, in at most eight minutes; docs/GPU_RUNS.md describes the steps.

This module needs only Python. Each step runs in its own process and imports its packages there. So a missing package, a crash or an
endless step affects only this step.
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
"""A step with less time left is not started."""
_STAND_IN_HEAD = "# Stand-in run\n\nThe steps of `make test-gpu` on a CPU, with small sizes. Nothing here ran on a GPU.\n"


@dataclass(frozen=True)
class Step:
    """A step: the name of its module in this package, its time limit in seconds, and its description."""

    name: str
    seconds: float
    what: str


STEPS = (
    Step("parity", 60, "compare supernet and static ViT with the CPU in fp32, bf16 and fp16, and name the attention kernels"),
    Step("training", 110, "measure time and peak memory of 200 training steps of autoformer-t, DeiT-T and plain attention"),
    Step("evaluation", 45, "measure the images per second that a search evaluates"),
    Step("nccl", 25, "test the communication of a training through NCCL, in a group of one process"),
    Step("resume", 45, "stop and continue a training, and compare it bit by bit in deterministic mode"),
    Step("limit", 80, "measure a profile in the runtime torch, and search under a measured latency limit"),
    Step("compiled", 80, "compare supernet and static ViT with the CPU through torch.compile"),
    Step("plans", 90, "build and run plans of TensorRT and TensorRT-RTX, if one of them is installed"),
)
"""The steps, the most important first, because the last ones may run out of time."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("--stand-in", action="store_true", help="Try the steps on the CPU with small sizes.")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="Run only these steps.")
    options = parser.parse_args(arguments)
    steps = [step for step in STEPS if options.only is None or step.name in options.only]
    machine = _machine()
    if not options.stand_in and "GPU" not in machine:
        sys.stderr.write(
            f"There is no GPU here: {machine['no GPU']}. Nothing was run, and docs/GPU_RUNS.md was not changed.\n"
            + "On a GPU this command would run:\n"
            + "".join(f"  {step.name:<11}{step.what} ({step.seconds:g} s at most)\n" for step in steps)
            + "`make test-gpu STAND_IN=1` tries the steps on the CPU.\n"
        )
        return 1
    when = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    return Session(steps, machine, when, stand_in=options.stand_in).run()


class Session:
    """One run of some steps. The results are written after each step.

    A stand-in run writes ``build/stand_in.json`` and ``build/stand_in.md``, and no results of a GPU.
    """

    def __init__(self, steps: Sequence[Step], machine: Mapping[str, str], when: str, *, stand_in: bool) -> None:
        self._steps, self._machine, self._when, self._stand_in = steps, machine, when, stand_in
        name = "stand_in" if stand_in else "gpu_runs"
        self._folder, self._json = BUILD / name, BUILD / f"{name}.json"
        self._page = BUILD / "stand_in.md" if stand_in else PAGE
        self._before = _STAND_IN_HEAD if stand_in else PAGE.read_text(encoding="utf-8")
        self._rows: list[Row] = []

    def run(self) -> int:
        """Runs the steps; returns 1 if a row failed or none was measured, otherwise 0."""
        began = time.monotonic()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        start = time.perf_counter()
        how = install(self._folder)
        seconds = {"seconds": round(time.perf_counter() - start, 2)}
        self._add([Row(step="install", case="growtas without its dependencies", outcome=MEASURED, result=how, numbers=seconds)])
        for step in self._steps:
            left = LIMIT_S - (time.monotonic() - began)
            if self._stand_in:  # a CPU may be slow, so there is no total limit
                left = LIMIT_S
            if left < _LEAST_S:
                reason = f"the {LIMIT_S // 60} minutes were used up"
                self._add([Row(step=step.name, case=step.what, outcome=SKIPPED, result=reason)])
                continue
            self._add(self._run_step(step, left if self._stand_in else min(step.seconds, left)))
        outcomes = [row.outcome for row in self._rows]
        counts = ", ".join(f"{outcomes.count(word)} {word}" for word in (MEASURED, FAILED, SKIPPED))
        sys.stdout.write(f"{counts}: {os.path.relpath(self._page)}, {os.path.relpath(self._json)}\n")
        return int(FAILED in outcomes or outcomes.count(MEASURED) < 2)

    def _run_step(self, step: Step, seconds: float) -> list[Row]:
        """Runs a step and returns its rows. If its process fails, the rows that it wrote before are kept."""
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
                # This also ends the processes that the step started, such as compilers.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = read_rows(rows)
        done = [
            Row(step=row.step, case=row.case, outcome=FAILED, result=reason or "did not end") if row.outcome == RUNNING else row
            for row in found
        ]
        if reason and not any(row.outcome == RUNNING for row in found):
            done.append(Row(step=step.name, case="the rest of the step", outcome=FAILED, result=reason))
        return done or [Row(step=step.name, case=step.what, outcome=FAILED, result="the step had no row")]

    def _environment(self) -> dict[str, str]:
        """The environment in which Python finds the installed growtas and these tests, and not growtas in the working folder."""
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
        """Adds rows, prints them and writes all files."""
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
    """Installs growtas into ``folder/site`` without dependencies or network; returns a description of how.

    If pip or setuptools is absent or too old, the sources are copied instead, without kernels in C.
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
    return f"copied, because pip could not install it ({problem[:200]})"


def _machine() -> dict[str, str]:
    """Calls :func:`tests.gpu.hardware.machine` in its own process, because a broken PyTorch may crash it."""
    done = subprocess.run([sys.executable, "-m", "tests.gpu.hardware"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return dict(json.loads(lines[-1])) if done.returncode == 0 and lines else {"no GPU": f"{sys.executable} can't look for one"}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it printed nothing"


def _write(path: Path, text: str) -> None:
    """Replaces a file in one step, so that it is complete even if this process is killed."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
