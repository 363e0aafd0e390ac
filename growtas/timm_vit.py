"""Turns timm's plain ViTs (``vit_*``, ``deit_*``, ``deit3_*``) into growtas' static ViT, which computes the same logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from growtas.checkpoint import is_model, load_model, read_weights, save_supernet
from growtas.data.decode import DecodeRules
from growtas.data.evaluation import EvaluationSet, cut_search_split, search_indices
from growtas.data.images import Subset
from growtas.data.seeding import preserved_globals
from growtas.data.sources import open_data
from growtas.data.split import complement, evenly_spaced, stratified_split
from growtas.errors import CheckpointError, ConfigError, DataError, SpaceError, brief, cause, choices
from growtas.fields import nearest
from growtas.files import sha256, write_json
from growtas.nn.architecture import Architecture
from growtas.nn.importance import by_magnitude, by_taylor, reorder
from growtas.nn.insert import insert
from growtas.nn.principal import rotate_to_principal
from growtas.nn.vit import VisionTransformer
from growtas.progress import SILENT, Progress
from growtas.runs import Run, check_run_name, create_run, read_model_manifest
from growtas.space import SearchSpace, load_space
from growtas.subnet import Subnet

_NAMED = ("pretrained", "random")
ORDERS = ("principal", "taylor", "magnitude", "none")
"""How the parts of an imported network are ordered; ``principal`` is ``taylor`` with principal directions instead of channels."""
IMPORTANCE_IMAGES = 512


def create_timm(name: str, weights: str | Path, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Creates a model of timm with its weights, in eval mode. Runs no code from a file.

    Args:
        name: the model's name in timm, with an optional tag, or a name with a source, as in ``hf-hub:timm/...``.
        weights: a file of weights (safetensors, or a checkpoint that holds only tensors), ``pretrained`` for timm's own, or
            ``random``. The numbers of classes and image channels, and the image size, are those of the file.
        options: arguments of timm's ``create_model``, such as ``embed_dim`` and ``num_heads`` for a model of another size.

    Raises:
        ConfigError: timm does not know the model, or can't create it or fetch its weights.
        CheckpointError: the file can't be read, contains more than tensors, or does not fit the model.
    """
    if ":" not in name and not timm.is_model(name):
        hint = nearest(name.partition(".")[0], timm.list_models())
        raise ConfigError(f"timm has no model {name!r}{f'; {hint}' if hint else ''}")
    options = dict(options or {})
    state = None if str(weights) in _NAMED else read_weights(weights, "the model's weights")
    if state is not None:
        head, patches = state.get("head.weight"), state.get("patch_embed.proj.weight")
        options.setdefault("num_classes", head.shape[0] if head is not None and head.ndim == 2 else 0)
        if patches is not None and patches.ndim == 4:
            options.setdefault("in_chans", patches.shape[1])
    try:
        model = _create(name, weights, options)
        if state is not None and "img_size" not in options and (size := _image_size(model, state)):
            model = _create(name, weights, {**options, "img_size": size})
    except Exception as error:  # timm, its hub and torch raise different exceptions
        more = "; name a file of weights" if str(weights) == "pretrained" else ""
        raise ConfigError(f"timm can't create {name} with {weights} weights: {cause(error)}{more}") from None
    if state is not None:
        try:
            model.load_state_dict(dict(state))
        except Exception as error:  # torch raises different exceptions
            raise CheckpointError(f"{weights}: the weights don't fit {name}: {cause(error)}") from None
    for key, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{weights}: {key} contains numbers that are not finite")
    return model.eval()


def _create(name: str, weights: str | Path, options: Mapping[str, Any]) -> nn.Module:
    with preserved_globals():  # a network draws random weights before the real ones are loaded
        if str(weights) == "random":
            torch.manual_seed(0)
        return timm.create_model(name, pretrained=str(weights) == "pretrained", **options)


