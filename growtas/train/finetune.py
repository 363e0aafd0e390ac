"""Starts the fine-tuning of a static model on another data set: a run whose search space holds this model alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from safetensors import SafetensorError

from growtas.checkpoint import load_model, load_supernet, read_metadata
from growtas.costs import count_costs
from growtas.data.decode import DecodeRules
from growtas.data.preprocess import preprocess_record
from growtas.data.seeding import preserved_globals, seed_globals
from growtas.data.sources import open_data
from growtas.errors import CheckpointError, ConfigError, UsageError, choices
from growtas.files import sha256
from growtas.nn.extract import extract
from growtas.nn.insert import insert, single_subnet_space
from growtas.nn.resample import renormalise, resample
from growtas.nn.vit import VisionTransformer
from growtas.progress import SILENT, Progress
from growtas.runs import Run, read_model_manifest
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.session import Session, start_session

SUFFIX = "-finetuned"
"""Suffix of the run's space; its name starts with the name of the space that the model comes from."""
_HEAD = 2**32 + 1
"""Seed stream of the new head; different from the streams of all steps and of a supernet's initialisation."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The model that a fine-tuning starts from.

    Attributes:
        model: the static ViT with its old head.
        name: name of the search space that it comes from; without one, the name of the file.
        weights: file of the weights: the model, or the supernet that it was extracted from.
        preprocess: preprocessing of its training images; None if it is not recorded.
        class_names: classes of its old head; None if they are not recorded.
    """

    model: VisionTransformer
    name: str
    weights: Path
    preprocess: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] | None = None


def load_pretrained(
    path: str | Path, subnet: Subnet | Path | None = None, *, suffixes: Sequence[str] = (".safetensors",)
) -> Pretrained:
    """Loads the model to fine-tune.

    Args:
        path: a run (the subnet of its search is extracted from the newest checkpoint), a model that ``growtas export`` wrote
            (``NAME.safetensors``), an artifact or manifest of the same name beside the model, or a folder with a single model.
        subnet: for a run: a subnet or the file of one; it replaces the subnet of the search.
        suffixes: file name suffixes of the artifacts that may be named in place of the model.

    Raises:
        CheckpointError: there is no model at ``path``, or a file can't be read.
        SubnetError: the run's space does not contain the subnet.
        UsageError: the run has no subnet yet, or ``subnet`` is given without a run.
    """
    path = Path(path)
    if (path / "run.json").is_file():
        return _from_run(Run(path), subnet)
    if subnet is not None:
        raise UsageError(f"{path}: a subnet file needs a run, but this is not a run folder (a run folder contains run.json)")
    file = _model_file(path, suffixes)
    if _kind(file) == "supernet":
        raise CheckpointError(f"{file}: this is a whole supernet; name its run folder to fine-tune the subnet of its search")
    model = load_model(file)
    manifest = read_model_manifest(file)
    names = manifest.get("class_names")
    return Pretrained(
        model=model,
        name=manifest.get("space") or file.stem,
        weights=file,
        preprocess=manifest.get("preprocess"),
        class_names=tuple(names) if names else None,
    )


def _from_run(run: Run, subnet: Subnet | Path | None) -> Pretrained:
    file, info = run.path / "search" / "subnet.json", run.info
    if subnet is None and not file.is_file():
        raise UsageError(
            f"{run.path}: no subnet was searched yet; run `growtas search {quote(str(run.path))}`, or name one with --subnet"
        )
    names = info.get("class_names")
    return Pretrained(
        model=extract(load_supernet(run.supernet_file), subnet if isinstance(subnet, Subnet) else Subnet.load(subnet or file)),
        name=run.space.name,
        weights=run.supernet_file,
        preprocess=info.get("preprocess"),
        class_names=tuple(names) if names else None,
    )


def _model_file(path: Path, suffixes: Sequence[str]) -> Path:
    """Returns the model file for a path: the file itself, the model of the same name beside it, or the only model in a folder."""
    if path.is_dir():
        models = [file for file in sorted(path.glob("*.safetensors")) if _kind(file) == "model"]
        if len(models) != 1:
            content = f"{len(models)} models ({choices(file.name for file in models)})" if models else "neither a run nor a model"
            raise CheckpointError(f"{path}: {content} in this folder; name a run's folder or one model's .safetensors file")
        return models[0]
    if not path.exists():
        raise CheckpointError(f"{path}: no such run, model or artifact")
    stem = path.name.removesuffix(".json")
    for suffix in suffixes:
        if stem.endswith(suffix):
            model = path.with_name(stem.removesuffix(suffix) + ".safetensors")
            if model.is_file():
                return model
            raise CheckpointError(f"{path}: an artifact has no trainable weights, and there is no model {model.name} beside it")
    raise CheckpointError(f"{path}: this is not a model; name a run folder, or a {choices(suffixes)} file of growtas export")


def _kind(file: Path) -> str | None:
    """Returns the content of a safetensors file of growtas, ``model`` or ``supernet``; None for other files."""
    try:
        return read_metadata(file).get("kind")
    except (SafetensorError, OSError, ValueError):
        return None


