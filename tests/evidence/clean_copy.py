"""Makes clean copies of commits with their own installed growtas, so that long trainings don't use files that are being edited."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from growtas.errors import BuildError, UsageError

_DONE = ".installed"


def head(repository: Path) -> str:
    """The commit that is checked out.

    Raises:
        UsageError: the folder is not a git checkout.
    """
    try:
        return _git(repository, "rev-parse", "HEAD").strip()
    except (BuildError, FileNotFoundError):
        raise UsageError(f"{repository}: it is not a git checkout with a commit, from which the evidence is trained") from None


def clean_copy(repository: Path, commit: str, folder: Path) -> Path:
    """Returns the interpreter of a commit's copy: a git worktree in ``folder`` with a virtual environment, made if necessary.

    The interpreter imports ``growtas``, which was installed from the worktree, and ``tests`` from the worktree itself.

    The environment contains only growtas. A line in a ``.pth`` file gives it all other packages of the environment that runs this
    program. An editable growtas there is not visible, because Python does not read the ``.pth`` files of such a folder.

    Raises:
        UsageError: the repository does not have the commit.
        BuildError: git or pip fails.
    """
    root = folder.absolute() / commit[:12]
    environment, libraries = root / ".venv", sysconfig.get_path("purelib")
    python, mark = environment / "bin" / "python", environment / _DONE
    if mark.is_file() and mark.read_text() == libraries and Path(libraries).is_dir():
        return python
    try:
        _git(repository, "cat-file", "-e", f"{commit}^{{commit}}")
    except BuildError:
        raise UsageError(
            f"{repository}: this checkout does not have the commit {commit}, which a training was begun with; fetch it, "
            f"or remove the training's folder to begin it again"
        ) from None
    _remove(root)
    folder.mkdir(parents=True, exist_ok=True)
    _git(repository, "worktree", "prune")
    # Forced twice: a `git worktree add` that was killed leaves a lock.
    _git(repository, "worktree", "add", "--force", "--force", "--detach", str(root), commit)
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "evidence.pth").write_text(f"{root}\n{libraries}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "-q"]
    _run([*pip, "--no-deps", str(root)])
    mark.write_text(libraries)
    return python


def remove_copies(repository: Path, folder: Path, keep: Iterable[str]) -> None:
    """Removes the copies of all commits except those in ``keep``."""
    names = {commit[:12] for commit in keep}
    for path in folder.glob("*"):
        if path.name not in names:
            _remove(path)
    _git(repository, "worktree", "prune")


def _remove(root: Path) -> None:
    """Removes a copy. Its mark is removed first, so that a partly removed copy never counts as complete."""
    (root / ".venv" / _DONE).unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)


def _git(repository: Path, *arguments: str) -> str:
    return _run(["git", "-C", str(repository), *arguments])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        raise BuildError(f"`{' '.join(command)}` failed: {reason[-1]}")
    return done.stdout
