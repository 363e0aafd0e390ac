import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.data.split import complement, stratified_split


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.floats(0, 1), st.integers(0, 100))
def test_every_class_gives_its_share_and_keeps_an_image(labels, fraction, seed):
    labels = np.array(labels)
    count = int(fraction * len(labels))
    indices = stratified_split(labels, count, np.random.default_rng(seed))
    assert len(set(indices.tolist())) == len(indices) <= count
    for label in np.unique(labels):
        size, taken = (labels == label).sum(), (labels[indices] == label).sum()
        assert taken <= size - 1
        assert abs(taken - size * count / len(labels)) <= 1


def test_the_sum_is_exact_where_classes_are_large_enough():
    labels = np.repeat([0, 1, 2], [100, 57, 33])
    assert len(stratified_split(labels, 41, np.random.default_rng(0))) == 41


def test_the_seed_decides():
    labels = np.arange(300) % 3
    one, same, other = (stratified_split(labels, 60, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_complement():
    assert complement(np.array([1, 3]), 5).tolist() == [0, 2, 4]
    with pytest.raises(IndexError):
        complement(np.array([5]), 5)


def test_classes_of_one_or_two_images():
    # 0 and 1 have one image, 2 to 5 have two, 6 has ninety: a fifth of 100 is wanted, 18 of them from class 6.
    labels = np.array([0, 1, *[2, 3, 4, 5] * 2, *[6] * 90])
    for seed in range(20):
        counts = np.bincount(labels[stratified_split(labels, 20, np.random.default_rng(seed))], minlength=7)
        assert counts.tolist() == [0, 0, 1, 1, 0, 0, 18]


def test_what_single_images_cannot_give_comes_from_other_classes():
    labels = np.array([*range(30), *[30] * 31, *[31] * 31])
    counts = np.bincount(labels[stratified_split(labels, 18, np.random.default_rng(0))], minlength=32)
    assert counts[:30].sum() == 0
    # 30 single images would give 5.9 of 18 and can't; each class takes at most one above its share of 6.07.
    assert counts[30:].tolist() == [7, 7]


def test_nothing_to_spare():
    assert len(stratified_split(np.arange(9), 3, np.random.default_rng(0))) == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 100))
def test_a_part_that_may_take_the_last_image_of_a_class_is_never_too_small(labels, count, seed):
    indices = stratified_split(np.array(labels), min(count, len(labels)), np.random.default_rng(seed), leave=0)
    assert len(set(indices.tolist())) == len(indices) == min(count, len(labels))
