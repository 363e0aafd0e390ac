"""The compiled kernels, in every set of instructions that this CPU has, against formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.nn.evaluation import kernels
from growtas.nn.relative import grid_index

compiled = pytest.importorskip(
    "growtas.nn.evaluation._kernels", reason="growtas was installed without a C compiler", exc_type=ImportError
)


def sets():
    found = []
    for name in ("avx512", "avx2", "plain"):
        try:
            compiled.instructions(name)
        except ValueError:
            continue
        found.append(name)
    compiled.instructions(found[0])
    return found


@pytest.fixture(params=sets())
def instructions(request):
    """Each set in turn; the best one, which is first, afterwards."""
    compiled.instructions(request.param)
    yield request.param
    compiled.instructions(sets()[0])


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_set_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no kernels for sse9"):
        compiled.instructions("sse9")
    assert kernels.instructions() in ("avx512", "avx2", "plain")


@given(rows=st.integers(1, 9), columns=st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_gelu_of_any_shape(rows, columns):
    x, bias = numbers(rows, columns, seed=rows, scale=3), numbers(columns, seed=columns)
    expected = F.gelu((x + bias).double())
    out = kernels.bias_gelu_(x, bias)
    assert out is x
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)


def test_gelu_over_its_whole_range(instructions):
    x = torch.linspace(-30, 30, 60_001)[None].contiguous()
    expected = 0.5 * x.double() * torch.erfc(-x.double() / math.sqrt(2))
    out = kernels.bias_gelu_(x.clone(), torch.zeros(x.shape[1])).double()
    # As near as PyTorch's own, relative to the input: the far negative end is a difference of nearly equal numbers in both.
    error, own = ((approximate - expected).abs() / x.abs().clamp_min(1) for approximate in (out, F.gelu(x).double()))
    assert error.max() < max(2.5e-7, 1.5 * own.max())


@given(rows=st.integers(1, 9), columns=st.integers(2, 100))
@settings(max_examples=40, deadline=None)
def test_layer_norm_of_any_shape(rows, columns):
    x, weight, bias = numbers(rows, columns, seed=columns) * 3 + 5, numbers(columns + 3, seed=1), numbers(columns + 3, seed=2)
    expected = F.layer_norm(x.double(), (columns,), weight[:columns].double(), bias[:columns].double(), 1e-5)
    torch.testing.assert_close(kernels.layer_norm(x, weight, bias, 1e-5).double(), expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_in_every_set(instructions):
    x, weight, bias = numbers(7, 216), numbers(216, seed=1), numbers(216, seed=2)
    expected = F.layer_norm(x.double(), (216,), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(kernels.layer_norm(x, weight, bias, 1e-5).double(), expected, rtol=1e-5, atol=1e-6)


def attention_inputs(grid_size, heads, head_dim, images, scale=1.0):
    grid = grid_index(grid_size, grid_size, 3)
    tokens, lines = grid.onehot.shape
    key, value = numbers(tokens, head_dim, lines, seed=1, scale=0.2), numbers(tokens, lines, head_dim, seed=2)
    key[..., grid.num_lines :], value[:, grid.num_lines :] = 0, 0
    qkv = numbers(images * tokens, 3 * heads * head_dim, seed=3)
    qkv[:, : heads * head_dim] *= scale
    return qkv, numbers(heads * head_dim, seed=4, scale=scale), key, value, grid


def attention_by_formulas(qkv, bias, key, value, grid, heads, head_dim):
    """Logit by logit and value by value, with the relative vectors written out, (N, N, head_dim)."""
    tokens = len(grid.onehot)
    onehot = grid.onehot.double()
    q, k, v = qkv.double().view(-1, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    q = q + bias.double().view(heads, 1, head_dim)
    relative_keys = torch.einsum("idl,jl->ijd", key.double(), onehot)
    relative_values = torch.einsum("ild,jl->ijd", value.double(), onehot)
    logits = torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, relative_keys)
    weights = torch.softmax(logits * math.log(2), -1)
    out = weights @ v + torch.einsum("bhij,ijd->bhid", weights, relative_values)
    return out.transpose(1, 2).reshape(-1, heads * head_dim)


# More queries than go together (48), keys that fill a vector, grids of odd size.
@pytest.mark.parametrize(("grid_size", "heads", "head_dim", "images"), [(7, 2, 16, 5), (4, 1, 32, 1), (1, 3, 16, 2), (9, 1, 64, 3)])
def test_attention_agrees_with_the_formulas(instructions, grid_size, heads, head_dim, images):
    qkv, bias, key, value, grid = attention_inputs(grid_size, heads, head_dim, images, 0.5)
    out = kernels.attend(qkv, bias, kernels.PositionTables.of(key, value, grid), images)
    expected = attention_by_formulas(qkv, bias, key, value, grid, heads, head_dim)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_images_that_don_t_fit_the_scratch_at_once(monkeypatch, instructions):
    qkv, bias, key, value, grid = attention_inputs(5, 2, 16, 7)
    tables = kernels.PositionTables.of(key, value, grid)
    together = kernels.attend(qkv, bias, tables, 7)
    monkeypatch.setattr(kernels, "SCRATCH_BYTES", 3 * 4 * 2 * 26 * 32)
    assert torch.equal(kernels.attend(qkv, bias, tables, 7), together)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_large_logits(instructions, scale):
    qkv, bias, key, value, grid = attention_inputs(5, 1, 16, 2, scale)
    out = kernels.attend(qkv, bias, kernels.PositionTables.of(key, value, grid), 2)
    expected = attention_by_formulas(qkv, bias, key, value, grid, 1, 16)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)


def test_logits_that_are_not_numbers_stay_so(instructions):
    qkv, bias, key, value, grid = attention_inputs(3, 1, 16, 2)
    bias[3] = float("nan")
    assert kernels.attend(qkv, bias, kernels.PositionTables.of(key, value, grid), 2).isnan().all()


def test_what_the_kernels_can_t_take():
    assert kernels.usable(torch.float32, 16)
    assert not kernels.usable(torch.float64, 16)
    assert not kernels.usable(torch.float32, 24)
