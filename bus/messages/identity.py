"""identity: label sets have numbers, addresses have identities."""

from __future__ import annotations

from bus.messages import Message
from bus.messages.resources import ContainerPort


class Identity(Message, frozen=True, kw_only=True):
    """A label set's number, the same in the whole cluster; made by compare-and-set.

    Subject: state.identity.identity.<number>
    """

    number: int  # 256 .. 2**24 - 1
    labels: dict[str, str]  # canonical keys: "k8s:app", "k8s:io.kubernetes.pod.namespace"...


class AddressIdentity(Message, frozen=True, kw_only=True):
    """Who an address is (the ipcache). Subject: state.identity.address.<address>"""

    address: str  # "10.0.1.2" or "fd00::2", no prefix length: pods and nodes only
    identity: int
    node: str  # where it lives
    node_address: str  # tunnel endpoint and next hop, of the same family if the node has one: "192.0.2.1"
    pod: str = ""  # "namespace/name", "" for a node's own address
    ports: list[ContainerPort] = []  # those of the pod that have a name; a policy that names one is judged by them
