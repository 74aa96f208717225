"""What can be set: the rows of settings/rows.py that "ipam" reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from bus.addresses import FAMILIES
from bus.messages.resources import Family
from bus.service import BadSettings
from services.ipam.given_blocks import GivenBlocks
from services.ipam.model import BlockAllocation, Pools
from settings.read import default, read
from settings.readers import networks


class Names(NamedTuple):
    """Of one family: the fields of its rows."""

    enabled: str
    pools: str
    mask: str


NAMES: Mapping[Family, Names] = {
    "IPv4": Names("ipv4_enabled", "cluster_pool_cidrs", "cluster_pool_mask"),
    "IPv6": Names("ipv6_enabled", "cluster_pool_cidrs6", "cluster_pool_mask6"),
}


def blocks(environment: Mapping[str, str] = os.environ) -> BlockAllocation:
    """Who gives out blocks, as the mode says. Raises: BadSettings."""
    given = read(environment, "ipam")
    if given.get("ipam_mode", default("PLEXUS_IPAM_MODE", "ipam")) == "kubernetes":
        return GivenBlocks(_families(given))
    return BlockAllocation(*from_environment(environment))


def from_environment(environment: Mapping[str, str] = os.environ) -> list[Pools]:
    """The pools that blocks come from, those of each family that is on; there is one.

    Where it is not set whether a family is on, it has the pools that are given for it, and none when they are given
    as "". Pools are used in the order given only in that their blocks are numbered so.
    Raises: BadSettings.
    """
    given = read(environment, "ipam")
    return [_pools(given, NAMES[family]) for family in _families(given)]


def _families(given: Mapping[str, Any]) -> list[Family]:
    """Raises: BadSettings."""
    found = [family for family in FAMILIES if _is_on(given, NAMES[family])]
    if not found:
        raise BadSettings("PLEXUS_IPV4_ENABLED, PLEXUS_IPV6_ENABLED: both are off; pods need one of them")
    return found


def _variable(field: str) -> str:
    return f"PLEXUS_{field.upper()}"


def _is_on(given: Mapping[str, Any], names: Names) -> bool:
    if names.enabled in given:
        return bool(given[names.enabled])
    return bool(given.get(names.pools, default(_variable(names.enabled), "ipam")))


def _pools(given: Mapping[str, Any], names: Names) -> Pools:
    pools, mask = (given.get(name) or default(_variable(name), "ipam") for name in (names.pools, names.mask))
    try:
        return Pools(networks(pools), mask)
    except ValueError as error:
        raise BadSettings(f"{_variable(names.pools)}, {_variable(names.mask)}: {error}") from error
