"""The map `l2_answers`: what the node is granted, on which devices, and until when."""

from __future__ import annotations

from bus.messages.l2announce import Announcement, Granted, HeldAddress, Renewal
from bus.subjects import ANNOUNCEMENT
from services.dataplane.part import Facts
from services.dataplane.parts.announcements import SECOND_NS, Announcements, Outcome
from services.dataplane.shapes.devices import DeviceInfo
from services.dataplane.shapes.layouts import L2AnswerEntry, L2AnswerKey

ETH0 = DeviceInfo("eth0", 2, "02:00:00:00:00:02", "", 1500)
ENS1 = DeviceInfo("ens1", 3, "02:00:00:00:00:03", "", 1500)
X, Y = "192.0.2.9", "2001:db8::9"
NOW = 1000 * SECOND_NS


class Node:
    """Its part, and a map that holds what the table says."""

    def __init__(self, *devices: DeviceInfo, held: dict[bytes, bytes] | None = None, is_on: bool = True) -> None:
        facts = Facts()
        self.uplinks = facts.uplinks.keep()
        for each in devices:
            self.uplinks.put(each.index, each)
        self.part = Announcements(facts, "n1", is_on=is_on)
        self.part.adopt(lambda _: held or {})

    def asks(self, now: int = NOW) -> Renewal:
        return self.part.question("p", self.held, now)

    def answered(self, *addresses: HeldAddress, sent: int = NOW, now: int = NOW, term: str = "t") -> Outcome:
        question = self.asks(sent)
        answer = Granted(term=term, seconds=3.0, addresses=list(addresses))
        return self.part.answered(question, answer, sent, now)

    @property
    def held(self) -> dict[bytes, bytes]:
        self.part.settle()
        return dict(self.part.table.wanted)

    @property
    def entries(self) -> dict[tuple[str, int], tuple[int, str]]:
        """By address and device: until when (ns after `NOW`), and the MAC address."""
        found = ((L2AnswerKey.unpack(key), L2AnswerEntry.unpack(value)) for key, value in self.held.items())
        return {(key.address, key.device): (value.until - NOW, value.mac.hex(":")) for key, value in found}


def grant(address: str, *interfaces: str) -> HeldAddress:
    return HeldAddress(address=address, granted=True, interfaces=list(interfaces))


def test_a_grant_counts_from_before_the_question_was_sent() -> None:
    node = Node(ETH0)
    assert node.answered(grant(X), sent=NOW, now=NOW + SECOND_NS) == Outcome(again=True, waits=False)
    assert node.entries == {(X, 2): (3 * SECOND_NS, ETH0.mac)}
    assert node.answered(grant(X)) == Outcome(again=False, waits=False), "the term is known now"


def test_an_address_is_announced_on_the_devices_that_a_pattern_finds() -> None:
    node = Node(ETH0, ENS1)
    node.answered(grant(X, "^ens[0-9]+$"), grant(Y))
    assert node.entries.keys() == {(X, 3), (Y, 2), (Y, 3)}
    node.answered(grant(X, "s1$", "h0"), grant(Y, "nothing", "(broken"))
    assert node.entries.keys() == {(X, 2), (X, 3)}
    node.uplinks.delete(3)
    assert node.entries.keys() == {(X, 2)}
    node.uplinks.put(2, DeviceInfo("eth0", 2, "02:00:00:00:00:99", "", 1500))
    assert node.entries == {(X, 2): (3 * SECOND_NS, "02:00:00:00:00:99")}


def test_what_is_not_granted_anew_stays_as_it_is_and_what_is_not_named_goes_at_once() -> None:
    node = Node(ETH0)
    node.answered(grant(X), grant(Y))
    later = NOW + SECOND_NS
    assert node.answered(HeldAddress(address=X, granted=False), sent=later, now=later) == Outcome(
        again=True, waits=True
    )
    assert node.entries == {(X, 2): (3 * SECOND_NS, ETH0.mac)}
    assert node.asks(later).holds == [X]


def test_what_has_run_out_is_not_held_and_goes() -> None:
    node = Node(ETH0)
    node.answered(grant(X))
    assert node.asks(NOW + 3 * SECOND_NS).holds == []
    node.part.expire(NOW + 3 * SECOND_NS)
    assert not node.entries


def test_an_answer_that_comes_too_late_or_to_an_earlier_question_grants_nothing() -> None:
    node = Node(ETH0)
    node.answered(grant(X), sent=NOW, now=NOW + 3 * SECOND_NS)
    assert not node.entries
    question = node.asks()
    node.asks()
    answer = Granted(term="t", seconds=3.0, addresses=[grant(X)])
    assert node.part.answered(question, answer, NOW, NOW) == Outcome(again=False, waits=True)
    assert not node.entries


def test_nobodys_answer_takes_nothing_away() -> None:
    node = Node(ETH0)
    node.answered(grant(X))
    node.answered(term="")
    assert node.entries.keys() == {(X, 2)}


def test_after_a_restart_the_map_is_as_it_was_until_the_node_is_told() -> None:
    before = Node(ETH0, ENS1)
    before.answered(grant(X, "ens"), grant(Y))
    node = Node(ETH0, ENS1, held=before.held)
    assert node.entries == before.entries
    assert node.asks().holds == [X, Y]
    node.answered(HeldAddress(address=X, granted=False, interfaces=["ens"]))
    assert node.entries.keys() == {(X, 3)}


def has_news(node: Node) -> bool:
    return node.part.has_news


def test_what_is_heard_only_says_when_to_ask() -> None:
    node = Node(ETH0)
    (hears,) = node.part.hears
    assert hears.family is ANNOUNCEMENT

    def said(node: str) -> Announcement:
        return Announcement(address=X, node=node, services=[], policies=[])

    hears.put(said("n2"))
    assert not has_news(node)
    hears.put(said("n1"))
    assert has_news(node) and not node.entries
    node.asks()
    hears.put(said("n1"))
    assert not has_news(node), "that is known"
    hears.put(said("n2"))
    assert has_news(node)
    node.asks()
    hears.delete(X)
    assert not has_news(node), "it was another's"


def test_a_node_that_announces_nothing_hears_nothing_and_keeps_nothing() -> None:
    before = Node(ETH0)
    before.answered(grant(X))
    node = Node(ETH0, held=before.held, is_on=False)
    assert node.part.hears == () and not node.entries
