"""Fine-tuning an extracted model on another data set, as an ordinary run whose space is the model's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from growtas.checkpoint import load_model, load_supernet
from growtas.costs import count_costs
from growtas.data.evaluation import EvaluationSet, count_correct
from growtas.data.images import Track, silent
from growtas.data.preprocess import preprocess_record
from growtas.data.seeding import preserved_globals, seed_globals
from growtas.data.sources import open_data
from growtas.errors import CheckpointError, ConfigError, UsageError, choices
from growtas.files import read_json, sha256, write_json
from growtas.nn.extract import extract
from growtas.nn.insert import insert, single_subnet_space
from growtas.nn.resample import renormalise, resample
from growtas.nn.vit import VisionTransformer
from growtas.runs import Run
from growtas.subnet import Subnet
from growtas.train.recipe import Recipe
from growtas.train.recipe_file import read_layer
from growtas.train.recipes import find_recipe
from growtas.train.session import Session, start_session

SUFFIX = "-finetuned"
"""What a run's space is called after: the name of the one that the model comes from, and this."""
_SMALL_IMAGE = 64
_HEAD = 2**32 + 1
"""Seed stream of the new head: above every step's, and beside the one of a supernet's initialisation."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a fine-tuning starts from.

    Attributes:
        model: the static ViT, with its old head.
        name: of the space that it was searched in, or of the file.
        weights: the file that the weights came from: the model, or the supernet that it was cut from.
        preprocess: how its images were prepared, where that is recorded.
        class_names: of its old head, where they are recorded.
    """

    model: VisionTransformer
    name: str
    weights: Path
    preprocess: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] | None = None


def load_start(path: str | Path, subnet: Path | None = None) -> Pretrained:
    """The model to fine-tune.

    Args:
        path: a run (its searched subnet is cut from the newest checkpoint), a model that ``growtas export`` wrote
            (``NAME.safetensors``), an artifact or manifest of the same name beside one, or a folder that holds one model.
        subnet: for a run: a subnet file in place of what the search chose.

    Raises:
        CheckpointError: nothing there that can be fine-tuned, or a file that can't be read.
        SubnetError: the run's space does not hold the subnet.
        UsageError: the run has no subnet yet, or ``subnet`` is given without a run.
    """
    path = Path(path)
    if (path / "run.json").is_file():
        return _from_run(Run(path), subnet)
    if subnet is not None:
        raise UsageError(f"{path}: a subnet file is for a run, and this is none (a run folder holds a run.json)")
    file = _model_file(path)
    if _kind(file) == "supernet":
        raise CheckpointError(f"{file}: this is a whole supernet; name its run's folder, and the subnet of its search is cut out")
    model = load_model(file)
    manifest_file = file.with_name(file.name + ".json")
    manifest = read_json(manifest_file, "manifest") if manifest_file.is_file() else {}
    names = manifest.get("class_names")
    return Pretrained(
        model=model,
        name=manifest.get("space") or file.stem,
        weights=file,
        preprocess=manifest.get("preprocess"),
        class_names=tuple(names) if names else None,
    )


def _from_run(run: Run, subnet: Path | None) -> Pretrained:
    file, info = subnet or run.path / "search" / "subnet.json", run.info
    if subnet is None and not file.is_file():
        raise UsageError(f"{run.path}: no subnet was searched yet; run `growtas search {run.path}`, or name one with --subnet")
    names = info.get("class_names")
    return Pretrained(
        model=extract(load_supernet(run.supernet), Subnet.load(file)),
        name=run.space.name,
        weights=run.supernet,
        preprocess=info.get("preprocess"),
        class_names=tuple(names) if names else None,
    )


