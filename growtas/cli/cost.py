"""``growtas cost``: parameters and MACs of a subnet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from growtas.cli import options
from growtas.cli.output import print_json, print_line


def cost(
    subnet: Annotated[Path, Argument(help="Subnet file: JSON with depth, embed_dim, num_heads and mlp_ratio.")],
    space: options.Space = "autoformer-t",
    json_: options.Json = False,
) -> None:
    """Count the parameters and MACs of a subnet.

    MACs are multiply-accumulates for one image (many papers print them as "FLOPs").

    Example: growtas cost --space autoformer-t subnet.json
    """
    from growtas.costs import count_costs
    from growtas.space import load_space
    from growtas.subnet import Subnet
    from growtas.units import format_count

    search_space = load_space(space)
    chosen = search_space.validate(Subnet.load(subnet))
    costs = count_costs(search_space, chosen)
    if json_:
        print_json({"space": search_space.name, "params": costs.params, "macs": costs.macs, "subnet": chosen.to_dict()})
        return
    print_line(f"{search_space.name}: {chosen}")
    print_line(f"params {costs.params:,} ({format_count(costs.params)})   MACs {costs.macs:,} ({format_count(costs.macs)})")
