"""Helm values, as far as Plexus knows them, and the environments that they become. Pure.

The keys are those of the Helm chart: a lab is set up with the words of a real installation. A key that is unknown, a
value that cannot be, and a feature that does not exist yet are refused by name, never passed over. What the chart has
for "not set" is not set here: nothing, "", an empty list, and 0 where the chart says so. docs/settings.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from bus.durations import seconds_of
from bus.service import BadSettings
from lab.errors import LabError
from lab.plan import FAMILIES, Family, Plan
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes import sizes
from services.dataplane.shapes.ports import ports_of
from services.dataplane.shapes.sizes import HELM, SECONDS

DEVICE_MTU_BYTES = 1500  # of a lab's nodes

Value = str | int | bool | list[str]


class Unusable(ValueError):
    """A value that a key cannot have; the text completes "KEY: "."""


@dataclass(frozen=True)
class Key:
    """One Helm key: how its value is read, and what it is when nobody says."""

    read: Callable[[Any], Value]
    default: Value | None = None  # None: decided by the plan or by the service
    zero_is_unset: bool = False

    def is_unset(self, value: Any) -> bool:
        return value is None or value in ("", []) or (self.zero_is_unset and str(value) == "0")


def boolean(value: Any) -> bool:
    """Raises Unusable."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise Unusable(f"{value!r} is neither true nor false")


def only(supported: bool, feature: str) -> Callable[[Any], bool]:
    """A switch that has one position so far."""

    def read(value: Any) -> bool:
        if boolean(value) is not supported:
            raise Unusable(f"{str(not supported).lower()} is not supported yet ({feature})")
        return supported

    return read


def one_of(*supported: str, later: tuple[str, ...] = ()) -> Callable[[Any], str]:
    """One of some words. `later`: words of the chart that Plexus does not implement yet."""

    def read(value: Any) -> str:
        if value in supported:
            return str(value)
        if value in later:
            raise Unusable(f"{value!r} is not supported yet; use {' or '.join(supported)}")
        raise Unusable(f"{value!r} is not one of {', '.join((*supported, *later))}")

    return read


def number(lowest: int, highest: int) -> Callable[[Any], int]:
    """A whole number within bounds, both included."""

    def read(value: Any) -> int:
        try:
            found = value if isinstance(value, int) and not isinstance(value, bool) else int(str(value), 10)
        except ValueError:
            raise Unusable(f"{value!r} is not a whole number") from None
        if not lowest <= found <= highest:
            raise Unusable(f"{found} is not within {lowest} and {highest}")
        return found

    return read


def share(value: Any) -> str:
    """From 0 to 1. Raises Unusable."""
    try:
        found = float(str(value))
    except ValueError:
        raise Unusable(f"{value!r} is not a number") from None
    if not 0 <= found <= 1:
        raise Unusable(f"{value} is not within 0 and 1")
    return str(value)


def length_of_time(value: Any) -> str:
    """A duration as Helm has it. Raises Unusable."""
    try:
        seconds_of(str(value))
    except ValueError as error:
        raise Unusable(str(error)) from None
    return str(value)


def port_range(value: Any) -> str:
    """Of masqueraded connections, like "40000-65535". Raises Unusable."""
    try:
        return str(ports_of(str(value)))
    except ValueError as error:
        raise Unusable(str(error)) from None


def network(family: Family) -> Callable[[Any], str]:
    """A prefix of one family without host bits."""

    def read(value: Any) -> str:
        try:
            return str(IPv4Network(str(value)) if family == 4 else IPv6Network(str(value)))
        except ValueError as error:
            raise Unusable(f"{value!r} is not an IPv{family} network ({error})") from None

    return read


def any_network(value: Any) -> str:
    """A prefix of either family. Raises Unusable."""
    return network(6 if ":" in str(value) else 4)(value)


def list_of(item: Callable[[Any], str]) -> Callable[[Any], list[str]]:
    """A list, or one value alone; at least one."""

    def read(value: Any) -> list[str]:
        found = [item(each) for each in (value if isinstance(value, list) else [value])]
        if not found:
            raise Unusable("the list is empty")
        return found

    return read


