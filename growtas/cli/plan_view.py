"""Shows the plan of ``growtas train --dry-run``."""

from __future__ import annotations

import math

from growtas.cli.output import new_table, print_facts, print_json, print_line, print_lines, print_table, print_text
from growtas.costs import Costs
from growtas.growth import Subspace
from growtas.train.plan import StagePlan, TrainingPlan
from growtas.train.recipe_file import dump_recipe
from growtas.units import format_bytes, format_count, format_seconds


def show_plan(plan: TrainingPlan, as_json: bool) -> None:
    """Prints the plan of a training on a data set."""
    if as_json:
        print_json(plan.to_dict())
        return
    recipe, memory, report = plan.recipe, plan.memory, plan.data
    assert report is not None
    title = f"{recipe.method} on {plan.space.name}, {report.title}: {plan.train_images:,} training images, {len(plan.stages)} stage"
    print_text(f"{title}{'s' if len(plan.stages) > 1 else ''}")
    table = new_table(
        "stage", "subspace", "epochs", "steps", "subnets", "params", "MACs", right=("steps", "subnets", "params", "MACs")
    )
    for stage in plan.stages:
        table.add_row(*_row(stage))
    print_table(table)
    share = f", shared by {plan.processes} processes" if plan.processes > 1 else ""
    parts = ("weights", "gradients", "optimizer", "ema", "activations")
    kinds = ", ".join(f"{part} {format_bytes(getattr(memory, part))}" for part in parts if getattr(memory, part))
    images = f"{plan.batch_images:,} images{share}; {plan.images:,} in total"
    lines = [
        ("steps", f"{plan.steps:,} ({plan.steps_per_epoch:,} per epoch) of {images}"),
        ("passes", f"{plan.passes:.3g} per step"),
        ("learning rate", " -> ".join(f"{rate:.3g}" for rate in plan.lr) + " (first step, highest, last step)"),
        ("compute", f"{format_count(plan.macs)} MACs, forward and backward"),
        ("memory", f"about {format_bytes(memory.total)} per process on {plan.device}: {kinds}"),
    ]
    if plan.time is not None:
        duration = format_seconds(plan.time.seconds)
        lines.append(("time", f"about {duration}, {plan.time.label}; loading data, evaluating and saving take more time"))
    print_facts((*lines, *report.rows()[1:], *(("note", remark) for remark in plan.remarks)))
    print_line()
    print_line("# the recipe, as a file for --config")
    print_lines(dump_recipe(recipe))


def _row(stage: StagePlan) -> tuple[str, ...]:
    subnets = "not known yet"
    if stage.subnets is not None:
        subnets = f"{stage.subnets:,}" if stage.subnets < 1_000_000 else f"{stage.subnets:.3g}"
    epochs = f"{stage.first_epoch:g} to {stage.first_epoch + stage.epochs:g}"
    ranges = (_range(stage.smallest, stage.largest, what) for what in ("params", "macs"))
    return str(stage.number), _caps(stage.subspace), epochs, f"{stage.steps:,}", subnets, *ranges


def _caps(subspace: Subspace) -> str:
    caps = [("embed_dim", subspace.max_embed_dim), ("mlp_ratio", subspace.max_mlp_ratio)]
    return ", ".join(f"{name} <= {cap:g}" for name, cap in caps if not math.isinf(cap)) or "all"


def _range(smallest: Costs, largest: Costs, what: str) -> str:
    low, high = getattr(smallest, what), getattr(largest, what)
    return format_count(low) if low == high else f"{format_count(low)} to {format_count(high)}"
