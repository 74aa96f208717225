"""Who gets which address of a pool, who keeps it, who shares it, and what those are told who get none."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from bus.control import Amend
from bus.messages.ipam import ServiceAddress
from bus.messages.resources import Node
from bus.subjects import LOAD_BALANCER_POOL, NODE, SERVICE, SERVICE_ADDRESS
from services.ipam.service_addresses import ServiceAddresses
from tests.unit.ipam.service_log import Log, pool, service

SIX = "10.10.200.1-10.10.200.6"


def settled(*changes: tuple[str, object]) -> tuple[Log, ServiceAddresses]:
    log, model = Log(), ServiceAddresses()
    hear(log, model, *changes)
    return log, model


def hear(log: Log, model: ServiceAddresses, *changes: tuple[str, object]) -> None:
    """A change without a value is an end."""
    for subject, message in changes:
        if message is None:
            model.delete(subject)
        else:
            model.put(subject, message)  # type: ignore[arg-type]  # messages, as the callers make them
    log.settle(model)


def gone(subject: str, _: object) -> tuple[str, None]:
    return subject, None


def test_services_get_the_lowest_addresses_that_are_free_and_keep_them() -> None:
    log, model = settled(pool("blue", SIX), service("a"), service("b"), service("c"))
    assert log.given() == {"10.10.200.1": ["a"], "10.10.200.2": ["b"], "10.10.200.3": ["c"]}
    hear(log, model, gone(*service("b")))
    assert log.given() == {"10.10.200.1": ["a"], "10.10.200.3": ["c"]}
    hear(log, model, service("d"), service("e"))
    assert log.given() == {"10.10.200.1": ["a"], "10.10.200.2": ["d"], "10.10.200.3": ["c"], "10.10.200.4": ["e"]}
    assert log.request("a").satisfied and log.request("a").addresses == ["10.10.200.1"]
    assert log.use("blue").total == "6" and log.use("blue").used == "4" and log.use("blue").available == "2"


def test_another_replica_goes_on_where_the_first_one_stopped() -> None:
    log, _ = settled(pool("blue", SIX), service("a"), service("b"))
    before, other = dict(log.values), ServiceAddresses()
    hear(log, other, *before.items(), pool("blue", SIX), service("a"), service("b"))
    assert log.values == before


def test_what_a_service_had_that_ended_while_nobody_led_is_free_again() -> None:
    log, _ = settled(pool("blue", SIX), service("a"))
    other = ServiceAddresses()
    other.put(SERVICE_ADDRESS.of("10.10.200.1"), log.values[SERVICE_ADDRESS.of("10.10.200.1")])
    hear(log, other, pool("blue", SIX))
    assert log.given() == {}


def test_an_address_that_another_replica_gave_to_a_service_not_heard_of_stays() -> None:
    log, model = settled(pool("blue", SIX), service("a"))
    other = ServiceAddresses()
    hear(log, other, *log.values.items(), pool("blue", SIX), service("a"), service("late"))
    hear(log, model, (SERVICE_ADDRESS.of("10.10.200.2"), log.values[SERVICE_ADDRESS.of("10.10.200.2")]))
    assert log.of("late") == ["10.10.200.2"]
    hear(log, model, gone(*service("late")))
    assert log.of("late") == []


def test_an_end_heard_before_the_address_was_frees_it_too() -> None:
    log, model = settled(pool("blue", SIX), service("a"))
    hear(log, model, gone(*service("late")))
    other = ServiceAddresses()
    hear(log, other, *log.values.items(), pool("blue", SIX), service("a"), service("late"))
    hear(log, model, (SERVICE_ADDRESS.of("10.10.200.2"), log.values[SERVICE_ADDRESS.of("10.10.200.2")]))
    assert log.of("late") == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ((), "no_pool"),
        ((pool("blue", SIX, color="blue"),), "no_pool"),
        ((pool("blue", SIX, disabled=True),), "no_pool"),
        ((pool("six", "fd00::1-fd00::9"),), "no_pool"),
        ((pool("one", "10.0.0.1"), service("a0")), "out_of_ips"),
    ],
)
def test_who_gets_no_address_is_told_why_and_gets_one_when_there_is(changes: tuple[object, ...], reason: str) -> None:
    log, model = settled(*changes, service("web"))  # type: ignore[arg-type]
    told = log.request("web")
    assert (told.satisfied, told.reason, told.addresses) == (False, reason, [])
    assert told.detail and ("default", "web") in model.waiting
    hear(log, model, pool("new", "10.9.0.1", place=2))
    assert log.of("web") == ["10.9.0.1"] and log.request("web").satisfied and not model.waiting


def test_who_waits_gets_what_another_gives_back() -> None:
    log, model = settled(pool("one", "10.0.0.1"), service("a"), service("b"))
    assert log.given() == {"10.0.0.1": ["a"]} and log.request("b").reason == "out_of_ips"
    model.delete(SERVICE.of("default", "a"))
    amendments = [each for each in model.act() if isinstance(each, Amend)]
    assert len(amendments) == 1, "in one step: nobody else can come between"
    for each in amendments:
        log.write(model, each)
    log.settle(model)
    assert log.given() == {"10.0.0.1": ["b"]}


def test_addresses_that_are_asked_for_by_name_go_to_who_asks() -> None:
    asked = ["10.10.200.1", "10.10.200.4"]
    log, model = settled(pool("blue", SIX), service("a"), service("z", addresses=asked))
    assert sorted(log.of("z")) == asked and log.of("a") == ["10.10.200.2"], "in the same breath too"
    hear(log, model, service("z", addresses=["10.10.200.5"]))
    assert log.of("z") == ["10.10.200.5"]
    hear(log, model, service("z"))
    assert log.of("z") == ["10.10.200.5"], "it keeps what it has"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.10.200.1", "already_allocated"),
        ("10.10.201.1", "no_pool"),
        ("10.20.0.1", "pool_selector_mismatch"),
        ("10.30.0.1", "no_pool"),
        ("fd00::1", "ip_family"),
        ("10.10.200.6", "already_allocated"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused_by_name(address: str, reason: str) -> None:
    log, _ = settled(
        pool("blue", SIX, "fd00::1-fd00::9"),
        pool("red", "10.20.0.1-10.20.0.9", place=2, color="red"),
        pool("off", "10.30.0.1-10.30.0.9", place=3, disabled=True),
        (NODE.of("n"), Node(name="n", addresses=["10.10.200.6"])),
        service("a"),
    )
    model = ServiceAddresses()
    hear(
        log,
        model,
        *log.values.items(),
        pool("blue", SIX, "fd00::1-fd00::9"),
        pool("red", "10.20.0.1-10.20.0.9", place=2, color="red"),
        pool("off", "10.30.0.1-10.30.0.9", place=3, disabled=True),
        (NODE.of("n"), Node(name="n", addresses=["10.10.200.6"])),
        service("a"),
        service("z", addresses=[address]),
    )
    assert log.request("z").reason == reason and address in log.request("z").detail
    assert log.of("z") == [] and log.of("a") == ["10.10.200.1"]


def test_an_address_of_a_node_is_no_services() -> None:
    a_node = (NODE.of("n"), Node(name="n", addresses=["10.10.200.1"]))
    log, model = settled(pool("blue", SIX), a_node, service("a"))
    assert log.of("a") == ["10.10.200.2"]
    hear(log, model, (NODE.of("m"), Node(name="m", addresses=["10.10.200.2"])))
    assert log.of("a") == ["10.10.200.3"], "it would be taken for the node"
    hear(log, model, gone(*a_node), service("b"))
    assert log.of("b") == ["10.10.200.1"]


def test_both_families_get_an_address_each() -> None:
    log, model = settled(pool("blue", SIX, "fd00::5-fd00::9"), service("a", families=["IPv6", "IPv4"]))
    assert log.request("a").addresses == ["10.10.200.1", "fd00::5"]
    hear(log, model, service("a", families=["IPv6"]))
    assert log.request("a").addresses == ["fd00::5"]


def test_a_pool_is_for_the_services_that_it_selects() -> None:
    log, model = settled(
        pool("blue", SIX, color="blue"), pool("red", "10.20.0.1-10.20.0.9", place=2, color="red"),
        service("b", color="blue"), service("r", color="red"),
    )  # fmt: skip
    assert log.of("b") == ["10.10.200.1"] and log.of("r") == ["10.20.0.1"]
    hear(log, model, service("b", color="red"))
    assert log.of("b") == ["10.20.0.2"], "what does not select it any more, it loses"


def test_a_pool_selects_by_name_and_namespace_too() -> None:
    subject, message = pool("own", SIX, color="x")
    assert message.selector is not None  # type: ignore[attr-defined]
    (requirement,) = message.selector.requirements  # type: ignore[attr-defined]
    for key, value in (("io.kubernetes.service.namespace", "tenant"), ("io.kubernetes.service.name", "web")):
        selector = replace(message.selector, requirements=[replace(requirement, key=key, values=[value])])  # type: ignore[attr-defined]
        own = (subject, replace(message, selector=selector))
        log, _ = settled(own, service("web", "tenant"), service("db", "other"))
        assert log.given() == {"10.10.200.1": ["web"]}


def test_a_pool_that_changes_takes_nothing_from_who_still_fits() -> None:
    log, model = settled(pool("blue", SIX), service("a"), service("b"), service("c"))
    hear(log, model, pool("blue", "10.10.200.2-10.10.200.9"))
    assert log.given() == {"10.10.200.2": ["b"], "10.10.200.3": ["c"], "10.10.200.4": ["a"]}
    hear(log, model, pool("blue", "10.10.200.2-10.10.200.9", disabled=True), service("d"))
    assert log.given() == {"10.10.200.2": ["b"], "10.10.200.3": ["c"], "10.10.200.4": ["a"]}
    assert log.request("d").reason == "no_pool"
    hear(log, model, gone(*pool("blue")))
    assert log.given() == {} and log.request("a").reason == "no_pool"


def test_of_pools_that_overlap_the_older_gives_and_the_other_says_so_and_takes_nothing_back() -> None:
    log, model = settled(pool("old", SIX, place=1), pool("a-new", "10.10.200.4-10.10.200.9", place=2), service("a"))
    assert log.use("old").conflict == ""
    assert "old" in log.use("a-new").conflict and SIX in log.use("a-new").conflict
    assert log.of("a") == ["10.10.200.1"]
    hear(log, model, pool("old", "10.10.200.1-10.10.200.3"), service("b", addresses=["10.10.200.9"]))
    assert log.use("a-new").conflict == "" and log.of("b") == ["10.10.200.9"]
    hear(log, model, pool("old", SIX))
    assert log.use("a-new").conflict and log.of("b") == ["10.10.200.9"], "it gave it when it might"
    hear(log, model, (LOAD_BALANCER_POOL.of("old"), None))
    assert log.use("a-new").conflict == "" and log.of("a") == ["10.10.200.4"]


# -- sharing


def test_services_of_one_key_share_an_address_where_no_port_is_in_both() -> None:
    log, _ = settled(
        pool("blue", SIX),
        service("a", ports=(80, 443), sharing_key="k"),
        service("b", ports=(53,), sharing_key="k"),
        service("c", ports=(443,), sharing_key="k"),
        service("d", ports=(9,), sharing_key="other"),
        service("e", ports=(99,)),
    )
    assert log.given() == {
        "10.10.200.1": ["a", "b"],
        "10.10.200.2": ["c"],
        "10.10.200.3": ["d"],
        "10.10.200.4": ["e"],
    }


def test_an_address_is_shared_between_namespaces_where_both_say_so() -> None:
    log, _ = settled(
        pool("blue", SIX),
        service("a", "one", ports=(1,), sharing_key="k", sharing_namespaces=["two", "three"]),
        service("b", "two", ports=(2,), sharing_key="k", sharing_namespaces=["*"]),
        service("c", "three", ports=(3,), sharing_key="k"),
        service("d", "four", ports=(4,), sharing_key="k", sharing_namespaces=["*"]),
    )
    assert log.given() == {"10.10.200.1": ["d", "b"], "10.10.200.2": ["a"], "10.10.200.3": ["c"]}


def test_an_address_asked_for_by_name_is_shared_or_refused_with_the_reason() -> None:
    log, _ = settled(
        pool("blue", SIX),
        service("a", ports=(1,), sharing_key="k", addresses=["10.10.200.5"]),
        service("b", ports=(2,), sharing_key="k", addresses=["10.10.200.5"]),
        service("c", ports=(2,), sharing_key="k", addresses=["10.10.200.5"]),
        service("d", ports=(4,), sharing_key="k"),
    )
    assert log.given() == {"10.10.200.5": ["a", "b", "d"]}
    told = log.request("c")
    assert told.reason == "already_allocated_incompatible_service"
    assert "default/b" in told.detail and "2/TCP" in told.detail


def test_services_whose_traffic_stays_on_their_nodes_share_where_their_backends_are_the_same() -> None:
    log, _ = settled(
        pool("blue", SIX),
        service("a", ports=(1,), sharing_key="k", policy="Local", selector={"app": "x"}),
        service("b", ports=(2,), sharing_key="k", policy="Local", selector={"app": "x"}),
        service("c", ports=(3,), sharing_key="k", policy="Local", selector={"app": "y"}),
        service("d", ports=(4,), sharing_key="k", policy="Cluster", selector={"app": "x"}),
        service("e", ports=(5,), sharing_key="k2", policy="Local", selector={}),
        service("f", ports=(6,), sharing_key="k2", policy="Local", selector={}),
    )
    assert sorted(log.given().values()) == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]


def test_who_changes_so_that_it_cannot_share_any_more_goes_and_the_others_stay() -> None:
    shared = [service(name, ports=(at,), sharing_key="k") for at, name in enumerate("abc", 1)]
    log, model = settled(pool("blue", SIX), *shared)
    assert log.given() == {"10.10.200.1": ["a", "b", "c"]}
    hear(log, model, service("a", ports=(3,), sharing_key="k"))
    assert log.given() == {"10.10.200.1": ["b", "c"], "10.10.200.2": ["a"]}
    hear(log, model, service("b", ports=(2,), sharing_key="other"))
    assert log.given() == {"10.10.200.1": ["c"], "10.10.200.2": ["a"], "10.10.200.3": ["b"]}
    hear(log, model, service("c", ports=(8, 9), sharing_key="k"))
    assert log.holders()["10.10.200.1"][0].ports == ["8/TCP", "9/TCP"], "or it would be shared by what it was"


# -- what is none of ours, and what cannot be read


@pytest.mark.parametrize("name", ["io.cilium/l2-announcer", "io.cilium/bgp-control-plane", ""])
def test_services_of_our_classes_get_an_address(name: str) -> None:
    log, _ = settled(pool("blue", SIX), service("a", load_balancer_class=name))
    assert log.of("a") == ["10.10.200.1"]


def test_a_service_of_another_class_or_type_is_left_alone() -> None:
    log, model = settled(pool("blue", SIX), service("a", load_balancer_class="example.org/lb"), service("b"))
    assert log.given() == {"10.10.200.1": ["b"]} and ("default", "a") not in model.waiting
    subject, message = service("b")
    hear(log, model, (subject, replace(message, type="ClusterIP", load_balancer=None)))
    assert log.values.keys() == {"state.ipam.pooluse.blue"}


def test_an_address_that_cannot_be_read_is_somebodys() -> None:
    log, model = Log(), ServiceAddresses()
    model.taken(SERVICE_ADDRESS.of("10.10.200.1"))
    with pytest.raises(ValueError, match="another thing"):
        model.put(SERVICE_ADDRESS.of("10.10.200.2"), ServiceAddress(address="10.10.200.3", services=[]))
    hear(log, model, pool("blue", SIX), service("a"))
    assert log.of("a") == ["10.10.200.3"] and log.use("blue").used == "3"
    assert SERVICE_ADDRESS.of("10.10.200.1") in model.said()
    hear(log, model, (SERVICE_ADDRESS.of("10.10.200.1"), None), service("b"))
    assert log.of("b") == ["10.10.200.1"] and log.use("blue").used == "3"


def test_ten_thousand_services_are_served_and_one_more_costs_little() -> None:
    log, model, started = Log(), ServiceAddresses(), time.process_time()
    model.put(*pool("big", "10.0.0.1-10.0.255.254", "fd00::-fd00::ffff:ffff:ffff"))
    for at in range(10_000):
        model.put(*service(f"s{at}"))
    log.settle(model)
    assert len(log.given()) == 10_000
    for_all, costs = time.process_time() - started, []
    for at in range(5):
        model.put(*service(f"more{at}"))
        started = time.process_time()
        assert log.settle(model) <= 3, "its address, what it is told, and the pool's count"
        costs.append(time.process_time() - started)
    assert min(costs) < for_all / 100
