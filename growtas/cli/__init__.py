"""The command line ``growtas COMMAND``. Each command is one module; only the commands that need torch import it."""

import sys

try:
    from growtas.cli.main import main
except KeyboardInterrupt:  # once main() runs, it handles Ctrl-C itself
    sys.stderr.write("growtas: interrupted\n")
    sys.exit(130)

__all__ = ["main"]
