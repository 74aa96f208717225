"""No block is ever held twice, every node has one while there are any, and the same nodes get the same ones again."""

from __future__ import annotations

import asyncio
import time
from ipaddress import IPv4Network, IPv6Network, summarize_address_range

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.control import Claim, Unsay, run_control
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.ipam import Block
from bus.messages.resources import Node
from bus.service import BadSettings
from bus.subjects import BLOCK, ENDPOINT, NODE
from bus.testing import Hub
from services.ipam.model import BlockAllocation, Pools
from services.ipam.settings import from_environment

SMALL = Pools([IPv4Network("10.0.0.0/27")], 29)  # four blocks of eight addresses, five for pods


def node(name: str) -> tuple[str, Node]:
    return NODE.of(name), Node(name=name, addresses=["192.0.2.1"])


def endpoint(on: str, pod: str, address: str) -> tuple[str, Endpoint]:
    message = Endpoint(
        node=on, namespace="default", pod=pod, address=address, mac="", interface="", interface_index=1, identity=0,
        state="ready",
    )  # fmt: skip
    return ENDPOINT.of(on, "default", pod), message


class Log:
    """The blocks' log, and models that write to it; a claim goes to whoever is first."""

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}

    def turn(self, model: BlockAllocation) -> int:
        """Let the model act once; returns how many actions that were."""
        actions = list(model.act())
        for action in actions:
            if isinstance(action, Claim):
                assert isinstance(action.message, Block)
                model.put(action.subject, self.blocks.setdefault(action.subject, action.message))
            elif isinstance(action, Unsay):
                self.blocks.pop(action.subject, None)
        return len(actions)

    def settle(self, model: BlockAllocation) -> None:
        for _ in range(50):
            if not self.turn(model):
                return
        raise AssertionError("it never comes to rest")

    def of(self, name: str) -> list[str]:
        return sorted(block.cidr for block in self.blocks.values() if block.node == name)


def addresses(cidr: str) -> list[str]:
    return [str(address) for address in list(IPv4Network(cidr).hosts())[1:]]


def test_every_node_has_one_block_and_the_same_one_after_the_log_is_lost() -> None:
    pools = Pools([IPv4Network("10.244.0.0/16")], 24)
    given_blocks = []
    for order in (["a", "b", "c"], ["c", "b", "a"]):
        log, model = Log(), BlockAllocation(pools)
        for name in order:
            model.put(*node(name))
        log.settle(model)
        given_blocks.append({name: log.of(name) for name in "abc"})
    assert given_blocks[0] == given_blocks[1]
    assert all(len(blocks) == 1 for blocks in given_blocks[0].values())


def test_a_node_gets_another_block_when_three_quarters_are_in_use() -> None:
    log, model = Log(), BlockAllocation(SMALL)
    model.put(*node("a"))
    log.settle(model)
    (first,) = log.of("a")
    for at, address in enumerate(addresses(first)[:3]):
        model.put(*endpoint("a", f"p{at}", address))
    log.settle(model)
    assert log.of("a") == [first]
    model.put(*endpoint("a", "p3", addresses(first)[3]))
    log.settle(model)
    assert len(log.of("a")) == 2


def test_addresses_that_a_node_does_not_hold_or_says_twice_get_it_no_block() -> None:
    log, model = Log(), BlockAllocation(SMALL)
    model.put(*node("a"))
    log.settle(model)
    (first,) = log.of("a")
    strangers = [*addresses(SMALL.block(0)), *addresses(SMALL.block(1)), "1.0.3.1", "10.1.0.1"]
    for at, address in enumerate(each for each in strangers if each not in addresses(first)):
        model.put(*endpoint("a", f"p{at}", address))
    for at in range(8):
        model.put(*endpoint("a", f"q{at}", addresses(first)[0]))
    log.settle(model)
    assert log.of("a") == [first]


def test_a_deleted_nodes_block_is_freed_only_when_no_endpoint_is_left_in_it() -> None:
    log, model = Log(), BlockAllocation(SMALL)
    model.put(*node("a"))
    log.settle(model)
    (block,) = log.of("a")
    subject, message = endpoint("a", "p", addresses(block)[0])
    model.put(subject, message)
    model.delete(NODE.of("a"))
    log.settle(model)
    assert log.of("a") == [block]
    model.delete(subject)
    log.settle(model)
    assert log.of("a") == [] and list(model.said()) == []


