"""An entry of the recipe registry: the function that makes the recipe, the source of its numbers, and its known accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from growtas.train.recipe import Recipe

NOT_MEASURED = "not measured with growtas"


@dataclass(frozen=True)
class Entry:
    """A recipe by its name; calling it gives the recipe.

    Attributes:
        name: what ``--recipe`` takes.
        build: makes the recipe.
        source: where its numbers come from.
        expected: accuracy that somebody reports, and who; never a promise.
        measured: accuracy that was measured with growtas, and on what, or :data:`NOT_MEASURED`.
    """

    name: str
    build: Callable[[], Recipe]
    source: str
    expected: str = "not reported"
    measured: str = NOT_MEASURED

    def __call__(self) -> Recipe:
        """The recipe."""
        return self.build()

    @property
    def command(self) -> str:
        """The command line that runs it."""
        recipe = self.build()
        verb = "finetune RUN" if recipe.method == "finetune" else "train"
        init = f" --init {recipe.init}" if recipe.init is not None else ""
        data = {"digits": "", "fashion-mnist": ""}.get(recipe.data, " --data FOLDER")
        if recipe.data.startswith("torch/"):
            data = " --data-dir FOLDER"
        return f"growtas {verb} --recipe {self.name}{data}{init}"
