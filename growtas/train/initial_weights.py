"""The weights that a training starts from: the supernet of another run, or a supernet file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from growtas.checkpoint import load_supernet
from growtas.errors import CheckpointError, ConfigError
from growtas.nn.supernet import Supernet
from growtas.runs import Run
from growtas.space import SearchSpace
from growtas.train.recipe import CONTINUING, Recipe


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a recipe's ``init`` names.

    Attributes:
        path: the ``supernet.safetensors`` file.
        run: the run of the supernet; None if ``init`` names a file.
    """

    path: Path
    run: Run | None

    @classmethod
    def of(cls, recipe: Recipe) -> InitialWeights | None:
        """Finds the weights that the recipe's ``init`` names; None without ``init``.

        Raises:
            CheckpointError: there is no such run or file, or the run has no checkpoint.
        """
        if recipe.init is None:
            return None
        path = Path(recipe.init).expanduser().absolute()
        if (path / "run.json").is_file():
            return cls(Run(path).supernet_file, Run(path))
        if path.is_file():
            return cls(path, None)
        raise CheckpointError(f"{recipe.init}: --init must name a run folder or a supernet.safetensors file; there is neither")

    def inherit(self, recipe: Recipe, data_dir: str | None) -> tuple[Recipe, str | None]:
        """Completes a recipe with settings of the run that the weights come from.

        Returns:
            The recipe and the data folder. If the recipe has no ``pixel_range``, it gets the run's. For GrowTAS+ it gets the run's
            subspaces, because A_1 must stay unchanged. Without ``data_dir``, and for the same data set, the data folder is the
            run's.
        """
        info: Mapping[str, Any] = self.run.info if self.run is not None else {}
        fields, data = info.get("recipe") or {}, info.get("data") or {}
        if recipe.pixel_range is None and fields.get("pixel_range") is not None:
            recipe = recipe.override({"pixel_range": fields["pixel_range"]})
        if recipe.method == "growtas-plus" and recipe.subspaces is None and fields.get("method") == "growtas":
            old = Recipe.from_dict(fields, source=str(self.path))
            recipe = replace(recipe, stages=old.stages, subspaces=old.subspaces)
        if data_dir is None and data.get("name") == recipe.data:
            data_dir = data.get("data_dir")
        return recipe, data_dir

    def fits(self, recipe: Recipe, classes: int) -> bool:
        """Whether the run of the weights has as many classes as the data. This matters only if the run is the recipe's teacher."""
        run = self.run
        return run is None or recipe.teacher != str(run.path.absolute()) or run.space.num_classes == classes

    def preprocess(self, record: dict[str, Any]) -> dict[str, Any]:
        """Returns a training's preprocessing record with the resizing, crop and normalisation of imported weights.

        Other weights, and those for images of another size, change nothing.
        """
        info: Mapping[str, Any] = self.run.info if self.run is not None else {}
        theirs = info.get("preprocess") or {}
        same = all(theirs.get(key) == record[key] for key in ("image_size", "in_chans"))
        return {**theirs, "decode": record["decode"]} if info.get("state") == "imported" and same else record

    def supernet(self, recipe: Recipe, classes: int) -> Supernet:
        """Loads the supernet, with a head for ``classes`` classes.

        The head is kept if its number of classes is the same, and is initialised at random otherwise.

        Raises:
            CheckpointError: the file can't be read.
            ConfigError: the supernet has another space than the recipe, or experts, or for a method that continues from a supernet
                another number of classes or a single trained subnet.
        """
        source = load_supernet(self.path)
        if source.experts is not None:
            raise ConfigError(f"{self.path}: the supernet has experts of tas-lora, and no training continues from such a supernet")
        if recipe.method in CONTINUING and self.run is not None and self.run.info.get("method") == "single":
            raise ConfigError(f"{self.path}: the run trained a single subnet; {recipe.method} needs a trained supernet")
        space = recipe.search_space().replace(num_classes=classes)
        if _shape(source.space) != _shape(space):
            raise ConfigError(f"{self.path}: the supernet has the space {source.space.name}, not {space.name} (--space)")
        if source.space.num_classes == classes:
            return source
        if recipe.method in CONTINUING:
            raise ConfigError(
                f"{self.path}: the supernet has {source.space.num_classes} classes and the data has {classes}; "
                f"{recipe.method} needs data with the supernet's classes"
            )
        supernet = Supernet(space)
        backbone = {name: value for name, value in source.state_dict().items() if not name.startswith("head.")}
        supernet.load_state_dict(backbone, strict=False)
        return supernet


def _shape(space: SearchSpace) -> SearchSpace:
    return space.replace(name="", num_classes=1)


def inherited_fields(init: Any) -> dict[str, Any]:
    """Returns space, image size and data of the run ``init`` as recipe fields; an empty mapping if ``init`` is not a run folder.

    The space of an imported run is named by the run's folder. A model of timm is also the teacher of its subnets.
    """
    path = Path(init).expanduser() if isinstance(init, str) else None
    if path is None or not (path / "run.json").is_file():
        return {}
    info = Run(path).info
    recipe: Mapping[str, Any] = info.get("recipe") or {}
    if not recipe and info["state"] == "imported":
        data, folder = info.get("data") or {}, str(path.absolute())
        teacher = {"teacher": folder} if info["method"] == "timm" else {}
        return {"space": folder, **({"data": data["name"]} if data else {}), **teacher}
    return {key: recipe[key] for key in ("space", "image_size", "data") if key in recipe}