def test_a_node_that_comes_back_keeps_its_block() -> None:
    log, model = Log(), BlockAllocation(SMALL)
    model.put(*node("a"))
    log.settle(model)
    before = log.of("a")
    model.delete(NODE.of("a"))
    model.put(*node("a"))
    log.settle(model)
    assert log.of("a") == before


def test_an_exhausted_pool_names_who_goes_without_and_serves_them_when_a_block_is_freed() -> None:
    log, model = Log(), BlockAllocation(SMALL)
    for name in "abcdef":
        model.put(*node(name))
    log.settle(model)
    assert len(log.blocks) == 4 and len(model.short) == 2
    satisfied = next(name for name in "abcdef" if log.of(name))
    model.delete(NODE.of(satisfied))
    log.settle(model)
    assert len(log.blocks) == 4 and len(model.short) == 1


def test_a_block_is_not_given_on_in_the_same_breath_as_it_is_freed() -> None:
    """Actions are carried out side by side, so a claim must not depend on a deletion beside it."""
    log, model = Log(), BlockAllocation(Pools([IPv4Network("10.0.0.0/29")], 29))
    model.put(*node("a"))
    log.settle(model)
    model.put(*node("b"))
    model.delete(NODE.of("a"))
    assert [type(action) for action in model.act()] == [Unsay]
    assert [type(action) for action in model.act()] == [Claim]


def test_blocks_of_another_size_are_not_given_again_in_part() -> None:
    model = BlockAllocation(SMALL)
    model.put(BLOCK.of("10.0.0.0/28"), Block(cidr="10.0.0.0/28", node="old"))
    model.put(*node("a"))
    model.put(*node("b"))
    claimed = {action.message.cidr for action in model.act() if isinstance(action, Claim)}  # type: ignore[attr-defined]
    assert claimed == {"10.0.0.16/29", "10.0.0.24/29"}


@pytest.mark.parametrize("cidr", ["zzz", "10.0.0.1/29", "fd00::/64", "10.0.0.8/29"])
def test_a_block_that_makes_no_sense_is_refused_and_given_to_nobody(cidr: str) -> None:
    """The others are served in the same breath, and what is claimed is never what was refused."""
    log, model = Log(), BlockAllocation(SMALL)
    subject = BLOCK.of("10.0.0.0/29")
    with pytest.raises(ValueError):
        model.put(subject, Block(cidr=cidr, node="a"))
    assert subject not in set(model.said())
    for name in "abc":
        model.put(*node(name))
    log.settle(model)
    assert len(log.blocks) == 3 and subject not in log.blocks
    model.put(*node("d"))
    log.settle(model)
    assert model.short == ["d (IPv4)"]
    model.delete(subject)
    log.settle(model)
    assert log.of("d") == ["10.0.0.0/29"]


def test_a_claim_that_meets_a_senseless_block_goes_on_to_the_next_one() -> None:
    model = BlockAllocation(SMALL)
    model.put(*node("a"))
    (claim,) = model.act()
    with pytest.raises(ValueError):
        model.put(claim.subject, Block(cidr="zzz", node="b"))
    (other,) = model.act()
    assert isinstance(other, Claim) and other.subject != claim.subject


def test_a_block_that_cannot_be_worked_out_loses_no_work() -> None:
    """Half of what was heard is never forgotten because the other half failed."""
    log, model = Log(), BlockAllocation(SMALL)
    model.put(*node("a"))
    log.settle(model)
    model.delete(NODE.of("a"))
    model.put(*node("b"))
    candidate, model._candidate = model._candidate, None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        model.act()
    model._candidate = candidate  # type: ignore[method-assign]
    log.settle(model)
    assert log.of("a") == [] and len(log.of("b")) == 1


def test_an_endpoint_that_has_no_ipv4_address_any_more_keeps_no_ipv4_block() -> None:
    log, model = Log(), BlockAllocation(SMALL)
    model.put(*node("a"))
    log.settle(model)
    model.put(*endpoint("a", "p", addresses(log.of("a")[0])[0]))
    model.put(*endpoint("a", "p", "fd00::1"))
    model.delete(NODE.of("a"))
    log.settle(model)
    assert log.of("a") == []


