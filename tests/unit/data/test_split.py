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
