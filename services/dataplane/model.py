"""What this node's maps should hold, as a function of what was heard and of the pods that live here. Pure.

`put` and `delete` (part.py) take what the bus says, `add_pod` and `remove_pod` what the container runtime asks. By
`settle` the tables of all parts are up to date: a burst of changes on one identity is one expansion of its policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bus.messages.dataplane import ClosedDirection
from services.dataplane.part import Facts, LocalPod, Parts
from services.dataplane.parts.announcements import Announcements
from services.dataplane.parts.connections import Connections
from services.dataplane.parts.counters import Counters
from services.dataplane.parts.devices import Devices
from services.dataplane.parts.endpoints import Endpoints, EndpointState
from services.dataplane.parts.host_ports import NodesPorts
from services.dataplane.parts.ipcache import Ipcache
from services.dataplane.parts.masquerade import Masquerade
from services.dataplane.parts.people import People
from services.dataplane.parts.policy.again import Judged
from services.dataplane.parts.policy.entries import EndpointPolicy
from services.dataplane.parts.policy.expansion import Policy
from services.dataplane.parts.policy.naming import Naming
from services.dataplane.parts.routes import Routes
from services.dataplane.parts.routing import ONE_FAMILY_ANYWHERE, Routing
from services.dataplane.parts.services import Services
from services.dataplane.shapes.ip import Network


class NodeModel(Parts):
    """The one list of a node's parts, each after those whose facts it follows; and what is asked of them together."""

    def __init__(
        self,
        node: str,
        own_addresses: frozenset[str] = frozenset(),
        routing: Routing = ONE_FAMILY_ANYWHERE,
        not_masqueraded: Iterable[str] = (),
        *,
        announces: bool = False,
    ) -> None:
        """`not_masqueraded`: destinations, as CIDRs of either family, that see pods' own addresses. `announces`: it
        answers for addresses of Services on its devices' networks."""
        facts = Facts()
        self.pods = facts.pods.keep()
        self.routes = Routes(node, routing)
        self.devices = Devices(None if routing.tunnel else self.routes.elsewhere, node, facts.uplinks.keep())
        self.people = People(facts, node)
        self.policy = Policy(facts)
        self.network = Ipcache(facts, node, own_addresses, routing)
        self.named = Naming(facts, self.policy.expanded)
        self.services = Services(node, own_addresses)
        self.announcements = Announcements(facts, node, is_on=announces)
        self.endpoints = Endpoints(facts)
        super().__init__(
            Masquerade(not_masqueraded),  # which destinations see pods' own addresses; translations
            self.routes,  # by which nodes' addresses the blocks of others are reached
            self.devices,  # by which of the node's devices packets leave, and what they bear there
            self.people,  # who the pods of this node are
            self.policy,  # who may speak to whom
            self.network,  # who is at which address, and by way of which node
            self.named,  # what pods call their ports
            NodesPorts(facts, node, self.services),  # ports of nodes that lead to one pod
            self.announcements,  # addresses of Services that the node answers for
            self.services,  # frontends and their backends
            self.endpoints,  # which pods are here, and under which policy
            Connections(),  # which there are; programs write them
            Counters(),  # what was let through and dropped, and why; programs count it
        )
        self.closed = facts.closed
        self._identity = facts.identity
        self.judged = Judged(self.tables, own_addresses)

    def reach(self, networks: Iterable[Network], near: Iterable[Network]) -> None:
        """Where neighbours are now: on the node's own device, and on others that lead out."""
        routing = replace(self.routes.routing, networks=tuple(networks), near=tuple(near))
        self.network.send_by(routing)
        self.routes.send_by(routing)

    # What the container runtime asks

    def add_pod(self, pod: LocalPod) -> None:
        for address in pod.addresses:
            self.pods.put(address, pod)
        self.endpoints.made(pod.addresses)

    def restore_pod(self, pod: LocalPod) -> None:
        """It was here before a restart: what the kernel holds of it stays until all has been heard (`synced`)."""
        for address in pod.addresses:
            self.pods.put(address, pod)
        self.endpoints.restored(pod.addresses)

    def remove_pod(self, address: str) -> None:
        """The pod that has `address` goes, with all of its addresses."""
        pod = self.pods.get(address)
        if pod is not None:
            for each in pod.addresses:
                self.pods.delete(each)
            self.endpoints.made(pod.addresses)

    # What follows from it

    def settle(self) -> list[LocalPod]:
        """Bring the tables up to date. Returns the pods of this node of which something may have changed.

        What fails is told in `problems`, keeps what the tables held of it (nothing, for a new pod: it is closed), and
        is tried again by the next call; the rest is not touched by that.
        """
        self.settle_parts()
        found = (self.pods.get(address) for address in self.endpoints.changed)
        return list(dict.fromkeys(pod for pod in found if pod is not None))

    def identity_of(self, address: str) -> int:
        """The identity of the pod at `address`, as of the last `settle`; 0 while its labels or number are not known."""
        return self._identity.get(address, 0)

    def state_of(self, address: str) -> EndpointState:
        """How far the pod at `address` has come, as of the last `settle`."""
        return self.endpoints.state_of(address)

    def closed_of(self, address: str) -> tuple[ClosedDirection, ...]:
        """Directions of the pod at `address` that are denied as a whole, whatever policy says."""
        return self.endpoints.closed_of(address)

    def policy_of(self, identity: int) -> EndpointPolicy | None:
        """What the policy table holds for a local identity."""
        return self.policy.expanded.get(identity)
