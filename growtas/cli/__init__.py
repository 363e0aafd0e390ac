"""The command line: ``growtas COMMAND``; one file a command, torch imported only by those that need it."""

import sys

try:
    from growtas.cli.main import main
except KeyboardInterrupt:  # main() answers Ctrl-C from here on
    sys.stderr.write("growtas: interrupted\n")
    sys.exit(130)

__all__ = ["main"]
