"""``growtas predict``: the best classes of images, from an artifact alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from growtas.cli.output import JsonOption, console, note, print_json, print_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from growtas.export.serving.predictor import Predictor


def predict(
    images: Annotated[list[str], typer.Argument(help="Image files, folders of images, or patterns such as 'shoes/*.png'.")],
    model: Annotated[
        Path | None, typer.Option(help="Artifact with its manifest beside it; by default the newest ONNX file of the newest run.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to show for each image.")] = 5,
    batch: Annotated[int | None, typer.Option(help="Images to run at once; by default what the export checked.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all that this process may use.")] = None,
    json_: JsonOption = False,
) -> None:
    """Classify images with an exported artifact; its manifest has the preprocessing and the class names, the run may be gone.

    An image that can't be read is named on stderr, the others are answered, and the exit code is 1.

    Example: growtas predict shoe.png --model runs/first/export/micro-subnet.onnx
    """
    from growtas.errors import ConfigError
    from growtas.export.serving.image_files import find_images
    from growtas.export.serving.predictor import Predictor, newest_artifact
    from growtas.runs import find_run

    paths = find_images(images)
    if model is None:
        model = newest_artifact(find_run(None).path / "export")
        note(f"model: {model} (the newest)")
    with Predictor(model, threads=threads) as predictor:
        most = predictor.signature.max_batch
        if not 1 <= top <= predictor.signature.classes:
            raise ConfigError(f"--top is {top}; the artifact has {predictor.signature.classes} classes")
        if batch is not None and not 1 <= batch <= most:
            raise ConfigError(f"--batch is {batch}; the artifact was exported for batches from 1 to {most}")
        answers = _answers(predictor, paths, top, batch or most)
        if json_:
            about = predictor.info
            document = {"model": str(model), "kind": predictor.manifest["kind"], "runtime": f"{about.runtime} {about.version}"}
            print_json({**document, "images": answers})
        else:
            _print(answers)
    broken = [answer["error"] for answer in answers if "error" in answer]
    for sentence in broken:
        typer.echo(f"growtas: {sentence}", err=True)
    if broken:
        raise typer.Exit(1)


def _answers(predictor: Predictor, paths: list[Path], top: int, batch: int) -> list[dict[str, Any]]:
    """One entry an image: ``file`` and ``top`` and ``logits``, or ``file`` and ``error``."""
    from growtas.errors import DataError
    from growtas.export.serving.image_files import read_image

    answers: list[dict[str, Any]] = []
    waiting: list[tuple[dict[str, Any], NDArray[Any]]] = []
    for path in paths:
        answer: dict[str, Any] = {"file": str(path)}
        answers.append(answer)
        try:
            waiting.append((answer, predictor.prepare(read_image(path))))
        except DataError as error:
            answer["error"] = str(error)
        # Not all at once: a folder of a million images must not lie in memory.
        if len(waiting) == batch:
            _run(predictor, waiting, top, batch)
            waiting = []
    _run(predictor, waiting, top, batch)
    return answers


def _run(predictor: Predictor, waiting: list[tuple[dict[str, Any], NDArray[Any]]], top: int, batch: int) -> None:
    import numpy as np

    from growtas.export.serving.predictor import group

    for indices in group([image for _, image in waiting], batch):
        logits = predictor.run(np.stack([waiting[index][1] for index in indices]))
        for index, values in zip(indices, logits, strict=True):
            waiting[index][0].update(top=predictor.top(values, top), logits=values.tolist())


def _print(answers: list[dict[str, Any]]) -> None:
    from rich.table import Table

    answered = [answer for answer in answers if "top" in answer]
    if not answered:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    for answer in answered:
        for place, found in enumerate(answer["top"]):
            table.add_row("" if place else answer["file"], found["label"], f"{found['probability']:.1%}")
    print_table(table)
    if len(answered) < len(answers):
        console().print(f"{len(answered)} of {len(answers)} images answered")