def _image_size(model: Any, state: Mapping[str, Tensor]) -> int | None:
    """Returns the image size that the weights' positions were made for, if the model has another one."""
    ours, theirs = getattr(model, "pos_embed", None), state.get("pos_embed")
    if ours is None or theirs is None or theirs.ndim != 3 or theirs.shape[1] == ours.shape[1]:
        return None
    side = math.isqrt(max(theirs.shape[1] - ours.shape[1] + model.patch_embed.num_patches, 0))
    return int(side * model.patch_embed.patch_size[0]) or None


def convert(model: nn.Module, name: str) -> VisionTransformer:
    """Converts a model of timm to a static ViT with the same logits up to rounding.

    LayerScale and the positions of class token and registers become part of the weights that they act on, and absent biases are
    zero. timm's dropout has no counterpart: a fine-tuning sets its own.

    Args:
        model: the model.
        name: its name, for messages.

    Raises:
        ConfigError: the model has a part without counterpart; the message names it.
    """
    for part in _foreign_parts(model):
        raise ConfigError(
            f"{name}: growtas has no counterpart for {part}; it imports ViTs of timm with one patch size, plain blocks and a "
            f"linear head, such as deit_small_patch16_224, deit3_small_patch16_224 or vit_small_patch16_224"
        )
    assert isinstance(model, TimmViT)
    first: Any = model.blocks[0]
    hidden, dim = first.mlp.fc1.out_features, model.embed_dim
    # A ratio whose product with the width, rounded down, is the number of hidden channels.
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    depth = len(model.blocks)
    size, patch = model.patch_embed.img_size, model.patch_embed.patch_size
    assert size is not None
    architecture = Architecture(
        subnet=Subnet(dim, (first.attn.num_heads,) * depth, (ratio,) * depth),
        image_size=size[0],
        patch_size=patch[0],
        in_chans=model.patch_embed.proj.in_channels,
        num_classes=model.num_classes,
        head_dim=first.attn.head_dim,
        max_relative_position=None,
        prefix_tokens=model.num_prefix_tokens,
        global_pool=str(model.global_pool),
        fc_norm=isinstance(model.norm, nn.Identity),
        qk_norm=isinstance(first.attn.q_norm, nn.LayerNorm),
        norm_eps=float(first.norm1.eps),
    )
    converted = VisionTransformer(architecture)
    with torch.no_grad():
        converted.load_state_dict(dict(_renamed(model)))
    return converted.eval()


