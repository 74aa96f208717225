"""The address plan of a lab. Pure.

A slot number, taken under a lock, keeps labs that run side by side apart:

    pods          10.(128+slot).0.0/16    handed out by the ipam service in blocks
    services      10.(64+slot).0.0/16     ClusterIPs
    nodes' LAN    172.20.slot.0/24        .1 router, .2 control host (bus, control services), .3 the LAN's own host,
                                          .11 node1, .12 node2 ...
    outside       172.21.slot.0/24        .1 router, .10 the outside host
    management    169.254.(64+slot).0/30  .1 this machine's root namespace, .2 the control host

Only the management network is seen in the root namespace: the command line reaches the bus over it. The router knows
the LAN and the outside, not the pods, so what leaves a pod for the outside must be masqueraded, as on most networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

SLOTS = 32
MOST_NODES = 200
BUS_PORT = 4222
DEVICE = "eth0"  # every host's outward device
_FIRST_NODE = 11  # last octet of node1


@dataclass(frozen=True)
class Plan:
    """All addresses of the lab in `slot` (0 .. SLOTS - 1)."""

    slot: int

    @property
    def pods(self) -> IPv4Network:
        return IPv4Network(f"10.{128 + self.slot}.0.0/16")

    @property
    def services(self) -> IPv4Network:
        return IPv4Network(f"10.{64 + self.slot}.0.0/16")

    @property
    def lan(self) -> IPv4Network:
        return IPv4Network(f"172.20.{self.slot}.0/24")

    @property
    def outside(self) -> IPv4Network:
        return IPv4Network(f"172.21.{self.slot}.0/24")

    @property
    def management(self) -> IPv4Network:
        return IPv4Network(f"169.254.{64 + self.slot}.0/30")

    @property
    def router(self) -> IPv4Interface:
        return within(self.lan, 1)

    @property
    def control(self) -> IPv4Interface:
        return within(self.lan, 2)

    @property
    def lan_host(self) -> IPv4Interface:
        return within(self.lan, 3)

    @property
    def outside_router(self) -> IPv4Interface:
        return within(self.outside, 1)

    @property
    def outside_host(self) -> IPv4Interface:
        return within(self.outside, 10)

    @property
    def management_root(self) -> IPv4Interface:
        return within(self.management, 1)

    @property
    def management_control(self) -> IPv4Interface:
        return within(self.management, 2)

    def node(self, number: int) -> IPv4Interface:
        """node<number>'s address in the LAN. Raises ValueError beyond MOST_NODES."""
        if not 1 <= number <= MOST_NODES:
            raise ValueError(f"a lab has 1 to {MOST_NODES} nodes, not {number}")
        return within(self.lan, _FIRST_NODE + number - 1)

    @property
    def bus_url(self) -> str:
        """Where hosts in the LAN find the bus."""
        return f"nats://{self.control.ip}:{BUS_PORT}"

    @property
    def management_bus_url(self) -> str:
        """Where this machine's root namespace finds the bus."""
        return f"nats://{self.management_control.ip}:{BUS_PORT}"

    def networks(self) -> tuple[IPv4Network, ...]:
        """Everything but the pods and services, which settings may move."""
        return (self.lan, self.outside, self.management)


def within(network: IPv4Network, number: int) -> IPv4Interface:
    """The address `number` of `network`, with its prefix length."""
    return IPv4Interface((IPv4Address(int(network.network_address) + number), network.prefixlen))
