"""A cluster in memory that commands can be run against: two nodes, three pods, a Service, a policy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from typer.testing import CliRunner, Result

from bus.messages.dataplane import (
    Check,
    Dump,
    DumpRows,
    Endpoint,
    Health,
    HealthQuestion,
    ReachedRevision,
    Why,
    WhyAnswer,
)
from bus.messages.hubble import Flow
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.lb import Backend, Frontend, LoadBalancedService
from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import (
    Applied,
    Apply,
    LabelSelector,
    Namespace,
    Node,
    Outcome,
    Pod,
    Policy,
    Service,
    ServicePort,
)
from bus.services import HEALTH, instances
from bus.subjects import (
    ADDRESS,
    APPLY,
    BLOCK,
    DUMP,
    ENDPOINT,
    FRONTEND,
    IDENTITY,
    NAMESPACE,
    NODE,
    POD,
    POLICY,
    RULES,
    SELECTOR,
    SERVICE,
    WHY,
)
from bus.testing import Hub, MemoryBus
from cli.__main__ import app

STARTED = 1_700_000_000.0
XWING, STAR = 40_001, 40_002
DROP = Flow(
    at=STARTED,
    type="drop",
    verdict="dropped",
    reason="Policy denied",
    reason_code=133,
    direction="ingress",
    source="10.0.1.3",
    destination="10.0.2.2",
    protocol=6,
    source_port=5000,
    destination_port=80,
    source_identity=XWING,
    source_pod="default/xwing",
    destination_pod="default/deathstar",
    policies=["CiliumNetworkPolicy/default/rule1"],
)
VERDICT = Flow(
    at=STARTED,
    type="policy-verdict",
    verdict="forwarded",
    direction="egress",
    source="10.0.1.2",
    destination="192.0.2.9",
    protocol=17,
    destination_port=53,
    destination_identity=2,
    source_pod="default/netpod",
)


class Cluster:
    """What the services would say and answer. Tests change it before they run a command."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.questions: list[Apply] = []
        self.answer = Applied(outcomes=[Outcome(kind="Pod", namespace="default", name="a", change="created")])
        self.checks: dict[str, list[Check]] = {}  # by node: what its health tells
        self.service_checks: dict[str, list[Check]] = {}  # by owner
        self.compared: set[str] = set()  # nodes that were asked to look at their maps
        self.revision: dict[str, dict[str, int]] = {}  # by node or service; others have everything
        self.silent: set[str] = set()  # owners and nodes that answer nothing
        self.during: Callable[[MemoryBus], Any] | None = None  # runs beside the command
        self.dumps = DumpRows(node="")
        self.dumped: list[Dump] = []  # what was asked for
        self.asked_why: list[tuple[str, Why]] = []
        self.why: dict[str, WhyAnswer] = {}  # by node
        for node, address in (("node1", "192.0.2.1"), ("node2", "192.0.2.2")):
            self.hub.put(NODE.of(node), Node(name=node, addresses=[address]))
            self.hub.put(BLOCK.of(f"10.0.{node[-1]}.0/24"), Block(cidr=f"10.0.{node[-1]}.0/24", node=node))
        self.hub.put(NAMESPACE.of("default"), Namespace(name="default", labels={"team": "a"}))
        self.pod("netpod", "node1", "10.0.1.2", 40_000, {"app": "netpod"})
        self.pod("xwing", "node1", "10.0.1.3", XWING, {"org": "alliance"})
        self.pod("deathstar", "node2", "10.0.2.2", STAR, {"org": "empire"})
        self.service()
        self.policy()

    def pod(self, name: str, node: str, address: str, number: int, labels: dict[str, str]) -> None:
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": []}}
        pod = Pod(
            namespace="default",
            name=name,
            uid=name,
            labels=labels,
            node=node,
            phase="Running",
            ready=True,
            address=address,
            manifest=manifest,
        )
        endpoint = Endpoint(
            node=node,
            namespace="default",
            pod=name,
            uid=name,
            address=address,
            mac="02:00:00:00:00:01",
            interface=f"px{number}",
            interface_index=number,
            identity=number,
            state="ready",
        )
        canonical = {f"k8s:{key}": value for key, value in labels.items()}
        canonical["k8s:io.kubernetes.pod.namespace"] = "default"
        where = AddressIdentity(
            address=address, identity=number, node=node, node_address="192.0.2.1", pod=f"default/{name}"
        )
        self.hub.put(POD.of("default", name), pod)
        self.hub.put(IDENTITY.of(str(number)), Identity(number=number, labels=canonical))
        self.hub.put(ADDRESS.of(address), where)
        self.hub.put(ENDPOINT.of(node, "default", name), endpoint)

    def service(self) -> None:
        wanted = Service(
            namespace="default",
            name="deathstar",
            cluster_addresses=["10.96.0.7"],
            selector={"org": "empire"},
            ports=[ServicePort(port=80, target_port=80)],
            manifest={"spec": {"ports": [{"port": 80}]}},
        )
        front = Frontend(
            address="10.96.0.7", port=80, protocol="TCP", backends=[Backend(address="10.0.2.2", port=80, node="node2")]
        )
        self.hub.put(SERVICE.of("default", "deathstar"), wanted)
        made = LoadBalancedService(namespace="default", name="deathstar", frontends=[front])
        self.hub.put(FRONTEND.of("default", "deathstar"), made)

    def policy(self) -> None:
        key = ("CiliumNetworkPolicy", "default", "rule1")
        policy = Policy(
            kind="CiliumNetworkPolicy",
            namespace="default",
            name="rule1",
            subject=LabelSelector(),
            deny_ingress_by_default=True,
        )
        rules = PolicyRules(
            kind="CiliumNetworkPolicy",
            namespace="default",
            name="rule1",
            subject="s1",
            rules=[SelectorRule(direction="ingress", selectors=["s1"])],
        )
        self.hub.put(POLICY.of(*key), policy)
        self.hub.put(RULES.of(*key), rules)
        self.hub.put(SELECTOR.of("s1"), Selector(id="s1", selector=LabelSelector(), members=[STAR]))

    def roots(self) -> dict[str, int]:
        return {owner: self.hub.log(owner).last for owner in ("resources", "dataplane")}

    def health(self, owner: str, instance: str) -> Health:
        checks = [*self.checks.get(instance, []), *self.service_checks.get(owner, [])]
        have = self.revision.get(instance) or self.revision.get(owner) or self.roots()
        return Health(
            service=owner,
            instance=instance,
            ready=all(check.ok for check in checks),
            started_at=STARTED,
            version="0.1.0",
            checks=checks,
            revision=have,
            revision_at=time.time(),
            reached=[ReachedRevision(revision=have, at=time.time())],
            resident_bytes=70_000_000,
        )

    async def serve(self, connection: MemoryBus) -> None:
        """Answer as the services do."""

        async def apply(question: Apply) -> Applied:
            self.questions.append(question)
            return self.answer

        async with asyncio.TaskGroup() as tasks:
            for owner, instance in instances(("node1", "node2")):
                if owner not in self.silent and instance not in self.silent:
                    tasks.create_task(self.serve_health(connection, owner, instance))
            for node in {"node1", "node2"} - self.silent:
                tasks.create_task(self.serve_dump(connection, node))
                tasks.create_task(self.serve_why(connection, node))
            if "resources" not in self.silent:
                tasks.create_task(connection.answer(APPLY, handler=apply))
            if self.during:
                tasks.create_task(self.during(connection))

    async def serve_health(self, connection: MemoryBus, owner: str, instance: str) -> None:
        async def tell(question: HealthQuestion) -> Health:
            if question.compare:
                self.compared.add(instance)
            return self.health(owner, instance)

        await connection.answer(HEALTH[owner], instance, handler=tell)

    async def serve_dump(self, connection: MemoryBus, node: str) -> None:
        async def tell(asked: Dump) -> DumpRows:
            self.dumped.append(asked)
            return DumpRows(node=node, rows=self.dumps.rows, problem=self.dumps.problem, truncated=self.dumps.truncated)

        await connection.answer(DUMP, node, handler=tell)

    async def serve_why(self, connection: MemoryBus, node: str) -> None:
        async def tell(question: Why) -> WhyAnswer:
            self.asked_why.append((node, question))
            return self.why[node]

        await connection.answer(WHY, node, handler=tell)


def plexus(*arguments: str, status: int = 0, given: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=given)
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


def from_json(*arguments: str, status: int = 0) -> Any:
    return json.loads(plexus(*arguments, "-o", "json", status=status).stdout)
