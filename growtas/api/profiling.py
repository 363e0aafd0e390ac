"""``profile``: measures a space's latencies on this machine and fits the latency model that a search uses."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import ConfigError, DeviceError
from growtas.export.benchmark.stopwatch import ArchitectureTurns
from growtas.export.benchmark.targets import check_device, check_runtime, hardware_of
from growtas.export.benchmark.timing import clocks, environment
from growtas.files import check_output_file, write_json
from growtas.latency import at_hand
from growtas.latency.at_hand import CPU, device_name, devices_at_hand
from growtas.latency.catalogue import measured_file_name, measured_profiles, near_name, usual_target
from growtas.latency.estimate import RUNTIMES
from growtas.latency.measured.campaign import Bounds, Campaign, Setup
from growtas.latency.measured.fit import ADAPTED_BELOW
from growtas.latency.measured.profile import MeasuredProfile
from growtas.latency.measured.sampling_plan import plan_profile
from growtas.latency.modelled.profile import device_names, shipped_names, user_folder
from growtas.locks import exclusive
from growtas.progress import SILENT, Progress
from growtas.resources import available_threads, check_threads, other_work
from growtas.space import load_space


@dataclass(frozen=True)
class ProfileResult:
    """A measured profile and its files.

    Attributes:
        profile: the samples and the fitted model.
        file: the profile's file.
        seconds: duration of the call.
    """

    profile: MeasuredProfile
    file: Path
    seconds: float

    @property
    def journal(self) -> Path:
        """The journal of the samples; a stopped profile continues from it."""
        return self.file.with_suffix(".jsonl")

    def to_dict(self) -> dict[str, Any]:
        """Returns the content that ``growtas profile --json`` prints."""
        files = {"file": str(self.file), "journal": str(self.journal)}
        return {**self.profile.to_dict(), "unsteady": self.profile.unsteady, **files, "seconds": self.seconds}


def profile(
    device: str,
    *,
    new_device: bool = False,
    space: str = "autoformer-t",
    runtime: str | None = None,
    precision: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    samples: int = 60,
    held_out: int = 40,
    repeats: int = 10,
    seconds: float = 0.1,
    max_cv: float = 0.05,
    max_drift: float = 0.04,
    strict: bool = False,
    out: str | Path | None = None,
    progress: Progress = SILENT,
) -> ProfileResult:
    """Measures latencies of a space on this machine, and fits and tests the latency model that a search uses.

    Every sample is recorded in a journal beside the profile: after a stop, the same call continues.

    Args:
        device: name of this machine's device: ``cpu``, or a name for its GPU, such as ``a10``.
        new_device: accept a name that looks like a misspelt known one.
        space: a preset, a YAML file, or the folder of a run that was trained on the space.
        runtime: one of :data:`growtas.latency.estimate.RUNTIMES`; by default ``tensorrt`` for a GPU and ``onnxruntime`` for the
            CPU.
        precision: precision of the measured artifacts; by default ``fp16`` for a GPU and ``fp32`` for the CPU. Quantised networks
            are calibrated on noise.
        batch: batch size.
        threads: CPU threads; by default all that this process may use.
        samples: number of subnets that the model is fitted to. Below 30, the model of another target's profile of the space is
            adapted, if that predicts better.
        held_out: number of random subnets that the model is tested on.
        repeats: number of subnets that are measured twice.
        seconds: seconds per timed block; every subnet gets nine blocks.
        max_cv: largest coefficient of variation of a subnet's blocks that counts as steady.
        max_drift: largest relative change of the reference subnet's latency that counts as steady.
        strict: measure unsteady samples again after pauses, and raise in the end. By default, the ratio to a reference subnet is
            recorded, and the sample is marked as unsteady.
        out: the profile's file; by default a file in the user's folder of profiles.
        progress: receives stages, notes, and each new sample as an event.

    Raises:
        UsageError: An argument is wrong, or this machine doesn't have the device.
        UnsteadyMachine: The machine is too busy, and ``strict`` is set; the journal keeps the samples so far.
        BuildError: A subnet can't be built.
    """
    started = time.perf_counter()
    if not new_device and (near := near_name(device)) is not None:
        raise DeviceError(f"--device is {device!r}, no known device: did you mean {near}? --new-device accepts the name")
    if not re.fullmatch(r"[a-z0-9-]+", device):
        raise ConfigError(f"--device is {device!r}; a name consists of lower-case letters, digits and hyphens, as in a10")
    if device not in device_names():
        gpu = at_hand.gpu_name()
        here = f"; a search measures on this machine's GPU only under the name {device_name(gpu)}" if gpu else ""
        progress.note(f"{device} is a new device; `growtas search --device {device}` uses this profile{here}")
    if batch < 1:
        raise ConfigError(f"--batch is {batch}; it must be 1 or more")
    check_threads(threads)
    if not 0 < seconds <= 60:
        raise ConfigError(f"--seconds is {seconds:g}; it must be above 0 and at most 60")
    bounds = Bounds(cv=max_cv, drift=max_drift, strict=strict)
    choices = load_space(space)
    plan = plan_profile(choices, samples=samples, held_out=held_out, repeats=repeats)
    usual_runtime, usual_precision = usual_target(device)
    runtime = runtime or usual_runtime
    hardware = hardware_of(device, runtime)
    precision = precision or (usual_precision if usual_precision in RUNTIMES[runtime].get(hardware, ()) else "fp32")
    check_runtime(runtime, precision, hardware)
    check_device(device, (*shipped_names(), *devices_at_hand()), CPU if hardware == "cpu" else at_hand.gpu_name() or "a GPU")
    threads = threads or available_threads()
    path = Path(out) if out else user_folder() / measured_file_name(device, choices.name, runtime, precision, batch, threads)
    if path.suffix != ".json":
        raise ConfigError(f"--out is {path}; a profile's file must end in .json")
    path = check_output_file(path)
    # Read before the measurement, so that an unreadable profile raises at once.
    others = [other for _, other in measured_profiles()] if samples < ADAPTED_BELOW else []
    machine = environment()
    if work := other_work():
        progress.note(f"{work}; samples may be {'rejected' if strict else 'unsteady'}")
    progress.stage("exporting blocks")
    reference = choices.middle()
    timer = ArchitectureTurns(
        choices,
        [*plan.first, reference],
        runtime=runtime,
        precision=precision,
        batch=batch,
        threads=threads,
        hardware=hardware,
        seconds=seconds,
    )
    info = timer.info(reference)
    setup = Setup(
        batch=batch,
        threads=info.threads,
        runtime=runtime,
        runtime_version=info.version,
        precision=precision,
        machine=str(machine["cpu"]) if info.device == "cpu" else info.device,
    )
    with exclusive(path.parent, "measuring this profile", f".{path.name}.lock"):
        progress.stage("comparing with an exported file")
        timer.check_against_exporter(reference, progress)
        campaign = Campaign(path.with_suffix(".jsonl"), choices, setup, timer, bounds=bounds, progress=progress)
        progress.stage("measuring", len(plan.first) + len(plan.repeated))
        try:
            measured = plan.measure(campaign)
        except KeyboardInterrupt:
            progress.note(f"the samples so far are kept in {campaign.path}; the same command goes on from there")
            raise
        description = {**{key: value for key, value in machine.items() if value is not None}, **clocks()}
        result = MeasuredProfile.of_samples(
            device, campaign, measured, description=setup.machine, machine=description, others=others
        )
        write_json(path, result.to_dict())
    return ProfileResult(result, path, time.perf_counter() - started)
