"""Makes the reference pages from the code, checks links, and helps mkdocs: ``make reference`` and ``make docs``. Not installed."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
REFERENCE = DOCS / "reference"