def _renamed(model: TimmViT) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights under the names of the static ViT."""
    dim, prefix = model.embed_dim, model.num_prefix_tokens
    yield from _layer("patch_embed", model.patch_embed.proj)
    tokens = torch.cat(
        [token for token in (model.cls_token, model.reg_token) if token is not None] or [torch.zeros(1, 0, dim)], dim=1
    )
    positions = torch.zeros(1, model.patch_embed.num_patches, dim) if model.pos_embed is None else model.pos_embed
    before = positions.shape[1] - model.patch_embed.num_patches
    assert before in (0, prefix)
    yield "cls_token", tokens + positions[:, :before] if before else tokens
    yield "pos_embed", positions[:, before:]
    block: Any
    for index, block in enumerate(model.blocks):
        at, attn, mlp = f"blocks.{index}.", block.attn, block.mlp
        yield from _layer(at + "norm1", block.norm1)
        yield from _layer(at + "attn.qkv", attn.qkv)
        if isinstance(attn.q_norm, nn.LayerNorm):
            yield from _layer(at + "attn.q_norm", attn.q_norm)
            yield from _layer(at + "attn.k_norm", attn.k_norm)
        yield from _layer(at + "attn.proj", attn.proj, block.ls1)
        yield from _layer(at + "norm2", block.norm2)
        yield from _layer(at + "fc1", mlp.fc1)
        yield from _layer(at + "fc2", mlp.fc2, block.ls2)
    yield from _layer("norm", model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm)
    yield from _layer("head", model.head)


def _layer(name: str, layer: Any, scale: Any = None) -> Iterator[tuple[str, Tensor]]:
    """Yields weight and bias of a layer, times the gammas of a LayerScale if that follows."""
    weight = layer.weight.detach().float()
    bias = torch.zeros(weight.shape[0]) if layer.bias is None else layer.bias.detach().float()
    gamma = getattr(scale, "gamma", None)
    if gamma is not None:
        weight, bias = weight * gamma.detach().float()[:, None], bias * gamma.detach().float()
    yield f"{name}.weight", weight
    yield f"{name}.bias", bias


def _foreign_parts(model: Any) -> Iterator[str]:
    """Yields the parts of a model that the static ViT lacks, in words."""
    if type(model) is not TimmViT:
        yield f"its class {type(model).__name__}"
        return
    embed = model.patch_embed
    if type(embed) is not PatchEmbed or not _absent(embed.norm):
        yield f"patch_embed ({type(embed).__name__}{'' if _absent(getattr(embed, 'norm', None)) else ' with a norm'})"
        return
    if embed.img_size is None or len(set(embed.img_size)) > 1 or len(set(embed.patch_size)) > 1:
        yield f"images of {embed.img_size} with patches of {embed.patch_size}, which are not square"
    if not _absent(model.norm_pre):
        yield "norm_pre, a norm before the first block"
    if model.global_pool not in ("avg", "token"):
        yield f"the pooling {model.global_pool!r}"
    if model.global_pool == "avg" and model.pool_include_prefix and model.num_prefix_tokens:
        yield "pool_include_prefix, a mean over class token and registers too"
    if _absent(model.norm) == _absent(model.fc_norm):
        yield "a head without exactly one norm before it"
    if type(model.head) is not nn.Linear:
        yield f"the head {type(model.head).__name__}; give weights with a linear head, or use timm's num_classes"
    if model.patch_embed.proj.in_channels not in (1, 3):
        yield f"images of {model.patch_embed.proj.in_channels} channels"
    sizes = set()
    for index, block in enumerate(model.blocks):
        if type(block) is not Block:
            yield f"blocks.{index} ({type(block).__name__})"
            return
        attn, mlp = block.attn, block.mlp
        if type(attn) is not Attention or not _absent(attn.norm) or attn.gate is not None:
            yield f"blocks.{index}.attn ({type(attn).__name__}, with a norm or gate before the projection or other products)"
            return
        if type(mlp) is not Mlp or not _absent(mlp.norm):
            yield f"blocks.{index}.mlp ({type(mlp).__name__})"
            return
        if type(mlp.act) is not nn.GELU or mlp.act.approximate != "none":
            yield f"the activation {type(mlp.act).__name__} in blocks.{index}.mlp"
        norms = [block.norm1, block.norm2, *(norm for norm in (attn.q_norm, attn.k_norm) if not _absent(norm))]
        norms.append(model.norm if not _absent(model.norm) else model.fc_norm)
        if any(not isinstance(norm, nn.LayerNorm) or norm.weight is None for norm in norms) or len({n.eps for n in norms}) > 1:
            yield f"the norms of blocks.{index} ({', '.join(sorted({type(norm).__name__ for norm in norms}))})"
            return
        sizes.add((attn.num_heads, attn.head_dim, mlp.fc1.out_features, len(norms)))
    if len(sizes) > 1:
        yield "blocks of different sizes"


def _absent(part: Any) -> bool:
    return part is None or isinstance(part, nn.Identity)


def preprocess_of(model: nn.Module) -> dict[str, Any]:
    """Returns the preprocessing record of a model of timm, without ``decode``: size, normalisation, interpolation, crop."""
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    channels = model.patch_embed.proj.in_channels  # type: ignore[union-attr]
    mean, std = (
        list(config[key]) if len(config[key]) == channels else [sum(config[key]) / len(config[key])] for key in ("mean", "std")
    )
    return {
        "image_size": model.patch_embed.img_size[0],  # type: ignore[union-attr, index]
        "in_chans": channels,
        "mean": mean,
        "std": std,
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
    }


def class_names_of(model: nn.Module) -> list[str] | None:
    """Returns the class names of a model of timm: those of its configuration, or ImageNet's synsets; None where timm has none."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config: Mapping[str, Any] = vars(model).get("pretrained_cfg") or {}
    names = config.get("label_names")
    if names is None and (subset := infer_imagenet_subset(model)):
        names = ImageNetInfo(subset).label_names()  # type: ignore[no-untyped-call]
    count = model.num_classes
    return [str(name) for name in names] if names is not None and len(names) == count else None


