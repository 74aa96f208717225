"""What a node is told, by environment variables: the rows of settings/rows.py that "dataplane" reads, typed."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bus.service import BadSettings
from services.dataplane.shapes import sizes
from services.dataplane.shapes.mode import Mode
from settings.leases import lease_problem
from settings.ports import Ports, node_ports_of
from settings.read import default, read
from settings.rows import SWITCHES

TUNNEL_PORTS = {"vxlan": 8472, "geneve": 6081}  # UDP; what Linux took before RFC 7348 gave 4789, and RFC 8926
TUNNEL_DEVICES = {"vxlan": "plexus_vxlan", "geneve": "plexus_geneve"}
TUNNEL_OVERHEAD_BYTES = {4: 50, 6: 70}  # inner Ethernet 14, VXLAN or Geneve 8, UDP 8, outer IPv4 20 or IPv6 40
MTU_MIN6 = 1280  # RFC 8200, section 5: a link below it has no IPv6


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """A field for each row, by the name of its variable; `Settings` of bus/service.py come beside them."""

    node: str
    state_dir: Path = default("PLEXUS_STATE_DIR")
    pin_dir: Path = default("PLEXUS_PIN_DIR")
    cgroup: Path = default("PLEXUS_CGROUP")
    devices: str = default("PLEXUS_DEVICES")
    cni_socket: Path = default("PLEXUS_CNI_SOCKET")
    routing_mode: str = default("PLEXUS_ROUTING_MODE")
    ipv4_enabled: bool = default("PLEXUS_IPV4_ENABLED")
    ipv6_enabled: bool = default("PLEXUS_IPV6_ENABLED")
    tunnel_protocol: str = default("PLEXUS_TUNNEL_PROTOCOL")
    underlay_protocol: str = default("PLEXUS_UNDERLAY_PROTOCOL")  # "": IPv4 where the node has it
    tunnel_port: int = default("PLEXUS_TUNNEL_PORT")  # 0: the protocol's own
    auto_direct_node_routes: bool = default("PLEXUS_AUTO_DIRECT_NODE_ROUTES")
    direct_routing_skip_unreachable: bool = default("PLEXUS_DIRECT_ROUTING_SKIP_UNREACHABLE")
    endpoint_routes: bool = default("PLEXUS_ENDPOINT_ROUTES")
    host_legacy_routing: bool = default("PLEXUS_HOST_LEGACY_ROUTING")
    masquerade: bool = default("PLEXUS_MASQUERADE")
    masquerade6: bool = default("PLEXUS_MASQUERADE6")
    masquerade_ports: str = default("PLEXUS_MASQUERADE_PORTS")  # "": as many as the node can spare (docs/adr/0006)
    enable_tcx: bool = default("PLEXUS_ENABLE_TCX")
    native_routing_cidr: str = default("PLEXUS_NATIVE_ROUTING_CIDR")
    native_routing_cidr6: str = default("PLEXUS_NATIVE_ROUTING_CIDR6")
    service_cidr: str = default("PLEXUS_SERVICE_CIDR")  # "": not known, and routed as it may be
    service_cidr6: str = default("PLEXUS_SERVICE_CIDR6")
    node_port_range: str = default("PLEXUS_NODE_PORT_RANGE")
    service_no_backend_response: str = default("PLEXUS_SERVICE_NO_BACKEND_RESPONSE")
    masq_exclude: str = default("PLEXUS_MASQ_EXCLUDE")  # CIDRs of both families, with commas between
    mtu: int = default("PLEXUS_MTU")  # bytes, of pods; 0: the device's, less what the tunnel takes
    map_dynamic_size_ratio: float = default("PLEXUS_MAP_DYNAMIC_SIZE_RATIO")
    policy_map_max: int = default("PLEXUS_POLICY_MAP_MAX")
    lb_map_max: int = default("PLEXUS_LB_MAP_MAX")
    conntrack_gc_interval: float = default("PLEXUS_CONNTRACK_GC_INTERVAL")  # seconds; 0: by what the last sweep found
    conntrack_gc_max_interval: float = default("PLEXUS_CONNTRACK_GC_MAX_INTERVAL")
    map_entries: Mapping[str, int] = field(default_factory=dict)  # those that were given, by define
    ct_seconds: Mapping[str, int] = field(default_factory=dict)  # those that were given, by define
    force_fallback: bool = default("PLEXUS_FORCE_FALLBACK")
    socket_lb_host_namespace_only: bool = default("PLEXUS_SOCKET_LB_HOST_NAMESPACE_ONLY")
    terminate_pod_connections: bool = default("PLEXUS_TERMINATE_POD_CONNECTIONS")
    terminate_all_protocols: bool = default("PLEXUS_TERMINATE_ALL_PROTOCOLS")
    hubble_enabled: bool = default("PLEXUS_HUBBLE_ENABLED")
    no_conntrack_rules: bool = default("PLEXUS_NO_CONNTRACK_RULES")
    policy_enforcement_mode: str = default("PLEXUS_POLICY_ENFORCEMENT_MODE")
    policy_audit_mode: bool = default("PLEXUS_POLICY_AUDIT_MODE")
    l2_announcements: bool = default("PLEXUS_L2_ANNOUNCEMENTS")
    l2_lease_duration: float = default("PLEXUS_L2_LEASE_DURATION")  # seconds, as the next two
    l2_lease_renew_deadline: float = default("PLEXUS_L2_LEASE_RENEW_DEADLINE")
    l2_lease_retry_period: float = default("PLEXUS_L2_LEASE_RETRY_PERIOD")

    @property
    def policy_mode(self) -> Mode:
        return Mode(self.policy_enforcement_mode, self.policy_audit_mode)

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

    def pod_mtu_bytes(self, device_bytes: int, underlay: int, device: str = "the nodes' device") -> int:
        """What fits through `device`, with what a tunnel over `underlay` (0: none) puts around it.

        Raises: BadSettings: pods are to have IPv6, and it has no room.
        """
        found = self.mtu or device_bytes - TUNNEL_OVERHEAD_BYTES.get(underlay, 0)
        if self.ipv6_enabled and found < MTU_MIN6:
            device = f"raise the MTU of {device} ({device_bytes}), set routingMode=native"
            cure = "raise MTU" if self.mtu else device
            raise BadSettings(
                f"pods would have an MTU of {found} bytes, and IPv6 needs {MTU_MIN6}: {cure} or set ipv6.enabled=false"
            )
        return found

    @property
    def node_ports(self) -> Ports:
        """That Services have at every node."""
        return node_ports_of(self.node_port_range)

    @property
    def switches(self) -> dict[str, int]:
        """What the programs are compiled with, by the `define` of the rows that are switches."""
        return {name: row.turned(getattr(self, row.field)) for name, row in SWITCHES.items()}

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
        given = read(environment, "dataplane")
        if "node" not in given:
            raise BadSettings("PLEXUS_NODE is not set: it is the name of the node that this runs on")
        settings = NodeSettings(**given)
        if not settings.families:
            raise BadSettings("PLEXUS_IPV4_ENABLED and PLEXUS_IPV6_ENABLED are both false: set one of them to true")
        problem = lease_problem(
            settings.l2_lease_duration, settings.l2_lease_renew_deadline, settings.l2_lease_retry_period
        )
        if problem:
            raise BadSettings(problem)
        if settings.no_conntrack_rules and settings.is_tunnel:
            raise BadSettings("PLEXUS_NO_CONNTRACK_RULES needs PLEXUS_ROUTING_MODE=native: the host tracks no tunnel")
        return settings


def memory_bytes() -> int:
    """Of this node: what /proc/meminfo calls MemTotal."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
