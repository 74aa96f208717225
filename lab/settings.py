"""Helm values, as far as Plexus knows them, and the environments that they become. Pure.

The keys are those of the Helm chart: a lab is set up with the words of a real installation. A key that is unknown, a
value that cannot be, and a feature that does not exist yet are refused by name, never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import IPv4Network
from typing import Any

from lab.errors import LabError
from lab.plan import Plan

Value = str | int | bool | list[str]


class Unusable(ValueError):
    """A value that a key cannot have; the text completes "KEY: "."""


@dataclass(frozen=True)
class Key:
    """One Helm key: how its value is read, and what it is when nobody says."""

    read: Callable[[Any], Value]
    default: Value | None = None  # None: decided by the plan or by the service


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


def network(value: Any) -> str:
    """An IPv4 prefix without host bits. Raises Unusable."""
    try:
        return str(IPv4Network(str(value)))
    except ValueError as error:
        raise Unusable(f"{value!r} is not an IPv4 network ({error})") from None


def networks(value: Any) -> list[str]:
    """A list of IPv4 prefixes, or one alone; at least one."""
    found = [network(item) for item in (value if isinstance(value, list) else [value])]
    if not found:
        raise Unusable("the list is empty")
    return found


_ENTRIES = number(1024, 16 * 1024 * 1024)

KEYS: Mapping[str, Key] = {
    "routingMode": Key(one_of("tunnel", "native"), "tunnel"),
    "tunnelProtocol": Key(one_of("vxlan", later=("geneve",)), "vxlan"),
    "tunnelPort": Key(number(1, 65_535)),
    "MTU": Key(number(576, 65_535)),
    "ipv4NativeRoutingCIDR": Key(network),  # default: the pods' pool
    "autoDirectNodeRoutes": Key(boolean, True),  # the chart says false; nothing else would carry routes in a lab
    "enableIPv4Masquerade": Key(boolean, True),
    "bpf.masquerade": Key(boolean, True),
    "bpf.ctTcpMax": Key(_ENTRIES),
    "bpf.natMax": Key(_ENTRIES),
    "bpf.hostLegacyRouting": Key(only(False, "routing through the host's stack")),
    "bpf.datapathMode": Key(one_of("veth", later=("netkit", "netkit-l2"))),
    "ipam.mode": Key(one_of("cluster-pool", later=("kubernetes", "multi-pool"))),
    "ipam.operator.clusterPoolIPv4PodCIDRList": Key(networks),  # default: the plan's
    "ipam.operator.clusterPoolIPv4MaskSize": Key(number(16, 30), 24),
    "ipv4.enabled": Key(only(True, "a cluster without IPv4")),
    "ipv6.enabled": Key(only(False, "IPv6")),
    "kubeProxyReplacement": Key(only(True, "leaving Services to kube-proxy")),
    "installNoConntrackIptablesRules": Key(boolean),
    "debug.enabled": Key(boolean, False),
}

# Keys of the chart whose features come later; a value here is refused with a word of its own.
LATER = (
    "bandwidthManager.enabled",
    "bpf.ctAnyMax",
    "bpf.lbMapMax",
    "bpf.policyMapMax",
    "egressGateway.enabled",
    "encryption.enabled",
    "endpointRoutes.enabled",
    "envoy.enabled",
    "externalIPs.enabled",
    "hostFirewall.enabled",
    "hubble.enabled",
    "hubble.relay.enabled",
    "hubble.ui.enabled",
    "ingressController.enabled",
    "ipMasqAgent.enabled",
    "l2announcements.enabled",
    "l7Proxy",
    "loadBalancer.acceleration",
    "loadBalancer.algorithm",
    "loadBalancer.mode",
    "nodePort.enabled",
    "policyEnforcementMode",
    "policyAuditMode",
)

# Which services read which settings, as environment variables; only what was asked for is passed on.
_LIMITS = {
    "bpf.ctTcpMax": "PLEXUS_CT_MAX",
    "MTU": "PLEXUS_MTU",
    "tunnelPort": "PLEXUS_TUNNEL_PORT",
    "bpf.natMax": "PLEXUS_NAT_MAX",
    "installNoConntrackIptablesRules": "PLEXUS_NO_CONNTRACK_RULES",
}


@dataclass(frozen=True)
class Settings:
    """What was asked for, checked, by full key; `get` adds the defaults."""

    values: Mapping[str, Value] = field(default_factory=dict)

    def get(self, key: str) -> Value | None:
        """The value of a key in KEYS; None when it is left to the plan or the service."""
        return self.values.get(key, KEYS[key].default)

    def pod_pools(self, plan: Plan) -> list[str]:
        pools = self.get("ipam.operator.clusterPoolIPv4PodCIDRList")
        return pools if isinstance(pools, list) else [str(plan.pods)]

    def environment(self, plan: Plan, service: str) -> dict[str, str]:
        """The PLEXUS_* variables that `service` takes its settings from, beside those that say who and where it is."""
        common = {
            "PLEXUS_LOG_LEVEL": "debug" if self.get("debug.enabled") else "info",
            "PLEXUS_LOG_FORMAT": "json",
        }
        if service == "resources":
            return common | {"PLEXUS_SERVICE_CIDR": str(plan.services)}
        if service == "ipam":
            return common | {
                "PLEXUS_CLUSTER_POOL_CIDRS": ",".join(self.pod_pools(plan)),
                "PLEXUS_CLUSTER_POOL_MASK": text(self.get("ipam.operator.clusterPoolIPv4MaskSize")),
            }
        if service == "dataplane":
            return common | self._dataplane(plan)
        return common

    def _dataplane(self, plan: Plan) -> dict[str, str]:
        masquerade = self.get("enableIPv4Masquerade") is True and self.get("bpf.masquerade") is True
        limits = {variable: text(self.values[key]) for key, variable in _LIMITS.items() if key in self.values}
        return limits | {
            "PLEXUS_ROUTING_MODE": text(self.get("routingMode")),
            "PLEXUS_TUNNEL_PROTOCOL": text(self.get("tunnelProtocol")),
            "PLEXUS_AUTO_DIRECT_NODE_ROUTES": text(self.get("autoDirectNodeRoutes")),
            "PLEXUS_MASQUERADE": text(masquerade),
            "PLEXUS_NATIVE_ROUTING_CIDR": text(self.get("ipv4NativeRoutingCIDR") or self.pod_pools(plan)[0]),
        }


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
        try:
            checked[key] = KEYS[key].read(value)
        except Unusable as error:
            raise LabError(f"{key}: {error}") from None
    return Settings(checked)


def check_plan(wanted: Settings, plan: Plan) -> None:
    """Raises LabError when the asked addresses run into those of the lab."""
    mask = wanted.get("ipam.operator.clusterPoolIPv4MaskSize")
    for pool in map(IPv4Network, wanted.pod_pools(plan)):
        key = "ipam.operator.clusterPoolIPv4PodCIDRList"
        for taken in (*plan.networks(), plan.services):
            if pool.overlaps(taken):
                raise LabError(f"{key}: {pool} overlaps {taken}, which this lab uses; {plan.pods} is free")
        if isinstance(mask, int) and mask < pool.prefixlen:
            raise LabError(f"ipam.operator.clusterPoolIPv4MaskSize: a block /{mask} does not fit into the pool {pool}")


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