_ENTRIES = number(1024, 16 * 1024 * 1024)

KEYS: Mapping[str, Key] = {
    "routingMode": Key(one_of("tunnel", "native"), "tunnel"),
    "tunnelProtocol": Key(one_of("vxlan", "geneve"), "vxlan"),
    "tunnelPort": Key(number(1, 65_535), zero_is_unset=True),
    "underlayProtocol": Key(one_of("ipv4", "ipv6")),  # default: IPv4 where the nodes have it
    "MTU": Key(number(576, 65_535), zero_is_unset=True),
    "ipv4.enabled": Key(boolean, True),
    "ipv6.enabled": Key(boolean, False),
    "ipv4NativeRoutingCIDR": Key(network(4)),  # default: the pods' pool
    "ipv6NativeRoutingCIDR": Key(network(6)),
    "autoDirectNodeRoutes": Key(boolean, True),  # the chart says false; nothing else would carry routes in a lab
    "directRoutingSkipUnreachable": Key(boolean, False),
    "endpointRoutes.enabled": Key(boolean, False),
    "enableIPv4Masquerade": Key(boolean, True),
    "enableIPv6Masquerade": Key(boolean, True),
    "ipMasqAgent.enabled": Key(boolean, False),
    "ipMasqAgent.config.nonMasqueradeCIDRs": Key(list_of(any_network)),  # default: NEVER_OUTSIDE
    "ipMasqAgent.config.masqLinkLocal": Key(boolean, False),
    "ipMasqAgent.config.masqLinkLocalIPv6": Key(boolean, False),
    "extraConfig.plexus-masquerade-ports": Key(port_range),  # default: as many as the node's own use permits
    "installNoConntrackIptablesRules": Key(boolean, False),
    "bpf.masquerade": Key(boolean, True),
    "bpf.enableTCX": Key(boolean, True),
    "bpf.ctTcpMax": Key(_ENTRIES),
    "bpf.ctAnyMax": Key(_ENTRIES),
    "bpf.natMax": Key(_ENTRIES),
    "bpf.neighMax": Key(_ENTRIES),  # these two: no such map here, docs/map-sizes.md
    "bpf.nodeMapMax": Key(_ENTRIES),
    "bpf.policyMapMax": Key(number(256, 65_536)),
    "bpf.lbMapMax": Key(_ENTRIES),
    "bpf.mapDynamicSizeRatio": Key(share),
    "conntrackGCInterval": Key(length_of_time),
    "conntrackGCMaxInterval": Key(length_of_time),
    **{key: Key(_ENTRIES) for key in HELM.values() if key.startswith("extraConfig.") and key.endswith("-max")},
    **{HELM[name]: Key(length_of_time) for name in SECONDS},
    **{f"extraConfig.bpf-ct-timeout-service-{kind}": Key(length_of_time) for kind in ("tcp", "any", "tcp-grace")},
    "bpf.hostLegacyRouting": Key(boolean, False),
    "bpf.datapathMode": Key(one_of("veth", later=("netkit", "netkit-l2")), "veth"),
    "ipam.mode": Key(one_of("cluster-pool", later=("kubernetes", "multi-pool")), "cluster-pool"),
    "ipam.operator.clusterPoolIPv4PodCIDRList": Key(list_of(network(4))),  # default: the plan's
    "ipam.operator.clusterPoolIPv4MaskSize": Key(number(16, 30), 24),
    "ipam.operator.clusterPoolIPv6PodCIDRList": Key(list_of(network(6))),
    "ipam.operator.clusterPoolIPv6MaskSize": Key(number(64, 126), 120),
    "serviceNoBackendResponse": Key(one_of("reject", "drop"), "reject"),
    "socketLB.terminatePodConnections": Key(boolean, True),
    "extraConfig.lb-sock-terminate-all-protos": Key(boolean, False),
    "kubeProxyReplacement": Key(only(True, "leaving Services to kube-proxy"), True),
    "bus.tls.enabled": Key(boolean, False),
    "bus.tls.verifyClients": Key(boolean, False),
    "debug.enabled": Key(boolean, False),
}

