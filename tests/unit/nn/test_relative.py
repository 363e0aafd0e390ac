from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.nn.relative import grid_index, relative_attention, unroll_tables
from tests.reference import naive_relative_attention


def _inputs(rows, cols, clip, head_dim, heads=2, batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    return random(batch, rows * cols + 1, 3 * heads * head_dim), [random(2 * clip + 2, head_dim) for _ in range(4)]


def _both(qkv, tables, rows, cols, clip, heads=2):
    """Ours and the written-out formula's output, (batch, N, heads * head_dim)."""
    key_tables, value_tables = tables[:2], tables[2:]
    ours = relative_attention(qkv, key_tables, value_tables, heads, grid_index(rows, cols, clip))
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    oracle = naive_relative_attention(q, k, v, key_tables, value_tables, rows, cols, q.shape[-1] ** -0.5)
    return ours, oracle.transpose(1, 2).flatten(2)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 7), cols=st.integers(1, 7), clip=st.integers(1, 9), head_dim=st.sampled_from([1, 4, 8, 16]))
def test_equals_the_written_out_formula(rows, cols, clip, head_dim):
    qkv, tables = _inputs(rows, cols, clip, head_dim)
    ours, oracle = _both(qkv, tables, rows, cols, clip)
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rows", "cols", "clip"), [(4, 4, 14), (6, 6, 3), (3, 5, 2), (1, 1, 1)])
def test_gradients_equal_the_written_out_formulas(rows, cols, clip):
    qkv, tables = _inputs(rows, cols, clip, 8, heads=3)
    ours, oracle = _both(qkv, tables, rows, cols, clip, heads=3)
    weight = torch.randn(ours.shape, dtype=ours.dtype)
    leaves = [qkv, *tables]
    got = torch.autograd.grad((ours * weight).sum(), leaves)
    want = torch.autograd.grad((oracle * weight).sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_large_tables_stay_accurate_in_float32():
    qkv, tables = _inputs(14, 14, 14, 64, dtype=torch.float32)
    ours, _ = _both(qkv, tables, 14, 14, 14)
    _, exact = _both(qkv.double(), [table.double() for table in tables], 14, 14, 14)
    assert ((ours - exact).abs().max() / exact.abs().max()).item() < 5e-6


def test_bfloat16_inputs_keep_their_type():
    qkv, tables = _inputs(4, 4, 3, 16, dtype=torch.float32)
    ours = relative_attention(qkv.bfloat16(), tables[:2], tables[2:], 2, grid_index(4, 4, 3))
    exact, _ = _both(qkv, tables, 4, 4, 3)
    assert ours.dtype == torch.bfloat16
    assert ((ours.float() - exact).abs().max() / exact.abs().max()).item() < 0.05


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), clip=st.integers(1, 7))
def test_the_unrolling_matrix_does_what_the_function_does(rows, cols, clip):
    grid = grid_index(rows, cols, clip)
    vertical, horizontal = (torch.randn(2 * clip + 2, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    table, cls_entry = unroll_tables(vertical, horizontal, grid)
    torch.testing.assert_close(grid.unroll @ torch.cat([vertical, horizontal]), torch.cat([table, cls_entry[None]]))
