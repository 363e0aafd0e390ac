from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from growtas import Architecture, SearchSpace, Subnet, Supernet, VisionTransformer, extract
from growtas.nn import supernet, vit
from growtas.nn.fused import attention, mlp
from growtas.nn.fused.attention import fused_attention, padded_keys
from growtas.nn.fused.common import fusable, parts
from growtas.nn.fused.layout import Layout
from growtas.nn.fused.mlp import fused_mlp
from growtas.nn.relative import grid_index
from tests.reference import naive_relative_attention

SPACE = SearchSpace(
    name="odd", embed_dim=(12, 20), num_heads=(1, 2, 3), mlp_ratio=(1.5, 2.7), depth=(2,), head_dim=8, image_size=12,
    patch_size=4, num_classes=5, max_relative_position=2, max_embed_dim=24, max_mlp_ratio=3.0,
)  # fmt: skip
SUBNET = Subnet(20, (3, 1), (1.5, 2.7))


def _randomise(module, generator):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.5)


def _norm(x, norm, eps=1e-5):
    dim = x.shape[-1]
    return F.layer_norm(x, (dim,), norm.weight[:dim], norm.bias[:dim], eps)


def _agree(function, oracle, leaves, *, needed=None):
    """Values and gradients of both for a random outer gradient; ``leaves`` may hold some without gradient."""
    ours, plain = function(), oracle()
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    weight = torch.randn(plain.shape, dtype=plain.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    got = torch.autograd.grad((ours * weight).sum(), wanted)
    want = torch.autograd.grad((plain * weight).sum(), wanted)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    return got


def _tokens(generator, batch, tokens, dim, *, layout="plain"):
    x = torch.randn(batch, tokens, dim, generator=generator, dtype=torch.float64)
    if layout == "transposed":
        x = torch.randn(tokens, batch, dim, generator=generator, dtype=torch.float64).transpose(0, 1)
    elif layout == "strided":
        x = torch.randn(batch, tokens, 2 * dim, generator=generator, dtype=torch.float64)[..., ::2]
    return x.requires_grad_()


shapes = {
    "seed": st.integers(0, 999),
    "batch": st.integers(1, 5),
    "layout": st.sampled_from(["plain", "transposed", "strided"]),
    "residual": st.booleans(),
    "frozen": st.sets(st.integers(0, 6)),
}


@settings(max_examples=60, deadline=None)
@given(
    **shapes,
    tokens=st.integers(1, 9),
    dim=st.integers(2, 9),
    hidden=st.integers(1, 13),
    spare=st.integers(0, 3),
    rows=st.integers(1, 50),
    eps=st.sampled_from([1e-5, 1e-6]),
)
def test_the_mlp_half_agrees_with_autograd(seed, batch, layout, residual, frozen, tokens, dim, hidden, spare, rows, eps):
    generator = torch.Generator().manual_seed(seed)
    x = _tokens(generator, batch, tokens, dim, layout=layout)
    norm = nn.LayerNorm(dim + spare, eps=eps)
    fc1, fc2 = nn.Linear(dim + spare, hidden + spare), nn.Linear(hidden + spare, dim + spare)
    layers = nn.ModuleList([norm, fc1, fc2]).double()
    _randomise(layers, generator)
    leaves = [x, *layers.parameters()]
    if len(frozen) < 7:
        for index in frozen:
            leaves[index].requires_grad_(False)

    def plain():
        y = F.gelu(F.linear(_norm(x, norm, eps), fc1.weight[:hidden, :dim], fc1.bias[:hidden]))
        return F.linear(y, fc2.weight[:dim, :hidden], fc2.bias[:dim]) + (x if residual else 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp, "ROWS", rows)
        _agree(lambda: fused_mlp(x, norm, fc1, fc2, hidden, residual=residual), plain, leaves)
        with torch.no_grad():
            torch.testing.assert_close(fused_mlp(x, norm, fc1, fc2, hidden, residual=residual), plain(), rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    **shapes, rows=st.integers(1, 4), cols=st.integers(1, 4), heads=st.integers(1, 3), head_dim=st.integers(1, 8),
    dim=st.integers(2, 9), spare=st.integers(0, 3), interleaved=st.booleans(), normed=st.booleans(), part=st.integers(1, 5000),
    filled=st.integers(0, 3),
)  # fmt: skip
def test_the_attention_half_agrees_with_autograd(
    seed, batch, layout, residual, frozen, rows, cols, heads, head_dim, dim, spare, interleaved, normed, part, filled
):
    generator, grid, width = torch.Generator().manual_seed(seed), grid_index(rows, cols, 2), heads * head_dim
    x = _tokens(generator, batch, rows * cols + 1, dim, layout=layout)
    norm, qkv = nn.LayerNorm(dim + spare), nn.Linear(dim + spare, 3 * (width + spare))
    proj = nn.Linear(width + spare, dim + spare)
    tables = nn.ParameterList(torch.empty(6, head_dim) for _ in range(4))
    layers = nn.ModuleList([norm, qkv, proj, tables]).double()
    _randomise(layers, generator)
    leaves = [x, *(layers if normed else layers[1:]).parameters()]
    for index in frozen:
        leaves[index].requires_grad_(False)

    def fused():
        cut = Layout(heads, grid, interleaved, residual)
        return fused_attention(x, norm if normed else None, qkv, tuple(tables), proj, cut)

    def plain():
        y = _norm(x, norm) if normed else x
        q, k, v = (
            F.linear(
                y,
                qkv.weight[: 3 * width, :dim][i::3] if interleaved else qkv.weight[i * width : (i + 1) * width, :dim],
                qkv.bias[i * width : (i + 1) * width],
            ).unflatten(-1, (heads, head_dim)).transpose(1, 2)
            for i in range(3)
        )  # fmt: skip
        out = naive_relative_attention(q, k, v, tuple(tables[:2]), tuple(tables[2:]), rows, cols, head_dim**-0.5)
        out = F.linear(out.transpose(1, 2).flatten(2), proj.weight[:dim, :width], proj.bias[:dim])
        return out + x if residual else out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PART_BYTES", part)
        patch.setattr(attention, "padded_keys", lambda tokens: tokens + filled)
        _agree(fused, plain, leaves)
        with torch.no_grad():
            torch.testing.assert_close(fused(), plain(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("tokens", "keys"), [(197, 208), (257, 272), (577, 592), (31, 32), (32, 32), (50, 50), (17, 17), (1, 1)])
def test_rows_are_filled_up_where_that_is_cheap(tokens, keys):
    assert padded_keys(tokens) == keys


def test_the_functions_own_gradients_pass_gradcheck():
    generator, grid = torch.Generator().manual_seed(0), grid_index(2, 2, 1)
    x = _tokens(generator, 2, 5, 3)
    layers = nn.ModuleList([nn.LayerNorm(4), nn.Linear(4, 15), nn.Linear(5, 4)]).double()
    _randomise(layers, generator)
    tables = [torch.randn(4, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(4)]

    def function(x, *_):
        return fused_attention(x, layers[0], layers[1], tuple(tables), layers[2], Layout(1, grid, True, True))

    assert torch.autograd.gradcheck(function, (x, *tables, *layers.parameters()))


def _model(kind, *, drop_path=0.0):
    torch.manual_seed(0)
    net = Supernet(SPACE, drop_path_rate=drop_path)
    _randomise(net, torch.Generator().manual_seed(1))
    if kind == "supernet":
        return net, lambda images: net(images, SUBNET)
    static = VisionTransformer(Architecture.of(SPACE, SUBNET), drop_path_rate=drop_path)
    static.load_state_dict(extract(net, SUBNET).state_dict())
    return static, static


def _never(monkeypatch):
    monkeypatch.setattr(vit, "fusable", lambda *_: False)
    for module in (vit, supernet):
        monkeypatch.setattr(module, "mlp_fusable", lambda *_: False)


def _gradients(model, forward, images):
    model.zero_grad()
    torch.manual_seed(7)
    logits = forward(images)
    F.cross_entropy(logits, torch.arange(len(images)) % SPACE.num_classes).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("drop_path", [0.0, 0.6])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("kind", ["static", "supernet"])
def test_whole_networks_train_as_with_plain_operations(kind, batch, drop_path, monkeypatch):
    model, forward = _model(kind, drop_path=drop_path)
    model.train().double()
    images = torch.randn(batch, 3, 12, 12, dtype=torch.float64)
    used = []
    for name in ("fused_mlp", "fused_attention"):
        for module in (vit, supernet):
            if hasattr(module, name):
                original = getattr(module, name)
                monkeypatch.setattr(module, name, lambda *a, _f=original, **k: used.append(1) or _f(*a, **k))
    logits, gradients = _gradients(model, forward, images)
    assert len(used) == 4
    _never(monkeypatch)
    plain_logits, plain = _gradients(model, forward, images)
    assert len(used) == 4
    torch.testing.assert_close(logits, plain_logits, rtol=1e-10, atol=1e-10)
    for name, gradient in plain.items():
        assert (gradient is None) == (gradients[name] is None)
        if gradient is not None:
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["static", "supernet"])
def test_reruns_are_bit_identical(kind):
    images = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    model, forward = _model(kind, drop_path=0.3)
    (first, one), (second, two) = _gradients(model, forward, images), _gradients(model, forward, images)
    assert torch.equal(first, second)
    for name, gradient in one.items():
        assert gradient is None or torch.equal(gradient, two[name])


def test_gradients_can_be_accumulated_and_weights_are_not_aliased():
    model, forward = _model("supernet")
    images = torch.randn(2, 3, 12, 12)
    _, once = _gradients(model, forward, images)
    once = {name: gradient.clone() for name, gradient in once.items() if gradient is not None}
    F.cross_entropy(forward(images), torch.arange(2)).backward()
    for name, gradient in once.items():
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * gradient)


@pytest.mark.parametrize("kind", ["static", "supernet"])
def test_an_empty_batch_has_zero_gradients(kind):
    model, _ = _model(kind)
    tokens = torch.zeros(0, 10, 20, requires_grad=True)
    if kind == "static":
        out = model.blocks[0](tokens)
    else:
        out = model.mlp_layer(model.attention_layer(tokens, 0, 2), 0, 30)
    assert out.shape == tokens.shape
    out.sum().backward()
    for parameter in model.blocks[0].parameters():
        assert not parameter.grad.any()


def test_a_changed_weight_is_noticed():
    model, forward = _model("static")
    logits = forward(torch.randn(2, 3, 12, 12))
    with torch.no_grad():
        model.blocks[0].fc1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_second_derivatives_are_refused():
    model, forward = _model("static")
    (gradient,) = torch.autograd.grad(forward(torch.randn(2, 3, 12, 12)).sum(), [model.blocks[0].fc2.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class TestWhereTheFusedFormMustNotStandIn:
    def test_ordinary_tensors_may(self):
        assert fusable(torch.zeros(1, 2, 4), [nn.Linear(4, 4), nn.LayerNorm(4)], [nn.Embedding(2, 2)])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        assert not fusable(torch.zeros(1, 2, 4, dtype=dtype), [nn.Linear(4, 4).to(dtype)])

    def test_mixed_types_and_devices(self):
        assert not fusable(torch.zeros(1, 2, 4), [nn.Linear(4, 4).double()])
        assert not fusable(torch.zeros(1, 2, 4), [nn.Linear(4, 4)], [nn.Embedding(2, 2).double()])
        assert not fusable(torch.zeros(1, 2, 4, device="meta"), [nn.Linear(4, 4, device="meta")])

    def test_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            assert not fusable(torch.zeros(1, 2, 4), [nn.Linear(4, 4)])

    def test_layers_that_are_not_plain(self):
        class Adapted(nn.Linear):
            pass

        assert not fusable(torch.zeros(1, 2, 4), [Adapted(4, 4)])
        assert not fusable(torch.zeros(1, 2, 4), [nn.Linear(4, 4, bias=False)])
        parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        assert not fusable(torch.zeros(1, 2, 4), [parametrised])

    @pytest.mark.parametrize("path", ["norm2", "fc1", "fc2", "norm1", "attn", "attn.qkv", "attn.proj", "attn.relative_key"])
    def test_hooks_are_called(self, path):
        model, forward = _model("static")
        seen = []
        model.blocks[0].get_submodule(path).register_forward_hook(lambda *_: seen.append(path))
        forward(torch.randn(2, 3, 12, 12)).sum().backward()
        assert seen == [path]

    def test_replaced_layers_are_used(self):
        model, forward = _model("static")
        model.blocks[1].fc2 = nn.Sequential(model.blocks[1].fc2, nn.Dropout(1.0))
        model.blocks[1].attn = nn.Identity()
        images = torch.randn(2, 3, 12, 12)
        tokens = model.patch_embed(images).flatten(2).transpose(1, 2)
        tokens = model.blocks[0](torch.cat([model.cls_token.expand(2, -1, -1), tokens], 1) + model.pos_embed)
        tokens = tokens + _norm(tokens, model.blocks[1].norm1)
        torch.testing.assert_close(forward(images), model.forward_head(model.norm(tokens)))

    @pytest.mark.parametrize("kind", ["static", "supernet"])
    def test_functorch(self, kind):
        model, _ = _model(kind)
        images = torch.randn(3, 3, 12, 12)
        parameters = dict(model.named_parameters())
        arguments = (SUBNET,) if kind == "supernet" else ()

        def loss(parameters):
            return torch.func.functional_call(model, parameters, (images, *arguments)).square().sum()

        gradients = torch.func.grad(loss)(parameters)
        loss(parameters).backward()
        for name, gradient in gradients.items():
            whole = parameters[name].grad
            torch.testing.assert_close(gradient, torch.zeros_like(gradient) if whole is None else whole, rtol=1e-4, atol=1e-4)

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # The exporter's own business.
    def test_export_sees_ordinary_operations(self):
        model, _ = _model("static")
        images = torch.randn(2, 3, 12, 12)
        program = torch.export.export(model.eval(), (images,))
        names = {str(node.target) for node in program.graph.nodes}
        assert any("scaled_dot_product_attention" in name for name in names)
        assert any("gelu.default" in name for name in names)
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-5, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
    @pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
    def test_compilers_see_ordinary_operations(self):
        names = set()

        def backend(graph, _):
            names.update(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        model, _ = _model("static")
        images = torch.randn(2, 3, 12, 12)
        compiled = torch.compile(model, backend=backend)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
        assert any("scaled_dot_product_attention" in name for name in names)
        assert any("gelu" in name for name in names)

    def test_copies_and_deep_copies_keep_working(self):
        model, forward = _model("static")
        images = torch.randn(2, 3, 12, 12)
        torch.testing.assert_close(copy.deepcopy(model)(images), forward(images))


@given(st.integers(0, 500), st.integers(1, 60))
def test_parts_cover_everything_once_in_like_sizes(count, most):
    slices = parts(count, most)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in slices]
    assert len(sizes) == -(-count // most)
    assert not sizes or (max(sizes) == sizes[0] <= most and max(sizes) - min(sizes) <= 1)
