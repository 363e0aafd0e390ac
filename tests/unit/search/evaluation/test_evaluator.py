from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from growtas.errors import DataError
from growtas.nn.supernet import Supernet
from growtas.sampling import mutate, sample
from growtas.search.evaluation.evaluator import SubnetEvaluator, _blocks, _merged, fingerprint
from growtas.search.evaluation.prefix_tree import PrefixTreeEvaluator
from growtas.space import PRESETS
from growtas.subnet import Subnet
from tests.reference import plain_space

SPACE = PRESETS["micro"].replace(image_size=16, in_chans=1, num_classes=5)


class Images:
    """Random images; counts how often each is read."""

    def __init__(self, count=23, shape=(1, 16, 16), classes=5, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randn(count, *shape, generator=generator)
        self.labels = torch.randint(classes, (count,), generator=generator)
        self.read = 0

    def __len__(self):
        return len(self.labels)

    def images(self, start, stop):
        self.read += stop - start
        return self.pixels[start:stop]

    def take(self, indices):
        self.read += len(indices)
        return self.pixels[indices]


def random_supernet(space):
    torch.manual_seed(0)
    supernet = Supernet(space)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.normal_(std=0.2)
    return supernet.eval()


@pytest.fixture(scope="module")
def supernet():
    return random_supernet(SPACE)


@pytest.fixture(scope="module")
def subnets():
    rng = np.random.default_rng(0)
    parents = [sample(SPACE, rng) for _ in range(3)]
    return list(dict.fromkeys([*parents, *(mutate(SPACE, parents[i % 3], rng) for i in range(20))]))


@torch.inference_mode()
def plain(supernet, images, subnet):
    logits = supernet(images.pixels, subnet)
    return (logits.argmax(1) == images.labels).float().mean().item(), F.cross_entropy(logits, images.labels).item()


# Of six blocks, the first ones that a subnet of depth 4 or 5 runs are not the first ones of the network.
ORDERED = plain_space(SPACE, "block order").replace(block_order=(5, 0, 3, 1, 4, 2))


@pytest.mark.parametrize(
    ("options", "space"),
    [
        *(({}, SPACE), ({"threads": 3}, SPACE), ({"activation_bytes": 0}, SPACE), ({"image_bytes": 1}, SPACE)),
        *(({"activation_bytes": 300_000}, space) for space in (SPACE, ORDERED)),
        ({}, ORDERED),
    ],
)
def test_agrees_with_the_plain_forward_pass(supernet, subnets, options, space, monkeypatch):
    monkeypatch.setattr("growtas.search.evaluation.evaluator._TOKENS_A_BATCH", 17 * 5)
    supernet = supernet if space is SPACE else random_supernet(space)
    images = Images()
    with SubnetEvaluator(supernet, images, **options) as evaluate:
        for chosen in (subnets, subnets[::-1]):
            found = dict(evaluate(chosen))
            assert set(found) == set(subnets)
            for subnet, evaluation in found.items():
                assert (evaluation.accuracy, evaluation.loss) == pytest.approx(plain(supernet, images, subnet), rel=1e-5)


def test_a_subnet_gets_the_same_bits_in_any_company(supernet, subnets):
    images = Images()
    with SubnetEvaluator(supernet, images, threads=1) as evaluate:
        together = dict(evaluate(subnets))
    with SubnetEvaluator(supernet, images, threads=2, activation_bytes=0) as evaluate:
        # The images are divided otherwise, and with them the batches: answers are whole numbers, losses are rounded.
        for subnet, evaluation in evaluate(subnets):
            assert evaluation.right_answers(23).tolist() == together[subnet].right_answers(23).tolist()
            assert evaluation.loss == pytest.approx(together[subnet].loss, rel=1e-6)
    for subnet in subnets:
        with SubnetEvaluator(supernet, images, threads=1, activation_bytes=0) as evaluate:
            alone = dict(evaluate([subnet]))[subnet]
        assert (alone.accuracy, alone.loss, alone.answers) == (
            together[subnet].accuracy,
            together[subnet].loss,
            together[subnet].answers,
        )


def test_a_common_beginning_is_computed_once_within_the_memory(supernet):
    block = (2, 3, 4, 2), (2.0, 3.0, 2.0, 4.0)
    first = Subnet(32, *block)
    last_ratio = Subnet(32, block[0], (2.0, 3.0, 2.0, 2.0))
    deeper = Subnet(32, (*block[0], 3), (*block[1], 2.0))
    other_width = Subnet(48, *block)
    images = Images()
    with SubnetEvaluator(supernet, images, threads=1) as evaluate:
        tree = evaluate._evaluators[0]
        list(evaluate([first]))
        assert tree.layers_run == 8
        list(evaluate([last_ratio, deeper]))
        assert tree.layers_run == 8 + 1 + 2
        list(evaluate([first, last_ratio, deeper]))
        assert tree.layers_run == 8 + 1 + 2
        list(evaluate([other_width]))
        assert tree.layers_run == 8 + 1 + 2 + 8
    with SubnetEvaluator(supernet, images, threads=1, activation_bytes=0) as evaluate:
        tree = evaluate._evaluators[0]
        # Within a group nothing needs to be kept; the next call begins anew.
        list(evaluate([first, last_ratio, deeper]))
        assert tree.layers_run == 8 + 1 + 2
        list(evaluate([deeper]))
        assert tree.layers_run == 8 + 1 + 2 + 10


def test_memory_for_activations_is_bounded_and_holds_the_short_beginnings(supernet, subnets):
    place = 23 * 17 * 32 * 4
    with SubnetEvaluator(supernet, Images(), threads=1, activation_bytes=5 * place + 3000) as evaluate:
        outputs = evaluate._evaluators[0]._cache
        for chosen in (subnets, subnets[::-1]):
            list(evaluate(chosen))
            assert sum(4 * len(block) for block in outputs._memory._blocks) <= 5 * place + 3000
            kept = [path for held in outputs._outputs for _, path in held]
            # Wider ones take more room.
            assert 5 * 32 - 64 < sum(path[0] for path in kept) <= 5 * 32
            assert max(len(path) for path in kept) <= 4
    with SubnetEvaluator(supernet, Images(), threads=1, activation_bytes=place - 1) as evaluate:
        list(evaluate(subnets))
        assert not any(evaluate._evaluators[0]._cache._outputs)


def test_images_that_fit_are_read_once_and_others_for_every_call(supernet, subnets):
    images = Images()
    with SubnetEvaluator(supernet, images) as evaluate:
        before = images.read
        list(evaluate(subnets))
        list(evaluate(subnets))
        assert images.read == before + len(images)
    with SubnetEvaluator(supernet, images, image_bytes=1) as evaluate:
        before = images.read
        list(evaluate(subnets))
        assert images.read == before + len(images)


def test_threads_are_set_back(supernet):
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), SubnetEvaluator(supernet, Images(), threads=2):
        _ = 1 / 0
    assert torch.get_num_threads() == before


