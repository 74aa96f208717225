"""Services as map entries: numbers, slots, and what the kernel could read between any two writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.messages.lb import Backend, Exposure, Frontend, LoadBalancedService
from bus.messages.resources import Protocol
from bus.subjects import FRONTEND
from services.dataplane.part import Parts, in_order
from services.dataplane.parts.services import Services
from services.dataplane.shapes.layouts import (
    RANGE_ALLOWED,
    RANGE_DENIED,
    SERVES_ITSELF,
    SERVES_OUTSIDE,
    BackendEntry,
    BackendKey,
    Prefix,
    RangeKey,
    ServiceEntry,
    ServiceKey,
)

KERNEL = ("services", "backends")


class Kernel:
    """Maps that are written one entry at a time, in the order of kernel/maps.py; `look` is called after each."""

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        self.maps: dict[str, dict[bytes, bytes]] = {name: {} for name in KERNEL}
        self.look = look

    def write(self, tables: Services) -> None:
        owed = {table.name: table.take() for table in in_order(tables.tables) if table.name in KERNEL}
        for name, (upserts, _) in owed.items():
            for key, value in upserts.items():
                self.maps[name][key] = value
                self.look()
        for name, (_, gone) in reversed(owed.items()):
            for key in gone:
                self.maps[name].pop(key, None)
                self.look()

    def backends(self) -> dict[tuple[str, int], list[tuple[str, int]]]:
        """Every backend that a look-up of each service may find. A slot that is empty is a broken promise."""
        found = {}
        for raw_key, raw in self.maps["services"].items():
            key, service = ServiceKey.unpack(raw_key), ServiceEntry.unpack(raw)
            slots = [self.maps["backends"][BackendKey(service.number, slot).pack()] for slot in range(service.backends)]
            found[key.address, key.port] = [(e.address, e.port) for e in map(BackendEntry.unpack, slots)]
        return found


def service(
    name: str,
    backends: list[str],
    address: str = "10.96.0.1",
    *,
    protocol: Protocol = "TCP",
    external: Iterable[str] = (),
    **fields: Any,
) -> LoadBalancedService:
    """Backends "10.0.0.1", or "10.0.0.1 on node1". `external`: its external addresses, at port 80 too."""
    told = [each.partition(" on ") for each in backends]
    found = [Backend(address=at, port=8080, node=node) for at, _, node in told]
    front = Frontend(address=address, port=80, protocol=protocol, backends=found)
    exposures = [
        Exposure(kind="ExternalIP", address=each, family="IPv4", port=80, protocol=protocol) for each in external
    ]
    return LoadBalancedService(namespace="default", name=name, frontends=[front], exposures=exposures, **fields)


def test_a_service_has_its_backends_in_slots() -> None:
    tables, kernel = Services(), Kernel()
    tables.put(service("web", ["10.0.0.1", "10.0.0.2"]))
    kernel.write(tables)
    assert kernel.backends() == {("10.96.0.1", 80): [("10.0.0.1", 8080), ("10.0.0.2", 8080)]}
    assert tables.name_of("10.96.0.1", 80, 6) == "default/web"
    assert tables.name_of("10.96.0.1", 81, 6) == ""


def test_a_service_without_backends_is_still_a_service() -> None:
    tables, kernel = Services(), Kernel()
    tables.put(service("web", ["10.0.0.1"]))
    tables.put(service("web", []))
    kernel.write(tables)
    assert kernel.backends() == {("10.96.0.1", 80): []}
    assert kernel.maps["backends"] == {}


def test_a_service_that_is_gone_leaves_nothing() -> None:
    tables, kernel = Services(), Kernel()
    tables.put(service("web", ["10.0.0.1", "10.0.0.2"]))
    kernel.write(tables)
    tables.delete("default", "web")
    tables.delete("default", "never-was")
    kernel.write(tables)
    assert kernel.maps == {"services": {}, "backends": {}}
    assert tables.name_of("10.96.0.1", 80, 6) == ""


def test_frontends_of_both_families_and_of_sctp_lie_side_by_side() -> None:
    both = ["10.0.0.1"], ["fd00::1", "fd00::2"]
    fronts = [
        Frontend(
            address=address, port=80, protocol=protocol, backends=[Backend(address=one, port=8080) for one in each]
        )
        for address, each in zip(("10.96.0.1", "FD00:96:0::1"), both, strict=True)
        for protocol in ("TCP", "SCTP")
    ]
    tables, kernel = Services(), Kernel()
    tables.put(LoadBalancedService(namespace="default", name="web", frontends=fronts))
    kernel.write(tables)
    assert kernel.backends() == {
        ("10.96.0.1", 80): [("10.0.0.1", 8080)],
        ("fd00:96::1", 80): [("fd00::1", 8080), ("fd00::2", 8080)],
    }
    assert len(kernel.maps["services"]) == 4
    assert tables.name_of("fd00:96::1", 80, 132) == tables.name_of("10.96.0.1", 80, 132) == "default/web"
    tables.delete("default", "web")
    kernel.write(tables)
    assert kernel.maps == {"services": {}, "backends": {}}


@pytest.mark.parametrize(
    ("address", "backend"),
    [("10.96.0.1", "fd00::1"), ("fd00::96", "10.0.0.1"), ("::ffff:10.96.0.1", "10.0.0.1"), ("fe80::1%eth0", "fd00::1")],
)
def test_what_no_packet_can_be_translated_to_is_refused_whole(address: str, backend: str) -> None:
    tables = Services()
    with pytest.raises(ValueError, match=backend if "%" not in address and "ffff" not in address else "no meaning"):
        Parts(tables).put(FRONTEND.of("default", "web"), service("web", [backend], address))
    assert len(tables.services) == len(tables.backends) == 0


@pytest.mark.parametrize(("address", "backend"), [("::", "fd00::1"), ("fd00::96", "::"), ("0.0.0.0", "10.0.0.1")])
def test_nobodys_address_is_no_services_and_no_backends(address: str, backend: str) -> None:
    """The maps have the same bytes for "::" and for "none"."""
    tables = Services()
    with pytest.raises(ValueError, match="nobody's address"):
        Parts(tables).put(FRONTEND.of("default", "web"), service("web", [backend], address))
    assert len(tables.services) == len(tables.backends) == 0


def test_a_protocol_that_the_maps_do_not_know_is_left_out() -> None:
    tables = Services()
    tables.put(service("web", ["10.0.0.1"], protocol="ICMP"))
    assert len(tables.services) == len(tables.backends) == 0


def test_numbers_are_kept_over_a_restart_so_that_nothing_is_rewritten() -> None:
    before, kernel = Services(), Kernel()
    for name, address in (("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")):
        before.put(service(name, ["10.0.0.1"], address))
    before.delete("default", "a")
    kernel.write(before)
    after = Services()
    after.adopt(kernel.maps.__getitem__)
    after.put(service("new", ["10.0.0.9"], "10.96.0.9"))
    after.put(service("c", ["10.0.0.1"], "10.96.0.3"))
    after.put(service("b", ["10.0.0.1"], "10.96.0.2"))
    for table in (after.services, after.backends):
        table.adopt(kernel.maps[table.name])
    upserts, gone = after.services.take()
    assert [ServiceKey.unpack(key).address for key in upserts] == ["10.96.0.9"] and gone == []
    number = ServiceEntry.unpack(*upserts.values()).number
    assert number not in {ServiceEntry.unpack(raw).number for raw in kernel.maps["services"].values()}


@pytest.mark.parametrize("number", [1, 2, 0, 0xFFFFFFFF, 1 << 31])
def test_a_number_that_somebody_changed_in_the_map_gives_no_service_anothers_backends(number: int) -> None:
    before, kernel = Services(), Kernel()
    for name, address in (("a", "10.96.0.1"), ("b", "10.96.0.2")):
        before.put(service(name, [f"10.0.0.{address[-1]}"], address))
    kernel.write(before)
    key = ServiceKey("10.96.0.2", 80, 6).pack()
    kernel.maps["services"][key] = ServiceEntry(number, 1).pack()
    after = Services()
    after.adopt(kernel.maps.__getitem__)
    for name, address in (("b", "10.96.0.2"), ("a", "10.96.0.1"), ("new", "10.96.0.3")):
        after.put(service(name, [f"10.0.0.{address[-1]}"], address))
    for table in (after.services, after.backends):
        table.adopt(kernel.maps[table.name])
    kernel.write(after)
    numbers = [ServiceEntry.unpack(value).number for value in kernel.maps["services"].values()]
    assert len(set(numbers)) == 3
    assert kernel.backends() == {(f"10.96.0.{last}", 80): [(f"10.0.0.{last}", 8080)] for last in "123"}


def test_a_service_that_takes_anothers_address_over_keeps_it_when_the_other_ends() -> None:
    """As when a service is renamed; the new name may be heard first."""
    tables, kernel = Services(), Kernel()
    tables.put(service("old", ["10.0.0.1", "10.0.0.2"]))
    kernel.write(tables)
    tables.put(service("new", ["10.0.0.3"]))
    tables.delete("default", "old")
    kernel.write(tables)
    assert kernel.backends() == {("10.96.0.1", 80): [("10.0.0.3", 8080)]}
    assert len(kernel.maps["backends"]) == 1
    assert tables.name_of("10.96.0.1", 80, 6) == "default/new"
    tables.delete("default", "new")
    kernel.write(tables)
    assert kernel.maps == {"services": {}, "backends": {}}


OUTER, OUTER2 = "192.0.2.9", "192.0.2.10"
TWO = [("10.0.0.1", 8080), ("10.0.0.2", 8080)]


def test_an_external_address_leads_to_the_services_backends_and_takes_no_slots() -> None:
    tables, kernel = Services(), Kernel()
    tables.put(service("web", ["10.0.0.1", "10.0.0.2"], external=[OUTER, OUTER2]))
    kernel.write(tables)
    assert kernel.backends() == {(address, 80): TWO for address in ("10.96.0.1", OUTER, OUTER2)}
    assert len(kernel.maps["backends"]) == 2
    assert tables.name_of(OUTER, 80, 6) == "default/web"
    tables.put(service("web", ["10.0.0.2"], external=[OUTER2]))
    kernel.write(tables)
    assert kernel.backends() == {(address, 80): TWO[1:] for address in ("10.96.0.1", OUTER2)}
    tables.delete("default", "web")
    kernel.write(tables)
    assert kernel.maps == {"services": {}, "backends": {}} and tables.name_of(OUTER2, 80, 6) == ""


def test_an_external_address_that_is_none_refuses_the_service_and_a_node_port_needs_none() -> None:
    """It stands once for all nodes."""
    node_port = Exposure(kind="NodePort", family="IPv4", port=30_080, protocol="TCP")
    tables, kernel = Services(), Kernel()
    Parts(tables).put(
        FRONTEND.of("default", "web"),
        replace(service("web", ["10.0.0.1"]), exposures=[node_port]),
    )
    kernel.write(tables)
    assert kernel.backends() == {("10.96.0.1", 80): TWO[:1], ("0.0.0.0", 30_080): TWO[:1]}
    for address in ("0.0.0.0", "::"):
        assert ServiceKey.unpack(ServiceKey(address, 30_080, 6).pack()).address == address
    with pytest.raises(ValueError):
        Parts(Services()).put(FRONTEND.of("default", "web"), service("web", ["10.0.0.1"], external=["zzz"]))


def test_a_services_own_address_is_no_others_external_one() -> None:
    """Or whoever may make a Service could have what others send to the cluster's DNS."""
    dns, thief = service("dns", ["10.0.0.1"]), service("thief", ["10.0.0.2"], "10.96.0.2", external=["10.96.0.1"])
    for first, second in ((dns, thief), (thief, dns)):
        tables, kernel = Services(), Kernel()
        tables.put(first)
        tables.put(second)
        kernel.write(tables)
        assert kernel.backends() == {("10.96.0.1", 80): TWO[:1], ("10.96.0.2", 80): TWO[1:]}
        tables.delete("default", "thief")
        kernel.write(tables)
        assert kernel.backends() == {("10.96.0.1", 80): TWO[:1]}


