"""What can be set, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import IPv4Network

from bus.service import BadSettings
from services.ipam.model import Pools

DEFAULT_POOLS = "10.244.0.0/16"
DEFAULT_MASK = "24"  # 256 nodes of 253 pods each


def from_environment(environment: Mapping[str, str] = os.environ) -> Pools:
    """The pools that blocks come from.

    PLEXUS_IPAM_MODE: cluster-pool, the only mode so far.
    PLEXUS_CLUSTER_POOL_CIDRS: comma-separated; used in this order only in that their blocks are numbered so.
    PLEXUS_CLUSTER_POOL_MASK: the length of a block's prefix, at most 30.
    Raises: BadSettings.
    """
    mode = environment.get("PLEXUS_IPAM_MODE") or "cluster-pool"
    if mode != "cluster-pool":
        raise BadSettings(f'PLEXUS_IPAM_MODE: "{mode}" is not supported yet; use cluster-pool')
    texts = (environment.get("PLEXUS_CLUSTER_POOL_CIDRS") or DEFAULT_POOLS).replace(",", " ").split()
    mask = environment.get("PLEXUS_CLUSTER_POOL_MASK") or DEFAULT_MASK
    try:
        networks = [IPv4Network(text) for text in texts]
    except ValueError as error:
        raise BadSettings(f"PLEXUS_CLUSTER_POOL_CIDRS: {error}; write it as 10.244.0.0/16") from error
    if not mask.isascii() or not mask.isdigit():
        raise BadSettings(
            f'PLEXUS_CLUSTER_POOL_MASK: "{mask}" is not a number; use the prefix length of a block, as 24'
        )
    try:
        return Pools(networks, int(mask))
    except ValueError as error:
        raise BadSettings(f"PLEXUS_CLUSTER_POOL_CIDRS, PLEXUS_CLUSTER_POOL_MASK: {error}") from error
