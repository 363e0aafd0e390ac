from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.nn.evaluation import kernels
from growtas.nn.evaluation.layers import EvaluationLayers
from growtas.nn.supernet import Supernet
from growtas.space import PRESETS
from tests.reference import plain_space

SPACES = {
    "micro": PRESETS["micro"].replace(image_size=16, in_chans=1),
    # Another grid and head dimension; choices with gaps between them.
    "odd": PRESETS["micro"].replace(image_size=20, head_dim=8, num_heads=(1, 3, 4), mlp_ratio=(0.5, 3.5), embed_dim=(24, 40)),
}
SPACES["qk_norm"] = plain_space(SPACES["odd"], "qk_norm")


def supernet_of(name, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    supernet = Supernet(SPACES[name]).eval()
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return supernet.to(dtype)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [True, False])
@torch.inference_mode()
def test_all_choices_agree_with_the_supernet(monkeypatch, name, dtype, compiled):
    if not compiled:
        # As where growtas was installed without a compiler.
        monkeypatch.setattr(kernels, "usable", lambda *_: False)
    space, supernet = SPACES[name], supernet_of(name, dtype)
    layers, tolerance = EvaluationLayers(supernet), 1e-5 if dtype == torch.float32 else 1e-12
    for dim in space.embed_dim:
        x = torch.randn(3, space.num_tokens, dim, dtype=dtype, generator=torch.Generator().manual_seed(dim))
        hidden = [int(dim * ratio) for ratio in space.mlp_ratio]
        for index in (0, space.max_depth - 1):
            for heads, out in zip(space.num_heads, layers.attention(x, index, space.num_heads), strict=True):
                torch.testing.assert_close(out, supernet.attention_layer(x, index, heads), rtol=tolerance, atol=tolerance)
            for size, out in zip(hidden, layers.mlp(x, index, hidden), strict=True):
                torch.testing.assert_close(out, supernet.mlp_layer(x, index, size), rtol=tolerance, atol=tolerance)


@given(st.data())
@settings(max_examples=25, deadline=None)
@torch.inference_mode()
def test_a_subnets_bits_do_not_depend_on_the_others_of_a_call(data):
    space, supernet = SPACES["odd"], supernet_of("odd")
    layers = EvaluationLayers(supernet)
    dim = data.draw(st.sampled_from(space.embed_dim))
    x = torch.randn(2, space.num_tokens, dim, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    heads = data.draw(st.lists(st.sampled_from(space.num_heads), min_size=1, unique=True))
    sizes = data.draw(st.lists(st.sampled_from([int(dim * ratio) for ratio in space.mlp_ratio]), min_size=1, unique=True))
    for half, genes, choices in (
        (layers.attention, heads, layers.head_choices),
        (layers.mlp, sizes, layers.hidden_choices(dim)),
    ):
        together = half(x, 1, genes)
        for gene, out in zip(genes, together, strict=True):
            assert torch.equal(out, half(x, 1, [gene])[0])
        # Going on from a smaller choice, and writing to a given tensor.
        for smaller in (choice for choice in choices if choice < min(genes)):
            partial = half(x, 1, [smaller])[0]
            untouched, targets = partial.clone(), [torch.empty_like(x), *[None] * (len(genes) - 1)]
            again = half(x, 1, genes, targets, (smaller, partial))
            assert all(torch.equal(one, other) for one, other in zip(again, together, strict=True))
            assert again[0] is targets[0]
            assert torch.equal(partial, untouched)
    assert torch.equal(x, before)


@torch.inference_mode()
def test_large_logits_do_not_overflow():
    supernet = supernet_of("micro")
    supernet.blocks[0].attn.qkv.weight.mul_(40)
    x = torch.randn(2, SPACES["micro"].num_tokens, 32, generator=torch.Generator().manual_seed(2))
    out = EvaluationLayers(supernet).attention(x, 0, [2])[0]
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, supernet.attention_layer(x, 0, 2), rtol=1e-3, atol=1e-2)


@torch.inference_mode()
def test_choices_beyond_the_space_and_watched_layers_take_the_supernets_own_way():
    supernet, space = supernet_of("odd"), SPACES["odd"]
    layers = EvaluationLayers(supernet)
    x = torch.randn(2, space.num_tokens, 24, generator=torch.Generator().manual_seed(3))
    assert torch.equal(layers.attention(x, 0, [2])[0], supernet.attention_layer(x, 0, 2))
    assert torch.equal(layers.mlp(x, 0, [50])[0], supernet.mlp_layer(x, 0, 50))
    calls = []
    handle = supernet.blocks[0].attn.relative_key.register_forward_hook(lambda *args: calls.append(1))
    layers.attention(x, 0, [4])
    handle.remove()
    assert calls
