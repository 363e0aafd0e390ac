"""``growtas cost``: counts the parameters and MACs of a subnet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from growtas.cli import options
from growtas.cli.output import print_json, print_line, print_text


def cost(
    subnet: Annotated[Path, Argument(help="Subnet file: JSON with depth, embed_dim, num_heads and mlp_ratio.")],
    space: options.Space = "autoformer-t",
    json_: options.Json = False,
) -> None:
    """Count the parameters and MACs of a subnet.

    MACs are the multiply-accumulates for one image (many papers call them "FLOPs"). They are counted twice: without the relative
    position, as in the papers' tables, and with it.

    Example: growtas cost --space autoformer-t subnet.json
    """
    from growtas.batch import SubnetBatch
    from growtas.costs import count_costs, macs_with_relative_position
    from growtas.space import load_space
    from growtas.subnet import Subnet
    from growtas.units import format_count

    search_space = load_space(space)
    chosen = search_space.validate(Subnet.load(subnet))
    costs = count_costs(search_space, chosen)
    with_position = int(macs_with_relative_position(search_space, SubnetBatch.from_subnets([chosen]))[0])
    if json_:
        counts = {"params": costs.params, "macs": costs.macs, "macs_with_relative_position": with_position}
        print_json({"space": search_space.name, **counts, "subnet": chosen.to_dict()})
        return
    print_text(f"{search_space.name}: {chosen}")
    print_line(f"params {costs.params:,} ({format_count(costs.params)})   MACs {costs.macs:,} ({format_count(costs.macs)})")
    if search_space.max_relative_position is not None:
        print_line(f"MACs with the relative position {with_position:,} ({format_count(with_position)})")