def _model_file(path: Path) -> Path:
    """The model that a path means: itself, the one of the same name beside it, or the only one in the folder."""
    if path.is_dir():
        models = [file for file in sorted(path.glob("*.safetensors")) if _kind(file) == "model"]
        if len(models) != 1:
            found = f"{len(models)} models ({choices(file.name for file in models)})" if models else "neither a run nor a model"
            raise CheckpointError(f"{path}: {found} in this folder; name a run's folder or one model's .safetensors file")
        return models[0]
    if not path.exists():
        raise CheckpointError(f"{path}: no such run, model or artifact")
    stem = path.name.removesuffix(".json")
    for suffix in (".safetensors", ".onnx", ".plan"):
        if stem.endswith(suffix):
            model = path.with_name(stem.removesuffix(suffix) + ".safetensors")
            if model.is_file():
                return model
            raise CheckpointError(f"{path}: an artifact has no weights to train, and the model {model.name} is not beside it")
    raise CheckpointError(
        f"{path}: not a model; legal are a run's folder, or a .safetensors, .onnx or .plan file of growtas export"
    )


def _kind(file: Path) -> str | None:
    """What a safetensors file of growtas holds: ``model`` or ``supernet``; None for other files."""
    import json

    try:
        with safe_open(file, "pt") as opened:
            return str(json.loads((opened.metadata() or {}).get("growtas", "{}")).get("kind"))
    except (SafetensorError, OSError, ValueError):
        return None


def finetune_recipe(data: str, image_size: int) -> Recipe:
    """``growtas finetune MODEL --data FOLDER``: a starting point for a model on a set of some thousand images.

    AdamW with little regularisation. Up to 64 pixels images are held in memory, shifted and flipped, and the learning rate is a
    third of what ``micro`` is trained with; larger ones get timm's transforms and a tenth of the usual rate. A starting point: the
    only trial so far is in docs/finetune.md. The paper's own recipes are those called transfer-....
    """
    small = image_size <= _SMALL_IMAGE
    return Recipe(
        name="finetune",
        space="finetune",
        data=data,
        method="finetune",
        epochs=20,
        batch_size=64,
        lr=1e-3 if small else 1e-4,
        min_lr=1e-6,
        warmup_epochs=1,
        weight_decay=0.05,
        label_smoothing=0.1,
        augment="light" if small else "paper",
        hflip=0.0 if data == "digits" else 0.5,
        auto_augment=None if small else "rand-m9-mstd0.5-inc1",
        workers=0 if small else 4,
    )


