"""docs/reference/python.md: the public names of growtas and growtas.api, with signatures, arguments and errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any, is_typeddict

from pydantic import BaseModel

import growtas
from growtas import api, errors
from growtas.docstrings import entries, markdown, section, summary
from tests.docs.markdown import cell, code, fence, page, sentence, table

_WIDTH = 100


def python_page() -> str:
    """The page, by inspection of the public names."""
    return page(
        "Python API",
        "Everything that a command does is a function of `growtas.api`. Importing `growtas` or `growtas.api` loads neither torch "
        "nor onnx: each name is loaded when it is first used. Wrong input raises an exception of `growtas.errors`.",
        "## growtas.api",
        *(part for name in api.__all__ for part in _describe("api", api, name, api._MODULES.get(name))),
        "## growtas",
        *(part for name in growtas.__all__ for part in _describe("growtas", growtas, name, growtas._EXPORTS.get(name))),
        "## growtas.errors",
        "The command line prints the message of an exception and exits with its code.",
        fence(inspect.cleandoc(errors.__doc__ or "").split("::\n", 1)[1].split("\n\nA message")[0]),
        table(("exception", "meaning"), [[code(name), cell(summary(value))] for name, value in _exceptions()]),
    )


def _exceptions() -> Iterator[tuple[str, type[Any]]]:
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.GrowtasError):
            yield name, value


def _describe(prefix: str, package: Any, name: str, module: str | None) -> Iterator[str]:
    value, home = getattr(package, name), importlib.import_module(module or package.__name__)
    yield f"### {prefix}.{name}"
    if inspect.isroutine(value):
        yield fence(signature(f"{prefix}.{name}", value), "python")
        yield from _function(value)
    elif inspect.isclass(value):
        yield from _class(prefix, name, value)
    else:
        yield constant_doc(home, name)


def _function(value: Any) -> Iterator[str]:
    yield summary(value)
    yield from _named(value, "Args", "argument")
    if returned := section(value, "Returns"):
        yield f"**Returns** {returned}"
    yield from _named(value, "Raises", "error")


def _class(prefix: str, name: str, value: type[Any]) -> Iterator[str]:
    if not is_typeddict(value) and value.__init__ is not object.__init__ and not issubclass(value, Exception | BaseModel):
        yield fence(signature(f"{prefix}.{name}", value), "python")
    yield summary(value)
    yield from _named(value, "Args", "argument")
    yield from _named(value, "Attributes", "attribute")
    yield from _named(value, "Raises", "error")
    rows = list(_members(value))
    if rows:
        yield table(("member", "meaning"), rows)


def _named(value: Any, title: str, heading: str) -> Iterator[str]:
    """A section of a docstring as a table; nothing where there is none."""
    rows = [[code(*entry.names), sentence(entry.text)] for entry in entries(value, title)]
    if rows:
        yield table((heading, "meaning"), rows)


def members(value: type[Any]) -> Iterator[tuple[str, Any]]:
    """The public properties and methods that growtas defines in a class or its bases."""
    seen: dict[str, Any] = {}
    for base in reversed(value.__mro__):
        if base.__module__.partition(".")[0] == "growtas":
            seen |= {name: each for name, each in vars(base).items() if not name.startswith(("_", "model_"))}
    for name, each in seen.items():
        plain = each.__func__ if isinstance(each, classmethod | staticmethod) else each
        if isinstance(plain, property) or inspect.isfunction(plain):
            yield name, plain


def _members(value: type[Any]) -> Iterator[list[str]]:
    for name, each in members(value):
        if isinstance(each, property):
            yield [code(name), cell(_first(each))]
        else:
            given = [one for one in inspect.signature(each).parameters if one not in ("self", "cls")]
            yield [code(f"{name}({', '.join(given)})"), cell(_first(each))]


def _first(value: Any) -> str:
    """The first paragraph of a docstring."""
    return summary(value).partition("\n\n")[0]


def signature(name: str, value: Any) -> str:
    """A signature as Python, on one line where it fits."""
    found = inspect.signature(value)
    given, star = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            given.append("*")
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        given.append(_parameter(parameter, value))
    silent = inspect.isclass(value) or found.return_annotation in (found.empty, "None")
    returned = "" if silent else f" -> {_plain(found.return_annotation)}"
    line = f"{name}({', '.join(given)}){returned}"
    return line if len(line) <= _WIDTH else f"{name}(\n" + "".join(f"    {one},\n" for one in given) + f"){returned}"


def _parameter(parameter: inspect.Parameter, owner: Any) -> str:
    marks = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    text = marks.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_plain(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {_default(parameter.default, owner)}"
    return text


def _plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any, owner: Any) -> str:
    """A default; an object without a text of its own by its name in the module."""
    shown = repr(value)
    if " at 0x" not in shown and not shown.startswith("<"):
        return shown
    names = [name for name, other in vars(inspect.getmodule(owner)).items() if other is value]
    return names[0] if names else "..."


def constant_doc(module: Any, name: str) -> str:
    """The text below a constant in its module's source."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, after in itertools.pairwise(body):
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets) and isinstance(after, ast.Expr):
            return markdown(inspect.cleandoc(ast.literal_eval(after.value)))
    raise ValueError(f"{module.__name__}.{name} has no text below it")
