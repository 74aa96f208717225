"""The address plan of a lab. Pure.

A slot number, taken under a lock, keeps labs that run side by side apart:

                  IPv4                   IPv6
    pods          10.(128+slot).0.0/16   fd00:10:slot::/104   handed out by the ipam service in blocks
    services      10.(64+slot).0.0/16    fd00:64:slot::/112   ClusterIPs
    nodes' LAN    172.20.slot.0/24       fd00:20:slot::/64    .1 router, .2 control host (bus, control services),
                                                              .3 the LAN's own host, .11 node1, .12 node2 ...
    second LAN    172.22.slot.0/24       fd00:22:slot::/64    .1 router; node2, node4 ... in a lab of two subnets
    outside       172.21.slot.0/24       fd00:21:slot::/64    .1 router, .10 the outside host
    management    169.254.(64+slot).0/30                      .1 this machine's root namespace, .2 the control host

The numbers above are an address's last octet, in decimal, or its last group, written with the same digits: node1 is
172.20.0.11 and fd00:20::11 in slot 0. A lab has the networks of the families that are enabled, and no others.

Only the management network is seen in the root namespace: the command line reaches the bus over it, by IPv4 in every
lab, for it is no part of the cluster. Hosts in the LAN find the bus by the cluster's own family. The router knows the
LANs and the outside, not the pods, so what leaves a pod for the outside must be masqueraded, as on most networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface
from typing import Literal

Family = Literal[4, 6]
Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

SLOTS = 32
MOST_NODES = 200
MOST_SUBNETS = 2
BUS_PORT = 4222
DEVICE = "eth0"  # every host's outward device
FAMILIES: tuple[Family, ...] = (4, 6)
_FIRST_NODE = 11  # last octet or group of node1
_LANS = (20, 22)  # second octet or group, by subnet


@dataclass(frozen=True)
class Plan:
    """All addresses of the lab in `slot` (0 .. SLOTS - 1) whose nodes are in `subnets` LANs by turns."""

    slot: int
    subnets: int = 1

    def pods(self, family: Family) -> Network:
        return IPv4Network(f"10.{128 + self.slot}.0.0/16") if family == 4 else IPv6Network(f"fd00:10:{self.slot}::/104")

    def services(self, family: Family) -> Network:
        return IPv4Network(f"10.{64 + self.slot}.0.0/16") if family == 4 else IPv6Network(f"fd00:64:{self.slot}::/112")

    def lan(self, family: Family, subnet: int = 0) -> Network:
        return self._segment(family, _LANS[subnet])

    def outside(self, family: Family) -> Network:
        return self._segment(family, 21)

    def _segment(self, family: Family, number: int) -> Network:
        if family == 4:
            return IPv4Network(f"172.{number}.{self.slot}.0/24")
        return IPv6Network(f"fd00:{number}:{self.slot}::/64")

    @property
    def management(self) -> IPv4Network:
        return IPv4Network(f"169.254.{64 + self.slot}.0/30")

    def router(self, family: Family, subnet: int = 0) -> Interface:
        return within(self.lan(family, subnet), 1)

    def control(self, family: Family) -> Interface:
        return within(self.lan(family), 2)

    def lan_host(self, family: Family) -> Interface:
        return within(self.lan(family), 3)

    def outside_router(self, family: Family) -> Interface:
        return within(self.outside(family), 1)

    def outside_host(self, family: Family) -> Interface:
        return within(self.outside(family), 10)

    @property
    def management_root(self) -> Interface:
        return within(self.management, 1)

    @property
    def management_control(self) -> Interface:
        return within(self.management, 2)

    def subnet_of(self, number: int) -> int:
        """Which LAN node<number> is in."""
        return (number - 1) % self.subnets

    def node(self, number: int, family: Family) -> Interface:
        """node<number>'s address in its LAN. Raises ValueError beyond MOST_NODES."""
        if not 1 <= number <= MOST_NODES:
            raise ValueError(f"a lab has 1 to {MOST_NODES} nodes, not {number}")
        return within(self.lan(family, self.subnet_of(number)), _FIRST_NODE + number - 1)

    def bus_url(self, family: Family) -> str:
        """Where hosts in the LAN find the bus."""
        address = str(self.control(family).ip)
        return f"nats://{f'[{address}]' if family == 6 else address}:{BUS_PORT}"

    @property
    def management_bus_url(self) -> str:
        """Where this machine's root namespace finds the bus."""
        return f"nats://{self.management_control.ip}:{BUS_PORT}"

    def networks(self, family: Family) -> tuple[Network, ...]:
        """Everything but the pods and services, which settings may move."""
        lans = [self.lan(family, subnet) for subnet in range(MOST_SUBNETS)]
        return (*lans, self.outside(family), *([self.management] if family == 4 else []))


def within(network: Network, number: int) -> Interface:
    """The address `number` of `network`, with its prefix length; in IPv6 with the digits of `number`, 11 is ::11."""
    offset = number if network.version == 4 else int(str(number), 16)
    return ip_interface(f"{network.network_address + offset}/{network.prefixlen}")
