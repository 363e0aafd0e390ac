"""docs/reference/commands.md: every command with its help, its arguments and its options."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import typer

from growtas.cli.app import app
from tests.docs.markdown import code, fence, page, table

_TYPES = {int: "whole number", float: "number", str: "text", Path: "path", bool: "flag"}
_EVERYWHERE = ("help", "install_completion", "show_completion")


def commands_page() -> str:
    """The page, from the tree of commands that typer builds."""
    tree = typer.main.get_command(app)
    named = list(walk(tree, "growtas"))
    listed = [[f"[`{name}`](#{name.replace(' ', '-')})", _first_line(command)] for name, command in named[1:]]
    return page(
        "Commands",
        f"{_help(tree)}",
        "`growtas COMMAND --help` prints the same. `--debug` may stand anywhere in the line.",
        "Names of files and texts inside files are printed as text, whatever they hold: a control character appears as `\\x1b`, a "
        "byte that is not UTF-8 as `\\xff`, and brackets and colons as they are. `--json` prints valid UTF-8 in which these are "
        "JSON escapes (`\\u001b`, `\\udcff`). Python's `json.loads` makes the same name of them again, as `os.listdir` gives it.",
        table(("command", "purpose"), listed),
        *(part for name, command in named for part in _describe(name, command)),
    )


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command and those below it, by the words that call them."""
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {word}")


def _describe(name: str, command: Any) -> Iterator[str]:
    arguments = [given for given in command.params if given.param_type_name == "argument"]
    options = [given for given in command.params if given.param_type_name != "argument" and not given.hidden and not _usual(given)]
    words = [f"{given.name.upper()}" if given.required else f"[{given.name.upper()}]" for given in arguments]
    yield f"## {name}"
    groups = hasattr(command, "commands")
    yield fence(" ".join([name, "[OPTIONS]" if options else "", "COMMAND" if groups else "", *words]).replace("  ", " "))
    if name != "growtas":
        yield _help(command)
    types = _types(command)
    if arguments:
        rows = [[f"`{given.name.upper()}`", _type(given, types), _default(given), given.help or ""] for given in arguments]
        yield table(("argument", "type", "default", "meaning"), rows)
    panels = dict.fromkeys(getattr(option, "rich_help_panel", None) for option in options)
    for panel in panels:
        if len(panels) > 1:
            yield f"**{panel or 'Options'}**"
        chosen = [option for option in options if getattr(option, "rich_help_panel", None) == panel]
        yield table(("option", "type", "default", "meaning"), [_row(option, types) for option in chosen])


def _usual(option: Any) -> bool:
    """Whether typer itself adds an option to every program."""
    return option.name in _EVERYWHERE


def _row(option: Any, types: dict[str, Any]) -> list[str]:
    return [code(*option.opts, *option.secondary_opts), _type(option, types), _default(option), option.help or ""]


def _types(command: Any) -> dict[str, Any]:
    """The annotations of a command's parameters."""
    callback = inspect.unwrap(command.callback) if command.callback else None
    return typing.get_type_hints(callback) if callback else {}


def _type(given: Any, types: dict[str, Any]) -> str:
    """What kind of value a parameter takes, in words."""
    kinds = [kind for kind in typing.get_args(types[given.name]) or (types[given.name],) if kind is not NoneType]
    if typing.get_origin(types[given.name]) is list:
        kinds = [types[given.name]]
    (kind,) = kinds
    several = typing.get_origin(kind) is list
    word = _TYPES[typing.get_args(kind)[0] if several else kind]
    # The declared form of the value, such as KEY=VALUE, says more than text.
    word = f"`{given.metavar}`" if given.metavar and given.metavar != given.name.upper() else word
    return f"{word}, any number of times" if several and given.param_type_name != "argument" else f"{word}s" if several else word


def _default(given: Any) -> str:
    if given.required:
        return "required"
    if isinstance(given.default, bool):
        return "on" if given.default else "off"
    return "-" if given.default in (None, (), []) else code(given.default)


def _first_line(command: Any) -> str:
    return _help(command).partition("\n\n")[0].replace("\n", " ")


def _help(command: Any) -> str:
    """The help text; lines that give an example become code."""
    text = inspect.cleandoc(command.help or "")
    return re.sub(r"^((?:Example|For)\b[^:\n]*): +(growtas .*)$", r"\1: `\2`", text, flags=re.M)
