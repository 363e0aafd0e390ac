"""Registers every command on the application, in the order that ``--help`` lists them."""

from __future__ import annotations

from growtas.cli.bench import bench
from growtas.cli.cost import cost
from growtas.cli.devices import devices
from growtas.cli.export import export
from growtas.cli.finetune import finetune
from growtas.cli.import_ import import_app
from growtas.cli.inspect import inspect
from growtas.cli.main import app
from growtas.cli.predict import predict
from growtas.cli.profile import profile
from growtas.cli.recipes import recipes
from growtas.cli.runs import runs
from growtas.cli.search import search
from growtas.cli.serve import serve
from growtas.cli.show import show
from growtas.cli.train import train
from growtas.cli.verify import verify

app.command()(train)
app.command()(recipes)
app.command()(runs)
app.command()(show)
app.command()(search)
app.command()(export)
app.command()(verify)
app.command()(inspect)
app.command()(finetune)
app.command()(bench)
app.command()(predict)
app.command()(serve)
app.command()(cost)
app.command()(devices)
app.command()(profile)
app.add_typer(import_app, name="import")
