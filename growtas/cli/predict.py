"""``growtas predict``: classifies images with an artifact alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from growtas.cli import options
from growtas.cli.output import Notes, new_table, note, print_json, print_line, print_table

if TYPE_CHECKING:
    from growtas.api.prediction import Predictions


def predict(
    images: Annotated[list[str], Argument(help="Image files, folders of images, or patterns such as 'shoes/*.png'.")],
    model: Annotated[
        Path | None,
        Option(help="Artifact beside its manifest. Default: an artifact of the newest run that runs on this machine."),
    ] = None,
    top: Annotated[
        int | None, Option(help="Number of classes to show for each image. Default: 5, or all classes if there are fewer.")
    ] = None,
    batch: Annotated[int | None, Option(help="Images per batch. Default: the largest batch size that the export checked.")] = None,
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Classify images with an exported artifact.

    The artifact's manifest holds the preprocessing and the class names; the run is not needed. If an image can't be read, the
    command names it on stderr, classifies the other images and exits with code 1.

    Example: growtas predict shoe.png --model runs/first/export/micro-subnet.onnx
    """
    from growtas import api

    predictions = api.predict(model, images, top=top, batch=batch, threads=threads, progress=Notes())
    if json_:
        print_json(predictions.to_dict())
    else:
        _print(predictions)
    for sentence in predictions.errors:
        note(f"growtas: {sentence}")
    if predictions.errors:
        raise typer.Exit(1)


def _print(predictions: Predictions) -> None:
    classified = [image for image in predictions.images if image.error is None]
    if not classified:
        return
    table = new_table("image", "class", "probability", right=("probability",))
    for image in classified:
        for place, score in enumerate(image.top):
            table.add_row("" if place else str(image.file), score.label, f"{score.probability:.1%}")
    print_table(table)
    if predictions.errors:
        print_line(f"{len(classified)} of {len(predictions.images)} images classified")
