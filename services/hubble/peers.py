"""Which observers there are, for relays: a node each, by its address. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bus.addresses import with_port
from bus.messages.resources import Node
from services.hubble.api import peer_pb2 as api

PORT = 4244
SERVER_SUFFIX = "hubble-grpc.cilium.io"  # what clients of the public API expect certificates to be made out to


@dataclass(frozen=True, slots=True)
class Peer:
    name: str  # as in the flows of the node
    address: str  # "192.0.2.1:4244"
    server_name: str = ""  # on its certificate; "": it speaks in the clear


def node_name(node: str, cluster: str) -> str:
    """As clients see it."""
    return node if cluster == "default" else f"{cluster}/{node}"


def server_name(node: str, cluster: str = "default") -> str:
    """What the certificate of the node's observer is made out to."""
    return f"{node.replace('.', '-')}.{cluster}.{SERVER_SUFFIX}"


def peers(
    nodes: Mapping[str, Node], *, cluster: str = "default", port: int = PORT, tls: bool = False
) -> dict[str, Peer]:
    """Those with an address, by name."""
    found = {}
    for node in nodes.values():
        if node.addresses:
            name = node_name(node.name, cluster)
            found[name] = Peer(name, with_port(node.addresses[0], port), server_name(node.name, cluster) if tls else "")
    return found


def changes(before: Mapping[str, Peer], after: Mapping[str, Peer]) -> Iterator[api.ChangeNotification]:
    """What a relay is told, in order of names; those that are gone come first."""
    for name in sorted(before.keys() - after.keys()):
        yield _notification(before[name], api.PEER_DELETED)
    for name in sorted(after):
        if name not in before:
            yield _notification(after[name], api.PEER_ADDED)
        elif before[name] != after[name]:
            yield _notification(after[name], api.PEER_UPDATED)


def _notification(peer: Peer, kind: api.ChangeNotificationType) -> api.ChangeNotification:
    found = api.ChangeNotification(name=peer.name, address=peer.address, type=kind)
    if peer.server_name:
        found.tls.server_name = peer.server_name
    return found
