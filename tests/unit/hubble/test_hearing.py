"""What the bus says becomes names at once, and events only of what changes after all was heard."""

from __future__ import annotations

import asyncio
from typing import Any

from bus import subjects
from bus.interface import Batch, Change
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.identity import AddressIdentity
from bus.messages.lb import Frontend, LoadBalancedService
from bus.messages.policy import PolicyRules
from bus.messages.resources import Node
from services.hubble.api import flow_pb2 as pb
from services.hubble.hearing import HEARS, Hearing
from services.hubble.names import pack
from services.hubble.observed import Observed
from tests.unit.hubble.served import STARTED, observed

WHO = AddressIdentity(address="10.0.1.1", identity=300, node="n", node_address="192.0.2.1", pod="a/p")
HERE = Endpoint(
    node="node1",
    namespace="a",
    pod="p",
    address="10.0.1.1",
    mac="",
    interface="l",
    interface_index=9,
    identity=300,
    state="ready",
)
RULES = PolicyRules(kind="CiliumNetworkPolicy", namespace="a", name="r", subject="s")


def batch(*said: Message | str, synced: bool = True, sequence: int = 7) -> Batch:
    """Values, and subjects of what is gone."""
    changes = []
    for each in said:
        subject = each if isinstance(each, str) else subject_of(each)
        changes.append(Change(subject, None if isinstance(each, str) else each, sequence, 0.0, {}))
    return Batch(changes, synced)


def subject_of(message: Message) -> str:
    (family,) = (each for each in HEARS if isinstance(message, each.message))
    return family.subject_of(message)


def told(observer: Observed) -> list[Any]:
    return [each.event.type for each in observer.events.read(0, 100).items]


def test_before_all_is_heard_there_are_names_and_no_events() -> None:
    hearing = Hearing(observer := observed())
    hearing.hear(batch(WHO, HERE, RULES, synced=False), STARTED)
    assert observer.names.party(pack("10.0.1.1"), 0).pod == "p" and told(observer) == []
    assert not hearing.is_synced
    hearing.hear(batch(), STARTED)
    assert told(observer) == [pb.AGENT_STARTED]


def test_what_comes_changes_and_goes_is_told() -> None:
    hearing = Hearing(observer := observed())
    hearing.hear(batch(), STARTED)
    later = AddressIdentity(address="10.0.1.1", identity=301, node="n", node_address="192.0.2.2", pod="a/p")
    hearing.hear(batch(WHO, HERE, RULES), STARTED)
    hearing.hear(batch(later, HERE), STARTED)
    hearing.hear(batch(*map(subject_of, (later, HERE, RULES))), STARTED)
    assert told(observer) == [
        pb.AGENT_STARTED,
        pb.IPCACHE_UPSERTED,
        pb.ENDPOINT_CREATED,
        pb.POLICY_UPDATED,
        pb.IPCACHE_UPSERTED,
        pb.IPCACHE_DELETED,
        pb.ENDPOINT_DELETED,
        pb.POLICY_DELETED,
    ]
    events = [each.event for each in observer.events.read(0, 100).items]
    assert (events[2].endpoint_update.id, events[2].endpoint_update.pod_name) == (9, "p")
    assert list(events[3].policy_update.labels) == ["CiliumNetworkPolicy/a/r"] and events[3].policy_update.revision == 7
    changed = events[4].ipcache_update
    assert (changed.cidr, changed.identity, changed.old_identity.value) == ("10.0.1.1/32", 301, 300)
    assert (changed.host_ip, changed.old_host_ip) == ("192.0.2.2", "192.0.2.1")


def test_a_pod_of_another_node_is_no_endpoint_here() -> None:
    hearing = Hearing(observer := observed("node2"))
    hearing.hear(batch(), STARTED)
    hearing.hear(batch(HERE), STARTED)
    assert told(observer) == [pb.AGENT_STARTED]


def test_what_makes_no_sense_is_a_problem_until_it_is_said_right_or_gone() -> None:
    hearing = Hearing(observed())
    bad = LoadBalancedService(namespace="a", name="s", frontends=[Frontend(address="x", port=1, protocol="TCP")])
    hearing.hear(batch(bad, WHO), STARTED)
    assert hearing.problem == "state.lb.service.a.s: 'x' is not an address"
    hearing.hear(batch(subjects.FRONTEND.of("a", "s")), STARTED)
    assert hearing.problem == ""


async def test_relays_are_woken_by_nodes_alone() -> None:
    hearing = Hearing(observer := observed())
    woken = observer.network.wait(timeout=5)
    waiting = asyncio.ensure_future(woken)
    await asyncio.sleep(0)
    hearing.hear(batch(WHO), STARTED)
    await asyncio.sleep(0)
    assert not waiting.done()
    hearing.hear(batch(Node(name="n2", addresses=["192.0.2.2"])), STARTED)
    assert await waiting
