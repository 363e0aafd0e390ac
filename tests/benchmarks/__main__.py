"""``python -m tests.benchmarks``: measure, print the table, write build/benchmarks.json."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console  # noqa: TID251
from rich.table import Table

from tests.benchmarks.speed import entries


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__).parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    console = Console()
    measured = []
    for entry in entries():
        measured.append(entry)
        verdict = "holds" if entry.holds else "FAILS"
        console.print(f"{entry.name}: {entry.ratio:.3f} (bar {entry.bar:g}) {verdict}  ({entry.detail})", markup=False)
    table = Table("name", "ratio", "bar", "holds")
    for entry in measured:
        table.add_row(entry.name, f"{entry.ratio:.3f}", f"{entry.bar:g}", "yes" if entry.holds else "NO")
    console.print(table)
    path = Path("build/benchmarks.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([entry.to_dict() for entry in measured], indent=2) + "\n")
    return 0 if all(entry.holds for entry in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
