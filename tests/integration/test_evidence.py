"""`make evidence`: a plan that is killed at random moments gives the lines of one that nobody disturbed; copies are clean."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from growtas.errors import UsageError
from tests.evidence.clean_copy import clean_copy, head, remove_copies
from tests.evidence.ledger import REPOSITORY
from tests.evidence.plan import Training

SETTINGS = {
    "space": "micro",
    "data": "digits",
    "batch_size": 64,
    "lr": 3e-3,
    "warmup_epochs": 0.0,
    "monitor_images": 50,
    "amp": "fp32",
}
MEASURE = {"limits": [80_000], "generations": 2, "population": 4, "search_images": 50}
FIRST = Training(
    name="growtas", group="steps", method="growtas", seed=0, epochs=2, options={**SETTINGS, "transitions": [1.0]}, measure=MEASURE
)
PLUS = Training(
    name="plus", group="steps", method="growtas-plus", seed=0, epochs=1, options=SETTINGS, starts_from=FIRST, measure=MEASURE
)
SCRIPT = """
import json, sys
from pathlib import Path
from tests.evidence.__main__ import Workshop, run_plan
from tests.evidence.plan import Training

folder, python, plan = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
workshop = Workshop(folder, folder / "trainings.jsonl", "a commit", lambda commit: python)
run_plan([Training.from_dict(training) for training in plan], workshop)
"""
VARYING = ("seconds", "measure_seconds")


class Launcher:
    """A process that works on a plan, with the tree's own code."""

    def __init__(self, folder, *plan):
        self.folder, self.errors = folder, folder.with_suffix(".log")
        python = folder.parent / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        command = [sys.executable, "-c", SCRIPT, str(folder), str(python), json.dumps([training.to_dict() for training in plan])]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stderr=errors)

    def succeed(self):
        """Wait for the end of the plan; the ledger's lines without what is never twice the same."""
        assert self.process.wait(300) == 0, self.errors.read_text()
        read = [json.loads(line) for line in (self.folder / "trainings.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in VARYING} for line in read]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a training that outlives its launcher is ended by a feature of Linux")
def test_killed_and_started_again_gives_the_same_line(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed of the moments: {seed}")  # noqa: T201 (pytest shows it when the test fails)
    rng, begun = random.Random(seed), time.monotonic()
    calm = Launcher(tmp_path / "calm", FIRST).succeed()
    seconds = time.monotonic() - begun
    for whole_tree in (False, True):
        launcher = Launcher(tmp_path / "killed", FIRST)
        if whole_tree:
            time.sleep(rng.uniform(0, seconds))
        else:  # once surely in the middle of the training: a random moment often falls before or after it
            while not list((tmp_path / "killed").glob("trainings/*/run/checkpoints/epoch-*/state.json")):
                assert launcher.process.poll() is None, launcher.errors.read_text()
                time.sleep(0.02)
        children = Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text().split()
        launcher.process.kill()
        for child in children if whole_tree else ():
            os.kill(int(child), signal.SIGKILL)
        launcher.process.wait()
    assert Launcher(tmp_path / "killed", FIRST).succeed() == calm
    assert [line["key"] for line in calm] == [FIRST.key]
    # Going on from a training whose files are gone leaves its line alone, and every subnet of A_1 answers as before.
    shutil.rmtree(tmp_path / "calm" / "trainings")
    before, after = Launcher(tmp_path / "calm", FIRST, PLUS).succeed()
    assert before == calm[0]
    assert after["starts_from"] == FIRST.key
    inside = [name for name in before["probes"] if name == "smallest" or name.startswith("width 32")]
    assert all(after["probes"][name] == before["probes"][name] for name in inside)
    assert after["probes"]["largest"] != before["probes"]["largest"]
    # A line that is there is not trained again, whatever became of its files.
    shutil.rmtree(tmp_path / "calm" / "trainings")
    assert Launcher(tmp_path / "calm", FIRST, PLUS).succeed() == [before, after]
    assert not (tmp_path / "calm" / "trainings").exists()


def test_two_at_once(tmp_path):
    first = Launcher(tmp_path / "shared", FIRST)
    owner = tmp_path / "shared" / "process.json"
    while not owner.is_file():
        assert first.process.poll() is None, first.errors.read_text()
        time.sleep(0.05)
    second = Launcher(tmp_path / "shared", FIRST)
    assert second.process.wait(60) != 0
    first.process.kill()
    first.process.wait()
    assert f"another `make evidence` is running (process {first.process.pid})" in second.errors.read_text()


@pytest.fixture
def checkout(tmp_path):
    """A clone of this checkout, so that worktrees are not registered in it."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is no git checkout")
    subprocess.run(["git", "clone", "-q", "--shared", str(REPOSITORY), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


@pytest.mark.slow
def test_a_clean_copy_imports_what_was_committed(checkout, tmp_path):
    (checkout / "growtas" / "__init__.py").write_text("raise SystemExit('the edited tree')\n")
    commit = head(checkout)
    python = clean_copy(checkout, commit, tmp_path / "copies")
    root = python.parents[2]
    code = "import growtas, growtas.export, torch, tests.evidence.plan as plan; print(growtas.__file__); print(plan.__file__)"
    done = subprocess.run([python, "-P", "-c", code], cwd=checkout, capture_output=True, text=True, check=True)
    package, plan = map(Path, done.stdout.splitlines())
    assert package.is_relative_to(root / ".venv")
    assert plan.is_relative_to(root)
    assert not plan.is_relative_to(root / ".venv")
    assert clean_copy(checkout, commit, tmp_path / "copies") == python
    with pytest.raises(UsageError, match="does not have the commit 0000"):
        clean_copy(checkout, "0" * 40, tmp_path / "copies")
    remove_copies(checkout, tmp_path / "copies", [commit])
    assert root.is_dir()
    remove_copies(checkout, tmp_path / "copies", [])
    assert not root.exists()


@pytest.mark.slow
def test_half_a_copy_is_made_again(checkout, tmp_path):
    """As a process leaves it that was killed while git or pip worked: a worktree that is locked, and no environment."""
    commit = head(checkout)
    root = tmp_path / "copies" / commit[:12]
    subprocess.run(["git", "-C", str(checkout), "worktree", "add", "-q", "--detach", "--lock", str(root), commit], check=True)
    shutil.rmtree(root)
    assert clean_copy(checkout, commit, tmp_path / "copies").is_file()
