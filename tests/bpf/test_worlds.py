"""Who the world is: 9 and 10 where a node has both families, 2 where it has one; and the group of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from scapy.layers.l2 import ARP, Ether

from services.dataplane.parts.policy.entries import AGGREGATE_CLUSTER, AGGREGATE_WORLD, EGRESS, INGRESS
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS, FLAG_ENFORCE_INGRESS
from tests.bpf.conftest import loaded
from tests.bpf.datapath import NODE, NODE6, TC_ACT_OK, TC_ACT_UNSPEC, V4, V6, Datapath, Family, tcp

POLICY_DENIED, UNSUPPORTED_L3 = 133, 139
SINGLE, GROUP = 2, AGGREGATE_WORLD
LOCAL_CIDR = (1 << 24) + 5


@pytest.fixture(scope="module", params=[V4, V6], ids=str)
def single(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Family]]:
    """Programs of a node that has one family."""
    at: Family = request.param
    wanted = {"node_address": NODE, "node_address6": "", "ipv6": False}
    if at is V6:
        wanted = {"node_address": "", "node_address6": NODE6, "ipv4": False, "ipv6": True}
    with loaded(f"single{at}", tmp_path_factory.mktemp("state"), **wanted) as pin_dir:
        yield pin_dir, at


def judged(on: Datapath, at: Family, identity: int) -> tuple[bool, bool]:
    """May the outside call a pod whose policy knows only `identity`, and the pod call a part of it?"""
    on.clear()
    on.endpoint(at.pod, 256, policy=9, flags=FLAG_ENFORCE_EGRESS | FLAG_ENFORCE_INGRESS)
    for direction in (INGRESS, EGRESS):
        on.allow(9, identity, direction)
    on.maps.raise_epoch()
    comes_in = on.dropped_for("from_netdev", tcp(at.outside, at.pod, on.free_port(), 80))
    assert comes_in in (0, POLICY_DENIED)
    goes_out = on.dropped_for("from_pod", tcp(at.pod, at.outside, on.free_port(), 80))
    return comes_in == 0, goes_out != POLICY_DENIED


def test_in_dual_stack_each_family_has_a_world(datapath: Datapath, at: Family) -> None:
    other = V6 if at is V4 else V4
    assert judged(datapath, at, at.world) == (True, True)
    assert judged(datapath, at, other.world) == (False, False)
    assert judged(datapath, at, SINGLE) == (False, False)
    assert judged(datapath, at, GROUP) == (True, True)
    assert judged(datapath, at, AGGREGATE_CLUSTER) == (False, False)


def test_in_single_stack_there_is_one_world(single: tuple[Path, Family]) -> None:
    pin_dir, at = single
    with closing(Datapath(pin_dir)) as on:
        assert judged(on, at, SINGLE) == (True, True)
        assert judged(on, at, V4.world) == (False, False)
        assert judged(on, at, V6.world) == (False, False)
        assert judged(on, at, GROUP) == (True, True)


def test_a_local_cidr_is_of_the_worlds_group(datapath: Datapath, at: Family) -> None:
    datapath.clear()
    datapath.endpoint(at.pod, 256, policy=9, flags=FLAG_ENFORCE_INGRESS)
    datapath.who(at.outside, LOCAL_CIDR)
    for identity, expected in ((LOCAL_CIDR, 0), (GROUP, 0), (at.world, POLICY_DENIED)):
        datapath.maps["policy"].remove_many([key for key, _ in datapath.maps["policy"].items()])
        datapath.allow(9, identity, INGRESS)
        datapath.maps.raise_epoch()
        packet = tcp(at.outside, at.pod, datapath.free_port(), 80)
        assert datapath.dropped_for("from_netdev", packet) == expected


def test_a_single_stack_node_has_nothing_to_do_with_the_other_family(single: tuple[Path, Family]) -> None:
    pin_dir, at = single
    other = V6 if at is V4 else V4
    with closing(Datapath(pin_dir)) as on:
        on.clear()
        on.endpoint(other.pod, 256)
        on.endpoint(at.pod, 256)
        on.endpoint(at.neighbour, 257)
        on.maps.raise_epoch()
        packet = tcp(other.pod, other.neighbour, 1000, 80)
        for program in ("from_pod", "to_pod", "from_overlay"):
            assert on.dropped_for(program, packet) == UNSUPPORTED_L3
        run = on.run("from_netdev", packet)
        assert (run.result, run.packet) == (TC_ACT_UNSPEC, packet)
        assert on.dropped_for("from_pod", tcp(at.pod, at.neighbour, 1000, 80)) == 0


def test_a_node_without_ipv4_answers_no_arp(single: tuple[Path, Family]) -> None:
    pin_dir, at = single
    question = bytes(Ether(src="02:00:00:00:00:01") / ARP(op=1, psrc=V4.pod, pdst="169.254.1.1"))
    with closing(Datapath(pin_dir)) as on:
        on.clear()
        on.endpoint(V4.pod, 256)
        reason = on.dropped_for("from_pod", question)
        assert reason == (0 if at is V4 else UNSUPPORTED_L3)
        assert (on.run("to_pod", question).result == TC_ACT_OK) == (at is V4)
