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
from services.dataplane.shapes import sizes
from services.dataplane.shapes.ports import ports_of

TUNNEL_PORTS = {"vxlan": 8472, "geneve": 6081}  # UDP; what Linux took before RFC 7348 gave 4789, and RFC 8926
TUNNEL_DEVICES = {"vxlan": "plexus_vxlan", "geneve": "plexus_geneve"}
TUNNEL_OVERHEAD_BYTES = {4: 50, 6: 70}  # inner Ethernet 14, VXLAN or Geneve 8, UDP 8, outer IPv4 20 or IPv6 40
MTU_MIN, MTU_MAX = 576, 65535  # bytes; RFC 791: every host takes 576
MTU_MIN6 = 1280  # RFC 8200, section 5: a link below it has no IPv6
CT_SECONDS_MAX = 1 << 31  # a connection's time is kept in 32 bits
GC_SECONDS = (
    int(sizes.SWEEP_SECONDS_LEAST),
    7 * 86_400,
)  # from one sweep to the next; more often tells no more and costs a CPU
Seconds = float  # read with or without units


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
    ipv4_enabled: bool = True
    ipv6_enabled: bool = False
    tunnel_protocol: str = "vxlan"  # or "geneve"
    underlay_protocol: str = ""  # of the tunnel's outer packets: "ipv4" or "ipv6"; "": IPv4 where the node has it
    tunnel_port: int = 0  # UDP; 0: the protocol's own
    auto_direct_node_routes: bool = True  # native: other nodes are neighbours; false: the fabric routes pod addresses
    direct_routing_skip_unreachable: bool = False  # native: a node behind a router is no fault, the fabric has routes
    endpoint_routes: bool = False  # accepted: a route for each pod is always made
    host_legacy_routing: bool = False  # the node's own stack and netfilter forward, not the programs (docs/adr/0017)
    masquerade: bool = True
    enable_tcx: bool = True  # false: clsact even where the kernel has tcx (6.6)
    masquerade6: bool = True
    masquerade_ports: str = ""  # "40000-65535"; "": as many as the node's own use permits (docs/adr/0006)
    native_routing_cidr: str = ""  # destinations that see pods' own addresses, never masqueraded
    native_routing_cidr6: str = ""
    service_cidr: str = (
        ""  # of ClusterIPs: what no Service has there is dropped; "": not known, and routed as it may be
    )
    service_cidr6: str = ""
    service_no_backend_response: str = "reject"  # or "drop": to what no Service takes, or one without backends
    masq_exclude: str = ""  # more of them, in any mode: CIDRs of both families, with commas between
    mtu: int = 0  # bytes, of pods; 0: the device's, less what the tunnel takes
    map_dynamic_size_ratio: float = sizes.RATIO  # of the node's memory, for the maps that are sized by it; 0: off
    policy_map_max: int = sizes.POLICY_ENTRIES  # entries of one endpoint
    lb_map_max: int = sizes.FIXED["SERVICES_MAX"]  # entries of `services`; `backends` has four times as many
    conntrack_gc_interval: Seconds = 0.0  # seconds from one sweep to the next; 0: by what the last one found
    conntrack_gc_max_interval: Seconds = sizes.SWEEP_SECONDS_MOST
    map_entries: Mapping[str, int] = field(default_factory=dict)  # PLEXUS_<each of sizes.NAMES> that was given
    ct_seconds: Mapping[str, int] = field(default_factory=dict)  # PLEXUS_<each of sizes.SECONDS> that was given
    force_fallback: bool = False  # nftables rules instead of BPF programs, as on a kernel that takes none
    terminate_pod_connections: bool = True  # sockets whose backend is gone are ended in pods too, not on the host alone
    terminate_all_protocols: bool = False  # those of TCP too, not of UDP alone
    no_conntrack_rules: bool = False  # native: the host does not track pods' connections; BPF does

    @property
    def is_tunnel(self) -> bool:
        return self.routing_mode == "tunnel"

    @property
    def families(self) -> tuple[int, ...]:
        """IP versions that pods have addresses of."""
        return (4,) * self.ipv4_enabled + (6,) * self.ipv6_enabled

    @property
    def udp_port(self) -> int:
        """Of the tunnel."""
        return self.tunnel_port or TUNNEL_PORTS[self.tunnel_protocol]

    @property
    def tunnel_device(self) -> str:
        """ "" with native routing."""
        return TUNNEL_DEVICES[self.tunnel_protocol] if self.is_tunnel else ""

    def underlay(self, has_ipv4: bool) -> int:
        """The family of tunnel endpoints; 0 with native routing. `has_ipv4`: the node's device has such an address."""
        if not self.is_tunnel:
            return 0
        if self.underlay_protocol:
            return 4 if self.underlay_protocol == "ipv4" else 6
        return 4 if self.ipv4_enabled and has_ipv4 else 6

    @property
    def not_masqueraded(self) -> list[str]:
        """Destinations that see pods' own addresses, as "10.0.0.0/8", however they were written."""
        native = [self.native_routing_cidr, self.native_routing_cidr6]
        return [str(ipaddress.ip_network(cidr)) for cidr in (*native, *self.masq_exclude.split(",")) if cidr]

    def pod_mtu_bytes(self, device_bytes: int, underlay: int) -> int:
        """What fits through the node's device, with what a tunnel over `underlay` (0: none) puts around it.

        Raises: BadSettings: pods are to have IPv6, and it has no room.
        """
        found = self.mtu or device_bytes - TUNNEL_OVERHEAD_BYTES.get(underlay, 0)
        if self.ipv6_enabled and found < MTU_MIN6:
            device = f"raise the MTU of {self.device} ({device_bytes}), set routingMode=native"
            cure = "raise MTU" if self.mtu else device
            raise BadSettings(
                f"pods would have an MTU of {found} bytes, and IPv6 needs {MTU_MIN6}: {cure} or set ipv6.enabled=false"
            )
        return found

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
        if settings.underlay_protocol:
            _one_of("PLEXUS_UNDERLAY_PROTOCOL", settings.underlay_protocol, "ipv4", "ipv6")
        _one_of("PLEXUS_SERVICE_NO_BACKEND_RESPONSE", settings.service_no_backend_response, "reject", "drop")
        _one_of("PLEXUS_TUNNEL_PROTOCOL", settings.tunnel_protocol, *TUNNEL_PORTS)
        if not settings.families:
            raise BadSettings("PLEXUS_IPV4_ENABLED and PLEXUS_IPV6_ENABLED are both false: set one of them to true")
        if settings.masquerade_ports:
            _ports("PLEXUS_MASQUERADE_PORTS", settings.masquerade_ports)
        if settings.native_routing_cidr:
            _cidr("PLEXUS_NATIVE_ROUTING_CIDR", settings.native_routing_cidr, ipaddress.IPv4Network, "10.0.0.0/8")
        if settings.native_routing_cidr6:
            _cidr("PLEXUS_NATIVE_ROUTING_CIDR6", settings.native_routing_cidr6, ipaddress.IPv6Network, "fd00::/8")
        if settings.service_cidr:
            _cidr("PLEXUS_SERVICE_CIDR", settings.service_cidr, ipaddress.IPv4Network, "10.96.0.0/16")
        if settings.service_cidr6:
            _cidr("PLEXUS_SERVICE_CIDR6", settings.service_cidr6, ipaddress.IPv6Network, "fd00:96::/112")
        for cidr in filter(None, settings.masq_exclude.split(",")):
            _cidr("PLEXUS_MASQ_EXCLUDE", cidr, ipaddress.ip_network, "192.168.0.0/16,fd00::/8")
        if "tunnel_port" in given:
            _between("PLEXUS_TUNNEL_PORT", settings.tunnel_port, 1, 65535)
        if settings.mtu:
            _between("PLEXUS_MTU", settings.mtu, MTU_MIN, MTU_MAX)
        if not 0 <= settings.map_dynamic_size_ratio <= 1:
            raise BadSettings(f"PLEXUS_MAP_DYNAMIC_SIZE_RATIO is 0 to 1, not {settings.map_dynamic_size_ratio}")
        _between(
            "PLEXUS_POLICY_MAP_MAX", settings.policy_map_max, sizes.POLICY_ENTRIES_LEAST, sizes.POLICY_ENTRIES_MOST
        )
        if settings.conntrack_gc_interval:
            _between("PLEXUS_CONNTRACK_GC_INTERVAL", settings.conntrack_gc_interval, *GC_SECONDS)
        _between("PLEXUS_CONNTRACK_GC_MAX_INTERVAL", settings.conntrack_gc_max_interval, *GC_SECONDS)
        _between("PLEXUS_LB_MAP_MAX", settings.lb_map_max, sizes.LEAST, sizes.MOST)
        if settings.no_conntrack_rules and settings.is_tunnel:
            raise BadSettings("PLEXUS_NO_CONNTRACK_RULES needs PLEXUS_ROUTING_MODE=native: the host tracks no tunnel")
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


def _between(variable: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise BadSettings(f"{variable} is {least} to {most}, not {value}")


def _cidr(variable: str, text: str, form: Callable[[str], object], example: str) -> None:
    try:
        form(text)
    except ValueError as problem:
        raise BadSettings(f'{variable} is a network like "{example}": {problem}') from problem


def _ports(variable: str, text: str) -> None:
    try:
        ports_of(text)
    except ValueError as problem:
        raise BadSettings(f"{variable} {problem}") from problem


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
