"""Batches across clients: what waits together is computed together, clients take turns, and the queue is bounded.

Everything here runs on one event loop, except `compute`, which runs on a single worker thread of its own.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Payload = TypeVar("Payload")
Result = TypeVar("Result")

Compute = Callable[[Hashable, Sequence[Payload]], Sequence[Result]]
"""Options and the payloads of a batch -> a result for each payload, in order."""


class QueueFull(Exception):
    """There are no places left for a request.

    Attributes:
        retry_after: whole seconds after which places are likely to be free.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Closed(Exception):
    """The batcher is closing and takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


@dataclass(frozen=True)
class Limits:
    """How batches are formed.

    Attributes:
        batch_size: payloads computed together at most; 1 switches batching off.
        places: payloads of all requests that have been admitted and not answered yet.
        share: part of the places that one client may hold, so that others always find some.
        longest_wait: seconds that a batch waits for more payloads while the server is busy; an idle one never waits.
    """

    batch_size: int = 16
    places: int = 256
    share: float = 0.75
    longest_wait: float = 0.02

    @property
    def places_per_client(self) -> int:
        return max(1, int(self.places * self.share))


@dataclass(eq=False)
class _Job(Generic[Payload, Result]):
    payload: Payload
    result: "asyncio.Future[Result]"


@dataclass(eq=False)
class Request(Generic[Payload, Result]):
    """An admitted request: it holds a number of places until its `Batcher.admit` block ends."""

    batcher: "Batcher[Payload, Result]"
    client: Hashable
    options: Any
    waiting: deque[_Job[Payload, Result]] = field(default_factory=deque)

    async def run(self, payload: Payload) -> Result:
        """Compute one payload with whatever else waits. Cancelling this frees its turn at once.

        Raises:
            Exception: what `compute` raised for this payload.
        """
        return await self.batcher._run(self, payload)


class Batcher(Generic[Payload, Result]):
    """Computes payloads of many requests in batches.

    A batch holds payloads with equal options: the client whose turn it is chooses the options, and the other clients
    fill up the batch with payloads of the same options. Clients take turns payload by payload, and so do the requests
    of one client, so that a large request delays a small one by a batch, not by its length.

    Attributes:
        taken: places that are taken.
        observe: called with the size and the seconds of each batch.
    """

    def __init__(
        self,
        compute: Compute[Payload, Result],
        limits: Limits,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.compute = compute
        self.limits = limits
        self.observe = observe
        self.taken = 0
        self._taken_by: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, dict[Request[Payload, Result], None]] = {}  # by client, whose turn is first first
        self._num_waiting = 0
        self._changed = asyncio.Event()  # a payload came, or the batcher is closing
        self._closing = False
        self._seconds_each = 0.0  # a payload, lately
        self._last_size = 1
        self._busy_until = -math.inf
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, on the event loop that is running."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Admit nothing more, finish what was admitted, and end the thread."""
        self._closing = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    @property
    def is_working(self) -> bool:
        return self._task is not None and not self._task.done() and not self._closing

    @contextlib.contextmanager
    def admit(self, client: Hashable, options: Hashable, count: int) -> "Iterator[Request[Payload, Result]]":
        """Take places for `count` payloads of a client, until the block ends.

        Raises:
            QueueFull: there are too few places, for all or for this client.
            Closed: the batcher is closing.
        """
        if self._closing:
            raise Closed
        held = self._taken_by.get(client, 0)
        if self.taken + count > self.limits.places or held + count > self.limits.places_per_client:
            raise QueueFull(self._retry_after(count))
        self.taken += count
        self._taken_by[client] = held + count
        request: Request[Payload, Result] = Request(self, client, options)
        try:
            yield request
        finally:
            while request.waiting:  # the block was left without awaiting them
                request.waiting[-1].result.cancel()
                self._remove(request, request.waiting[-1])
            self.taken -= count
            self._taken_by[client] -= count
            if not self._taken_by[client]:
                del self._taken_by[client]
            if self._closing:
                self._changed.set()

    def _retry_after(self, count: int) -> int:
        return min(60, max(1, math.ceil(min(count, self.taken) * self._seconds_each)))

    async def _run(self, request: Request[Payload, Result], payload: Payload) -> Result:
        job: _Job[Payload, Result] = _Job(payload, asyncio.get_running_loop().create_future())
        request.waiting.append(job)
        self._waiting.setdefault(request.client, {})[request] = None
        self._num_waiting += 1
        self._changed.set()
        try:
            return await job.result
        finally:
            if job in request.waiting:  # it was cancelled before its turn
                self._remove(request, job)

    def _remove(self, request: Request[Payload, Result], job: _Job[Payload, Result]) -> None:
        request.waiting.remove(job)
        self._num_waiting -= 1
        if not request.waiting:
            requests = self._waiting[request.client]
            del requests[request]
            if not requests:
                del self._waiting[request.client]

    async def _work(self) -> None:
        while True:
            while not self._num_waiting:
                if self._closing and not self.taken:
                    return
                self._changed.clear()
                await self._changed.wait()
            await self._wait_for_more()
            if batch := self._next_batch():
                await self._compute_batch(*batch)

    async def _wait_for_more(self) -> None:
        """While busy, wait briefly until as many payloads are there as the last batch had.

        The clients of the last batch have their answers by now, and those that go on are about to send the next
        request. An idle server computes at once.
        """
        loop = asyncio.get_running_loop()
        deadline = min(self._busy_until, loop.time() + self.limits.longest_wait)
        while self._num_waiting < self._last_size and loop.time() < deadline and not self._closing:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> tuple[Hashable, list[_Job[Payload, Result]]] | None:
        """Take the payloads of the next batch out of the queue: one from each client in turn until it is full."""
        options: Hashable = None
        batch: list[_Job[Payload, Result]] = []
        is_growing = True
        while is_growing:
            is_growing = False
            for client in list(self._waiting):
                for request in list(self._waiting[client]):
                    if batch and request.options != options:
                        continue
                    options = request.options
                    batch.append(request.waiting[0])
                    self._to_the_end(client, request)
                    self._remove(request, batch[-1])
                    is_growing = True
                    break
                if len(batch) == self.limits.batch_size:
                    return options, batch
        return (options, batch) if batch else None

    def _to_the_end(self, client: Hashable, request: Request[Payload, Result]) -> None:
        """Others have their turn before this client, and before this request of its."""
        requests = self._waiting.pop(client)
        requests[request] = requests.pop(request)
        self._waiting[client] = requests

    async def _compute_batch(self, options: Hashable, batch: list[_Job[Payload, Result]]) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        outcomes = await loop.run_in_executor(self._thread, self._outcomes, options, [job.payload for job in batch])
        seconds = loop.time() - begun
        each = seconds / len(batch)
        self._seconds_each = each if not self._seconds_each else 0.8 * self._seconds_each + 0.2 * each
        self._last_size = len(batch)
        self._busy_until = loop.time() + min(self.limits.longest_wait, seconds / 4)
        for job, outcome in zip(batch, outcomes, strict=True):
            if job.result.done():  # cancelled
                continue
            if isinstance(outcome, Exception):
                job.result.set_exception(outcome)
            else:
                job.result.set_result(outcome)
        self.observe(len(batch), seconds)

    def _outcomes(self, options: Hashable, payloads: list[Payload]) -> list[Result | Exception]:
        """On the thread: compute a batch. If it fails, compute each payload alone, so that one costs only itself."""
        try:
            results = list(self.compute(options, payloads))
            if len(results) != len(payloads):
                raise RuntimeError(f"{len(results)} results for {len(payloads)} payloads")
            return list(results)
        except Exception as error:  # whatever went wrong belongs to the requests; the thread goes on
            if len(payloads) == 1:
                return [error]
        return [self._outcomes(options, [payload])[0] for payload in payloads]
