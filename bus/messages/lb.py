"""lb: service addresses and the backends behind them."""

from __future__ import annotations

from typing import Literal

from bus.messages import Message, Part
from bus.messages.resources import Family, Protocol


class Backend(Part, frozen=True, kw_only=True):
    address: str
    port: int
    node: str = ""
    weight: int = 1  # 1 to 256: how many new connections it gets beside others
    zone: str = ""
    for_zones: list[str] = []  # clients of these zones should go to it; empty: no word on that
    for_nodes: list[str] = []


class Frontend(Part, frozen=True, kw_only=True):
    """An address and port that clients use. No backends: packets to it are dropped with "Service backend not found";
    serviceNoBackendResponse says whether their senders are told."""

    address: str
    port: int
    protocol: Protocol
    port_name: str = ""
    backends: list[Backend] = []  # sorted by address, port
    draining: list[Backend] = []  # about to end, and still serve who is connected to them: they get nothing new


class Exposure(Part, frozen=True, kw_only=True):
    """Where a Service is reached from outside of the cluster. Its backends are those of the Service's frontend of the
    same family, protocol and port name."""

    kind: Literal["ExternalIP", "LoadBalancer", "NodePort", "other"]
    address: str = ""  # "" of a NodePort: at every node, those of its own that nodePort.addresses has
    family: Family
    port: int
    protocol: Protocol
    port_name: str = ""


class LoadBalancedService(Message, frozen=True, kw_only=True):
    """All frontends of one Service. Subject: state.lb.service.<namespace>.<name>"""

    namespace: str
    name: str
    frontends: list[Frontend] = []  # sorted by address, port, protocol
    exposures: list[Exposure] = []  # sorted by kind, family, address, port, protocol
    affinity_seconds: int = 0  # for which a client stays with its backend; 0: it need not
    internal_traffic_policy: Literal["Cluster", "Local", "other"] = "Cluster"
    external_traffic_policy: Literal["Cluster", "Local", "other"] = "Cluster"
    health_check_port: int = 0  # where each node says over HTTP whether it has backends; 0: nowhere
    source_ranges: list[str] = []  # networks that may come from outside; empty: all. Sorted
    denies_sources: bool = False  # those may not, and all others may
    algorithm: Literal["", "random", "maglev", "other"] = ""  # "": as the node is set
    forwarding: Literal["", "snat", "dsr", "other"] = ""  # "": as the node is set
    distribution: Literal["", "PreferSameZone", "PreferSameNode", "other"] = ""


class HostPort(Part, frozen=True, kw_only=True):
    """A port of the node that leads to a pod on it."""

    address: str = ""  # of the node; "": each of its own of the family
    family: Family
    port: int
    protocol: Protocol
    backend: Backend


class HostPorts(Message, frozen=True, kw_only=True):
    """Ports of its node that a pod has. Subject: state.lb.hostports.<node>.<namespace>.<pod>"""

    node: str
    namespace: str
    pod: str
    ports: list[HostPort]  # sorted by family, port, protocol, address
