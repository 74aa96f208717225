"""What a node is told, by environment variables; each with its default, unit and reason."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bus.service import BadSettings

VXLAN_PORT = 8472
VXLAN_OVERHEAD_BYTES = 50  # Ethernet 14, VXLAN 8, UDP 8, IPv4 20
MTU_MIN, MTU_MAX = 576, 65535  # bytes; RFC 791: every host takes 576
MAP_MAX = 1 << 24  # entries
TUNNEL_DEVICE = "plexus_vxlan"


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """PLEXUS_<FIELD IN CAPITALS>; `Settings` of bus/service.py come beside them."""

    node: str
    state_dir: Path = field(default=Path("/var/lib/plexus"))
    pin_dir: Path = field(default=Path("/sys/fs/bpf/plexus"))
    cgroup: Path = field(default=Path("/sys/fs/cgroup"))  # socket load balancing holds for what runs in it
    device: str = "eth0"  # leads to the other nodes
    cni_socket: Path = field(default=Path("/run/plexus/cni.sock"))
    routing_mode: str = "tunnel"  # or "native"
    tunnel_protocol: str = "vxlan"
    tunnel_port: int = VXLAN_PORT
    auto_direct_node_routes: bool = True  # native: other nodes are neighbours; false: the fabric routes pod addresses
    masquerade: bool = True
    native_routing_cidr: str = ""  # destinations that are never masqueraded
    mtu: int = 0  # bytes, of pods; 0: the device's, less what the tunnel takes
    ct_max: int = 524_288  # entries; 104 bytes each, taken at start
    nat_max: int = 524_288
    sock_reverse_max: int = 262_144
    force_fallback: bool = False  # nftables rules instead of BPF programs, as on a kernel that takes none
    no_conntrack_rules: bool = False  # native: the host does not track pods' connections; BPF does

    @property
    def is_tunnel(self) -> bool:
        return self.routing_mode == "tunnel"

    @staticmethod
    def of(environment: Mapping[str, str]) -> NodeSettings:
        """Raises: BadSettings: names the variable and says what would be right."""
        given: dict[str, object] = {}
        for name, annotation in NodeSettings.__annotations__.items():
            variable = f"PLEXUS_{name.upper()}"
            text = environment.get(variable, "")
            if text:
                given[name] = _READERS[annotation](variable, text)
        if "node" not in given:
            raise BadSettings("PLEXUS_NODE is not set: it is the name of the node that this runs on")
        settings = NodeSettings(**given)  # type: ignore[arg-type]
        _one_of("PLEXUS_ROUTING_MODE", settings.routing_mode, "tunnel", "native")
        _one_of("PLEXUS_TUNNEL_PROTOCOL", settings.tunnel_protocol, "vxlan")
        if settings.native_routing_cidr:
            _cidr("PLEXUS_NATIVE_ROUTING_CIDR", settings.native_routing_cidr)
        _between("PLEXUS_TUNNEL_PORT", settings.tunnel_port, 1, 65535)
        if settings.mtu:
            _between("PLEXUS_MTU", settings.mtu, MTU_MIN, MTU_MAX)
        if settings.no_conntrack_rules and settings.is_tunnel:
            raise BadSettings("PLEXUS_NO_CONNTRACK_RULES needs PLEXUS_ROUTING_MODE=native: the host tracks no tunnel")
        for variable in ("ct_max", "nat_max", "sock_reverse_max"):
            _between(f"PLEXUS_{variable.upper()}", getattr(settings, variable), 1, MAP_MAX)
        return settings


def _one_of(variable: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise BadSettings(f"{variable} is {' or '.join(allowed)}, not {value!r}")


def _between(variable: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise BadSettings(f"{variable} is {least} to {most}, not {value}")


def _cidr(variable: str, text: str) -> None:
    try:
        ipaddress.IPv4Network(text)
    except ValueError as problem:
        raise BadSettings(f'{variable} is a network like "10.0.0.0/8": {problem}') from problem


def _number(variable: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise BadSettings(f"{variable} is a whole number, not {text!r}")
    return int(text)


def _truth(variable: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise BadSettings(f"{variable} is true or false, not {text!r}")
    return text.lower() == "true"


_READERS: Mapping[str, Callable[[str, str], object]] = {
    "str": lambda variable, text: text,
    "int": _number,
    "bool": _truth,
    "Path": lambda variable, text: Path(text),
}
