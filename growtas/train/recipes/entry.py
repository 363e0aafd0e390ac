"""An entry of the recipe registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from growtas.train.recipe import Recipe

NOT_MEASURED = "not measured with growtas"


@dataclass(frozen=True)
class Entry:
    """A recipe of the registry. Calling the entry creates the recipe.

    Attributes:
        name: name of the recipe, as for ``--recipe``.
        build: function that creates the recipe.
        source: source of the recipe's numbers.
        expected: published accuracy and who published it; growtas does not promise it.
        measured: accuracy measured with growtas and the conditions, or :data:`NOT_MEASURED`.
    """

    name: str
    build: Callable[[], Recipe]
    source: str
    expected: str = "not reported"
    measured: str = NOT_MEASURED

    def __call__(self) -> Recipe:
        """Creates the recipe."""
        return self.build()

    @property
    def command(self) -> str:
        """Command line that runs the recipe."""
        recipe = self.build()
        verb = "finetune RUN" if recipe.method == "finetune" else "train"
        init = f" --init {recipe.init}" if recipe.init is not None else ""
        data = {"digits": "", "fashion-mnist": ""}.get(recipe.data, " --data FOLDER")
        if recipe.data.startswith("torch/"):
            data = " --data-dir FOLDER"
        return f"growtas {verb} --recipe {self.name}{data}{init}"
