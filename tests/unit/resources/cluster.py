"""The store with plans carried out at once, as the only writer does."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import count

from bus.control import Claim, Say
from bus.messages.resources import ClusterAddress, Pod, Service
from bus.subjects import POD, SERVICE
from services.resources.addresses import Networks
from services.resources.manifests.document import read_document
from services.resources.manifests.meta import Resource
from services.resources.model import Plan, plan_apply, plan_delete, plan_tidy
from services.resources.store import Store
from settings.ports import Ports
from tests.unit.resources.manifests import documents

NETWORK = IPv4Network("10.96.0.0/24")
PORTS = Ports(30_000, 32_767)


class Cluster:
    """See the module."""

    def __init__(self, networks: Networks | None = None, ports: Ports = PORTS) -> None:
        self.networks = networks or {"IPv4": NETWORK}
        self.ports = ports
        self.store = Store()
        self._uids = count(1)
        self.do(plan_tidy(self.store))

    def do(self, plan: Plan) -> Plan:
        for step in plan.steps:
            if isinstance(step, Claim):
                assert self.store.get(step.subject) is None
            if isinstance(step, (Claim, Say)):
                self.store.put(step.subject, step.message)
            else:
                self.store.delete(step.subject)
        return plan

    def resources(self, text: str, to_delete: bool = False) -> list[Resource]:
        found = [read_document(each, to_delete) for each in documents(text)]
        assert all(isinstance(each, Resource) for each in found), found
        return [each for each in found if isinstance(each, Resource)]

    def plan(self, *texts: str) -> Plan:
        resources = self.resources("\n---\n".join(texts))
        return plan_apply(self.store, resources, self.networks, lambda: f"uid-{next(self._uids)}", self.ports)

    def apply(self, *texts: str) -> dict[str, str]:
        """Name -> what became of it; nothing may be refused."""
        plan = self.do(self.plan(*texts))
        assert not plan.refusals
        return {each.name: each.change for each in plan.outcomes}

    def refused(self, *texts: str) -> dict[str, str]:
        """Path -> problem; nothing may be changed."""
        plan = self.plan(*texts)
        assert plan.steps == () and plan.refusals
        return {each.path: each.problem for each in plan.refusals}

    def delete(self, *texts: str) -> dict[str, str]:
        plan = self.do(plan_delete(self.store, self.resources("\n---\n".join(texts), to_delete=True)))
        assert not plan.refusals
        return {each.name: each.change for each in plan.outcomes}

    def pod(self, name: str = "p") -> Pod:
        found = self.store.get(POD.of("default", name))
        assert isinstance(found, Pod)
        return found

    def service(self, name: str = "svc", namespace: str = "default") -> Service:
        found = self.store.get(SERVICE.of(namespace, name))
        assert isinstance(found, Service)
        return found

    def address(self, name: str = "svc", namespace: str = "default") -> str:
        found = self.service(name, namespace)
        return found.cluster_addresses[0] if found.cluster_addresses else ""

    def held(self) -> set[str]:
        """Addresses that are claimed, by whomever."""
        return {message.address for _, message in self.store.items() if isinstance(message, ClusterAddress)}
