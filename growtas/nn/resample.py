"""Adapts a static ViT to other images: another resolution, another number of channels, another normalisation.

The patch size stays, so another resolution is another grid of patches. What a model learned by grid position is carried over:

* Absolute positions are interpolated as images are (bicubic, with anti-aliasing, as timm does); the cls token's stays.
* Relative tables hold a vector for each distance in patches, up to ``max_relative_position`` (m). On a grid of s times as many
  patches a side, what was d patches apart is s * d apart, so the entry for the distance d' is read at d' / s, between two
  entries linearly. Distances are differences of positions: patch centres need no half-patch shift, unlike absolute positions.

If the tables were kept, with distances beyond m clipped as in training, each head would look at the same number of patches and so
at 1 / s of the image, while the absolute positions are stretched over the whole of it. Interpolation keeps what a head looks at;
docs/notes/finetune.md has the measurements.

Three details:

* Distances that the old grid doesn't have (m is 14 on 14 x 14 patches, where the largest distance is 13) were never trained:
  their entries are initial noise and are not read. The entry of the largest distance that was trained stands for all beyond it.
* The new m is ``ceil(s * reach)``, where reach is that largest trained distance: the smallest m whose last entry is the old reach's
  in full, so that clipping at the new m is exactly what clipping at the old one was.
* Entry 0, for pairs with the cls token, is no distance and stays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor

from growtas.errors import ConfigError
from growtas.nn.vit import VisionTransformer


def resample(model: VisionTransformer, *, image_size: int | None = None, in_chans: int | None = None) -> VisionTransformer:
    """A copy of a model for images of another size or number of channels; the patch size and the head stay.

    Args:
        image_size: pixels a side, a multiple of the patch size; by default the model's. Where the grid stays, so do positions and
            tables, bit for bit.
        in_chans: 1 (grey) or 3 (RGB); by default the model's. From 3 to 1 the patch filters are summed over the channels, from 1
            to 3 each channel gets a third of them: a grey picture gives the same tokens either way.

    Returns:
        The model on the same device, with its own weights, in the mode (training or eval) of the given one.

    Raises:
        ConfigError: an illegal size or number of channels.
    """
    old = model.architecture
    size = old.image_size if image_size is None else image_size
    chans = old.in_chans if in_chans is None else in_chans
    if size < 1 or size % old.patch_size:
        raise ConfigError(f"image_size is {size}; it must be a multiple of the model's patch_size, which is {old.patch_size}")
    if chans not in (1, 3):
        raise ConfigError(f"in_chans is {chans}; legal are 1 (grey) and 3 (RGB)")
    grid, m = size // old.patch_size, old.max_relative_position
    if m is not None:
        m = new_max_position(m, old.grid_size, grid)
    architecture = dataclasses.replace(old, image_size=size, in_chans=chans, max_relative_position=m)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state["patch_embed.weight"] = adapt_input_conv(chans, state["patch_embed.weight"], old.in_chans)
    if grid != old.grid_size:
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [grid, grid], [old.grid_size] * 2)
        for name, tensor in state.items():
            if ".relative_" in name:
                state[name] = resample_table(tensor, old.grid_size, grid)
    resampled = VisionTransformer(architecture).to(model.cls_token)
    resampled.load_state_dict(state)
    for new_block, block in zip(resampled.blocks, model.blocks, strict=True):
        new_block.drop_path = block.drop_path
    return resampled.train(model.training)


def new_max_position(max_relative_position: int, old_grid: int, new_grid: int) -> int:
    """The clipping distance on another grid (module's text); at least 1, and the old one where the grid stays."""
    if new_grid == old_grid:
        return max_relative_position
    reach = min(max_relative_position, old_grid - 1)
    return max(math.ceil(reach * new_grid / old_grid), 1)


def resample_table(table: Tensor, old_grid: int, new_grid: int) -> Tensor:
    """A relative table for another grid.

    Args:
        table: ``(2 * m + 2, head_dim)``: the cls entry, then the distances -m .. m.
        old_grid, new_grid: patches a side.

    Returns:
        ``(2 * m' + 2, head_dim)`` with m' = :func:`new_max_position`, in the table's type.
    """
    m = table.shape[0] // 2 - 1
    if new_grid == old_grid:
        return table.clone()
    reach, new_m = min(m, old_grid - 1), new_max_position(m, old_grid, new_grid)
    # In float64: at whole distances the weights are exactly 0 and 1.
    distances = torch.arange(-new_m, new_m + 1, dtype=torch.float64, device=table.device) * old_grid / new_grid
    distances = distances.clamp(-reach, reach)
    below = distances.floor().long()
    weight = (distances - below)[:, None]
    lower, upper = table[below + m + 1], table[(below + 1).clamp(max=reach) + m + 1]
    entries = (lower * (1 - weight) + upper * weight).to(table.dtype)
    return torch.cat([table[:1], entries])


def renormalise(
    model: VisionTransformer,
    old: tuple[Sequence[float], Sequence[float]],
    new: tuple[Sequence[float], Sequence[float]],
) -> None:
    """Change the patch convolution, in place, so that images normalised in a new way give the tokens that they gave in the old one.

    Exact, since both are affine in each channel and a patch convolution pads nothing.

    Args:
        old, new: (mean, std) in 0..1 units, one number for each of the model's channels.

    Raises:
        ConfigError: another number of channels.
    """
    chans = model.architecture.in_chans
    if any(len(values) != chans for pair in (old, new) for values in pair):
        raise ConfigError(f"the model has {chans} channels; mean and std must have one number for each")
    conv = model.patch_embed
    assert conv.bias is not None
    (mean0, std0), (mean1, std1) = (
        tuple(torch.tensor(values, dtype=torch.float64, device=conv.weight.device) for values in pair) for pair in (old, new)
    )
    weight = conv.weight.detach().double()
    with torch.no_grad():
        conv.bias += (weight.sum((2, 3)) @ ((mean1 - mean0) / std0)).to(conv.bias.dtype)
        conv.weight.copy_(weight * (std1 / std0).view(1, -1, 1, 1))
