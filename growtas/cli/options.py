"""Options that several commands share, and the panels that group options in ``--help``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

RECIPE = partial(Option, rich_help_panel="Recipe")
DATA = partial(Option, rich_help_panel="Data")
METHOD = partial(Option, rich_help_panel="Method")
COMPUTING = partial(Option, rich_help_panel="Computing")
RUN = partial(Option, rich_help_panel="Run")
CHECKS = partial(Option, rich_help_panel="Checks")

Json = Annotated[bool, Option("--json", help="Print one JSON document to stdout instead of tables.")]
Threads = Annotated[int | None, Option(help="Number of CPU threads. Default: all that this process may use.")]
Space = Annotated[str, Option(help="Search space: the name of a preset, or a YAML file.")]

Config = Annotated[Path | None, RECIPE(help="YAML file with recipe fields. It overrides --recipe.")]
Settings = Annotated[
    list[str] | None,
    RECIPE("--set", metavar="KEY=VALUE", help="Value of a recipe field, as in warmup_epochs=2; repeatable. It overrides --config."),
]
LearningRate = Annotated[float | None, RECIPE(help="Peak learning rate. Default: the recipe's.")]
Seed = Annotated[int | None, RECIPE(help="Seed of all random choices. Default: the recipe's.")]
DataDir = Annotated[Path | None, DATA(help="Folder that holds the data set's files.")]
PixelRange = Annotated[
    str | None,
    DATA(
        metavar="LOW,HIGH",
        help="Values of black and white in images with more than 8 bits, as in 0,4095 for 12 bits. Default: the data type's range.",
    ),
]
Device = Annotated[str, COMPUTING(help="Where to compute: cpu, cuda, or auto (a GPU if there is one).")]
Out = Annotated[Path, RUN(help="Folder in which the run's folder is created.")]
Name = Annotated[str | None, RUN(help="Name of the run's folder. Default: the date, the time and the space's name.")]
TensorBoard = Annotated[bool, RUN("--tensorboard", help="Also write the metrics for TensorBoard.")]


def parse_numbers(option: str, legal: str, text: str | None) -> list[float] | None:
    """Parses the comma-separated numbers of an option; the recipe checks their values.

    Args:
        legal: the option's legal values in words, for the error message.

    Raises:
        ConfigError: A part is not a number.
    """
    from growtas.errors import ConfigError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be {legal}") from None


parse_pixel_range = partial(parse_numbers, "--pixel-range", "two numbers, the values of black and white, as in 0,4095")


MaxError = Annotated[float | None, CHECKS(help="Largest relative error of the logits that passes. Default: by precision.")]
MinCosine = Annotated[float | None, CHECKS(help="Smallest cosine of an image's logits that passes. Default: by precision.")]
MinAgreement = Annotated[
    float | None, CHECKS(help="Smallest share of images with the same top-1 class that passes, 0 to 1. Default: by precision.")
]
MaxAccuracyDrop = Annotated[
    float | None, CHECKS(help="Largest loss of accuracy that passes, in percentage points. Default: by precision.")
]
CheckData = Annotated[str | None, CHECKS(help="Data set that the images are taken from. Default: the run's data set.")]
CheckDataDir = Annotated[str | None, CHECKS(help="Folder of the data set. Default: the one recorded in the run.")]
