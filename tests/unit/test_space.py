from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from growtas.errors import CheckpointError, SpaceError, SubnetError
from growtas.nn.architecture import Architecture
from growtas.sampling import sample
from growtas.space import PRESETS, SearchSpace, load_space
from growtas.subnet import Subnet
from tests.reference import PLAIN, plain_space

NEW_FIELDS = {"prefix_tokens", "global_pool", "fc_norm", "qk_norm", "norm_eps", "block_order", "full_width_norms"}

# The paper's Table 1: (min, max, step).
TABLE_1 = {
    "autoformer-t": {"embed_dim": (192, 240, 24), "mlp_ratio": (3.5, 4, 0.5), "num_heads": (3, 4, 1), "depth": (12, 14, 1)},
    "autoformer-s": {"embed_dim": (320, 448, 64), "mlp_ratio": (3, 4, 0.5), "num_heads": (5, 7, 1), "depth": (12, 14, 1)},
    "autoformer-b": {"embed_dim": (528, 624, 48), "mlp_ratio": (3, 4, 0.5), "num_heads": (8, 10, 1), "depth": (14, 16, 1)},
}


@pytest.mark.parametrize("name", TABLE_1)
def test_presets_are_the_papers(name):
    for field, (low, high, step) in TABLE_1[name].items():
        assert list(getattr(PRESETS[name], field)) == pytest.approx(list(np.arange(low, high + step / 2, step)))


def test_size_counts_the_subnets():
    space = SearchSpace(name="s", embed_dim=(8, 16), num_heads=(1, 2), mlp_ratio=(2.0, 3.0, 4.0), depth=(1, 2))
    assert space.size == 2 * (6 + 36)


@given(name=st.sampled_from(sorted(PRESETS)), seed=st.integers(0, 2**32 - 1))
def test_subnets_round_trip_through_json_and_stay_in_the_space(name, seed):
    subnet = sample(PRESETS[name], np.random.default_rng(seed))
    assert Subnet.from_dict(subnet.to_dict()) == subnet
    assert hash(Subnet.from_dict(subnet.to_dict())) == hash(subnet)
    assert PRESETS[name].holds(subnet)


def test_a_subnet_may_lie_outside_the_choices_but_inside_the_bounds():
    space = PRESETS["autoformer-t"]
    subnet = Subnet(192, (3,) * 12, (3.0,) * 12)
    assert space.validate(subnet) is subnet
    assert not space.holds(subnet)


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (Subnet(264, (3,) * 12, (4.0,) * 12), r"embed_dim is 264; the choices of autoformer-t are 192, 216 or 240 \(bound .*256\)"),
        (Subnet(192, (3,) * 11 + (5,), (4.0,) * 12), r"num_heads of block 11 is 5; the choices of autoformer-t are 3 or 4"),
        (Subnet(192, (3,) * 12, (4.5,) + (4.0,) * 11), r"mlp_ratio of block 0 is 4.5; the choices of autoformer-t are 3.5 or 4"),
        (Subnet(192, (3,) * 15, (4.0,) * 15), r"depth is 15; the choices of autoformer-t are 12, 13 or 14"),
    ],
)
def test_validation_names_field_value_and_choices(subnet, message):
    with pytest.raises(SubnetError, match=message):
        PRESETS["autoformer-t"].validate(subnet)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"embed_dim": 8, "num_heads": [1]}, "mlp_ratio is missing"),
        ({"embed_dim": 8, "num_heads": 1, "mlp_ratio": [1.0]}, "num_heads is 1; it must be a list"),
        ({"embed_dim": 8, "num_heads": [1], "mlp_ratio": [1.0], "depth": 2}, "depth is 2, but num_heads and mlp_ratio have 1"),
        ({"embed_dim": 10**6, "num_heads": [1], "mlp_ratio": [1.0]}, "embed_dim is 1000000; .* above zero and below 1,000,000"),
        ({"embed_dim": 8.5, "num_heads": [1], "mlp_ratio": [1.0]}, "embed_dim is 8.5; it must be a whole number"),
        ({"embed_dim": 8, "num_heads": [True], "mlp_ratio": [1.0]}, "num_heads is True"),
        ({"embed_dim": 8, "num_heads": [1], "mlp_ratio": ["x"]}, "mlp_ratio is 'x'"),
        ({"embed_dim": 8, "num_heads": [1, 2], "mlp_ratio": [1.0]}, "they have 2 and 1 entries"),
        ([1], "a subnet is a JSON object"),
    ],
)
def test_broken_subnets_are_named(data, message):
    with pytest.raises(SubnetError, match=message):
        Subnet.from_dict(data)


