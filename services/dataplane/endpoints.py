"""A pod's life on this node: created by CNI, its identity learned, its policy applied, ready, removed.

    waiting-for-identity -> waiting-for-policy -> ready -> (gone)

An endpoint without a policy is denied everything (`policy_id` 0). One whose identity changes keeps the policy that it
had until the new one is applied: the last good rules, never none. Only `ready` says that identity and policy belong
together.

`Endpoints` holds plain dictionaries: events go in, actions come out as values, in the order in which they must be
done. No I/O, no clock. A control loop that is interrupted between them may do them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

State = Literal["waiting-for-identity", "waiting-for-policy", "ready"]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A pod's place on this node; all that is needed to go on after a restart. One for each sandbox."""

    container_id: str
    ifname: str  # in the pod: "eth0"
    namespace: str
    pod: str
    uid: str = ""  # "" when the runtime did not say
    address: str  # "10.0.1.2"
    gateway: str  # "10.0.1.1"
    mac: str  # the pod's side
    interface: str  # the host side: "lxc..."
    interface_index: int
    interface_mac: str
    mtu_bytes: int
    created: int  # rises with each endpoint of this node: which of two sandboxes is newer
    identity: int = 0  # 0 while it is not known
    policy_id: int = 0  # what the kernel enforces; 0: everything is denied
    state: State = "waiting-for-identity"

    def to_record(self) -> dict[str, Any]:
        """For the journal."""
        record: dict[str, Any] = msgspec.to_builtins(self)
        return record

    @staticmethod
    def from_record(record: object) -> Endpoint:
        """Raises: ValueError: not an endpoint; the text names the field."""
        try:
            return msgspec.convert(record, Endpoint)
        except msgspec.ValidationError as failure:
            raise ValueError(f"endpoint: {failure}") from failure


class SecondInterface(Exception):
    """A sandbox asks for a second interface; it has one, and more are not offered."""


# Events


@dataclass(frozen=True, slots=True)
class Created:
    """CNI made it. `endpoint` with identity, policy and state as by default; `created` is set here."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class IdentityKnown:
    """A pod of this node has this identity now; also before its sandbox is there."""

    namespace: str
    pod: str
    identity: int
    uid: str = ""  # "": of whatever pod of that name


@dataclass(frozen=True, slots=True)
class PodGone:
    """The pod does not exist any more; its sandbox may, for a while."""

    namespace: str
    pod: str


@dataclass(frozen=True, slots=True)
class PolicyApplied:
    """The kernel holds the policy of this identity, under this id."""

    identity: int
    policy_id: int


@dataclass(frozen=True, slots=True)
class Removed:
    """CNI removed it, or its link is gone."""

    container_id: str


Event = Created | IdentityKnown | PodGone | PolicyApplied | Removed

# Actions


@dataclass(frozen=True, slots=True)
class Persist:
    """Make it durable; for a new endpoint, before ADD is answered."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Erase:
    """Forget it on disk, and give back its address."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Program:
    """Write its entries in the kernel."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Unprogram:
    """Remove its entries from the kernel, and its link."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Say:
    """Publish it as the endpoint of its pod."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Unsay:
    """The pod has no endpoint here."""

    namespace: str
    pod: str


@dataclass(frozen=True, slots=True)
class WantPolicy:
    """The first endpoint with this identity is here: apply its policy, then tell by `PolicyApplied`."""

    identity: int


@dataclass(frozen=True, slots=True)
class DropPolicy:
    """No endpoint here has, or still enforces, this identity's policy."""

    identity: int


Action = Persist | Erase | Program | Unprogram | Say | Unsay | WantPolicy | DropPolicy