def elastic_space(architecture: Architecture, name: str) -> SearchSpace:
    """Returns the default space of an imported model, which is the largest subnet; the smallest has about a quarter of its MACs.

    Widths are multiples of 64, 32, 16 or 8 channels, which matrix units like; there are at most four choices for each dimension but
    the MLP ratio, which has five.
    """
    subnet = architecture.subnet
    width, heads, ratio, depth = subnet.embed_dim, subnet.num_heads[0], subnet.mlp_ratio[0], subnet.depth
    step = next(step for step in (64, 32, 16, 8, 4, 2, 1) if width % step == 0 and (step <= width / 8 or step == 1))

    def spread(largest: int, share: float, step: int = 1) -> tuple[int, ...]:
        """At most four values, from the largest down to a share of it."""
        values = range(largest, math.ceil(round(share * largest, 9)) - 1, -step)
        return tuple(values[index] for index in evenly_spaced(len(values), 4))

    return SearchSpace(
        name=name,
        embed_dim=spread(width, 0.5, step),
        num_heads=spread(heads, 2 / 3),
        mlp_ratio=tuple(ratio * eighths / 8 for eighths in range(4, 9)),
        depth=spread(depth, 0.75),
        **architecture.geometry,
    )


def import_timm(
    name: str,
    weights: str | Path = "pretrained",
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    space: str | Path | SearchSpace | None = None,
    order: str | None = None,
    images: int = IMPORTANCE_IMAGES,
    options: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    run_name: str | None = None,
    progress: Progress = SILENT,
) -> Run:
    """Turns a Vision Transformer of timm into a run, whose supernet's largest subnet is the model.

    The network's parts are ordered by importance, so that leading slices are the best small subnets; `growtas search` can use them
    at once, and `growtas train --init` trains them.

    Args:
        name, weights, options: see :func:`create_timm`. The weights may also be a ``.safetensors`` file of a plain ViT that growtas
            exported, whose architecture and records are then used.
        data: the data set that the model was fine-tuned on, as for `growtas train`; its training images give the importance, and
            the run's search evaluates on others of them.
        data_dir: folder of the data set's files.
        space: choices of the subnets: a space, or the path of a YAML file, whose fields of the network may be absent. By default
            :func:`elastic_space`.
        order: how the parts are ordered by importance. ``taylor`` (needs images) permutes heads, neurons and channels.
            ``principal`` (needs images) does the same, and rotates the channels to their principal directions. ``magnitude``
            permutes by the weights alone; ``none`` leaves them. By default principal with data, else magnitude.
        images: number of training images for the importance.
        out: folder in which the run's folder is created.
        run_name: name of the run's folder; by default date, time and the model's name.
        progress: receives the stages.

    Raises:
        ConfigError: timm can't create the model, the model has a part without counterpart, or an argument is illegal.
        CheckpointError: the weights can't be read or don't fit.
        DataError: the images can't be used, or have another number of classes than the model's head.
        SpaceError: the space does not fit the model.
        OutputError: the folder can't be written.
        UsageError: a run of this name exists.
    """
    root = Path(out)
    check_run_name(root, run_name)
    order = order or ("principal" if data is not None else "magnitude")
    if order not in ORDERS or (order in ("principal", "taylor") and data is None):
        legal = choices(ORDERS) if data is not None else "magnitude or none without data (--data)"
        raise ConfigError(f"order is {brief(order)}; legal are {legal}")
    if images < 1:
        raise ConfigError(f"images is {images}; it must be 1 or more")
    progress.stage(f"loading {name}")
    converted, record, names = _exported(weights) or _from_timm(name, weights, options)
    title = name.rpartition("/")[2].partition(".")[0]
    elastic = _space(space, converted.architecture, title)
    opened = split = None
    if data is not None:
        opened = open_data(data, data_dir, progress=progress)
        if len(opened.class_names) != converted.num_classes:
            raise DataError(
                f"{opened.title}: {len(opened.class_names)} classes, but the head of {name} has {converted.num_classes}"
            )
        names, split = list(opened.class_names), cut_search_split(opened, 0)
    importance, seen = None, 0
    if order == "magnitude":
        importance = by_magnitude(converted)
    elif opened is not None and split is not None and order != "none":
        rest = complement(search_indices(split), len(opened.train))
        some = rest[stratified_split(opened.train.labels[rest], min(images, len(rest)), np.random.default_rng(0), leave=0)]
        sample, seen = EvaluationSet(Subset(opened.train, some), record, opened.class_names), len(some)
        calibration, least = sample.images(0, seen), elastic.depth[0]
        importance = by_taylor(converted, calibration, sample.labels, least_depth=least, progress=progress)
    if importance is not None:
        reorder(converted, importance)
        elastic = elastic.replace(block_order=importance.blocks)
        if order == "principal":
            channels = rotate_to_principal(converted, calibration, elastic.embed_dim, progress)
            importance, elastic = replace(importance, channels=channels), elastic.replace(full_width_norms=True)
    info = {
        "state": "imported",
        "space": elastic.to_dict(),
        "method": "timm",
        "source": {
            "model": name,
            "weights": str(weights),
            **({} if str(weights) in _NAMED else {"sha256": sha256(weights)}),
            "options": dict(options or {}),
        },
        "importance": {"order": order, "images": seen},
        "data": None if opened is None else opened.record(),
        "preprocess": record,
        "class_names": names,
    }

    def write(folder: Path) -> None:
        checkpoint = folder / "checkpoints" / "epoch-0000"
        save_supernet(checkpoint / "supernet.safetensors", insert(converted, elastic))
        write_json(checkpoint / "state.json", {"epoch": 0, "step": 0})
        if split is not None:
            write_json(folder / "split.json", split)
        if importance is not None:
            write_json(folder / "importance.json", importance.to_dict())

    return create_run(root, run_name, info, write)


