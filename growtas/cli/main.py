"""The entry point: the one place where errors become a sentence and an exit code.

It imports little, and the commands come after it, so that Ctrl-C during their imports ends with a sentence too.
"""

from __future__ import annotations

import gc
import io
import os
import sys
import time
import warnings
from typing import NoReturn

from growtas.allocator import keep_memory
from growtas.errors import GrowtasError, UsageError
from growtas.interrupts import STOPPED, Interrupts, end_at_signals, exit_code
from growtas.resources import limit_openmp

_PATIENCE_SECONDS = 5.0


def main() -> None:
    """Entry point of the ``growtas`` script."""
    try:
        with Interrupts():
            _run()
    except KeyboardInterrupt:
        if _speaks():
            sys.stderr.write("growtas: interrupted\n")
    except SystemExit as ending:
        if ending.code != STOPPED:
            raise
    sys.stdout.flush()
    end_at_signals()
    gc.freeze()  # else the interpreter looks through all that torch and timm have made once more, for a second
    sys.exit(exit_code())


def _run() -> None:
    # Must be set before torch loads OpenMP. Its threads spin while they wait for each other: beside one other busy process, eight
    # epochs of micro on digits took over 45 s spinning and 27 s sleeping; on two idle cores 20 s and 22 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    limit_openmp()
    keep_memory()
    # Pillow's own words of images that are refused in a sentence, or whose tags are broken and pixels are not.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit|Corrupt EXIF data")
    # A class name that the terminal's encoding lacks, or a file name that is not UTF-8, is escaped, and ends nothing.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Every subcommand takes --debug too: people add it at the end of the line that failed.
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        from growtas.cli.app import app

        app(arguments, prog_name="growtas")
    except Exception as error:
        # A compiled module whose import is interrupted raises one. Of a failure after a stop, such as a full disk, people are told.
        if isinstance(error, ImportError) and _stopped(error):
            raise KeyboardInterrupt from error
        if debug:
            raise
        if isinstance(error, GrowtasError):
            _fail(str(error), error.exit_code)
        # Most often a folder or a file that this user may not read.
        if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
            _fail(f"{os.fsdecode(error.filename)}: can't be read or written ({error.strerror})", UsageError.exit_code)
        _fail(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where)", 1)


def _stopped(error: BaseException | None) -> bool:
    """Whether an error comes from a request to stop."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(message: str, code: int) -> NoReturn:
    if not _speaks():
        # Of torchrun's processes the first one speaks for all; when it has failed too, torchrun ends the others meanwhile.
        time.sleep(_PATIENCE_SECONDS)
    sys.stderr.write(f"growtas: {message}\n")
    sys.exit(code)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"
