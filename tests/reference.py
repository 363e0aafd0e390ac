"""Independent oracles: the formulas written out, slow and plain. Nothing here imports growtas.nn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from growtas.data.evaluation import EvaluationSet


def naive_relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_tables: tuple[Tensor, Tensor],
    value_tables: tuple[Tensor, Tensor],
    rows: int,
    cols: int,
    scale: float,
) -> Tensor:
    """AutoFormer's attention with its (N, N, head_dim) tensors of relative keys and values.

    q, k, v: (batch, heads, N, head_dim), N = rows * cols + 1 with cls first; tables: (vertical, horizontal), each
    (2 m + 2, head_dim), entry 0 for every pair with cls.
    """
    clip = (key_tables[0].shape[0] - 2) // 2
    tokens = rows * cols + 1
    position = torch.arange(rows * cols, device=q.device)
    row, col = position // cols, position % cols
    vertical = torch.zeros(tokens, tokens, dtype=torch.long, device=q.device)
    horizontal = torch.zeros(tokens, tokens, dtype=torch.long, device=q.device)
    vertical[1:, 1:] = (row[None, :] - row[:, None]).clamp(-clip, clip) + clip + 1
    horizontal[1:, 1:] = (col[None, :] - col[:, None]).clamp(-clip, clip) + clip + 1
    relative_key = key_tables[0][vertical] + key_tables[1][horizontal]
    relative_value = value_tables[0][vertical] + value_tables[1][horizontal]
    logits = torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, relative_key)
    weights = (scale * logits).softmax(dim=-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v) + torch.einsum("bhij,ijd->bhid", weights, relative_value)


@torch.inference_mode()
def count_correct(model: Callable[[Tensor], Tensor], images: EvaluationSet) -> int:
    """The number of images that get the right class; ``model`` maps float32 images to logits ``(n, classes)``."""
    return sum(int((model(batch).argmax(1).cpu() == labels).sum()) for batch, labels in images.batches(256))
