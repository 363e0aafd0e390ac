from __future__ import annotations

import dataclasses
import itertools
import json
import re
from importlib import resources

import pytest

from growtas.errors import ConfigError, DeviceError
from growtas.latency.measured.profile import HeldOut, MeasuredProfile, Repeatability
from growtas.latency.modelled.profile import (
    Calibration,
    DeviceProfile,
    Efficiency,
    Peaks,
    device_names,
    load_profile,
    measured_names,
    profile_names,
    shipped_measured,
    shipped_names,
)
from tests.unit.latency.json_schema import problems

SCHEMA = json.loads((resources.files("growtas.profiles") / "schema.json").read_text())


def test_the_shipped_profiles_are_modelled_and_say_where_their_numbers_come_from():
    assert profile_names() == ["a10", "a100", "a6000", "h100", "l4", "orin", "rtx-4090", "rtx-5090", "t4"]
    for name in profile_names():
        profile = load_profile(name)
        assert (profile.name, profile.kind, profile.precision) == (name, "modelled", "fp16")
        assert re.search(r"Peaks: .*(datasheet|whitepaper)", profile.sources[0])
        assert profile.relative_uncertainty >= profile.calibration.max_error


def test_compute_capabilities():
    expected = {"t4": "sm75", "a10": "sm86", "a6000": "sm86", "l4": "sm89", "a100": "sm80", "h100": "sm90", "orin": "sm87"}
    expected |= {"rtx-4090": "sm89", "rtx-5090": "sm120"}
    assert {name: load_profile(name).compute_capability for name in profile_names()} == expected


def test_an_unknown_device_is_answered_with_the_legal_ones():
    with pytest.raises(
        DeviceError, match=r"unknown device 'a11'; legal are cpu, a10, a100, a6000, h100, l4, orin, rtx-4090, rtx-5090 or t4"
    ):
        load_profile("a11")
    with pytest.raises(DeviceError, match="measured on this machine"):
        load_profile("cpu")
    assert device_names()[0] == "cpu"


def test_a_precision_without_units_is_refused():
    assert load_profile("a10").peak_ops("fp16") == 125e12
    with pytest.raises(DeviceError, match="t4 has no precision 'tf32'; legal are fp32, fp16 or int8"):
        load_profile("t4").peak_ops("tf32")
    with pytest.raises(DeviceError, match="fp64"):
        load_profile("t4").peak_ops("fp64")


def test_json_round_trip():
    profile = load_profile("t4")
    assert DeviceProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_the_schema_has_the_fields_of_the_classes():
    def names(part):
        return {field.name for field in dataclasses.fields(part)}

    modelled, measured = SCHEMA["$defs"]["modelled"], SCHEMA["$defs"]["measured"]
    assert set(modelled["properties"]) == set(modelled["required"]) == names(DeviceProfile) | {"format"}
    extra = {"format", "kind", "held_out", "repeatability"}
    assert set(measured["required"]) == (names(MeasuredProfile) | extra) - {"adapted_from"}
    assert set(measured["properties"]) == set(measured["required"]) | {"unsteady", "adapted_from"}
    for form, key, part in (
        (modelled, "peaks", Peaks),
        (modelled, "efficiency", Efficiency),
        (modelled, "calibration", Calibration),
        (measured, "held_out", HeldOut),
        (measured, "repeatability", Repeatability),
    ):
        # Profiles of earlier versions have no hit rates.
        later = {"within_5", "within_10"} & names(part)
        assert set(form["properties"][key]["properties"]) == set(form["properties"][key]["required"]) | later == names(part)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_profile_is_what_the_schema_says(name):
    data = json.loads((resources.files("growtas.profiles") / f"{name}.json").read_text())
    assert problems(data, SCHEMA) == []
    assert problems({**data, "kind": "measured"}, SCHEMA)
    assert problems({**data, "peaks": {**data["peaks"], "sms": 0}}, SCHEMA)


def test_measured_profiles_ship_too_and_are_what_the_schema_says():
    names = [file.name for file in shipped_measured()]
    spaces_and_targets = {tuple(name.split(".")[1:3]) for name in names}
    on_cpus = [f"{runtime}-{precision}-b1" for runtime in ("onnxruntime", "openvino") for precision in ("fp32", "int8")]
    assert spaces_and_targets == set(itertools.product(["autoformer-t", "micro"], on_cpus))
    # Those of several CPUs lie side by side.
    assert {name.split(".")[3] for name in names} == {"amd-epyc-t2", "intel-xeon-processor-t2"}
    assert measured_names() == ["cpu"]
    for name in names:
        data = json.loads((resources.files("growtas.profiles") / name).read_text())
        assert problems(data, SCHEMA) == []
        assert problems({**data, "kind": "modelled"}, SCHEMA)
        # What it claims is what its samples give.
        assert MeasuredProfile.from_dict(data, source=name).held_out.count == 40


def _paths(data, prefix=()):
    for key, value in data.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from _paths(value, (*prefix, key))


@pytest.mark.parametrize("path", list(_paths(load_profile("t4").to_dict())), ids=".".join)
@pytest.mark.parametrize("change", ["missing", "wrong"])
def test_every_field_is_checked(path, change):
    data = load_profile("t4").to_dict()
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    if change == "missing":
        del holder[path[-1]]
    else:
        holder[path[-1]] = -1
    with pytest.raises(ConfigError) as caught:
        DeviceProfile.from_dict(data, source="mine.json")
    assert "mine.json" in str(caught.value)
    assert path == ("format",) or ".".join(path) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "legal"),
    [
        ("kind", "guessed", "must be modelled"),
        ("kind", "measured", "growtas profile"),
        ("compute_capability", "8.6", "as sm86"),
        ("precision", "fp8", "fp32, tf32, fp16 or int8"),
    ],
)
def test_a_wrong_value_is_answered_with_the_legal_ones(field, value, legal):
    with pytest.raises(ConfigError, match=legal):
        DeviceProfile.from_dict({**load_profile("t4").to_dict(), field: value})


def test_unknown_fields_and_numbers_that_are_none_are_refused():
    data = load_profile("t4").to_dict()
    with pytest.raises(ConfigError, match="unknown field 'colour'"):
        DeviceProfile.from_dict({**data, "colour": "green"})
    with pytest.raises(ConfigError, match=r"efficiency\.compute is nan"):
        DeviceProfile.from_dict({**data, "efficiency": {**data["efficiency"], "compute": float("nan")}})
    with pytest.raises(ConfigError, match=r"peaks\.sms is True"):
        DeviceProfile.from_dict({**data, "peaks": {**data["peaks"], "sms": True}})
    with pytest.raises(ConfigError, match="one reference_ms"):
        DeviceProfile.from_dict({**data, "calibration": {**data["calibration"], "batches": [1]}})
