"""The command line ``growtas COMMAND``. Each command is one module; only the commands that need torch import it."""

import contextlib
import signal
import sys


def _stop(number: int, _: object) -> None:
    sys.stderr.write("growtas: interrupted\n")
    sys.exit(128 + number)


_before = {}
try:
    # Once main() runs, it handles the signals itself. Threads that can't handle signals import this module for other purposes.
    with contextlib.suppress(ValueError):
        for _number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(_number) is not None:  # None is a handler of a program that Python is part of
                _before[_number] = signal.signal(_number, _stop)
    from growtas.cli.main import main
finally:
    for _number, _handler in _before.items():
        signal.signal(_number, _handler)

__all__ = ["main"]
