"""`python -m tests.guest.prepare`: build, before the guest boots, what its tests load there."""

from __future__ import annotations

import asyncio

from services.dataplane.load.build import build
from services.dataplane.load.loader import DatapathConfig

# Of test_geneve.py: each node's addresses, and the numbers of its devices: the kernel gives 2 and 3 to the first ones
# that are made in a fresh namespace.
NODES = {"node1": ("192.0.2.1", "2001:db8::1"), "node2": ("192.0.2.2", "2001:db8::2")}
UNDERLAYS = (4, 6)
DEVICE_INDEX, TUNNEL_INDEX = 2, 3


def programs_of(node: str, underlay: int) -> str:
    """The name of a configuration."""
    return f"{node} over IPv{underlay}"


def configuration(name: str) -> DatapathConfig:
    """Raises: KeyError: it is none of `programs_of`."""
    nodes = {
        programs_of(node, underlay): DatapathConfig(
            node_address=address,
            node_address6=address6,
            ipv6=True,
            device_index=DEVICE_INDEX,
            tunnel_index=TUNNEL_INDEX,
            underlay_ipv6=underlay == 6,
        )
        for node, (address, address6) in NODES.items()
        for underlay in UNDERLAYS
    }
    return nodes[name]


if __name__ == "__main__":
    asyncio.run(build())
