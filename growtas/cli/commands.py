"""Registers every command on the application, in the order that ``--help`` lists them."""

from __future__ import annotations

from growtas.cli.cost import cost
from growtas.cli.import_ import import_app
from growtas.cli.main import app

app.command()(cost)
app.add_typer(import_app, name="import")
