"""Draws a subnet block by block: as text for a terminal, as SVG for a page."""

from __future__ import annotations

from html import escape

from growtas.space import SearchSpace
from growtas.subnet import Subnet


def _input_and_output(space: SearchSpace, subnet: Subnet) -> tuple[str, str]:
    size, grid = space.image_size, space.grid_size
    first = f"image {space.in_chans}x{size}x{size}, {grid}x{grid} patches and cls, embed_dim {subnet.embed_dim}"
    return first, f"mean of the patches, {space.num_classes} classes"


def subnet_text(space: SearchSpace, subnet: Subnet) -> str:
    """One line a block, with a mark a head and bars as long as the hidden layers; plain characters only."""
    first, last = _input_and_output(space, subnet)
    widest = max(subnet.hidden_dim(i) for i in range(subnet.depth))
    lines = [first]
    for index, (heads, ratio) in enumerate(zip(subnet.num_heads, subnet.mlp_ratio, strict=True)):
        hidden = subnet.hidden_dim(index)
        marks = ("o" * heads).ljust(space.max_num_heads)
        bar = "=" * max(1, round(24 * hidden / widest))
        lines.append(f"  block {index + 1:>2}  {marks} {heads} heads  {bar:<24} mlp {ratio:g} ({hidden})")
    return "\n".join([*lines, last])


def subnet_svg(space: SearchSpace, subnet: Subnet) -> str:
    """The blocks from left to right as an ``<svg>`` element: circles are heads, the bar's height is the hidden layer.

    Its colours are the page's, by the classes ``box``, ``bar`` and ``head``.
    """
    first, last = _input_and_output(space, subnet)
    widest = space.max_mlp_ratio * space.max_embed_dim
    step, top, bar = 62, 34, 90
    bottom = top + bar
    width = 40 + step * subnet.depth
    parts = [f'<text x="8" y="18">{escape(first)}</text>']
    for index, (heads, ratio) in enumerate(zip(subnet.num_heads, subnet.mlp_ratio, strict=True)):
        x, hidden = 20 + step * index, subnet.hidden_dim(index)
        height = max(2.0, bar * hidden / widest)
        title = f"block {index + 1}: {heads} heads, mlp_ratio {ratio:g}, hidden layer {hidden}"
        parts.append(f"<g><title>{title}</title>")
        parts.append(f'<rect x="{x}" y="{top}" width="{step - 8}" height="{bar}" rx="4" class="box"/>')
        parts.append(f'<rect x="{x + 24}" y="{bottom - height:.1f}" width="22" height="{height:.1f}" class="bar"/>')
        gap = min(9.0, (bar - 6) / heads)
        parts += [
            f'<circle cx="{x + 12}" cy="{bottom - 6 - gap * head:.1f}" r="{min(3.5, gap / 2.2):.2f}" class="head"/>'
            for head in range(heads)
        ]
        parts.append(f'<text x="{x + 6}" y="{bottom + 16}">{heads}h, {ratio:g}x</text></g>')
    parts.append(f'<text x="8" y="{bottom + 38}">{escape(last)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 460)} {bottom + 48}" width="{max(width, 460)}" '
        f'role="img" font-family="sans-serif" font-size="12"><title>{escape(str(subnet))}</title>{"".join(parts)}</svg>'
    )
