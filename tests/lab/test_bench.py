"""The other side of every comparison: plain Linux between namespaces, and the load tool between them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench import plain
from bench.load import Load, LoadFailed, Place, run_client, server
from bench.masquerade import PORT, Side, connect
from bench.processors import usable_processors
from bench.survival import Rate, Way, traffic
from bench.traffic import compare
from lab.plan import FAMILIES, Family


def own_namespaces() -> list[str]:
    return [name for name in plain.existing() if plain.owner_of(name) == os.getpid()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("load", list(Load))
def test_every_load_gets_through_on_one_node_and_across_nodes_and_nothing_is_left(load: Load, family: Family) -> None:
    with plain.plain_pods() as places:
        pods = places[family]
        sides = {"near": (pods.client, pods.near), "far": (pods.client, pods.far)}
        found = compare(load, sides, rounds=1, seconds=0.2)
        assert len(own_namespaces()) == 6
    for taken in found.values():
        (result,) = taken
        assert result.rate > 0
        assert 0 < result.cpu_seconds < result.seconds * len(usable_processors())
        assert 0 <= result.others <= 1
    assert own_namespaces() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_tunnel_carries_what_crosses_nodes_and_nothing_else(family: Family) -> None:
    with plain.plain_pods(tunnel=True) as places:
        pods = places[family]
        compare(Load.RR, {"near": (pods.client, pods.near), "far": (pods.client, pods.far)}, rounds=1, seconds=0.1)
        sent = plain.ip("-s", "-o", "link", "show", "vxlan0", namespace=plain.namespace("node1", os.getpid()))
        fields = sent.split("TX:")[1].split("\\")[1].split()
    assert int(fields[1]) > 10


def test_short_connections_do_not_run_out_of_ports() -> None:
    """More connections than there are ports to begin them from."""
    with plain.plain_pods() as places:
        pods = places[4]
        narrow = "echo 40000 40099 > /proc/sys/net/ipv4/ip_local_port_range"
        plain.in_namespace(plain.namespace("pod1", os.getpid()), "sh", "-c", narrow)
        with server(Load.CRR, pods.near, 7000):
            result = run_client(Load.CRR, pods.client, pods.near, 7000, 0.5)
    assert result.count > 100


def test_a_server_that_is_not_there_is_an_error_that_says_so() -> None:
    with plain.plain_pods() as pods, pytest.raises(LoadFailed, match="Connection refused"):
        run_client(Load.RR, pods[4].client, pods[4].near, 7001, 0.2)


def test_an_address_that_a_place_does_not_have_is_an_error_that_says_so() -> None:
    nowhere = Place("here", "203.0.113.1", ())
    with pytest.raises(LoadFailed, match="Cannot assign"), server(Load.RR, nowhere, 7000):
        pass


def test_what_a_killed_bench_left_is_removed_by_the_next_one() -> None:
    program = """
import os
from bench import plain
plain.add_lan(os.getpid())
print(os.getpid(), flush=True)
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(killed.stdout)
    assert plain.namespace("lan", pid) in plain.existing()
    plain.remove_leftovers()
    assert plain.namespace("lan", pid) not in plain.existing()


@pytest.mark.parametrize("verdict", ["accept", "reject with tcp reset", "drop"])
def test_masqueraded_connections_that_fail_and_those_that_wait_are_told(verdict: str) -> None:
    """The node does that to the first packet of every tenth. One that is dropped is sent again, and counts again."""
    begins = f"tcp dport {PORT} tcp flags & (syn | ack) == syn"
    with plain.plain_pods() as pods:
        sides = {"": Side([pods[4].client, pods[4].near], plain.plain_outside())}
        rules = f"add rule ip filter way {begins} numgen inc mod 10 0 {verdict}"
        chain = "add chain ip filter way { type filter hook forward priority filter; }"
        node = plain.namespace("node1", os.getpid())
        plain.in_namespace(node, "nft", f"add table ip filter; {chain}; {rules}")
        found = connect(sides, 50.0, 1.0)[""]
    assert found.count == 100
    assert found.failed == (10 if verdict.startswith("reject") else 0)
    assert found.slow >= 10 if verdict == "drop" else found.slow == 0, found


def test_what_is_lost_and_how_long_is_told_by_phase() -> None:
    def forwarding(on: str) -> None:
        change = f"echo {on} > /proc/sys/net/ipv4/ip_forward"
        plain.in_namespace(plain.namespace("node1", os.getpid()), "sh", "-c", change)

    with (
        plain.plain_pods() as pods,
        traffic({"near": Way(pods[4].client, pods[4].near)}, Rate(10, 10, 500)) as under_way,
    ):
        under_way.phase("good")
        time.sleep(0.5)
        under_way.phase("bad")
        forwarding("0")
        time.sleep(0.5)
        forwarding("1")
        under_way.phase("after")
        time.sleep(1.5)  # streams send again after a while
        found = under_way.end()["near"]
    assert (found.streams, found.broken) == (10, 0)
    assert found.phases["good"].lost == 0 < found.phases["good"].sent
    assert 100 < found.phases["bad"].lost <= found.phases["bad"].sent
    assert found.phases["bad"].exchange_seconds >= 0.45


def test_streams_that_end_are_told() -> None:
    with plain.plain_pods() as pods:
        enter = Place("near", pods[4].near.address, ("timeout", "-s", "KILL", "2.5", *pods[4].near.enter))
        with traffic({"near": Way(pods[4].client, enter)}, Rate(10, 10, 500)) as under_way:
            under_way.phase("all")
            time.sleep(3.0)
            found = under_way.end()["near"]
    assert found.broken == 10
    assert found.lost > 0