def test_who_takes_a_services_address_over_does_not_get_its_external_addresses() -> None:
    tables, kernel = Services(), Kernel()
    tables.put(service("old", ["10.0.0.1"], external=[OUTER]))
    kernel.write(tables)
    tables.put(service("new", ["10.0.0.2"]))
    kernel.write(tables)
    assert kernel.backends() == {("10.96.0.1", 80): TWO[1:]}
    tables.delete("default", "old")
    kernel.write(tables)
    assert kernel.backends() == {("10.96.0.1", 80): TWO[1:]}


def test_numbers_with_external_addresses_are_kept_over_a_restart() -> None:
    def all_of(tables: Services) -> None:
        for last in "12":
            tables.put(service(last, [f"10.0.0.{last}"], f"10.96.0.{last}", external=[f"192.0.2.{last}"]))

    before, kernel = Services(), Kernel()
    before.put(service("gone", ["10.0.0.1"], "10.96.0.3"))
    all_of(before)
    before.delete("default", "gone")
    kernel.write(before)
    after = Services()
    after.adopt(kernel.maps.__getitem__)
    all_of(after)
    for table in (after.services, after.backends):
        table.adopt(kernel.maps[table.name])
    assert after.services.take() == ({}, []) and after.backends.take() == ({}, [])


