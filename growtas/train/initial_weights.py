"""The weights that a training starts from: another run's supernet, or a file of one."""

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
from growtas.train.recipe import Recipe


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a recipe's ``init`` names.

    Attributes:
        path: a ``supernet.safetensors``.
        run: the run that it belongs to, where a run was named.
    """

    path: Path
    run: Run | None

    @classmethod
    def of(cls, recipe: Recipe) -> InitialWeights | None:
        """The weights that the recipe's ``init`` names, or None where it names nothing.

        Raises:
            CheckpointError: there is no run and no file of that name, or the run has no checkpoint.
        """
        if recipe.init is None:
            return None
        path = Path(recipe.init).expanduser().absolute()
        if (path / "run.json").is_file():
            return cls(Run(path).supernet_file, Run(path))
        if path.is_file():
            return cls(path, None)
        raise CheckpointError(f"{recipe.init}: --init must name a run's folder or a supernet.safetensors; neither is there")

    def inherit(self, recipe: Recipe, data_dir: str | None) -> tuple[Recipe, str | None]:
        """What a training takes from the run that it goes on from.

        Returns:
            The recipe, with that run's ``pixel_range`` if it has none of its own, and for GrowTAS+ with the growth of that run,
            whose A_1 must be left alone; and ``data_dir``, or where that run had its images if they are of the same name.
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

    def supernet(self, recipe: Recipe, classes: int) -> Supernet:
        """The weights, in the recipe's space with the data's number of classes.

        The head is kept where its number of classes is the data's, and drawn at random otherwise.

        Raises:
            CheckpointError: the file can't be read.
            ConfigError: it is of another space; for ``growtas-plus`` also of another number of classes.
        """
        source = load_supernet(self.path)
        space = recipe.search_space().replace(num_classes=classes)
        if _shape(source.space) != _shape(space):
            raise ConfigError(f"{self.path}: the supernet is of the space {source.space.name}, not of {space.name} (--space)")
        if source.space.num_classes == classes:
            return source
        if recipe.method == "growtas-plus":
            raise ConfigError(
                f"{self.path}: the supernet has {source.space.num_classes} classes and the data {classes}; "
                f"growtas-plus goes on with the classes it was trained with"
            )
        supernet = Supernet(space)
        backbone = {name: value for name, value in source.state_dict().items() if not name.startswith("head.")}
        supernet.load_state_dict(backbone, strict=False)
        return supernet


def _shape(space: SearchSpace) -> SearchSpace:
    return space.replace(name="", num_classes=1)


def inherited_fields(init: Any) -> dict[str, Any]:
    """Space, image size and data of a run that a training goes on from, as recipe fields; nothing where ``init`` is no such run."""
    path = Path(init).expanduser() if isinstance(init, str) else None
    if path is None or not (path / "run.json").is_file():
        return {}
    recipe: Mapping[str, Any] = Run(path).info.get("recipe") or {}
    return {key: recipe[key] for key in ("space", "image_size", "data") if key in recipe}
