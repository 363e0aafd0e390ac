"""Promises about the package as a whole: its public names, what imports what, and what `--help` may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import growtas
import growtas.export

ROOT = Path(growtas.__file__).parent
COMMANDS = (
    "train", "recipes", "runs", "show", "search", "export", "verify", "inspect", "predict", "serve", "finetune", "bench", "cost",
    "devices", "profile",
    "import autoformer",
)  # fmt: skip


def _imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def test_only_the_command_line_imports_the_exporters():
    sources = [path for path in ROOT.rglob("*.py") if "cli" not in path.relative_to(ROOT).parts]
    assert len(sources) > 30
    for path in sources:
        if path.relative_to(ROOT).parts[0] in ("export", "profiles"):
            continue
        assert not any(module.startswith("growtas.export") for module in _imports(path)), path


def test_the_static_vit_knows_nothing_of_supernets():
    for name in ("vit", "relative", "packed", "architecture"):
        assert not any("supernet" in module or "extract" in module for module in _imports(ROOT / "nn" / f"{name}.py"))


def test_public_names_are_there_and_documented():
    for name in growtas.__all__:
        value = getattr(growtas, name)
        assert name == "__version__" or value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = growtas.Nothing


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy_and_has_an_example(command):
    code = (
        "import sys; sys.argv = ['growtas', *sys.argv[1:]]\n"
        "from growtas.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "names = ('torch', 'timm', 'numpy', 'onnx', 'onnxruntime', 'sklearn', 'tensorrt_rtx', 'matplotlib')\n"
        "heavy = [name for name in names if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    arguments = [*command.split(), "--help"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("Example:" if command else "growtas train") in done.stdout


TESTS = Path(__file__).resolve().parents[1]
# export/ lies beside growtas/ and is installed inside it; this file names what it looks for.
LOADERS = [path for root in (ROOT, Path(growtas.export.__file__).parent, TESTS) for path in root.rglob("*.py")]


@pytest.mark.parametrize(
    "path", [path for path in LOADERS if path != Path(__file__).resolve()], ids=lambda path: "/".join(path.parts[-3:])
)
def test_nothing_unpickles_a_file_whole(path):
    text = path.read_text(encoding="utf-8")
    assert "pickle.load" not in text
    for line in text.splitlines():
        assert "torch.load(" not in line or "weights_only=True" in line
