"""Cuts a subnet out of a supernet as a static ViT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet, subnet_qkv_weight
from growtas.nn.vit import VisionTransformer
from growtas.space import SearchSpace
from growtas.subnet import Subnet


def extract(supernet: Supernet, subnet: Subnet) -> VisionTransformer:
    """The subnet as a static ViT with its own copy of the weights, in eval mode.

    Raises:
        SubnetError: the subnet exceeds the supernet's bounds.
    """
    model = VisionTransformer(Architecture.of(supernet.space, subnet))
    model.load_state_dict(cut_state(supernet.state_dict(), supernet.space, model.state_dict()))
    return model.to(supernet.cls_token.device).eval()


def cut_state(full: Mapping[str, Tensor], space: SearchSpace, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leading slices of a supernet's state in the shapes of ``target``, qkv rows put in q, k, v order; all are copies."""
    cut: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, like in target.items():
            if name.endswith("attn.qkv.weight"):
                cut[name] = subnet_qkv_weight(full[name], like.shape[1], like.shape[0] // 3).clone()
            else:
                cut[name] = full[name][tuple(slice(0, size) for size in like.shape)].clone()
    return cut
