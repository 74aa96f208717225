"""identity and policy on one bus (in memory): from pods and a policy to rules whose selectors have members."""

from __future__ import annotations

import asyncio

import msgspec

from bus import labels
from bus.control import run_control
from bus.messages.identity import Identity
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import (
    ContainerPort,
    LabelSelector,
    Namespace,
    Peer,
    Pod,
    Policy,
    PortRange,
    Requirement,
    Rule,
)
from bus.subjects import IDENTITY, NAMESPACE, POD, POLICY, RULES, SELECTOR
from bus.testing import Hub
from services.dataplane.parts.policy.entries import INGRESS, verdict
from services.dataplane.parts.policy.store import PolicyStore
from services.identity.model import IdentityModel
from services.policy.model import PolicyModel

WITHIN_SECONDS = 5.0
DEFAULT = Namespace(name="default")


def org(name: str) -> LabelSelector:
    return LabelSelector(requirements=[Requirement(key="k8s:org", operator="In", values=[name])])


def pod(name: str, org: str) -> Pod:
    return Pod(namespace="default", name=name, uid=name, labels={"org": org, "app": name})


def number(each: Pod) -> int:
    return labels.number_of(labels.labels_text(labels.canonical_labels(each, DEFAULT)))


RULE1 = Policy(
    kind="CiliumNetworkPolicy",
    namespace="default",
    name="rule1",
    subject=org("empire"),
    rules=[Rule(direction="ingress", peers=[Peer(selector=org("empire"))], ports=[PortRange(protocol="TCP", port=80)])],
    deny_ingress_by_default=True,
)
DEATHSTAR, TIEFIGHTER, XWING = pod("deathstar", "empire"), pod("tiefighter", "empire"), pod("xwing", "alliance")


async def test_a_policy_reaches_a_node_that_hears_pods_and_policies_in_any_order() -> None:
    hub = Hub()
    store = PolicyStore()
    store.add_identity(number(DEATHSTAR), labels.canonical_labels(DEATHSTAR, DEFAULT))

    async def hear() -> None:
        async for batch in hub.bus("node").watch_state(RULES, SELECTOR):
            for change in batch.changes:
                match change.message:
                    case PolicyRules():
                        assert change.message.subject in heard, "rules before the selector that they name"
                        store.put_rules(change.message)
                    case Selector():
                        heard.add(change.message.id)
                        store.put_selector(change.message)
                    case _:
                        raise AssertionError(change)

    heard: set[str] = set()
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(hear(), name="node"),
            tasks.create_task(run_control(hub.bus("identity"), IdentityModel()), name="identity"),
            tasks.create_task(run_control(hub.bus("policy"), PolicyModel()), name="policy"),
        ]
        for namespace in (DEFAULT,):
            hub.put(NAMESPACE.of(namespace.name), namespace)
        for each in (DEATHSTAR, XWING):
            hub.put(POD.of(each.namespace, each.name), each)
        hub.put(POLICY.of(RULE1.kind, RULE1.namespace, RULE1.name), RULE1)
        await asyncio.sleep(0.05)
        hub.put(POD.of(TIEFIGHTER.namespace, TIEFIGHTER.name), TIEFIGHTER)
        async with asyncio.timeout(WITHIN_SECONDS):
            while not lands(store, TIEFIGHTER):
                await asyncio.sleep(0.01)
        assert store.policy_of(number(DEATHSTAR)).ingress_enforced
        assert not lands(store, XWING)
        for task in running:
            task.cancel()


async def test_rules_that_are_too_large_for_the_bus_are_said_as_their_default_deny() -> None:
    hub = Hub()
    model = PolicyModel()
    ports = [ContainerPort(name="http", port=number) for number in range(1, 41)]
    star = msgspec.structs.replace(DEATHSTAR, ports=ports)
    section = Rule(direction="ingress", peers=[Peer(selector=org("empire"))], ports=[PortRange(name="http")])
    large = msgspec.structs.replace(RULE1, rules=[section] * 300)
    found = labels.canonical_labels(DEATHSTAR, DEFAULT)
    hub.put(NAMESPACE.of(DEFAULT.name), DEFAULT)
    hub.put(POD.of(star.namespace, star.name), star)
    hub.put(IDENTITY.of(str(number(DEATHSTAR))), Identity(number=number(DEATHSTAR), labels=found))
    running = asyncio.create_task(run_control(hub.bus("policy"), model), name="policy")
    hub.put(POLICY.of(RULE1.kind, RULE1.namespace, RULE1.name), large)
    subject = RULES.of(RULE1.kind, RULE1.namespace, RULE1.name)
    async with asyncio.timeout(WITHIN_SECONDS * 4):
        while subject not in hub.states("policy"):
            await asyncio.sleep(0.01)
    said = hub.states("policy")[subject]
    assert isinstance(said, PolicyRules)
    assert said.rules == [] and said.deny_ingress_by_default
    assert model.failed
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def lands(store: PolicyStore, ship: Pod) -> bool:
    found = store.policy_of(number(DEATHSTAR))
    return found.ingress_enforced and verdict(found, number(ship), INGRESS, 6, 80).allowed