HERE_AND_THERE = ["10.0.0.1 on there", "10.0.0.2 on here", "10.0.0.3", "10.0.0.4 on here"]


def test_a_service_that_stays_on_the_node_within_the_cluster_has_the_backends_of_this_node() -> None:
    tables, kernel = Services("here"), Kernel()
    tables.put(service("web", HERE_AND_THERE, external=[OUTER], internal_traffic_policy="Local"))
    kernel.write(tables)
    found = {address: [at for at, _ in backends] for (address, _), backends in kernel.backends().items()}
    assert found["10.96.0.1"] == ["10.0.0.2", "10.0.0.4"]
    assert sorted(found[OUTER]) == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
    tables.put(service("web", HERE_AND_THERE[:1], internal_traffic_policy="Local"))
    kernel.write(tables)
    assert kernel.backends() == {("10.96.0.1", 80): []}, "nobody else's, where the node has none"
    assert len(kernel.maps["backends"]) == 1, "who has it already keeps it"


@pytest.mark.parametrize(("policy", "serve"), [("Local", 2), ("Cluster", 4), ("", 4)])
def test_who_calls_from_outside_may_go_to_as_many_as_the_policy_says_and_those_come_first(
    policy: Any, serve: int
) -> None:
    tables, kernel = Services("here"), Kernel()
    assert tables.looked_for == 0
    tables.put(service("web", HERE_AND_THERE, external=[OUTER], external_traffic_policy=policy))
    kernel.write(tables)
    key = ServiceKey(OUTER, 80, 6)
    entry = ServiceEntry.unpack(kernel.maps["services"][key.pack()])
    assert (entry.backends, entry.outside) == (4, serve)
    if policy == "Local":
        assert [at for at, _ in kernel.backends()[OUTER, 80]][:2] == ["10.0.0.2", "10.0.0.4"]
    assert ServiceEntry.unpack(kernel.maps["services"][ServiceKey("10.96.0.1", 80, 6).pack()]).outside == 0
    assert tables.looked_for == SERVES_OUTSIDE
    tables.put(service("web", HERE_AND_THERE))
    assert tables.looked_for == 0, "nobody else pays for it"