def test_results_come_as_they_are_done(supernet, subnets):
    more = list(dict.fromkeys([*subnets, *(sample(SPACE, np.random.default_rng(seed)) for seed in range(60))]))
    seen = []
    with SubnetEvaluator(supernet, Images(), threads=1) as evaluate:
        for _ in evaluate(more):
            seen.append(evaluate._evaluators[0].layers_run)
            # As a slow reader would: the thread may have gone on with the next groups, but not past the end.
    assert len(seen) == len(more)
    assert len(set(seen)) > 1


def test_leaving_ends_the_group_under_way_with_its_batch(supernet, subnets, monkeypatch):
    """As an interrupted search does: a group of subnets may take minutes."""
    begun, left = threading.Event(), threading.Event()
    batches = []
    walk = PrefixTreeEvaluator._logits

    def slow(self, number, images, paths):
        batches.append(number)
        begun.set()
        assert left.wait(60)
        return walk(self, number, images, paths)

    stop = PrefixTreeEvaluator.stop

    def stopped(self):
        stop(self)
        left.set()

    monkeypatch.setattr("growtas.search.evaluation.evaluator._TOKENS_A_BATCH", 17)
    monkeypatch.setattr(PrefixTreeEvaluator, "_logits", slow)
    monkeypatch.setattr(PrefixTreeEvaluator, "stop", stopped)
    data = Images()
    with pytest.raises(KeyboardInterrupt), SubnetEvaluator(supernet, data, threads=1) as evaluate:
        evaluate._load(None, 0, len(data), [slice(0, len(data))])
        pending = evaluate._submit(0, subnets, 0)
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert batches == [0]
    with pytest.raises(CancelledError):
        pending.result()


def test_a_place_in_use_is_not_given_away(supernet, monkeypatch):
    """With room for three nodes, all of them starts of the walk, what the walk computes has nowhere to go, and spoils nothing."""
    rng = np.random.default_rng(5)
    parents = [sample(SPACE, rng) for _ in range(3)]
    children = list(dict.fromkeys(mutate(SPACE, parents[i % 3], rng) for i in range(30)))
    images = Images()
    with SubnetEvaluator(supernet, images, threads=1, activation_bytes=3 * 23 * 17 * 64 * 4) as evaluate:
        for chosen in (parents, children, parents, children[::-1]):
            for subnet, evaluation in evaluate(chosen):
                assert (evaluation.accuracy, evaluation.loss) == pytest.approx(plain(supernet, images, subnet), rel=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [(Images(0), "no image"), (Images(shape=(1, 20, 20)), "the supernet needs"), (Images(classes=50), "5 classes")],
)
def test_images_that_do_not_fit_are_refused(supernet, images, message):
    with pytest.raises(DataError, match=message):
        SubnetEvaluator(supernet, images)


def test_the_fingerprint_tells_images_apart():
    one = fingerprint(Images(), {"name": "a"})
    assert one == fingerprint(Images(), {"name": "a"})
    other_label = Images()
    other_label.labels[7] = (other_label.labels[7] + 1) % 5
    other_pixel = Images()
    other_pixel.pixels[3, 0, 0, 0] += 1
    others = [fingerprint(Images(), {"name": "b"}), fingerprint(Images(22), {"name": "a"})]
    others += [fingerprint(other_label, {"name": "a"}), fingerprint(other_pixel, {"name": "a"})]
    assert len({one, *others}) == 5


def test_parts_are_put_together_until_they_are_worth_a_batch():
    parts = [slice(0, 10), slice(10, 20), slice(20, 30), slice(30, 35)]
    assert _merged(parts, 1) == parts
    assert _merged(parts, 15) == [slice(0, 20), slice(20, 35)]
    assert _merged(parts, 25) == [slice(0, 30), slice(30, 35)]
    assert _merged(parts, 100) == [slice(0, 35)]


def test_blocks_hold_whole_parts_where_one_fits():
    parts = [slice(0, 10), slice(10, 20), slice(20, 25)]
    assert _blocks(parts, 100) == [(0, 25)]
    assert _blocks(parts, 20) == [(0, 20), (20, 25)]
    assert _blocks(parts, 10) == [(0, 10), (10, 20), (20, 25)]
    assert _blocks([slice(0, 10)], 4) == [(0, 4), (4, 8), (8, 10)]