def test_subnet_files(tmp_path):
    path = tmp_path / "s.json"
    with pytest.raises(SubnetError, match=r"s\.json: the subnet file can't be read"):
        Subnet.load(path)
    path.write_text("{")
    with pytest.raises(SubnetError, match=r"s\.json: not JSON \(line 1"):
        Subnet.load(path)
    path.write_text('{"depth": 1, "embed_dim": 8, "num_heads": [1], "mlp_ratio": [2], "params": 5}')
    assert Subnet.load(path) == Subnet(8, (1,), (2.0,))


def test_a_space_is_a_yaml_file_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "embed_dim: {min: 192, max: 240, step: 24}\nmlp_ratio: {min: 3.5, max: 4, step: 0.5}\n"
        "num_heads: [3, 4]\ndepth: [12, 13, 14]\nmax_embed_dim: 256\n"
    )
    assert load_space(path) == PRESETS["autoformer-t"].replace(name="mine")
    path.write_text(yaml.safe_dump(PRESETS["micro"].to_dict()))
    assert load_space(path) == PRESETS["micro"]


def test_spaces_of_autoformer_have_no_new_fields():
    for space in PRESETS.values():
        assert not NEW_FIELDS & space.to_dict().keys()
        assert SearchSpace.from_dict(space.to_dict()) == space
    # A space without relative position, as an earlier version wrote it, has AutoFormer's pooling.
    old = SearchSpace.from_dict({**PRESETS["micro"].to_dict(), "max_relative_position": None})
    assert (old.prefix_tokens, old.global_pool, old.fc_norm, old.qk_norm, old.norm_eps) == (1, "avg", False, False, 1e-5)
    assert old.blocks_of(3) == (0, 1, 2)


@pytest.mark.parametrize("kind", PLAIN)
def test_spaces_of_plain_vits_round_trip_through_yaml(tmp_path, kind):
    space = plain_space(PRESETS["micro"], kind)
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(space.to_dict()))
    assert load_space(tmp_path / "plain.yaml") == space
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    resized = space.resized(56)
    assert {field: getattr(resized, field) for field in NEW_FIELDS} == {field: getattr(space, field) for field in NEW_FIELDS}