def resolve_finetune(
    image_size: int,
    config: Path | None,
    options: Mapping[str, Any],
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a fine-tuning: a named one or :func:`finetune_recipe`, then the file's fields, then ``settings`` and options.

    Args:
        image_size: pixels a side of the model to be trained.
        config: YAML file with recipe fields; its ``recipe`` names the one that it goes on from.
        options: fields that named options give.
        recipe: name of a recipe; overrides the file's.
        settings: fields that ``--set`` gives.

    Raises:
        ConfigError: an unknown recipe or field, a wrong value, a recipe of another method, or no data.
    """
    base, fields = read_layer(config) if config else (None, {})
    command_line = {**(settings or {}), **options}
    name = recipe or base
    data = {**fields, **command_line}.get("data")
    if name is None and data is None:
        raise ConfigError("a fine-tuning needs images: name them with --data")
    start = find_recipe(name)() if name is not None else finetune_recipe(str(data), image_size)
    if start.method != "finetune":
        raise ConfigError(f"the recipe {start.name} has the method {start.method}; run it with `growtas train`")
    return start.override(fields, command_line)


def start_finetune(
    start: Pretrained,
    recipe: Recipe,
    *,
    out: Path,
    name: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    track: Track[Any] = silent,
    image_size: int | None = None,
    in_chans: int | None = None,
) -> Session:
    """Check everything and create the run: its space holds the model alone, its weights are the model's, its subnet is chosen.

    The head is a new one, unless the data's class names are the model's own. Where the data is normalised in another way than the
    model's was, the patch convolution takes that up, so that the model sees what it is used to.

    Args:
        recipe: of method ``finetune``; its ``data`` is opened, its ``space`` and ``method_options`` are the model's.
        image_size: pixels a side, by default the model's; see :func:`growtas.nn.resample.resample`.
        in_chans: 1 or 3, by default the model's.

    Raises:
        ConfigError: another method, an ``init`` besides the model, or an illegal image size.
        SpaceError: the model has no relative position.
        DataError, DeviceError, OutputError, UsageError: as :func:`growtas.train.session.start_session`.
    """
    if recipe.method != "finetune":
        raise ConfigError(f"method is {recipe.method}; a fine-tuning has the method finetune, all others are for `growtas train`")
    if recipe.init is not None:
        raise ConfigError("init is set, but a fine-tuning starts from the model that is named; leave it out")
    old = start.model.architecture
    resampled = resample(start.model, image_size=image_size, in_chans=in_chans)
    data = open_data(recipe.data, data_dir, track=track)
    same_classes = start.class_names == data.class_names and old.num_classes == len(data.class_names)
    if not same_classes:
        _replace_head(resampled, len(data.class_names), recipe.seed)
    space = single_subnet_space(resampled.architecture, start.name.removesuffix(SUFFIX) + SUFFIX)
    model = _renormalised(start, resampled, preprocess_record(space, data))
    subnet = old.subnet
    new = model.architecture
    record = {
        "weights": str(start.weights.absolute()),
        "weights_sha256": sha256(start.weights),
        "subnet": subnet.to_dict(),
        "head": "kept" if same_classes else "new",
        "image_size": [old.image_size, new.image_size],
        "max_relative_position": [old.max_relative_position, new.max_relative_position],
        "in_chans": [old.in_chans, new.in_chans],
    }
    session = start_session(
        recipe.override({"space": space.name, "method_options": {"subnet": subnet.to_dict()}}),
        out=out,
        name=name,
        data_dir=data_dir,
        device=device,
        track=track,
        space=space,
        weights=lambda known: insert(model, known),
        extra={"finetune": record},
    )
    if session.world.is_main:
        _write_subnet(session.run, subnet)
    return session


def _replace_head(model: VisionTransformer, num_classes: int, seed: int) -> None:
    with preserved_globals():
        seed_globals(seed, _HEAD)
        model.reset_classifier(0)  # also where the number of classes stays, the classes are others
        model.reset_classifier(num_classes)


def _renormalised(start: Pretrained, resampled: VisionTransformer, record: Mapping[str, Any]) -> VisionTransformer:
    """The resampled model for images normalised as ``record`` says; as it is where the old normalisation isn't known."""
    before = start.preprocess
    if before is None or (list(before["mean"]), list(before["std"])) == (record["mean"], record["std"]):
        return resampled
    # Channels are added up or divided on raw values: their normalisations need not be alike.
    raw = copy.deepcopy(start.model)
    renormalise(raw, (before["mean"], before["std"]), _raw(raw))
    chans = resampled.architecture.in_chans
    raw = resample(raw, in_chans=chans)
    renormalise(raw, _raw(raw), (record["mean"], record["std"]))
    resampled.patch_embed.load_state_dict(raw.patch_embed.state_dict())
    return resampled


def _raw(model: VisionTransformer) -> tuple[list[float], list[float]]:
    """Mean and std of values that are not normalised."""
    chans = model.architecture.in_chans
    return [0.0] * chans, [1.0] * chans


def _write_subnet(run: Run, subnet: Subnet) -> None:
    """The file that `growtas export` finds its subnet in; nothing was searched, so it holds no accuracy."""
    space = run.space
    costs = count_costs(space, subnet)
    content = {**subnet.to_dict(), "params": costs.params, "macs": costs.macs, "space": space.name}
    write_json(run.path / "search" / "subnet.json", content)


def finetuned_accuracy(session: Session) -> float:
    """Accuracy (0..1) of a finished fine-tuning's model on the test images; kept in ``run.json`` under ``finetune``.

    The training's own three accuracies say the same where every block of the model is alike. Elsewhere they are of other subnets of
    its space, which nobody trained.
    """
    run, info = session.run, session.run.info
    subnet = Subnet.from_dict(info["finetune"]["subnet"], source=str(run.path / "run.json"))
    test = EvaluationSet(session.data.test, info["preprocess"], session.data.class_names)
    model = extract(load_supernet(run.supernet), subnet).to(session.device)
    accuracy = count_correct(lambda images: model(images.to(session.device)), test) / len(test)
    if session.world.is_main:
        run.update(finetune={**info["finetune"], "test_accuracy": accuracy})
    return accuracy
