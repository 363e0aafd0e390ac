"""The command line: ``growtas COMMAND``; one file a command, torch imported only by those that need it."""

from growtas.cli.main import app, main

__all__ = ["app", "main"]