def test_a_node_cannot_speak_for_another() -> None:
    model = BlockAllocation(SMALL)
    _, forged = endpoint("a", "p", "10.0.0.2")
    with pytest.raises(ValueError, match="another thing"):
        model.put(ENDPOINT.of("b", "default", "p"), forged)


def test_several_pools_are_one_supply() -> None:
    pools = Pools([IPv4Network("10.0.0.0/30"), IPv4Network("10.9.0.0/29")], 30)
    assert [pools.block(number) for number in range(pools.count)] == ["10.0.0.0/30", "10.9.0.0/30", "10.9.0.4/30"]
    assert list(pools.numbers(IPv4Network("10.9.0.0/29"))) == [1, 2]
    assert list(pools.numbers(IPv4Network("10.0.0.0/8"))) == [0, 1, 2], "it spans both pools"
    assert list(pools.numbers(IPv4Network("10.8.0.0/29"))) == []


NAMES = st.sampled_from(list("abcde"))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("node"), NAMES),
        st.tuples(st.just("gone"), NAMES),
        st.tuples(st.just("act"), st.sampled_from([0, 1])),
        st.tuples(st.just("hear"), st.sampled_from([0, 1])),
    ),
    max_size=60,
)


@given(EVENTS)
def test_two_replicas_never_give_overlapping_blocks_whatever_the_order(events: list[tuple[str, str | int]]) -> None:
    """Both act at any time, on what they have heard so far; the log is heard late."""
    log = Log()
    models = [BlockAllocation(SMALL, SMALL6), BlockAllocation(SMALL, SMALL6)]
    for what, who in events:
        if what == "node":
            for model in models:
                model.put(*node(str(who)))
        elif what == "gone":
            for model in models:
                model.delete(NODE.of(str(who)))
        elif what == "act":
            log.turn(models[int(who)])
        else:
            for subject in list(models[int(who)].said()):
                if subject not in log.blocks:
                    models[int(who)].delete(subject)
            for subject, block in log.blocks.items():
                models[int(who)].put(subject, block)
        held = sorted(block.cidr for block in log.blocks.values())
        four = [IPv4Network(cidr) for cidr in held if ":" not in cidr]
        six = [IPv6Network(cidr) for cidr in held if ":" in cidr]
        assert not any(one.overlaps(other) for at, one in enumerate(four) for other in four[:at])
        assert not any(one.overlaps(other) for at, one in enumerate(six) for other in six[:at])
        assert all(BLOCK.of(block.cidr) == subject for subject, block in log.blocks.items())


@settings(max_examples=10, deadline=None)
@given(st.permutations(list("abcd")))
def test_two_running_services_give_each_node_one_block(order: list[str]) -> None:
    asyncio.run(two_services(order))


async def two_services(order: list[str]) -> None:
    hub = Hub()
    pools = Pools([IPv4Network("10.0.0.0/24")], 29)
    running = [asyncio.create_task(run_control(hub.bus(f"i{at}"), BlockAllocation(pools))) for at in range(2)]
    for name in order:
        hub.put(*node(name))
        await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0.005)
        if len(hub.states("ipam")) == len(order):
            break
    blocks: list[Message] = list(hub.states("ipam").values())
    assert sorted(block.node for block in blocks if isinstance(block, Block)) == sorted(order)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PLEXUS_IPAM_MODE": "multi-pool"}, "not supported yet"),
        ({"PLEXUS_CLUSTER_POOL_CIDRS": "10.0.0.0/8 x"}, "PLEXUS_CLUSTER_POOL_CIDRS"),
        ({"PLEXUS_CLUSTER_POOL_CIDRS": "10.0.0.0/8, 10.1.0.0/16"}, "overlap"),
        ({"PLEXUS_CLUSTER_POOL_MASK": "31"}, "PLEXUS_CLUSTER_POOL_MASK is 16 to 30, not 31"),
        ({"PLEXUS_CLUSTER_POOL_MASK": "8"}, "PLEXUS_CLUSTER_POOL_MASK is 16 to 30, not 8"),
        ({"PLEXUS_CLUSTER_POOL_CIDRS": "10.0.0.0/24", "PLEXUS_CLUSTER_POOL_MASK": "20"}, "does not fit"),
        ({"PLEXUS_CLUSTER_POOL_MASK": "many"}, "is a whole number, not 'many'"),
        ({"PLEXUS_CLUSTER_POOL_CIDRS": "fd00::/104"}, "not an IPv4 network"),
        ({"PLEXUS_CLUSTER_POOL_CIDRS6": "10.0.0.0/8"}, "not an IPv6 network"),
        ({"PLEXUS_CLUSTER_POOL_CIDRS6": "::ffff:10.0.0.0/104"}, "not an IPv6 network"),
        ({"PLEXUS_IPV6_ENABLED": "true", "PLEXUS_CLUSTER_POOL_MASK6": "127"}, "_MASK6 is 64 to 126, not 127"),
        ({"PLEXUS_IPV6_ENABLED": "true", "PLEXUS_CLUSTER_POOL_MASK6": "80"}, "_MASK6: .*use 104 to 126"),
        ({"PLEXUS_IPV6_ENABLED": "yes"}, "is true or false, not 'yes'"),
        ({"PLEXUS_IPV4_ENABLED": "false"}, "both are off"),
        ({"PLEXUS_CLUSTER_POOL_CIDRS": ""}, "both are off"),
    ],
)
def test_bad_settings_are_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        from_environment(environment)


