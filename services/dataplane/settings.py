"""What a node is told, by environment variables; each with its default, unit and reason."""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bus.durations import seconds_of
from bus.service import BadSettings
from services.dataplane import sizes

VXLAN_PORT = 8472
VXLAN_OVERHEAD_BYTES = 50  # Ethernet 14, VXLAN 8, UDP 8, IPv4 20
MTU_MIN, MTU_MAX = 576, 65535  # bytes; RFC 791: every host takes 576
CT_SECONDS_MAX = 1 << 31  # a connection's time is kept in 32 bits
Seconds = float  # read with or without units
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
    map_dynamic_size_ratio: float = sizes.RATIO  # of the node's memory, for the maps that are sized by it; 0: off
    policy_map_max: int = sizes.POLICY_ENTRIES  # entries of one endpoint
    lb_map_max: int = sizes.FIXED["SERVICES_MAX"]  # entries of `services`; `backends` has four times as many
    conntrack_gc_interval: Seconds = 0.0  # seconds from one sweep to the next; 0: by what the last one found
    conntrack_gc_max_interval: Seconds = 12 * 3600.0
    map_entries: Mapping[str, int] = field(default_factory=dict)  # PLEXUS_<each of sizes.NAMES> that was given
    ct_seconds: Mapping[str, int] = field(default_factory=dict)  # PLEXUS_<each of sizes.SECONDS> that was given

    @property
    def is_tunnel(self) -> bool:
        return self.routing_mode == "tunnel"

    def map_sizes(self, memory_bytes: int) -> dict[str, int]:
        """Entries of every map. Raises: BadSettings: they do not go together."""
        try:
            return sizes.map_sizes(
                memory_bytes,
                ratio=self.map_dynamic_size_ratio,
                asked=self.map_entries,
                policy_entries=self.policy_map_max,
                lb_entries=self.lb_map_max,
            )
        except sizes.SizeError as problem:
            raise BadSettings(str(problem)) from problem

    @staticmethod
    def of(environment: Mapping[str, str]) -> NodeSettings:
        """Raises: BadSettings: names the variable and says what would be right."""
        given: dict[str, object] = {}
        for name, annotation in NodeSettings.__annotations__.items():
            variable = f"PLEXUS_{name.upper()}"
            text = environment.get(variable, "")
            if text and annotation in _READERS:
                given[name] = _READERS[annotation](variable, text)
        given["map_entries"] = _numbers(environment, sizes.NAMES, sizes.LEAST, sizes.MOST, _number)
        given["ct_seconds"] = _numbers(environment, sizes.SECONDS, 1, CT_SECONDS_MAX, _whole_seconds)
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
        if not 0 <= settings.map_dynamic_size_ratio <= 1:
            raise BadSettings(f"PLEXUS_MAP_DYNAMIC_SIZE_RATIO is 0 to 1, not {settings.map_dynamic_size_ratio}")
        _between(
            "PLEXUS_POLICY_MAP_MAX", settings.policy_map_max, sizes.POLICY_ENTRIES_LEAST, sizes.POLICY_ENTRIES_MOST
        )
        _between("PLEXUS_LB_MAP_MAX", settings.lb_map_max, sizes.LEAST, sizes.MOST)
        return settings


def memory_bytes() -> int:
    """Of this node: what /proc/meminfo calls MemTotal."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _numbers(
    environment: Mapping[str, str], names: Iterable[str], least: int, most: int, read: Callable[[str, str], int]
) -> dict[str, int]:
    """Those of PLEXUS_<NAME> that are set, by name."""
    found: dict[str, int] = {}
    for name in names:
        variable = f"PLEXUS_{name}"
        text = environment.get(variable, "")
        if text:
            found[name] = read(variable, text)
            _between(variable, found[name], least, most)
    return found


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


def _share(variable: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadSettings(f"{variable} is a number like 0.0025, not {text!r}") from None


def _seconds(variable: str, text: str) -> float:
    """A number of seconds, or a duration with units."""
    try:
        return float(_number(variable, text)) if text.isdigit() else seconds_of(text)
    except ValueError as problem:
        raise BadSettings(f"{variable}: {problem}") from problem


def _whole_seconds(variable: str, text: str) -> int:
    return math.ceil(_seconds(variable, text))


def _truth(variable: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise BadSettings(f"{variable} is true or false, not {text!r}")
    return text.lower() == "true"


_READERS: Mapping[str, Callable[[str, str], object]] = {
    "str": lambda variable, text: text,
    "int": _number,
    "bool": _truth,
    "float": _share,
    "Seconds": _seconds,
    "Path": lambda variable, text: Path(text),
}
