"""What ``growtas train --dry-run`` shows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from growtas.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from growtas.costs import Costs
    from growtas.growth import Subspace
    from growtas.train.plan import StagePlan, TrainingPlan


def show_plan(plan: TrainingPlan, as_json: bool) -> None:
    """Prints a plan that was made for a data set."""
    if as_json:
        print_json(plan.to_dict())
        return
    from rich.table import Table

    from growtas.train.recipe_file import dump_recipe
    from growtas.units import format_bytes, format_count

    recipe, memory, report = plan.recipe, plan.memory, plan.data
    assert report is not None
    title = f"{recipe.method} on {plan.space.name}, {report.name}: {plan.train_images:,} training images, {len(plan.stages)} stage"
    table = Table(title=f"{title}{'s' if len(plan.stages) > 1 else ''}")
    table.add_column("stage", justify="right")
    for column in ("subspace", "epochs"):
        table.add_column(column)
    for column in ("steps", "subnets", "params", "MACs"):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        table.add_row(*_row(stage))
    print_table(table)
    share = f", shared by {plan.processes} processes" if plan.processes > 1 else ""
    parts = ("weights", "gradients", "optimizer", "ema", "activations")
    images = f"{plan.batch_images:,} images{share}; {plan.images:,} in all"
    kinds = ", ".join(f"{part} {format_bytes(getattr(memory, part))}" for part in parts if getattr(memory, part))
    lines = {
        "steps": f"{plan.steps:,} ({plan.steps_per_epoch:,} an epoch) of {images}",
        "passes": f"{plan.passes:.3g} a step",
        "learning rate": " -> ".join(f"{rate:.3g}" for rate in plan.lr) + " (first step, highest, last step)",
        "compute": f"{format_count(plan.macs)} MACs, forward and backward",
        "memory": f"about {format_bytes(memory.total)} a process on {plan.device}: {kinds}",
    }
    if plan.time is not None:
        lines["time"] = f"about {format_duration(plan.time.seconds)}, {plan.time.label}; data, evaluation and saving come on top"
    for name, text in lines.items():
        console().print(f"{name:14}{text}", soft_wrap=True)
    for label, value in report.rows()[1:]:
        console().print(f"{label:14}{value}", soft_wrap=True)
    for remark in plan.remarks:
        console().print(f"{'note':14}{remark}", soft_wrap=True)
    console().print("\n# the recipe, as --config takes it")
    console().print(dump_recipe(recipe), end="", soft_wrap=True, markup=False)


def _row(stage: StagePlan) -> tuple[str, ...]:
    subnets = "not known yet" if stage.subnets is None else format_subnets(stage.subnets)
    epochs = f"{stage.first_epoch:g} to {stage.first_epoch + stage.epochs:g}"
    ranges = (_range(stage.smallest, stage.largest, what) for what in ("params", "macs"))
    return str(stage.number), _caps(stage.subspace), epochs, f"{stage.steps:,}", subnets, *ranges


def _caps(subspace: Subspace) -> str:
    caps = [("embed_dim", subspace.max_embed_dim), ("mlp_ratio", subspace.max_mlp_ratio)]
    return ", ".join(f"{name} <= {cap:g}" for name, cap in caps if not math.isinf(cap)) or "all"


def _range(smallest: Costs, largest: Costs, what: str) -> str:
    from growtas.units import format_count

    low, high = getattr(smallest, what), getattr(largest, what)
    return format_count(low) if low == high else f"{format_count(low)} to {format_count(high)}"


def format_subnets(count: int) -> str:
    """``1056964608`` -> ``1.06e+09``; small numbers as they are."""
    return f"{count:,}" if count < 1_000_000 else f"{count:.3g}"


def format_duration(seconds: float) -> str:
    """Seconds in the two largest units: ``45 s``, ``3 min 5 s``, ``2 h 10 min``, ``12 days 4 h``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3_570:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds < 48 * 3_600:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min"
    days, rest = divmod(round(seconds / 3_600), 24)
    return f"{days:,} days {rest} h"
