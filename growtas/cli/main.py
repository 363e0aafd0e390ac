"""The entry point: turns each error into one sentence and an exit code.

The commands are imported only after the signal handlers are set, so that Ctrl-C during their slow imports also ends in a sentence.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import time
import traceback
import warnings
from typing import Any, NoReturn

from growtas.allocator import keep_memory
from growtas.errors import GrowtasError, UsageError
from growtas.escapes import escape, escape_lines
from growtas.interrupts import STOPPED, Interrupts, end_at_signals, exit_code
from growtas.resources import limit_openmp

_PATIENCE_SECONDS = 5.0
_warning_text = warnings.formatwarning


def main() -> None:
    """Entry point of the ``growtas`` script."""
    with Interrupts():
        try:
            _run()
            code: int = 0
        except KeyboardInterrupt:
            code = STOPPED
            if _is_main_process():
                sys.stderr.write("growtas: interrupted\n")
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if code == STOPPED:
            code = exit_code()
        with contextlib.suppress(OSError):  # what prints flushes too, and has reported the error
            sys.stdout.flush()
        end_at_signals(code)
    gc.freeze()  # saves the last garbage collection, which takes a second to visit the objects of torch and timm
    sys.exit(code)


def _run() -> None:
    # Must be set before torch loads OpenMP, whose threads otherwise spin while they wait for each other. Eight epochs of micro on
    # digits beside one other busy process took over 45 s with spinning threads and 27 s with sleeping ones; on two idle cores 20 s
    # and 22 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    limit_openmp()
    keep_memory()
    # growtas itself refuses oversized images in a sentence, and broken EXIF tags leave the pixels intact.
    warnings.formatwarning = _format_warning
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit|Corrupt EXIF data")
    # Class names that the terminal's encoding lacks and file names that are not UTF-8 are escaped instead of raising an error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # --debug is accepted anywhere: people append it to the command that failed.
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if debug:
        sys.excepthook = _print_traceback
    try:
        from growtas.cli.app import app

        app(arguments, prog_name="growtas")
    except Exception as error:
        # A compiled module whose import is interrupted raises ImportError. Other errors after a stop (a full disk) are shown.
        if isinstance(error, ImportError) and _stopped(error):
            raise KeyboardInterrupt from error
        if debug:
            raise
        if isinstance(error, GrowtasError):
            _fail(str(error), error.exit_code)
        # Most often the user lacks permission to read a folder or a file.
        if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
            _fail(f"{os.fsdecode(error.filename)}: can't be read or written ({error.strerror})", UsageError.exit_code)
        if isinstance(error, OSError) and error.strerror is not None:
            _fail(f"the output can't be written ({error.strerror})", UsageError.exit_code)
        _fail(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where)", 1)


def _stopped(error: BaseException | None) -> bool:
    """Returns whether a request to stop caused the error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(message: str, code: int) -> NoReturn:
    if not _is_main_process():
        # Rank 0 reports for all processes of torchrun; if it has failed too, torchrun ends this process during the sleep.
        time.sleep(_PATIENCE_SECONDS)
    sys.stderr.write(f"growtas: {escape(message)}\n")
    sys.exit(code)


def _format_warning(message: Warning | str, *where: Any, **more: Any) -> str:
    return _warning_text(escape(str(message)), *where, **more)


def _print_traceback(*error: Any) -> None:
    sys.stderr.write(escape_lines("".join(traceback.format_exception(*error))))


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
