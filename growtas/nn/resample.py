"""Adapts a static ViT to images with another resolution, number of channels or normalisation.

The patch size stays, so another resolution means another grid of patches. Parameters that depend on grid positions are converted:

* Absolute positions are interpolated like images (bicubic with anti-aliasing, as in timm); that of the cls token stays.
* Relative tables have a vector for each distance in patches, up to ``max_relative_position`` (m). On a grid with s times as many
  patches per side, a distance of d becomes s * d. So the new entry for d' is read from the old table at d' / s, with linear
  interpolation. Distances are differences of positions and therefore need no half-patch shift, unlike absolute positions.

If the tables were kept and distances beyond m clipped as in training, each head would see the same number of patches and so only
1 / s of the image, while the absolute positions cover all of it. Interpolation preserves the region that a head sees;
docs/notes/finetune.md has the measurements.

Three details:

* Entries for distances that do not occur in the old grid were never trained and are not used. (On 14 x 14 patches m is 14, but the
  largest distance is 13.) The entry of the largest trained distance is used for all larger distances.
* The new m is ``ceil(s * reach)``, where reach is this largest trained distance. It is the smallest m whose last entry equals the
  old entry at reach, so that clipping at the new m is equivalent to clipping at the old one.
* Entry 0, for pairs with the cls token, is not a distance and stays.
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
    """Returns a copy of a model for images of another size or number of channels. The patch size and the head stay.

    Args:
        model: the model.
        image_size: height and width in pixels, a multiple of the patch size; by default the model's. If the grid stays the same,
            positions and tables do not change.
        in_chans: 1 (grey) or 3 (RGB); by default the model's. From 3 to 1, the patch filters are summed over the channels; from 1
            to 3, each channel gets a third of them. A grey picture gives the same tokens before and after.

    Returns:
        The new model on the same device and in the same mode (training or eval), with its own weights.

    Raises:
        ConfigError: the size or the number of channels is illegal.
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
        prefix = state["pos_embed"].shape[1] - old.grid_size**2
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [grid, grid], [old.grid_size] * 2, prefix)
        for name, tensor in state.items():
            if ".relative_" in name:
                state[name] = resample_table(tensor, old.grid_size, grid)
    resampled = VisionTransformer(architecture).to(model.cls_token)
    resampled.load_state_dict(state)
    for new_block, block in zip(resampled.blocks, model.blocks, strict=True):
        new_block.drop_path = block.drop_path
    return resampled.train(model.training)


def new_max_position(max_relative_position: int, old_grid: int, new_grid: int) -> int:
    """Returns the clipping distance on another grid (see the docstring of this module); at least 1."""
    if new_grid == old_grid:
        return max_relative_position
    reach = min(max_relative_position, old_grid - 1)
    return max(math.ceil(reach * new_grid / old_grid), 1)


def resample_table(table: Tensor, old_grid: int, new_grid: int) -> Tensor:
    """Converts a relative table to another grid.

    Args:
        table: the cls entry, then the distances -m .. m, ``(2 * m + 2, head_dim)``.
        old_grid, new_grid: number of patches per side.

    Returns:
        ``(2 * m' + 2, head_dim)`` with m' = :func:`new_max_position`, in the table's data type.
    """
    m = table.shape[0] // 2 - 1
    if new_grid == old_grid:
        return table.clone()
    reach, new_m = min(m, old_grid - 1), new_max_position(m, old_grid, new_grid)
    # Float64, so that the weights at whole distances are exactly 0 and 1.
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
    """Changes the patch convolution in place, so that images with a new normalisation give the same tokens as with the old one.

    This is exact, because normalisation is affine in each channel and the patch convolution has no padding.

    Args:
        model: the model.
        old, new: (mean, std) for pixels in 0..1, one number per channel.

    Raises:
        ConfigError: the number of channels differs from the model's.
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
