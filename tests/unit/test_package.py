"""Promises about the package as a whole: its public names, and what `--help` and `import growtas.api` may cost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import growtas
from growtas import api
from growtas.cli.app import app
from growtas.errors import OutputError

HEAVY = {"torch", "timm", "numpy", "onnx", "onnxruntime", "sklearn", "tensorrt_rtx", "matplotlib"}
COMMANDS = (
    "train", "recipes", "runs", "show", "search", "export", "verify", "inspect", "predict", "serve", "finetune", "bench", "cost",
    "devices", "profile",
    "import autoformer",
)  # fmt: skip


def run_python(code, *arguments):
    """Runs code in a fresh interpreter, which fails if it has imported a heavy package at the end."""
    check = f"import sys\nheavy = sorted(sys.modules.keys() & {HEAVY})\nsys.exit(f'imported {{heavy}}' if heavy else 0)"
    return subprocess.run([sys.executable, "-c", f"{code}\n{check}", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("package", [growtas, api])
def test_public_names_are_there_and_documented(package):
    for name in package.__all__:
        value = getattr(package, name)
        assert name == "__version__" or value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing


@pytest.mark.parametrize("package", [growtas, api])
def test_dir_shows_the_public_names(package):
    assert dir(package) == sorted(package.__all__)


def test_the_projects_addresses_are_named():
    root = Path(__file__).parents[2]
    urls = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]
    assert {"Homepage", "Documentation", "Source", "Issues"} <= urls.keys()
    assert all(url.startswith(urls["Source"]) for url in urls.values())
    assert (root / urls["Documentation"].rpartition("/")[2] / "guide" / "serving.md").exists()


def test_opening_a_network_to_measure_it_needs_no_pydantic():
    """A machine that measures may have little installed; manifests are what needs it."""
    code = "import sys, growtas.export.open, growtas.search.search, growtas.train.session; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_importing_the_packages_imports_nothing_heavy():
    done = run_python("import growtas, growtas.api, growtas.export")
    assert done.returncode == 0, done.stderr


HELPS = """
import contextlib, io, json, sys
from growtas.cli import main
helps = {}
for command in json.loads(sys.argv[1]):
    sys.argv = ["growtas", *command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    helps[command] = out.getvalue()
print(json.dumps(helps))
"""


def test_help_imports_nothing_heavy_and_has_an_example():
    done = run_python(HELPS, json.dumps(["", *COMMANDS]))
    assert done.returncode == 0, done.stderr
    helps = json.loads(done.stdout)
    assert list(helps) == ["", *COMMANDS]
    for command, text in helps.items():
        assert f"Usage: growtas {command}".rstrip() in text
        assert ("Example:" if command else "growtas train") in text


@pytest.mark.parametrize("command", ["", *COMMANDS, "import"])
def test_h_is_help(command):
    runner = CliRunner()
    short, long = (runner.invoke(app, [*command.split(), option], prog_name="growtas") for option in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "Usage: growtas" in short.stdout


def run_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "growtas", *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("line", "commands"),
    [("growtas se", ["search", "serve"]), ("growtas pr", ["predict", "profile"]), ("growtas import a", ["autoformer"])],
)
def test_shells_complete_commands(line, commands):
    words = line.split()
    done = run_command(_GROWTAS_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert sorted(done.stdout.split()) == commands
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_the_completion():
    script = f'eval "$({sys.executable} -m growtas --show-completion)"; complete -p growtas'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "growtas"


FAILS_AFTER_A_STOP = """
import sys
import growtas.cli.app as commands
from growtas.errors import OutputError
def app(*arguments, **options):
    try: raise KeyboardInterrupt
    except KeyboardInterrupt: raise OutputError("the checkpoint can't be written (No space left on device)")
commands.app = app
sys.argv = ["growtas", "train"]
from growtas.cli import main
main()
"""


def test_what_fails_after_a_stop_is_said():
    done = run_python(FAILS_AFTER_A_STOP)
    assert done.stderr == "growtas: the checkpoint can't be written (No space left on device)\n"
    assert done.returncode == OutputError.exit_code


PRESSES = """
import os, signal, sys
class Press:
    def __del__(self): os.kill(os.getpid(), NUMBER)
class Keyboard:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE and HOW == "swallowed": Press()
        elif name == MODULE and HOW == "as an error": self.fail()
        elif name == MODULE: os.kill(os.getpid(), NUMBER)
    def fail(self):
        try:
            os.kill(os.getpid(), NUMBER)
            sum(range(1000))
        except KeyboardInterrupt as stop: raise ImportError("initialization failed") from stop
sys.meta_path.insert(0, Keyboard())
sys.argv = ["growtas", "runs", os.devnull]
from growtas.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["plain", "swallowed", "as an error"])
@pytest.mark.parametrize("module", ["growtas.allocator", "growtas.cli.app", "typer", "growtas.cli.serve", "growtas.runs"])
def test_a_stop_during_imports_is_said(module, how, number):
    """Also where Python swallows it, as in what runs when an object is freed, and where a compiled module makes an error of it."""
    if how != "plain" and module == "growtas.allocator":
        pytest.skip("too early to be heard again")
    code = f"MODULE, HOW, NUMBER = {module!r}, {how!r}, {int(number)}\n{PRESSES}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "growtas: interrupted\n")