def test_a_shallow_subnet_runs_the_most_important_blocks_in_their_order():
    space = PRESETS["micro"].replace(block_order=(5, 0, 3, 1, 4, 2))
    assert [space.blocks_of(depth) for depth in (1, 2, 4, 6)] == [(5,), (0, 5), (0, 1, 3, 5), (0, 1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix_tokens": 2}, "prefix_tokens is 2; with a relative position only 1 is legal (or set max_relative_position: null)"),
        ({"global_pool": "token"}, "global_pool is token; with a relative position only avg is legal"),
        ({"qk_norm": True}, "qk_norm is True; with a relative position only False is legal"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06; with a relative position only 1e-05 is legal"),
        ({"max_relative_position": None, "global_pool": "max"}, "global_pool is 'max'; it must be avg or token"),
        ({"max_relative_position": None, "fc_norm": "yes"}, "fc_norm is 'yes'; it must be true or false"),
        ({"max_relative_position": None, "norm_eps": 0}, "norm_eps is 0; it must be a number above 0"),
        ({"max_relative_position": None, "prefix_tokens": -1}, "prefix_tokens is -1; it must be a whole number from 0 to 64"),
        (
            {"max_relative_position": None, "prefix_tokens": 0, "global_pool": "token"},
            "global_pool is token, but prefix_tokens is 0; the head needs a class token, or global_pool: avg",
        ),
        ({"block_order": [0, 1, 2]}, "block_order is [0, 1, 2]; it must be empty or hold each number from 0 to 5 once"),
        ({"block_order": [0, 1, 2, 3, 4, 4]}, "block_order is [0, 1, 2, 3, 4, 4]; it must be empty or hold each number"),
        ({"block_order": [0, 1, 2, 3, 4, True]}, "block_order is [0, 1, 2, 3, 4, True]; it must be"),
        ({"block_order": 5}, "block_order is 5; it must be empty or hold"),
        ({"full_width_norms": True}, "full_width_norms is true, which only a space without relative position may have"),
        ({"max_relative_position": None, "full_width_norms": 1}, "full_width_norms is 1; it must be true or false"),
    ],
)
def test_fields_of_plain_vits_that_are_illegal_are_named(fields, message):
    with pytest.raises(SpaceError) as refused:
        SearchSpace.from_dict({**PRESETS["micro"].to_dict(), **fields}, source="mine")
    assert str(refused.value).startswith(f"mine: {message}")
    if not {"block_order", "full_width_norms"} & set(fields):
        architecture = Architecture.of(PRESETS["micro"], PRESETS["micro"].smallest).to_dict()
        with pytest.raises(CheckpointError) as refused:
            Architecture.from_dict({**architecture, **fields}, source="mine")
        assert "mine: " in str(refused.value)
        assert next(reversed(fields)) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embed_dims: [8]", "unknown field 'embed_dims'; did you mean embed_dim"),
        ("embed_dim: [8]\nnum_heads: [1]\ndepth: [1]", "mlp_ratio is missing"),
        ("embed_dim: [8, 8]\nnum_heads: [1]\nmlp_ratio: [1]\ndepth: [1]", "has the same choice twice"),
        ("embed_dim: {min: 8, max: 17, step: 4}\nnum_heads: [1]\nmlp_ratio: [1]\ndepth: [1]", "not min 8 plus a number of steps"),
        ("embed_dim: [8]\nnum_heads: [1]\nmlp_ratio: [1]\ndepth: [1]\nmax_depth: 0.5", "max_depth is 0.5"),
        ("embed_dim: [8]\nnum_heads: [2]\nmlp_ratio: [1]\ndepth: [1]\nmax_num_heads: 1", "below the largest choice"),
        ("embed_dim: [8]\nnum_heads: [2]\nmlp_ratio: [1]\ndepth: [1]\nimage_size: 30", "not a multiple of patch_size"),
        ("- 1", "a search space is a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_broken_spaces_are_named(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError, match=rf"broken\.yaml: .*{message}"):
        load_space(path)


def test_an_unknown_preset_lists_the_legal_ones():
    with pytest.raises(
        SpaceError, match=r"'autoformer-x'; did you mean autoformer-\w\? legal are autoformer-t, .* or micro, or a YAML file"
    ):
        load_space("autoformer-x")


@pytest.mark.parametrize(
    ("name", "size", "patch", "distance"),
    [
        ("micro", 14, 2, 6), ("micro", 32, 4, 7), ("micro", 56, 8, 6), ("micro", 100, 10, 9), ("micro", 112, 16, 6),
        ("micro", 224, 32, 6), ("autoformer-t", 112, 8, 14), ("autoformer-t", 384, 24, 16), ("autoformer-s", 448, 32, 14),
    ],
)  # fmt: skip
def test_a_space_at_another_image_size(name, size, patch, distance):
    space = PRESETS[name]
    resized = space.resized(size)
    assert resized == space.replace(name=f"{name}-{size}px", image_size=size, patch_size=patch, max_relative_position=distance)
    assert space.grid_size <= resized.grid_size <= 2 * space.grid_size
    assert load_space(resized.name) == resized
    # Positions as far apart as the whole image is wide are told apart where they were.
    assert (distance >= resized.grid_size - 1) == (space.max_relative_position >= space.grid_size - 1)
    assert SearchSpace.from_dict(resized.to_dict()) == resized


def test_the_own_image_size_changes_nothing():
    assert PRESETS["micro"].resized(28) is PRESETS["micro"]
    assert load_space("micro-28px") == PRESETS["micro"]
    assert load_space("micro-56px").resized(112) == load_space("micro-112px")


@pytest.mark.parametrize(("size", "near"), [(101, "100 or 104"), (3, "7"), (41, "40 or 42"), (211, "210 or 216")])
def test_an_image_size_that_cannot_be_cut_names_sizes_that_can(size, near):
    with pytest.raises(SpaceError, match=rf"^image_size is {size}, but micro needs a size .* per side, such as {near}; a YAML"):
        PRESETS["micro"].resized(size)


def test_a_byte_order_mark_is_skipped_and_utf_16_is_named(tmp_path):
    subnet, space = tmp_path / "s.json", tmp_path / "mine.yaml"
    texts = {subnet: json.dumps(PRESETS["micro"].smallest.to_dict()), space: yaml.safe_dump(PRESETS["micro"].to_dict())}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8-sig")
    assert Subnet.load(subnet) == PRESETS["micro"].smallest
    assert load_space(space) == PRESETS["micro"]
    for path, text in texts.items():
        path.write_text(text, encoding="utf-16")
    with pytest.raises(SubnetError, match=r"s\.json: the subnet file can't be read \(it is not text in UTF-8\); save it as UTF-8$"):
        Subnet.load(subnet)
    with pytest.raises(
        SpaceError, match=r"mine\.yaml: the search space can't be read \(it is not text in UTF-8\); save it as UTF-8$"
    ):
        load_space(space)
