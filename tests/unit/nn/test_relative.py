from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.nn.relative import grid_index, relative_attention
from tests.reference import naive_relative_attention


def _inputs(rows, cols, clip, head_dim, heads=2, batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    qkv = [random(batch, heads, rows * cols + 1, head_dim) for _ in range(3)]
    tables = [random(2 * clip + 2, head_dim) for _ in range(4)]
    return qkv, tables


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 7), cols=st.integers(1, 7), clip=st.integers(1, 9), head_dim=st.sampled_from([1, 4, 8, 16]))
def test_equals_the_written_out_formula(rows, cols, clip, head_dim):
    (q, k, v), tables = _inputs(rows, cols, clip, head_dim)
    scale = head_dim**-0.5
    out = relative_attention(q, k, v, (tables[0], tables[1]), (tables[2], tables[3]), grid_index(rows, cols, clip), scale)
    oracle = naive_relative_attention(q, k, v, (tables[0], tables[1]), (tables[2], tables[3]), rows, cols, scale)
    torch.testing.assert_close(out, oracle, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rows", "cols", "clip"), [(4, 4, 14), (6, 6, 3), (3, 5, 2)])
def test_gradients_equal_the_written_out_formulas(rows, cols, clip):
    (q, k, v), tables = _inputs(rows, cols, clip, 8)
    leaves = [q, k, v, *tables]
    grid = grid_index(rows, cols, clip)
    out = relative_attention(q, k, v, (tables[0], tables[1]), (tables[2], tables[3]), grid, 0.3)
    oracle = naive_relative_attention(q, k, v, (tables[0], tables[1]), (tables[2], tables[3]), rows, cols, 0.3)
    weight = torch.randn(out.shape, dtype=out.dtype)
    ours = torch.autograd.grad((out * weight).sum(), leaves)
    theirs = torch.autograd.grad((oracle * weight).sum(), leaves)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_large_tables_stay_accurate_in_float32():
    (q, k, v), tables = _inputs(14, 14, 14, 64, dtype=torch.float32)
    args = (q, k, v, (tables[0], tables[1]), (tables[2], tables[3]))
    out = relative_attention(*args, grid_index(14, 14, 14), 64**-0.5)
    exact = naive_relative_attention(
        *(a.double() if torch.is_tensor(a) else tuple(t.double() for t in a) for a in args), 14, 14, 64**-0.5
    )
    assert ((out - exact).abs().max() / exact.abs().max()).item() < 5e-6
