"""The typer application: every command, in the order that ``--help`` lists them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from growtas.cli.bench import bench
from growtas.cli.cost import cost
from growtas.cli.devices import devices
from growtas.cli.doctor import doctor
from growtas.cli.export import export
from growtas.cli.finetune import finetune
from growtas.cli.import_ import import_app
from growtas.cli.inspect import inspect
from growtas.cli.output import note, print_line
from growtas.cli.predict import predict
from growtas.cli.profile import profile
from growtas.cli.recipes import recipes
from growtas.cli.report import report
from growtas.cli.runs import runs
from growtas.cli.search import search
from growtas.cli.serve import serve
from growtas.cli.show import show
from growtas.cli.train import train
from growtas.cli.verify import verify
from growtas.escapes import escape
from growtas.interrupts import STOPPED

_USAGE_ERROR = cast("type[Exception]", typer.BadParameter.__base__)


class _Commands(TyperGroup):
    """The commands, with clearer endings than typer's own."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Parses the options before the command."""
        with _ending_well():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Parses the command's options and runs it."""
        with _ending_well():
            return super().invoke(ctx)


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:  # typer would say nothing
        note("growtas: interrupted")
        raise typer.Exit(STOPPED) from None
    except _USAGE_ERROR as error:  # typer prints it, with words of the command line, which can be names of files
        error.message = escape(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="growtas",
    help="Train a Vision Transformer supernet, search it under latency limits, and export the subnet as a verified engine.",
    epilog="Example, in an empty folder:  growtas train  |  growtas search --device a10 --max-latency 5ms  |  "
    "growtas export --format trt  |  growtas bench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    cls=_Commands,
)


def _version(value: bool) -> None:
    if value:
        from growtas import __version__

        print_line(f"growtas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback when a command fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # main() reads --debug, because it handles the errors; the declaration here serves --help and the parser.
    del debug, version


app.command()(train)
app.command()(recipes)
app.command()(runs)
app.command()(show)
app.command()(report)
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
app.command()(doctor)
app.command()(profile)
app.add_typer(import_app, name="import")
