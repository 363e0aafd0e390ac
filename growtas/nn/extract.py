"""Extracts a subnet from a supernet as a static ViT."""

from __future__ import annotations

import torch

from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet, subnet_qkv_weight
from growtas.nn.vit import VisionTransformer
from growtas.subnet import Subnet


def extract(supernet: Supernet, subnet: Subnet) -> VisionTransformer:
    """Returns the subnet as a static ViT in eval mode, with its own copy of the weights.

    Raises:
        SubnetError: the subnet exceeds the supernet's bounds.
    """
    model = VisionTransformer(Architecture.of(supernet.space, subnet))
    full = supernet.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("attn.qkv.weight"):
                tensor.copy_(subnet_qkv_weight(full[name], tensor.shape[1], tensor.shape[0] // 3))
            else:
                tensor.copy_(full[name][tuple(slice(0, size) for size in tensor.shape)])
    return model.to(supernet.cls_token.device).eval()
