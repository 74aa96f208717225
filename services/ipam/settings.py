"""What can be set, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from bus.addresses import FAMILIES, Network, family, parse_network
from bus.messages.resources import Family
from bus.service import BadSettings
from services.ipam.model import Pools


class Variables(NamedTuple):
    """Of one family: what its pools are set by, and what holds when it is not set."""

    enabled: str
    is_enabled: bool
    pools: str
    default_pools: str
    mask: str
    default_mask: str


VARIABLES: Mapping[Family, Variables] = {
    # 256 nodes of 253 pods each
    "IPv4": Variables(
        "PLEXUS_IPV4_ENABLED", True, "PLEXUS_CLUSTER_POOL_CIDRS", "10.244.0.0/16", "PLEXUS_CLUSTER_POOL_MASK", "24"
    ),
    # 65 536 nodes of 253 pods each
    "IPv6": Variables(
        "PLEXUS_IPV6_ENABLED", False, "PLEXUS_CLUSTER_POOL_CIDRS6", "fd00::/104", "PLEXUS_CLUSTER_POOL_MASK6", "120"
    ),
}


def from_environment(environment: Mapping[str, str] = os.environ) -> list[Pools]:
    """The pools that blocks come from, those of each family that is on; there is one.

    PLEXUS_IPAM_MODE: cluster-pool, the only mode so far.
    PLEXUS_IPV4_ENABLED (true), PLEXUS_IPV6_ENABLED (false): which families have pools. Where it is not set, a family
        has those that are given for it, and none when they are given as "".
    PLEXUS_CLUSTER_POOL_CIDRS, PLEXUS_CLUSTER_POOL_CIDRS6: comma-separated; used in this order only in that their blocks
        are numbered so.
    PLEXUS_CLUSTER_POOL_MASK, PLEXUS_CLUSTER_POOL_MASK6: the length of a block's prefix, at most 30 and 126.
    Raises: BadSettings.
    """
    mode = environment.get("PLEXUS_IPAM_MODE") or "cluster-pool"
    if mode != "cluster-pool":
        raise BadSettings(f'PLEXUS_IPAM_MODE: "{mode}" is not supported yet; use cluster-pool')
    found = [_pools(environment, wanted) for wanted in FAMILIES if _is_on(environment, VARIABLES[wanted])]
    if not found:
        raise BadSettings("PLEXUS_IPV4_ENABLED, PLEXUS_IPV6_ENABLED: both are off; pods need one of them")
    return found


def _is_on(environment: Mapping[str, str], names: Variables) -> bool:
    pools = environment.get(names.pools, names.default_pools if names.is_enabled else "")
    text = environment.get(names.enabled) or str(bool(pools)).lower()
    if text not in ("true", "false"):
        raise BadSettings(f'{names.enabled}: "{text}" is neither true nor false')
    return text == "true"


def _pools(environment: Mapping[str, str], wanted: Family) -> Pools:
    names = VARIABLES[wanted]
    texts = (environment.get(names.pools) or names.default_pools).replace(",", " ").split()
    mask = environment.get(names.mask) or names.default_mask
    if not mask.isascii() or not mask.isdigit():
        example = names.default_mask
        raise BadSettings(f'{names.mask}: "{mask}" is not a number; use the prefix length of a block, as {example}')
    networks = [_network(text, wanted) for text in texts]
    try:
        return Pools(networks, int(mask))
    except ValueError as error:
        raise BadSettings(f"{names.pools}, {names.mask}: {error}") from error


def _network(text: str, wanted: Family) -> Network:
    network = parse_network(text)
    if network is None or family(network) != wanted:
        names = VARIABLES[wanted]
        raise BadSettings(f'{names.pools}: "{text}" is not an {wanted} CIDR; write it as {names.default_pools}')
    return network
