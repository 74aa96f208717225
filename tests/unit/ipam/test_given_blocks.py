"""With ipam.mode=kubernetes a node holds what its Node says, and no address is held twice whatever Nodes say."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages.ipam import Block
from bus.messages.resources import Node
from bus.subjects import BLOCK, NODE
from services.ipam.given_blocks import GivenBlocks
from services.ipam.settings import blocks
from tests.unit.ipam.test_model import Log, endpoint


def node(name: str, *cidrs: str) -> tuple[str, Node]:
    return NODE.of(name), Node(name=name, addresses=["192.0.2.1"], pod_cidrs=list(cidrs))


def settled(log: Log, model: GivenBlocks, *nodes: tuple[str, Node]) -> None:
    for each in nodes:
        model.put(*each)
    log.settle(model)


def test_a_node_holds_what_its_node_says_of_each_family() -> None:
    log, model = Log(), GivenBlocks(("IPv4", "IPv6"))
    settled(log, model, node("a", "10.244.1.0/24", "fd00::100/120"), node("b", "10.244.2.0/24"))
    assert (log.of("a"), log.of("b")) == (["10.244.1.0/24", "fd00::100/120"], ["10.244.2.0/24"])
    assert model.short == ["b (IPv6)"]
    four = GivenBlocks(("IPv4",))
    settled(Log(), four, node("a", "10.244.1.0/24", "fd00::100/120"))
    assert four.short == [] and list(four.said()) == [BLOCK.of("10.244.1.0/24")]


def test_a_node_without_any_waits_and_is_told_of_until_it_has_some() -> None:
    log, model = Log(), GivenBlocks(("IPv4",))
    settled(log, model, node("a"))
    assert (model.short, log.blocks) == (["a (IPv4)"], {})
    settled(log, model, node("a", "10.244.1.0/24"))
    assert (model.short, log.of("a")) == ([], ["10.244.1.0/24"])


@pytest.mark.parametrize(("first", "second"), [("10.244.0.0/24", "10.244.0.0/16"), ("10.244.0.0/16", "10.244.7.0/24"),
                                               ("10.244.1.0/24", "10.244.1.0/24")])  # fmt: skip
def test_of_two_that_overlap_the_second_waits_until_the_first_is_gone(first: str, second: str) -> None:
    log, model = Log(), GivenBlocks(("IPv4",))
    settled(log, model, node("z", first))
    settled(log, model, node("a", second))
    assert (log.of("z"), log.of("a"), model.short) == ([first], [], ["a (IPv4)"])
    model.delete(NODE.of("z"))
    log.settle(model)
    log.settle(model)
    assert (log.of("a"), model.short) == ([second], [])


def test_what_a_node_held_before_stays_while_endpoints_are_in_it() -> None:
    """Another mode, or a Node that was made anew."""
    log, model = Log(), GivenBlocks(("IPv4",))
    old = Block(cidr="10.0.0.0/24", node="a")
    log.blocks[BLOCK.of(old.cidr)] = old
    model.put(BLOCK.of(old.cidr), old)
    model.put(*endpoint("a", "web", "10.0.0.5"))
    settled(log, model, node("a", "10.244.1.0/24"))
    assert log.of("a") == ["10.0.0.0/24", "10.244.1.0/24"]
    model.delete(endpoint("a", "web", "10.0.0.5")[0])
    log.settle(model)
    assert log.of("a") == ["10.244.1.0/24"]


def test_a_node_that_is_gone_loses_its_block_when_no_endpoint_is_left() -> None:
    log, model = Log(), GivenBlocks(("IPv4",))
    model.put(*endpoint("a", "web", "10.244.1.5"))
    settled(log, model, node("a", "10.244.1.0/24"))
    model.delete(NODE.of("a"))
    log.settle(model)
    assert log.of("a") == ["10.244.1.0/24"]
    model.delete(endpoint("a", "web", "10.244.1.5")[0])
    log.settle(model)
    assert not log.blocks


CIDRS = st.builds(
    lambda value, length: str(ip_network((0x0AF40000 | value << 4, length), strict=False)),
    st.integers(0, 63), st.integers(22, 28),
)  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), CIDRS), st.booleans()), min_size=1, max_size=25
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_who_dies_at_any_step_doubles_nothing_and_loses_nothing(
    steps: list[tuple[str, str | None, bool]],
) -> None:
    log, wanted = Log(), dict[str, str]()
    model = GivenBlocks(("IPv4",))

    def anew() -> GivenBlocks:
        made = GivenBlocks(("IPv4",))
        for subject, block in log.blocks.items():
            made.put(subject, block)
        for name, cidr in wanted.items():
            made.put(*node(name, cidr))
        return made

    for name, cidr, dies in steps:
        if cidr is None:
            wanted.pop(name, None)
            model.delete(NODE.of(name))
        else:
            wanted[name] = cidr
            model.put(*node(name, cidr))
        log.turn(model)
        if dies:
            model = anew()
        held = [ip_network(block.cidr) for block in log.blocks.values()]
        assert not any(one.overlaps(other) for at, one in enumerate(held) for other in held[:at])
    last = anew()
    log.settle(last)
    log.settle(last)
    for name, cidr in wanted.items():
        in_the_way = [other for other in log.blocks.values() if ip_network(other.cidr).overlaps(ip_network(cidr))]
        assert log.of(name) == [cidr] or (in_the_way and f"{name} (IPv4)" in last.short)
    assert {block.node for block in log.blocks.values()} <= wanted.keys()


def test_the_mode_is_a_setting() -> None:
    assert isinstance(blocks({"PLEXUS_IPAM_MODE": "kubernetes"}), GivenBlocks)
    assert not isinstance(blocks({}), GivenBlocks)
