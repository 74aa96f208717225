"""Addresses are leased once, one of each family or none, kept for their owner, and reused last."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.pods.addresses import Addresses, AddressTaken, Attachment, PoolExhausted
from services.dataplane.shapes.ip import PodIp

POD = Attachment("c1", "eth0")
OTHER = Attachment("c2", "eth0")


def node(*blocks: str, families: tuple[int, ...] = (4,)) -> Addresses:
    addresses = Addresses(families)
    addresses.set_blocks(blocks)
    return addresses


def leased(addresses: Addresses, owner: Attachment) -> tuple[str, ...]:
    return tuple(each.address for each in addresses.lease(owner))


def owners(count: int) -> list[Attachment]:
    return [Attachment(f"c{number}", "eth0") for number in range(count)]


@pytest.mark.parametrize(
    ("block", "router", "first"),
    [
        ("10.0.1.0/24", "10.0.1.1", "10.0.1.2"),
        ("fd00:10::/120", "fd00:10::1", "fd00:10::2"),
        ("fd00:10::/64", "fd00:10::1", "fd00:10::2"),
    ],
)
def test_the_router_has_the_first_usable_address_and_the_first_pod_the_next(
    block: str, router: str, first: str
) -> None:
    addresses = node(block, families=(ip_network(block).version,))
    assert addresses.routers == (router,)
    assert addresses.lease(POD) == (PodIp(first, router),)


def test_with_two_families_a_pod_has_one_address_of_each_and_ipv4_comes_first() -> None:
    addresses = node("fd00:10::/120", "10.0.1.0/24", families=(4, 6))
    assert addresses.lease(POD) == (PodIp("10.0.1.2", "10.0.1.1"), PodIp("fd00:10::2", "fd00:10::1"))
    assert addresses.leases == {POD: ("10.0.1.2", "fd00:10::2")}
    assert addresses.holder("10.0.1.2") == addresses.holder("FD00:10:0::2") == POD
    assert addresses.release(POD) == ("10.0.1.2", "fd00:10::2")
    assert addresses.leases == {}


@pytest.mark.parametrize("blocks", [("10.0.1.0/30", "fd00:10::/120"), ("10.0.1.0/24", "fd00:10::/126")])
def test_when_one_family_is_exhausted_nothing_of_the_other_is_taken(blocks: tuple[str, str]) -> None:
    addresses = node(*blocks, families=(4, 6))
    addresses.lease(POD)
    addresses.set_blocks([*blocks])
    before = dict(addresses.leases)
    while addresses.free:
        addresses.lease(Attachment(f"more{addresses.free}", "eth0"))
        before = dict(addresses.leases)
    with pytest.raises(PoolExhausted, match=r"no free IPv[46] address"):
        addresses.lease(OTHER)
    assert addresses.leases == before


def test_a_family_without_a_block_is_named_and_no_pod_starts() -> None:
    addresses = node("10.0.1.0/24", families=(4, 6))
    assert "IPv6" in addresses.missing and "IPv4" not in addresses.missing
    with pytest.raises(PoolExhausted, match="IPv6"):
        addresses.lease(POD)
    assert addresses.leases == {}
    addresses.set_blocks(["10.0.1.0/24", "fd00:10::/120"])
    assert addresses.missing == ""


def test_who_came_with_one_family_keeps_it_when_the_node_serves_another_too() -> None:
    addresses = Addresses((4, 6))
    addresses.restore(POD, "10.0.1.2")
    addresses.restore_router("10.0.1.1")
    addresses.set_blocks(["10.0.1.0/24", "fd00:10::/120"])
    assert addresses.lease(POD) == (PodIp("10.0.1.2", "10.0.1.1"),)
    assert len(addresses.lease(OTHER)) == 2


def test_asking_twice_gives_the_same() -> None:
    addresses = node("10.0.1.0/24")
    assert addresses.lease(POD) == addresses.lease(POD)
    assert addresses.leases == {POD: ("10.0.1.2",)}


def test_two_interfaces_of_one_sandbox_have_two_addresses() -> None:
    addresses = node("10.0.1.0/24")
    assert addresses.lease(POD) != addresses.lease(Attachment("c1", "net1"))


@pytest.mark.parametrize("block", ["10.0.1.0/29", "fd00::/125"])  # pods: 2 to 6
def test_a_freed_address_is_reused_only_when_no_other_is_left_and_the_oldest_first(block: str) -> None:
    addresses = node(block, families=(ip_network(block).version,))
    first, second, *others = owners(5)
    held = {owner: leased(addresses, owner) for owner in (first, second, *others)}
    addresses.release(second)
    addresses.release(first)
    assert leased(addresses, Attachment("new", "eth0")) == held[second]
    assert leased(addresses, Attachment("newer", "eth0")) == held[first]


def test_an_exhausted_pool_says_so_and_recovers() -> None:
    addresses = node("10.0.1.0/30")  # .1 is the router, .2 the only pod
    addresses.lease(POD)
    assert addresses.free == 0
    with pytest.raises(PoolExhausted, match=r"10\.0\.1\.0/30"):
        addresses.lease(OTHER)
    addresses.set_blocks(["10.0.1.0/30", "10.0.9.0/30"])
    assert leased(addresses, OTHER) == ("10.0.9.2",)  # .1 stands for the node in every block


def test_without_a_block_there_is_no_router_and_no_lease() -> None:
    addresses = Addresses()
    assert addresses.routers == ()
    with pytest.raises(PoolExhausted, match="none yet"):
        addresses.lease(POD)


def test_a_removed_block_gives_no_new_leases_and_keeps_the_old() -> None:
    addresses = node("10.0.1.0/24", "10.0.2.0/24")
    assert leased(addresses, POD) == ("10.0.1.2",)
    addresses.set_blocks(["10.0.2.0/24"])
    assert leased(addresses, POD) == ("10.0.1.2",)
    assert leased(addresses, OTHER)[0].startswith("10.0.2.")
    assert addresses.holder("10.0.1.2") == POD


def test_a_familys_router_stays_while_a_pod_knows_it() -> None:
    addresses = node("10.0.1.0/24", "10.0.2.0/24", "fd00:1::/120", "fd00:2::/120", families=(4, 6))
    addresses.lease(POD)
    addresses.set_blocks(["10.0.2.0/24", "fd00:1::/120"])
    assert addresses.routers == ("10.0.1.1", "fd00:1::1")
    addresses.release(POD)
    assert addresses.routers == ("10.0.2.1", "fd00:1::1")


def test_a_freed_address_of_a_removed_block_is_not_given_out() -> None:
    addresses = node("10.0.1.0/30")
    addresses.lease(POD)
    addresses.release(POD)
    addresses.set_blocks(["10.0.2.0/30"])
    assert leased(addresses, OTHER) == ("10.0.2.2",)


def test_what_was_held_before_a_restart_is_held_after_it() -> None:
    addresses = Addresses((4, 6))
    for router, address in (("10.0.1.1", "10.0.1.2"), ("fd00::a:1", "fd00::a:2")):
        addresses.restore_router(router)
        addresses.restore(POD, address)
    addresses.set_blocks(["10.0.1.0/24", "fd00::a:0/112"])
    assert addresses.lease(POD) == (PodIp("10.0.1.2", "10.0.1.1"), PodIp("fd00::a:2", "fd00::a:1"))
    assert leased(addresses, OTHER) == ("10.0.1.3", "fd00::a:3")


def test_an_address_is_not_restored_to_two_in_whatever_form_it_is_written() -> None:
    addresses = Addresses((4, 6))
    addresses.restore(POD, "10.0.1.2")
    addresses.restore(POD, "fd00::2")
    for taken in ("10.0.1.2", "FD00:0:0::2"):
        with pytest.raises(AddressTaken):
            addresses.restore(OTHER, taken)
    for second in ("10.0.1.3", "fd00::3"):
        with pytest.raises(AddressTaken):
            addresses.restore(POD, second)


def test_overlapping_or_malformed_blocks_are_refused_and_change_nothing() -> None:
    addresses = node("10.0.1.0/24")
    for bad in (["10.0.0.0/16", "10.0.1.0/24"], ["fd00::/64", "fd00::/120"], ["10.0.1.7/24"], ["tomorrow"]):
        with pytest.raises(ValueError):
            addresses.set_blocks(bad)
        assert addresses.blocks == ("10.0.1.0/24",)


def test_releasing_what_was_never_leased_is_nothing() -> None:
    assert node("10.0.1.0/24").release(POD) == ()


BLOCKS = ["10.0.1.0/29", "10.0.2.0/29", "10.0.3.0/30", "fd00:1::/125", "fd00:2::/126", "fd00:3::/64"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("lease"), st.integers(0, 11)),
        st.tuples(st.just("release"), st.integers(0, 11)),
        st.tuples(st.just("restore"), st.integers(0, 11)),
        st.tuples(st.just("blocks"), st.integers(0, 2 ** len(BLOCKS) - 1)),
    ),
    max_size=60,
)


@given(st.sampled_from([(4,), (6,), (4, 6)]), STEPS)
def test_no_address_is_ever_held_twice_nor_is_a_routers_given_away_nor_half_a_lease(
    families: tuple[int, ...], steps: list[tuple[str, int]]
) -> None:
    addresses = node(BLOCKS[0], BLOCKS[3], families=families)
    for verb, number in steps:
        owner = Attachment(f"c{number}", "eth0")
        if verb == "release":
            addresses.release(owner)
        elif verb == "blocks":
            addresses.set_blocks(block for place, block in enumerate(BLOCKS) if number >> place & 1)
        elif verb == "restore":  # the process starts anew, with what was durable
            held, routers, blocks = addresses.leases, addresses.routers, addresses.blocks
            addresses = Addresses(families)
            for owner_before, each in held.items():
                for address in each:
                    addresses.restore(owner_before, address)
            for router in routers:
                addresses.restore_router(router)
            addresses.set_blocks(blocks)
            assert (addresses.leases, addresses.routers) == (held, routers)
        else:
            free = addresses.free
            known = owner in addresses.leases
            try:
                addresses.lease(owner)
            except PoolExhausted:
                assert not known and free == 0
                assert owner not in addresses.leases
            else:
                assert known or addresses.free == free - 1
        held_now = [address for each in addresses.leases.values() for address in each]
        assert len(held_now) == len(set(held_now))
        assert not set(addresses.routers) & set(held_now)
        assert all(tuple(ip_address(one).version for one in each) == families for each in addresses.leases.values())
        assert addresses.free >= 0


def test_a_block_larger_than_memory_is_no_more_work_than_a_small_one() -> None:
    addresses = node("fd00:10::/64", families=(6,))
    for owner in owners(100):
        addresses.lease(owner)
    assert addresses.free == 2**64 - 3 - 100
    for owner in owners(100):
        addresses.release(owner)
    assert leased(addresses, OTHER) == ("fd00:10::66",)  # 102: what was never used comes first


@pytest.mark.parametrize(
    "cidr",
    [
        "10.0.0.0/7", "0.0.0.0/0", "10.0.0.0/31", "10.0.0.1/32", "10.0.0.1/24", "x",
        "fd00::/31", "::/0", "fd00::/127", "fd00::1/128", "fd00::1/64", "::ffff:10.0.0.0/120",
        "fe80::/64", "ff02::/64", "::/96",
    ],
)  # fmt: skip
def test_what_is_no_block_is_refused_and_changes_nothing(cidr: str) -> None:
    addresses = node("10.0.1.0/24")
    with pytest.raises(ValueError, match=r".+"):
        addresses.set_blocks(["10.0.1.0/24", cidr])
    assert addresses.blocks == ("10.0.1.0/24",)
    assert addresses.routers == ("10.0.1.1",)
