"""Copies a static ViT's weights into a supernet: the inverse of :mod:`growtas.nn.extract`."""

from __future__ import annotations

import torch

from growtas.errors import SpaceError
from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet, has_norm_scale, supernet_name
from growtas.nn.vit import VisionTransformer
from growtas.space import SearchSpace


def single_subnet_space(architecture: Architecture, name: str) -> SearchSpace:
    """Returns the smallest space that contains an architecture. Its values are the only choices of the space.

    If the blocks differ in ``num_heads`` or ``mlp_ratio``, the space also contains other subnets of the same width and depth. In a
    supernet with the model's weights (:func:`insert`) only the model itself is meaningful.

    Args:
        architecture: the architecture.
        name: name of the space.

    Raises:
        SpaceError: the architecture has no head, but every supernet has one.
    """
    if not architecture.num_classes:
        raise SpaceError(f"{name}: the model has no head, but a supernet needs one; add it with reset_classifier")
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
    """Copies a model into a supernet. Extracting the model's subnet gives the model back, bit for bit
    (up to rounding where ``full_width_norms`` scales the norms).

    All weights outside of the subnet are zero.

    Args:
        model: the model, including its head.
        space: a space with the model's geometry, whose bounds contain its architecture.

    Returns:
        The supernet on the model's device in eval mode, with copies of the weights.

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
                # From q, k, v order to the supernet's order: first row of q, of k, of v, second row of q and so on.
                width = widths[int(name.split(".")[1])]
                tensor = tensor.view(3, width, -1).transpose(0, 1).reshape(3 * width, -1)
            elif name.endswith("attn.qkv.bias") and space.max_relative_position is None:
                tensor = tensor.view(3, -1).t().reshape(-1)
            elif has_norm_scale(name):
                tensor = tensor / space.norm_scale(subnet.embed_dim)
            full[supernet_name(space, subnet.depth, name)][tuple(map(slice, tensor.shape))] = tensor
    return supernet.eval()