class Endpoints:
    """All endpoints of this node."""

    def __init__(self) -> None:
        self._by_container: dict[str, Endpoint] = {}
        self._by_pod: dict[tuple[str, str], str] = {}  # namespace, pod -> container id
        self._identities: dict[tuple[str, str], tuple[str, int]] = {}  # namespace, pod -> uid, identity
        self._policies: dict[int, int] = {}  # applied: identity -> policy id
        self._wanted: set[int] = set()  # identities whose policies were asked for
        self._created = 0

    def get(self, container_id: str) -> Endpoint | None:
        return self._by_container.get(container_id)

    def of_pod(self, namespace: str, pod: str) -> Endpoint | None:
        container_id = self._by_pod.get((namespace, pod))
        return None if container_id is None else self._by_container[container_id]

    def all(self) -> list[Endpoint]:
        """In order of creation."""
        return sorted(self._by_container.values(), key=lambda endpoint: endpoint.created)

    def restore(self, endpoints: Iterable[Endpoint], *, policies_kept: bool) -> list[Action]:
        """Go on with what was durable before a restart. Of two sandboxes of one pod the newer stays.

        Args:
            policies_kept: the kernel still holds the policies that were applied (the maps are pinned). Without, as
                after a reboot, every endpoint is denied until its policy is applied again.
        """
        actions: list[Action] = []
        for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.created):
            actions += self._replace_sandbox(endpoint)
            if policies_kept and endpoint.state == "ready":
                self._policies[endpoint.identity] = endpoint.policy_id
            self._put(endpoint if policies_kept else _without_policy(endpoint))
            self._created = max(self._created, endpoint.created)
        for endpoint in self.all():
            actions += self._ask_policy(endpoint.identity)
            actions += [Program(endpoint), Say(endpoint)]
        return actions

    def handle(self, event: Event) -> list[Action]:
        """What is to be done about `event`, in this order; nothing when it changes nothing.

        Raises: SecondInterface: for Created; nothing is changed.
        """
        match event:
            case Created(endpoint):
                return self._create(endpoint)
            case IdentityKnown(namespace, pod, identity, uid):
                return self._learn_identity(namespace, pod, identity, uid)
            case PodGone(namespace, pod):
                self._identities.pop((namespace, pod), None)
                return []
            case PolicyApplied(identity, policy_id):
                return self._apply_policy(identity, policy_id)
            case Removed(container_id):
                return self._remove(container_id)

    def _create(self, endpoint: Endpoint) -> list[Action]:
        existing = self._by_container.get(endpoint.container_id)
        if existing is not None:
            if existing.ifname != endpoint.ifname:
                raise SecondInterface(
                    f"sandbox {endpoint.container_id} has {existing.ifname} already: {endpoint.ifname} is one too many"
                )
            mended = msgspec.structs.replace(
                endpoint,
                created=existing.created,
                identity=existing.identity,
                policy_id=existing.policy_id,
                state=existing.state,
            )
            return [] if mended == existing else self._change(mended)
        actions = self._replace_sandbox(endpoint)
        self._created += 1
        uid, identity = self._identities.get((endpoint.namespace, endpoint.pod), ("", 0))
        if not _same_pod(uid, endpoint.uid):
            identity = 0
        actions += self._ask_policy(identity)
        return actions + self._change(self._with_identity(endpoint, identity, created=self._created))

    def _replace_sandbox(self, newer: Endpoint) -> list[Action]:
        """The runtime made a new sandbox for the pod: the old one is dead, whether or not its DEL still comes."""
        older = self.of_pod(newer.namespace, newer.pod)
        if older is None or older.container_id == newer.container_id:
            return []
        del self._by_container[older.container_id]
        del self._by_pod[older.namespace, older.pod]
        return [Unprogram(older), Erase(older), *self._release_policies()]

    def _learn_identity(self, namespace: str, pod: str, identity: int, uid: str) -> list[Action]:
        self._identities[namespace, pod] = (uid, identity)
        endpoint = self.of_pod(namespace, pod)
        if endpoint is None or not _same_pod(uid, endpoint.uid) or endpoint.identity == identity:
            return []
        asked = self._ask_policy(identity)
        return [*asked, *self._change(self._with_identity(endpoint, identity)), *self._release_policies()]

    def _apply_policy(self, identity: int, policy_id: int) -> list[Action]:
        if identity not in self._wanted:
            return []  # the last endpoint with it left meanwhile
        self._policies[identity] = policy_id
        actions: list[Action] = []
        for endpoint in self.all():
            changed = self._with_identity(endpoint, endpoint.identity)
            if endpoint.identity == identity and changed != endpoint:
                actions += self._change(changed)
        return actions + self._release_policies()

    def _remove(self, container_id: str) -> list[Action]:
        endpoint = self._by_container.pop(container_id, None)
        if endpoint is None:
            return []
        del self._by_pod[endpoint.namespace, endpoint.pod]
        said = Unsay(endpoint.namespace, endpoint.pod)
        return [Unprogram(endpoint), said, Erase(endpoint), *self._release_policies()]

    def _with_identity(self, endpoint: Endpoint, identity: int, created: int = 0) -> Endpoint:
        policy_id = self._policies.get(identity, 0)
        state: State = "waiting-for-identity"
        if identity:
            state = "ready" if policy_id else "waiting-for-policy"
        return msgspec.structs.replace(
            endpoint,
            created=created or endpoint.created,
            identity=identity,
            policy_id=policy_id or endpoint.policy_id,
            state=state,
        )

    def _change(self, endpoint: Endpoint) -> list[Action]:
        self._put(endpoint)
        return [Persist(endpoint), Program(endpoint), Say(endpoint)]

    def _put(self, endpoint: Endpoint) -> None:
        self._by_container[endpoint.container_id] = endpoint
        self._by_pod[endpoint.namespace, endpoint.pod] = endpoint.container_id

    def _ask_policy(self, identity: int) -> list[Action]:
        if not identity or identity in self._wanted:
            return []
        self._wanted.add(identity)
        return [WantPolicy(identity)]

    def _release_policies(self) -> list[Action]:
        """Policies that no endpoint has or still enforces."""
        used = {endpoint.identity for endpoint in self._by_container.values()}
        enforced = {endpoint.policy_id for endpoint in self._by_container.values()}
        gone = [
            identity
            for identity in sorted(self._wanted - used)
            if self._policies.get(identity, 0) not in enforced - {0}
        ]
        for identity in gone:
            self._wanted.discard(identity)
            self._policies.pop(identity, None)
        return [DropPolicy(identity) for identity in gone]


def _without_policy(endpoint: Endpoint) -> Endpoint:
    state: State = "waiting-for-policy" if endpoint.identity else "waiting-for-identity"
    return msgspec.structs.replace(endpoint, policy_id=0, state=state)


def _same_pod(one: str, other: str) -> bool:
    return not one or not other or one == other
