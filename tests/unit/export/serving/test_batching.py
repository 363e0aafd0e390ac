from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from growtas.export.serving.batching import Batcher
from growtas.export.serving.metrics import Metrics
from growtas.export.serving.protocol import RequestRefused


class Model:
    """Doubles its input, says which number of how many it was, remembers the batches, and can be held up."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.go.set()
        self.error = None
        self.more = {}

    def __call__(self, images):
        assert self.go.wait(10)
        self.batches.append(images.ravel().tolist())
        if self.error:
            raise self.error
        places = np.array([[place, len(images)] for place in range(len(images))], np.int64)
        return {"doubled": images.reshape(len(images), -1) * 2, "places": places, **self.more}


def run(test, *, max_batch=4, max_delay_s=0.0, max_queue=100):
    async def main():
        model = Model()
        batcher = Batcher(model, max_batch=max_batch, max_delay_s=max_delay_s, max_queue=max_queue, metrics=Metrics())
        try:
            async with asyncio.timeout(20):
                await test(model, batcher)
        finally:
            model.go.set()
            await batcher.close()

    asyncio.run(main())


def images(*values):
    return np.array(values, np.float32)[:, None]


async def started(batcher, *requests):
    tasks = [asyncio.create_task(batcher.submit(request)) for request in requests]
    await asyncio.sleep(0)
    return tasks


def test_what_waits_while_a_batch_runs_goes_together_and_comes_apart_again():
    async def test(model, batcher):
        model.go.clear()
        first = await started(batcher, images(1))
        await asyncio.sleep(0.05)
        rest = await started(batcher, images(2, 3), images(4), images(5, 6), images(7))
        model.go.set()
        answers = await asyncio.gather(*first, *rest)
        assert [list(answer) for answer in answers] == [["doubled", "places"]] * 5
        assert [answer["doubled"].ravel().tolist() for answer in answers] == [[2], [4, 6], [8], [10, 12], [14]]
        places = [answer["places"].tolist() for answer in answers]
        assert places == [[[0, 1]], [[0, 3], [1, 3]], [[2, 3]], [[0, 3], [1, 3]], [[2, 3]]]
        # No request is split, and their order is kept.
        assert model.batches == [[1], [2, 3, 4], [5, 6, 7]]

    run(test)


def test_a_first_request_waits_for_company_as_long_as_it_was_told():
    async def test(model, batcher):
        first = await started(batcher, images(1))
        await asyncio.sleep(0.01)
        second = await started(batcher, images(2))
        await asyncio.gather(*first, *second)
        assert model.batches == [[1, 2]]

    run(test, max_delay_s=5.0, max_batch=2)  # full at two, so nobody waits for five seconds

    async def alone(model, batcher):
        await batcher.submit(images(1))
        assert model.batches == [[1]]

    run(alone, max_delay_s=0.01)


def test_only_images_of_one_size_go_together():
    async def test(model, batcher):
        model.go.clear()
        first = await started(batcher, images(0))
        await asyncio.sleep(0.05)
        rest = await started(
            batcher, np.full((1, 2), 1, np.float32), np.full((1, 3), 2, np.float32), np.full((1, 3), 3, np.float32)
        )
        model.go.set()
        await asyncio.gather(*first, *rest)
        assert model.batches == [[0], [1, 1], [2, 2, 2, 3, 3, 3]]

    run(test)


def test_a_full_queue_is_refused_and_empties_again():
    async def test(model, batcher):
        model.go.clear()
        tasks = await started(batcher, images(1))
        await asyncio.sleep(0.05)
        tasks += await started(batcher, images(2), images(3))
        with pytest.raises(RequestRefused, match="2 requests are waiting already") as refused:
            await batcher.submit(images(4))
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        model.go.set()
        await asyncio.gather(*tasks)
        assert (await batcher.submit(images(5)))["doubled"].tolist() == [[10]]

    run(test, max_queue=2)


def test_a_failing_runtime_fails_its_batch_alone():
    async def test(model, batcher):
        model.error = ValueError("no\nmemory")
        with pytest.raises(RequestRefused, match="the runtime failed: no memory") as refused:
            await batcher.submit(images(1))
        assert refused.value.status == 500
        model.error = None
        model.more = {"scores": np.zeros((3, 5), np.float32)}
        with pytest.raises(RequestRefused, match="the runtime failed: 3 answers of scores for 1 images"):
            await batcher.submit(images(1))
        model.more = {}
        assert (await batcher.submit(images(2)))["doubled"].tolist() == [[4]]

    run(test)


def test_a_client_that_left_takes_no_place():
    async def test(model, batcher):
        model.go.clear()
        first = await started(batcher, images(1))
        await asyncio.sleep(0.05)
        gone, stays = await started(batcher, images(2), images(3))
        gone.cancel()
        await asyncio.sleep(0)
        model.go.set()
        await asyncio.gather(*first, stays)
        assert model.batches == [[1], [3]]
        assert stays.result()["doubled"].tolist() == [[6]]

    run(test)
