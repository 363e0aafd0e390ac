"""``growtas devices``: what ``--device`` can name."""

from __future__ import annotations

from growtas.cli.output import JsonOption, console, print_json, print_table


def devices(json_: JsonOption = False) -> None:
    """List the devices whose latency a search can limit.

    A modelled profile is a roofline from the datasheet: nothing was timed on that device.

    Example: growtas devices
    """
    from growtas.latency.profile import CPU, load_profile, profile_names

    profiles = [load_profile(name) for name in profile_names()]
    if json_:
        cpu = {"name": CPU, "kind": "measured", "precision": "fp32", "runtime": "onnxruntime", "description": "this machine"}
        print_json({"devices": [cpu, *(profile.to_dict() for profile in profiles)]})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("device", "what it is", "kind", "target", "precision", "runtime", "date", "uncertainty", "calibration error"):
        table.add_column(heading, no_wrap=True)
    table.add_row(CPU, "this machine", "measured", "-", "fp32", "onnxruntime", "when searched", "-", "-")
    for profile in profiles:
        calibration = profile.calibration
        error = f"{calibration.max_error:.1%}" + ("" if calibration.own_reference else " (of other devices)")
        table.add_row(
            profile.name,
            profile.description,
            profile.kind,
            profile.compute_capability,
            profile.precision,
            profile.runtime,
            profile.date,
            f"+-{profile.relative_uncertainty:.0%}",
            error,
        )
    print_table(table)
    console().print(
        "calibration error: largest miss on public ViT-B/16 latencies (fp16, batch 1 to 32) of the device; "
        "where there are none, of predicting the T4 from the A100 and back",
        soft_wrap=True,
    )
