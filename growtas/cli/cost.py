"""``growtas cost``: parameters and MACs of a subnet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from growtas.cli.output import JsonOption, console, print_json


def cost(
    subnet: Annotated[Path, typer.Argument(help="Subnet file: JSON with depth, embed_dim, num_heads and mlp_ratio.")],
    space: Annotated[str, typer.Option(help="Search space: a preset's name or a YAML file.")] = "autoformer-t",
    json_: JsonOption = False,
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
    console().print(f"{search_space.name}: {chosen}")
    console().print(f"params {costs.params:,} ({format_count(costs.params)})   MACs {costs.macs:,} ({format_count(costs.macs)})")
