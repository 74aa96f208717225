"""Networks as ranges: nftables sets know no longest prefix. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from typing import Any, NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Range(NamedTuple):
    """Addresses `first` to `last`, both included, and what holds for all of them."""

    first: int
    last: int
    value: int


def disjoint(networks: Mapping[Network, int]) -> list[Range]:
    """Ranges that say for each address what its longest network in `networks` says; lowest first.

    Args:
        networks: of one family. Two networks are disjoint, or one is within the other.
    """
    found: list[Range] = []
    around: list[tuple[int, int]] = []  # networks that are open where we are: last address, value; the inmost last
    at = 0

    def upto(end: int) -> None:
        nonlocal at
        if around and at <= end:
            value = around[-1][1]
            if found and found[-1].value == value and found[-1].last == at - 1:
                found[-1] = found[-1]._replace(last=end)
            else:
                found.append(Range(at, end, value))
        at = end + 1

    def leave(before: int | None) -> None:
        while around and (before is None or around[-1][0] < before):
            upto(around[-1][0])
            around.pop()

    for network, value in sorted(networks.items(), key=lambda each: (int(each[0].network_address), each[0].prefixlen)):
        first = int(network.network_address)
        leave(first)
        upto(first - 1)
        around.append((int(network.broadcast_address), value))
    leave(None)
    return found


def joined(networks: Iterable[Network]) -> list[Network]:
    """The fewest networks of one family that cover the same addresses."""
    same_family: Any = list(networks)
    return list(collapse_addresses(same_family))


def texts(ranges: Iterable[Range], version: int) -> Iterator[str]:
    """As nftables reads them: "10.0.0.1", "10.0.0.0-10.0.0.7"."""
    form = IPv4Address if version == 4 else IPv6Address
    for each in ranges:
        yield str(form(each.first)) if each.first == each.last else f"{form(each.first)}-{form(each.last)}"
