"""The service on a bus: who answers, what is left after a death, and two replicas that both believe to be active."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network, IPv6Network
from itertools import groupby

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import LIMIT_BYTES, decode, encode
from bus.digest import Digests
from bus.interface import Unanswered
from bus.messages import Message
from bus.messages.resources import Applied, Apply, Bind, ClusterAddress, Pod, PodStatus, Service
from bus.revision import Revision
from bus.service import BadSettings
from bus.subjects import APPLY, BIND, CLUSTER_ADDRESS, NAMESPACE, POD, POD_STATUS, SERVICE
from bus.testing import Hub, MemoryOutbox
from services.resources.handlers import AT_ONCE, Handlers, run
from services.resources.settings import Settings, from_environment
from tests.unit.resources.manifests import cilium, documents, pod, service

NODE_ONE = """
apiVersion: v1
kind: Node
metadata: {name: node1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
"""


NAMESPACE_A = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}"


class Reports:
    """A `bus.control.Report` that keeps the last one."""

    active = False

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        self.active = active


async def answered(hub: Hub, *texts: str, delete: bool = False) -> Applied:
    bus = hub.bus("asker")
    apply = Apply(documents=documents("\n---\n".join(texts)), delete=delete)
    for _ in range(100):
        try:
            return await bus.ask(APPLY, message=apply)
        except Unanswered as problem:
            if "nobody" not in problem.why:
                raise
            await asyncio.sleep(0.01)
    raise AssertionError("nobody answers")


async def test_apply_bind_and_status_travel_from_request_to_log() -> None:
    hub = Hub()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run(hub.bus("resources"), Settings(), Reports()))
        applied = await answered(hub, NODE_ONE, pod(), service())
        assert {each.change for each in applied.outcomes} == {"created"}
        assert applied.revision == hub.log("resources").last
        bus, found = hub.bus("asker"), hub.states("resources")[POD.of("default", "p")]
        assert isinstance(found, Pod)
        bound = await bus.ask(BIND, message=Bind(namespace="default", name="p", uid=found.uid, node="node1"))
        status = PodStatus(
            namespace="default", name="p", uid=found.uid, phase="Running", ready=True, address="10.0.0.9", node="node1"
        )
        told = await bus.ask(POD_STATUS, "node1", message=status)
        assert (bound.refusals, told.refusals) == ([], [])
        now = hub.states("resources")[POD.of("default", "p")]
        assert isinstance(now, Pod)
        assert (now.node, now.ready, now.address) == ("node1", True, "10.0.0.9")
        running.cancel()


async def test_a_refused_call_writes_nothing() -> None:
    hub = Hub()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run(hub.bus("resources"), Settings(), Reports()))
        await answered(hub, service())
        before = hub.log("resources").last
        refused = await answered(hub, pod(), service("ports: [{port: 70000}]", name="b"))
        assert [each.path for each in refused.refusals] == ["spec.ports[0].port"]
        assert hub.log("resources").last == before
        running.cancel()


async def test_a_call_with_one_resource_too_large_for_the_bus_writes_nothing_and_names_it() -> None:
    hub = Hub()
    handlers = Handlers(MemoryOutbox(hub, "resources"), Settings())
    await handlers.catch_up()
    before = hub.log("resources").last
    rules = ", ".join(f"{{fromEndpoints: [{{matchLabels: {{app: a{n}}}}}]}}" for n in range(6000))
    call = Apply(documents=documents("\n---\n".join((NAMESPACE_A, service(), cilium(f"ingress: [{rules}]")))))
    (refusal,) = (await handlers.apply(call)).refusals
    assert (refusal.source, refusal.kind, refusal.name) == ("test.yaml, document 3", "CiliumNetworkPolicy", "rule1")
    assert "the limit is 512 KiB" in refusal.problem
    assert hub.log("resources").last == before


async def test_an_address_held_in_words_of_a_newer_version_is_not_given_away() -> None:
    hub = Hub()
    network = Settings(service_networks={"IPv4": IPv4Network("10.0.0.0/30")})  # two addresses
    newer = msgspec.msgpack.encode([ClusterAddress.schema + 1, {}])
    hub.put_bytes(CLUSTER_ADDRESS.of("10.0.0.1"), newer)
    handlers = Handlers(MemoryOutbox(hub, "resources"), network)
    given = await handlers.apply(Apply(documents=documents(service())))
    assert given.refusals == []
    found = hub.states("resources")[SERVICE.of("default", "svc")]
    assert isinstance(found, Service) and found.cluster_addresses == ["10.0.0.2"]
    assert (await handlers.apply(Apply(documents=documents(service(name="second"))))).refusals


async def test_a_pod_that_is_taken_has_room_for_what_is_told_of_it_later() -> None:
    handlers = Handlers(MemoryOutbox(Hub(), "resources"), Settings(), lambda: "uid")
    room = LIMIT_BYTES
    while True:  # the largest that is taken
        call = Apply(documents=documents(f"{NODE_ONE}\n---\n{pod()}"))
        call.documents[1].manifest["spec"]["containers"][0]["args"] = ["x" * room]
        if not (await handlers.apply(call)).refusals:
            break
        room -= 256
    bound = await handlers.bind(Bind(namespace="default", name="p", uid="uid", node="node1"))
    assert bound.refusals == []
    told = PodStatus(
        namespace="default", name="p", uid="uid", phase="Pending", ready=False, reason="r" * 3000, node="node1"
    )
    assert (await handlers.pod_status(told)).refusals == []
    far_too_long = msgspec.structs.replace(told, reason="r" * LIMIT_BYTES)
    assert [each.path for each in (await handlers.pod_status(far_too_long)).refusals] == ["reason"]


class SlowOutbox(MemoryOutbox):
    """Every write takes its time, and is noted with how many were going on."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub, "resources")
        self.at_once = 0
        self.most_at_once = 0
        self.began: list[str] = []

    @asynccontextmanager
    async def slowly(self, subject: str) -> AsyncIterator[None]:
        self.began.append(subject.split(".")[2])
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await asyncio.sleep(0.001)
        yield
        self.at_once -= 1

    async def say(self, subject: str, message: Message) -> bool:
        async with self.slowly(subject):
            return await super().say(subject, message)

    async def unsay(self, subject: str) -> bool:
        async with self.slowly(subject):
            return await super().unsay(subject)

    async def claim(self, subject: str, message: Message) -> Message:
        async with self.slowly(subject):
            return await super().claim(subject, message)


async def test_what_does_not_depend_on_each_other_is_written_at_the_same_time_and_counted() -> None:
    hub = Hub()
    outbox = SlowOutbox(hub)
    handlers = Handlers(outbox, Settings())
    call = Apply(documents=documents("\n---\n".join(service(name=f"s{n}") for n in range(100))))
    applied = await handlers.apply(call)
    assert outbox.most_at_once == AT_ONCE
    assert applied.revision == hub.log("resources").last
    order = [noun for noun, _ in groupby(outbox.began)]
    assert order == ["namespace", "clusteraddress", "service"]
    outbox.began.clear()
    await handlers.apply(Apply(documents=call.documents, delete=True))
    assert [noun for noun, _ in groupby(outbox.began)] == ["service", "clusteraddress"]


async def test_a_standby_answers_nothing_and_takes_over_when_the_active_one_dies() -> None:
    hub, reports = Hub(), (Reports(), Reports())
    async with asyncio.TaskGroup() as tasks:
        first, second = (tasks.create_task(run(hub.bus(f"r{at}"), Settings(), each)) for at, each in enumerate(reports))
        await answered(hub, service())
        assert [each.active for each in reports] == [True, False]
        assert len(hub.answerers[APPLY.all()]) == 1
        first.cancel()
        await asyncio.wait([first])
        unchanged = await answered(hub, service())
        assert reports[1].active and unchanged.outcomes[0].change == "unchanged"
        second.cancel()


class DyingOutbox(MemoryOutbox):
    """Dies at the n-th write: with `written`, after it has reached the log."""

    def __init__(self, hub: Hub, writes: int, written: bool) -> None:
        super().__init__(hub, "resources")
        self._left = writes
        self._written = written

    def _dies(self) -> bool:
        self._left -= 1
        return self._left < 0

    async def say(self, subject: str, message: Message) -> bool:
        if self._dies():
            if self._written:
                await super().say(subject, message)
            raise ConnectionError("killed")
        return await super().say(subject, message)

    async def claim(self, subject: str, message: Message) -> Message:
        if self._dies():
            if self._written:
                await super().claim(subject, message)
            raise ConnectionError("killed")
        return await super().claim(subject, message)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("writes", range(6))
async def test_a_death_at_any_write_loses_nothing_and_asking_again_finishes(writes: int, written: bool) -> None:
    hub = Hub()
    call = Apply(documents=documents("\n---\n".join((NODE_ONE, service(), service(name="b"), pod()))))
    await Handlers(MemoryOutbox(hub, "resources"), Settings()).catch_up()
    dying = Handlers(DyingOutbox(hub, writes, written), Settings())
    with pytest.raises(ConnectionError):
        await dying.apply(call)
    successor = Handlers(MemoryOutbox(hub, "resources"), Settings())
    await successor.apply(call)
    plain = Hub()
    await Handlers(MemoryOutbox(plain, "resources"), Settings(), lambda: "uid").apply(call)
    assert without_uids(hub) == without_uids(plain)


def without_uids(hub: Hub) -> dict[str, object]:
    return {
        subject: (message.name, message.labels) if isinstance(message, Pod) else message
        for subject, message in hub.states("resources").items()
    }


async def test_after_a_write_of_unknown_end_the_log_is_read_again() -> None:
    hub = Hub()
    await Handlers(MemoryOutbox(hub, "resources"), Settings()).catch_up()
    handlers = Handlers(DyingOutbox(hub, 1, True), Settings())
    with pytest.raises(ConnectionError):
        await handlers.apply(Apply(documents=documents(service())))
    assert SERVICE.of("default", "svc") in hub.states("resources")
    handlers._outbox = MemoryOutbox(hub, "resources")  # the connection is back
    again = await handlers.apply(Apply(documents=documents(service())))
    assert again.outcomes[0].change == "unchanged"


async def test_what_is_said_of_a_value_is_the_digest_of_its_bytes_in_the_log() -> None:
    """They are not those that a value has when it is written again after it was read: a protocol that a manifest
    spells out is left out then, being the default."""
    hub = Hub()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run(hub.bus("resources"), Settings(), Reports()))
        await answered(hub, service("ports: [{port: 80, protocol: TCP}]"))
        running.cancel()
    subject = SERVICE.of("default", "svc")
    body = hub.log("resources").entries[subject].body
    assert body is not None and encode(decode(subject, body, Service)) != body
    outbox = await hub.bus("resources").own("resources")
    handlers = Handlers(outbox, Settings())
    await handlers.catch_up()
    expected = Digests()
    expected.put(subject, body)
    assert handlers.digests["resources.service"] == expected.of("resources.service")


