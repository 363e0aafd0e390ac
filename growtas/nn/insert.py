"""Copies a static ViT's weights into a supernet: the inverse of :mod:`growtas.nn.extract`."""

from __future__ import annotations

import torch

from growtas.errors import SpaceError
from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer
from growtas.space import SearchSpace


def single_subnet_space(architecture: Architecture, name: str) -> SearchSpace:
    """The smallest space that holds an architecture: its values are the only choices, their maxima the supernet's bounds.

    Where the blocks differ in ``num_heads`` or ``mlp_ratio``, the choices make other subnets too, of the same width and depth. A
    supernet with one model's weights (:func:`insert`) is good for that model only.

    Args:
        name: what the space is called.

    Raises:
        SpaceError: the architecture has no relative position or no head, which every supernet has.
    """
    if architecture.max_relative_position is None:
        raise SpaceError(f"{name}: the model has no relative position, and every supernet has; take a model that growtas extracted")
    if not architecture.num_classes:
        raise SpaceError(f"{name}: the model has no head, and every supernet has; give it one with reset_classifier")
    subnet = architecture.subnet
    return SearchSpace(
        name=name,
        embed_dim=(subnet.embed_dim,),
        num_heads=tuple(sorted(set(subnet.num_heads))),
        mlp_ratio=tuple(sorted(set(subnet.mlp_ratio))),
        depth=(subnet.depth,),
        **architecture.geometry,
    )


def insert(model: VisionTransformer, space: SearchSpace) -> Supernet:
    """A supernet in which the model is the subnet of its architecture: extracting that subnet gives the model back, bit for bit.

    Every entry outside of the subnet is zero.

    Args:
        model: its head included.
        space: of the model's geometry and with its architecture inside the bounds.

    Returns:
        The supernet on the model's device, with copies of the weights, in eval mode.

    Raises:
        SpaceError: the space has another geometry.
        SubnetError: the architecture exceeds the space's bounds.
    """
    for field, value in model.architecture.geometry.items():
        if getattr(space, field) != value:
            raise SpaceError(f"{field} of {space.name} is {getattr(space, field)}, but {value} in the model; it must be the same")
    subnet = space.validate(model.architecture.subnet)
    supernet = Supernet(space).to(model.cls_token)
    widths = [heads * space.head_dim for heads in subnet.num_heads]
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
        full = supernet.state_dict()
        for name, tensor in model.state_dict().items():
            if name.endswith("attn.qkv.weight"):
                # From q, k, v order to a supernet's: q's first row, k's first, v's first, q's second and so on.
                width = widths[int(name.split(".")[1])]
                tensor = tensor.view(3, width, -1).transpose(0, 1).reshape(3 * width, -1)
            full[name][tuple(slice(0, size) for size in tensor.shape)] = tensor
    return supernet.eval()
