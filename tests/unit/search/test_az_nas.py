from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from growtas.batch import SubnetBatch
from growtas.costs import count_costs, count_costs_batch
from growtas.nn.extract import extract
from growtas.nn.supernet import Supernet
from growtas.search.az_nas import AzNas, Proxies, rank_scores, search_by_proxies
from growtas.search.evolution import EvolutionConfig
from growtas.space import SearchSpace
from growtas.subnet import Subnet

SPACE = SearchSpace(
    name="tiny",
    embed_dim=(8, 12, 16), num_heads=(1, 2, 3), mlp_ratio=(1.0, 1.5, 2.0), depth=(1, 2, 3),
    head_dim=8, image_size=8, patch_size=4, in_chans=1, num_classes=5, max_relative_position=1,
)  # fmt: skip


def _features(model, images):
    """Residual features after each attention and each MLP of a static network."""
    features, handles = [], []
    for block in model.blocks:
        handles += [block.register_forward_hook(lambda _, __, out: features.append(out))]
        handles += [block.norm2.register_forward_pre_hook(lambda _, args: features.append(args[0]))]
    model(images)
    for handle in handles:
        handle.remove()
    return features


def test_the_proxies_are_those_of_the_definition():
    """Against NumPy on the features of the extracted network, with the whole Jacobian between neighbours."""
    subnet = Subnet(12, (2, 1), (1.5, 2.0))
    proxies = AzNas(SPACE, images=5, seed=3)(subnet)
    torch.manual_seed(3)
    supernet = Supernet(SPACE).eval()
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        features = _features(extract(supernet, subnet), images)
    assert len(features) == 4
    entropy = 0.0
    for feature in features:
        values = np.linalg.eigvalsh(np.cov(feature.flatten(0, 1).double().numpy().T, bias=True)).clip(0)
        shares = values / values.sum()
        entropy -= (shares * np.log(shares + 1e-8)).sum()
    assert proxies.expressivity == pytest.approx(entropy, rel=1e-4)
    assert proxies.macs == count_costs(SPACE, subnet).macs

    halves = [(supernet.mlp_layer, 0, 18), (supernet.attention_layer, 1, 1), (supernet.mlp_layer, 1, 24)]
    generator, gains = torch.Generator().manual_seed(3), []
    for feature, (layer, *arguments) in zip(features, halves, strict=False):
        signs = torch.randint(2, feature.shape, generator=generator).float() * 2 - 1
        jacobian = torch.autograd.functional.jacobian(lambda x, layer=layer, a=arguments: layer(x, *a), feature)
        gradient = torch.einsum("abcdef,abc->def", jacobian, signs)
        product = (gradient.flatten(0, 1).t() @ signs.flatten(0, 1)).detach().double().numpy() / (
            feature.shape[0] * feature.shape[1]
        )
        s = np.linalg.svd(product, compute_uv=False)[0]
        gains.append(-s - 1 / (s + 1e-6) + 2)
    assert proxies.trainability == pytest.approx(np.mean(gains), rel=1e-3, abs=1e-5)


def test_a_measurement_is_a_function_of_the_seed():
    subnet = SPACE.middle()
    state = torch.random.get_rng_state()
    one, other = AzNas(SPACE, 4, seed=1), AzNas(SPACE, 4, seed=2)
    assert one(subnet) == one(subnet) == AzNas(SPACE, 4, seed=1)(subnet) != other(subnet)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_score_is_the_sum_of_the_logarithms_of_ranks():
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.standard_normal(30), rng.integers(0, 5, 30), rng.integers(1, 9, 30)])
    scores = rank_scores([Proxies(float(e), float(t), int(m)) for e, t, m in table])
    ranks = np.column_stack([rankdata(column, method="max") for column in table.T])
    np.testing.assert_allclose(scores, np.log(ranks / 30).sum(axis=1))


def test_the_search_finds_the_best_legal_subnet():
    """All proxies grow with the size in a space of one width and depth, so the best subnet is the largest legal one."""
    space = SPACE.replace(embed_dim=(16,), depth=(2,))

    def measure(subnet):
        macs = count_costs(space, subnet).macs
        return Proxies(float(macs), float(macs), macs)

    limit = 0.8 * count_costs(space, space.largest).macs

    def feasible(batch: SubnetBatch):
        return count_costs_batch(space, batch)[1] <= limit

    found = search_by_proxies(
        space, feasible, np.random.default_rng(0), EvolutionConfig(generations=5, population=20), measure=measure
    )
    choices = [
        count_costs(space, Subnet(16, (h, i), (r, s))).macs
        for h in space.num_heads for i in space.num_heads for r in space.mlp_ratio for s in space.mlp_ratio
    ]  # fmt: skip
    assert found[0][1].macs == max(macs for macs in choices if macs <= limit)
    assert len(found) == len(dict(found))
    assert all(proxies.macs <= limit for _, proxies in found)
