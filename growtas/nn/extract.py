"""Extracts a subnet from a supernet as a static ViT."""

from __future__ import annotations

import torch

from growtas.nn.architecture import Architecture
from growtas.nn.supernet import Supernet, has_norm_scale, subnet_qkv_bias, subnet_qkv_weight, supernet_name
from growtas.nn.vit import VisionTransformer
from growtas.subnet import Subnet


def extract(supernet: Supernet, subnet: Subnet) -> VisionTransformer:
    """Returns the subnet as a static ViT in eval mode, with its own copy of the weights.

    Args:
        supernet: the supernet, which stays as it is.
        subnet: a subnet within the supernet's bounds.

    Raises:
        SubnetError: the subnet exceeds the supernet's bounds.
    """
    model = VisionTransformer(Architecture.of(supernet.space, subnet))
    with torch.no_grad():
        full = {**supernet.state_dict(), **supernet.merged_weights(subnet)}
        for name, tensor in model.state_dict().items():
            whole = full[supernet_name(supernet.space, subnet.depth, name)]
            if name.endswith("attn.qkv.weight"):
                tensor.copy_(subnet_qkv_weight(whole, tensor.shape[1], tensor.shape[0] // 3))
            elif name.endswith("attn.qkv.bias"):
                tensor.copy_(subnet_qkv_bias(whole, len(tensor) // 3, supernet.space.max_relative_position))
            else:
                tensor.copy_(whole[tuple(slice(0, size) for size in tensor.shape)])
            if has_norm_scale(name):
                tensor.mul_(supernet.space.norm_scale(subnet.embed_dim))
    return model.to(supernet.cls_token.device).eval()
