from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growtas.search.evaluation.activation_cache import ActivationCache, ActivationMemory

LIKE = torch.zeros(1)


@given(st.lists(st.tuples(st.integers(1, 700), st.booleans(), st.integers(0, 10**6)), max_size=60), st.integers(0, 4000))
@settings(max_examples=60, deadline=None)
def test_places_in_use_never_overlap_and_stay_within_the_budget(steps, numbers):
    arena, taken = ActivationMemory(numbers, LIKE), []
    for size, give, pick in steps:
        if give and taken:
            span, _, _ = taken.pop(pick % len(taken))
            arena.give(span)
        else:
            span = arena.take(size)
            if span is not None:
                place = arena.at(span, (size,))
                place.fill_(len(taken))
                taken.append((span, place, float(len(taken))))
        assert sum(span.stop - span.start for span, _, _ in taken) <= numbers
        taken = [(span, place.fill_(mark), float(mark)) for mark, (span, place, _) in enumerate(taken)]
        assert all(bool((place == mark).all()) for _, place, mark in taken)


def test_what_is_given_back_becomes_one_place_again():
    arena = ActivationMemory(640, LIKE)
    spans = [arena.take(64) for _ in range(10)]
    assert arena.take(1) is None
    for at in (3, 1, 2, 0):
        arena.give(spans[at])
    assert arena.take(257) is None
    assert arena.take(256) is not None


def test_longest_paths_go_first_then_those_unused_for_longest():
    kept = ActivationCache(4 * 64 * 3, 4, LIKE)
    for path in ((1, 2), (1, 2, 3), (1, 2, 4)):
        kept.reserve(0, path, (8, 8)).fill_(len(path))
    assert kept.get(0, (1, 2, 3)) is not None
    assert kept.reserve(0, (1, 5), (64,)) is not None
    assert kept.get(0, (1, 2, 4)) is None
    assert kept.get(0, (1, 2, 3)).shape == (8, 8)
    # Only what is at least as long goes.
    assert kept.reserve(0, (1, 2, 3, 4), (64,)) is None
    assert torch.equal(kept.get(0, (1, 2)), torch.full((8, 8), 2.0))


def test_what_is_in_use_stays():
    kept = ActivationCache(4 * 64, 3, LIKE)
    kept.reserve(0, (1, 2), (64,))
    kept.use(0, [(1, 2)])
    assert kept.reserve(0, (1, 3), (64,)) is None
    kept.release(0, [(1, 2)])
    assert kept.reserve(0, (1, 3), (64,)) is not None
    assert kept.get(0, (1, 2)) is None


def test_clear_keeps_the_memory():
    kept = ActivationCache(4 * 64, 2, LIKE)
    address = kept.reserve(0, (1, 2), (64,)).data_ptr()
    kept.clear()
    assert kept.get(0, (1, 2)) is None
    assert kept.reserve(1, (1,), (64,)).data_ptr() == address
