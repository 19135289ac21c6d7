"""The batching core by itself, in virtual time: nothing lost, nothing twice, in order, within its bounds."""

import asyncio
import selectors

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.serving.batching import Batcher, QueueFull, Stopped

MAX_BATCH, MAX_DELAY, MAX_QUEUE = 8, 2.0, 20


class Skipping(selectors.DefaultSelector):
    """Sleeps by moving its clock."""

    now = 0.0

    def select(self, timeout=None):
        assert timeout is not None, "nothing will ever happen: somebody waits for ever"
        self.now += max(timeout, 0)
        return super().select(0)


def virtually(main):
    """Runs a coroutine in an event loop in which time passes only while all of it sleeps."""

    def loop():
        selector = Skipping()
        made = asyncio.SelectorEventLoop(selector)
        made.time = lambda: selector.now
        return made

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


class Recorded:
    """A run that takes a time of its own for each batch, and says in an answer which item it is of."""

    def __init__(self, durations=(1.0,)):
        self.batches, self.starts, self.ends, self._durations = [], [], [], durations

    async def __call__(self, items):
        duration = self._durations[len(self.batches) % len(self._durations)]
        self.batches.append(list(items))
        self.starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(duration)
        self.ends.append(asyncio.get_running_loop().time())
        return [("answer", item) for item in items]


def batcher(run, **changes):
    return Batcher(run, **{"max_batch": MAX_BATCH, "max_delay": MAX_DELAY, "max_queue": MAX_QUEUE, **changes})


arrivals = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 1.0, 5.0]),  # after the one before
        st.integers(1, MAX_BATCH),
        st.sampled_from([None, None, None, 0.5, 3.0]),  # until its client gives up
    ),
    max_size=40,
)


@given(arrivals, st.lists(st.sampled_from([0.0, 0.3, 2.0, 7.0]), min_size=1, max_size=4))
def test_every_request_ends_once_and_in_order(arrivals, durations):
    run, ends, queued = Recorded(durations), {}, []

    async def client(made, number, rows, patience):
        try:
            async with asyncio.timeout(patience):
                ends[number] = await made.submit(number, rows)
        except (QueueFull, TimeoutError) as error:
            ends[number] = type(error)
        queued.append(made.queued)

    async def main():
        made, tasks = batcher(run), []
        for number, (gap, rows, patience) in enumerate(arrivals):
            await asyncio.sleep(gap)
            tasks.append(asyncio.create_task(client(made, number, rows, patience)))
            await asyncio.sleep(0)
            queued.append(made.queued)
        await made.stop()
        await asyncio.gather(*tasks)
        assert made.queued == 0

    virtually(main())
    ran = [number for batch in run.batches for number in batch]
    rows = [rows for _, rows, _ in arrivals]
    assert ran == sorted(set(ran)), "once each, first come, first served"
    assert all(sum(rows[n] for n in batch) <= MAX_BATCH for batch in run.batches)
    assert all(0 <= n <= MAX_QUEUE for n in queued)
    assert all(end <= start for end, start in zip(run.ends, run.starts[1:])), "one batch at a time"
    assert ends.keys() == set(range(len(arrivals)))
    for number, end in ends.items():
        if end is QueueFull:
            assert number not in ran
        elif end is not TimeoutError:
            assert end == ("answer", number) and number in ran
    if sum(rows) <= MAX_QUEUE:
        assert QueueFull not in ends.values()


def schedule(times, rows, durations):
    """``(start, requests)`` of each batch, as the docstring of ``Batcher`` has it; the queue is stopped at the last arrival."""
    batches, free, first = [], 0.0, 0
    while first < len(rows):
        filled = [t for n, t in enumerate(times) if n >= first and sum(rows[first : n + 1]) >= MAX_BATCH]
        start = max(free, times[first], min([times[first] + MAX_DELAY, times[-1], *filled]))
        last = first
        while last < len(rows) and times[last] <= start and sum(rows[first : last + 1]) <= MAX_BATCH:
            last += 1
        batches.append((start, list(range(first, last))))
        free, first = start + durations[(len(batches) - 1) % len(durations)], last
    return batches


