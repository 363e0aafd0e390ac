"""The exceptions that growtas raises on purpose.

::

    GrowtasError                exit code 1: something failed
    ├── BuildError              an artifact could not be built
    ├── ParityError             an artifact's outputs differ from its source's
    ├── MissingExtra            an optional package is not installed
    ├── TrainingError           a training can't continue (a loss is not finite)
    ├── WorkerError             a process of a search failed, or a process of a search or training has ended
    ├── UnsteadyMachine         the machine is too busy to measure latencies (growtas.latency.measured.campaign)
    └── UsageError              exit code 2: the input is wrong
        ├── SpaceError          a search space (name, YAML file, field)
        ├── SubnetError         a subnet that the space doesn't contain
        ├── UnitError           a quantity such as ``5ms`` or ``6M``
        ├── LimitError          a limit that no subnet meets
        ├── ConfigError         a recipe, an option, a growth schedule
        ├── DataError           images, labels, folders
        ├── CheckpointError     a checkpoint or artifact that can't be read
        ├── DeviceError         a device, runtime or compile target
        └── OutputError         a file or folder that can't be written

A message is one sentence: what is wrong, where, and what would be right.
"""

from __future__ import annotations

from collections.abc import Iterable

from growtas.escapes import escape

_LONGEST = 900
"""Largest number of characters in a message."""


class GrowtasError(Exception):
    """Base class of all; the command line prints the message and exits with ``exit_code``.

    A message of more than 900 characters, which repeats too much of a file or an option, loses its middle.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 304]} ... {text[-300:]}"


class BuildError(GrowtasError):
    """An artifact could not be built."""


class ParityError(GrowtasError):
    """An artifact's outputs differ from its source's by more than the tolerance."""


class TrainingError(GrowtasError):
    """A training can't continue, for example because the loss is not finite."""


class WorkerError(GrowtasError):
    """A process of a search could not evaluate its subnets, or a process of a search or training has ended."""


class MissingExtra(GrowtasError):
    """An optional package is missing; the message contains the installation command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}, which is not installed: pip install 'growtas[{extra}]'")


class UsageError(GrowtasError):
    """The input is wrong; nothing was changed."""

    exit_code = 2


class SpaceError(UsageError):
    """A search space is unknown or malformed."""


class SubnetError(UsageError):
    """A subnet is malformed, or is outside its space."""


class UnitError(UsageError):
    """A quantity has no unit, a wrong unit, or a value out of range."""


class LimitError(UsageError):
    """No subnet of the space meets the limits."""


class ConfigError(UsageError):
    """A recipe, an option or a growth schedule has a wrong value."""


class DataError(UsageError):
    """A data set can't be used."""


class CheckpointError(UsageError):
    """A checkpoint or artifact can't be read."""


class DeviceError(UsageError):
    """A device, runtime or compile target is unknown or not available."""


class OutputError(UsageError):
    """An output file or folder can't be written."""


def choices(values: Iterable[object]) -> str:
    """Lists legal values for an error message: ``a, b or c``."""
    names = [str(value) for value in values]
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " or " + names[-1]


def brief(value: object, *, quote: bool = True) -> str:
    """Returns a value as an error message shows it: in Python's notation, at most a hundred characters of it.

    Args:
        value: the value.
        quote: put a text in quotes.
    """
    if isinstance(value, str):
        text = repr(value[:200]) if quote else escape(value[:200])
    else:
        try:
            text = repr(value)
        except (ValueError, RecursionError):  # a number with thousands of digits
            text = f"a value of the type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def cause(error: BaseException | str, limit: int = 160) -> str:
    """Returns why a library failed, from its exception or message, as one line of at most ``limit`` characters."""
    text = getattr(error, "strerror", None) or str(error)
    return escape(" ".join(text[: 10 * limit].split())[:limit]) or type(error).__name__
