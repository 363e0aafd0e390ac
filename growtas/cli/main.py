"""The typer application, and the one place where errors become a sentence and an exit code."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

import typer

from growtas.allocator import keep_memory
from growtas.errors import GrowtasError

app = typer.Typer(
    name="growtas",
    help="Grow a ViT supernet, search it under measured latency, and export the subnet as a verified, benchmarked engine.",
    epilog="The whole way, in an empty folder:  growtas train  |  growtas search --device a10 --max-latency 5ms  |  "
    "growtas export --format trt  |  growtas bench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)

_PATIENCE_SECONDS = 5.0


def _version(value: bool) -> None:
    if value:
        from growtas import __version__

        typer.echo(f"growtas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # --debug is read in main(), where errors end up; it is declared here for --help and for the parser.
    del debug, version


def main() -> None:
    """Entry point of the ``growtas`` script."""
    # Must be set before torch loads OpenMP. Its threads spin while they wait for each other: beside one other busy process, eight
    # epochs of micro on digits took over 45 s spinning and 27 s sleeping; on two idle cores 20 s and 22 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_memory()
    # Every subcommand takes --debug too: people add it at the end of the line that failed.
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(arguments, prog_name="growtas")
    except GrowtasError as error:
        if debug:
            raise
        if os.environ.get("RANK", "0") != "0":
            # Of torchrun's processes the first one speaks for all; when it has failed too, torchrun ends the others meanwhile.
            time.sleep(_PATIENCE_SECONDS)
        typer.echo(f"growtas: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("growtas: interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        typer.echo(
            f"growtas: unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where)", err=True
        )
        sys.exit(1)


from growtas.cli import commands  # noqa: E402  (the commands register themselves on `app`)

__all__ = ["app", "commands", "main"]
