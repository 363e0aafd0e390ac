"""``make reference``: writes the pages of docs/reference/ from the code."""

from __future__ import annotations

import sys

from tests.docs import REFERENCE
from tests.docs.pages import PAGES


def main() -> None:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")
        sys.stdout.write(f"docs/reference/{name}\n")


if __name__ == "__main__":
    main()
