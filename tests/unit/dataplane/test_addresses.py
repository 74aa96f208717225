"""Addresses are leased once, kept for their owner, and reused last."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.addresses import Addresses, AddressTaken, Attachment, PoolExhausted

POD = Attachment("c1", "eth0")
OTHER = Attachment("c2", "eth0")


def node(*blocks: str) -> Addresses:
    addresses = Addresses()
    addresses.set_blocks(blocks)
    return addresses


def owners(count: int) -> list[Attachment]:
    return [Attachment(f"c{number}", "eth0") for number in range(count)]


def test_the_router_has_the_first_usable_address_and_the_first_pod_the_next() -> None:
    addresses = node("10.0.1.0/24")
    assert addresses.router == "10.0.1.1"
    assert addresses.lease(POD) == "10.0.1.2"


def test_asking_twice_gives_the_same() -> None:
    addresses = node("10.0.1.0/24")
    assert addresses.lease(POD) == addresses.lease(POD)
    assert addresses.leases == {POD: "10.0.1.2"}


def test_two_interfaces_of_one_sandbox_have_two_addresses() -> None:
    addresses = node("10.0.1.0/24")
    assert addresses.lease(POD) != addresses.lease(Attachment("c1", "net1"))


def test_a_freed_address_is_reused_only_when_no_other_is_left_and_the_oldest_first() -> None:
    addresses = node("10.0.1.0/29")  # pods: .2 to .6
    first, second, *others = owners(5)
    for owner in (first, second, *others):
        addresses.lease(owner)
    addresses.release(second)
    addresses.release(first)
    assert addresses.lease(Attachment("new", "eth0")) == "10.0.1.3"
    assert addresses.lease(Attachment("newer", "eth0")) == "10.0.1.2"


def test_an_exhausted_pool_says_so_and_recovers() -> None:
    addresses = node("10.0.1.0/30")  # .1 is the router, .2 the only pod
    addresses.lease(POD)
    assert addresses.free == 0
    with pytest.raises(PoolExhausted, match=r"10\.0\.1\.0/30"):
        addresses.lease(OTHER)
    addresses.set_blocks(["10.0.1.0/30", "10.0.9.0/30"])
    assert addresses.lease(OTHER) == "10.0.9.2"  # .1 stands for the node in every block


def test_without_a_block_there_is_no_router_and_no_lease() -> None:
    addresses = Addresses()
    assert addresses.router == ""
    with pytest.raises(PoolExhausted, match="none yet"):
        addresses.lease(POD)


def test_a_removed_block_gives_no_new_leases_and_keeps_the_old() -> None:
    addresses = node("10.0.1.0/24", "10.0.2.0/24")
    assert addresses.lease(POD) == "10.0.1.2"
    addresses.set_blocks(["10.0.2.0/24"])
    assert addresses.lease(POD) == "10.0.1.2"
    assert addresses.lease(OTHER).startswith("10.0.2.")
    assert addresses.holder("10.0.1.2") == POD


def test_the_router_stays_while_a_pod_knows_it() -> None:
    addresses = node("10.0.1.0/24", "10.0.2.0/24")
    addresses.lease(POD)
    addresses.set_blocks(["10.0.2.0/24"])
    assert addresses.router == "10.0.1.1"
    addresses.release(POD)
    assert addresses.router == "10.0.2.1"


def test_a_freed_address_of_a_removed_block_is_not_given_out() -> None:
    addresses = node("10.0.1.0/30")
    addresses.lease(POD)
    addresses.release(POD)
    addresses.set_blocks(["10.0.2.0/30"])
    assert addresses.lease(OTHER) == "10.0.2.2"


def test_what_was_held_before_a_restart_is_held_after_it() -> None:
    addresses = Addresses()
    addresses.restore_router("10.0.1.1")
    addresses.restore(POD, "10.0.1.2")
    addresses.set_blocks(["10.0.1.0/24"])
    assert addresses.lease(POD) == "10.0.1.2"
    assert addresses.lease(OTHER) == "10.0.1.3"


def test_an_address_is_not_restored_to_two() -> None:
    addresses = Addresses()
    addresses.restore(POD, "10.0.1.2")
    with pytest.raises(AddressTaken):
        addresses.restore(OTHER, "10.0.1.2")
    with pytest.raises(AddressTaken):
        addresses.restore(POD, "10.0.1.3")


def test_overlapping_or_malformed_blocks_are_refused_and_change_nothing() -> None:
    addresses = node("10.0.1.0/24")
    for bad in (["10.0.0.0/16", "10.0.1.0/24"], ["10.0.1.7/24"], ["tomorrow"]):
        with pytest.raises(ValueError):
            addresses.set_blocks(bad)
        assert addresses.blocks == ("10.0.1.0/24",)


def test_releasing_what_was_never_leased_is_nothing() -> None:
    assert node("10.0.1.0/24").release(POD) is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("lease"), st.integers(0, 11)),
        st.tuples(st.just("release"), st.integers(0, 11)),
        st.tuples(st.just("blocks"), st.integers(0, 7)),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_address_is_ever_held_twice_nor_is_the_routers_given_away(steps: list[tuple[str, int]]) -> None:
    blocks = ["10.0.1.0/29", "10.0.2.0/29", "10.0.3.0/30"]
    addresses = node(blocks[0])
    for verb, number in steps:
        owner = Attachment(f"c{number}", "eth0")
        if verb == "release":
            addresses.release(owner)
        elif verb == "blocks":
            addresses.set_blocks(block for place, block in enumerate(blocks) if number >> place & 1)
        else:
            free = addresses.free
            known = owner in addresses.leases
            try:
                addresses.lease(owner)
            except PoolExhausted:
                assert free == 0
            else:
                assert known or addresses.free == free - 1
        held = list(addresses.leases.values())
        assert len(held) == len(set(held))
        assert addresses.router not in held
        assert addresses.free >= 0


@pytest.mark.parametrize("cidr", ["10.0.0.0/7", "0.0.0.0/0", "10.0.0.0/31", "10.0.0.1/32", "10.0.0.1/24", "x"])
def test_what_is_no_block_is_refused_and_changes_nothing(cidr: str) -> None:
    addresses = node("10.0.1.0/24")
    with pytest.raises(ValueError, match=r".+"):
        addresses.set_blocks(["10.0.1.0/24", cidr])
    assert addresses.blocks == ("10.0.1.0/24",)
    assert addresses.router == "10.0.1.1"
