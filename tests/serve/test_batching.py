"""The batcher by itself: what it computes together, whose turn it is, and what it refuses."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from captioner.serve.batching import Batcher, Closed, Limits, QueueFull


class Model:
    """Doubles numbers; records its batches. While `gate` is closed it computes nothing."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[tuple[Any, list[int]]] = []
        self.threads: set[int] = set()
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, options: Any, payloads: Sequence[int]) -> list[int]:
        assert self.gate.wait(5)
        time.sleep(self.seconds)
        self.threads.add(threading.get_ident())
        self.batches.append((options, list(payloads)))
        if -1 in payloads:
            raise ValueError("minus one")
        return [2 * payload for payload in payloads]


def run(model: Model, story: Callable[[Batcher[int, int]], Awaitable[None]], **limits: Any) -> None:
    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(model, Limits(**limits))
        batcher.start()
        await asyncio.wait_for(story(batcher), 10)
        model.gate.set()
        await asyncio.wait_for(batcher.close(), 10)
        assert batcher.taken == 0

    asyncio.run(main())


async def ask(batcher: Batcher[int, int], *payloads: int, client: Any = "a", options: Any = None) -> list[int]:
    with batcher.admit(client, options, len(payloads)) as request:
        return await asyncio.gather(*(request.run(payload) for payload in payloads))


async def begin(batcher: Batcher[int, int], *payloads: int, **whose: Any) -> "asyncio.Task[list[int]]":
    """Ask, and return as soon as the payloads wait."""
    task = asyncio.create_task(ask(batcher, *payloads, **whose))
    for _ in range(3):
        await asyncio.sleep(0)
    return task


async def occupy(model: Model, batcher: Batcher[int, int]) -> "asyncio.Task[list[int]]":
    """Have the model compute a payload until its gate opens, so that all others wait."""
    model.gate.clear()
    task = await begin(batcher, 0, client="first")
    while batcher._num_waiting:
        await asyncio.sleep(0.001)
    return task


def test_a_payload_gets_its_own_result() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        assert await ask(batcher, 3, 1, 2) == [6, 2, 4]
        results = await asyncio.gather(*(ask(batcher, number, client=number) for number in range(50)))
        assert results == [[2 * number] for number in range(50)]

    run(model, story)
    assert len(model.threads) == 1 and threading.get_ident() not in model.threads


def test_what_waits_while_the_model_computes_is_one_batch_up_to_its_size() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        others = [await begin(batcher, number, client=number) for number in range(1, 7)]
        model.gate.set()
        await asyncio.gather(first, *others)

    run(model, story, batch_size=4)
    assert [payloads for _, payloads in model.batches] == [[0], [1, 2, 3, 4], [5, 6]]


def test_an_idle_server_computes_at_once() -> None:
    model = Model(seconds=0.05)

    async def story(batcher: Batcher[int, int]) -> None:
        await asyncio.gather(*(ask(batcher, number, client=number) for number in range(8)))
        await asyncio.sleep(0.1)  # idle again
        begun = time.monotonic()
        await ask(batcher, 1)
        assert time.monotonic() - begun < 0.9, "it waited for company"

    run(model, story, longest_wait=1.0)


def test_a_busy_server_waits_for_the_clients_that_it_has_just_answered() -> None:
    model = Model(seconds=0.05)

    async def client(batcher: Batcher[int, int], name: int) -> None:
        for _ in range(4):
            await ask(batcher, name, client=name)
            await asyncio.sleep(random.random() / 500)

    async def story(batcher: Batcher[int, int]) -> None:
        await asyncio.gather(*(client(batcher, name) for name in range(8)))

    run(model, story, longest_wait=1.0)
    assert len(model.batches) <= 6, "four rounds of eight clients, and a batch or two to get into step"


def test_a_client_by_itself_never_waits_for_others() -> None:
    model = Model(seconds=0.02)

    async def story(batcher: Batcher[int, int]) -> None:
        begun = time.monotonic()
        for _ in range(10):
            await ask(batcher, 1)
        assert time.monotonic() - begun < 0.35

    run(model, story, longest_wait=1.0)


def test_options_are_grouped_and_each_kind_has_its_turn() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        asked = [await begin(batcher, n, client=n, options="odd" if n % 2 else "even") for n in range(1, 9)]
        model.gate.set()
        assert await asyncio.gather(*asked) == [[2 * n] for n in range(1, 9)]
        await first

    run(model, story, batch_size=3)
    assert model.batches[1:] == [("odd", [1, 3, 5]), ("even", [2, 4, 6]), ("odd", [7]), ("even", [8])]


def test_clients_take_turns_however_much_they_ask() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        greedy = await begin(batcher, *range(100, 120), client="greedy")
        modest = [await begin(batcher, number, client=f"modest {number}") for number in (1, 2)]
        model.gate.set()
        await asyncio.gather(first, greedy, *modest)

    run(model, story, batch_size=4)
    assert model.batches[1][1] == [100, 1, 2, 101]


def test_many_requests_of_one_client_have_no_more_turns_than_one_of_another() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        greedy = [await begin(batcher, number, client="greedy") for number in range(100, 120)]
        modest = await begin(batcher, 1, 2, 3, client="modest")
        model.gate.set()
        await asyncio.gather(first, modest, *greedy)

    run(model, story, batch_size=6)
    assert sorted(model.batches[1][1]) == [1, 2, 3, 100, 101, 102]


def test_requests_of_one_client_take_turns_too() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        album = await begin(batcher, *range(100, 120))
        photo = await begin(batcher, 1)
        model.gate.set()
        await asyncio.gather(first, album, photo)

    run(model, story, batch_size=4)
    assert 1 in model.batches[1][1]


