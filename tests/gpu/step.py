"""``python -m tests.gpu.step NAME ROWS FOLDER [--stand-in]``: runs the cases of one step, and appends their rows to a file.

A step is a module of this package with a function ``cases(hardware, folder)``, which yields titles and functions.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.gpu.cases import run_cases
from tests.gpu.hardware import Hardware


def main() -> None:
    step, rows, folder = sys.argv[1:4]
    hardware = Hardware(stand_in="--stand-in" in sys.argv[4:])
    run_cases(step, lambda: importlib.import_module(f"tests.gpu.{step}").cases(hardware, Path(folder)), Path(rows))


if __name__ == "__main__":
    main()
