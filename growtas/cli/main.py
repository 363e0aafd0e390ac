"""The entry point: the one place where errors become a sentence and an exit code."""

from __future__ import annotations

import gc
import os
import sys
import time

import typer

from growtas.allocator import keep_memory
from growtas.cli.app import app
from growtas.cli.output import MAIN
from growtas.errors import GrowtasError
from growtas.interrupts import STOPPED, Interrupts, end_at_signals, exit_code

_PATIENCE_SECONDS = 5.0


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
        with Interrupts():
            _run(arguments, debug=debug)
    except KeyboardInterrupt:
        if MAIN:
            typer.echo("growtas: interrupted", err=True)
    except SystemExit as ending:
        if ending.code != STOPPED:
            raise
    sys.stdout.flush()
    end_at_signals()
    gc.freeze()  # else the interpreter looks through all that torch and timm have made once more, for a second
    sys.exit(exit_code())


def _run(arguments: list[str], *, debug: bool) -> None:
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
    except Exception as error:
        if debug:
            raise
        typer.echo(
            f"growtas: unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where)", err=True
        )
        sys.exit(1)
