from __future__ import annotations

import dataclasses
import itertools
import json
from importlib import resources

import numpy as np
import pytest
from scipy.stats import spearmanr

from growtas.batch import SubnetBatch
from growtas.errors import ConfigError, DeviceError
from growtas.latency.catalogue import (
    fitting_profiles,
    latency_estimator,
    load_measured,
    measured_file_name,
    measured_profiles,
    modelled_profiles,
    near_name,
    origin,
)
from growtas.latency.measured.campaign import Campaign, Setup
from growtas.latency.measured.paired import Block
from growtas.latency.measured.profile import MeasuredProfile, held_out_errors
from growtas.latency.measured.sampling_plan import plan_profile
from growtas.latency.modelled.profile import device_names, load_profile, profile_names, user_folder
from growtas.latency.modelled.roofline import RooflineLatency
from growtas.sampling import sample_batch
from growtas.space import PRESETS
from tests.reference import PLAIN, plain_space
from tests.unit.latency.json_schema import problems
from tests.unit.latency.measured.test_sampling_plan import synthetic_ms

SCHEMA = json.loads((resources.files("growtas.profiles") / "schema.json").read_text())
MICRO, TINY = PRESETS["micro"], PRESETS["autoformer-t"]
SETUP = Setup(batch=1, threads=2, runtime="onnxruntime", runtime_version="1.0", precision="fp32", machine="m")


def build(tmp_path, name="box", space=MICRO, noise=0.01, setup=SETUP, latency_ms=synthetic_ms, others=(), **plan):
    rng = np.random.default_rng(0)

    def turns(subnets):
        times = [ms * rng.normal(1, noise) for ms in latency_ms(space, SubnetBatch.from_subnets(subnets))]
        return [[Block.of_runs([ms])] * 3 for ms in times]

    campaign = Campaign(tmp_path / "journal.jsonl", space, setup, turns)
    samples = plan_profile(space, **({"samples": 30, "held_out": 20, "repeats": 5} | plan)).measure(campaign)
    return MeasuredProfile.of_samples(name, campaign, samples, description="A box", machine={"driver": "1.2"}, others=others)


def save(profile, folder):
    p = profile
    path = folder / measured_file_name(p.name, p.space.name, p.runtime, p.precision, p.batch, p.threads)
    path.write_text(json.dumps(profile.to_dict()))
    return path


def test_a_machine_whose_speed_drifts_between_groups_gives_samples_at_one_speed(tmp_path):
    calls = itertools.count()

    def turns(subnets):
        # Within the drift that a steady machine may have.
        speed = (1.0, 1.02, 0.99)[next(calls) % 3]
        return [[Block.of_runs([speed * ms])] * 3 for ms in synthetic_ms(MICRO, SubnetBatch.from_subnets(subnets))]

    campaign = Campaign(tmp_path / "journal.jsonl", MICRO, SETUP, turns)
    samples = plan_profile(MICRO, samples=30, held_out=20, repeats=10).measure(campaign)
    profile = MeasuredProfile.of_samples("box", campaign, samples, description="A box", machine={})
    assert profile.unsteady == 0
    assert profile.repeatability.max < 1e-9
    (usual_ms,) = {sample.reference_ms for _, sample in profile.samples}
    quiet_ms = synthetic_ms(MICRO, SubnetBatch.from_subnets([sample.subnet for _, sample in profile.samples]))
    factor = usual_ms / float(synthetic_ms(MICRO, SubnetBatch.from_subnets([MICRO.middle()]))[0])
    assert [sample.p50_ms for _, sample in profile.samples] == pytest.approx(factor * quiet_ms)


def test_a_profile_of_a_space_with_other_terms_is_not_adapted(tmp_path):
    narrow = MICRO.replace(embed_dim=(32, 64))
    (tmp_path / "wide").mkdir()
    wide = build(tmp_path / "wide", noise=0.0, samples=60)
    assert not wide.why_not(narrow)
    profile = build(tmp_path, space=narrow, others=[wide], samples=10)
    assert profile.adapted_from == ""
    assert build(tmp_path / "wide", "other", noise=0.0, samples=5, others=[wide]).adapted_from == wide.title


