"""From manifests to who is reached where, with the services on one bus (in memory), two replicas of ipam among them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from typing import Any

from bus.control import run_control
from bus.interface import Bus, Unanswered
from bus.messages.ipam import AddressRequest, PoolUse, ServiceAddress
from bus.messages.lb import LoadBalancedService
from bus.messages.resources import Applied, Apply, Service
from bus.revision import Revision
from bus.subjects import ADDRESS_REQUEST, APPLY, FRONTEND, POOL_USE, SERVICE
from bus.testing import Hub
from cli.get import kind_named, read
from cli.session import Session, Target
from services.ipam.model import BlockAllocation, Pools
from services.ipam.service_addresses import ServiceAddresses
from services.ipam.together import Together
from services.lb.model import LoadBalancing
from services.resources.handlers import run
from services.resources.settings import Settings
from tests.unit.resources.manifests import documents

POOL = """
apiVersion: cilium.io/v2
kind: CiliumLoadBalancerIPPool
metadata: {name: blue}
spec: {blocks: [{cidr: 10.10.200.0/29}], allowFirstLastIPs: "No"}
"""


def balancer(name: str, annotations: str = "", ports: str = "{port: 80}") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec: {{type: LoadBalancer, selector: {{app: {name}}}, ports: [{ports}]}}
"""


class Nobody:
    """Hears how services are."""

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        pass

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        pass


@asynccontextmanager
async def services(hub: Hub) -> AsyncIterator[Bus]:
    pools = Pools([IPv4Network("10.244.0.0/16")], 24)
    running = [asyncio.create_task(run(hub.bus("resources"), Settings(), Nobody()))]
    running += [
        asyncio.create_task(run_control(hub.bus(f"ipam{at}"), Together(BlockAllocation(pools), ServiceAddresses())))
        for at in range(2)
    ]
    running.append(asyncio.create_task(run_control(hub.bus("lb"), LoadBalancing())))
    try:
        yield hub.bus("user")
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def ask(bus: Bus, text: str, delete: bool = False) -> Applied:
    """Waits for whoever answers to be there."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await bus.ask(APPLY, message=Apply(documents=documents(text), delete=delete))
            except Unanswered:
                await asyncio.sleep(0)


async def until(so: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not so():
            await asyncio.sleep(0)


def holders(hub: Hub) -> dict[str, list[str]]:
    said = (each for each in hub.states("ipam").values() if isinstance(each, ServiceAddress))
    return {each.address: [one.name for one in each.services] for each in said}


def exposed(hub: Hub, name: str) -> list[str]:
    made = hub.states("lb").get(FRONTEND.of("default", name))
    return [each.address for each in made.exposures if each.address] if isinstance(made, LoadBalancedService) else []


async def test_services_are_given_addresses_of_the_pool_and_are_reached_there_and_nowhere_after_it() -> None:
    hub = Hub()
    async with services(hub) as bus:
        applied = await ask(bus, "\n---\n".join((balancer("a"), balancer("b"), balancer("c"), POOL)))
        assert not applied.refusals
        expected = {"10.10.200.1": ["a"], "10.10.200.2": ["b"], "10.10.200.3": ["c"]}
        await until(lambda: holders(hub) == expected)
        await until(lambda: [exposed(hub, each) for each in "abc"] == [[each] for each in expected])
        wish = "lbipam.cilium.io/ips: 10.10.200.6, lbipam.cilium.io/sharing-key: k"
        await ask(bus, balancer("d", wish) + "\n---\n" + balancer("e", wish, "{port: 81}"))
        await until(lambda: exposed(hub, "d") == exposed(hub, "e") == ["10.10.200.6"])
        await until(lambda: is_told(hub, "e"))
        (kind, pools) = kind_named("svc"), kind_named("ippool")
        session = Session(hub.bus("cli"), Target("t", "memory:"))
        shown = {each["metadata"]["name"]: each["status"] for each in await read(session, kind)}
        assert shown["e"]["loadBalancer"] == {"ingress": [{"ip": "10.10.200.6"}]}
        assert shown["a"]["conditions"][0]["status"] == "True"
        await until(lambda: used(hub) == "4")
        (pool,) = await read(session, pools)
        assert (pool["plexus"]["total"], pool["plexus"]["used"], pool["plexus"]["available"]) == (6, 4, 2)
        await ask(bus, balancer("a"), delete=True)
        await until(lambda: "10.10.200.1" not in holders(hub))
        await ask(bus, POOL, delete=True)
        await until(lambda: not holders(hub) and not any(exposed(hub, each) for each in "bcde"))
        assert isinstance(hub.states("resources")[SERVICE.of("default", "b")], Service), "it waits for another pool"


def is_told(hub: Hub, name: str) -> bool:
    found = hub.states("ipam").get(ADDRESS_REQUEST.of("default", name))
    return isinstance(found, AddressRequest) and found.satisfied


def used(hub: Hub) -> str:
    found = hub.states("ipam").get(POOL_USE.of("blue"))
    return found.used if isinstance(found, PoolUse) else ""