async def test_a_log_that_was_lost_is_started_anew() -> None:
    hub = Hub()
    handlers = Handlers(MemoryOutbox(hub, "resources"), Settings())
    await handlers.apply(Apply(documents=documents(service())))
    held = hub.log("resources")
    held.entries.clear()
    held.last = 0
    again = await handlers.apply(Apply(documents=documents(service())))
    assert again.outcomes[0].change == "created"
    assert {NAMESPACE.of("default"), SERVICE.of("default", "svc")} <= hub.states("resources").keys()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.sampled_from("abcdef")), min_size=2, max_size=10))
def test_two_replicas_that_both_act_never_give_an_address_twice(calls: list[tuple[int, str]]) -> None:
    asyncio.run(race(calls))


async def race(calls: list[tuple[int, str]]) -> None:
    """All calls at once, each through one of two replicas, in a range of six addresses."""
    hub, small = Hub(), Settings(service_networks={"IPv4": IPv4Network("10.96.0.0/29")})
    replicas = [Handlers(MemoryOutbox(hub, "resources"), small) for _ in range(2)]
    asked = (replicas[which].apply(Apply(documents=documents(service(name=name)))) for which, name in calls)
    await asyncio.gather(*asked, return_exceptions=True)
    values = hub.states("resources")
    shown = [address for each in values.values() if isinstance(each, Service) for address in each.cluster_addresses]
    holders = {each.address: each.service for each in values.values() if isinstance(each, ClusterAddress)}
    assert len(shown) == len(set(shown))
    for each in values.values():
        if isinstance(each, Service):
            assert [holders[address] for address in each.cluster_addresses] == [each.name]