def test_a_profile_of_an_earlier_version_without_hit_rates_is_read(tmp_path):
    profile = build(tmp_path)
    data = profile.to_dict()
    for name in ("within_5", "within_10"):
        del data["held_out"][name]
    assert MeasuredProfile.from_dict(data).held_out == profile.held_out
    with pytest.raises(ConfigError, match="held_out must be an object with"):
        MeasuredProfile.from_dict({**data, "held_out": {"within_5": 1.0}})


def test_a_plan_holds_nothing_out_that_it_fits_and_repeats_what_comes_first():
    plan = plan_profile(MICRO, samples=30, held_out=20, repeats=6)
    assert (len(set(plan.fit)), len(set(plan.held_out)), len(plan.first) + len(plan.repeated)) == (30, 20, 56)
    assert not set(plan.fit) & set(plan.held_out)
    assert plan.repeated == tuple(plan.first[:6])
    assert sorted(map(str, plan.first)) == sorted(map(str, [*plan.fit, *plan.held_out]))
    assert plan == plan_profile(MICRO, samples=30, held_out=20, repeats=6)
    assert {MICRO.smallest, MICRO.largest} <= set(plan.fit)


def test_nothing_is_held_out_that_is_fitted_where_both_are_nearly_all_there_is():
    few = MICRO.replace(depth=(1,))
    plan = plan_profile(few, samples=15, held_out=12, repeats=0)
    assert few.size == 27
    assert len({*plan.fit, *plan.held_out}) == 27


@pytest.mark.parametrize(("option", "value"), [("samples", 3), ("held_out", 1), ("repeats", -1)])
def test_plans_that_are_too_small_or_too_large_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')} is {value}"):
        plan_profile(MICRO, **{option: value})
    few = MICRO.replace(depth=(1,), num_heads=(2,), mlp_ratio=(2.0, 3.0))
    with pytest.raises(ConfigError, match="micro has 6 subnets, but .* need 100"):
        plan_profile(few)


def test_a_profile_reads_back_and_its_errors_are_those_of_its_model(tmp_path, folder):
    profile = build(tmp_path)
    assert load_measured(save(profile, folder)) == profile
    data = profile.to_dict()
    held = profile.of_role("held-out")
    model = profile.estimator(MICRO)
    predicted = model.predict_ms(SubnetBatch.from_subnets([s.subnet for s in held]))
    measured = np.array([s.p50_ms for s in held])
    errors = np.sort(np.abs(predicted - measured) / measured)
    assert data["held_out"]["median"] == pytest.approx((errors[9] + errors[10]) / 2)
    assert data["held_out"]["max"] == pytest.approx(errors[-1])
    assert errors[-2] <= data["held_out"]["p95"] <= errors[-1]
    assert data["held_out"]["spearman"] == pytest.approx(spearmanr(predicted, measured)[0])
    assert data["held_out"]["p95"] < 0.05
    assert 0.001 < data["repeatability"]["median"] < data["repeatability"]["max"] < 0.05
    assert (data["repeatability"]["count"], data["held_out"]["count"]) == (5, 20)


def test_a_prediction_is_modelled_and_says_from_what(tmp_path):
    profile = build(tmp_path)
    model = profile.estimator(MICRO)
    assert (profile.kind, model.kind) == ("measured", "modelled")
    assert model.provenance == f"predicted from 30 measured subnets, held-out error p95 {profile.held_out.p95:.1%}"
    assert model.relative_uncertainty == profile.held_out.p95
    assert str(model.conditions) == "p50, batch 1, fp32, onnxruntime on box"