gaps = st.sampled_from([0.0, 0.0, 0.0101, 0.5203, 4.1307])  # no two events at one time, but arrivals


@given(
    st.lists(st.tuples(gaps, st.integers(1, MAX_BATCH)), min_size=1, max_size=30),
    st.lists(st.sampled_from([0.0011, 0.7017, 6.3019]), min_size=1, max_size=3),
)
def test_batches_start_when_they_should(arrivals, durations):
    run, times = Recorded(durations), []

    async def main():
        made, tasks = batcher(run, max_queue=1000), []
        for number, (gap, rows) in enumerate(arrivals):
            if gap:
                await asyncio.sleep(gap)
            times.append(asyncio.get_running_loop().time())
            tasks.append(asyncio.create_task(made.submit(number, rows)))
            await asyncio.sleep(0)
        await made.stop()
        await asyncio.gather(*tasks)

    virtually(main())
    wanted = schedule(times, [rows for _, rows in arrivals], durations)
    assert run.batches == [batch for _, batch in wanted]
    assert run.starts == pytest.approx([start for start, _ in wanted])


def test_a_lone_request_waits_for_others_and_no_longer():
    run = Recorded()

    async def main():
        made = batcher(run)
        first = asyncio.create_task(made.submit("a", 1))
        await asyncio.sleep(1.5)
        await asyncio.gather(first, made.submit("b", 1))
        await made.stop()

    virtually(main())
    assert (run.batches, run.starts) == ([["a", "b"]], [MAX_DELAY])


def test_a_full_batch_waits_for_nobody_and_the_next_gathers_while_it_runs():
    run = Recorded(durations=(5.0,))

    async def main():
        made = batcher(run)
        await asyncio.gather(*(made.submit(n, 4) for n in range(5)))
        await made.stop()

    virtually(main())
    assert (run.batches, run.starts) == ([[0, 1], [2, 3], [4]], [0.0, 5.0, 10.0])


def test_a_request_that_does_not_fit_starts_the_next_batch():
    run = Recorded()

    async def main():
        made = batcher(run)
        await asyncio.gather(made.submit("a", 5), made.submit("b", 5), made.submit("c", 3))
        await made.stop()

    virtually(main())
    assert run.batches == [["a"], ["b", "c"]], "none overtakes another"


def test_who_gives_up_makes_room():
    run = Recorded(durations=(100.0,))

    async def main():
        made = batcher(run)
        running = asyncio.create_task(made.submit("running", MAX_BATCH))
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(made.submit(n, 5)) for n in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFull):
            await made.submit("late", 1)
        waiting[1].cancel()
        await asyncio.sleep(0)
        assert made.queued == 15
        waiting.append(asyncio.create_task(made.submit("later", 5)))
        await asyncio.sleep(0)
        await made.stop()
        await asyncio.gather(running, *waiting, return_exceptions=True)

    virtually(main())
    assert run.batches == [["running"], [0], [2], [3], ["later"]]


def test_a_failed_batch_fails_its_requests_and_no_others():
    async def run(items):
        if "bad" in items:
            raise ZeroDivisionError("in the network")
        return items if "short" not in items else []

    async def main():
        made = batcher(run, max_queue=100)
        ends = await asyncio.gather(
            *(made.submit(item, rows) for item, rows in [("good", 8), ("bad", 4), ("beside", 4), ("short", 8), ("last", 8)]),
            return_exceptions=True,
        )
        await made.stop()
        return ends

    good, bad, beside, short, last = virtually(main())
    assert (good, last) == ("good", "last")
    assert isinstance(bad, ZeroDivisionError) and isinstance(beside, ZeroDivisionError) and isinstance(short, ValueError)


def test_stopping_answers_what_waits_at_once_and_takes_no_more():
    run = Recorded()

    async def main():
        made = batcher(run, max_delay=1000.0)
        waiting = asyncio.create_task(made.submit("a", 1))
        await asyncio.sleep(0)
        await made.stop()
        with pytest.raises(Stopped):
            await made.submit("b", 1)
        return await waiting

    assert virtually(main()) == ("answer", "a") and run.ends == [1.0]