def test_without_settings_there_is_one_pool_of_256_blocks() -> None:
    (pools,) = from_environment({})
    assert (pools.family, pools.count, pools.block(0)) == ("IPv4", 256, "10.244.0.0/24")


def test_ipv6_has_pools_when_it_is_on_or_they_are_given() -> None:
    v4, v6 = from_environment({"PLEXUS_IPV6_ENABLED": "true"})
    assert (v4.family, v6.family, v6.count, v6.block(1)) == ("IPv4", "IPv6", 65536, "fd00::100/120")
    given = {
        "PLEXUS_IPV4_ENABLED": "false",
        "PLEXUS_CLUSTER_POOL_CIDRS6": "fd01::/56",
        "PLEXUS_CLUSTER_POOL_MASK6": "64",
    }
    (v6,) = from_environment(given)
    (six,) = from_environment({"PLEXUS_CLUSTER_POOL_CIDRS": "", "PLEXUS_CLUSTER_POOL_CIDRS6": "fd00::/104"})
    assert six.family == "IPv6"
    assert (v6.count, v6.block(255)) == (256, "fd01:0:0:ff::/64")


# -- two families

SMALL6 = Pools([IPv6Network("fd00::/122")], 125)  # eight blocks of eight addresses


def test_every_node_has_one_block_of_each_family() -> None:
    log, model = Log(), BlockAllocation(SMALL, SMALL6)
    for name in "abc":
        model.put(*node(name))
    log.settle(model)
    assert all([":" in cidr for cidr in log.of(name)] == [False, True] for name in "abc")


def test_the_ipv4_blocks_are_the_same_with_and_without_ipv6() -> None:
    given_blocks = []
    for pools in ([SMALL], [SMALL, SMALL6]):
        log, model = Log(), BlockAllocation(*pools)
        for name in "abc":
            model.put(*node(name))
        log.settle(model)
        given_blocks.append({name: [cidr for cidr in log.of(name) if ":" not in cidr] for name in "abc"})
    assert given_blocks[0] == given_blocks[1]


def test_another_block_comes_of_the_family_that_runs_short() -> None:
    log, model = Log(), BlockAllocation(SMALL, SMALL6)
    model.put(*node("a"))
    log.settle(model)
    _, first = log.of("a")
    for at in range(4):
        subject, message = endpoint("a", f"p{at}", f"10.9.0.{at}")
        six = str(IPv6Network(first)[at + 2])
        model.put(subject, replace(message, address=six, addresses=[six]))
    log.settle(model)
    assert [":" in cidr for cidr in log.of("a")] == [False, True, True]


def test_who_goes_without_is_named_with_the_family() -> None:
    log, model = Log(), BlockAllocation(SMALL, SMALL6)
    for name in "abcde":
        model.put(*node(name))
    log.settle(model)
    (short,) = model.short
    assert short.endswith(" (IPv4)") and all(log.of(name) for name in "abcde")