def test_rare_options_are_not_starved() -> None:
    model = Model()

    async def common(batcher: Batcher[int, int], name: int) -> None:
        for _ in range(20):
            await ask(batcher, name, client=name, options="common")

    async def story(batcher: Batcher[int, int]) -> None:
        crowd = [asyncio.create_task(common(batcher, name)) for name in range(6)]
        await asyncio.sleep(0.01)
        before = len(model.batches)
        await ask(batcher, 7, client="rare", options="rare")
        assert len(model.batches) - before <= 6
        await asyncio.gather(*crowd)

    run(model, story, batch_size=2, longest_wait=0.0)


def test_a_full_queue_refuses_says_when_to_come_back_and_recovers() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        waiting = [await begin(batcher, number, client=number) for number in range(1, 8)]
        with pytest.raises(QueueFull) as caught:
            await ask(batcher, 9, client="late")
        assert 1 <= caught.value.retry_after <= 60 and "try again in" in str(caught.value)
        model.gate.set()
        await asyncio.gather(first, *waiting)
        assert await ask(batcher, 9, client="late") == [18]

    run(model, story, places=8, share=1.0)


def test_a_request_is_admitted_as_a_whole_or_not_at_all() -> None:
    async def story(batcher: Batcher[int, int]) -> None:
        with batcher.admit("a", None, 6), pytest.raises(QueueFull), batcher.admit("b", None, 3):
            pass
        assert batcher.taken == 0

    run(Model(), story, places=8, share=1.0)


def test_one_client_leaves_places_for_others() -> None:
    async def story(batcher: Batcher[int, int]) -> None:
        with batcher.admit("a", None, 6):
            with pytest.raises(QueueFull), batcher.admit("a", None, 1):
                pass
            assert await ask(batcher, 1, 2, client="b") == [2, 4]
        assert await ask(batcher, 1, client="a") == [2]

    run(Model(), story, places=8, share=0.75)


def test_a_deadline_frees_its_place_and_its_turn() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await ask(batcher, 5, 6, client="hasty")
        assert batcher.taken == 1 and not batcher._waiting
        patient = await begin(batcher, 1, client="patient")
        model.gate.set()
        await asyncio.gather(first, patient)

    run(model, story)
    assert [payloads for _, payloads in model.batches] == [[0], [1]]


def test_a_request_that_is_cancelled_while_it_is_computed_disturbs_nobody() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        assert batcher.taken == 0
        model.gate.set()
        assert await ask(batcher, 2) == [4]

    run(model, story)


def test_a_payload_that_fails_costs_only_itself() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        asked = [await begin(batcher, number, client=number) for number in (1, -1, 2)]
        model.gate.set()
        good, bad, other = await asyncio.gather(*asked, return_exceptions=True)
        assert (good, other) == ([2], [4]) and isinstance(bad, ValueError)
        assert await first == [0]

    run(model, story)


def test_a_model_that_loses_a_result_is_an_error_not_a_wrong_caption() -> None:
    async def story(batcher: Batcher[int, int]) -> None:
        with pytest.raises(RuntimeError, match="0 results for 1"):
            await ask(batcher, 1)

    class Forgetful(Model):
        def __call__(self, options: Any, payloads: Sequence[int]) -> list[int]:
            return []

    run(Forgetful(), story)


def test_closing_answers_what_was_admitted_and_refuses_the_rest() -> None:
    model = Model()

    async def story(batcher: Batcher[int, int]) -> None:
        first = await occupy(model, batcher)
        waiting = [await begin(batcher, number, client=number) for number in range(1, 40)]
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        assert not batcher.is_working
        with pytest.raises(Closed):
            await ask(batcher, 1)
        model.gate.set()
        await closing
        assert await asyncio.gather(first, *waiting) == [[2 * number] for number in range(40)]

    run(model, story, batch_size=4)


def test_closing_waits_for_a_request_whose_images_are_still_being_decoded() -> None:
    async def story(batcher: Batcher[int, int]) -> None:
        with batcher.admit("a", None, 1) as request:
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0.01)
            assert await request.run(4) == 8
        await closing

    run(Model(), story)


def test_nothing_is_lost_or_mixed_up_in_a_crowd_that_cancels_fails_and_mixes_options() -> None:
    model = Model()
    chance = random.Random(0)
    outcomes: dict[str, int] = {"answered": 0, "cancelled": 0, "failed": 0, "refused": 0}

    async def client(batcher: Batcher[int, int], name: int) -> None:
        for _ in range(25):
            payloads = [chance.randrange(-1, 1000) for _ in range(chance.randrange(1, 5))]
            try:
                async with asyncio.timeout(chance.choice((None, None, None, 0.002))):
                    answers = await ask(batcher, *payloads, client=name % 5, options=chance.randrange(3))
                assert answers == [2 * payload for payload in payloads]
                outcomes["answered"] += 1
            except TimeoutError:
                outcomes["cancelled"] += 1
            except ValueError:
                outcomes["failed"] += 1
            except QueueFull:
                outcomes["refused"] += 1
                await asyncio.sleep(0.001)

    async def story(batcher: Batcher[int, int]) -> None:
        await asyncio.gather(*(client(batcher, name) for name in range(30)))
        assert batcher.taken == 0 and not batcher._waiting and not batcher._taken_by and not batcher._num_waiting

    run(model, story, batch_size=7, places=40, longest_wait=0.001)
    assert sum(outcomes.values()) == 30 * 25
    assert all(outcomes.values()), outcomes
    assert all(len(payloads) <= 7 for _, payloads in model.batches)
