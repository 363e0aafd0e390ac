"""The reference pages: made from the code as it is, complete, and the same on every machine."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

import growtas
from growtas import api
from growtas.cli.app import app
from growtas.docstrings import descriptions, summary
from growtas.train.recipe import Recipe
from tests.docs import REFERENCE, REPOSITORY
from tests.docs.commands import walk
from tests.docs.markdown import EmptyCell, table
from tests.docs.pages import PAGES
from tests.docs.python_api import members

EXTRAS = (
    "fastapi", "matplotlib", "openvino", "prometheus_client", "pymoo", "pynvml", "tensorboard", "tensorrt", "tensorrt_rtx",
    "tritonclient", "uvicorn",
)  # fmt: skip
ELSEWHERE = """
import json, os, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
os.cpu_count = lambda: 97
os.sched_getaffinity = lambda process: {0}
os.getlogin = lambda: "somebody"
from tests.docs.pages import PAGES
print(json.dumps({name: make() for name, make in PAGES.items()}))
"""


def committed(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name):
    assert committed(name) == PAGES[name](), f"docs/reference/{name} is stale: run `make reference` and commit it"


@pytest.mark.slow
def test_pages_do_not_depend_on_the_machine(tmp_path):
    """Another home and folder of profiles, another number of CPUs, a narrow terminal, and none of the extras."""
    odd = {
        "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "GROWTAS_PROFILES": str(tmp_path), "COLUMNS": "40", "TERM": "dumb",
        "LANG": "C", "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *EXTRAS], env=os.environ | odd, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {name: committed(name) for name in PAGES}


def test_no_page_names_this_machine():
    for name in PAGES:
        assert not re.search(
            rf"{re.escape(os.path.expanduser('~'))}/|{re.escape(str(REPOSITORY))}|0x[0-9a-f]{{6}}", committed(name)
        )


def test_a_description_that_is_missing_stops_the_page():
    with pytest.raises(EmptyCell, match="epochs"):
        table(("field", "meaning"), [["epochs", ""]])


def test_every_cell_of_every_table_has_text():
    for name in PAGES:
        for line in committed(name).splitlines():
            if line.startswith("|"):
                assert all(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]), (name, line)


def test_every_variable_of_the_environment_is_on_its_page():
    sources = [path.read_text(encoding="utf-8") for folder in ("growtas", "export") for path in (REPOSITORY / folder).rglob("*.py")]
    variables = {name for source in sources for name in re.findall(r"\bGROWTAS_[A-Z_]+\b", source)}
    assert variables
    assert all(f"| `{name}` |" in committed("environment.md") for name in variables)


def test_every_command_and_option_is_on_its_page():
    import typer

    page = committed("commands.md")
    for name, command in walk(typer.main.get_command(app), "growtas"):
        assert f"\n## {name}\n" in page
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for given in command.params:
            if given.param_type_name != "argument" and not given.hidden and given.name != "help" and "completion" not in given.name:
                assert all(f"`{option}`" in section for option in (*given.opts, *given.secondary_opts)), (name, given.opts)


def test_every_recipe_field_is_on_its_page():
    page = committed("recipe.md")
    for field, value in Recipe().to_dict().items():
        assert f"\n| `{field}` | " in page
        assert f"| `{json.dumps(value)}` |" in next(line for line in page.splitlines() if line.startswith(f"| `{field}` |"))


def public_names():
    for package in (api, growtas):
        for name in package.__all__:
            yield f"{package.__name__}.{name}", getattr(package, name)


@pytest.mark.parametrize(("name", "value"), [pytest.param(*item, id=item[0]) for item in public_names() if callable(item[1])])
def test_a_public_name_describes_itself_and_its_arguments(name, value):
    assert summary(value), f"{name} has no docstring"
    assert f"### {name.removeprefix('growtas.') if '.api.' in name else name}\n" in committed("python.md")
    if inspect.isroutine(value):
        given = inspect.signature(value).parameters.values()
        needed = {each.name for each in given if each.kind is not each.VAR_KEYWORD}
        assert not needed - descriptions(value, "Args").keys(), f"{name}: an argument has no description"
    else:
        assert not [member for member, each in members(value) if not summary(each)], name


def test_train_says_where_the_fields_are(monkeypatch):
    import typer

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    commands = dict(walk(typer.main.get_command(app), "growtas"))
    help_text = " ".join(commands["growtas train"].help.split())
    assert "growtas recipes --fields" in help_text
    assert "growtas recipes NAME" in help_text
    assert f"{project['urls']['Documentation']}/reference/recipe.md" in help_text