def test_a_block_is_freed_only_when_no_endpoint_has_any_address_in_it() -> None:
    log, model = Log(), BlockAllocation(SMALL, SMALL6)
    model.put(*node("a"))
    log.settle(model)
    four, six = log.of("a")
    subject, message = endpoint("a", "p", addresses(four)[0])
    model.put(subject, replace(message, addresses=[addresses(four)[0], str(IPv6Network(six)[3])]))
    model.delete(NODE.of("a"))
    log.settle(model)
    assert log.of("a") == [four, six]
    model.put(subject, message)  # it has its IPv4 address alone now
    log.settle(model)
    assert log.of("a") == [four]
    model.delete(subject)
    log.settle(model)
    assert log.of("a") == []


@pytest.mark.parametrize("cidr", ["::ffff:10.0.0.0/125", "fd00::1/125", "fd00::%eth0/125", "fd00::/129"])
def test_an_ipv6_block_that_makes_no_sense_is_refused(cidr: str) -> None:
    with pytest.raises(ValueError, match="not a block"):
        BlockAllocation(SMALL, SMALL6).put(BLOCK.of(cidr), Block(cidr=cidr, node="a"))


def test_an_ipv6_block_written_another_way_is_taken_all_the_same() -> None:
    model = BlockAllocation(Pools([IPv6Network("fd00::/124")], 125))  # two blocks
    model.put(*node("old"))
    model.put(BLOCK.of("FD00:0::0/125"), Block(cidr="FD00:0::0/125", node="old"))
    model.put(*node("a"))
    (claim,) = model.act()
    assert isinstance(claim, Claim) and claim.subject == BLOCK.of("fd00::8/125")


def test_pools_are_of_one_family_and_not_too_many_blocks() -> None:
    with pytest.raises(ValueError, match="not IPv4"):
        Pools([IPv4Network("10.0.0.0/24"), IPv6Network("fd00::/120")], 30)
    with pytest.raises(ValueError, match="use 48 to 70"):
        Pools([IPv6Network("fd00::/48")], 120)


@pytest.mark.parametrize("free", [0, 512])
def test_nodes_that_ask_a_pool_with_little_or_nothing_left_do_not_each_look_at_all_of_it(free: int) -> None:
    """Of 262,144 blocks the last `free` ones are; 1,000 nodes that looked at each would take half a minute."""
    pool = IPv4Network("10.0.0.0/12")
    pools = Pools([pool], 30)
    model = BlockAllocation(pools)
    model.put(*node("others"))
    for taken in summarize_address_range(pool[0], pool[-1 - 4 * free]):
        model.put(BLOCK.of(str(taken)), Block(cidr=str(taken), node="others"))
    for number in range(1000):
        model.put(*node(f"node{number}"))
    before = time.process_time()
    claims = [each.message for each in model.act() if isinstance(each, Claim)]
    assert time.process_time() - before < 3
    assert {each.cidr for each in claims if isinstance(each, Block)} == {
        pools.block(pools.count - 1 - number) for number in range(free)
    }
    assert len(model.short) == 1000 - free


def test_a_block_that_another_replica_gave_to_a_node_which_is_not_heard_of_yet_stays_that_nodes() -> None:
    log, behind, ahead = Log(), BlockAllocation(SMALL), BlockAllocation(SMALL)
    behind.put(*node("a"))
    log.settle(behind)
    for subject, given_before in log.blocks.items():
        ahead.put(subject, given_before)
    for name in ("a", "b"):
        ahead.put(*node(name))
    log.settle(ahead)
    (block,) = log.of("b")
    other = next(name for name in map(str, range(1000)) if claimed_first(name) == block)
    behind.put(*node(other))
    log.settle(behind)  # it claims what "b" has, and learns of that
    assert log.of("b") == [block] and log.of(other) not in ([], [block])
    behind.put(*node("b"))
    behind.delete(NODE.of("b"))
    log.settle(behind)
    assert log.of("b") == []


def claimed_first(name: str) -> str:
    """Which block of SMALL a node wants when all are free."""
    model = BlockAllocation(SMALL)
    model.put(*node(name))
    (claim,) = model.act()
    assert isinstance(claim, Claim) and isinstance(claim.message, Block)
    return claim.message.cidr


def test_a_node_whose_name_is_none_has_no_block() -> None:
    model = BlockAllocation(SMALL)
    for name in ("Ü$jl.", "", "a/b", "A"):
        with pytest.raises(ValueError, match="not a node's name"):
            model.put(*node(name))
    assert list(model.act()) == []
