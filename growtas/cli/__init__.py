"""The command line: ``growtas COMMAND``; one file a command, torch imported only by those that need it."""

from growtas.cli.app import app
from growtas.cli.main import main

__all__ = ["app", "main"]
