from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from growtas.errors import DeviceError
from growtas.export.benchmark import stopwatch as turns
from growtas.export.benchmark.targets import check_device
from growtas.export.runtimes.base import is_installed
from growtas.latency.catalogue import latency_estimator, load_measured
from growtas.latency.measured.machine import local_setup
from growtas.latency.measured.paired import Block
from growtas.space import load_space
from tests.export_helpers import TINY, Cli, make_run

QUICK = ("--samples", "6", "--held-out", "4", "--repeats", "2", "--seconds", "0.001", "--threads", "1")
# Whatever else the machine does, a test of the command must not fail for it.
LENIENT = ("--max-cv", "1", "--max-drift", "1")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROWTAS_PROFILES", str(tmp_path / "mine"))
    space = {**TINY.to_dict(), "name": "tiny"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(space))
    return Cli(monkeypatch, capsys)


class Clockwork:
    """Stands in for the timers: a subnet takes its width in microseconds; counts how many were timed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timed: list[int] = []
        self.die_after = 10**9
        self.speed = 1.0
        monkeypatch.setattr(turns.ArchitectureTurns, "__call__", lambda job, subnets: self(subnets))
        monkeypatch.setattr(turns.ArchitectureTurns, "check_against_exporter", lambda job, subnet, progress: None)
        monkeypatch.setattr("time.sleep", lambda seconds: None)

    def __call__(self, subnets):
        if len(self.timed) >= self.die_after:
            raise KeyboardInterrupt
        self.timed.append(len(subnets) - 1)
        times = [self.speed * (s.embed_dim + sum(s.num_heads) + sum(s.mlp_ratio)) / 1000 for s in subnets]
        return [[Block.of_runs([ms])] * 5 for ms in times]


def test_the_line_as_typed_measures_writes_and_is_listed(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("profile", "--device", "cpu", "--space", "tiny.yaml", *QUICK, *LENIENT)
    assert code == 0, err
    (path,) = (tmp_path / "mine").glob("cpu.tiny.onnxruntime-fp32-b1.*-t1.json")
    assert f"written to {path}" in out
    profile = load_measured(path)
    assert (len(profile.samples), profile.threads, profile.runtime) == (12, 1, "onnxruntime")
    assert f"p95 {profile.held_out.p95:.2%}" in out
    assert "exporting each subnet" not in err
    # It was measured with one thread: that it answers for.
    here = dataclasses.replace(local_setup(), threads=1)
    assert latency_estimator("cpu", load_space("tiny.yaml"), here=here).kind == "modelled"
    with pytest.raises(DeviceError, match="measured with 1 threads, not 3"):
        latency_estimator("cpu", load_space("tiny.yaml"), here=dataclasses.replace(here, threads=3))
    code, out, _ = cli("devices")
    line = next(line for line in out.splitlines() if path.name in line)
    assert line.split()[0] == "cpu"
    assert f"{profile.held_out.p95:.1%}" in line
    assert " measured " in line
    code, out, _ = cli("devices", "--json")
    entry = next(entry for entry in json.loads(out)["devices"] if entry.get("space") == "tiny")
    assert (entry["kind"], entry["space"], entry["origin"], entry["samples"]) == ("measured", "tiny", str(path), 12)


def test_a_stopped_profile_goes_on_and_json_is_one_document(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clockwork(monkeypatch)
    clock.die_after = 1
    command = ("profile", "--device", "box", "--space", "tiny.yaml", *QUICK, "--json")
    code, out, err = cli(*command)
    assert (code, out) == (130, "")
    assert "the same command goes on from there" in err
    assert clock.timed == [9]
    clock.die_after = 99
    code, out, err = cli(*command)
    assert code == 0, err
    assert clock.timed == [9, 1, 2]
    report = json.loads(out)
    assert (report["kind"], report["name"], report["held_out"]["count"]) == ("measured", "box", 4)
    assert report["held_out"]["max"] < 0.2
    assert Path(report["file"]).is_file()
    assert len(Path(report["journal"]).read_text().splitlines()) == 12


def test_profiles_of_two_cpus_lie_side_by_side_and_few_samples_adapt_the_other(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Clockwork(monkeypatch)
    printed = []
    for name in ("Other(R) CPU @ 2.70GHz", "This CPU"):
        for module in ("catalogue", "measured.machine"):
            monkeypatch.setattr(f"growtas.latency.{module}.cpu_name", lambda name=name: name)
        monkeypatch.setattr("growtas.export.benchmark.timing.cpu_name", lambda name=name: name)
        code, out, err = cli("profile", "--device", "cpu", "--space", "tiny.yaml", *QUICK)
        assert code == 0, err
        printed.append(out)
    files = sorted(path.name for path in (tmp_path / "mine").glob("*.json"))
    assert files == ["cpu.tiny.onnxruntime-fp32-b1.other-cpu-2-70ghz-t1.json", "cpu.tiny.onnxruntime-fp32-b1.this-cpu-t1.json"]
    other, this = (load_measured(tmp_path / "mine" / file) for file in files)
    adapted = "adapted from the profile of tiny in fp32, onnxruntime on cpu (Other(R) CPU @ 2.70GHz)"
    assert (other.adapted_from, this.adapted_from) == ("", adapted.removeprefix("adapted from the "))
    assert [adapted in " ".join(out.split()) for out in printed] == [False, True]
    assert this.held_out.max <= other.held_out.max
    # A profile is chosen by the CPU's name.
    here = dataclasses.replace(local_setup(), threads=1)
    assert adapted in latency_estimator("cpu", load_space("tiny.yaml"), here=here).provenance
    there = dataclasses.replace(here, machine="Other(R) CPU @ 2.70GHz")
    assert "adapted" not in latency_estimator("cpu", load_space("tiny.yaml"), here=there).provenance


def test_a_busy_machine_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clockwork(monkeypatch)
    steady = clock.__call__

    def restless(job, subnets):
        clock.speed *= 1.1
        return steady(subnets)

    monkeypatch.setattr(turns.ArchitectureTurns, "__call__", restless)
    command = ("profile", "--device", "cpu", "--space", "tiny.yaml", *QUICK)
    code, sentence = cli.fails(*command, "--strict")
    assert code == 1
    assert "the machine is too busy, or its clocks change: the reference subnet's latency changed by +" in sentence
    assert not list((tmp_path / "mine").glob("*.json"))
    # Without --strict the ratios to the reference, which is as restless, give a profile that says how it was made.
    code, out, err = cli(*command)
    assert code == 0, err
    assert "this machine is unsteady" in err
    assert "samples: other work was running" in out
    (path,) = (tmp_path / "mine").glob("*.json")
    profile = load_measured(path)
    assert profile.unsteady == len([sample for _, sample in profile.samples if sample.unsteady]) > 0
    # Each call was a tenth slower than the one before.
    assert profile.repeatability.max < 0.001
    assert json.loads(path.read_text())["unsteady"] == profile.unsteady
    here = dataclasses.replace(local_setup(), threads=1)
    assert "samples of the profile are unsteady" in latency_estimator("cpu", load_space("tiny.yaml"), here=here).provenance
    line = next(line for line in cli("devices")[1].splitlines() if path.name in line)
    assert "unsteady" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runtime", "tflite"), "legal are onnxruntime, openvino, tensorrt, tensorrt-rtx, torch"),
        (("--precision", "fp16"), "onnxruntime is measured in fp32 or int8"),
        (("--samples", "1"), "--samples is 1"),
        (("--held-out", "0"), "--held-out is 0"),
        (("--batch", "0"), "--batch is 0"),
        (("--threads", "0"), "--threads is 0"),
        (("--seconds", "0"), "--seconds is 0"),
        (("--max-cv", "0"), "cv is 0"),
        (("--space", "nano"), "unknown search space"),
        (("--out", "here.txt"), "must end in .json"),
        (("--out", "folder.json"), "folder.json: the output file can't be written (it is a folder)"),
    ],
)
def test_what_is_refused_at_once(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    Path("folder.json").mkdir()
    code, sentence = cli.fails("profile", "--device", "cpu", "--space", "micro", *arguments)
    assert code == 2
    assert message in sentence


@pytest.mark.parametrize(("name", "near"), [("a1O", "a10"), ("a10g", "a10"), ("cpuu", "cpu")])
def test_a_slip_is_asked_about_unless_it_is_meant(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, near: str) -> None:
    Clockwork(monkeypatch)
    command = ("profile", "--device", name, "--runtime", "onnxruntime", "--space", "tiny.yaml", *QUICK)
    code, sentence = cli.fails(*command)
    assert code == 2
    assert f"--device is {name!r}, no known device: did you mean {near}? --new-device" in sentence
    code, _, err = cli(*command, "--new-device")
    # A capital letter is in no name.
    assert (code, "lower-case letters" in err) == ((2, True) if name == "a1O" else (0, False)), err


def test_another_unknown_name_is_noted_and_known_afterwards(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Clockwork(monkeypatch)
    command = ("profile", "--device", "my-box", "--space", "tiny.yaml", *QUICK)
    code, _, err = cli(*command)
    assert code == 0, err
    assert "my-box is a new device" in err
    assert "new device" not in cli(*command)[2]
    code, sentence = cli.fails("profile", "--device", "mybox", "--space", "tiny.yaml", *QUICK)
    assert "did you mean my-box?" in sentence


def test_a_device_that_was_only_measured_is_searched_for_and_has_no_plan_without_a_target(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Clockwork(monkeypatch)
    assert cli("profile", "--device", "my-box", "--space", "tiny.yaml", *QUICK)[0] == 0
    make_run(tmp_path / "runs")
    quick = ("--generations", "1", "--population", "3", "--limit-images", "20")
    code, out, err = cli("search", "--device", "my-box", "--max-latency", "1ms", *quick)
    assert code == 0, err
    assert "predicted from 6 measured subnets" in out
    code, sentence = cli.fails("search", "--device", "my-box", "--max-latency", "1ms", "--precision", "fp16", *quick)
    assert (code, "it was measured in fp32, not fp16" in sentence) == (2, True)
    for arguments in ((), ("--device", "my-box")):
        code, sentence = cli.fails("export", str(tmp_path / "runs" / "tiny"), "--format", "trt", *arguments)
        assert code == 2
        assert "my-box has a measured profile, but the compute capability comes from a modelled one" in sentence
        assert "--target, such as sm86" in sentence


def test_names_of_devices(cli: Cli) -> None:
    code, sentence = cli.fails("profile", "--device", "My GPU", "--space", "micro")
    assert code == 2
    assert "lower-case letters" in sentence
    # This runtime runs on the CPU, which is no A10.
    code, sentence = cli.fails("profile", "--device", "a10", "--runtime", "onnxruntime", "--space", "tiny.yaml", *QUICK)
    assert code == 2
    assert "--device a10: this runtime runs on cpu" in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_plan_needs_a_gpu(cli: Cli) -> None:
    code, sentence = cli.fails("profile", "--device", "a10", "--space", "micro")
    assert code == 2
    assert "--runtime tensorrt needs an NVIDIA GPU" in sentence


@pytest.mark.skipif(is_installed("openvino"), reason="says what happens without it")
def test_openvino_is_asked_for_by_name(cli: Cli) -> None:
    code, sentence = cli.fails("profile", "--device", "cpu", "--space", "micro", "--runtime", "openvino")
    assert code == 2
    assert "needs the package openvino" in sentence


@pytest.mark.parametrize(
    ("name", "device", "refused"),
    [
        ("a10", "NVIDIA A10", False),
        ("a10", "NVIDIA A100-PCIE-40GB", True),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", False),
        ("rtx-4090", "NVIDIA GeForce RTX 5090", True),
        ("t4", "Tesla T4", False),
        ("cpu", "Tesla T4", True),
        ("my-box", "Tesla T4", False),
    ],
)
def test_a_known_name_is_for_that_device_only(name: str, device: str, refused: bool) -> None:
    from growtas.errors import DeviceError

    known = ("a10", "rtx-4090", "t4")
    if not refused:
        check_device(name, known, device)
        return
    with pytest.raises(DeviceError, match=f"--device {name}"):
        check_device(name, known, device)