_Loaded = tuple[VisionTransformer, dict[str, Any], list[str] | None]
"""A static ViT, its preprocessing record, and its class names."""


def _from_timm(name: str, weights: str | Path, options: Mapping[str, Any] | None) -> _Loaded:
    model = create_timm(name, weights, options)
    return convert(model, name), {**preprocess_of(model), "decode": DecodeRules().to_dict()}, class_names_of(model)


def _exported(weights: str | Path) -> _Loaded | None:
    """Loads a static ViT that growtas exported, with the records of its manifest; None for another file."""
    if str(weights) in _NAMED or Path(weights).suffix != ".safetensors" or not is_model(weights):
        return None
    model, about = load_model(weights), read_model_manifest(Path(weights))
    subnet = model.architecture.subnet
    if model.architecture.max_relative_position is not None or not model.num_classes:
        raise CheckpointError(
            f"{weights}: only plain ViTs with a head can be imported; this model has a relative position or no head"
        )
    if len(set(zip(subnet.num_heads, subnet.mlp_ratio, strict=True))) > 1:
        raise CheckpointError(
            f"{weights}: the blocks have different numbers of heads or MLP ratios; only equal blocks can be imported"
        )
    if about.get("preprocess") is None:
        raise CheckpointError(f"{weights}: the manifest beside it is missing, which says how images are preprocessed")
    return model, about["preprocess"], about.get("class_names")


def _space(space: str | Path | SearchSpace | None, architecture: Architecture, name: str) -> SearchSpace:
    """Returns the space of the choices with the network's geometry; its largest subnet must be the model."""
    if space is None:
        return elastic_space(architecture, name)
    if not isinstance(space, SearchSpace):
        space = load_space(space, architecture.geometry)
    wanted, largest = architecture.subnet, space.largest
    if largest != wanted:
        raise SpaceError(
            f"{space.name}: the largest subnet is {largest}, but the model is {wanted}; the largest choices must be the model's"
        )
    bounds = {"max_embed_dim": 0, "max_num_heads": 0, "max_mlp_ratio": 0.0, "max_depth": 0}  # 0: the largest choice
    return space.replace(**bounds, **architecture.geometry)