def test_intervals_come_from_what_was_held_out(tmp_path):
    profile = build(tmp_path, noise=0.02, held_out=60)
    others = sample_batch(MICRO, 400, np.random.default_rng(3))
    low, high = profile.estimator(MICRO).interval_ms(others, 0.9)
    truth = synthetic_ms(MICRO, others) * np.random.default_rng(4).normal(1, 0.02, 400)
    assert 0.82 < np.mean((low <= truth) & (truth <= high)) < 0.99


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"batch": 8}, "measured at batch 1, not 8"),
        ({"precision": "fp16"}, "measured in fp32, not fp16"),
        ({"space": MICRO.replace(image_size=32)}, "with image_size 28, not 32"),
        ({"space": MICRO.replace(embed_dim=(32, 96), max_embed_dim=96)}, "embed_dim was measured from 32 to 64, not from 32 to 96"),
        ({"space": TINY}, "head_dim 16, not 64"),
        ({"space": plain_space(MICRO, "class token")}, "with max_relative_position 6, not None"),
        ({"measured": "class token", "space": MICRO}, "with max_relative_position None, not 6"),
        ({"measured": "class token", "space": plain_space(MICRO, "mean")}, "with prefix_tokens 1, not 0"),
        ({"measured": "registers", "space": plain_space(MICRO, "norm before mean")}, "with prefix_tokens 4, not 5"),
        ({"measured": "norm before mean", "space": plain_space(MICRO, "qk_norm")}, "with global_pool avg, not token"),
    ],
)
def test_a_profile_is_not_stretched_to_what_was_not_measured(tmp_path, asked, why):
    asked = dict(asked)
    measured = plain_space(MICRO, asked.pop("measured")) if "measured" in asked else MICRO
    profile = build(tmp_path, space=measured)
    with pytest.raises(DeviceError, match=why):
        profile.estimator(asked.pop("space", MICRO), **asked)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_profile_of_a_plain_vit_reads_back_and_answers_for_every_order_of_blocks(tmp_path, folder, kind):
    space = plain_space(MICRO, kind)
    path = save(build(tmp_path, space=space), folder)
    profile = load_measured(path)
    assert profile.space == space
    assert profile.why_not(space.replace(block_order=(5, 4, 3, 2, 1, 0))) == ""


def test_another_number_of_classes_and_fewer_choices_fit(tmp_path):
    profile = build(tmp_path)
    narrow = MICRO.replace(num_classes=37, embed_dim=(48,), max_embed_dim=64)
    assert profile.why_not(narrow) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["held_out"].update(p95=0.001), "held_out.p95 is 0.001, but the samples of the profile give"),
        (lambda d: d["repeatability"].update(count=50), "repeatability.count is 50"),
        (lambda d: d["samples"][3].update(p50_ms=-1), "sample 3: p50_ms is -1"),
        (lambda d: d["samples"][3].update(role="made up"), "fit, held-out or repeat"),
        (lambda d: d["samples"][3].pop("cv"), "sample 3: it must be an object with role"),
        (lambda d: d["samples"][3]["subnet"].update(embed_dim=4000), "embed_dim is 4000"),
        (lambda d: d["coefficients"].update(blocks=-0.1), "coefficients is .* zero or more"),
        (lambda d: d["coefficients"].pop("blocks"), "the first is 'blocks'"),
        (lambda d: d.update(basis="magic"), "basis is 'magic'; it must be coarse, physical or stepped"),
        (lambda d: d.update(kind="modelled"), "not a measured profile"),
        (lambda d: d.update(format="growtas-profile/9"), "not a measured profile"),
        (lambda d: d.update(samples=[s for s in d["samples"] if s["role"] != "held-out"]), "some of role held-out"),
        (lambda d: d.update(colour="green"), "unknown field 'colour'"),
        (lambda d: d["space"].pop("depth"), "depth is missing"),
    ],
)
def test_a_claim_or_field_that_is_wrong_is_refused(tmp_path, change, message):
    data = json.loads(json.dumps(build(tmp_path, samples=8, held_out=4, repeats=1).to_dict()))
    assert MeasuredProfile.from_dict(data).name == "box"
    change(data)
    with pytest.raises(ConfigError, match=message) as caught:
        MeasuredProfile.from_dict(data, source="mine.json")
    assert "mine.json" in str(caught.value)


def test_a_measured_profile_is_what_the_schema_says(tmp_path):
    data = json.loads(json.dumps(build(tmp_path, samples=8, held_out=4, repeats=1).to_dict()))
    assert problems(data, SCHEMA) == []
    for change in ({"kind": "modelled"}, {"batch": 0}, {"samples": []}, {"coefficients": {"blocks": -1}}, {"colour": "green"}):
        assert problems({**data, **change}, SCHEMA)


def test_every_field_is_needed(tmp_path):
    data = build(tmp_path, samples=8, held_out=4, repeats=1).to_dict()
    for field in data:
        with pytest.raises(ConfigError):
            MeasuredProfile.from_dict({key: value for key, value in data.items() if key != field})


