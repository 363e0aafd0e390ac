"""Builds and runs plans of TensorRT and TensorRT-RTX on the GPU: runs the tests of ``test_plans.py``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

from tests.gpu.cases import Cases, Outcome, Skipped
from tests.gpu.hardware import Hardware

_TESTS = Path(__file__).with_name("test_plans.py")


def cases(hardware: Hardware, folder: Path) -> Cases:
    absent = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name) is None]
    if len(absent) == 2:
        yield "plans", partial(_skip, "neither TensorRT nor TensorRT-RTX is installed")
        return
    if importlib.util.find_spec("pytest") is None:
        yield "plans", partial(_skip, "pytest is not installed")
        return
    results = folder / "plans.xml"
    results.unlink(missing_ok=True)
    # The tests import the installed growtas, which comes before their own folder on the path.
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "-p", "no:cacheprovider", "-m", "gpu"]
    done = subprocess.run([*command, f"--junitxml={results}", str(_TESTS)])
    if not results.exists():
        yield "plans", partial(_fail, f"pytest ended with exit code {done.returncode}")
        return
    for case in ElementTree.parse(results).iter("testcase"):
        failed = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        title = str(case.get("name")).removeprefix("test_").replace("_", " ")
        if failed is not None:
            yield title, partial(_fail, str(failed.get("message")))
        elif skipped is not None:
            yield title, partial(_skip, str(skipped.get("message")))
        else:
            yield title, partial(Outcome, "passed")


def _skip(reason: str) -> Outcome:
    raise Skipped(reason)


def _fail(message: str) -> Outcome:
    return Outcome(message[:300], passed=False)
