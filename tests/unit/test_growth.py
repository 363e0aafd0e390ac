from __future__ import annotations

import numpy as np
import pytest

from growtas.costs import count_costs_batch
from growtas.errors import ConfigError
from growtas.growth import GrowthSchedule, Subspace, default_subspaces, growth_schedule
from growtas.sampling import sample_batch
from growtas.space import PRESETS


def test_the_papers_schedule_has_two_stages():
    schedule = growth_schedule(PRESETS["autoformer-t"], 500, transitions=[250])
    assert schedule.subspaces[schedule.stage(0)] == schedule.subspaces[schedule.stage(249)] == Subspace(max_embed_dim=192)
    assert schedule.subspaces[schedule.stage(250)] == schedule.subspaces[schedule.stage(499)] == Subspace()
    assert [schedule.stage(e) for e in (0, 249.99, 250, 500)] == [0, 0, 1, 1]


def test_subnets_below_6m_of_autoformer_t_fall_into_the_first_subspace():
    space = PRESETS["autoformer-t"]
    batch = sample_batch(space, 50_000, np.random.default_rng(0))
    small = batch[count_costs_batch(space, batch)[0] < 6_000_000]
    assert len(small) > 100
    assert all(default_subspaces(space)[0].holds(subnet) for subnet in small)


def test_any_number_of_stages_is_nested_and_ends_with_the_whole_space():
    space = PRESETS["micro"]
    for stages in (1, 2, 3):
        schedule = growth_schedule(space, 30, stages=stages)
        assert len(schedule.subspaces) == stages
        assert schedule.subspaces[schedule.stage(29.9)].restrict(space) == space
        open_stages = [schedule.stage(epoch) for epoch in range(30)]
        assert open_stages == sorted(open_stages)
        assert set(open_stages) == set(range(stages))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": 4}, "stages is 4; micro has 3 choices"),
        ({"transitions": [30]}, "must lie inside the training of 30 epochs"),
        ({"transitions": [5, 10]}, r"transitions has 2 epochs \(5, 10\); a training of 2 stages has 1"),
        ({"subspaces": [Subspace(), Subspace(32)], "transitions": [5]}, "must be nested"),
        ({"subspaces": [Subspace(max_mlp_ratio=1), Subspace()], "transitions": [5]}, "with mlp_ratio up to 1 is empty"),
        ({"stages": 3, "transitions": [10, 5]}, "must ascend"),
    ],
)
def test_wrong_schedules_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        growth_schedule(PRESETS["micro"], 30, **arguments)


def test_caps_bound_width_and_every_ratio():
    cap = Subspace(max_embed_dim=216, max_mlp_ratio=3.5)
    space = PRESETS["autoformer-t"]
    restricted = cap.restrict(space)
    assert restricted.embed_dim == (192, 216)
    assert restricted.mlp_ratio == (3.5,)
    assert (restricted.max_embed_dim, restricted.max_mlp_ratio) == (256, 4.0)
    assert GrowthSchedule((cap, Subspace()), (1.0,)).stage(1) == 1
