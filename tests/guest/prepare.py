"""`python -m tests.guest.prepare`: compile, before the guest boots, what its tests load there."""

from __future__ import annotations

from pathlib import Path

from bench.programs import compile_all, configurations, write
from services.dataplane.load.loader import DatapathConfig

PROGRAMS = Path("build/guest/programs.json")
NODE_PROGRAMS = Path("build/guest/nodes.json")

# Of test_geneve.py: each node's addresses, and the numbers of its devices: the kernel gives 2 and 3 to the first ones
# that are made in a fresh namespace.
NODES = {"node1": ("192.0.2.1", "2001:db8::1"), "node2": ("192.0.2.2", "2001:db8::2")}
UNDERLAYS = (4, 6)
DEVICE_INDEX, TUNNEL_INDEX = 2, 3


def programs_of(node: str, underlay: int) -> str:
    """The name of a configuration."""
    return f"{node} over IPv{underlay}"


def main() -> None:
    nodes = {
        programs_of(name, underlay): DatapathConfig(
            node_address=address,
            node_address6=address6,
            ipv6=True,
            device_index=DEVICE_INDEX,
            tunnel_index=TUNNEL_INDEX,
            underlay_ipv6=underlay == 6,
        )
        for name, (address, address6) in NODES.items()
        for underlay in UNDERLAYS
    }
    PROGRAMS.parent.mkdir(parents=True, exist_ok=True)
    write(compile_all(configurations()), PROGRAMS)
    write(compile_all(nodes), NODE_PROGRAMS)


if __name__ == "__main__":
    main()