def test_programs_look_for_answers_of_this_host_while_it_is_a_backend_of_what_is_called_from_outside() -> None:
    tables = Services("here", frozenset({"10.0.0.2"}))
    tables.put(service("within", HERE_AND_THERE))
    tables.put(service("web", HERE_AND_THERE[:1], "10.96.0.2", external=[OUTER]))
    assert tables.looked_for == SERVES_OUTSIDE
    tables.put(service("web", HERE_AND_THERE, "10.96.0.2", external=[OUTER]))
    assert tables.looked_for == SERVES_OUTSIDE | SERVES_ITSELF
    tables.put(service("web", HERE_AND_THERE[:1], "10.96.0.2", external=[OUTER]))
    assert tables.looked_for == SERVES_OUTSIDE
    tables.put(service("web", HERE_AND_THERE, "10.96.0.2", external=[OUTER]))
    tables.delete("default", "web")
    assert tables.looked_for == 0


def test_who_is_to_come_back_is_told_of_every_address_in_ticks_that_last_as_long_at_least() -> None:
    tables = Services("here")
    tables.put(service("web", HERE_AND_THERE, external=[OUTER], internal_traffic_policy="Local", affinity_seconds=60))
    entries = {
        ServiceKey.unpack(key).address: ServiceEntry.unpack(value) for key, value in tables.services.wanted.items()
    }
    ticks = 56  # of 1.07 s
    assert entries == {
        "10.96.0.1": ServiceEntry(1, 2, ServiceEntry.LOCAL, ticks),
        OUTER: ServiceEntry(1, 4, ServiceEntry.EXTERNAL, ticks, outside=4),
    }


def balanced(**fields: Any) -> LoadBalancedService:
    """Of both families, with a balancer's address in each, a node port and an external address."""
    fronts = [
        Frontend(address=address, port=80, protocol="TCP", backends=[Backend(address=backend, port=8080)])
        for address, backend in (("10.96.0.1", "10.0.0.1"), ("fd00:96::1", "fd00::1"))
    ]
    exposures = [
        Exposure(kind="ExternalIP", address="192.0.2.9", family="IPv4", port=80, protocol="TCP"),
        Exposure(kind="LoadBalancer", address="192.0.2.8", family="IPv4", port=80, protocol="TCP"),
        Exposure(kind="LoadBalancer", address="2001:db8::8", family="IPv6", port=80, protocol="TCP"),
        Exposure(kind="NodePort", family="IPv4", port=30_080, protocol="TCP"),
    ]
    return LoadBalancedService(namespace="default", name="web", frontends=fronts, exposures=exposures, **fields)


