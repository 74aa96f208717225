"""IP addresses as text, each in one form, of either family. Pure.

The one form of an IPv6 address is RFC 5952's: "fd00::1", lower case. A zone ("fe80::1%eth0") means something on one
machine only, and an IPv4 address written as an IPv6 one ("::ffff:10.0.0.1") would be a second name for the same
address, past whatever was said of the first: neither is an address here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

from bus.messages.resources import Family

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

FAMILIES: tuple[Family, Family] = ("IPv4", "IPv6")
_MAPPED = IPv6Network("::ffff:0:0/96")


class Addressed(Protocol):
    """A message that says its first address and all of them (Pod, Endpoint, PodStatus)."""

    @property
    def address(self) -> str: ...

    @property
    def addresses(self) -> list[str]: ...


@lru_cache(maxsize=1 << 16)
def parse(text: str) -> Address | None:
    """None for what is no address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and (address.scope_id is not None or address in _MAPPED):
        return None
    return address


def parse_network(text: str) -> Network | None:
    """None for what is no block: bits are set beyond its length, or it is a block of addresses that are none."""
    try:
        network = ip_network(text)
    except ValueError:
        return None
    return None if is_mapped(network) or "%" in text else network


def is_mapped(network: Network) -> bool:
    """IPv4 addresses written as IPv6 ones, and nothing else."""
    return isinstance(network, IPv6Network) and network.subnet_of(_MAPPED)


def plain(text: str) -> str:
    """The one form of an address; what is no address stays as it is, to be refused by name."""
    address = parse(text)
    return text if address is None else address.compressed


def family(value: Address | Network) -> Family:
    return "IPv4" if value.version == 4 else "IPv6"


def all_of(thing: Addressed) -> list[str]:
    """Every address that a message says, the first one first, each once, in its one form.

    Older writers fill `address` alone; "" is none.
    """
    return list(dict.fromkeys(plain(text) for text in (thing.address, *thing.addresses) if text))


def by_family(texts: Iterable[str]) -> dict[Family, str]:
    """The first address of each family, in the order given."""
    found: dict[Family, str] = {}
    for text in texts:
        address = parse(text)
        if address is not None:
            found.setdefault(family(address), text)
    return found


def of_family(texts: Iterable[str], wanted: Family) -> str | None:
    """The first address of the family; None when there is none."""
    return by_family(texts).get(wanted)


def order(text: str) -> tuple[int, int]:
    """To sort by: IPv4 first, then by number, as people expect addresses. What is no address comes before all."""
    address = parse(text)
    return (0, 0) if address is None else (address.version, int(address))


def with_port(address: str, port: int) -> str:
    """ "10.0.0.1:80", "[fd00::1]:80" (RFC 3986 section 3.2.2)."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
