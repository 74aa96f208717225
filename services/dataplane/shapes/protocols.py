"""IANA's numbers of protocols, and what they are called. In C they are the IPPROTO_* of <linux/in.h>."""

from __future__ import annotations

from collections.abc import Mapping

ICMP, TCP, UDP, ICMP6, SCTP = 1, 6, 17, 58, 132

NAMES: Mapping[int, str] = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMP6: "ICMPv6", SCTP: "SCTP"}
NUMBERS: Mapping[str, int] = {name: number for number, name in NAMES.items()}

WITH_PORTS = (TCP, UDP, SCTP)
WITH_TYPES = (ICMP, ICMP6)
"""Where others have a port they have their type + 1."""


def name_of(number: int) -> str:
    """ "TCP"; "any" for 0, by which maps mean every protocol; a number that has no name here as it is."""
    return NAMES.get(number, str(number)) if number else "any"


def numbers_of(word: str) -> tuple[int, ...]:
    """Those that a rule means by "TCP", or by "ANY": with a port, whatever has ports. Raises: KeyError."""
    return WITH_PORTS if word == "ANY" else (NUMBERS[word],)