FINETUNE_RECORD = """``finetune`` in ``run.json``: the model that a fine-tuning starts from, and what was changed in it.

Fields:
    weights (text): File of the model, or of the supernet that its subnet was cut from.
    weights_sha256 (text): SHA-256 of that file, in hexadecimal.
    subnet (object): The subnet, as in a subnet's file.
    head (text): ``kept`` where the classes are the model's own, else ``new``.
    image_size (list of whole numbers): Image size of the model before and after, in pixels.
    max_relative_position (list of whole numbers): Clipping distance of relative positions before and after, in patches.
    in_chans (list of whole numbers): Channels of the images before and after.
    test_accuracy (number): Top-1 accuracy (0 to 1) on the test set. Absent until the training is finished.
"""


def start_finetune(
    pretrained: Pretrained,
    recipe: Recipe,
    *,
    out: Path,
    name: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
    in_chans: int | None = None,
) -> Session:
    """Checks all inputs and creates the run. Its space holds the model alone, so no search is needed.

    The head is kept if the data's class names equal the model's, and is new otherwise. If the data is normalised differently from
    the model's old training images, the patch convolution is adapted, so that the old images would give the same features.

    Args:
        pretrained: the model to start from.
        recipe: recipe of method ``finetune``. Its ``space`` and ``method_options`` are replaced by the model's. Without
            ``image_size`` the model keeps its size; see :func:`growtas.nn.resample.resample`.
        out, name, data_dir, device, progress: as for :func:`growtas.api.train`.
        in_chans: number of image channels, 1 or 3; by default the model's.

    Raises:
        ConfigError: the method is another one, ``init`` is set, or the image size is illegal.
        SpaceError: the model has no relative position.
        DataError, DeviceError, OutputError, UsageError: as :func:`growtas.train.session.start_session`.
    """
    if recipe.method != "finetune":
        raise ConfigError(f"method is {recipe.method}; a fine-tuning needs the method finetune, all others are for `growtas train`")
    if recipe.init is not None:
        raise ConfigError("init is set, but a fine-tuning starts from the named model; leave it out")
    old = pretrained.model.architecture
    resampled = resample(pretrained.model, image_size=recipe.image_size, in_chans=in_chans)
    if recipe.pixel_range is None and pretrained.preprocess is not None:
        recipe = recipe.override({"pixel_range": DecodeRules.of(pretrained.preprocess).pixel_range})
    data = open_data(recipe.data, data_dir, progress=progress)
    same_classes = pretrained.class_names == data.class_names and old.num_classes == len(data.class_names)
    if not same_classes:
        with preserved_globals():
            seed_globals(recipe.seed, _HEAD)
            resampled.reset_classifier(0)  # forces a new head even if the number of classes stays the same
            resampled.reset_classifier(len(data.class_names))
    space = single_subnet_space(resampled.architecture, pretrained.name.removesuffix(SUFFIX) + SUFFIX)
    model = _renormalised(pretrained, resampled, preprocess_record(space, data))
    subnet, new = old.subnet, model.architecture
    record = {
        "weights": str(pretrained.weights.absolute()),
        "weights_sha256": sha256(pretrained.weights),
        "subnet": subnet.to_dict(),
        "head": "kept" if same_classes else "new",
        **{key: [getattr(old, key), getattr(new, key)] for key in ("image_size", "max_relative_position", "in_chans")},
    }
    # `growtas export` reads its subnet from this file; it has no accuracy because nothing was searched.
    content = {**subnet.to_dict(), **dataclasses.asdict(count_costs(space, subnet)), "space": space.name}
    return start_session(
        recipe.override({"space": space.name, "method_options": {"subnet": subnet.to_dict()}}),
        out=out,
        name=name,
        data_dir=data_dir,
        device=device,
        progress=progress,
        space=space,
        weights=lambda final_space: insert(model, final_space),
        extra={"finetune": record},
        subnet=content,
    )


def _renormalised(pretrained: Pretrained, resampled: VisionTransformer, record: Mapping[str, Any]) -> VisionTransformer:
    """Adapts the resampled model to the normalisation in ``record``. Returns it unchanged if the old normalisation is unknown."""
    before = pretrained.preprocess
    if before is None or (list(before["mean"]), list(before["std"])) == (record["mean"], record["std"]):
        return resampled
    # The number of channels is changed on raw pixel values, because the channels may have different normalisations.
    raw = copy.deepcopy(pretrained.model)
    renormalise(raw, (before["mean"], before["std"]), _raw(raw))
    raw = resample(raw, in_chans=resampled.architecture.in_chans)
    renormalise(raw, _raw(raw), (record["mean"], record["std"]))
    resampled.patch_embed.load_state_dict(raw.patch_embed.state_dict())
    return resampled


def _raw(model: VisionTransformer) -> tuple[list[float], list[float]]:
    chans = model.architecture.in_chans
    return [0.0] * chans, [1.0] * chans
