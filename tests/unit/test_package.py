"""Promises about the package as a whole: its public names, and what `--help` and `import growtas.api` may cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import growtas
from growtas import api

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


def test_importing_the_packages_imports_nothing_heavy():
    done = run_python("import growtas, growtas.api, growtas.export")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy_and_has_an_example(command):
    code = "import sys; sys.argv = ['growtas', *sys.argv[1:]]\nfrom growtas.cli import main\ntry: main()\nexcept SystemExit: pass"
    done = run_python(code, *command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert ("Example:" if command else "growtas train") in done.stdout
