"""Draws a subnet block by block as text for a terminal."""

from __future__ import annotations

from growtas.space import SearchSpace
from growtas.subnet import Subnet


def ends_of(space: SearchSpace, subnet: Subnet) -> tuple[str, str]:
    """Describes the input of the first block, and the layers after the last block."""
    size, grid = space.image_size, space.grid_size
    before = {0: "", 1: " and cls"}.get(space.prefix_tokens, f" and {space.prefix_tokens} tokens before them")
    first = f"image {space.in_chans}x{size}x{size}, {grid}x{grid} patches{before}, embed_dim {subnet.embed_dim}"
    read = "first token" if space.global_pool == "token" else "mean of the patches"
    return first, f"{read}, {space.num_classes} classes"


def subnet_text(space: SearchSpace, subnet: Subnet) -> str:
    """Returns one line per block, with a mark for each head and a bar as long as the hidden layer; ASCII characters only.

    Blocks have their numbers in the supernet.
    """
    first, last = ends_of(space, subnet)
    widest = max(subnet.hidden_dim(i) for i in range(subnet.depth))
    lines = [first]
    for index, block in enumerate(space.blocks_of(subnet.depth)):
        heads, ratio, hidden = subnet.num_heads[index], subnet.mlp_ratio[index], subnet.hidden_dim(index)
        marks = ("o" * heads).ljust(space.max_num_heads)
        bar = "=" * max(1, round(24 * hidden / widest))
        lines.append(f"  block {block + 1:>2}  {marks} {heads} heads  {bar:<24} mlp {ratio:g} ({hidden})")
    return "\n".join([*lines, last])
