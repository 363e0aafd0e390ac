"""README, tutorial and guides: every shell and Python block runs as written, in order, with an installed wheel."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
RUN = {"sh", "python"}
SHOWN = {"text", "yaml", "json", "ini"}
"""Blocks that show output or files."""
REASONS = {
    "needs an NVIDIA GPU",
    "needs several GPUs",
    "needs Docker",
    "needs a checkout",
    "needs the network",
    "needs your own weights",
    "takes hours",
}
SECONDS = 1200


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: of its fence, from 1.
        comment: the HTML comment on the line before it.
    """

    language: str
    text: str
    line: int
    comment: str

    @property
    def why_not_run(self) -> str | None:
        """The reason that the page gives for not running it."""
        return self.comment.removeprefix("not run:").strip() if self.comment.startswith("not run:") else None

    @property
    def file(self) -> str | None:
        """The file that the block shows, which is written before the next block runs."""
        return self.comment.removeprefix("file:").strip() if self.comment.startswith("file:") else None


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            before = re.fullmatch(r"<!--\s*(.*?)\s*-->", lines[start - 1]) if start else None
            text = "\n".join(lines[start + 1 : number])
            blocks.append(Block(lines[start][3:].strip(), text, start + 1, before[1] if before else ""))
            start = None
    assert start is None, f"{page}:{start}: a block without an end"
    return blocks


def commands(page: Path) -> list[dict[str, object]]:
    """What runs of a page, with the files that it shows."""
    found = []
    for block in blocks_of(page):
        if block.file:
            text = f"from pathlib import Path\nPath({block.file!r}).write_text({block.text + chr(10)!r}, encoding='utf-8')"
            found.append({**asdict(block), "language": "python", "text": text})
        elif block.language in RUN and block.why_not_run is None:
            found.append(asdict(block))
    return found


PAGES = [README, *([TUTORIAL] if TUTORIAL.exists() else []), *GUIDES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_marked_so_that_a_reader_knows_what_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        assert block.language in RUN | SHOWN, where
        if block.comment:
            assert block.file or block.why_not_run in REASONS, where
            # Comments are not seen on the page: its text gives the reason too.
            assert block.file or re.search(r"GPU|Docker|checkout|network|internet|download|hours", text), where


def test_pages_are_short() -> None:
    assert len(README.read_text().splitlines()) < 150
    assert {page.name: lines for page in GUIDES if (lines := len(page.read_text().splitlines())) > 120} == {}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of one test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pages"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def installed(shared: Path) -> Path:
    """A folder with the installed wheel, which is made from a copy of the sources."""
    folder, sources = shared / "installed", shared / "sources"
    with FileLock(shared / "installed.lock"):
        if not folder.exists():
            sources.mkdir()
            for name in ("growtas", "export", "profiles"):
                shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            for name in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(ROOT / name, sources)
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(sources)]
            subprocess.run(pip, check=True)
    return folder


def run_page(page: Path, folder: Path, installed: Path, log: Path) -> None:
    """Runs a page's blocks in a folder, and stops whatever they left running."""
    script = log.with_suffix(".json")
    script.write_text(json.dumps(commands(page)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GROWTAS_", "PYTEST", "OMP_"))}
    environment |= {
        "PATH": f"{installed / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(installed),
        "HOME": str(log.parent),
        "XDG_CONFIG_HOME": str(log.parent / "config"),
        "GROWTAS_CACHE": str(log.parent / "cache"),
    }
    command = [sys.executable, "-P", str(ROOT / "tests" / "page_runner.py"), str(script)]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, f"{page.name} fails as written:\n{log.read_text()[-4000:]}"


@pytest.fixture(scope="session")
def after_readme(shared: Path, installed: Path) -> Path:
    """A folder in which the README's lines were run, with photographs beside their run: where a guide starts."""
    folder = shared / "readme"
    with FileLock(shared / "readme.lock"):
        if not (folder / "photo.png").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            run_page(README, folder, installed, shared / "readme.log")
            make_photos = next(block.text for block in blocks_of(TUTORIAL) if block.language == "python")
            subprocess.run([sys.executable, "-c", make_photos], cwd=folder, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs_as_written(
    page: Path, request: pytest.FixtureRequest, shared: Path, installed: Path, tmp_path: Path
) -> None:
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import growtas; print(growtas.__file__)"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    if page == README:
        request.getfixturevalue("after_readme")
        return
    folder = tmp_path / "work"
    if page == TUTORIAL:
        folder.mkdir()
    else:
        shutil.copytree(request.getfixturevalue("after_readme"), folder)
    run_page(page, folder, installed, tmp_path / "log.txt")
