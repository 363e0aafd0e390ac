import gc
import threading

import pytest

from growtas.data.prefetch import prefetched


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("growtas-prefetch")]


class Source:
    """Counts up for ever, or until it raises; remembers what it was asked for."""

    def __init__(self, error=None, at=None):
        self.made, self.error, self.at = 0, error, at
        self.reached = threading.Condition()

    def __iter__(self):
        return self

    def __next__(self):
        if self.made == self.at:
            raise self.error
        with self.reached:
            self.made += 1
            self.reached.notify_all()
        return self.made

    def wait_for(self, made):
        with self.reached:
            assert self.reached.wait_for(lambda: self.made >= made, timeout=20)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 50])
def test_items_come_in_order_and_the_thread_ends(length):
    assert list(prefetched(iter(range(length)))) == list(range(length))
    assert not threads()


def test_items_are_made_ahead_but_not_too_far():
    source = Source()
    items = prefetched(source)
    assert next(items) == 1
    source.wait_for(4)  # two wait, a third one is in the thread's hands
    assert len(threads()) == 1
    assert source.made == 4
    items.close()
    assert not threads()


def test_nothing_is_made_before_the_first_is_asked_for():
    source = Source()
    items = prefetched(source)
    assert source.made == 0
    del items
    assert source.made == 0


@pytest.mark.parametrize("error", [ValueError("no more"), KeyboardInterrupt()])
def test_an_error_comes_at_its_place(error):
    items = prefetched(Source(error, 3))
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(type(error)) as caught:
        next(items)
    assert caught.value is error
    assert not threads()
    assert list(items) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_thread_ends_when_the_loop_is_left(error):
    source = Source()

    def loop():
        for item in prefetched(source):
            source.wait_for(item + 3)  # the thread is waiting for room
            if item == 2:
                raise error

    with pytest.raises(error):
        loop()
    gc.collect()
    assert not threads()


def test_an_abandoned_iterator_ends_its_thread():
    items = prefetched(Source())
    next(items)
    assert threads()
    del items
    gc.collect()
    assert not threads()
