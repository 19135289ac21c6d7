"""Dynamic batching: requests wait in a bounded queue, and one worker runs as many of them together as fit.

It knows nothing of HTTP or JAX: a request is any value with a number of rows. All of it runs in one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFull(Exception):
    """The queue has no room for the request."""


class Stopped(Exception):
    """The batcher takes no more requests."""


@dataclasses.dataclass(eq=False)
class Request(Generic[Item, Answer]):
    """A request that waits; ``since`` is the loop's time at its arrival."""

    item: Item
    rows: int
    since: float
    answer: asyncio.Future[Answer]


class Batcher(Generic[Item, Answer]):
    """Runs requests in batches, first come, first served.

    A batch starts when the worker is free and either the waiting requests fill it, or the first of them has waited
    ``max_delay`` seconds. No request is split: a batch is the longest run of requests at the head of the queue whose rows fit.

    Args:
      run: ``(items) -> answers``, one for each, in their order. Where it raises, each request of the batch raises that.
      max_batch: rows of a batch. max_delay: seconds. max_queue: rows that may wait; those that run are not among them.

    Attributes:
      queued: rows that wait.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        max_batch: int,
        max_delay: float,
        max_queue: int,
    ):
        self._run, self._max_batch, self._max_delay, self._max_queue = run, max_batch, max_delay, max_queue
        self._queue: OrderedDict[Request[Item, Answer], None] = OrderedDict()
        self.queued = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._worker = asyncio.create_task(self._work())

    async def submit(self, item: Item, rows: int) -> Answer:
        """The answer to a request. Who cancels the call takes the request out of the queue.

        Args:
          rows: from 1 to ``max_batch``.

        Raises:
          QueueFull: the queue has no room for so many rows. Stopped: ``stop`` was called.
        """
        if self._stopping:
            raise Stopped
        if self.queued + rows > self._max_queue:
            raise QueueFull
        loop = asyncio.get_running_loop()
        request = Request[Item, Answer](item, rows, loop.time(), loop.create_future())
        self._queue[request] = None
        self.queued += rows
        if len(self._queue) == 1 or self.queued >= self._max_batch:  # nothing else changes what the worker does next
            self._wake.set()
        try:
            return await request.answer
        finally:
            if request in self._queue:
                self._remove(request)

    async def stop(self) -> None:
        """Takes no more requests, and returns when all that were taken have their answers."""
        self._stopping = True
        self._wake.set()
        await self._worker

    async def _work(self) -> None:
        while batch := await self._next():
            try:
                answers = await self._run([request.item for request in batch])
                for request, answer in zip(batch, answers, strict=True):
                    if not request.answer.done():  # cancelled while it ran
                        request.answer.set_result(answer)
            except Exception as error:
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)

    async def _next(self) -> list[Request[Item, Answer]]:
        """The next batch, when it is due; empty when the batcher stops and nothing waits."""
        while True:
            if self._queue:
                due = next(iter(self._queue)).since + self._max_delay
                if self._stopping or self.queued >= self._max_batch or due <= asyncio.get_running_loop().time():
                    return self._taken()
                await self._woken(due)
            elif self._stopping:
                return []
            else:
                await self._woken(None)

    async def _woken(self, until: float | None) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._wake.wait()

    def _taken(self) -> list[Request[Item, Answer]]:
        """The requests at the head that fit into one batch, out of the queue."""
        batch: list[Request[Item, Answer]] = []
        room = self._max_batch
        while self._queue and (first := next(iter(self._queue))).rows <= room:
            self._remove(first)
            batch.append(first)
            room -= first.rows
        return batch

    def _remove(self, request: Request[Item, Answer]) -> None:
        del self._queue[request]
        self.queued -= request.rows