# What ip-masq-agent leaves alone when it is given no list: networks that are nobody's on the Internet.
NEVER_OUTSIDE = (
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24"),
    *("192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
)
LINK_LOCAL: Mapping[str, str] = {"masqLinkLocal": "169.254.0.0/16", "masqLinkLocalIPv6": "fe80::/10"}
AGENT = "ipMasqAgent.config."

# The same of the chart's words for each family.
ENABLED: Mapping[Family, str] = {4: "ipv4.enabled", 6: "ipv6.enabled"}
POOLS: Mapping[Family, str] = {family: f"ipam.operator.clusterPoolIPv{family}PodCIDRList" for family in FAMILIES}
MASKS: Mapping[Family, str] = {family: f"ipam.operator.clusterPoolIPv{family}MaskSize" for family in FAMILIES}
_SUFFIX: Mapping[Family, str] = {4: "", 6: "6"}  # of the variables of a family

# Keys of the chart whose features come later; a value here is refused with a word of its own.
LATER = (
    "bandwidthManager.enabled",
    "egressGateway.enabled",
    "encryption.enabled",
    "envoy.enabled",
    "externalIPs.enabled",
    "hostFirewall.enabled",
    "hubble.enabled",
    "hubble.relay.enabled",
    "hubble.ui.enabled",
    "ingressController.enabled",
    "l2announcements.enabled",
    "l7Proxy",
    "loadBalancer.acceleration",
    "loadBalancer.algorithm",
    "loadBalancer.mode",
    "nodePort.enabled",
    "policyEnforcementMode",
    "policyAuditMode",
)

# What a node reads as it stands, when it was asked for; the node has its own defaults.
_PASSED_ON = {
    "MTU": "PLEXUS_MTU",
    "bpf.enableTCX": "PLEXUS_ENABLE_TCX",
    "bpf.policyMapMax": "PLEXUS_POLICY_MAP_MAX",
    "bpf.lbMapMax": "PLEXUS_LB_MAP_MAX",
    "bpf.mapDynamicSizeRatio": "PLEXUS_MAP_DYNAMIC_SIZE_RATIO",
    "conntrackGCInterval": "PLEXUS_CONNTRACK_GC_INTERVAL",
    "conntrackGCMaxInterval": "PLEXUS_CONNTRACK_GC_MAX_INTERVAL",
    **{key: f"PLEXUS_{name}" for name, key in HELM.items()},
    "directRoutingSkipUnreachable": "PLEXUS_DIRECT_ROUTING_SKIP_UNREACHABLE",
    "endpointRoutes.enabled": "PLEXUS_ENDPOINT_ROUTES",
    "bpf.hostLegacyRouting": "PLEXUS_HOST_LEGACY_ROUTING",
    "installNoConntrackIptablesRules": "PLEXUS_NO_CONNTRACK_RULES",
    "serviceNoBackendResponse": "PLEXUS_SERVICE_NO_BACKEND_RESPONSE",
    "tunnelPort": "PLEXUS_TUNNEL_PORT",
    "underlayProtocol": "PLEXUS_UNDERLAY_PROTOCOL",
    "extraConfig.plexus-masquerade-ports": "PLEXUS_MASQUERADE_PORTS",
    "socketLB.terminatePodConnections": "PLEXUS_TERMINATE_POD_CONNECTIONS",
    "extraConfig.lb-sock-terminate-all-protos": "PLEXUS_TERMINATE_ALL_PROTOCOLS",
}

_KEY_OF = {variable: key for key, variable in _PASSED_ON.items()} | {
    "PLEXUS_ROUTING_MODE": "routingMode",
    "PLEXUS_TUNNEL_PROTOCOL": "tunnelProtocol",
    "PLEXUS_MASQ_EXCLUDE": f"{AGENT}nonMasqueradeCIDRs",
}


@dataclass(frozen=True)
class Settings:
    """What was asked for, checked, by full key; `get` adds the defaults."""

    values: Mapping[str, Value] = field(default_factory=dict)

    def get(self, key: str) -> Value | None:
        """The value of a key in KEYS; None when it is left to the plan or the service."""
        return self.values.get(key, KEYS[key].default)

    @property
    def families(self) -> tuple[Family, ...]:
        """The address families that the cluster has, IPv4 first."""
        return tuple(family for family in FAMILIES if self.get(ENABLED[family]))

    def pod_pools(self, plan: Plan, family: Family) -> list[str]:
        pools = self.get(POOLS[family])
        return pools if isinstance(pools, list) else [str(plan.pods(family))]

    def environment(self, plan: Plan, service: str) -> dict[str, str]:
        """The PLEXUS_* variables that `service` takes its settings from, beside those that say who and where it is."""
        found = {
            "PLEXUS_LOG_LEVEL": "debug" if self.get("debug.enabled") else "info",
            "PLEXUS_LOG_FORMAT": "json",
        }
        for family in FAMILIES:
            found |= self._of_family(plan, family, service)
        return found | (self._dataplane() if service == "dataplane" else {})

    def _of_family(self, plan: Plan, family: Family, service: str) -> dict[str, str]:
        """What a service is told of a family. An empty list: nothing is given out of it."""
        suffix, is_on = _SUFFIX[family], family in self.families
        enabled = {f"PLEXUS_IPV{family}_ENABLED": text(is_on)}
        pools = self.pod_pools(plan, family)
        services = {f"PLEXUS_SERVICE_CIDR{suffix}": str(plan.services(family)) if is_on else ""}
        if service == "resources":
            return services
        if service == "ipam":
            return enabled | {
                f"PLEXUS_CLUSTER_POOL_CIDRS{suffix}": ",".join(pools) if is_on else "",
                f"PLEXUS_CLUSTER_POOL_MASK{suffix}": text(self.get(MASKS[family])),
            }
        if service == "dataplane":
            return (
                enabled
                | services
                | {
                    f"PLEXUS_MASQUERADE{suffix}": text(self.get(f"enableIPv{family}Masquerade")),
                    f"PLEXUS_NATIVE_ROUTING_CIDR{suffix}": text(self.get(f"ipv{family}NativeRoutingCIDR") or pools[0]),
                }
            )
        return {}

    def _dataplane(self) -> dict[str, str]:
        asked = {variable: text(self.values[key]) for key, variable in _PASSED_ON.items() if key in self.values}
        return asked | {
            "PLEXUS_ROUTING_MODE": text(self.get("routingMode")),
            "PLEXUS_TUNNEL_PROTOCOL": text(self.get("tunnelProtocol")),
            "PLEXUS_AUTO_DIRECT_NODE_ROUTES": text(self.get("autoDirectNodeRoutes")),
            "PLEXUS_MASQ_EXCLUDE": text(self.not_masqueraded) if self.get("ipMasqAgent.enabled") else "",
        }

    @property
    def not_masqueraded(self) -> list[str]:
        """The list of ip-masq-agent, as far as the cluster has the family."""
        listed = self.get(f"{AGENT}nonMasqueradeCIDRs")
        found = list(listed if isinstance(listed, list) else NEVER_OUTSIDE)
        found += [cidr for key, cidr in LINK_LOCAL.items() if not self.get(AGENT + key) and cidr not in found]
        return [cidr for cidr in found if (6 if ":" in cidr else 4) in self.families]


def text(value: Value | None) -> str:
    """A value as an environment variable has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


def settings(values: Mapping[str, Any]) -> Settings:
    """Check values, by full key ("bpf.masquerade"). Raises LabError naming the key and what would be right."""
    checked: dict[str, Value] = {}
    for key, value in values.items():
        if key not in KEYS:
            raise LabError(unknown(key))
        if KEYS[key].is_unset(value):
            continue
        try:
            checked[key] = KEYS[key].read(value)
        except Unusable as error:
            raise LabError(f"{key}: {error}") from None
    found = Settings(checked)
    if not found.families:
        raise LabError("ipv4.enabled, ipv6.enabled: a cluster has one of them at least")
    if found.get("underlayProtocol") not in (None, *(f"ipv{family}" for family in found.families)):
        raise LabError("underlayProtocol: the nodes have no such addresses; enable the family")
    if not found.get("ipMasqAgent.enabled") and (given := [key for key in checked if key.startswith(AGENT)]):
        raise LabError(f"{given[0]}: does nothing by itself; set ipMasqAgent.enabled=true")
    if found.get("bus.tls.verifyClients") and not found.get("bus.tls.enabled"):
        raise LabError("bus.tls.verifyClients: does nothing by itself; set bus.tls.enabled=true")
    masqueraded = [key for family in found.families if found.get(key := f"enableIPv{family}Masquerade")]
    if not found.get("bpf.masquerade") and masqueraded:
        raise LabError(
            f"bpf.masquerade: false is not supported with {masqueraded[0]}, for it is BPF that masquerades: leave it "
            f"out, or set {masqueraded[0]}=false"
        )
    return found


def check_node(wanted: Settings, plan: Plan) -> None:
    """Raises LabError when a node would refuse what it is told. It says so in words of its environment."""
    environment = wanted.environment(plan, "dataplane") | {"PLEXUS_NODE": "node1"}
    try:
        node = NodeSettings.of(environment)
        node.pod_mtu_bytes(DEVICE_MTU_BYTES, node.underlay(has_ipv4=True))
    except BadSettings as error:
        raise LabError(in_helms_words(str(error))) from None


def in_helms_words(said: str) -> str:
    """A node's complaint with keys for variables."""
    for variable, key in sorted(_KEY_OF.items(), reverse=True):  # PLEXUS_MTU_X before PLEXUS_MTU
        said = said.replace(variable, key)
    return said


def check_sizes(wanted: Settings, memory_bytes: int) -> None:
    """Raises LabError when the maps' sizes do not go together on a node with so much memory."""
    asked = {name: found for name, key in HELM.items() if isinstance(found := wanted.get(key), int)}
    ratio = wanted.get("bpf.mapDynamicSizeRatio")
    try:
        sizes.map_sizes(memory_bytes, ratio=sizes.RATIO if ratio is None else float(text(ratio)), asked=asked)
    except sizes.SizeError as error:
        raise LabError(f"{HELM['NAT_MAX']}: {error}") from None


def check_plan(wanted: Settings, plan: Plan) -> None:
    """Raises LabError when the asked addresses run into those of the lab."""
    for family in wanted.families:
        mask = wanted.get(MASKS[family])
        free = plan.pods(family)
        for pool in map(ip_network, wanted.pod_pools(plan, family)):
            for taken in (*plan.networks(family), plan.services(family)):
                if pool.overlaps(taken):
                    raise LabError(f"{POOLS[family]}: {pool} overlaps {taken}, which this lab uses; {free} is free")
            if isinstance(mask, int) and mask < pool.prefixlen:
                raise LabError(f"{MASKS[family]}: a block /{mask} does not fit into the pool {pool}")


def unknown(key: str) -> str:
    """Why a key is not taken, and what is nearest."""
    if key in LATER:
        return f"{key}: not supported yet"
    by_lower = {known.lower(): known for known in (*KEYS, *LATER)}
    near = get_close_matches(key.lower(), by_lower, 1, 0.6)
    return f"{key}: there is no such setting" + (f"; did you mean {by_lower[near[0]]}?" if near else "")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A values file's nested mappings as full keys: {"bpf": {"masquerade": True}} is {"bpf.masquerade": True}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse_set(argument: str) -> dict[str, Any]:
    """One --set argument as Helm reads it: "a.b=c,d=e", lists as "a={x,y}". Raises LabError."""
    found: dict[str, Any] = {}
    for part in split(argument):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise LabError(f"--set {argument}: {part!r} is not key=value")
        listed = value.startswith("{") and value.endswith("}")
        found[key.strip()] = [item for item in value[1:-1].split(",") if item] if listed else value
    return found


def split(argument: str) -> list[str]:
    """Cut at the commas that are not within braces."""
    parts, depth = [""], 0
    for character in argument:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part]
