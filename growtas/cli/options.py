"""Options that several commands have, and the panels of ``--help`` that options stand in."""

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

Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout instead of tables.")]
Threads = Annotated[int | None, Option(help="CPU threads; by default all that this process may use.")]
Space = Annotated[str, Option(help="Search space: a preset's name or a YAML file.")]

Config = Annotated[Path | None, RECIPE(help="YAML file with recipe fields; it overrides the recipe.")]
Settings = Annotated[
    list[str] | None,
    RECIPE("--set", metavar="KEY=VALUE", help="A recipe field, as in warmup_epochs=2; any number of them. Goes before --config."),
]
LearningRate = Annotated[float | None, RECIPE(help="Peak learning rate.")]
Seed = Annotated[int | None, RECIPE(help="Seed of everything random.")]
DataDir = Annotated[Path | None, DATA(help="Folder of the data's files.")]
PixelRange = Annotated[
    str | None,
    DATA(
        metavar="LOW,HIGH",
        help="Values of black and white in images of more than 8 bits a sample: 0,4095 for 12-bit cameras. Default: the type's.",
    ),
]
Device = Annotated[str, COMPUTING(help="cpu, cuda, or auto (a GPU where there is one).")]
Out = Annotated[Path, RUN(help="Folder for the runs.")]
Name = Annotated[str | None, RUN(help="Name of the run's folder.")]
TensorBoard = Annotated[bool, RUN("--tensorboard", help="Write the metrics for TensorBoard too.")]


def parse_numbers(option: str, legal: str, text: str | None) -> list[float] | None:
    """The numbers of an option, divided by commas; the recipe checks their values.

    Args:
        legal: what the option takes, in words.
    """
    from growtas.errors import ConfigError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be {legal}") from None


parse_pixel_range = partial(parse_numbers, "--pixel-range", "the values of black and white, as in 0,4095")


MaxError = Annotated[float | None, CHECKS(help="Largest relative error of the logits that passes.")]
MinCosine = Annotated[float | None, CHECKS(help="Least cosine of an image's logits that passes.")]
MinAgreement = Annotated[float | None, CHECKS(help="Least share of images with the same first class, 0 to 1.")]
MaxAccuracyDrop = Annotated[float | None, CHECKS(help="Most percentage points of accuracy that may be lost.")]
CheckData = Annotated[str | None, CHECKS(help="Data set to take images from, where the run's own is not at hand.")]
CheckDataDir = Annotated[str | None, CHECKS(help="Folder of that data set.")]
