"""Helm values, as far as Plexus knows them, and the environments that they become. Pure.

The keys are those of the Helm chart: a lab is set up with the words of a real installation. A key that is unknown, a
value that cannot be, and a feature that does not exist yet are refused by name, never passed over. What the chart has
for "not set" is not set here: nothing, "", an empty list, and 0 where the chart says so. The rows in settings/rows.py
say what there is; here is what a lab decides beyond that: what its plan gives, and what does not go together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_network
from typing import Any

from bus.service import BadSettings
from lab.errors import LabError
from lab.plan import FAMILIES, Family, Plan
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes import sizes
from services.dataplane.shapes.sizes import HELM
from settings.readers import Unusable, Value
from settings.row import text
from settings.rows import KEYS, LATER, ROWS, VARIABLES

DEVICE_MTU_BYTES = 1500  # of a lab's nodes

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
        decided = self._decided(plan)
        for row in ROWS:
            if service not in row.services:
                continue
            # The default of a size or time is not passed on: what a node is told of those, it counts as asked for.
            value = self.values.get(row.key) if row.into else self.get(row.key) if row.key else None
            if row.variable in decided:
                found[row.variable] = decided[row.variable]
            elif value is not None:
                found[row.variable] = text(value)
        return found

    def _decided(self, plan: Plan) -> dict[str, str]:
        """What follows from the plan or from other keys, by variable. "": nothing is given out of it."""
        found = {"PLEXUS_MASQ_EXCLUDE": text(self.not_masqueraded) if self.get("ipMasqAgent.enabled") else ""}
        if self.get("hubble.relay.enabled"):
            found["PLEXUS_HUBBLE_LISTEN_ADDRESS"] = text(self.get("hubble.listenAddress") or ":4244")
        for family in FAMILIES:
            suffix, is_on, pools = _SUFFIX[family], family in self.families, self.pod_pools(plan, family)
            native = self.get(f"ipv{family}NativeRoutingCIDR")
            found |= {
                f"PLEXUS_SERVICE_CIDR{suffix}": str(plan.services(family)) if is_on else "",
                f"PLEXUS_CLUSTER_POOL_CIDRS{suffix}": text(pools) if is_on else "",
                f"PLEXUS_NATIVE_ROUTING_CIDR{suffix}": pools[0] if native is None else text(native),
            }
        return found

    @property
    def not_masqueraded(self) -> list[str]:
        """The list of ip-masq-agent, as far as the cluster has the family."""
        listed = self.get(f"{AGENT}nonMasqueradeCIDRs")
        found = list(listed if isinstance(listed, list) else NEVER_OUTSIDE)
        found += [cidr for key, cidr in LINK_LOCAL.items() if not self.get(AGENT + key) and cidr not in found]
        return [cidr for cidr in found if (6 if ":" in cidr else 4) in self.families]


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
    if found.get("hubble.relay.enabled") and not found.get("hubble.enabled"):
        raise LabError("hubble.relay.enabled: there is nobody to ask; set hubble.enabled=true")
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
    for variable, row in sorted(VARIABLES.items(), reverse=True):  # PLEXUS_MTU_X before PLEXUS_MTU
        said = said.replace(variable, row.name)
    return said


def check_sizes(wanted: Settings, memory_bytes: int) -> None:
    """Raises LabError when the maps' sizes do not go together on a node with so much memory."""
    asked = {name: found for name, key in HELM.items() if isinstance(found := wanted.values.get(key), int)}
    ratio = float(str(wanted.get("bpf.mapDynamicSizeRatio")))
    try:
        sizes.map_sizes(memory_bytes, ratio=ratio, asked=asked)
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