@pytest.mark.parametrize("denies", [False, True])
def test_ranges_hold_at_a_balancers_addresses_alone_and_each_family_has_its_own(denies: bool) -> None:
    tables = Services()
    tables.put(balanced(source_ranges=["198.51.100.0/24", "2001:db8:9::/48"], denies_sources=denies))
    limits = ServiceEntry.RANGES | ServiceEntry.RANGES_DENY * denies
    flags = {
        ServiceKey.unpack(key).address: ServiceEntry.unpack(value).flags
        & (ServiceEntry.RANGES | ServiceEntry.RANGES_DENY)
        for key, value in tables.services.wanted.items()
    }
    limited = {address for address, found in flags.items() if found}
    assert limited == {"192.0.2.8", "2001:db8::8"} and {flags[each] for each in limited} == {limits}
    found = {RangeKey.unpack(key): value for key, value in tables.ranges.wanted.items()}
    value = RANGE_DENIED if denies else RANGE_ALLOWED
    assert found == {
        RangeKey(1, Prefix("198.51.100.0", 24)): value,
        RangeKey(2, Prefix("2001:db8:9::", 48)): value,
    }
    tables.put(balanced(source_ranges=["203.0.113.0/24"]))
    assert {RangeKey.unpack(key) for key in tables.ranges.wanted} == {RangeKey(1, Prefix("203.0.113.0", 24))}
    tables.put(balanced())
    assert not tables.ranges.wanted
    assert not any(ServiceEntry.unpack(each).flags & limits for each in tables.services.wanted.values())
    tables.put(balanced(source_ranges=["203.0.113.0/24"]))
    tables.delete("default", "web")
    assert not tables.ranges.wanted and not tables.services.wanted


def test_networks_are_there_before_a_service_asks_for_them() -> None:
    assert {"source_ranges", "backends", "living"} <= set(Services().services.after)
    with pytest.raises(ValueError):
        Parts(Services()).put(FRONTEND.of("default", "web"), balanced(source_ranges=["10.0.0.1/8"]))


def test_a_service_that_may_leave_the_node_has_all_backends_in_the_order_told() -> None:
    tables, kernel = Services("here"), Kernel()
    tables.put(service("web", HERE_AND_THERE))
    kernel.write(tables)
    assert [at for at, _ in kernel.backends()["10.96.0.1", 80]] == [f"10.0.0.{last}" for last in "1234"]


# A backend's address says whose it is: 10.0.<service>.<n>
NUMBERS = st.integers(0, 3)
BACKENDS = st.lists(st.integers(1, 6), max_size=6, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NUMBERS, BACKENDS),
        st.tuples(st.just("delete"), NUMBERS, st.just([])),
        st.tuples(st.sampled_from(["write", "restart"]), NUMBERS, st.just([])),
    ),
    max_size=30,
)


def numbered(number: int, backends: list[int]) -> LoadBalancedService:
    """With an odd number of backends it has an external address."""
    external = [f"192.0.2.{number}"] if len(backends) % 2 else []
    addresses = [f"10.0.{number}.{each}" for each in backends]
    return service(f"s{number}", addresses, f"10.96.0.{number}", external=external)


@given(STEPS)
def test_between_any_two_writes_a_service_leads_only_to_its_own_backends(
    steps: list[tuple[str, int, list[int]]],
) -> None:
    def look() -> None:
        for (address, _), backends in kernel.backends().items():
            assert {each.split(".")[2] for each, _ in backends} <= {address.split(".")[3]}

    tables, kernel = Services(), Kernel()
    kernel.look = look
    wanted: dict[int, list[int]] = {}
    for what, number, backends in steps:
        if what == "put":
            tables.put(numbered(number, backends))
            wanted[number] = backends
        elif what == "delete":
            tables.delete("default", f"s{number}")
            wanted.pop(number, None)
        elif what == "write":
            kernel.write(tables)
        else:
            tables = Services()
            tables.adopt(kernel.maps.__getitem__)
            for each, its in reversed(wanted.items()):
                tables.put(numbered(each, its))
            for table in (tables.services, tables.backends):
                table.adopt(kernel.maps[table.name])
            kernel.write(tables)
    kernel.write(tables)
    assert kernel.backends() == {
        (f"{network}.{number}", 80): [(f"10.0.{number}.{each}", 8080) for each in its]
        for number, its in wanted.items()
        for network in (["10.96.0", "192.0.2"] if len(its) % 2 else ["10.96.0"])
    }
    assert len(kernel.maps["backends"]) == sum(map(len, wanted.values()))
