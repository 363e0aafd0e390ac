"""``python -m tests.gpu.report``: run every test that needs a GPU, and write docs/GPU_RUNS.md's table of what was seen."""

from __future__ import annotations

import datetime
import importlib.metadata
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

PAGE = Path("docs/GPU_RUNS.md")
_RESULTS = Path("build/gpu.xml")
_PACKAGES = ("torch", "tensorrt", "tensorrt-rtx-cu13", "onnxruntime-gpu")
_HEAD = """# What ran on a GPU

`make test-gpu` runs the tests that need a GPU and adds a table here. What is not in a table has not run on one.
"""


def outcomes(results: Path) -> list[tuple[str, str]]:
    """Name and outcome of every test in a JUnit file: passed, failed, or skipped with the reason."""
    found = []
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{str(case.get('classname', '')).rsplit('.', 1)[-1]}::{case.get('name')}"
        failed = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if failed is not None:
            found.append((name, "**failed**"))
        elif skipped is not None:
            found.append((name, f"skipped: {skipped.get('message')}"))
        else:
            found.append((name, "passed"))
    return found


def page(old: str, machine: Mapping[str, str], results: Sequence[tuple[str, str]], when: str) -> str:
    """The page with one more table, the newest first."""
    earlier = old.split("\n## ", 1)
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    rows = "\n".join(f"| `{name}` | {outcome.replace('|', '/')} |" for name, outcome in results)
    table = f"## {when}\n\n{facts}\n\n| test | outcome |\n| --- | --- |\n{rows}\n"
    return f"{_HEAD}\n{table}" + (f"\n## {earlier[1]}" if len(earlier) > 1 else "")


def machine() -> dict[str, str]:
    """The GPU, its driver, and the packages that are installed."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    found = {"GPU": torch.cuda.get_device_name(), "driver": driver}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Run, write, and give pytest's exit code."""
    if not torch.cuda.is_available():
        sys.stderr.write("there is no CUDA device here: nothing was run, and docs/GPU_RUNS.md stays as it is\n")
        return 2
    _RESULTS.parent.mkdir(exist_ok=True)
    code = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-v", f"--junitxml={_RESULTS}"], check=False).returncode
    when = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), machine(), outcomes(_RESULTS), when), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
