"""Work to its end, and rounds of shared work: order, failure, cancellation."""

from __future__ import annotations

import asyncio
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.dataplane.batch import Batch, answered, to_the_end


async def test_what_waits_while_a_round_runs_shares_the_next_in_order() -> None:
    rounds: list[list[int]] = []
    gate = threading.Event()

    def work(items: list[int]) -> None:
        gate.wait(5)
        rounds.append(items)

    with ThreadPoolExecutor(1) as thread:
        batch = Batch(thread, work)
        waiting = [asyncio.create_task(batch.add(number)) for number in range(5)]
        await asyncio.sleep(0.02)
        late = [asyncio.create_task(batch.add(number)) for number in range(5, 8)]
        await asyncio.sleep(0.02)
        gate.set()
        await asyncio.gather(*waiting, *late)
        await batch.drain()
    assert [item for items in rounds for item in items] == list(range(8))
    assert rounds[-1] == [5, 6, 7]


async def test_a_failed_round_fails_everyone_in_it_and_no_one_after() -> None:
    def work(items: list[str]) -> None:
        if "bad" in items:
            raise OSError("bad")

    with ThreadPoolExecutor(1) as thread:
        batch = Batch(thread, work)
        outcomes = await asyncio.gather(batch.add("good"), batch.add("bad"), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OSError, OSError]
        await batch.add("good")


async def test_who_gives_up_waiting_disturbs_no_one() -> None:
    done: list[int] = []
    gate = threading.Event()

    def work(items: list[int]) -> None:
        gate.wait(5)
        done.extend(items)

    with ThreadPoolExecutor(1) as thread:
        batch = Batch(thread, work)
        first, second = asyncio.create_task(batch.add(1)), asyncio.create_task(batch.add(2))
        await asyncio.sleep(0.02)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        await second
    assert done == [1, 2]


async def test_a_caller_who_is_cancelled_is_so_when_the_work_is_done() -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        await gate.wait()
        done.append("all")

    caller = asyncio.create_task(to_the_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0.01)
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == ["all"]


async def test_what_the_work_returns_or_raises_reaches_the_caller() -> None:
    async def one() -> int:
        return 1

    async def fail() -> int:
        raise ValueError("no")

    assert await to_the_end(one()) == 1
    with pytest.raises(ValueError, match="no"):
        await to_the_end(fail())


async def test_a_timeout_waits_for_the_work_and_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await to_the_end(asyncio.sleep(0.02))


async def test_a_process_does_not_outlive_who_waited_for_its_answer() -> None:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe, stderr=pipe)
    assert await answered(child, b"what was asked") == (b"what was asked", b"")
    child = await asyncio.create_subprocess_exec("sleep", "60", stdin=pipe, stdout=pipe, stderr=pipe)
    waiting = asyncio.ensure_future(answered(child))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert child.returncode == -signal.SIGKILL
