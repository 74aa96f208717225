"""What this node's maps should hold, as a function of what was heard and of the pods that live here. Pure.

`put` and `delete` take what the bus says, `add_pod` and `remove_pod` what the container runtime asks. `settle` brings
the tables of all parts up to date: a burst of changes on one identity is one expansion of its policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bus.messages import Message
from bus.subjects import State
from services.dataplane.part import Facts, Held, LocalPod, Parts, Shows, in_order
from services.dataplane.parts.connections import Connections
from services.dataplane.parts.counters import Counters
from services.dataplane.parts.endpoints import Endpoints, EndpointState
from services.dataplane.parts.ipcache import ONE_FAMILY_ANYWHERE, Ipcache, Routing
from services.dataplane.parts.masquerade import Masquerade
from services.dataplane.parts.people import People
from services.dataplane.parts.policy.entries import EndpointPolicy
from services.dataplane.parts.policy.expansion import Policy
from services.dataplane.parts.policy.naming import Naming
from services.dataplane.parts.services import Services


class NodeModel:
    """The parts of a node, each after those whose facts it follows."""

    def __init__(
        self,
        node: str,
        own_addresses: frozenset[str] = frozenset(),
        routing: Routing = ONE_FAMILY_ANYWHERE,
        not_masqueraded: Iterable[str] = (),
    ) -> None:
        """`not_masqueraded`: destinations, as CIDRs of either family, that see pods' own addresses."""
        facts = Facts()
        self.pods = facts.pods.keep()
        self.network = Ipcache(node, own_addresses, routing)
        self.people = People(facts, node)
        self.policy = Policy(facts)
        self.named = Naming(facts, self.policy.expanded)
        self.services = Services()
        self.endpoints = Endpoints(facts)
        self._parts = Parts(
            Masquerade(not_masqueraded),
            self.network,
            self.people,
            self.policy,
            self.named,
            self.services,
            self.endpoints,
            Connections(),
            Counters(),
        )
        self._identity = facts.identity
        self.tables = in_order(self._parts.tables)
        """In the order in which they are written."""

    @property
    def hears(self) -> tuple[State[Message], ...]:
        """Families of subjects, as its parts say."""
        return self._parts.hears

    @property
    def by_rules(self) -> tuple[str, ...]:
        """Names of the tables that rules of nftables are made of (fallback/)."""
        return self._parts.by_rules

    @property
    def not_by_rules(self) -> tuple[str, ...]:
        """What such rules cannot do."""
        return self._parts.not_by_rules

    @property
    def shown(self) -> Mapping[str, Shows]:
        """What `plexus bpf` shows, by name."""
        return self._parts.shown

    def adopt(self, held: Held) -> None:
        """Before anything is heard: what a process before this one left in the maps."""
        self._parts.adopt(held)

    # What the bus says

    def put(self, subject: str, message: Message) -> None:
        """See `Parts.put`."""
        self._parts.put(subject, message)

    def delete(self, subject: str) -> None:
        """See `Parts.delete`."""
        self._parts.delete(subject)

    def synced(self) -> None:
        """All that there is has been heard once: from here on "no policy" may mean "open"."""
        self._parts.synced()

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
        self._parts.settle()
        found = (self.pods.get(address) for address in self.endpoints.changed)
        return list(dict.fromkeys(pod for pod in found if pod is not None))

    @property
    def problems(self) -> dict[str, str]:
        """What the last `settle` could not bring up to date, and why."""
        return self._parts.problems

    def identity_of(self, address: str) -> int:
        """The identity of the pod at `address`, as of the last `settle`; 0 while its labels or number are not known."""
        return self._identity.get(address, 0)

    def state_of(self, address: str) -> EndpointState:
        """How far the pod at `address` has come, as of the last `settle`."""
        return self.endpoints.state_of(address)

    def policy_of(self, identity: int) -> EndpointPolicy | None:
        """What the policy table holds for a local identity."""
        return self.policy.expanded.get(identity)