def test_errors_counted_by_hand():
    found = held_out_errors(np.array([1.1, 2.0, 2.7, 5.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert (found.count, found.median, found.max) == (4, pytest.approx(0.1), pytest.approx(0.25))
    assert found.spearman == pytest.approx(1.0)
    assert held_out_errors(np.array([1.0, 1.0]), np.array([1.0, 2.0])).spearman == 0.0


def test_the_folder_is_the_named_one_or_the_users_configuration(monkeypatch, tmp_path, folder):
    assert user_folder() == folder
    monkeypatch.delenv("GROWTAS_PROFILES")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert user_folder() == tmp_path / "xdg" / "growtas" / "profiles"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_folder() == tmp_path / "home" / ".config" / "growtas" / "profiles"


def test_the_users_profile_goes_before_the_shipped_one(folder):
    own = dataclasses.replace(load_profile("a10"), description="Mine", relative_uncertainty=0.9)
    (folder / "a10.json").write_text(json.dumps(own.to_dict()))
    assert load_profile("a10").description == "Mine"
    origins = {profile.name: origin for origin, profile in modelled_profiles()}
    assert (origins["a10"], origins["t4"]) == (str(folder / "a10.json"), "shipped")
    (folder / "new-one.json").write_text(json.dumps(dataclasses.replace(own, name="new-one").to_dict()))
    assert "new-one" in device_names()
    (folder / "a10.json").write_text(json.dumps(own.to_dict()), encoding="utf-8-sig")
    assert load_profile("a10").description == "Mine"
    (folder / "a10.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a10.json: not JSON"):
        load_profile("a10")
    (folder / "a10.json").write_text(json.dumps(dataclasses.replace(own, name="t4").to_dict()))
    with pytest.raises(ConfigError, match="its name is 't4'"):
        load_profile("a10")


def test_a_measured_profile_that_fits_goes_before_the_modelled_one(tmp_path, folder):
    save(build(tmp_path, "a10"), folder)
    assert latency_estimator("a10", MICRO).provenance.startswith("predicted from 30")
    assert isinstance(latency_estimator("a10", MICRO, batch=8), RooflineLatency)
    assert isinstance(latency_estimator("a10", MICRO, batch=8, runtime="tensorrt"), RooflineLatency)
    with pytest.raises(DeviceError, match=r"modelled in tensorrt, not openvino\); measure one with .* --runtime openvino`"):
        latency_estimator("a10", MICRO, batch=8, runtime="openvino")
    assert latency_estimator("a10", MICRO, precision="fp16").conditions.precision == "fp16"
    assert fitting_profiles("a10", MICRO, runtime="tensorrt") == ([], ["it was measured in onnxruntime, not tensorrt"])
    assert load_profile("a10").kind == "modelled"


def test_a_device_that_was_only_measured_is_legal_and_answers_for_what_was_measured(tmp_path, folder):
    path = save(build(tmp_path), folder)
    assert "box" in device_names()
    assert "box" not in profile_names()
    assert [p for p, _ in measured_profiles("box")] == [path]
    assert latency_estimator("box", MICRO).conditions.device == "box"
    with pytest.raises(DeviceError, match=r"box has no profile that fits \(it was measured at batch 1, not 2\); measure one with"):
        latency_estimator("box", MICRO, batch=2)
    with pytest.raises(DeviceError, match="box has a measured profile, but the compute capability comes from a modelled one"):
        load_profile("box")
    with pytest.raises(DeviceError, match="unknown device 'boks'; legal are cpu, .*box"):
        latency_estimator("boks", MICRO)
    with pytest.raises(DeviceError, match="cpu has no profile that fits .*at batch 1, not 3.*`growtas profile --device cpu"):
        latency_estimator("cpu", MICRO, batch=3)
    path.rename(folder / "other.micro.json")
    with pytest.raises(ConfigError, match="its name is 'box'"):
        measured_profiles()


def test_the_newest_measurement_answers(tmp_path, folder):
    profile = build(tmp_path)
    save(dataclasses.replace(profile, date="2026-01-01"), folder)
    newer = dataclasses.replace(profile, date="2026-02-01", runtime="tensorrt")
    save(newer, folder)
    assert [found.date for _, found in measured_profiles("box")] == ["2026-02-01", "2026-01-01"]
    assert latency_estimator("box", MICRO).conditions.runtime == "tensorrt"
    (profile,), _ = fitting_profiles("box", MICRO, runtime="onnxruntime")
    assert profile.runtime == "onnxruntime"


def test_a_profile_of_cpu_answers_on_the_machine_that_it_was_made_on_and_the_user_s_goes_first(tmp_path, folder):
    here = dataclasses.replace(SETUP, machine="A box")
    with pytest.raises(DeviceError, match="measured on AMD EPYC, but this machine has A box"):
        latency_estimator("cpu", MICRO, here=here)
    path = save(build(tmp_path, "cpu"), folder)
    assert latency_estimator("cpu", MICRO, here=here).provenance.startswith("predicted from 30")
    assert device_names().count("cpu") == 1
    first, *others = measured_profiles("cpu")
    assert (first[0], origin(first[0])) == (path, str(path))
    assert {origin(file) for file, _ in others} == {"shipped"}
    shipped = next(profile for _, profile in others if (profile.space, profile.description) == (MICRO, "AMD EPYC"))
    there = dataclasses.replace(here, machine="AMD EPYC", runtime_version=shipped.runtime_version)
    assert latency_estimator("cpu", MICRO, here=there).provenance.startswith("predicted from 60")
    with pytest.raises(DeviceError, match="with 2 threads, not 1; .* on AMD EPYC, but this machine has A box"):
        latency_estimator("cpu", MICRO, here=dataclasses.replace(here, threads=1, machine="A box"))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("a1O", "a10"), ("a1o", "a10"), ("a10g", "a10"), ("cpuu", "cpu"), ("A10", "a10"), ("rtx4090", "rtx-4090"), ("h10O", "h100"),
        ("rtx_4090", "rtx-4090"), ("orinn", "orin"), ("t4g", "t4"), ("boox", "box"),
        # Another number is another device, and these are none's slips.
        ("a30", None), ("h200", None), ("rtx-3090", None), ("l40", None), ("my-gpu", None), ("jetson", None), ("box2", None),
        # Known.
        ("a10", None), ("cpu", None), ("box", None),
    ],
)  # fmt: skip
def test_names_that_look_like_slips(tmp_path, folder, name, near):
    save(build(tmp_path, samples=8, held_out=4, repeats=1), folder)
    assert near_name(name) == near


def test_a_strange_name_of_a_space_makes_no_strange_file(tmp_path, folder):
    profile = build(tmp_path, space=MICRO.replace(name="../my space"))
    assert save(profile, folder).name == "box.-my-space.onnxruntime-fp32-b1.json"


def test_an_unsteady_profile_says_so_and_a_false_claim_is_refused(tmp_path):
    profile = build(tmp_path, samples=8, held_out=4, repeats=1)
    (role, first), *others = profile.samples
    marked = dataclasses.replace(profile, samples=((role, dataclasses.replace(first, half_width=0.05)), *others))
    data = json.loads(json.dumps(marked.to_dict()))
    assert (data["unsteady"], marked.unsteady) == (1, 1)
    assert problems(data, SCHEMA) == []
    read = MeasuredProfile.from_dict(data)
    assert read == marked
    assert "1 samples of the profile are unsteady" in read.estimator(MICRO).provenance
    # A profile without such samples is as it has always been.
    assert "unsteady" not in json.dumps(profile.to_dict())
    for claim in (0, 2, None):
        with pytest.raises(ConfigError, match="1 of the profile's samples are unsteady"):
            MeasuredProfile.from_dict({**data, "unsteady": claim})
    half = {key: value for key, value in data["samples"][0].items() if key != "half_width"}
    with pytest.raises(ConfigError, match="sample 0: it must be an object"):
        MeasuredProfile.from_dict({**data, "samples": [half, *data["samples"][1:]]})


def test_a_profile_of_quantised_networks_says_that_they_were_calibrated_on_noise(tmp_path):
    setup = dataclasses.replace(SETUP, precision="int8")
    profile = build(tmp_path / "int8", setup=setup, samples=12, held_out=8)
    assert "calibrated on noise" in profile.sources[-1]
    assert MeasuredProfile.from_dict(profile.to_dict()) == profile
    assert not any("noise" in source for source in build(tmp_path / "fp32", samples=12, held_out=8).sources)
