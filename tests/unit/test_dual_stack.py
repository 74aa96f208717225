"""The control services on one bus (in memory), with one address family, the other, or both: from manifests to what
nodes hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from bus import labels
from bus.addresses import Network, family
from bus.control import run_control
from bus.interface import Bus, Unanswered
from bus.messages.dataplane import Endpoint
from bus.messages.identity import AddressIdentity
from bus.messages.ipam import Block
from bus.messages.lb import LoadBalancedService
from bus.messages.policy import PolicyRules
from bus.messages.resources import Applied, Apply, Bind, Family, Namespace, Pod, PodStatus, Service
from bus.revision import Revision
from bus.subjects import ADDRESS, APPLY, BIND, ENDPOINT, FRONTEND, POD, POD_STATUS, RULES, SERVICE
from bus.testing import Hub
from services.identity.model import IdentityModel
from services.ipam.model import BlockAllocation, Pools
from services.lb.model import LoadBalancing
from services.policy.model import PolicyModel
from services.resources.handlers import run
from services.resources.settings import Settings
from tests.unit.resources.manifests import cilium, documents

NODE_ADDRESSES: dict[Family, str] = {"IPv4": "192.0.2.1", "IPv6": "2001:db8::1"}
POOLS = {"IPv4": Pools([IPv4Network("10.244.0.0/16")], 24), "IPv6": Pools([IPv6Network("fd00::/104")], 120)}
SERVICES: dict[Family, Network] = {"IPv4": IPv4Network("10.96.0.0/16"), "IPv6": IPv6Network("fd00:96::/112")}
POD_WEB = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: c, image: i}]}
"""
SERVICE_WEB = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, name: t}, {port: 80, name: s, protocol: SCTP}]
  ipFamilyPolicy: PreferDualStack
"""
PINGS = cilium("ingress: [{icmps: [{fields: [{type: EchoRequest, family: IPv6}]}]}, {fromEntities: [world-ipv6]}]")


class Nobody:
    """Hears how services are."""

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        pass

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        pass


@asynccontextmanager
async def control_plane(hub: Hub, families: Sequence[Family]) -> AsyncIterator[None]:
    settings = Settings({each: SERVICES[each] for each in families})
    models = (IdentityModel(), BlockAllocation(*(POOLS[each] for each in families)), LoadBalancing(), PolicyModel())
    running = [asyncio.create_task(run(hub.bus("resources"), settings, Nobody()))]
    running += [asyncio.create_task(run_control(hub.bus(model.owner), model)) for model in models]
    try:
        await until_answered(hub.bus("asker"))
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def until_answered(bus: Bus) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(Unanswered):
                await bus.ask(APPLY, message=Apply(documents=[]))
                return
            await asyncio.sleep(0.01)


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not so():
            await asyncio.sleep(0.01)


def node(families: Sequence[Family]) -> str:
    addresses = ", ".join(f"{{type: InternalIP, address: '{NODE_ADDRESSES[each]}'}}" for each in families)
    return f"{{apiVersion: v1, kind: Node, metadata: {{name: node1}}, status: {{addresses: [{addresses}]}}}}"


def taken(answer: Applied) -> None:
    assert not answer.refusals


@pytest.mark.parametrize("families", [("IPv4",), ("IPv6",), ("IPv4", "IPv6")], ids="+".join)
async def test_a_pod_and_its_service_have_addresses_of_every_family_that_is_on(families: tuple[Family, ...]) -> None:
    hub = Hub()
    async with control_plane(hub, families):
        bus = hub.bus("asker")
        apply = Apply(documents=documents("\n---\n".join((node(families), POD_WEB, SERVICE_WEB, PINGS))))
        taken(await bus.ask(APPLY, message=apply))
        pod = hub.states("resources")[POD.of("default", "web")]
        assert isinstance(pod, Pod)
        taken(await bus.ask(BIND, message=Bind(namespace="default", name="web", uid=pod.uid, node="node1")))

        await until(lambda: len(hub.states("ipam")) == len(families))
        blocks = [ip_network(each.cidr) for each in hub.states("ipam").values() if isinstance(each, Block)]
        own = [str(block[5]) for each in families for block in blocks if family(block) == each]
        assert len(own) == len(families)
        status = PodStatus(
            namespace="default",
            name="web",
            uid=pod.uid,
            phase="Running",
            ready=True,
            address=own[0],
            addresses=own,
            node="node1",
        )
        taken(await bus.ask(POD_STATUS, "node1", message=status))
        endpoint = Endpoint(
            node="node1", namespace="default", pod="web", uid=pod.uid, address=own[0], addresses=own, mac="",
            interface="", interface_index=1, identity=0, state="ready",
        )  # fmt: skip
        hub.put(ENDPOINT.of("node1", "default", "web"), endpoint)

        number = labels.number_of(labels.labels_text(labels.canonical_labels(pod, Namespace(name="default"))))
        where = {ADDRESS.of(each) for each in (*own, *(NODE_ADDRESSES[each] for each in families))}
        await until(lambda: where <= hub.states("identity").keys())
        for each, address in zip(families, own, strict=True):
            found = hub.states("identity")[ADDRESS.of(address)]
            assert isinstance(found, AddressIdentity)
            assert (found.identity, found.node_address) == (number, NODE_ADDRESSES[each])
            at_node = hub.states("identity")[ADDRESS.of(NODE_ADDRESSES[each])]
            assert isinstance(at_node, AddressIdentity)
            assert at_node.identity == labels.RESERVED["remote-node"]

        service = hub.states("resources")[SERVICE.of("default", "web")]
        assert isinstance(service, Service) and service.ip_families == list(families)

        def backends() -> dict[str, list[str]]:
            balanced = hub.states("lb").get(FRONTEND.of("default", "web"))
            frontends = balanced.frontends if isinstance(balanced, LoadBalancedService) else []
            return {
                f"{each.address} {each.protocol}": [backend.address for backend in each.backends] for each in frontends
            }

        wanted = {
            f"{address} {protocol}": [own[at]]
            for at, address in enumerate(service.cluster_addresses)
            for protocol in ("TCP", "SCTP")
        }
        await until(lambda: backends() == wanted)

        subject = RULES.of("CiliumNetworkPolicy", "default", "rule1")
        await until(lambda: subject in hub.states("policy"))
        said = hub.states("policy")[subject]
        assert isinstance(said, PolicyRules)
        assert [[(port.protocol, port.port) for port in rule.ports] for rule in said.rules] == [[("ICMPv6", 129)], []]
        assert said.rules[1].entities == ["world-ipv6"]
