"""Draws a subnet block by block as text for a terminal."""

from __future__ import annotations

from growtas.space import SearchSpace
from growtas.subnet import Subnet


def ends_of(space: SearchSpace, subnet: Subnet) -> tuple[str, str]:
    """Describes the input of the first block, and the layers after the last block."""
    size, grid = space.image_size, space.grid_size
    first = f"image {space.in_chans}x{size}x{size}, {grid}x{grid} patches and cls, embed_dim {subnet.embed_dim}"
    return first, f"mean of the patches, {space.num_classes} classes"


def subnet_text(space: SearchSpace, subnet: Subnet) -> str:
    """Returns one line per block, with a mark for each head and a bar as long as the hidden layer; ASCII characters only."""
    first, last = ends_of(space, subnet)
    widest = max(subnet.hidden_dim(i) for i in range(subnet.depth))
    lines = [first]
    for index, (heads, ratio) in enumerate(zip(subnet.num_heads, subnet.mlp_ratio, strict=True)):
        hidden = subnet.hidden_dim(index)
        marks = ("o" * heads).ljust(space.max_num_heads)
        bar = "=" * max(1, round(24 * hidden / widest))
        lines.append(f"  block {index + 1:>2}  {marks} {heads} heads  {bar:<24} mlp {ratio:g} ({hidden})")
    return "\n".join([*lines, last])
