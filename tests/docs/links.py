"""Finds links and anchors of README.md and docs/ that lead nowhere, as GitHub resolves them. Addresses on the web are not tried."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.docs import REPOSITORY

_BLOCKS = re.compile(r"^ *(```+|~~~+).*?^ *\1[`~]* *$|<!--.*?-->", re.M | re.S)
_INLINE = r"`[^`\n]+`"
_LINK = re.compile(rf"({_INLINE})|(\[(?:{_INLINE}|[^\[\]`]|\[[^\[\]]*\](?:\([^()]*\))?)*\]\()([^()\s]+)((?:\s+\"[^\"]*\")?\))")
_HTML = re.compile(r"(\b(?:href|src)=\")([^\"]+)(\")")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#* *$", re.M)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:", re.I)


def pages(root: Path = REPOSITORY) -> list[Path]:
    """The README and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def broken_links(root: Path = REPOSITORY) -> list[str]:
    """A sentence for every link whose file or anchor is not there."""
    root = root.resolve()
    texts = {page.resolve(): page.read_text(encoding="utf-8") for page in pages(root)}
    anchors = {page: set(anchors_of(text)) for page, text in texts.items()}
    return [sentence for page, text in texts.items() for sentence in _broken_in(page, text, root, anchors)]


def _broken_in(page: Path, text: str, root: Path, anchors: dict[Path, set[str]]) -> Iterator[str]:
    name = page.relative_to(root)
    for target in targets_of(text):
        if is_address(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(root) or not file.exists():
            yield f"{name}: the link {target} leads to no file"
        elif anchor and file.suffix == ".md" and anchor not in anchors.get(file, set()):
            yield f"{name}: the link {target} leads to no heading of {file.relative_to(root)}"


def is_address(target: str) -> bool:
    """Whether a link leads out of the repository."""
    return _ADDRESS.match(target) is not None


def targets_of(text: str) -> list[str]:
    """The targets of all links and images of a page."""
    found: list[str] = []

    def keep(target: str) -> str:
        found.append(target)
        return target

    replace_targets(text, keep)
    return found


def replace_targets(text: str, replacement: Callable[[str], str]) -> str:
    """A page with other targets in its links and images; code and comments stay as they are."""

    def in_link(match: re.Match[str]) -> str:
        return match[1] or f"{match[2]}{replacement(match[3])}{match[4]}"

    def in_prose(prose: str) -> str:
        # An image within a link's text is looked at first: it has a target of its own.
        inner = re.sub(r"(!\[[^\[\]]*\]\()([^()\s]+)(\))(?=\]\()", lambda match: match[1] + replacement(match[2]) + match[3], prose)
        return _HTML.sub(lambda match: match[1] + replacement(match[2]) + match[3], _LINK.sub(in_link, inner))

    parts, end = [], 0
    for block in _BLOCKS.finditer(text):
        parts += [in_prose(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, in_prose(text[end:])])


def anchors_of(text: str) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub makes them, and those that HTML names."""
    plain = _BLOCKS.sub("", text)
    seen: Counter[str] = Counter()
    for heading in _HEADING.findall(plain):
        slug = slugify(heading)
        yield f"{slug}-{seen[slug]}" if seen[slug] else slug
        seen[slug] += 1
    yield from re.findall(r"<[^>]+\b(?:id|name)=\"([^\"]+)\"", plain)


def slugify(heading: str) -> str:
    """The anchor of a heading: small letters, no punctuation, hyphens for spaces."""
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.lower()).strip().replace(" ", "-")
