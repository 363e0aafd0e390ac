"""Links of README.md and docs/, checked without mkdocs, and what mkdocs is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import DOCS, REPOSITORY
from tests.docs.links import anchors_of, broken_links
from tests.docs.site import HOME, adapted, navigation, site_target


def test_no_link_is_broken():
    assert broken_links() == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "# Title\n[good](docs/page.md#a-heading-with-code-1) [self](#title) [web](https://example.org/none) `[code](none.md)`\n"
        "```sh\n[block](none.md)\n```\n[gone](docs/none.md) [no heading](docs/page.md#none) [out](../../outside.md)\n"
        '![picture](docs/none.svg) [`code`](docs/none2.md) <img src="none.png"> [![badge](none.gif)](docs/page.md)\n'
    )
    (tmp_path / "docs" / "page.md").write_text("## A heading, with `code`\n## A heading with code\n## A heading with code\n")
    broken = [re.search(r"the link (\S+)", sentence)[1] for sentence in broken_links(tmp_path)]
    assert sorted(broken) == sorted(
        ["docs/none.md", "docs/page.md#none", "../../outside.md", "docs/none.svg", "docs/none2.md", "none.png", "none.gif"]
    )


def test_anchors_are_those_of_github():
    text = "# growtas recipes --fields\n## What's a *plan*?\n## `run.json`\n### api.train\n## Twice\n## Twice\n"
    text += "```\n# no heading\n```\n"
    assert list(anchors_of(text)) == ["growtas-recipes---fields", "whats-a-plan", "runjson", "apitrain", "twice", "twice-1"]


def test_the_navigation_has_every_page_once():
    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [leaf for inner in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(inner)]

    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert sorted(leaves(navigation())) == sorted({HOME, *pages})


def test_the_navigation_takes_folders_as_they_are(tmp_path):
    for name in ("guide/zebra.md", "guide/own-images.md", "notes/speed.md", "design.md", "other.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# Page\n")
    assert navigation(tmp_path) == [
        {"Start": HOME},
        {"Guide": ["guide/own-images.md", "guide/zebra.md"]},
        {"Notes": ["notes/speed.md"]},
        "design.md",
        {"More": ["other.md"]},
    ]


@pytest.mark.parametrize(
    ("target", "page", "expected"),
    [
        ("docs/design.md#proof", "README.md", "design.md#proof"),
        ("LICENSE", "README.md", "https://github.com/growtas/growtas/blob/main/LICENSE"),
        ("docs/reference", "README.md", "https://github.com/growtas/growtas/tree/main/docs/reference"),
        ("../README.md#title", "docs/design.md", "index.md#title"),
        ("../reference/files.md", "docs/guide/limits.md", "../reference/files.md"),
        ("../../growtas/space.py", "docs/guide/limits.md", "https://github.com/growtas/growtas/blob/main/growtas/space.py"),
        ("#here", "docs/design.md", "#here"),
        ("https://example.org", "docs/design.md", "https://example.org"),
    ],
)
def test_links_on_the_site_stay_on_it_or_lead_to_the_source(target, page, expected):
    assert site_target(target, REPOSITORY / page) == expected


def test_what_python_markdown_reads_otherwise_is_adapted():
    assert adapted("Text:\n- one\n- two\n| a |\n```\nx\n- y\n```") == "Text:\n\n- one\n- two\n| a |\n```\nx\n- y\n```"
    assert adapted("<!-- made -->\n\n# Title\n") == "# Title\n"
    assert adapted(r"| `a\|b` \| c | d |") == r"| `a|b` \| c | d |"


def test_the_site_is_complete_and_loads_nothing_from_elsewhere(tmp_path, monkeypatch):
    """A strict build: a link or an anchor that leads nowhere is an error."""
    pytest.importorskip("material", reason="needs growtas[docs]")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(REPOSITORY)
    build(load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    for page in (Path("index.html"), *pages):
        text = (tmp_path / "site" / page).read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\"\s>]+)", text)
        loaded += re.findall(r"<link\b(?=[^>]*rel=\"?(?:stylesheet|icon|preload|preconnect))[^>]*\bhref=\"?([^\"\s>]+)", text)
        assert loaded
        assert not [address for address in loaded if re.match(r"(?:\w+:)?//", address)], page
