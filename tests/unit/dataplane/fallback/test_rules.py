"""Rules in place of BPF programs, as far as they can be judged without a kernel: ranges, ports, and what is closed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.fallback.judgement import PORT_MAX, Judge
from services.dataplane.fallback.maps import REASONS
from services.dataplane.fallback.networks import Network, disjoint
from services.dataplane.fallback.rules import COUNTERS, Place, Tables, render
from services.dataplane.parts.policy.entries import (
    AGGREGATES,
    EndpointPolicy,
    PolicyEntry,
    PolicyKey,
    precedence,
    prefixes,
    verdict,
)
from services.dataplane.shapes.layouts import (
    BackendEntry,
    BackendKey,
    EndpointEntry,
    IpcacheEntry,
    IpcacheKey,
    NamedPortKey,
    PolicyMapEntry,
    PolicyMapKey,
    ServiceEntry,
    ServiceKey,
    pack_address,
)
from services.dataplane.shapes.reasons import reasons

HERE, THERE = "172.20.0.1", "172.20.0.2"
PLACE = Place(devices=("eth0",), own_addresses=frozenset({HERE}), tunnel="tun", tunnel_port=8472, routers=("10.0.1.1",))

networks = st.builds(
    lambda address, bits: IPv4Network((address, bits), strict=False),
    st.integers(0, 0xFFFF).map(lambda low: 0x0A000000 + low),
    st.sampled_from([0, 8, 16, 24, 28, 31, 32]),
)


@given(st.dictionaries(networks, st.integers(1, 4), max_size=12), st.integers(0x0A000000, 0x0A00FFFF))
def test_each_address_is_in_the_one_range_that_its_longest_network_gives(
    known: dict[IPv4Network, int], address: int
) -> None:
    found = disjoint(dict[Network, int](known.items()))
    assert all(before.last < after.first for before, after in pairwise(found))
    around = [network for network in known if IPv4Address(address) in network]
    longest = known[max(around, key=lambda each: each.prefixlen)] if around else None
    assert next((each.value for each in found if each.first <= address <= each.last), None) == longest


@st.composite
def entries(draw: st.DrawFn) -> dict[PolicyKey, PolicyEntry]:
    made: dict[PolicyKey, PolicyEntry] = {}
    for _ in range(draw(st.integers(0, 8))):
        identity = draw(st.sampled_from([300, 301, 2, *AGGREGATES]))
        entry = PolicyEntry(precedence(draw(st.sampled_from(["allow", "deny"]))), 0)
        entry = entry._replace(deny=entry.precedence & 0xFF == 255)
        protocol = draw(st.sampled_from([0, 1, 6, 17]))
        first = draw(st.integers(0, PORT_MAX))
        last = draw(st.integers(first, min(PORT_MAX, first + 300)))
        parts = (
            [(0, 0)] if not protocol or draw(st.booleans()) else [(p, 8 + bits) for p, bits in prefixes(first, last)]
        )
        for port, bits in parts:
            made[PolicyKey(identity, 0, protocol, port, bits or (8 if protocol else 0))] = entry
    return made


@given(entries(), st.sampled_from([300, 301, 302, 2, 6]), st.sampled_from([1, 6, 17, 47]), st.data())
def test_ports_written_out_are_those_that_the_policy_map_allows(
    held: dict[PolicyKey, PolicyEntry], peer: int, protocol: int, data: st.DataObject
) -> None:
    edges = sorted({min(PORT_MAX, max(0, key.port + step)) for key in held for step in (-1, 0, 1)} | {0, PORT_MAX})
    port = data.draw(st.sampled_from(edges) | st.integers(0, PORT_MAX))
    table = {
        PolicyMapKey(9, k.identity, k.direction, k.protocol, k.port, k.l4_bits).pack(): PolicyMapEntry(
            e.precedence, e.cookie, 0, e.flags, k.l4_bits
        ).pack()
        for k, e in held.items()
    }
    allowed = Judge(table).allowed(9, 0, peer)
    ports = dict(allowed.ports)
    passes = any(a <= port <= b for a, b in ports[protocol]) if protocol in ports else allowed.others
    policy = EndpointPolicy(identity=9, ingress_enforced=True, egress_enforced=True, entries=held)
    assert passes == verdict(policy, peer, 0, protocol, port).allowed


@given(entries(), st.sampled_from([300, 301, 302, 2, 6]), st.data())
def test_a_named_entry_is_written_out_for_the_addresses_where_the_map_says_that_it_holds(
    held: dict[PolicyKey, PolicyEntry], peer: int, data: st.DataObject
) -> None:
    """`verdict` is told by name what the map `named_ports` says by address."""
    places = {"10.0.0.1": frozenset({"web"}), "10.0.0.2": frozenset({"dns"}), "10.0.0.3": frozenset[str]()}
    ports = st.sampled_from([80, 81])
    for number in range(data.draw(st.integers(1, 4))):
        identity = data.draw(st.sampled_from([300, 301, *AGGREGATES]))
        named = PolicyEntry(precedence("allow"), number + 1, named=True)
        held[PolicyKey(identity, 0, 6, data.draw(ports), 24)] = named
    names = {number: data.draw(st.frozensets(st.sampled_from(["web", "dns"]))) for number in range(1, 5)}
    table = {
        PolicyMapKey(9, k.identity, k.direction, k.protocol, k.port, k.l4_bits).pack(): PolicyMapEntry(
            e.precedence, e.cookie, 0, e.flags, k.l4_bits
        ).pack()
        for k, e in held.items()
    }
    rows = [
        NamedPortKey(9, cookie, address, port, 6).pack()
        for cookie, wanted in names.items()
        for address, called in places.items()
        for port in (80, 81)
        if wanted & called
    ]
    allowed = Judge(table, rows).allowed(9, 0, peer)
    policy = EndpointPolicy(identity=9, ingress_enforced=True, egress_enforced=True, entries=held, port_names=names)
    spoken = dict(allowed.ports)
    for address, called in places.items():
        for port in (79, 80, 81, 82):
            everywhere = any(a <= port <= b for a, b in spoken[6]) if 6 in spoken else allowed.others
            here = any((6, port) == each[:2] and address in each[2] for each in allowed.named)
            assert (everywhere or here) == verdict(policy, peer, 0, 6, port, called).allowed


def tables(*, policy: int = 0, flags: int = 3) -> Tables:
    """A pod here, one there, and a Service with one backend and one without."""
    known: dict[str, IpcacheEntry] = {
        "10.0.1.0/24": IpcacheEntry(3, HERE),
        "10.0.2.0/24": IpcacheEntry(3, THERE),
        "10.0.1.2/32": IpcacheEntry(300, HERE),
        "10.0.2.2/32": IpcacheEntry(301, THERE),
        f"{HERE}/32": IpcacheEntry(1),
    }
    return {
        "endpoints": {pack_address("10.0.1.2"): EndpointEntry(11, 300, policy, flags, bytes(6), bytes(6)).pack()},
        "ipcache": {
            IpcacheKey(str(net.network_address), net.prefixlen).pack(): entry.pack()
            for text, entry in known.items()
            for net in [ip_network(text)]
        },
        "policy": {
            PolicyMapKey(300, 301, 0, 6, 80, 24).pack(): PolicyMapEntry(precedence("allow"), 0, 0, 0, 24).pack()
        },
        "services": {
            ServiceKey("10.67.0.1", 80, 6).pack(): ServiceEntry(1, 1).pack(),
            ServiceKey("10.67.0.2", 53, 17).pack(): ServiceEntry(2, 0).pack(),
        },
        "backends": {BackendKey(1, 0).pack(): BackendEntry("10.0.2.2", 8080).pack()},
    }


def chain(script: str, name: str) -> list[str]:
    return script.split(f"chain {name} {{\n")[1].split("\n}", maxsplit=1)[0].splitlines()


def elements(script: str, name: str) -> str:
    body = script.split(f" {name} {{\n")[1].split("\n}", maxsplit=1)[0]
    return body.partition("elements = { ")[2].removesuffix(" }")


def test_a_pod_without_a_policy_is_closed_in_both_directions() -> None:
    script = render(tables(policy=0), PLACE, {}, "mark")
    for direction in ("ingress", "egress"):
        assert elements(script, f"{direction}4") == f"10.0.1.2 : jump {direction}4_0"
        leaves = {line.split()[-1] for line in chain(script, f"{direction}4_0") if "goto" in line}
        assert {tuple(chain(script, leaf)) for leaf in leaves} == {("counter name policy_denied drop",)}


def test_only_the_peer_and_the_port_of_an_entry_are_let_in() -> None:
    script = render(tables(policy=300), PLACE, {}, "mark")
    address, _, leaf = elements(script, "ingress4_300_peers").partition(" : goto ")
    assert address == "10.0.2.2"
    assert chain(script, leaf) == ["meta l4proto 6 ct reply proto-src { 80 } return", "counter name policy_denied drop"]
    assert leaf not in " ".join(chain(script, "ingress4_300"))


def test_a_direction_that_is_not_enforced_has_no_chain() -> None:
    script = render(tables(policy=300, flags=0), PLACE, {}, "mark")
    assert elements(script, "ingress4") == elements(script, "egress4") == ""


def test_a_service_without_backends_is_dropped_and_one_with_them_translated() -> None:
    script = render(tables(), PLACE, {}, "mark")
    assert elements(script, "empty4") == "10.67.0.2 . 17 . 53"
    assert chain(script, "service_1_1") == ["meta l4proto 6 dnat ip to numgen random mod 1 map { 0 : 10.0.2.2 . 8080 }"]


def test_addresses_of_one_service_share_its_chain_and_one_that_serves_fewer_backends_has_its_own() -> None:
    one = tables()
    external = {
        ServiceKey(address, 80, 6).pack(): ServiceEntry(1, 2, ServiceEntry.EXTERNAL).pack()
        for address in ("192.0.2.9", "192.0.2.10")
    }
    several = {
        **one,
        "backends": {**one["backends"], BackendKey(1, 1).pack(): BackendEntry("10.0.2.3", 8080).pack()},
        "services": {**one["services"], **external},
    }
    script = render(several, PLACE, {}, "mark")
    assert script.count("chain service_1_1 {") == script.count("chain service_1_2 {") == 1
    led = elements(script, "services4")
    assert led.count("goto service_1_2") == 2 and "10.67.0.1 . 6 . 80 : goto service_1_1" in led
    assert "10.0.2.3 . 8080" in chain(script, "service_1_2")[0]


def test_who_is_to_come_back_is_led_by_its_address() -> None:
    one = tables()
    web = {ServiceKey("10.67.0.1", 80, 6).pack(): ServiceEntry(1, 1, affinity=60).pack()}
    script = render({**one, "services": {**one["services"], **web}}, PLACE, {}, "mark")
    assert chain(script, "service_1_1") == [
        "meta l4proto 6 dnat ip to jhash ip saddr mod 1 seed 1 map { 0 : 10.0.2.2 . 8080 }"
    ]


def test_a_node_port_is_led_to_its_backends_at_the_addresses_of_nodes_for_pods_and_the_node_itself() -> None:
    one = tables()
    at_nodes = {
        ServiceKey("0.0.0.0", 30_080, 6).pack(): ServiceEntry(1, 1, ServiceEntry.NODE_PORT).pack(),
        ServiceKey("0.0.0.0", 30_081, 6).pack(): ServiceEntry(2, 0, ServiceEntry.NODE_PORT).pack(),
        ServiceKey("::", 30_082, 6).pack(): ServiceEntry(3, 0, ServiceEntry.NODE_PORT).pack(),
    }
    script = render({**one, "services": {**one["services"], **at_nodes}}, PLACE, {}, "mark")
    assert elements(script, "services_ports4") == "6 . 30080 : goto service_1_1"
    assert (elements(script, "empty_ports4"), elements(script, "empty_ports6")) == ("6 . 30081", "6 . 30082")
    assert "0.0.0.0" not in elements(script, "services4")
    asked = [f"ip daddr @{whose}4 meta l4proto . th dport vmap @services_ports4" for whose in ("here", "remote")]
    assert [each for each in chain(script, "host_to_service") if "ip daddr @" in each] == asked
    by_pods = [each for each in chain(script, "to_service") if "ip daddr @" in each]
    assert [each.partition(" ip daddr")[0] for each in by_pods] == ['iifname { "eth0" }', *['iifname "lxc*"'] * 2]
    nobody = [each for each in chain(script, "from_host") if "@empty_ports4" in each]
    assert [each.split()[2] for each in nobody[:: len(nobody) // 2]] == ["@here4", "@remote4"]


def test_a_host_port_is_open_to_the_outside_and_a_service_that_limits_who_may_call_is_closed_to_it() -> None:
    """Rules do not know its ranges; within the cluster nobody is asked for them anyway."""
    one = tables()
    flags = ServiceEntry.EXTERNAL | ServiceEntry.RANGES
    opened = {
        ServiceKey("192.0.2.9", 80, 6).pack(): ServiceEntry(1, 1, flags, outside=1).pack(),
        ServiceKey("192.0.2.1", 8080, 6).pack(): ServiceEntry(1, 1, ServiceEntry.HOST_PORT, outside=1).pack(),
    }
    script = render({**one, "services": {**one["services"], **opened}}, PLACE, {}, "mark")
    assert elements(script, "outside4") == "192.0.2.1 . 6 . 8080 : goto service_1_1"
    assert elements(script, "silent4") == "192.0.2.9 . 6 . 80"
    assert "192.0.2.9 . 6 . 80 : goto service_1_1" in elements(script, "services4")


def test_who_calls_from_outside_is_led_to_as_many_backends_as_serve_there_and_what_leaves_again_comes_back() -> None:
    one = tables()
    near, none, node_port = ServiceKey("192.0.2.9", 80, 6), ServiceKey("192.0.2.9", 81, 6), ServiceKey("::", 30_080, 6)
    exposed = {
        near.pack(): ServiceEntry(1, 2, ServiceEntry.EXTERNAL, outside=1).pack(),
        none.pack(): ServiceEntry(1, 2, ServiceEntry.EXTERNAL, outside=0).pack(),
        node_port.pack(): ServiceEntry(1, 2, ServiceEntry.NODE_PORT, outside=0).pack(),
    }
    several = {
        **one,
        "backends": {**one["backends"], BackendKey(1, 1).pack(): BackendEntry("10.0.2.3", 8080).pack()},
        "services": {**one["services"], **exposed},
    }
    script = render(several, PLACE, {}, "mark")
    assert elements(script, "outside4") == "192.0.2.9 . 6 . 80 : goto service_1_1"
    assert "192.0.2.9 . 6 . 80 : goto service_1_2" in elements(script, "services4"), "within they are all"
    assert (elements(script, "silent4"), elements(script, "silent_ports6")) == ("192.0.2.9 . 6 . 81", "6 . 30080")
    out = 'iifname { "eth0" }'
    assert f"{out} ip daddr . meta l4proto . th dport @silent4 counter name no_backend drop" in chain(script, "raw")
    assert chain(script, "to_service")[1] == f"{out} ip daddr . meta l4proto . th dport vmap @outside4"
    assert f"{out} ct status dnat ip daddr != @pods4 masquerade" in chain(script, "leaving")
    assert "ct status dnat" not in render(several, replace(PLACE, devices=()), {}, "mark")


@pytest.mark.parametrize("reject", [True, False])
def test_what_no_service_takes_is_answered_where_the_kernel_can_answer_or_dropped_as_configured(reject: bool) -> None:
    place = replace(PLACE, services=("10.67.0.0/16", "fd00:67::/112"), reject=reject)
    script = render(tables(), place, {}, "mark")
    ranges = ["ip daddr 10.67.0.0/16", "ip6 daddr fd00:67::/112"]
    answers = [
        "meta l4proto tcp counter name no_backend reject with tcp reset",
        "counter name no_backend reject with icmpx type port-unreachable",
    ]
    answered = [f"{each} {how}" for each in ranges for how in answers]
    assert chain(script, "unused")[1:] == (answered if reject else [])
    assert chain(script, "forward_pods")[1:5] == answered if reject else "reject" not in script
    empty = [line for line in chain(script, "from_host")[1:] if line.startswith("ip daddr . ")]
    match = "ip daddr . meta l4proto . th dport @empty4"
    assert empty == [f"{match} {how}" for how in (answers if reject else ["counter name no_backend drop"])]
    assert chain(script, "leaving")[1:3] == [f"{each} counter name no_backend drop" for each in ranges]


def test_counters_go_on_from_where_they_were_and_each_has_a_public_reason() -> None:
    assert "counter policy_denied {\npackets 7 bytes 420\n}" in render(
        tables(), PLACE, {"policy_denied": (7, 420)}, "m"
    )
    assert REASONS.keys() == set(COUNTERS)
    assert set(REASONS.values()) <= reasons().keys()


def test_an_address_that_others_were_not_told_of_is_not_reached_by_the_tunnel() -> None:
    known = tables()
    more = {IpcacheKey("172.17.0.1").pack(): IpcacheEntry(1, unadvertised=True).pack()}
    text = render({**known, "ipcache": {**known["ipcache"], **more}}, PLACE, {}, "mark")
    sets = {name: text.partition(f"set {name} {{")[2].partition("\n}")[0] for name in ("here4", "told4")}
    assert "172.17.0.1" in sets["here4"] and "172.17.0.1" not in sets["told4"]
    assert HERE in sets["here4"] and HERE in sets["told4"]


def test_pods_of_other_nodes_are_never_masqueraded_in_a_tunnel() -> None:
    kept = [ip_network(each) for each in elements(render(tables(), PLACE, {}, "mark"), "kept4").split(", ")]
    assert any(ip_address("10.0.2.2") in each for each in kept)
    assert not any(ip_address(THERE) in each for each in kept)
