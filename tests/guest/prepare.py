"""`python -m tests.guest.prepare`: compile, before the guest boots, what its tests load there."""

from __future__ import annotations

from pathlib import Path

from bench.programs import compile_all, configurations, write
from services.dataplane.loader import DatapathConfig

PROGRAMS = Path("build/guest/programs.json")

# Of test_geneve.py: each node's address, and the numbers that it gives to its devices.
NODES = {"node1": "192.0.2.1", "node2": "192.0.2.2"}
DEVICE_INDEX, TUNNEL_INDEX = 10, 11


def main() -> None:
    nodes = {
        name: DatapathConfig(node_address=address, device_index=DEVICE_INDEX, tunnel_index=TUNNEL_INDEX)
        for name, address in NODES.items()
    }
    PROGRAMS.parent.mkdir(parents=True, exist_ok=True)
    write(compile_all(configurations() | nodes), PROGRAMS)


if __name__ == "__main__":
    main()
