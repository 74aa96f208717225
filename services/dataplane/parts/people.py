"""Who the pods of this node are: the identity that stands for the labels of each. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Final

from bus import subjects
from bus.labels import IDENTITY_MAX, IDENTITY_MIN, canonical_labels, labels_text
from bus.messages.identity import Identity
from bus.messages.resources import Namespace, Pod
from services.dataplane.part import Facts, Hears, LocalPod, Part


class People(Part):
    """Keeps `identity`, `local` and `ports`.

    Args:
        node: this one; pods that are bound to others are nobody here.
    """

    by_rules = True

    def __init__(self, facts: Facts, node: str) -> None:
        super().__init__()
        self.hears = (
            Hears(subjects.NAMESPACE, self._put_namespace, self._delete_namespace),
            Hears(subjects.POD, self._put_pod, self._delete_pod),
            Hears(subjects.IDENTITY, self._put_identity, self._delete_identity, check_range),
        )
        self.identities: dict[int, Identity] = {}
        self._node = node
        self._numbers: dict[str, int] = {}  # label set as text -> identity
        self._namespaces: dict[str, Namespace] = {}
        self._resources: dict[tuple[str, str], Pod] = {}  # pods bound to this node
        self._living: Counter[int] = Counter()  # pods here, by identity
        self._pods = facts.pods
        self._stale: Final = facts.pods.follow()
        self._identity = facts.identity.keep()
        self._local = facts.local.keep()
        self._ports = facts.ports.keep()

    def settle(self) -> None:
        self.settle_each(self._stale, "who is at", self._settle_one)

    def _put_namespace(self, namespace: Namespace) -> None:
        self._namespaces[namespace.name] = namespace
        self._touch(namespace.name)

    def _delete_namespace(self, name: str) -> None:
        self._namespaces.pop(name, None)
        self._touch(name)

    def _put_pod(self, pod: Pod) -> None:
        key = (pod.namespace, pod.name)
        before = self._resources.get(key)
        if pod.node != self._node:
            if before is None:
                return
            del self._resources[key]
        else:
            self._resources[key] = pod
            if before is not None and (before.labels, before.uid, before.ports) == (pod.labels, pod.uid, pod.ports):
                return
        self._touch(pod.namespace)

    def _delete_pod(self, namespace: str, name: str) -> None:
        self._resources.pop((namespace, name), None)
        self._touch(namespace)

    def _touch(self, namespace: str) -> None:
        self._stale.update(address for address, pod in self._pods.items() if pod.namespace == namespace)

    def _put_identity(self, identity: Identity) -> None:
        before = self.identities.get(identity.number)
        if before is not None and before.labels != identity.labels:
            self._forget(before)
        self.identities[identity.number] = identity
        self._numbers[labels_text(identity.labels)] = identity.number
        self._stale.update(address for address in self._pods if address not in self._identity)

    def _delete_identity(self, number: str) -> None:
        gone = self.identities.pop(int(number), None) if number.isdecimal() else None
        if gone is not None:
            self._forget(gone)

    def _forget(self, gone: Identity) -> None:
        """The label set has this number no more."""
        if self._numbers.get(labels_text(gone.labels)) == gone.number:
            del self._numbers[labels_text(gone.labels)]
        self._stale.update(address for address, number in self._identity.items() if number == gone.number)

    def _settle_one(self, address: str) -> None:
        """Follow which identities live here, and in how many pods."""
        pod = self._pods.get(address)
        before, after = self._identity.get(address, 0), self._number_of(pod) if pod else 0
        if pod and after:
            known = self._resources.get((pod.namespace, pod.name))
            self._local.put(after, self.identities[after].labels)
            self._identity.put(address, after)
            self._ports.put(address, known.ports if known else [])
        else:
            self._identity.delete(address)
            self._ports.delete(address)
        if before == after:
            return
        if after:
            self._living[after] += 1
        if before:
            self._living[before] -= 1
            if not self._living[before]:
                del self._living[before]
                self._local.delete(before)

    def _number_of(self, pod: LocalPod) -> int:
        if not pod.namespace:
            return pod.identity if pod.identity in self.identities else 0
        resource = self._resources.get((pod.namespace, pod.name))
        namespace = self._namespaces.get(pod.namespace)
        if resource is None or namespace is None or (pod.uid and resource.uid and pod.uid != resource.uid):
            return 0
        return self._numbers.get(labels_text(canonical_labels(resource, namespace)), 0)


def check_range(identity: Identity) -> None:
    if not IDENTITY_MIN <= identity.number <= IDENTITY_MAX:
        raise ValueError(f"{identity.number} is not the identity of a label set")
