"""A digest is of what is there, however that came about; a reader that holds something else is told so, by family."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from bus.codec import encode
from bus.digest import Digests, Held, hash_of
from bus.interface import Batch, Change
from bus.messages.resources import Namespace
from bus.subjects import ENDPOINT, NAMESPACE, NODE
from bus.telemetry import counted

SUBJECTS = st.sampled_from([*(NAMESPACE.of(name) for name in "abc"), *(NODE.of(name) for name in "ab")])
CHANGES = st.lists(st.tuples(SUBJECTS, st.none() | st.binary(max_size=2)))


def digests(changes: Sequence[tuple[str, bytes | None]]) -> tuple[Digests, dict[str, bytes]]:
    """What they leave, and its digests."""
    made, left = Digests((NAMESPACE, NODE)), dict[str, bytes]()
    for subject, body in changes:
        assert made.has(subject) == (subject in left)
        if body is None:
            assert made.delete(subject) == (left.pop(subject, None) is not None)
        else:
            assert made.put(subject, body) == (left.get(subject) != body)
            left[subject] = body
    return made, left


@given(CHANGES, CHANGES, st.randoms())
def test_digests_are_equal_exactly_when_contents_are(
    some: list[tuple[str, bytes | None]], others: list[tuple[str, bytes | None]], chance: object
) -> None:
    (first, left), (second, left_too) = digests(some), digests(others)
    for family, head in (("resources.namespace", NAMESPACE.head), ("resources.node", NODE.head)):
        mine = {subject: body for subject, body in left.items() if subject.startswith(head)}
        its = {subject: body for subject, body in left_too.items() if subject.startswith(head)}
        assert (first.of(family) == second.of(family)) == (mine == its)
        assert first.of(family).startswith(f"{len(mine)}:")
    again = list(left.items())
    chance.shuffle(again)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert digests(again)[0].all() == first.all(), "the way there does not matter"


@given(st.lists(st.tuples(SUBJECTS, st.binary(max_size=2)), unique=True))
def test_key_and_value_both_count(pairs: list[tuple[str, bytes]]) -> None:
    assert len({hash_of(*pair) for pair in pairs}) == len(pairs)


def change(name: str, team: str | None = "a") -> Change:
    message = None if team is None else Namespace(name=name, labels={"team": team})
    body = b"" if message is None else encode(message)
    return Change(NAMESPACE.of(name), message, 1, 0.0, {}, body)


def said(*changes: Change) -> dict[str, str]:
    made = Digests((NAMESPACE,))
    for each in changes:
        made.put(each.subject, each.body)
    return made.all()


async def until(claim: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not claim():
            await asyncio.sleep(0.001)


async def test_a_key_that_was_lost_is_a_difference_until_it_is_told_again() -> None:
    held = Held(NAMESPACE)
    asked: list[str] = []
    held.anew.asked = asked.append
    before = counted("digest_differences", family="resources.namespace")
    held.take(change("a"))
    held.compare(Batch([], synced=True, said=said(change("a"))))
    assert held.problem == ""
    held.compare(Batch([], synced=True, said=said(change("a"), change("b"))))
    assert held.problem.startswith("resources.namespace holds 1 keys of 2, since ")
    since = held.differing["resources.namespace"].since
    held.compare(Batch([], synced=True))  # the owner is writing: that is no word for or against
    held.compare(Batch([], synced=True, said=said(change("a"), change("b"))))
    assert held.differing["resources.namespace"].since == since
    assert counted("digest_differences", family="resources.namespace") == before + 1
    await until(lambda: asked == ["resources"])
    held.take(change("b"))
    held.compare(Batch([change("b")], synced=True, said=said(change("a"), change("b"))))
    assert held.problem == "" and not held.differing


async def test_another_value_is_a_difference_too_and_so_is_a_key_too_many() -> None:
    held = Held(NAMESPACE)
    held.take(change("a", "x"))
    held.compare(Batch([], synced=True, said=said(change("a", "y"))))
    assert "holds 1 keys, not all as they are said" in held.problem
    held.compare(Batch([], synced=True, said=said()))
    assert "holds 1 keys of 0" in held.problem
    held.take(change("a", None))
    held.compare(Batch([], synced=True, said=said()))
    assert held.problem == ""


async def test_what_does_not_decode_here_is_named() -> None:
    held = Held(NAMESPACE)
    bad = NAMESPACE.of("b")
    held.compare(Batch([], synced=True, said=said(change("b")), unreadable=frozenset({bad})))
    assert held.problem.endswith(f"; unreadable here: {bad}")


async def test_of_what_is_heard_in_part_nothing_is_compared() -> None:
    held = Held((NAMESPACE, ("a",)), ENDPOINT)
    held.compare(Batch([], synced=True, said=said(change("a"), change("b"))))
    assert held.problem == "" and set(held.digests) == {"dataplane.endpoint"}


async def test_what_was_refused_is_not_lost_whether_its_owner_says_it_or_another_wrote_it() -> None:
    held = Held(NAMESPACE)
    held.take(change("a", "x"))
    held.refuse(change("a", "strange"))
    held.refuse(change("b", "strange"))
    for word in (said(change("a", "x")), said(change("a", "strange"), change("b", "strange"))):
        held.compare(Batch([], synced=True, said=word))
        assert held.problem == ""
    held.compare(Batch([], synced=True, said=said(change("a", "y"))))
    assert held.problem
    held.take(change("a", "y"))
    held.take(change("b", None))
    held.compare(Batch([], synced=True, said=said(change("a", "y"))))
    assert held.problem == ""
