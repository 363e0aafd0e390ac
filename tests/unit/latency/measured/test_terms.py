from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch
from growtas.latency.measured.terms import BASES, CHUNK, term_names, terms, weighted_sum
from growtas.sampling import sample, sample_batch
from growtas.space import PRESETS
from growtas.subnet import Subnet
from tests.reference import PLAIN, plain_space

TINY, MICRO = PRESETS["autoformer-t"], PRESETS["micro"]


def _named(space, subnet, basis="stepped"):
    values = terms(space, basis, SubnetBatch.from_subnets([subnet]))[0]
    return dict(zip(term_names(space, basis), values.tolist(), strict=True))


def test_terms_of_a_subnet_counted_by_hand():
    # 50 tokens, heads of 16 channels, hidden widths 96 and 144.
    named = _named(MICRO, Subnet(48, (2, 4), (2.0, 3.0)))
    assert (named["constant"], named["blocks"], named["heads"], named["token_channels"]) == (1, 2, 6, 96)
    assert named["attention_macs"] == 50 * 48 * 16 * 6 * 4
    assert named["mlp_macs"] == 2 * 50 * 48 * (96 + 144)
    assert named["hidden_dim"] == 240
    assert (named["blocks if embed_dim >= 48"], named["blocks if embed_dim >= 64"]) == (2, 0)
    assert named["mlp_macs if embed_dim >= 48"] == named["mlp_macs"]
    assert (named["blocks with num_heads >= 3"], named["channels of blocks with num_heads >= 4"]) == (1, 48)
    assert (named["blocks with mlp_ratio >= 3"], named["blocks with mlp_ratio >= 4"]) == (1, 0)


@pytest.mark.parametrize("space", [TINY, *(plain_space(MICRO, kind) for kind in PLAIN)], ids=lambda space: space.name)
def test_the_macs_term_is_the_count_of_macs(space):
    batch = sample_batch(space, 50, np.random.default_rng(0))
    column = term_names(space, "coarse").index("macs")
    assert np.array_equal(terms(space, "coarse", batch)[:, column], count_costs_batch(space, batch)[1])


def test_each_basis_holds_the_one_before():
    names = [term_names(TINY, basis) for basis in BASES]
    assert all(longer[: len(shorter)] == shorter and len(longer) > len(shorter) for shorter, longer in pairwise(names))
    assert len(set(names[-1])) == len(names[-1])


def test_a_long_list_of_choices_gets_few_steps():
    wide = MICRO.replace(embed_dim=tuple(range(32, 65, 2)), max_embed_dim=64)
    steps = [name for name in term_names(wide, "stepped") if name.startswith("blocks if embed_dim")]
    assert steps == [f"blocks if embed_dim >= {threshold}" for threshold in (34, 50, 64)]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(PRESETS)), st.integers(0, 2**32 - 1))
def test_no_term_falls_when_a_subnet_grows(name, seed):
    space, rng = PRESETS[name], np.random.default_rng(seed)
    small, other = sample(space, rng), sample(space, rng)
    depth = max(small.depth, other.depth)

    def larger(first, second):
        return tuple(max([*first[i : i + 1], *second[i : i + 1]]) for i in range(depth))

    large = Subnet(
        max(small.embed_dim, other.embed_dim), larger(small.num_heads, other.num_heads), larger(small.mlp_ratio, other.mlp_ratio)
    )
    low, high = terms(space, "stepped", SubnetBatch.from_subnets([small, large]))
    assert (low >= 0).all()
    assert (low <= high).all()


@pytest.mark.parametrize("basis", BASES)
def test_the_sum_in_chunks_is_the_matrix_product(basis):
    rng = np.random.default_rng(1)
    batch = sample_batch(MICRO, CHUNK + 77, rng)
    coefficients = rng.uniform(0, 1, len(term_names(MICRO, basis)))
    coefficients[2] = 0
    assert weighted_sum(MICRO, basis, batch, coefficients) == pytest.approx(terms(MICRO, basis, batch) @ coefficients)
