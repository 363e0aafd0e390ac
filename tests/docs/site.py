"""Hooks of mkdocs, see mkdocs.yml: the navigation, the README as the first page, and links that leave docs/.

The pages are written for GitHub, where they are read too. What differs there is changed here: a list needs no empty line before it,
a bar within a table's code is escaped, a page's title may follow a comment, and a link may lead to any file of the repository.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from tests.docs import DOCS, REPOSITORY
from tests.docs.links import is_address, replace_targets

SECTIONS: dict[str, tuple[str, ...]] = {
    "Guide": (
        "own-images",
        "training",
        "own-vit",
        "budgets",
        "own-space",
        "limits",
        "profiles",
        "precision",
        "tensorrt",
        "bench",
        "serving",
        "many-gpus",
        "resume",
        "read-a-report",
        "python",
        "add-a-runtime",
        "add-a-training-method",
        "glossary",
    ),
    "Reference": ("commands", "recipe", "files", "python", "images", "artifacts", "serving", "environment"),
    "Notes": (),
}
"""Folders of docs/ with a section each, and the pages that come first in it; the others follow by name."""
FIRST = ("tutorial.md",)
LAST = ("design.md", "BENCHMARKS.md", "EVIDENCE.md", "RELIABILITY.md", "GPU_RUNS.md")
HOME = "index.md"


def navigation(docs: Path = DOCS) -> list[Any]:
    """The pages that are there, in their order: a page's title is its first heading."""
    sections = []
    for section, order in SECTIONS.items():
        folder = docs / section.lower()
        names = sorted((page.stem for page in folder.glob("*.md")), key=lambda name: (_place(name, order), name))
        if names:
            sections.append({section: [f"{folder.name}/{name}.md" for name in names]})
    top = {page.name for page in docs.glob("*.md")}
    others = sorted(top - {*FIRST, *LAST})
    return [
        {"Start": HOME},
        *(name for name in FIRST if name in top),
        *sections,
        *(name for name in LAST if name in top),
        *([{"More": others}] if others else []),
    ]


def _place(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)


def on_config(config: Any) -> Any:
    """Sets the navigation."""
    config.nav = navigation(Path(config.docs_dir))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the README as the first page."""
    from mkdocs.structure.files import File

    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, HOME, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Adapts a page."""
    del config, files
    source = REPOSITORY / "README.md" if page.file.src_uri == HOME else DOCS / page.file.src_uri
    return adapted(replace_targets(markdown, lambda target: site_target(target, source)))


def site_target(target: str, page: Path) -> str:
    """A link's target on the site: a page of it, or an address in the source's repository for what the site does not have."""
    path, mark, anchor = target.partition("#")
    if is_address(target) or not path:
        return target
    file = Path(os.path.normpath(page.parent / path))
    if file == REPOSITORY / "README.md":
        file = DOCS / HOME
    if file.is_relative_to(DOCS) and not (REPOSITORY / file).is_dir():
        here = DOCS if page.name == "README.md" else page.parent
        return Path(os.path.relpath(file, here)).as_posix() + mark + anchor
    kind = "tree" if file.is_dir() else "blob"
    return f"{_source()}/{kind}/main/{file.relative_to(REPOSITORY).as_posix()}{mark}{anchor}"


def _source() -> str:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Source"])


def adapted(text: str) -> str:
    """A page as Python's Markdown reads it: see the module."""
    lines, in_code = list[str](), False
    for line in re.sub(r"\A\s*<!--.*?-->\s*", "", text, flags=re.S).split("\n"):
        before = lines[-1] if lines else ""
        starts = re.match(r"(?:[-*] |\d+\. |\|)", line)
        if starts and not in_code and before.strip() and not re.match(r"(?:[-*] |\d+\. |\||\s|#|<!--)", before):
            lines.append("")
        if re.match(r" *(?:```|~~~)", line):
            in_code = not in_code
        if line.startswith("|") and not in_code:
            line = re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), line)
        lines.append(line)
    return "\n".join(lines)
