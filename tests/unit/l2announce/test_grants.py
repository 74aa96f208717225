"""The rules by which an address is granted, one by one; test_never_two.py is about all of them together."""

from __future__ import annotations

from bus.messages.l2announce import HeldAddress, Renewal
from services.l2announce.grants import MARGIN, Grants

SECONDS = 10.0
PATIENCE = SECONDS * (1 + MARGIN)
X = "10.9.0.1"


class Term:
    """Of one controller; `asks` counts questions up, as a node's process does."""

    def __init__(self, now: float = 0.0, **more: float) -> None:
        self.grants = Grants(SECONDS, "t", now, **more)
        self._numbers = iter(range(1, 1000))

    def asks(
        self, node: str, now: float, *, has: bool = True, holds: tuple[str, ...] = (), term: str = "t", **more: bool
    ) -> bool:
        """Whether it is granted `X`. `has`: by the log it is to announce that."""
        question = Renewal(node=node, process="p", number=next(self._numbers), term=term, holds=list(holds))
        answer = self.grants.renew(question, {X: HeldAddress(address=X, granted=False)} if has else {}, now, **more)
        assert answer is not None and len(answer.addresses) == has
        return any(each.granted for each in answer.addresses)


def test_in_the_beginning_only_who_holds_an_address_is_granted_it() -> None:
    term = Term()
    assert not term.asks("a", 1)
    assert term.asks("a", 2, holds=(X,))
    assert Term().asks("b", PATIENCE + 0.001)


def test_in_the_beginning_what_was_said_before_the_term_counts_for_nothing() -> None:
    assert not Term().asks("a", 1, holds=(X,), term="of before")


def test_where_leases_were_longer_the_beginning_is_longer() -> None:
    term = Term(longest=30.0)
    assert not term.asks("a", 31)
    assert term.asks("a", 32)


def test_nothing_is_granted_while_the_log_does_not_say_how_long_leases_are() -> None:
    assert not Term().asks("a", 100, may_grant=False)


def test_another_is_granted_an_address_when_the_one_before_has_said_that_it_is_gone() -> None:
    term = Term()
    assert term.asks("a", 100)
    assert not term.asks("b", 101)
    assert not term.asks("a", 102, has=False, holds=(X,))
    assert not term.asks("b", 103), "it says that it has it still"
    assert not term.asks("a", 104, has=False)
    assert term.asks("b", 104)


def test_or_when_its_lease_has_run_out_for_certain() -> None:
    term = Term()
    assert term.asks("a", 100)
    assert not term.asks("b", 100 + PATIENCE - 0.001)
    assert term.asks("b", 100 + PATIENCE)
    assert not term.asks("a", 100 + PATIENCE)


def test_a_question_that_comes_late_is_not_answered() -> None:
    grants = Grants(SECONDS, "t", 0.0)

    def asks(process: str, number: int) -> bool:
        return grants.renew(Renewal(node="a", process=process, number=number), {}, 100.0) is not None

    assert asks("p", 2) and not asks("p", 1) and not asks("p", 2) and asks("p", 3)
    assert asks("q", 1) and not asks("p", 4), "that process is over"


def test_a_node_lives_for_as_long_as_it_may_hold_something() -> None:
    term = Term()
    term.asks("a", 100)
    assert term.grants.live(100 + PATIENCE - 0.001) == {"a"}
    assert term.grants.changes_at(101) == 100 + PATIENCE
    assert not term.grants.live(100 + PATIENCE)