def test_the_service_range_is_set_by_the_environment() -> None:
    v4, v6 = IPv4Network("10.97.0.0/16"), IPv6Network("fd00:96::/112")
    assert from_environment({"PLEXUS_SERVICE_CIDR": str(v4)}).service_networks == {"IPv4": v4}
    both = from_environment({"PLEXUS_SERVICE_CIDR": str(v4), "PLEXUS_SERVICE_CIDR6": str(v6)}).service_networks
    assert list(both.items()) == [("IPv4", v4), ("IPv6", v6)]
    assert from_environment({"PLEXUS_SERVICE_CIDR": "", "PLEXUS_SERVICE_CIDR6": str(v6)}).service_networks == {
        "IPv6": v6
    }
    assert list(from_environment({}).service_networks) == ["IPv4"]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"PLEXUS_SERVICE_CIDR": "10.97.0.0/99"},
            "_CIDR is a network like .10.96.0.0/16.: .10.97.0.0/99.",
        ),
        ({"PLEXUS_SERVICE_CIDR": "fd00::/112"}, "PLEXUS_SERVICE_CIDR is .*not an IPv4 network"),
        ({"PLEXUS_SERVICE_CIDR6": "10.97.0.0/16"}, "PLEXUS_SERVICE_CIDR6 is .*not an IPv6 network"),
        ({"PLEXUS_SERVICE_CIDR6": "::ffff:10.97.0.0/112"}, "not an IPv6 network"),
        ({"PLEXUS_SERVICE_CIDR6": "fd00::1/112"}, "not an IPv6 network"),
        ({"PLEXUS_SERVICE_CIDR6": "fd00::%eth0/112"}, "not an IPv6 network"),
        ({"PLEXUS_SERVICE_CIDR": ""}, "both empty"),
    ],
)
def test_a_bad_service_range_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        from_environment(environment)
