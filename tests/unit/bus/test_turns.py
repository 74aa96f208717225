"""Whoever asks most waits longest, and nobody else."""

from __future__ import annotations

import asyncio

from bus.turns import ITEM_BYTES, Rate, Turns


async def test_askers_take_turns_and_each_ones_questions_keep_their_order() -> None:
    turns: Turns[str] = Turns(1 << 20)
    for number in range(100):
        assert turns.put("loud", f"loud{number}", 10)
    for name in ("quiet", "other"):
        assert turns.put(name, f"{name}0", 10)
    first = [await turns.next() for _ in range(4)]
    assert sorted(first[:3]) == ["loud0", "other0", "quiet0"] and first[3] == "loud1"
    assert turns.put("quiet", "quiet1", 10)
    assert "quiet1" in [await turns.next() for _ in range(2)]


async def test_what_waits_of_one_is_bounded_and_costs_no_other() -> None:
    turns: Turns[int] = Turns(3 * ITEM_BYTES)
    assert [turns.put("loud", number, 0) for number in range(5)] == [True] * 3 + [False] * 2
    assert turns.put("quiet", 9, 100 * ITEM_BYTES), "a first one always fits"
    assert not turns.put("quiet", 10, 0)
    assert sorted([await turns.next() for _ in range(4)]) == [0, 1, 2, 9]
    assert turns.put("loud", 5, 0)


async def test_one_who_asks_too_fast_is_answered_later_and_others_meanwhile() -> None:
    loop = asyncio.get_running_loop()
    turns: Turns[str] = Turns(1 << 20, Rate(at_once=2, per_second=20))
    began = loop.time()
    for number in range(4):
        turns.put("loud", f"loud{number}", 0)
    assert [await turns.next() for _ in range(2)] == ["loud0", "loud1"]
    turns.put("quiet", "quiet0", 0)
    assert await turns.next() == "quiet0"
    assert await turns.next() == "loud2"
    assert await turns.next() == "loud3"
    assert loop.time() - began >= 2 / 20


async def test_what_has_waited_for_too_long_is_passed_over_and_pays_for_no_turn() -> None:
    now = asyncio.get_running_loop().time
    turns: Turns[int] = Turns(1 << 20, Rate(at_once=2, per_second=0.001))
    for number in range(10):
        turns.put("loud", number, 0, until=now() - 1)
    for number in (10, 11):
        turns.put("loud", number, 0, until=now() + 100)
    assert [await turns.next() for _ in range(2)] == [10, 11]
    assert turns.late == 10


async def test_who_waits_for_a_question_is_woken_by_the_first() -> None:
    turns: Turns[int] = Turns(1 << 20)
    waiting = asyncio.create_task(turns.next())
    await asyncio.sleep(0)
    turns.put("a", 1, 0)
    assert await waiting == 1


async def test_an_asker_that_is_gone_is_forgotten_when_it_may_ask_all_again() -> None:
    turns: Turns[int] = Turns(1 << 20, Rate(at_once=1, per_second=1000))
    for number in range(50):
        turns.put(f"a{number}", number, 0)
    assert sorted([await turns.next() for _ in range(50)]) == list(range(50))
    await asyncio.sleep(0.01)
    turns.put("b", 51, 0)
    assert await turns.next() == 51
    waiting = asyncio.create_task(turns.next())
    await asyncio.sleep(0.01)
    waiting.cancel()
    assert set(turns._askers) <= {"b"}
